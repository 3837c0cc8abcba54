# SPDX-License-Identifier: Apache-2.0
"""A batch has too few values for its statistics to mean much.

What it looks for
    Normalizers, not frozen ones, whose channels have fewer than 16 values in every batch. One value is an error.
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

import numpy as np

from evenkeel.doctor.evidence import Normalizer, Observed, Seen
from evenkeel.doctor.finding import Finding
from evenkeel.functional.moments import Moments

ID = "EK404"
SEVERITY = "warning"
EXPLAINS = ("EK401", "EK403")
FEW = 16


def _example(*values: int, frozen: bool = False) -> Seen:
    return Seen(Normalizer("bn", frozen=frozen), Moments(np.zeros(3), np.ones(3), np.full(3, 64.0)), values=values)


SICK = [Observed((_example(1, 1),)), Observed((_example(32), _example(8, 8, 3)))]
HEALTHY = [
    Observed((_example(32, 32, 1), _example(16, 16))),
    Observed((_example(2, 2, frozen=True),)),
    Observed((_example(0, 0),)),
]


def check(observed: Observed) -> Iterator[Finding]:
    most = {
        seen.normalizer.name: max(seen.values) for seen in observed.seen if seen.values and not seen.normalizer.frozen
    }
    few = [name for name, values in most.items() if 0 < values < FEW]  # none: nothing was finite, or all was masked
    if few:
        worst = min(few, key=most.__getitem__)
        values = most[worst]
        more = f"; fewer than {FEW} in {len(few)} normalizers" if few[1:] else ""
        yield Finding(
            ID,
            worst,
            f"{values} value{'s' if values != 1 else ''} a channel in the largest batch{more}",
            "larger batches, renorm=True, or evenkeel.freeze(model); batch_size=... if training has larger ones",
            "error" if values < 2 else "warning",
        )
