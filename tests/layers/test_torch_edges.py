# SPDX-License-Identifier: Apache-2.0
"""Where a module of evenkeel.torch once went wrong."""

import copy

import pytest

import evenkeel as ek
from evenkeel.errors import ArgumentError

from conftest import NAME

if NAME != "torch":
    pytest.skip(f"modules of torch, not of {NAME}", allow_module_level=True)

import torch

from evenkeel.torch import BatchNorm1d, BatchNorm2d, convert


def normal(*shape, seed=0, **options):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(**options)


@pytest.fixture
def alone(tmp_path):
    """A group of torch.distributed with this process only."""
    torch.distributed.init_process_group("gloo", f"file://{tmp_path}/store", rank=0, world_size=1)
    yield torch.distributed.group.WORLD
    torch.distributed.destroy_process_group()


def test_a_sum_over_processes_has_second_derivatives(alone):
    all_reduce = ek.backends.primitives("torch")._AllReduce
    x = normal(3).requires_grad_()
    assert torch.autograd.gradgradcheck(lambda x: all_reduce.apply(x, None) ** 3, x)


def test_a_group_survives_convert(alone):
    theirs = torch.nn.SyncBatchNorm(3, process_group=alone)
    assert convert(copy.copy(theirs), synchronized=True).process_group is alone
    assert convert(theirs).process_group is alone
    assert convert(theirs, synchronized=False).process_group is None


def test_what_cannot_be_synchronized_is_named_and_nothing_changes():
    network = torch.nn.Sequential(BatchNorm1d(3), BatchNorm1d(3, virtual_batch_size=2))
    with pytest.raises(ArgumentError, match=r"^1: virtual_batch_size and memory go without"):
        convert(network, synchronized=True)
    assert not network[0].synchronized


@pytest.mark.parametrize("first", ["in eval", "of one row"])
def test_training_between_a_forward_and_its_backward(first):
    module, x = BatchNorm1d(3, dtype=torch.float64), normal(6, 3)
    wanted = copy.deepcopy(module).eval()
    if first == "in eval":
        y = module.eval()(x)
        wanted(x).sum().backward()
    else:
        y = module(x[:1])
        wanted(x[:1]).sum().backward()
    module.train()(x)
    y.sum().backward()
    torch.testing.assert_close(module.weight.grad, wanted.weight.grad)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_inplace_far_from_zero(dtype):
    # x is found on the scale on which y knew it, not as x, whose type has 8 digits for 1000 + z.
    x = (1000 + 8 * normal(64, 2)).to(dtype)
    modules = [BatchNorm1d(2, activation="leaky_relu", memory=memory) for memory in (None, "inplace")]
    dy = normal(64, 2, seed=1).to(dtype)
    for module in modules:
        module(x).backward(dy)
    torch.testing.assert_close(modules[1].weight.grad, modules[0].weight.grad, rtol=0.05, atol=0.5)


def test_inplace_with_a_weight_that_has_no_digits():
    module = BatchNorm1d(3, memory="inplace")
    with torch.no_grad():
        module.weight.copy_(torch.tensor([0.0, 1e-9, 1.0]))
        module.bias.fill_(1)
    module(normal(8, 3).float()).backward(normal(8, 3, seed=1).float())
    assert module.weight.grad[:2].tolist() == [0, 0] and module.weight.grad[2] != 0


def test_vmap_over_the_residual_alone():
    module, x, residuals = BatchNorm1d(3).eval(), normal(8, 3).float(), normal(2, 8, 3, seed=1).float()
    found = torch.func.vmap(lambda residual: module(x, residual))(residuals)
    torch.testing.assert_close(found, torch.stack([module(x, residual) for residual in residuals]))


@pytest.mark.parametrize("options", [{}, {"momentum": None}, {"track_running_stats": False}], ids=str)
def test_no_channels(options):
    assert BatchNorm1d(0, **options)(torch.zeros(5, 0)).shape == (5, 0)


def test_alone_without_others_to_synchronize_with():
    with pytest.raises(ArgumentError, match=r"shape \(1, 3\) arrived in training"):
        BatchNorm1d(3, track_running_stats=False, synchronized=True)(torch.ones(1, 3))


def test_a_counter_that_was_taken_away():
    module = BatchNorm1d(3)
    module.num_batches_tracked = None
    module(normal(8, 3).float())
    assert module.running_mean.abs().max() > 0


def test_a_file_of_before_there_was_a_counter():
    module = BatchNorm1d(3, average="debiased")
    module.load_state_dict({name: torch.ones(3) for name in ("weight", "bias", "running_mean", "running_var")})
    assert module.updates.tolist() == [0, 0, 0]


def test_what_differs_from_the_defaults_is_shown():
    text = repr(BatchNorm2d(3, axis=0, bessel_correction=False, frozen=True))
    assert "axis=0, bessel_correction=False, frozen=True" in text


def test_a_momentum_of_the_integer_1_forgets_infinity():
    module = BatchNorm1d(3, momentum=1)
    module.running_mean.fill_(torch.inf)
    module(normal(8, 3).float())
    assert module.running_mean.isfinite().all()


@pytest.mark.parametrize("value", [1, 0, "some"])
def test_frozen_is_yes_no_or_all(value):
    with pytest.raises(ArgumentError, match=f"frozen={value!r} is unknown"):
        BatchNorm1d(3, frozen=value)


def test_frozen_in_all_whatever_requires_grad_says():
    module = BatchNorm1d(3, frozen="all").requires_grad_(True)
    x = normal(8, 3).float().requires_grad_()
    module(x).sum().backward()
    assert module.weight.grad is None and x.grad is not None


def test_another_device():
    with pytest.raises(ArgumentError, match="input is on meta and the module on cpu"):
        BatchNorm1d(3)(torch.ones(4, 3, device="meta"))
