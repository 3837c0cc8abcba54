# SPDX-License-Identifier: Apache-2.0
"""A moving variance is zero, or next to it.

What it looks for
    A moving variance of 0, or below 1e-12. Few such channels are a note, for dead units make them; more than half
    of the channels are a warning. Where the mean of such a channel is beyond 10, a note becomes a warning and that
    an error.
Why it matters
    At inference the smallest change of such a channel is divided by the square root of epsilon alone. A dead unit
    does no harm; data far from zero whose variance was lost in rounding do (tensorflow/tensorflow#118701,
    google/flax#1491), and so do statistics that were never stored.
What to do
    `evenkeel.recalibrate(model, data)`, and look whether what comes before the normalizer is dead: a bias or a
    learning rate that is too large. Take constant columns out of the data.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from evenkeel.checkpoints.flags import numbers
from evenkeel.doctor.evidence import Normalizer
from evenkeel.doctor.finding import SEVERITIES, Finding

ID = "EK105"
SEVERITY = "note"
SMALLEST = 1e-12
FAR = 10.0
SICK = [
    Normalizer("bn", np.zeros(4), np.array([0.0, 0.3, 1.2, 0.8])),
    Normalizer("bn", np.zeros(4), np.array([0.0, 1e-13, 0.0, 0.8])),
    Normalizer("bn", np.array([3000.0, 0.1, 0.2, 0.3]), np.array([0.0, 0.3, 1.2, 0.8])),
    Normalizer("bn", np.array([3000.0]), np.array([0.0])),
]
HEALTHY = [
    Normalizer("bn", np.zeros(3), np.array([1e-9, 0.3, 1.2])),
    Normalizer("bn", np.zeros(2), np.array([-1.0, np.nan])),
    Normalizer("bn"),
]


def check(normalizer: Normalizer) -> Iterator[Finding]:
    if normalizer.moving_variance is None:
        return
    variance = numbers(normalizer.moving_variance)
    vanished = (variance >= 0) & (variance < SMALLEST)
    if not vanished.any():
        return
    grave = 2 * np.count_nonzero(vanished) > variance.size
    far = ""
    if normalizer.moving_mean is not None and normalizer.moving_mean.size == variance.size:
        mean = np.abs(numbers(normalizer.moving_mean)[vanished]).max()
        far = f", with a mean of up to {mean:.3g}" if mean > FAR else ""
    yield Finding(
        ID,
        normalizer.name,
        f"variance below {SMALLEST:g} in {np.count_nonzero(vanished)} of {variance.size} channels{far}",
        "evenkeel.recalibrate(model, data); look at what comes before it",
        SEVERITIES[2 - grave - bool(far)],
    )
