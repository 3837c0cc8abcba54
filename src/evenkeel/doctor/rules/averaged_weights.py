# SPDX-License-Identifier: Apache-2.0
"""Moving averages of weights stand beside the weights.

What it looks for
    Averages (EMA shadows) of gamma, beta or the moving statistics, as `ExponentialMovingAverage` of TensorFlow keeps
    them.
Why it matters
    A model that was evaluated with the averages gives other results with the weights themselves. A loader takes the
    weights, and most say nothing (tensorpack/tensorpack#880).
What to do
    `evenkeel convert FILE OUT --averages` for the averages in the place of the weights. Averaged kernels want
    statistics of their own: `evenkeel.recalibrate(model, data)`.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from evenkeel.doctor.evidence import Normalizer
from evenkeel.doctor.finding import Finding

ID = "EK108"
SEVERITY = "note"
SUFFIX = "_average"
SICK = [
    Normalizer("bn", gamma=np.ones(2), others={"gamma_average": np.ones(2), "beta_average": np.zeros(2)}),
]
HEALTHY = [
    Normalizer("bn", np.zeros(2), np.ones(2), others={"mean_biased": np.zeros(2), "mean_local_step": np.array([9.0])}),
]


def check(normalizer: Normalizer) -> Iterator[Finding]:
    averaged = [part.removesuffix(SUFFIX) for part in normalizer.others if part.endswith(SUFFIX)]
    if averaged:
        yield Finding(
            ID,
            normalizer.name,
            f"averages of {', '.join(averaged)}",
            "evenkeel convert FILE OUT --averages",
        )
