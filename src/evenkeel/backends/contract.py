# SPDX-License-Identifier: Apache-2.0
"""What every array library here must offer, and what it may offer.

`primitives.py` of each library has every name in `PRIMITIVES`; `functional/` writes the mathematics with them alone.
`kernels.py` may serve a whole step faster: `supports(request)` is None, or the reason why it cannot; `training` and
`inference` then do it. Where a kernel cannot trust its library's numbers it asks for those of the formula, which
`functional/` hands over as `formula(x, gamma, beta) -> Normalized`, before any activation.
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
    "dtype",
    "is_finite",
    "largest",
    "maximum",
    "minimum",
    "pad_rows",
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
    """

    training: bool
    dtype: str
    shape: tuple[int | None, ...]
    axis: int
    activation: str | None


class Normalized(NamedTuple):
    """What a training kernel returns.

    y: shape and type of `x`.
    mean, variance: shape `(channels,)`, float32 or wider; the variance is the population's.
    """

    y: Tensor
    mean: Tensor
    variance: Tensor


Formula = Callable[[Tensor, Tensor, Tensor], Normalized]
"""Of `x`, gamma and beta: the training step without activation, written with primitives."""
