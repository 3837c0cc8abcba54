# SPDX-License-Identifier: Apache-2.0
"""A batch has too few values for its statistics to mean much.

What it looks for
    Normalizers whose channels have fewer than 16 values in every batch; in every group, with virtual batches. One value
    is an error. Frozen ones and those with batch renormalization are left out, which use the moving statistics.
Why it matters
    With n values the mean of a batch is off by 1/sqrt(n) standard deviations, and training sees that noise, while
    inference does not. Of one value nothing but beta comes out.
What to do
    Larger batches; `synchronized=True` on several devices; batch renormalization
    (`evenkeel.BatchNormalization(renorm=True)`); or freeze a pretrained layer with `evenkeel.freeze(model)`.
    If training has larger batches than this data was cut into, say so with `batch_size`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from evenkeel.doctor.evidence import Normalizer, Observed, Seen
from evenkeel.doctor.finding import Finding
from evenkeel.functional.moments import Moments

ID = "EK404"
SEVERITY = "warning"
EXPLAINS = ("EK401", "EK403")
FEW = 16


def _example(*values: int, together: float = 1.0, **settings: Any) -> Seen:
    moments = Moments(np.zeros(3), np.ones(3), np.full(3, 64.0))
    return Seen(Normalizer("bn", **settings), moments, values=values, together=together)


SICK = [
    Observed((_example(1, 1),)),
    Observed((_example(32), _example(8, 8, 3))),
    Observed((_example(32, 32, together=0.25),)),
]
HEALTHY = [
    Observed((_example(32, 32, 1), _example(16, 16))),
    Observed((_example(2, 2, frozen=True),)),
    Observed((_example(2, 2, others={"renorm_mean": np.zeros(3)}),)),
    Observed((_example(8, 8, together=2.0),)),
    Observed((_example(0, 0),)),
]


def check(observed: Observed) -> Iterator[Finding]:
    most = {
        seen.normalizer.name: round(max(seen.values) * seen.together)
        for seen in observed.seen
        if seen.values and not seen.normalizer.frozen and "renorm_mean" not in seen.normalizer.others
    }
    few = [name for name, values in most.items() if 0 < values < FEW]  # none: nothing was finite, or all was masked
    if few:
        worst = min(few, key=most.__getitem__)
        values = most[worst]
        split = any(seen.normalizer.name == worst and seen.together < 1 for seen in observed.seen)
        part = "virtual batch" if split else "batch"
        more = f"; fewer than {FEW} in {len(few)} normalizers" if few[1:] else ""
        yield Finding(
            ID,
            worst,
            f"{values} value{'s' if values != 1 else ''} a channel in the largest {part}{more}",
            "larger batches, renorm=True, or evenkeel.freeze(model); batch_size=... if training has larger ones",
            "error" if values < 2 else "warning",
        )
