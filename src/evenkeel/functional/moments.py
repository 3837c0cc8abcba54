# SPDX-License-Identifier: Apache-2.0
"""Mean and variance of each channel."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, SupportsIndex

from evenkeel import backends
from evenkeel.backends.contract import Tensor
from evenkeel.errors import ArgumentError, UnknownTensorError
from evenkeel.functional import weights as weighting
from evenkeel.functional.layout import Layout


class Moments(NamedTuple):
    """Mean and population variance of each channel, and how many values they came from.

    mean: shape `(channels,)`, in the units of the data.
    variance: shape `(channels,)`, in those units squared; divided by `count`, not `count - 1`.
    count: scalar; the sum of the weights where there were weights, `(channels,)` if they differ by channel.
    """

    mean: Tensor
    variance: Tensor
    count: Tensor


def moments(
    x: Tensor,
    *,
    axis: SupportsIndex | Iterable[SupportsIndex] = -1,
    mask: Tensor | None = None,
    sample_weight: Tensor | None = None,
) -> Moments:
    """Mean and population variance of each channel.

    The mean is taken away before squaring. Mean-of-squares minus square-of-mean needs one
    pass less, and has no digits left once the mean is a few thousand times the spread.

    Args:
        x: a number type, shape `(..., channels, ...)`.
        axis: the axis of the channels, or several.
        mask: False removes a value; any shape that broadcasts against `x`, or that of `x` without the channels.
        sample_weight: how much each value counts, not negative; shapes as for `mask`.

    Returns:
        `Moments`, in float32 or wider whatever the type of `x`. Where nothing counts, all three are 0.

    Raises:
        AxisError: `x` has no such axis.
        WeightShapeError: a mask or weight that does not fit `x`.

    Example:
        >>> moments(np.array([[1.0, 10.0], [3.0, 30.0]]))
        Moments(mean=array([ 2., 20.]), variance=array([  1., 100.]), count=2)
        >>> moments(np.array([[1.0], [3.0], [100.0]]), mask=np.array([True, True, False]))
        Moments(mean=array([2.]), variance=array([1.]), count=array(2.))

    References:
        Chan, Golub and LeVeque 1983, Algorithms for computing the sample variance.
    """
    backend = backends.of(x)
    x = backend.convert(x)
    layout = Layout.of(len(backend.shape(x)), axis)
    dtype = wide(backend.dtype(x))
    weights = weighting.combined(backend, x, layout, dtype, mask, sample_weight)
    mean, variance, count, _ = over(backend, backend.cast(x, dtype), layout, weights)
    shape = [backend.size(x, axis) for axis in layout.channels] if len(layout.channels) == 1 else None
    if shape is not None:
        mean, variance = backend.reshape(mean, shape), backend.reshape(variance, shape)
        if weights is not None:
            shared = all(backend.shape(weights)[axis] == 1 for axis in layout.channels)
            count = backend.reshape(count, [] if shared else shape)
    return Moments(mean, variance, count)


def merge_moments(*parts: Moments) -> Moments:
    """The moments of all the data, from the moments of its parts.

    Counts may be unequal, and 0; what a part of count 0 says of mean and variance does not matter.

    Example:
        >>> merge_moments(moments(np.array([[1.0], [3.0]])), moments(np.array([[5.0]])))
        Moments(mean=array([3.]), variance=array([2.66666667]), count=3)

    References:
        Chan, Golub and LeVeque 1979, Updating formulae and a pairwise algorithm for computing sample variances.
    """
    if not parts:
        raise ArgumentError("merge_moments() got no parts; give at least one")
    merged, *rest = parts
    for part in rest:
        merged = _merged(merged, part)
    return merged


def _merged(left: Moments, right: Moments) -> Moments:
    backend = backends.of(left.mean)
    dtype = backend.dtype(left.mean)
    counts = [backend.convert(part.count, like=part.mean) for part in (left, right)]
    n_left, n_right = (backend.cast(count, dtype) for count in counts)
    # What a part without values says must vanish, and 0 * NaN is NaN.
    (m_left, v_left), (m_right, v_right) = (
        (backend.where(n > 0, part.mean, 0 * n), backend.where(n > 0, part.variance, 0 * n))
        for part, n in ((left, n_left), (right, n_right))
    )
    share = ratio(backend, n_right, n_left + n_right)
    distance = m_right - m_left
    mean = m_left + distance * share
    variance = v_left * (1 - share) + v_right * share + distance * distance * (share * (1 - share))
    return Moments(mean, variance, left.count + right.count)


def wide(dtype: str) -> str:
    """The type that sums of `dtype` are taken in: float32, or float64 for float64.

    Raises:
        UnknownTensorError: complex numbers, strings and the like.

    Example:
        >>> wide("bfloat16"), wide("uint8"), wide("float64")
        ('float32', 'float32', 'float64')
    """
    if not dtype.startswith(("float", "bfloat", "int", "uint", "bool")):
        raise UnknownTensorError(f"a tensor of type {dtype} arrived; give real numbers")
    return "float64" if dtype == "float64" else "float32"


def ratio(backend: Any, part: Tensor, whole: Tensor) -> Tensor:
    """`part / whole`, and 0 where both are 0."""
    if is_known(whole):
        return part / max(whole, 1)
    return part / backend.where(whole > 0, whole, 1 + 0 * whole)


def over(
    backend: Any, x: Tensor, layout: Layout, weights: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | int, Tensor | int]:
    """Mean, variance, count and the number of values with any weight; the reduced dimensions stay, as 1.

    `x` is float32 or wider. The count is an integer where there are no weights and the sizes are known.
    """
    if weights is None:
        count = present = size(backend, x, layout)
        weighted = lambda values: values  # noqa: E731
    else:
        count, present = weighting.counts(backend, weights, x, layout)
        # A value that does not count may be anything, NaN too.
        x = backend.where(backend.cast(weights, "bool"), x, 0 * weights)
        weighted = lambda values: values * weights  # noqa: E731
    mean = ratio(backend, backend.sum(weighted(x), layout.reduced), count)
    # What rounding left in the mean is found, and taken out, among the centred values.
    centred = x - backend.stop_gradient(mean)
    left = ratio(backend, backend.sum(weighted(centred), layout.reduced), count)
    squares = ratio(backend, backend.sum(weighted(centred * centred), layout.reduced), count)
    return backend.stop_gradient(mean) + left, squares - left * left, count, present


def is_known(count: Tensor | int) -> bool:
    """Whether a count is an integer here, or what stands for one while torch.export traces, and not a tensor."""
    return isinstance(count, int) or type(count).__name__ == "SymInt"


def size(backend: Any, x: Tensor, layout: Layout) -> Tensor | int:
    """How many values each channel has: an integer where all sizes are known."""
    count: Any = 1
    for axis in layout.reduced:
        count = count * backend.size(x, axis)
    return count if is_known(count) else backend.cast(count, wide(backend.dtype(x)))


def merge_across(
    all_reduce: Callable[[Tensor], Tensor], mean: Tensor, variance: Tensor, count: Tensor, present: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The moments of the batches of all replicas together; counts may be unequal, and 0.

    Sums of float32 are taken in float64, in one message: what cancels between the sum of squares and the square of the
    sum is then less than what rounding to float32 has put into the data. Where no type is twice as wide, a message
    before finds a point near the mean, and the sums are taken about it.
    """
    backend = backends.of(mean)
    dtype = backend.dtype(mean)
    wide = dtype if dtype == "float64" else backend.WIDEST
    mean, variance, count, present = (
        backend.cast(backend.convert(value, like=mean), wide) for value in (mean, variance, count, present)
    )
    near: Any = 0.0
    if wide == dtype:
        total, whole = _summed(backend, all_reduce, backend.stop_gradient(mean) * count, count)
        near = ratio(backend, total, whole)
    away = mean - near
    total, squares, whole, everywhere = _summed(
        backend, all_reduce, away * count, (variance + away * away) * count, count, present
    )
    left, spread = ratio(backend, total, whole), ratio(backend, squares, whole)
    merged = backend.maximum(spread - left * left, 0.0)  # of a constant channel, rounding may leave less than 0
    mean, variance, whole, everywhere = (
        backend.cast(value, dtype) for value in (near + left, merged, whole, everywhere)
    )
    return mean, variance, whole, everywhere


def _summed(backend: Any, all_reduce: Callable[[Tensor], Tensor], *values: Tensor) -> Iterator[Tensor]:
    """The sum over the replicas of each, in one message."""
    shapes = [backend.shape(value) for value in values]
    message = all_reduce(backend.concat([backend.reshape(value, [-1]) for value in values]))
    start = 0
    for shape in shapes:
        end = start + math.prod(shape)
        yield backend.reshape(message[start:end], shape)
        start = end


def bessel(backend: Any, count: Tensor | int) -> Tensor | float:
    """`n / (n - 1)`, which makes the sample variance of the population's; 1 where n is 1 or less.

    Example:
        >>> bessel(backends.primitives("numpy"), 5)
        1.25
    """
    if is_known(count):
        return count / (count - 1) if count > 1 else 1.0
    return backend.where(count > 1, count / backend.where(count > 1, count - 1, 1 + 0 * count), 1 + 0 * count)
