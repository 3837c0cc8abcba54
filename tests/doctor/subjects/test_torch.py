# SPDX-License-Identifier: Apache-2.0
"""torch modules: what they say of their normalizers; and healthy ones, of which nothing is said."""

import copy

import numpy as np
import pytest

from conftest import NAME

if NAME != "torch":
    pytest.skip("of torch", allow_module_level=True)

import torch
from torch import nn
from torch.nn import functional

import evenkeel as ek
from evenkeel import torch as ours
from evenkeel.doctor import subjects
from evenkeel.doctor.evidence import Decay, Normalizer, Observed, Phase, Structure, Unseen
from evenkeel.doctor.options import Options


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def evidence(module, wanted, **options):
    return [item for item in subjects.of(module).evidence(module, Options(**options)) if isinstance(item, wanted)]


def normalizer(module, **options):
    (found,) = evidence(module, Normalizer, **options)
    return found


def stepped(module, optimizer, steps=3):
    for _ in range(steps):
        optimizer.zero_grad()
        module(torch.randn(8, 4)).square().sum().backward()
        optimizer.step()
    return optimizer


# Values and settings.


def test_values_are_those_of_the_module():
    layer = nn.BatchNorm1d(3, eps=0.01, momentum=0.25)
    for number, name in enumerate(["running_mean", "running_var", "weight", "bias"]):
        getattr(layer, name).data = torch.arange(3.0) + number
    found = normalizer(nn.Sequential(nn.Linear(4, 3), layer))
    values = [found.moving_mean, found.moving_variance, found.gamma, found.beta]
    np.testing.assert_array_equal(values, np.arange(3) + np.arange(4)[:, None])
    assert (found.name, found.momentum, found.epsilon, found.library) == ("1", 0.75, 0.01, "torch")
    assert found.bessel_correction and found.average == "exponential"
    layer.running_mean.zero_()
    assert found.moving_mean.any()


def test_the_module_itself_goes_by_its_class():
    assert normalizer(nn.BatchNorm2d(3)).name == "BatchNorm2d"


def test_bfloat16_stays_what_it_is():
    pytest.importorskip("ml_dtypes")
    assert normalizer(nn.BatchNorm1d(3).bfloat16()).moving_mean.dtype == "bfloat16"


def pinned(layer):
    ek.freeze(layer)


def pinned_whole(layer):
    ek.freeze(layer, affine=True)


SETTINGS = {
    "plain": ({}, lambda _: None, {"frozen": False, "moves": True, "trainable": True, "updates": 0}),
    "cumulative": ({"momentum": None}, lambda _: None, {"average": "cumulative", "momentum": None}),
    "frozen": ({}, pinned, {"frozen": True, "moves": False, "trainable": True}),
    "frozen in all": (
        {},
        pinned_whole,
        {"frozen": "all", "moves": False, "trainable": False},
    ),
    "in eval mode": ({}, lambda layer: layer.eval(), {"frozen": True, "moves": False}),
    "half frozen": ({}, lambda layer: layer.requires_grad_(False), {"trainable": False, "moves": True}),
    "not affine": ({"affine": False}, lambda _: None, {"trainable": None, "gamma": None, "beta": None}),
    "no statistics": ({"track_running_stats": False}, lambda _: None, {"moves": False, "moving_mean": None}),
}


@pytest.mark.parametrize("settings", SETTINGS)
def test_settings(settings):
    given, change, expected = SETTINGS[settings]
    layer = nn.BatchNorm1d(3, **given)
    change(layer)
    found = normalizer(nn.Sequential(nn.Linear(4, 3), layer))
    assert {name: getattr(found, name) for name in expected} == expected


def test_of_a_module_in_eval_mode_nobody_knows_what_training_will_do():
    found = normalizer(nn.Sequential(nn.BatchNorm1d(3)).eval())
    assert (found.frozen, found.moves) == (None, None)


def test_batches_and_steps_are_counted():
    module = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    optimizer = stepped(module, torch.optim.Adam(module.parameters()))
    found = normalizer(module, optimizer=optimizer)
    assert (found.updates, found.steps) == (3, 3)
    assert normalizer(module, optimizer=optimizer, steps=7).steps == 7


def test_plain_gradient_descent_does_not_count():
    module = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    assert normalizer(module, optimizer=stepped(module, torch.optim.SGD(module.parameters(), 0.1))).steps is None


def test_passes_that_do_not_train_are_found():
    module = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3, momentum=0.5))
    optimizer = torch.optim.Adam(module.parameters())
    for _ in range(3):
        module(torch.randn(8, 4))
        stepped(module, optimizer, steps=1)
    assert [(found.rule, found.seen[:9]) for found in ek.diagnose(module, optimizer=optimizer).warnings] == [
        ("EK203", "6 updates")
    ]


# Structure.


class Block(nn.Module):
    """With functions, a residual and the batch size in a reshape."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4, bias=False), nn.Linear(4, 4)
        self.one, self.two = nn.BatchNorm1d(4, momentum=0.5), nn.BatchNorm1d(4, momentum=0.5, affine=False)
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        y = functional.leaky_relu(self.one(self.first(x)))
        y = functional.dropout(y, 0.5, self.training)
        y = self.two(self.second(y).view(x.size(0), 4))
        return (x + y).relu()


def places(module):
    (structure,) = evidence(module, Structure)
    return {place.name: place for place in structure.places}


def kinds(neighbours):
    return " ".join(item.kind for item in neighbours)


def test_neighbours_in_a_module():
    module = nn.Sequential(Block(), nn.Linear(4, 2))
    found = places(module)
    assert {name: (kinds(place.before), kinds(place.after)) for name, place in found.items()} == {
        "0.one": ("linear", "activation dropout linear"),
        "0.two": ("shape linear", "junction activation linear"),
    }
    assert (found["0.one"].before[0].bias, found["0.two"].before[1].bias) == (False, True)
    assert (found["0.one"].scale, found["0.two"].scale) == (True, False)
    assert found["0.one"].after[0].homogeneous
    assert module[0].calls == 0


CHAINS = {
    "dropout": ([nn.Linear(4, 4), nn.Dropout(0.5)], "dropout linear"),
    "dropout of nothing": ([nn.Linear(4, 4), nn.Dropout(0.0)], "linear"),
    "identity": ([nn.Linear(4, 4), nn.Identity()], "linear"),
    "unknown": ([nn.Linear(4, 4), nn.ZeroPad1d(1)], "other"),
    "pool": ([nn.Conv1d(4, 4, 1), nn.MaxPool1d(2)], "pool linear"),
    "flat": ([nn.Conv2d(1, 1, 1), nn.Flatten()], "shape linear"),
}


@pytest.mark.parametrize("layers", CHAINS)
def test_neighbours_in_a_chain(layers):
    before, expected = CHAINS[layers]
    (place,) = places(nn.Sequential(*before, nn.BatchNorm1d(4))).values()
    assert kinds(place.before) == expected


def test_a_shared_module_is_one_place():
    shared = nn.BatchNorm1d(4)
    (place,) = places(nn.Sequential(shared, nn.Linear(4, 4), shared)).values()
    assert (place.name, place.calls, place.before) == ("0", 2, ())


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(4, momentum=0.5)

    def forward(self, x):
        return self.norm(x) if x.isfinite().all() else x


def test_a_module_that_cannot_be_traced_says_so():
    found = evidence(Branching(), Unseen)
    assert "control flow" in found[0].why and not evidence(Branching(), Structure)
    assert normalizer(Branching()).name == "norm"


# Phases.


class Fixed(nn.Module):
    def __init__(self, phase):
        super().__init__()
        self.norm, self.phase = nn.BatchNorm1d(4), phase
        self.weight = nn.Parameter(torch.ones(4, 4))

    def forward(self, x):
        norm = self.norm
        phase = self.training if self.phase is None else self.phase
        # Weight standardization, as in the big transfer models: no phase of the data.
        weight = functional.batch_norm(self.weight, None, None, training=True)
        return functional.batch_norm(x @ weight, norm.running_mean, norm.running_var, training=phase)


@pytest.mark.parametrize(("phase", "expected"), [(True, ["0.norm"]), (False, []), (None, [])])
def test_a_phase_in_forward(phase, expected):
    assert [item.name for item in evidence(nn.Sequential(Fixed(phase)), Phase)] == expected


def test_a_module_without_statistics_uses_the_batch():
    (found,) = evidence(nn.Sequential(nn.BatchNorm1d(4, track_running_stats=False)), Phase)
    assert (found.name, found.model, found.batch) == ("0", "inference", True)


# Weight decay.


def test_what_an_optimizer_decays():
    module = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    (found,) = evidence(module, Decay, optimizer=torch.optim.AdamW(module.parameters()))
    assert (found.optimizer, found.value, found.decayed) == ("AdamW", 0.01, ("1.weight", "1.bias"))


def test_groups_without_decay_are_heeded():
    module = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    optimizer = torch.optim.SGD(ek.decay_exclusions(module), 0.1, weight_decay=1e-4)
    assert [found.decayed for found in evidence(module, Decay, optimizer=optimizer)] == [()]


# Data, and healthy modules.


def test_data_is_looked_at():
    module = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    assert [item.normalizer.name for item in evidence(module, Observed, data=np.ones((8, 4)))[0].seen] == ["1"]
    assert evidence(module, Unseen)[0].why == "no data was given"


def test_without_normalizers_no_data_is_run():
    assert evidence(nn.Linear(4, 4), (Normalizer, Observed, Unseen), data=np.ones((8, 4))) == []


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks, self.head = nn.Sequential(Block(), Block()), nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.blocks(x))


HEALTHY = {
    "residual": Residual,
    "chain": lambda: nn.Sequential(Block(), nn.Dropout(0.1), nn.Linear(4, 2), nn.BatchNorm1d(2, momentum=0.5)),
    "branching": Branching,
    "cumulative": lambda: nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, momentum=None)),
}


@pytest.mark.parametrize("mode", [True, False])
@pytest.mark.parametrize("module", HEALTHY)
def test_of_a_healthy_module_nothing_above_a_note_is_said(module, mode):
    module = HEALTHY[module]()
    optimizer = stepped(module, torch.optim.Adam(module.parameters()), steps=6)
    report = ek.diagnose(module.train(mode), optimizer=optimizer)
    assert not report.errors + report.warnings, str(report)


# Ours.


OUR_SETTINGS = {
    "plain": ({"momentum": 0.25}, {"momentum": 0.75, "library": "torch", "frozen": False, "moves": True}),
    "debiased": ({"average": "debiased"}, {"average": "debiased"}),
    "momentum=None": ({"momentum": None}, {"average": "cumulative", "momentum": None}),
    "population": ({"bessel_correction": False}, {"bessel_correction": False}),
    "frozen": ({"frozen": True}, {"frozen": True, "moves": False, "trainable": True}),
    "frozen in all": ({"frozen": "all"}, {"frozen": "all", "moves": False, "trainable": False}),
    "virtual batches": ({"virtual_batch_size": 8}, {"virtual_batch_size": 8, "replicas": 1}),
    "synchronized, alone": ({"synchronized": True}, {"replicas": 1}),
}


@pytest.mark.parametrize("settings", OUR_SETTINGS)
def test_settings_of_ours(settings):
    given, expected = OUR_SETTINGS[settings]
    found = normalizer(nn.Sequential(nn.Linear(4, 3), ours.BatchNorm1d(3, **given)))
    assert {name: getattr(found, name) for name in expected} == expected


@pytest.mark.parametrize("layer", [ours.BatchNorm(3, synchronized=True), nn.SyncBatchNorm(3)])
def test_processes_that_share_their_statistics(layer, monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda group: 4)
    assert normalizer(nn.Sequential(layer)).replicas == 4
    assert normalizer(nn.Sequential(nn.BatchNorm1d(3))).replicas == 1


def test_what_ours_keep_beside_torch_s():
    layer = ours.BatchNorm1d(3, renorm=True, average="cumulative")
    layer(torch.randn(8, 3))
    found = normalizer(layer)
    assert set(found.others) == {"moving_stddev", "renorm_mean", "renorm_stddev", "updates"}
    assert found.updates == 1 and not normalizer(ours.BatchNorm1d(3)).others


def test_ours_frozen_in_a_module_that_serves_are_in_no_phase_of_training():
    module = nn.Sequential(nn.Linear(4, 3), ours.BatchNorm1d(3, frozen=True)).eval()
    module[1].train()
    assert not evidence(module, Phase)
    module[1].frozen = False
    assert [found.name for found in evidence(module, Phase)] == ["1"]


class OurBlock(nn.Module):
    def __init__(self, activation="relu"):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.one = ours.BatchNorm1d(4, momentum=0.5, activation=activation)
        self.two = ours.BatchNorm1d(4, momentum=0.5, activation=activation)

    def forward(self, x):
        y = self.one(self.first(x), mask=x[:, :1] > -9)
        return self.two(self.second(y), x)


@pytest.mark.parametrize(
    ("activation", "homogeneous"), [("leaky_relu", True), ("elu", False), (nn.PReLU(), True), (torch.tanh, False)]
)
def test_neighbours_of_ours_with_an_activation_and_a_residual(activation, homogeneous):
    found = places(nn.Sequential(OurBlock(activation), nn.Linear(4, 2)))
    assert {name: (kinds(place.before), kinds(place.after)) for name, place in found.items()} == {
        "0.one": ("linear", "activation linear"),
        "0.two": ("linear", "junction activation linear"),
    }
    assert [place.activation for place in found.values()] == [True, True]
    assert found["0.one"].after[0].homogeneous is homogeneous


def test_a_residual_that_is_a_parameter():
    class Shifted(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.norm, self.shift = nn.Linear(4, 4), ours.BatchNorm1d(4), nn.Parameter(torch.ones(8, 4))

        def forward(self, x):
            return self.norm(self.linear(x), self.shift)

    (place,) = places(Shifted()).values()
    assert (kinds(place.before), kinds(place.after)) == ("linear", "")


OUR_HEALTHY = {
    "converted": lambda: ours.convert(Residual()),
    "block": lambda: nn.Sequential(OurBlock(), nn.Linear(4, 2, bias=False), ours.BatchNorm(2, momentum=0.5)),
    "debiased": lambda: nn.Sequential(nn.Linear(4, 4), ours.BatchNorm1d(4, average="debiased")),
    "renorm": lambda: nn.Sequential(nn.Linear(4, 4), ours.BatchNorm1d(4, momentum=0.5, renorm=True)),
}


@pytest.mark.parametrize("mode", [True, False])
@pytest.mark.parametrize("module", OUR_HEALTHY)
def test_of_a_healthy_module_of_ours_nothing_above_a_note_is_said(module, mode):
    module = OUR_HEALTHY[module]()
    optimizer = stepped(module, torch.optim.Adam(module.parameters()), steps=6)
    report = ek.diagnose(module.train(mode), optimizer=optimizer)
    assert not report.errors + report.warnings, str(report)


SICK = {
    "momentum": nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, momentum=0.99), nn.ReLU(), nn.Linear(4, 2)),
    "too slow": nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, momentum=0.01), nn.ReLU(), nn.Linear(4, 2)),
    "half frozen": nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4).requires_grad_(False), nn.Linear(4, 2)),
    "no statistics": nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, track_running_stats=False), nn.Linear(4, 2)),
    "synchronized": nn.Sequential(nn.Linear(4, 4), nn.SyncBatchNorm(4, momentum=0.99), nn.Linear(4, 2)),
}


@pytest.mark.parametrize("module", SICK.values(), ids=SICK)
def test_the_findings_of_torch_s_are_those_of_ours(module):
    if not isinstance(module[1], nn.SyncBatchNorm):  # which needs a GPU to train
        stepped(module, torch.optim.Adam(module.parameters()))
    x = torch.randn(40, 4)
    ids = [
        [(item.rule, item.where, item.severity, item.seen) for item in ek.diagnose(each, x).findings]
        for each in (module, ours.convert(copy.deepcopy(module)))
    ]
    assert ids[0] == ids[1] and ids[0]


@pytest.mark.parametrize("kind", [nn.BatchNorm1d, ours.BatchNorm1d])
def test_only_torch_s_raise_at_a_last_batch_of_one(kind):
    module = nn.Sequential(nn.Linear(4, 4), kind(4), nn.Linear(4, 2))
    found = {item.rule: item.severity for item in ek.diagnose(module, torch.randn(65, 4), batch_size=32).findings}
    assert found["EK405"] == ("error" if kind is nn.BatchNorm1d else "warning")


FEW = {
    "batch": (4, {}, "4 values a channel in the largest batch"),
    "virtual batch": (40, {"virtual_batch_size": 8}, "8 values a channel in the largest virtual batch"),
    "renorm": (4, {"renorm": True}, None),
    "large virtual batches": (40, {"virtual_batch_size": 16}, None),
    "frozen": (4, {"frozen": True}, None),
}


@pytest.mark.parametrize(("rows", "given", "seen"), FEW.values(), ids=FEW)
def test_how_many_values_are_normalized_together(rows, given, seen):
    module = nn.Sequential(nn.Linear(4, 4), ours.BatchNorm1d(4, **given), nn.BatchNorm1d(4).eval(), nn.Linear(4, 2))
    findings = ek.diagnose(module, torch.randn(80, 4), batch_size=rows).findings
    assert [item.seen for item in findings if item.rule == "EK404"] == ([seen] if seen else [])


def test_a_batch_of_all_processes(monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda group: 4)
    module = nn.Sequential(nn.Linear(4, 4), ours.BatchNorm1d(4, synchronized=True))
    (seen,) = evidence(module, Observed, data=np.ones((9, 4)), batch_size=8)[0].seen
    assert (seen.values, seen.together) == ((8, 1), 4)
    assert "EK405" not in {item.rule for item in ek.diagnose(module, np.ones((9, 4)), batch_size=8).findings}
