# SPDX-License-Identifier: Apache-2.0
"""How a batch normalization module of torch is kept from training, whatever its parents ask of it."""

from __future__ import annotations

import functools
from typing import Any


def pin(module: Any, *, affine: bool) -> None:
    """Keep a module in evaluation mode; `train()` of it or of a parent changes nothing.

    The mark is an attribute, not a hook or a wrapper: copies and pickles have it, `state_dict` and names do not.

    Args:
        module: `torch.nn.BatchNorm1d`, ..., with running statistics.
        affine: weight and bias become buffers of the same names, so that no `requires_grad_` and no optimizer
            reaches them.
    """
    unpin(module)
    held = {name: getattr(module, name) for name in ("weight", "bias") if affine and module.affine}
    for name, parameter in held.items():
        parameter.grad = None  # or the next step of an optimizer would still apply it
        delattr(module, name)
        module.register_buffer(name, parameter.detach())
    module.train = functools.partial(_stay, module, {"training": module.training, "held": held})
    module.training = False


def unpin(module: Any) -> None:
    """Give a module back its parameters, the same objects, and the mode that was last asked of it."""
    if not is_pinned(module):
        return
    _, before = module.train.args
    del module.train
    module.training = before["training"]
    for name, parameter in before["held"].items():
        parameter.data = getattr(module, name)  # which may have been loaded, or moved to another device
        delattr(module, name)
        module.register_parameter(name, parameter)


def is_pinned(module: Any) -> bool:
    """Whether `pin` did it, or it is a copy of such a module."""
    return getattr(vars(module).get("train"), "func", None) is _stay


def _stay(module: Any, before: dict[str, Any], mode: bool = True) -> Any:
    before["training"] = mode
    return module
