# SPDX-License-Identifier: Apache-2.0
"""The moving statistics are far from those of the data.

What it looks for
    The symmetric Kullback-Leibler divergence of two Gaussians in each channel, that of the moving statistics and
    that of the data, both with epsilon. A channel counts for at most 10 nats; on the average over the channels 0.25
    is a warning, and 0.5 an error, which is a shift by one standard deviation everywhere. What sampling alone
    explains is taken off; rows are what counts there, for the values of one are alike. Of a frozen layer, which was
    trained like that, it is a note, and a warning from 5 on. Fewer than 8 rows say nothing. Every layer saw what
    comes out of those before it in training.
Why it matters
    Inference normalizes with numbers that do not belong to this data. The first bad layer, in the order of the
    calls, is where to look: the bad ones after it were measured with that one repaired, so they are bad by
    themselves.
What to do
    If the first layer is bad, compare how data is prepared in training and here (a scale of 255, another order of
    the channels). Otherwise train longer, lower the momentum, or `evenkeel.recalibrate(model, data)`.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from evenkeel.doctor.distance import divergence
from evenkeel.doctor.evidence import Normalizer, Observed, Seen
from evenkeel.doctor.finding import Finding, Severity
from evenkeel.functional.moments import Moments

ID = "EK401"
SEVERITY = "error"
EXPLAINS = ("EK403",)
# Measured on small networks and the digits: 0.00 to 0.04 after a good training, dropout and batches of 4 included;
# 0.8 to 10 in the first layer where the momentum was too slow for the steps, or data was scaled differently.
WARNING, ERROR, MOST = 0.25, 0.5, 10.0
FROZEN = 5.0  # another scale of the data, not another kind of it
# Of n values, mean and variance each scatter by sqrt(1 / n), in their own unit.
SAMPLING = 2.0
FEWEST = 8  # rows; the variance of fewer may be anything


def _example(mean: float, variance: float, *, count: int = 1000, name: str = "bn", frozen: bool = False) -> Seen:
    """Data of mean 0 and variance 1, before moving statistics that are elsewhere."""
    normalizer = Normalizer(name, np.full(3, mean), np.full(3, variance), epsilon=1e-3, frozen=frozen)
    return Seen(normalizer, Moments(np.zeros(3), np.ones(3), np.full(3, float(count))))


SICK = [
    Observed((_example(0.0, 65025.0),)),
    Observed((_example(0.1, 1.2), _example(3.0, 1.0, name="other"))),
    Observed((_example(0.8, 1.0),)),
    Observed((_example(0.0, 65025.0, frozen=True),)),
    Observed((_example(1.5, 1.0, frozen=True),)),
]
HEALTHY = [
    Observed((_example(0.5, 1.0), _example(0.0, 2.5), _example(0.0, 0.5))),
    Observed((_example(0.9, 1.0, count=8),)),
    Observed((_example(9.0, 1.0, count=4),)),
    Observed((_example(0.9, 1.0),), rows=1),
    Observed((_example(np.nan, 1.0), _example(0.0, -1.0))),
]


def check(observed: Observed) -> Iterator[Finding]:
    far = [(seen, distance) for seen in observed.seen if (distance := _distance(seen, observed.rows)) > WARNING]
    for seen, distance in far:
        first = far[0][0].normalizer.name
        place = "" if len(far) == 1 else "first" if seen is far[0][0] else f"{first} is the first"
        yield Finding(
            ID,
            seen.normalizer.name,
            f"{place and f'{place} of {len(far)}: '}{_differences(seen)}; divergence {distance:.2g}",
            "prepare data as in training; if it is, evenkeel.recalibrate(model, data)",
            _severity(seen, distance),
        )


def _severity(seen: Seen, distance: float) -> Severity:
    if seen.normalizer.frozen:
        return "warning" if distance > FROZEN else "note"
    return "error" if distance > ERROR else "warning"


def _distance(seen: Seen, rows: int | None) -> float:
    """0 where there is nothing to compare."""
    mean, variance = seen.normalizer.moving_mean, seen.normalizer.moving_variance
    if mean is None or variance is None:
        return 0.0
    found = divergence(Moments(mean, variance, 0), seen.moments, seen.normalizer.epsilon or 0.0)
    counts = np.broadcast_to(seen.moments.count, found.shape)
    samples = counts if rows is None else np.minimum(counts, rows)
    known = np.isfinite(found) & (samples >= FEWEST)
    return float(np.mean(np.clip(found[known] - SAMPLING / samples[known], 0, MOST))) if known.any() else 0.0


def _differences(seen: Seen) -> str:
    """In the middle channel of each."""
    known, found = seen.normalizer, seen.moments
    assert known.moving_mean is not None and known.moving_variance is not None
    epsilon = known.epsilon or 0.0
    with np.errstate(all="ignore"):
        deviation = np.sqrt(found.variance + epsilon)
        shift = np.nanmedian(np.abs(known.moving_mean.ravel() - found.mean) / deviation)
        factor = np.nanmedian((known.moving_variance.ravel() + epsilon) / deviation**2)
    return f"mean off by {shift:.2g} standard deviations of the data, variance {factor:.2g} times the data's"
