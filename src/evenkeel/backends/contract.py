# SPDX-License-Identifier: Apache-2.0
"""What every array library here must offer, and what it may offer.

`primitives.py` of each library has every name in `PRIMITIVES`; `functional/` writes the mathematics with them alone.
`kernels.py` may serve a whole step faster: `supports(request)` is None, or the reason why it cannot; `training` and
`inference` then do it. One that can normalize, but not what follows, is asked for that alone. Where a kernel cannot
trust its library's numbers it asks for those of the formula, which `functional/` hands over as
`formula(x, gamma, beta) -> Normalized`, before any residual and activation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

Tensor = Any
"""A tensor of any of the libraries."""


PRIMITIVES = (
    "NAME",
    "WIDEST",
    "all_reduce",
    "broadcast_to",
    "cast",
    "concat",
    "cond",
    "convert",
    "device",
    "dtype",
    "expm1",
    "is_finite",
    "largest",
    "maximum",
    "minimum",
    "pad_rows",
    "recomputing",
    "relu",
    "reshape",
    "rsqrt",
    "shape",
    "size",
    "sqrt",
    "stop_gradient",
    "sum",
    "where",
)
"""Operators (`+ - * / & | ~ >` and slices) are used as Python writes them."""


class Request(NamedTuple):
    """What a kernel is asked to do.

    training: normalize with the batch's own statistics; otherwise with given ones.
    dtype: name of the type of `x`, such as `"bfloat16"`.
    shape: of `x`; `None` where a dimension is not known yet.
    axis: of the channels, not negative.
    activation: name of what is applied to the result, or None.
    residual: something is added before the activation.
    memory: what is to be kept for the backward pass, `"recompute"` or `"inplace"`; None if that is all the same.
    device: the kind of device the input is on, such as `"cuda"`, where each tensor knows it; empty elsewhere.
    """

    training: bool
    dtype: str
    shape: tuple[int | None, ...]
    axis: int
    activation: str | None
    residual: bool = False
    memory: str | None = None
    device: str = ""


class Normalized(NamedTuple):
    """What a training kernel returns.

    y: shape and type of `x`.
    mean, variance: shape `(channels,)`, float32 or wider; the variance is the population's.
    """

    y: Tensor
    mean: Tensor
    variance: Tensor


SLOPE = 0.01
"""Of "leaky_relu" below zero; "elu" is `exp(y) - 1` there. Both as in torch.nn."""

INVERTIBLE = (None, "leaky_relu", "elu")
"""The activations that can be turned round: behind these, `x` can be found from `y`."""

Formula = Callable[[Tensor, Tensor, Tensor], Normalized]
"""Of `x`, gamma and beta: the training step without activation, written with primitives."""
