# SPDX-License-Identifier: Apache-2.0
"""A training step of a torch module: what comes out, its gradients, and what the module became."""

from typing import NamedTuple

import numpy as np
import torch


class Step(NamedTuple):
    """y; gradients: of the input, then of the parameters in their order."""

    y: np.ndarray
    gradients: list


def data(shape, seed=0, mean=3, std=2, dtype="float32"):
    return torch.tensor(np.random.default_rng(seed).normal(mean, std, shape)).to(getattr(torch, dtype))


def plain(tensor):
    return tensor.detach().double().numpy().copy()


def step(module, x, dy, **call):
    """Forward and backward of `sum(dy * y)`."""
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    y = module(x, **call)
    learning = [parameter for parameter in module.parameters() if parameter.requires_grad]
    gradients = torch.autograd.grad(y, [x, *learning], dy.to(y.dtype))
    return Step(plain(y), list(map(plain, gradients)))


def state(module):
    return {name: plain(buffer) for name, buffer in module.named_buffers()}


def started(module):
    """The module, with parameters and statistics that no batch would have by chance."""
    for place, value in enumerate(module.state_dict().values()):
        if value.is_floating_point():
            value.copy_(torch.linspace(0.5, 2, value.numel()).reshape(value.shape) + place / 8)
    if getattr(module, "renorm", None):
        module.moving_stddev.copy_((module.running_var + module.eps).sqrt())
    return module
