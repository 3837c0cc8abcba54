# SPDX-License-Identifier: Apache-2.0
"""torch modules, recalibrated: against float64, and what must not change."""

import numpy as np
import pytest

import oracle
import tolerances
from conftest import NAME

if NAME != "torch":
    pytest.skip("of torch", allow_module_level=True)

import torch
from torch import nn

from evenkeel import torch as ours
from evenkeel.errors import ArgumentError, InputError
from evenkeel.surgery.freeze import freeze
from evenkeel.surgery.recalibrate import recalibrate

METHODS = ["pooled", "sequential"]
LAYERS = {
    "1d": (nn.BatchNorm1d, (3,)),
    "sequence": (nn.BatchNorm1d, (3, 6)),
    "2d": (nn.BatchNorm2d, (3, 4, 5)),
    "3d": (nn.BatchNorm3d, (3, 2, 3, 2)),
    "sync": (nn.SyncBatchNorm, (3, 4)),
}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def numbers(*shape, mean=0.0):
    return np.random.default_rng(0).normal(mean, 2, shape)


def network(**options):
    return nn.Sequential(
        nn.BatchNorm1d(4, **options), nn.Dropout(), nn.Linear(4, 3, bias=False), nn.BatchNorm1d(3, **options)
    )


def check(layer, x, rounded=1):
    mean, variance, count = oracle.moments(x, 1)
    variance = variance * count / (count - 1)
    condition = max(map(tolerances.condition, mean, variance))
    found_mean, found_variance = (buffer.numpy() for buffer in (layer.running_mean, layer.running_var))
    bound = rounded * tolerances.mean("float32", count.max(), condition)
    assert (np.abs(found_mean - mean) <= bound * np.sqrt(variance)).all()
    bound = rounded * tolerances.variance("float32", count.max(), condition)
    assert (np.abs(found_variance - variance) <= bound * variance).all()


def everything(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def unchanged(module, before, *but):
    after = module.state_dict()
    return all(torch.equal(before[name], after[name]) for name in before if not name.endswith(but or ("nothing",)))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("offset", [0.0, 1e3])
@pytest.mark.parametrize(("kind", "shape"), LAYERS.values(), ids=LAYERS)
def test_statistics_are_of_all_values(kind, shape, offset, method):
    layer, x = kind(3), numbers(20, *shape, mean=offset).astype("float32")
    report = recalibrate(nn.Sequential(layer), x, batch_size=8, method=method)
    check(layer, x)
    assert report.renewed[0].values == x.size / 3 and report.renewed[0].calls == 3


@pytest.mark.parametrize("method", METHODS)
def test_what_the_second_layer_sees(method):
    module, x = network(), numbers(20, 4)
    recalibrate(module, x, batch_size=8, method=method)
    parts = [x] if method == "sequential" else np.split(x, [8, 16])
    seen = [oracle.moments(part, 1) for part in parts]
    # At inference torch divides by the sample's deviation, in training by the population's.
    scale = [count / (count - 1) if method == "sequential" else 1 for _, _, count in seen]
    normalized = [
        oracle.normalize(part, mean, variance * factor, epsilon=1e-5)
        for part, (mean, variance, _), factor in zip(parts, seen, scale, strict=True)
    ]
    check(module[3], np.concatenate(normalized) @ module[2].weight.detach().numpy().T.astype("float64"), rounded=4)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("method", METHODS)
def test_nothing_but_statistics_changes(method, momentum, training):
    module = network(momentum=momentum).train(training)
    before, drawn = everything(module), torch.get_rng_state()
    recalibrate(module, numbers(20, 4, mean=3), method=method)
    assert unchanged(module, before, "running_mean", "running_var")
    assert not unchanged(module, before)
    assert [part.training for part in module.modules()] == [training] * 5
    assert module[0].momentum == momentum
    assert not module[0]._forward_pre_hooks
    assert torch.equal(drawn, torch.get_rng_state())


@pytest.mark.parametrize("method", METHODS)
def test_an_exception_leaves_all_as_it_was(method):
    module = network()
    before = everything(module)

    def batches():
        yield numbers(8, 4, mean=5)
        yield numbers(8, 5)

    with pytest.raises((InputError, RuntimeError), match=r"\(5,\)|contain 5 elements not 4"):
        recalibrate(module, batches, method=method)
    assert unchanged(module, before) and module[0].training and not module[0]._forward_pre_hooks


def test_a_data_loader_and_its_labels():
    module, x = network(), torch.tensor(numbers(20, 4).astype("float32"))
    data = torch.utils.data.TensorDataset(x, torch.zeros(20))
    recalibrate(module, torch.utils.data.DataLoader(data, batch_size=8))
    check(module[0], x)


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.shared = nn.BatchNorm1d(3)

    def forward(self, left, right):
        return self.shared(left) + self.shared(input=right)


@pytest.mark.parametrize("names", [("left", "right"), None])
@pytest.mark.parametrize("method", METHODS)
def test_a_shared_layer_pools_all_its_calls(method, names):
    left, right = numbers(20, 3), numbers(20, 3, mean=4)
    module, data = TwoInputs(), [left, right]
    recalibrate(module, dict(zip(names, data, strict=True)) if names else data, method=method, batch_size=8)
    check(module.shared, np.concatenate([left, right]))


def test_integers_stay_integers():
    module = nn.Sequential(nn.Embedding(5, 3), nn.BatchNorm1d(7))
    tokens = np.random.default_rng(0).integers(0, 5, (20, 7))
    recalibrate(module, tokens, batch_size=8)
    check(module[1], module[0].weight.detach().numpy()[tokens])


def test_statistics_in_16_bits():
    module, x = nn.Sequential(nn.BatchNorm1d(3)).to(torch.bfloat16), numbers(20, 3)
    recalibrate(module, x)
    np.testing.assert_allclose(module[0].running_mean.float().numpy(), x.mean(0), atol=0.02)
    assert module[0].running_mean.dtype == torch.bfloat16


def test_a_layer_without_statistics_is_listed():
    module = nn.Sequential(nn.BatchNorm1d(4, track_running_stats=False), nn.BatchNorm1d(4))
    report = recalibrate(module, numbers(20, 4))
    assert report.left == {"0": "it keeps no statistics (track_running_stats=False)"}
    assert [item.name for item in report.renewed] == ["1"]


@pytest.mark.parametrize("include_frozen", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_what_freeze_keeps_is_frozen_in_either_mode(training, include_frozen):
    module = network().train(training)
    freeze(module[0])
    before = everything(module[0])
    report = recalibrate(module, numbers(20, 4), include_frozen=include_frozen)
    assert unchanged(module[0], before) is not include_frozen
    assert list(report.left) == ([] if include_frozen else ["0"])


@pytest.mark.parametrize("include_frozen", [False, True])
def test_a_layer_in_eval_mode_within_training_is_frozen(include_frozen):
    module, x = network(), numbers(20, 4)
    module[0].eval()
    before = everything(module[0])
    report = recalibrate(module, x, include_frozen=include_frozen)
    assert unchanged(module[0], before) is not include_frozen
    assert list(report.left) == ([] if include_frozen else ["0"])
    assert [part.training for part in module] == [False, True, True, True]


def test_a_layer_that_no_data_reached_keeps_its_statistics():
    module = nn.Sequential(nn.BatchNorm1d(4))
    module[0].unused = nn.BatchNorm1d(2)
    report = recalibrate(module, numbers(20, 4))
    assert report.unreached == ["0.unused"]
    assert module[0].unused.running_var.tolist() == [1, 1]


def test_better_statistics_are_kept():
    module, x = nn.Sequential(nn.BatchNorm1d(2)), numbers(200, 2) * [1, 100] + [3, -500]
    labels = oracle.normalize(x, *oracle.moments(x)[:2]).argmax(-1)
    first = recalibrate(module, x, keep_if_better=(x, labels))
    before = everything(module)
    second = recalibrate(module, x[:4], keep_if_better=(x, labels))
    assert (first.kept, first.after, second.kept, second.before) == ("new", 1.0, "old", 1.0)
    assert unchanged(module, before)


def test_targets_that_are_no_labels_need_a_function():
    with pytest.raises(ArgumentError, match=r"cannot compare a Sequential by targets of float64 \(20, 3\)"):
        recalibrate(network(), numbers(20, 4), keep_if_better=(numbers(20, 4), numbers(20, 3)))


@pytest.mark.parametrize("rows", [12, 40])
def test_labels_of_other_rows_are_an_error(rows):
    with pytest.raises(ArgumentError, match=rf"x of keep_if_better has \[20\] rows, and y has {rows}; give a"):
        recalibrate(network(), numbers(20, 4), keep_if_better=(numbers(20, 4), np.zeros(rows, int)))


def test_a_normalizer_alone_goes_by_its_class():
    assert [item.name for item in recalibrate(nn.BatchNorm1d(4), numbers(20, 4)).renewed] == ["BatchNorm1d"]


def test_a_module_without_normalizers_is_an_error():
    with pytest.raises(InputError, match="the Linear has no batch normalization"):
        recalibrate(nn.Linear(2, 2), numbers(8, 2))


# Ours.


OURS = {
    "axis": {"axis": -1},
    "activation": {"activation": "relu"},
    "own activation": {"activation": nn.PReLU()},
    "synchronized": {"synchronized": True},
    "virtual batches": {"virtual_batch_size": 4},
    "cumulative": {"average": "cumulative"},
    "momentum=None": {"momentum": None},
    "renorm": {"renorm": True},
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("arguments", OURS.values(), ids=OURS)
def test_ours(arguments, method):
    layer, x = ours.BatchNorm(3, **arguments), numbers(20, 3, 3, mean=50).astype("float32")
    recalibrate(nn.Sequential(layer), x, batch_size=8, method=method)
    check(layer, x if layer.axis == 1 else np.swapaxes(x, 1, 2))


def test_what_ours_keep_beside_the_statistics_follows():
    layer, x = ours.BatchNorm1d(3, renorm=True, average="debiased"), numbers(20, 3)
    recalibrate(layer, x, batch_size=8)
    deviation = (layer.running_var + layer.eps).sqrt()
    torch.testing.assert_close(layer.moving_stddev, deviation)
    torch.testing.assert_close(layer.renorm_stddev, deviation)
    assert torch.equal(layer.renorm_mean, layer.running_mean)
    assert layer.updates.tolist() == [3, 3, 3] and layer.num_batches_tracked == 3
    layer.train()(torch.full((4, 3), 9.0))
    assert layer.num_batches_tracked == 4


def test_the_population_s_variance():
    layer, x = ours.BatchNorm1d(3, bessel_correction=False), numbers(20, 3)
    recalibrate(layer, x)
    np.testing.assert_allclose(layer.running_var.numpy(), x.var(0), rtol=1e-5)


class Padded(nn.Module):
    def __init__(self, name):
        super().__init__()
        self.bn, self.name = ours.BatchNorm1d(3, activation="relu"), name

    def forward(self, x):
        return self.bn(x, x, **{self.name: (x != 0).all(1)})


@pytest.mark.parametrize("name", ["mask", "sample_weight"])
@pytest.mark.parametrize("method", METHODS)
def test_padding_does_not_count(method, name):
    module, x = Padded(name), numbers(20, 3, 6, mean=5)
    x[:, :, 4:] = 0
    recalibrate(module, x, method=method, batch_size=8)
    check(module.bn, x[:, :, :4])


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = ours.BatchNorm1d(3, activation="relu"), ours.BatchNorm1d(3)

    def forward(self, x):
        return self.second(self.first(x, x))


def test_a_layer_after_one_with_a_residual_sees_the_sum():
    module, x = Residual().eval(), numbers(20, 3)
    recalibrate(module, x, method="sequential")
    y = module.first(torch.tensor(x, dtype=torch.float32), torch.tensor(x, dtype=torch.float32))
    check(module.second, y.detach().numpy(), rounded=4)


@pytest.mark.parametrize("include_frozen", [False, True])
def test_ours_that_are_frozen(include_frozen):
    module = nn.Sequential(ours.BatchNorm1d(4, frozen=True), ours.BatchNorm1d(4))
    before = everything(module[0])
    report = recalibrate(module, numbers(20, 4), include_frozen=include_frozen)
    assert unchanged(module[0], before) is not include_frozen
    assert report.left == ({} if include_frozen else {"0": "frozen"})
