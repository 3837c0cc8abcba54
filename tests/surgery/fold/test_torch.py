# SPDX-License-Identifier: Apache-2.0
"""Folding in torch modules: the outputs stay, the normalizers go where that is exact, or stay for a reason."""

import copy
import pickle

import numpy as np
import pytest

from conftest import NAME

if NAME != "torch":
    pytest.skip("torch modules run on torch", allow_module_level=True)

import torch
from torch import nn

import evenkeel as ek
from evenkeel import torch as ours
from evenkeel.errors import InputError, UnequalError
from evenkeel.surgery.fold import algebra

NORMALIZERS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, ours.BatchNorm)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def scrambled(model):
    """The module with statistics and weights far from their start."""
    for module in model.modules():
        if isinstance(module, NORMALIZERS):
            if module.running_mean is not None:
                module.running_mean.uniform_(-3, 3)
                module.running_var.uniform_(0.1, 10)
            if module.affine:
                nn.init.uniform_(module.weight, -2, 2)
                nn.init.normal_(module.bias)
    return model


def names(model):
    return {name for name, module in model.named_modules() if isinstance(module, NORMALIZERS)}


def plain(model, *x):
    with torch.no_grad():
        return copy.deepcopy(model).eval()(*x).double().numpy()


def check(model, x, stay=()):
    scrambled(model)
    folded, report = ek.fold(model, x)
    before, after = plain(model, x), plain(folded, x)
    size = max(1, np.abs(before).max())
    assert np.abs(before - after).max() <= 1e-5 * size
    assert names(folded) == {left.normalizer for left in report.left} == set(stay)
    assert max(item.largest for item in report.differences if item.dtype == "float64") <= 1e-12 * size
    return report


class Residual(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        y = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(y)) + x)


class DenseBlock(nn.Module):
    def __init__(self, channels, growth=4):
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(channels), nn.Conv2d(channels, 8, 1, bias=False)
        self.bn2, self.conv2 = nn.BatchNorm2d(8), nn.Conv2d(8, growth, 3, padding=1, bias=False)

    def forward(self, x):
        y = self.conv1(torch.relu(self.bn1(x)))
        return torch.cat([x, self.conv2(torch.relu(self.bn2(y)))], 1)


class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU())
        self.deep = nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(6, 12, 3, padding=1), nn.SyncBatchNorm(12), nn.ReLU())
        self.up = nn.Sequential(nn.ConvTranspose2d(12, 6, 2, stride=2, groups=2), nn.BatchNorm2d(6), nn.ReLU())
        self.last = nn.Conv2d(12, 2, 1)

    def forward(self, x):
        y = self.down(x)
        return self.last(torch.cat([y, self.up(self.deep(y))], 1))


NETWORKS = {
    "ResNet": (
        lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), Residual(8), Residual(8)),
        (3, 10, 10),
        [],
    ),
    "MobileNet": (
        lambda: nn.Sequential(
            *(nn.Conv2d(3, 12, 1, bias=False), nn.BatchNorm2d(12), nn.ReLU6()),
            *(nn.Conv2d(12, 12, 3, 2, 1, groups=12, bias=False), nn.BatchNorm2d(12, affine=False), nn.ReLU6()),
            *(nn.Conv2d(12, 6, 1, bias=False), nn.BatchNorm2d(6)),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5)),
        ),
        (3, 10, 10),
        [],
    ),
    "DenseNet": (
        lambda: nn.Sequential(DenseBlock(3), DenseBlock(7), nn.BatchNorm2d(11), nn.Conv2d(11, 5, 1)),
        (3, 8, 8),
        ["0.bn1", "1.bn1"],
    ),
    "U-Net": (UNet, (3, 8, 8), []),
    "audio": (
        lambda: nn.Sequential(
            *(nn.Conv1d(4, 8, 5, dilation=2, padding=4, padding_mode="reflect"), nn.BatchNorm1d(8), nn.Tanh()),
            *(nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Conv1d(8, 6, 3, padding=1, padding_mode="circular")),
            *(nn.GELU(), nn.ConvTranspose1d(6, 4, 3, stride=2), nn.BatchNorm1d(4), nn.Identity(), nn.BatchNorm1d(4)),
            *(nn.Flatten(), nn.LazyLinear(6, bias=False), nn.BatchNorm1d(6)),
        ),
        (4, 20),
        [],
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_whole_networks(name):
    make, shape, stay = NETWORKS[name]
    model, x = make(), torch.randn(2, *shape)
    model.eval()(x)
    report = check(model, x, stay)
    assert report.parameters.after < report.parameters.before
    assert report.multiply_adds.after < report.multiply_adds.before


LINEARS = {
    "Conv1d": (lambda **k: nn.Conv1d(4, 6, 3, **k), (4, 9)),
    "Conv2d": (lambda **k: nn.Conv2d(4, 6, (3, 2), **k), (4, 9, 9)),
    "Conv3d": (lambda **k: nn.Conv3d(4, 6, 2, **k), (4, 5, 5, 5)),
    "grouped": (lambda **k: nn.Conv2d(4, 6, 3, groups=2, **k), (4, 9, 9)),
    "depthwise": (lambda **k: nn.Conv2d(4, 8, 3, groups=4, **k), (4, 9, 9)),
    "dilated": (lambda **k: nn.Conv2d(4, 6, 3, stride=2, dilation=2, **k), (4, 9, 9)),
    "ConvTranspose1d": (lambda **k: nn.ConvTranspose1d(4, 6, 3, stride=2, **k), (4, 9)),
    "ConvTranspose2d": (lambda **k: nn.ConvTranspose2d(4, 6, 3, groups=2, output_padding=1, stride=2, **k), (4, 5, 5)),
    "ConvTranspose3d": (lambda **k: nn.ConvTranspose3d(4, 6, 2, **k), (4, 3, 3, 3)),
    "Linear": (lambda **k: nn.Linear(4, 6, **k), (4,)),
}


def normalizer(shape, channels):
    return {1: nn.BatchNorm1d, 2: nn.BatchNorm1d, 3: nn.BatchNorm2d, 4: nn.BatchNorm3d}[len(shape)](channels)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", LINEARS)
def test_a_normalizer_after_each_layer(name, bias):
    make, shape = LINEARS[name]
    layer = make(bias=bias)
    channels = layer.out_features if name == "Linear" else layer.out_channels
    check(nn.Sequential(layer, normalizer(shape, channels)), torch.randn(2, *shape))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", LINEARS)
def test_a_normalizer_before_each_layer(name, bias):
    make, shape = LINEARS[name]
    stay = ["0"] if "Transpose" in name else []
    check(nn.Sequential(normalizer(shape, 4), make(bias=bias), nn.ReLU()), torch.randn(2, *shape), stay)


@pytest.mark.parametrize("padding", [0, 1, "same", "valid"])
@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
def test_only_zeros_are_in_the_way(padding, mode):
    model = nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3, padding=padding, padding_mode=mode))
    check(model, torch.randn(2, 4, 6, 6), ["0"] if mode == "zeros" and padding in (1, "same") else [])


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x):
        bn = self.bn
        return nn.functional.batch_norm(self.conv(x), bn.running_mean, bn.running_var, bn.weight, bn.bias)


class Twice(nn.Module):
    def __init__(self, what):
        super().__init__()
        self.what, self.conv, self.bn = what, nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.tied = nn.Conv2d(3, 3, 1)
        self.tied.weight = self.conv.weight

    def forward(self, x):
        if self.what == "convolution":
            return self.bn(self.conv(self.conv(x)))
        if self.what == "normalizer":
            return self.bn(self.conv(self.bn(x)))
        if self.what == "result":
            y = self.conv(x)
            return self.bn(y) + y
        if self.what == "weight":
            return self.bn(self.conv(x)) + self.conv.weight.sum()
        return self.tied(torch.relu(self.bn(self.conv(x))))


class Own(nn.BatchNorm2d):
    def forward(self, x):
        return 2 * super().forward(x)


@pytest.mark.parametrize(
    ("model", "shape", "reason"),
    [
        (Functional, (3, 4, 4), "it is called as a function, not as a module"),
        (lambda: Twice("convolution"), (3, 4, 4), "conv (Conv2d) before it is shared: it is called 2 times"),
        (lambda: Twice("normalizer"), (3, 4, 4), "it is shared: it is called 2 times"),
        (lambda: Twice("result"), (3, 4, 4), "the result of conv (Conv2d) before it is used elsewhere too"),
        (lambda: Twice("weight"), (3, 4, 4), "conv (Conv2d) before it shares its weights with others"),
        (lambda: Twice("tied"), (3, 4, 4), "conv (Conv2d) before it shares its weights with others"),
        (lambda: nn.Sequential(nn.Conv2d(3, 4, 1), Own(4)), (3, 4, 4), "it is a Own, which may compute"),
        (
            lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, track_running_stats=False)),
            (3, 4, 4),
            "it has no moving statistics: track_running_stats is False",
        ),
        (lambda: nn.Sequential(nn.Linear(5, 5), nn.BatchNorm1d(3)), (3, 5), "its axis 1 is not that of the channels"),
        (
            lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.BatchNorm2d(4)),
            (3, 4, 4),
            "before it stands 1 (ReLU)",
        ),
        (
            lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 1)), nn.BatchNorm2d(4)),
            (3, 4, 4),
            "before it stands 0 (ParametrizedConv2d)",
        ),
        (
            lambda: nn.Sequential(nn.utils.spectral_norm(nn.Conv2d(3, 4, 1)), nn.BatchNorm2d(4)),
            (3, 4, 4),
            "0 (Conv2d) before it computes its weight from others",
        ),
    ],
)
def test_what_stays_has_a_reason(model, shape, reason):
    _, report = ek.fold(scrambled(model()), torch.randn(2, *shape))
    assert report.folded == []
    assert reason in report.left[0].reason


def test_the_given_module_is_as_it_was():
    model = scrambled(UNet()).train()
    before = copy.deepcopy(model.state_dict())
    folded, _ = ek.fold(model, torch.randn(2, 3, 8, 8))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert type(folded) is UNet and not folded.training


def test_half_precision_is_rounded_once():
    model = scrambled(nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6))).bfloat16()
    folded, report = ek.fold(model, torch.randn(2, 4, dtype=torch.bfloat16))
    linear, bn = model
    scale = bn.weight.double() / torch.sqrt(bn.running_var.double() + bn.eps)
    assert torch.equal(folded[0].weight, (linear.weight.double() * scale[:, None]).bfloat16())
    assert [item.dtype for item in report.differences] == ["bfloat16", "float64", "bfloat16", "float64"]


@pytest.mark.parametrize("side", ["after", "before"])
def test_a_wrong_fold_is_noticed(monkeypatch, side):
    right = getattr(algebra, side)

    def wrong(linear, axis, scale, offset):
        return right(linear, axis, scale, offset + 1e-7 * (np.arange(len(offset)) == 0))

    monkeypatch.setattr(algebra, side, wrong)
    make, shape, _ = NETWORKS["DenseNet"]
    with pytest.raises(UnequalError, match=r"differs by .* in float64"):
        ek.fold(scrambled(make()), torch.randn(2, *shape))


class Branches(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


@pytest.mark.parametrize(
    ("model", "data", "words"),
    [
        (Branches(), torch.zeros(2, 3), "torch.fx cannot trace Branches"),
        (nn.Linear(3, 4), None, "data is missing, and Linear does not say what it takes"),
        (nn.Linear(3, 4), torch.zeros(2, 5), "does not take the given data"),
    ],
)
def test_what_cannot_be_folded_is_said(model, data, words):
    with pytest.raises(InputError, match=words):
        ek.fold(model, data)


def test_several_arguments_are_a_tuple():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.linear, self.bn = nn.Embedding(5, 4), nn.Linear(4, 3), nn.BatchNorm1d(3)

        def forward(self, x, index):
            return {"y": self.bn(self.linear(x + self.table(index)))}

    _, report = ek.fold(scrambled(Two()), (torch.randn(2, 4), torch.tensor([1, 4])))
    assert report.left == []


# Ours.


class OurResidual(nn.Module):
    def __init__(self, **arguments):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(4, 4, 3, padding=1, bias=False), ours.BatchNorm2d(4, **arguments)
        self.conv2, self.bn2 = nn.Conv2d(4, 4, 3, padding=1), ours.BatchNorm2d(4, **arguments)

    def forward(self, x):
        return self.bn2(self.conv2(self.bn1(input=self.conv1(x))), x)


def own(y):
    return y * torch.sigmoid(y)


ACTIVATIONS = {"none": None, "relu": "relu", "leaky_relu": "leaky_relu", "elu": "elu", "module": nn.PReLU(), "own": own}


@pytest.mark.parametrize("activation", ACTIVATIONS.values(), ids=ACTIVATIONS)
def test_what_ours_do_beside_stays_behind_the_convolution(activation):
    model = nn.Sequential(nn.Conv2d(3, 4, 1), ours.BatchNorm2d(4), OurResidual(activation=activation))
    report = check(model, torch.randn(2, 3, 5, 5))
    assert [item[:2] for item in report.folded] == [("1", "0"), ("2.bn1", "2.conv1"), ("2.bn2", "2.conv2")]
    folded, _ = ek.fold(model, torch.randn(2, 3, 5, 5))
    assert set(folded.state_dict()) <= {*model.state_dict(), "2.conv1.bias"}
    pickled = pickle.loads(pickle.dumps(folded))
    torch.testing.assert_close(pickled(torch.ones(2, 3, 5, 5)), folded(torch.ones(2, 3, 5, 5)))


@pytest.mark.parametrize(
    "arguments",
    [{"renorm": True}, {"frozen": True}, {"frozen": "all"}, {"average": "debiased"}, {"synchronized": True}],
)
def test_settings_of_training_do_not_matter(arguments):
    check(OurResidual(activation="relu", **arguments), torch.randn(2, 4, 5, 5))


def test_the_axis_of_ours_is_that_of_the_layer_before():
    x = torch.randn(2, 5, 6)
    check(nn.Sequential(nn.Linear(6, 3), ours.BatchNorm(3, axis=-1)), x)
    check(nn.Sequential(ours.BatchNorm(6, axis=2), nn.Linear(6, 3)), x)
    _, report = ek.fold(scrambled(nn.Sequential(nn.Linear(6, 3), ours.BatchNorm(5))), x)
    assert "its axis 1 is not that of the channels" in report.left[0].reason


class OurLast(nn.Module):
    def __init__(self, what):
        super().__init__()
        self.bn1, self.conv, self.bn2 = ours.BatchNorm2d(4, activation="relu"), nn.Conv2d(4, 4, 1), ours.BatchNorm2d(4)
        self.what = what

    def forward(self, x):
        if self.what == "activation":
            return self.conv(self.bn1(x))
        y = self.conv(x)
        return self.bn2(y, y)


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("activation", "before it stands x (an input); it ends in relu"),
        ("residual", "the result of conv (Conv2d) before it is used elsewhere too; it ends in a sum"),
    ],
)
def test_ours_stay_for_a_reason(what, reason):
    _, report = ek.fold(scrambled(OurLast(what)), torch.randn(2, 4, 5, 5))
    assert reason in [left.reason for left in report.left]


class OwnOfOurs(ours.BatchNorm2d):
    def forward(self, x):
        return 2 * super().forward(x)


def test_what_derives_from_ours_stays():
    _, report = ek.fold(scrambled(nn.Sequential(nn.Conv2d(3, 4, 1), OwnOfOurs(4))), torch.randn(2, 3, 5, 5))
    assert "it is a OwnOfOurs, which may compute" in report.left[0].reason
