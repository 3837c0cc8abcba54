# SPDX-License-Identifier: Apache-2.0
"""Momentum is too slow for the number of steps.

What it looks for
    An exponential average, momentum `m`, that entered so few batches `n` that more than 5 % of it are still its start:
    `m ** n > 0.05`; above 50 % it is an error. Where the moving variances are smaller than what would be left of
    starting values of one, the start was another, such as a trained model's, and nothing is said.
Why it matters
    Inference normalizes with a mixture of the data and the starting values, and is far worse than training. With
    Keras's 0.99 it takes 299 batches until 5 % are left, with 0.999 almost 3,000.
What to do
    Train longer, lower the momentum, or let the start leave no trace:
    `evenkeel.BatchNormalization(average="debiased")`. Repair a trained model with `evenkeel.recalibrate(model, data)`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from evenkeel.doctor.evidence import Normalizer
from evenkeel.doctor.finding import Finding

ID = "EK201"
SEVERITY = "error"
EXPLAINS = ("EK401", "EK403")
LEFT, MOSTLY_LEFT = 0.05, 0.5
SICK = [
    Normalizer("bn", momentum=0.99, updates=100),
    Normalizer("bn", momentum=0.99, steps=30),
    Normalizer("bn", momentum=0.999, steps=100, batches_per_step=2),
    Normalizer("bn", moving_variance=np.array([1.0, 0.8]), momentum=0.99, steps=30),
]
HEALTHY = [
    Normalizer("bn", momentum=0.99, updates=300),
    Normalizer("bn", momentum=0.99, steps=150, batches_per_step=2),
    Normalizer("bn", momentum=0.9, updates=30, steps=10),
    Normalizer("bn", momentum=0.99, updates=0, steps=10),
    Normalizer("bn", momentum=0.99, updates=10, average="debiased"),
    Normalizer("bn", momentum=0.99, updates=10, frozen=True),
    Normalizer("bn", moving_variance=np.array([1.0, 0.2]), momentum=0.99, steps=30),
    Normalizer("bn", momentum=0.99),
]


def check(normalizer: Normalizer) -> Iterator[Finding]:
    momentum, batches = normalizer.momentum, normalizer.updates
    if batches is None and normalizer.steps is not None:
        batches = normalizer.steps * normalizer.batches_per_step
    if normalizer.average != "exponential" or normalizer.frozen or normalizer.moves is False:
        return
    if not batches or momentum is None or not 0 < momentum < 1:
        return
    left = momentum**batches
    if left <= LEFT or _started_elsewhere(normalizer, left):
        return
    needed = math.ceil(math.log(LEFT) / math.log(momentum))
    yield Finding(
        ID,
        normalizer.name,
        f"{left:.0%} of the start is left after {batches} batches with momentum {momentum:g}; {needed} are needed",
        'BatchNormalization(average="debiased"), a lower momentum, or evenkeel.recalibrate(model, data)',
        "error" if left > MOSTLY_LEFT else "warning",
    )


def _started_elsewhere(normalizer: Normalizer, left: float) -> bool:
    """Whether a variance is smaller than what is left of one; those of batches are not negative."""
    variance = normalizer.moving_variance
    return variance is not None and bool((variance.astype("float64") < 0.99 * left).any())
