# SPDX-License-Identifier: Apache-2.0
"""Moving statistics never left their starting values.

What it looks for
    A normalizer whose moving mean is all zeros and whose moving variance is all ones. In a model of which it is known
    that no step of training was done it is a note only.
Why it matters
    Inference normalizes with statistics that no data ever reached, though training looked healthy. Networks were
    published in this state (deezer/spleeter#151, cleinc/bts#90).
What to do
    Run the update operations with the training step; repair a trained model with `evenkeel recalibrate MODEL
    --data DATA --out FILE`, or `evenkeel.recalibrate(model, data)`.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from evenkeel.checkpoints.flags import never_updated
from evenkeel.doctor.evidence import Normalizer
from evenkeel.doctor.finding import Finding

ID = "EK101"
SEVERITY = "error"
EXPLAINS = ("EK401", "EK403")
SICK = [Normalizer("bn", np.zeros(3), np.ones(3)), Normalizer("bn", np.zeros(3), np.ones(3), steps=0)]
HEALTHY = [
    Normalizer("bn", np.array([0.0, 0.1, 0.0]), np.ones(3)),
    Normalizer("bn", np.zeros(3), np.array([1.0, 0.999, 1.0])),
    Normalizer("bn"),
]


def check(normalizer: Normalizer) -> Iterator[Finding]:
    mean, variance = normalizer.moving_mean, normalizer.moving_variance
    if mean is not None and variance is not None and never_updated(mean, variance):
        untrained = normalizer.steps == 0
        yield Finding(
            ID,
            normalizer.name,
            "not trained yet: mean all 0, variance all 1" if untrained else "mean all 0, variance all 1",
            "run the updates with the training step, or evenkeel.recalibrate(model, data)",
            "note" if untrained else None,
        )
