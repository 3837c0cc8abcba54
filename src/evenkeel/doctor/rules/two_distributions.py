# SPDX-License-Identifier: Apache-2.0
"""One normalizer is called with two distributions.

What it looks for
    A normalizer that is called several times within one pass, and two of these calls whose Gaussians are far apart: a
    symmetric Kullback-Leibler divergence of 0.5 on the average over the channels, at most 10 counted in each. From 2
    on, where each call is a standard deviation from their mixture, it is an error. Fewer than 8 rows say nothing.
Why it matters
    The moving statistics are a mixture that fits none of the calls. Training normalizes each call by itself, so it does
    not show there (carpedm20/DCGAN-tensorflow#266).
What to do
    A normalizer for each place; kernels may still be shared.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np

from evenkeel.doctor.distance import divergence
from evenkeel.doctor.evidence import Normalizer, Observed, Seen
from evenkeel.doctor.finding import Finding
from evenkeel.functional.moments import Moments

ID = "EK408"
SEVERITY = "warning"
EXPLAINS = ("EK401", "EK403")
FAR, ERROR, MOST = 0.5, 2.0, 10.0
FEWEST = 8  # rows; two samples of fewer may differ by anything


def _example(*means: float, frozen: bool = False, count: int = 64) -> Seen:
    calls = tuple(Moments(np.full(3, mean), np.ones(3), np.full(3, float(count))) for mean in means)
    return Seen(Normalizer("bn", epsilon=1e-3, frozen=frozen), calls[0], calls)


SICK = [Observed((_example(0.0, 2.0),)), Observed((_example(0.0, 0.1, 2.0),))]
HEALTHY = [
    Observed((_example(0.0, 0.5), _example(0.0))),
    Observed((_example(0.0, 2.0, frozen=True),)),
    Observed((_example(0.0, 2.0, count=5),)),
    Observed((_example(0.0, 2.0),), rows=3),
]


def check(observed: Observed) -> Iterator[Finding]:
    for seen in observed.seen:
        few = min((float(np.min(call.count)) for call in seen.calls), default=0)
        if min(few, few if observed.rows is None else observed.rows) < FEWEST:
            continue
        epsilon = seen.normalizer.epsilon or 0.0
        distances = {
            places: float(np.mean(np.clip(np.nan_to_num(divergence(*pair, epsilon)), 0, MOST)))
            for places, pair in zip(
                itertools.combinations(range(1, len(seen.calls) + 1), 2),
                itertools.combinations(seen.calls, 2),
                strict=True,
            )
        }
        worst = max(distances, key=distances.__getitem__, default=None)
        if worst and distances[worst] > FAR and not seen.normalizer.frozen:
            yield Finding(
                ID,
                seen.normalizer.name,
                f"calls {worst[0]} and {worst[1]} of {len(seen.calls)} differ by a divergence of "
                f"{distances[worst]:.2g}",
                "a normalizer for each place",
                "error" if distances[worst] > ERROR else "warning",
            )
