# SPDX-License-Identifier: Apache-2.0
"""Padding is counted as if it were data.

What it looks for
    Inputs of a normalizer with rows, time steps and channels, without a mask, of which more than a tenth of the
    positions are a run of equal ones with which several rows end (or start).
Why it matters
    Mean and variance then depend on how long the longest row of a batch is, and padding shrinks the variance. Masked
    versions train markedly better (freewym/espresso#46).
What to do
    Give a mask: `keras.layers.Masking`, `Embedding(mask_zero=True)`, or `BatchNormalization()(x, mask=mask)` of
    evenkeel, on any backend. In torch: pack the real steps, as `x[mask]`, before the layer.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from evenkeel.doctor.evidence import Normalizer, Observed, Seen
from evenkeel.doctor.finding import Finding
from evenkeel.functional.moments import Moments

ID = "EK406"
SEVERITY = "warning"
MUCH = 0.1


def _example(padding: float | None, *, masked: bool = False) -> Seen:
    moments = Moments(np.zeros(3), np.ones(3), np.full(3, 64.0))
    return Seen(Normalizer("bn"), moments, padding=padding, masked=masked)


SICK = [Observed((_example(0.4),)), Observed((_example(None), _example(0.11)))]
HEALTHY = [Observed((_example(None), _example(0.0), _example(0.05))), Observed((_example(0.4, masked=True),))]


def check(observed: Observed) -> Iterator[Finding]:
    padded = [seen for seen in observed.seen if (seen.padding or 0) > MUCH and not seen.masked]
    if padded:
        first = padded[0]
        more = f"; much of it in {len(padded)} normalizers" if padded[1:] else ""
        yield Finding(
            ID,
            first.normalizer.name,
            f"{first.padding:.0%} of the positions are padding, and no mask came{more}",
            "keras.layers.Masking() first, or evenkeel.BatchNormalization()(x, mask=mask)",
        )
