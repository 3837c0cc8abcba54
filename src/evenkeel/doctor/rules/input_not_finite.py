# SPDX-License-Identifier: Apache-2.0
"""NaN or infinity comes into a normalizer.

What it looks for
    Batches in which a channel's mean or variance is not finite; the first normalizer, in the order of the calls.
Why it matters
    One such batch in training makes the moving statistics NaN for ever in Keras, torch and Flax, though the loss may
    recover. This is the usual way in which validation becomes NaN.
What to do
    Find it in the data (`np.isfinite(x).all()`) or, if the data is clean, before this layer: a float16 overflow, a
    division, a weight. `evenkeel.BatchNormalization` leaves such channels out of its statistics.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from evenkeel.doctor.evidence import Normalizer, Observed, Seen
from evenkeel.doctor.finding import Finding
from evenkeel.functional.moments import Moments

ID = "EK409"
SEVERITY = "error"
EXPLAINS = ("EK103", "EK401", "EK403")


def _example(spoiled: int, name: str = "bn") -> Seen:
    moments = Moments(np.zeros(3), np.ones(3), np.full(3, 64.0))
    return Seen(Normalizer(name), moments, values=(32, 32), dtype="float32", spoiled=spoiled)


SICK = [Observed((_example(1),)), Observed((_example(0), _example(2, "other")))]
HEALTHY = [Observed((_example(0), _example(0, "other"))), Observed(())]


def check(observed: Observed) -> Iterator[Finding]:
    spoiled = [seen for seen in observed.seen if seen.spoiled]
    if spoiled:
        first = spoiled[0]
        more = f"; {len(spoiled)} normalizers are reached by it" if spoiled[1:] else ""
        calls = len(first.values) * max(len(first.calls), 1)
        yield Finding(
            ID,
            first.normalizer.name,
            f"NaN or infinity in {first.spoiled} of {calls} batches{more}",
            "np.isfinite(x).all() tells whether it is the data; if not, look at what stands before this layer",
        )
