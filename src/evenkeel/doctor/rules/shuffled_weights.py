# SPDX-License-Identifier: Apache-2.0
"""Gamma, beta, mean and variance look exchanged.

What it looks for
    Negative variances, by more than rounding explains, beside means that look like gammas or variances, or beside
    gammas and betas that look like means and variances. As a warning: eight channels or more whose
    gammas lie round zero while all betas lie round one.
Why it matters
    The four arrays have one shape, so weights in another library's order are loaded without a word. Keras 1 stored
    gamma, beta, mean, variance, and before that mean, variance, gamma, beta (keras-team/keras#3248);
    `tf.contrib.layers` stores beta first.
What to do
    Convert the file that the weights came from again, by name: `evenkeel convert ORIGINAL OUT --like THIS_FILE`.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from evenkeel.checkpoints.flags import look_shuffled, numbers
from evenkeel.doctor.evidence import Normalizer
from evenkeel.doctor.finding import Finding

ID = "EK106"
SEVERITY = "error"
EXPLAINS = ("EK104", "EK105", "EK401", "EK403")
ROUNDING = 1e-4
"""A variance that is negative by less may come from rounding; on a mean of 1000, one of 1 may."""
ENOUGH = 8
"""Channels that all agree by chance once in some hundred times."""
REMEDY = "convert the original again, by name: evenkeel convert ORIGINAL OUT --like THIS_FILE"
SICK = [
    Normalizer("bn", np.array([0.9, 1.1, 1.0]), np.array([-0.2, 0.1, 0.3])),
    Normalizer(
        "bn",
        np.array([0.9, 1.1, -0.1]),
        np.array([-0.2, 0.1, 0.3]),
        np.array([-0.4, 0.6, 0.1]),
        np.array([0.2, 1.3, 0.5]),
    ),
    Normalizer(
        "bn",
        np.linspace(-1, 1, 8),
        np.linspace(0.2, 2, 8),
        np.linspace(-0.2, 0.25, 8),
        np.linspace(0.8, 1.3, 8),
    ),
    Normalizer("bn", np.linspace(-1, 1, 8), np.linspace(0.2, 2, 8), np.zeros(8), np.ones(8)),
    Normalizer("bn", np.linspace(0.01, 0.1, 8), np.linspace(-1, 1, 8), np.ones(8), np.linspace(-1, 1, 8)),
]
HEALTHY = [
    Normalizer("bn", np.array([0.9, 1.1, 1.0]), np.array([0.2, 0.1, 0.3]), np.ones(3), np.ones(3)),
    Normalizer("bn", np.array([0.9, 1.1, 1.0]), np.array([-1e-7, 0.1, 0.3])),
    Normalizer("bn", np.array([3000.0, 1.0, 2.0]), np.array([-0.5, 0.1, 0.3]), np.ones(3), np.array([-0.1, 0.0, 0.0])),
    Normalizer("bn", np.zeros(8), np.ones(8), np.zeros(8), np.zeros(8)),
    Normalizer("bn", np.zeros(8), np.ones(8), np.linspace(-0.2, 0.25, 8), np.linspace(-0.3, 1.3, 8)),
    Normalizer("bn", np.zeros(8), np.ones(8), np.linspace(0.1, 0.25, 8), np.linspace(0.8, 1.3, 8)),
    Normalizer("bn", np.zeros(8), np.ones(8), np.linspace(-2, 2, 8), np.linspace(0.8, 1.3, 8)),
    Normalizer("bn", np.zeros(3), np.ones(3), np.zeros(3), np.ones(3)),
    Normalizer("bn"),
]


def check(normalizer: Normalizer) -> Iterator[Finding]:
    if seen := _statistics(normalizer):
        yield Finding(ID, normalizer.name, seen, REMEDY)
    elif seen := _affine(normalizer):
        yield Finding(ID, normalizer.name, seen, REMEDY, "warning")


def _statistics(normalizer: Normalizer) -> str | None:
    if normalizer.moving_mean is None or normalizer.moving_variance is None:
        return None
    mean, variance = numbers(normalizer.moving_mean), numbers(normalizer.moving_variance)
    if mean.size != variance.size or not (variance < -ROUNDING * (1 + np.square(mean) / 100)).any():
        return None
    shown = f"variance down to {variance.min():.3g}"
    if normalizer.gamma is not None and normalizer.beta is not None:
        gamma, beta = numbers(normalizer.gamma), numbers(normalizer.beta)
        if (gamma < 0).any() and (beta >= 0).all() and beta.any():
            return f"{shown} like a beta, and beta never negative, like a variance"
    if look_shuffled(mean, variance):
        return f"{shown} like a beta, and mean round 1 ({np.median(mean):.3g}), like a gamma"
    if mean.size >= ENOUGH and (mean > 0).all():
        return f"{shown} like a mean, and mean never negative, like a variance"
    return None


def _affine(normalizer: Normalizer) -> str | None:
    if normalizer.gamma is None or normalizer.beta is None or normalizer.gamma.size < ENOUGH:
        return None
    gamma, beta = numbers(normalizer.gamma), numbers(normalizer.beta)
    if not np.isfinite(gamma).all() or not np.isfinite(beta).all():
        return None
    round_zero = (gamma == 0).all() or (gamma.min() < 0 < gamma.max() and abs(gamma.mean()) < gamma.std())
    middle = np.median(beta)
    round_one = beta.min() > 0 and 0.5 <= middle <= 2 and beta.std() < middle / 2
    if round_zero and round_one and np.abs(gamma).max() < middle:
        return f"gamma round 0 ({gamma.mean():.3g}), like a beta, and beta round 1 ({middle:.3g}), like a gamma"
    return None
