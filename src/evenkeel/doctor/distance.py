# SPDX-License-Identifier: Apache-2.0
"""How far apart two distributions are, or the outputs of a model in two states."""

from __future__ import annotations

import math

import numpy as np

from evenkeel.doctor.evidence import Score
from evenkeel.functional.moments import Moments


def divergence(one: Moments, other: Moments, epsilon: float = 0.0) -> np.ndarray:
    """Symmetric Kullback-Leibler divergence of two Gaussians, for each channel, in nats.

    The mean of the divergence from one to the other and of that from the other to the one:
    `((v + d²) / w + (w + d²) / v - 2) / 4` with the variances `v` and `w`, each with epsilon, and the difference `d` of
    the means. Two estimates from n values each of the same distribution are about `1 / n` apart.

    Args:
        one, other: their mean and variance, each of shape `(channels,)`; the counts do not matter.
        epsilon: added to both variances, as the layer does it, so that channels that hardly vary do not count for more
            than they do in the layer.

    Returns:
        Shape `(channels,)`; 0 is equal, 0.5 is a shift by a standard deviation, NaN is what was not finite or has no
        positive variance.

    Example:
        >>> unit = Moments(np.zeros(3), np.ones(3), 1)
        >>> divergence(unit, Moments(np.array([0.0, 1.0, 0.0]), np.array([1.0, 1.0, 4.0]), 1))
        array([0.    , 0.5   , 0.5625])

    References:
        Jeffreys 1946, An invariant form for the prior probability in estimation problems.
    """
    with np.errstate(all="ignore"):
        mean, variance, other_mean, other_variance = (
            np.asarray(value, "float64").ravel() for value in (*one[:2], *other[:2])
        )
        v, w = (np.where(value + epsilon > 0, value + epsilon, np.nan) for value in (variance, other_variance))
        square = (mean - other_mean) ** 2
        return ((v + square) / w + (w + square) / v - 2) / 4


def step(before: Score, after: Score) -> float:
    """How much the outputs differ between two scores: by their loss, or where there is none by their gap.

    Example:
        >>> step(Score(0.0, loss=2.5), Score(1.0, loss=0.5)), step(Score(0.25), Score(1.0))
        (2.0, 0.75)
    """
    one, other = before.gap, after.gap
    if before.loss is not None and after.loss is not None:
        one, other = before.loss, after.loss
    difference = abs(one - other) if one != other else 0.0
    return math.inf if math.isnan(difference) else difference
