# SPDX-License-Identifier: Apache-2.0
"""How far two sets of statistics are apart, in two numbers."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from evenkeel.checkpoints.flags import numbers
from evenkeel.doctor.distance import divergence
from evenkeel.doctor.evidence import Normalizer
from evenkeel.functional.moments import Moments


class Apart(NamedTuple):
    """
    kl: symmetric Kullback-Leibler divergence of the two Gaussians, in nats; mean of the channels.
    shift: how far the means are apart, in standard deviations of the second; the largest of the channels.

    Channels that are not finite, or have no variance, are left out; where none is left, both are NaN.
    """

    kl: float
    shift: float


UNKNOWN = Apart(float("nan"), float("nan"))


def apart(one: Moments, other: Moments, epsilon: float | None) -> Apart:
    """
    Args:
        epsilon: added to the variances, as the layer does it; None where it is not known.

    Example:
        >>> apart(Moments(np.zeros(2), np.ones(2), 1), Moments(np.array([0.0, 3.0]), np.ones(2), 1), None)
        Apart(kl=2.25, shift=3.0)
    """
    found = divergence(one, other, epsilon or 0.0)
    known = np.isfinite(found)
    if not known.any():
        return UNKNOWN
    mean, other_mean, variance = (np.ravel(value)[known] for value in (one.mean, other.mean, other.variance))
    shifts = np.abs(other_mean - mean) / np.sqrt(variance + (epsilon or 0.0))
    return Apart(float(np.mean(found[known])), float(np.max(shifts)))


def statistics(normalizer: Normalizer) -> Moments:
    """The moving ones, in float64; of no count."""
    assert normalizer.moving_mean is not None and normalizer.moving_variance is not None
    return Moments(numbers(normalizer.moving_mean), numbers(normalizer.moving_variance), 0)


def not_finite(normalizer: Normalizer) -> int:
    """In how many channels the moving mean or variance is not."""
    mean, variance, _ = statistics(normalizer)
    return int(np.count_nonzero(~(np.isfinite(mean) & np.isfinite(variance))))
