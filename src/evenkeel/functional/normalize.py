# SPDX-License-Identifier: Apache-2.0
"""The input on the scale of given statistics."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, SupportsIndex

from evenkeel import backends
from evenkeel.backends.contract import Tensor
from evenkeel.functional.layout import Layout
from evenkeel.functional.moments import wide


def normalize(
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    *,
    epsilon: float = 1e-3,
    axis: SupportsIndex | Iterable[SupportsIndex] = -1,
) -> Tensor:
    """`gamma * (x - mean) / sqrt(variance + epsilon) + beta`, in float32 or wider, in the type of `x`.

    The mean is taken away first: folded into the offset, it would cost the digits that mean and spread differ by.

    Args:
        x: shape `(..., channels, ...)`.
        mean, variance: shape `(channels,)`, in the units of the data and those squared.
        gamma, beta: shape `(channels,)`; None is 1 and 0.
        epsilon: added to the variance.
        axis: the axis of the channels, or several.

    Example:
        >>> normalize(np.array([[1.0], [3.0]]), np.array([2.0]), np.array([1.0]), epsilon=0.0)
        array([[-1.],
               [ 1.]])

    References:
        Ioffe and Szegedy 2015, Batch Normalization, algorithm 1.
    """
    backend = backends.of(x)
    x = backend.convert(x)
    layout = Layout.of(len(backend.shape(x)), axis)
    dtype = wide(backend.dtype(x))
    mean, variance, gamma, beta = (
        None if value is None else layout.spread(backend, backend.cast(backend.convert(value, like=x), dtype))
        for value in (mean, variance, gamma, beta)
    )
    y = apply(backend, backend.cast(x, dtype), mean, variance, gamma, beta, epsilon)
    return y if dtype == backend.dtype(x) else backend.cast(y, result_type(backend.dtype(x)))


def apply(
    backend: Any, x: Tensor, mean: Tensor, variance: Tensor, gamma: Tensor | None, beta: Tensor | None, epsilon: float
) -> Tensor:
    """The same on values that broadcast against each other and share a type."""
    inverse = backend.rsqrt(variance + epsilon)
    y = (x - mean) * (inverse if gamma is None else inverse * gamma)
    return y if beta is None else y + beta


def scale_and_offset(
    mean: Tensor, variance: Tensor, gamma: Tensor | None = None, beta: Tensor | None = None, *, epsilon: float = 1e-3
) -> tuple[Tensor, Tensor]:
    """Scale and offset with which `x * scale + offset` is `normalize(x, ...)`: what is folded into a layer beside it.

    Example:
        >>> scale_and_offset(np.array([2.0]), np.array([4.0]), epsilon=0.0)
        (array([0.5]), array([-1.]))
    """
    backend = backends.of(mean)
    scale = backend.rsqrt(variance + epsilon)
    scale = scale if gamma is None else scale * gamma
    offset = -mean * scale
    return scale, offset if beta is None else offset + beta


def result_type(dtype: str) -> str:
    """The type of the result for an input of `dtype`: the same, and float32 for integers."""
    return dtype if "float" in dtype else "float32"
