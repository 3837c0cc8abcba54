# SPDX-License-Identifier: Apache-2.0
"""What batches say of a normalizer, taken together."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from evenkeel.functional.batch_norm import Parameters, training_step
from evenkeel.functional.moments import Moments, merge_moments, moments
from evenkeel.functional.moving import State
from evenkeel.surgery.recalibrate.feeding import plain


class Pool(NamedTuple):
    """Statistics of all the values of all the batches, not an average of the batches' statistics.

    moments: float64; mean, variance and count in the shape of the normalizer's statistics.
    calls: of how many batches; a layer called twice a batch has two.
    spoiled: in how many of them the channel was not finite, and was left out; shape as the mean.
    """

    moments: Moments
    calls: int
    spoiled: np.ndarray


def measured(x: Any, **options: Any) -> Moments:
    """The moments of `x`, of any library, in float64; `options` are those of `moments`.

    In float32 the means of two batches far from zero differ by less than their rounding.
    """
    with np.errstate(all="ignore"):  # what is not finite is seen in the result
        return moments(plain(x).astype("float64"), **options)


def glanced(x: Any, *, axis: Any, **weights: Any) -> Moments:
    """The moments of `x`, in NumPy, by the operation that serves the layer in training where there is one.

    Args:
        axis: of the channels.
        weights: `mask` and `sample_weight` of `moments`.

    Example:
        >>> glanced(np.array([[1.0, 0.0], [3.0, np.inf]]), axis=1)
        Moments(mean=array([ 2., nan]), variance=array([ 1., nan]), count=2)
    """
    channels = x.shape[axis] if isinstance(axis, int) else 0
    count = math.prod(x.shape) // channels if channels else 0
    if count < 2 or any(weight is not None for weight in weights.values()):
        return Moments(*map(plain, moments(x, axis=axis, **weights)))
    with np.errstate(all="ignore"):
        # Of a channel that is not finite, a step keeps what there was.
        unknown = State(*np.full((2, channels), np.nan, "float64" if "float64" in str(x.dtype) else "float32"))
        state = training_step(x, Parameters(), unknown, axis=axis, momentum=0.0)[1]
    return Moments(plain(state.moving_mean), plain(state.moving_variance), count)


def nothing(shape: tuple[int, ...]) -> Pool:
    """The pool of no batch."""
    return Pool(Moments(*np.zeros((3, *shape))), 0, np.zeros(shape))


def pool_of(batch: Moments) -> Pool:
    """The pool of one batch; the moments may belong to any library that NumPy can read.

    A channel whose mean or variance is not finite counts for nothing.

    Example:
        >>> pool_of(Moments(np.array([1.0, np.nan]), np.array([2.0, np.nan]), 8)).moments.count
        array([8., 0.])
    """
    mean, variance = (np.asarray(value, "float64") for value in batch[:2])
    spoiled = ~(np.isfinite(mean) & np.isfinite(variance))
    return Pool(Moments(mean, variance, np.where(spoiled, 0.0, batch.count)), 1, spoiled.astype("float64"))


def merged(*pools: Pool) -> Pool:
    """The pool of all the batches of some pools, one of them at least.

    Example:
        >>> parts = (np.array([[1.0], [3.0]]), np.array([[5.0]]))
        >>> merged(*(pool_of(moments(part)) for part in parts))
        Pool(moments=Moments(mean=array([3.]), variance=array([2.66666667]), count=array([3.])), calls=2,
             spoiled=array([0.]))
    """
    parts, calls, spoiled = zip(*pools, strict=True)
    return Pool(merge_moments(*parts), sum(calls), np.sum(spoiled, axis=0))


def packed(pool: Pool, *more: float) -> np.ndarray:
    """All of it as one row of float64, and more numbers at its end."""
    return np.concatenate([*map(np.ravel, pool.moments), np.ravel(pool.spoiled), [pool.calls, *more]])


def unpacked(row: np.ndarray, shape: tuple[int, ...]) -> tuple[Pool, Any]:
    """What `packed` was given: the pool, and the numbers at the end."""
    size = int(np.prod(shape))
    parts = row[: 4 * size].reshape(4, *shape)
    return Pool(Moments(*parts[:3]), int(row[4 * size]), parts[3]), row[4 * size + 1 :]
