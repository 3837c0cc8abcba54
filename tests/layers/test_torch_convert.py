# SPDX-License-Identifier: Apache-2.0
"""A network of torch's modules becomes one of ours, in place, and goes back."""

import copy

import numpy as np
import pytest

from conftest import NAME

if NAME != "torch":
    pytest.skip("modules of torch", allow_module_level=True)
import torch

import evenkeel.torch as ours
from evenkeel.errors import ArgumentError
from layers.torch_steps import data, plain, started, state, step

THEIRS = {
    "BatchNorm1d": (ours.BatchNorm1d, (8, 3)),
    "BatchNorm2d": (ours.BatchNorm2d, (4, 3, 2, 5)),
    "BatchNorm3d": (ours.BatchNorm3d, (2, 3, 2, 2, 3)),
    "SyncBatchNorm": (ours.BatchNorm, (4, 3, 2, 5)),
}
ARGUMENTS = {
    "defaults": {},
    "momentum None": {"momentum": None},
    "not affine": {"affine": False},
    "untracked": {"track_running_stats": False},
    "others": {"eps": 0.1, "momentum": 0.7},
}


class Subclass(torch.nn.BatchNorm2d):
    """What it does is not known."""


def network():
    inner = torch.nn.Sequential(torch.nn.Conv2d(3, 3, 1), started(torch.nn.BatchNorm2d(3)))
    return torch.nn.Sequential(torch.nn.Conv2d(3, 3, 1), started(torch.nn.BatchNorm2d(3)), torch.nn.ReLU(), inner)


X = (4, 3, 2, 5)


@pytest.mark.parametrize("name", ARGUMENTS)
@pytest.mark.parametrize("kind", THEIRS)
def test_there_and_back(kind, name):
    becomes, shape = THEIRS[kind]
    module = started(getattr(torch.nn, kind)(3, **ARGUMENTS[name]))
    untouched, before = copy.deepcopy(module), dict(module.named_parameters()) | dict(module.named_buffers())
    assert ours.convert(module) is module
    assert type(module) is becomes
    assert all(value is before[key] for key, value in module.named_parameters())
    assert all(value is before[key] for key, value in module.named_buffers() if key in before)
    for seed in (1, 2):
        got, expected = (step(m, data(shape, seed), data(shape, 9)) for m in (module, untouched))
        np.testing.assert_allclose(got.y, expected.y, rtol=1e-4, atol=1e-5)
        for value, wanted in zip(got.gradients, expected.gradients, strict=True):
            np.testing.assert_allclose(value, wanted, rtol=1e-4, atol=1e-4)
    assert ours.convert(module, to="torch") is module
    assert type(module) is type(untouched) and repr(module) == repr(untouched)
    assert set(vars(module)) == set(vars(untouched))
    assert set(state(module)) == set(state(untouched))
    got, expected = (plain(m(data(shape, 3))) for m in (module, untouched))
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
    for key, wanted in state(untouched).items():
        np.testing.assert_allclose(state(module)[key], wanted, rtol=1e-4, err_msg=key)


def test_nested_ones():
    module = network()
    ours.convert(module)
    assert [type(part) for part in module.modules() if "BatchNorm" in type(part).__name__] == [ours.BatchNorm2d] * 2
    ours.convert(module)  # again changes nothing
    ours.convert(module, to="torch")
    assert [type(part) for part in module.modules() if "BatchNorm" in type(part).__name__] == [torch.nn.BatchNorm2d] * 2


def test_a_shared_module_stays_one():
    norm = torch.nn.BatchNorm2d(3)
    module = ours.convert(torch.nn.ModuleDict({"a": norm, "b": torch.nn.Sequential(norm)}))
    assert module["a"] is module["b"][0] is norm and type(norm) is ours.BatchNorm2d


def test_what_derives_from_torch_s_stays():
    module = ours.convert(torch.nn.Sequential(Subclass(3), torch.nn.InstanceNorm2d(3), torch.nn.BatchNorm2d(3)))
    assert [type(part) for part in module] == [Subclass, torch.nn.InstanceNorm2d, ours.BatchNorm2d]


@pytest.mark.parametrize("kind", ["1d", "2d", "3d"])
def test_lazy_ones(kind):
    module = ours.convert(getattr(torch.nn, f"LazyBatchNorm{kind}")())
    assert type(module) is getattr(ours, f"LazyBatchNorm{kind}")
    back = ours.convert(getattr(ours, f"LazyBatchNorm{kind}")(), to="torch")
    assert type(back) is getattr(torch.nn, f"LazyBatchNorm{kind}")
    x = data({"1d": (8, 3), "2d": X, "3d": (*X, 2)}[kind])
    np.testing.assert_allclose(plain(module(x)), plain(back(x)), rtol=1e-4, atol=1e-5)
    assert type(module) is getattr(ours, f"BatchNorm{kind}") and type(back) is getattr(torch.nn, f"BatchNorm{kind}")
    np.testing.assert_allclose(state(module)["running_var"], state(back)["running_var"], rtol=1e-5)


def test_an_optimizer_goes_on():
    module, untouched = network(), None
    untouched = copy.deepcopy(module)
    optimizers = [torch.optim.SGD(m.parameters(), 0.05, momentum=0.9) for m in (module, untouched)]
    for turn in range(4):
        if turn == 2:
            ours.convert(module)
        for m, optimizer in zip((module, untouched), optimizers, strict=True):
            optimizer.zero_grad()
            m(data(X, turn)).square().mean().backward()
            optimizer.step()
    for key, wanted in untouched.state_dict().items():
        np.testing.assert_allclose(plain(module.state_dict()[key]), plain(wanted), rtol=1e-4, atol=1e-5, err_msg=key)


def test_hooks_go_on():
    module, seen = torch.nn.BatchNorm2d(3), []
    module.register_forward_hook(lambda *_: seen.append("forward"))
    module.register_full_backward_hook(lambda *_: seen.append("backward"))
    module.register_state_dict_post_hook(lambda *_: seen.append("saved"))
    ours.convert(module)(data(X).requires_grad_()).sum().backward()
    module.state_dict()
    assert seen == ["forward", "backward", "saved"]


def test_phases_and_what_learns_stay():
    module = network()
    module[1].eval()
    module[1].weight.requires_grad_(False)
    ours.convert(module)
    assert [part.training for part in (module, module[1], module[3][1])] == [True, False, True]
    assert not module[1].weight.requires_grad and module[1].bias.requires_grad
    before = state(module[1])
    module(data(X))
    np.testing.assert_equal(state(module[1]), before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_networks_of_16_bits(dtype):
    module = network().to(dtype)
    untouched = copy.deepcopy(module)
    x = data(X).to(dtype)
    ours.convert(module)
    assert module[1].running_var.dtype == torch.float32 and module[1].weight.dtype == dtype
    np.testing.assert_allclose(plain(module(x)), plain(untouched(x)), atol=0.1)
    ours.convert(module, to="torch")
    assert module[1].running_var.dtype == dtype
    np.testing.assert_allclose(plain(module.eval()(x)), plain(untouched.eval()(x)), atol=0.1)


# Synchronized.


def test_all_become_synchronized_and_local_again():
    module = network()
    ours.convert(module, synchronized=True)
    assert [module[1].synchronized, module[3][1].synchronized] == [True, True]
    ours.convert(module)
    assert module[1].synchronized
    ours.convert(module, synchronized=False)
    assert not module[1].synchronized
    ours.convert(module, to="torch", synchronized=True)
    assert type(module[1]) is type(module[3][1]) is torch.nn.SyncBatchNorm
    assert module[1].process_group is None
    module.eval()(data(X))
    ours.convert(module)
    assert type(module[1]) is ours.BatchNorm and module[1].synchronized


# What cannot go back.

ONLY_OURS = {
    "axis": (ours.BatchNorm(3, axis=2, synchronized=True), "axis=2"),
    "average": (ours.BatchNorm2d(3, average="debiased"), "average='debiased'"),
    "bessel": (ours.BatchNorm2d(3, bessel_correction=False), "bessel_correction=False"),
    "renorm": (ours.BatchNorm2d(3, renorm=True), "renorm"),
    "virtual": (ours.BatchNorm2d(3, virtual_batch_size=2), "virtual_batch_size=2"),
    "activation": (ours.BatchNorm2d(3, activation="relu"), "an activation"),
    "frozen": (ours.BatchNorm2d(3, frozen="all"), "frozen='all'"),
    "any rank": (ours.BatchNorm(3), "any rank"),
    "no size": (ours.LazyBatchNorm2d(synchronized=True), "its channels"),
}


@pytest.mark.parametrize("name", ONLY_OURS)
def test_what_torch_lacks_is_named_and_nothing_is_changed(name):
    part, message = ONLY_OURS[name]
    module = torch.nn.ModuleDict({"fine": ours.BatchNorm2d(3), "inner": torch.nn.Sequential(part)})
    before = [(type(item), repr(item)) for item in module.modules()]
    with pytest.raises(ArgumentError, match=rf"^inner\.0 .*{message}"):
        ours.convert(module, to="torch")
    assert [(type(item), repr(item)) for item in module.modules()] == before


def test_all_that_cannot_go_back_are_named():
    module = torch.nn.Sequential(ours.BatchNorm2d(3, renorm=True), ours.BatchNorm2d(3, activation="elu"))
    with pytest.raises(ArgumentError, match=r"^0 has .*renorm.*\n1 has .*an activation"):
        ours.convert(module, to="torch")


def test_less_memory_goes_back_for_it_changes_no_number():
    assert type(ours.convert(ours.BatchNorm2d(3, memory="recompute"), to="torch")) is torch.nn.BatchNorm2d


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"to": "keras"}, "to='keras'"), ({"process_group": 3}, "process_group")],
)
def test_mistakes(arguments, message):
    module = network()
    with pytest.raises(ArgumentError, match=message):
        ours.convert(module, **arguments)
    assert type(module[1]) is torch.nn.BatchNorm2d


@pytest.mark.parametrize("given", [[torch.nn.BatchNorm1d(3)], torch.nn.BatchNorm1d], ids=["list", "class"])
def test_what_is_no_module(given):
    with pytest.raises(ArgumentError, match=r"BatchNorm1d.*give a torch\.nn\.Module"):
        ours.convert(given)
