# SPDX-License-Identifier: Apache-2.0
"""The primitives in PyTorch."""

from __future__ import annotations

import torch
from torch.utils.module_tracker import ModuleTracker

from evenkeel.errors import SynchronizationError

LOST = (
    "synchronized batch normalization of process {rank} of {world} had {size} numbers to add to those of the others, "
    "which did not come: {error}\n"
    "Another process has ended (its own output says why), or made fewer steps, left out a layer, or has other channels "
    "or another type. Make as many steps in every process, with the same layers; a share without rows counts as one. "
    "torch's Join does not cover this. TORCH_DISTRIBUTED_DEBUG=DETAIL shows which processes differ; "
    "init_process_group(timeout=...) says how long to wait"
)

NAME = "torch"
WIDEST = "float64"

broadcast_to = torch.broadcast_to
concat = torch.cat
expm1 = torch.expm1
is_finite = torch.isfinite
largest = torch.max
relu = torch.relu
reshape = torch.reshape
rsqrt = torch.rsqrt
sqrt = torch.sqrt
where = torch.where


def convert(value, dtype=None, like=None):
    device = None if like is None else like.device
    return torch.as_tensor(value, dtype=None if dtype is None else getattr(torch, dtype), device=device)


def cast(x, dtype):
    return x.to(getattr(torch, dtype))


def dtype(x):
    return str(x.dtype).removeprefix("torch.")


def device(x):
    return x.device.type


def shape(x):
    return tuple(x.shape)


def size(x, axis):
    return x.shape[axis]


def sum(x, axes):
    # An empty list of axes means all of them to PyTorch.
    return torch.sum(x, dim=axes, keepdim=True) if axes else x


def maximum(x, y):
    return torch.clamp(x, min=y)


def minimum(x, y):
    return torch.clamp(x, max=y)


def pad_rows(x, count):
    return torch.cat([x, x.new_zeros((count, *x.shape[1:]))])


def stop_gradient(x):
    return x.detach()


def cond(condition, when_true, when_false):
    return when_true() if condition else when_false()


_tracker = ModuleTracker()


def recomputing():
    """Whether torch.utils.checkpoint runs a forward pass again: what runs within a backward pass has run before."""
    return not torch.compiler.is_compiling() and _tracker.is_bw


def all_reduce(group=None):
    """The sum over the processes of `group`, of all that there are by default; None where there is one."""
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()) or distributed.get_world_size(group) <= 1:
        return None
    return lambda x: _AllReduce.apply(x, group)


class _AllReduce(torch.autograd.Function):
    """What each process makes of the sum depends on what each has put in: gradients are summed too."""

    @staticmethod
    def forward(context, x, group):
        context.group = group
        return _summed(x, group)

    @staticmethod
    def backward(context, gradient):
        return _AllReduce.apply(gradient, context.group), None


def _summed(x, group):
    x = x.contiguous().clone()
    if torch.compiler.is_compiling():  # nobody would be there to catch what the compiled code raises
        torch.distributed.all_reduce(x, group=group)
        return x
    try:
        torch.distributed.all_reduce(x, group=group)
    except RuntimeError as error:
        rank, world = torch.distributed.get_rank(group), torch.distributed.get_world_size(group)
        raise SynchronizationError(LOST.format(rank=rank, world=world, size=x.numel(), error=error)) from error
    return x
