# SPDX-License-Identifier: Apache-2.0
"""Whether the normalizers of two checkpoints compute the same."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from evenkeel.checkpoints.contents import Normalizer, Variable
from evenkeel.dialects import DIALECTS
from evenkeel.errors import UnequalError
from evenkeel.functional.normalize import normalize

ROWS = 32


def largest_difference(pairs: Iterable[tuple[Normalizer, Normalizer | None, float]]) -> float:
    """Between outputs of pairs of normalizers, for random data of the spread of their statistics, in float64.

    Absent parts are mean 0, variance 1, gamma 1 and beta 0. An epsilon that only one side says is that of both.

    Args:
        pairs: the normalizer of the source, that of the result, and by what the variance was multiplied.

    Raises:
        UnequalError: there is no second, or it differs by more than the rounding of a changed variance or type.

    Example:
        >>> import dataclasses
        >>> from evenkeel.checkpoints import Facts
        >>> ones, twos = Variable.of(np.ones(3)), Variable.of(np.full(3, 2.0))
        >>> bn = Normalizer("bn", "keras", ones, ones, ones, ones, {}, (), Facts(epsilon=1e-3))
        >>> largest_difference([(bn, bn, 1.0)])
        0.0
        >>> largest_difference([(bn, dataclasses.replace(bn, gamma=twos), 1.0)])
        Traceback (most recent call last):
        evenkeel.errors.UnequalError: bn and bn differ by ...: first in channel 0; the result is not kept
    """
    return max((_difference(*pair) for pair in pairs), default=0.0)


def _difference(one: Normalizer, other: Normalizer | None, factor: float) -> float:
    if other is None:
        raise UnequalError(f"{one.name}: no normalizer is found in its place; the result is not kept")
    if one.channels != other.channels:
        raise UnequalError(
            f"{one.name} has {one.channels} channels, {other.name} {other.channels}; the result is not kept"
        )
    default = DIALECTS["keras"].epsilon
    known = [epsilon for epsilon in (one.facts.epsilon, other.facts.epsilon) if epsilon is not None]
    first, second = (known or [default])[0], (known or [default])[-1]
    mean, variance, gamma, beta = expected = _four(one)
    expected = mean, variance * factor, gamma, beta
    random = np.random.default_rng(0).normal(size=(ROWS, one.channels))
    # Data must be finite for every channel to be compared, whatever its statistics are.
    with np.errstate(all="ignore"):
        spread = np.sqrt(np.abs(np.nan_to_num(variance, nan=1.0, posinf=1.0, neginf=1.0)))
        x = np.nan_to_num(mean, posinf=0.0, neginf=0.0) + spread * random
        y = normalize(x, *expected, epsilon=first)
        z = normalize(x, *_four(other), epsilon=second)
        difference = np.where((y == z) | (np.isnan(y) & np.isnan(z)), 0.0, np.abs(y - z))
        scale = np.abs(gamma) / np.sqrt(np.abs(expected[1] + first)) * (np.abs(x) + np.abs(mean)) + np.abs(beta)
        unequal = ~(difference <= 4 * _roundoff(one, other, factor) * scale) & (difference != 0.0)
    if unequal.any():
        channel = int(np.argmax(unequal.any(axis=0)))
        reason = f"epsilon is {first}, and {second} there" if first != second else f"first in channel {channel}"
        raise UnequalError(
            f"{one.name} and {other.name} differ by {np.max(difference):.3g}: {reason}; the result is not kept"
        )
    return float(difference.max(initial=0.0))


def _four(normalizer: Normalizer) -> tuple[np.ndarray, ...]:
    def values(part: Variable | None, default: float) -> np.ndarray:
        return np.full(normalizer.channels, default) if part is None else part.read().astype("float64").ravel()

    return (
        values(normalizer.mean, 0.0),
        values(normalizer.variance, 1.0),
        values(normalizer.gamma, 1.0),
        values(normalizer.beta, 0.0),
    )


def _roundoff(one: Normalizer, other: Normalizer, factor: float) -> float:
    """By what share a value may have moved: not at all where it was copied."""
    pairs = [(getattr(one, role), getattr(other, role)) for role in ("mean", "variance", "gamma", "beta")]
    types = {part.dtype for pair in pairs for part in pair if part is not None}
    same = all(a is None or b is None or a.dtype == b.dtype for a, b in pairs)
    return 0.0 if same and factor == 1 else max(_epsilon(dtype) for dtype in types)


def _epsilon(dtype: np.dtype[Any]) -> float:
    if dtype.kind == "f":
        return float(np.finfo(dtype).eps)
    import ml_dtypes  # which made the type

    return float(ml_dtypes.finfo(dtype).eps)
