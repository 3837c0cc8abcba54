# SPDX-License-Identifier: Apache-2.0
"""A moving variance is negative.

What it looks for
    A moving variance below zero. It is only a warning where epsilon still lifts all of them above zero.
Why it matters
    No data have such a variance, and the square root of it is NaN. It comes from mean-of-squares minus
    square-of-mean on data far from zero, or from a loader that takes epsilon away (facebookresearch/detectron2#2413).
What to do
    `evenkeel.recalibrate(model, data)`; `evenkeel.BatchNormalization` takes the mean away before it squares.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from evenkeel.checkpoints.flags import numbers
from evenkeel.doctor.evidence import Normalizer
from evenkeel.doctor.finding import Finding

ID = "EK104"
SEVERITY = "error"
EXPLAINS = ("EK401", "EK403")
SICK = [
    Normalizer("bn", moving_variance=np.array([0.5, -0.5])),
    Normalizer("bn", moving_variance=np.array([0.5, -1e-9]), epsilon=1e-3),
]
HEALTHY = [
    Normalizer("bn", np.array([-1.0, 2.0]), np.array([0.0, -0.0])),
    Normalizer("bn", np.array([-1.0, 2.0]), np.array([np.nan, 1e-40])),
    Normalizer("bn"),
]


def check(normalizer: Normalizer) -> Iterator[Finding]:
    if normalizer.moving_variance is None:
        return
    variance = numbers(normalizer.moving_variance)
    negative = variance[variance < 0]
    if negative.size:
        lifted = normalizer.epsilon is not None and negative.min() + normalizer.epsilon > 0
        yield Finding(
            ID,
            normalizer.name,
            f"variance negative in {negative.size} of {variance.size} channels, down to {negative.min():.3g}",
            "evenkeel.recalibrate(model, data)",
            "warning" if lifted else None,
        )
