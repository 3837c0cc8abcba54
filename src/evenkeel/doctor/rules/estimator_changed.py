# SPDX-License-Identifier: Apache-2.0
"""The moving variance was multiplied by n / (n - 1).

What it looks for
    The same moving mean, and a moving variance that is n / (n - 1) or (n - 1) / n times the old one in all channels
    alike, for a whole n. It is a note where the two libraries do keep different variances, or n is above 500.
Why it matters
    Inference divides by the variance as it is stored, so all outputs are on another scale than before. One variance is
    divided by n, the number of values, the other by n - 1, and which one a library keeps differs
    (pytorch/pytorch#1410, tensorflow/tensorflow#55545).
What to do
    Convert without `--examples` where the results have to stay, and with it where the training goes on.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from evenkeel.checkpoints.flags import numbers
from evenkeel.doctor.evidence import Normalizer, Pair, differ
from evenkeel.doctor.finding import Finding

ID = "EK154"
SEVERITY = "warning"
SMALL = 500
"""Above it, the scale changes by less than 0.1 %."""


def _bn(factor: float = 1.0, mean: float = 0.5, bessel_correction: bool | None = None) -> Normalizer:
    variance = np.array([0.3, 1.7, 5.0], "float32") * np.float32(factor)
    return Normalizer("bn", np.array([mean, -1.0, 2.0], "float32"), variance, bessel_correction=bessel_correction)


SICK = [
    Pair(_bn(), _bn(32 / 31)),
    Pair(_bn(), _bn(31 / 32)),
    Pair(_bn(bessel_correction=False), _bn(32 / 31, bessel_correction=True)),
    Pair(_bn(), _bn(2048 / 2047)),
]
HEALTHY = [
    Pair(_bn(), _bn()),
    Pair(_bn(), _bn(32 / 31, mean=0.51)),
    Pair(_bn(), _bn(1.29)),
    Pair(_bn(), Normalizer("bn", _bn().moving_mean, np.array([0.31, 1.75, 5.1], "float32"))),
    Pair(Normalizer("bn"), _bn()),
]


def check(pair: Pair) -> Iterator[Finding]:
    before, after = pair.before, pair.after
    if before.moving_mean is None or after.moving_mean is None or differ(before.moving_mean, after.moving_mean):
        return
    if before.moving_variance is None or after.moving_variance is None:
        return
    count, grown = _count(before.moving_variance, after.moving_variance)
    if count is not None:
        wanted = (before.bessel_correction, after.bessel_correction) == (not grown, grown)
        yield Finding(
            ID,
            after.name,
            f"variance times {f'{count} / {count - 1}' if grown else f'{count - 1} / {count}'} in all channels",
            "evenkeel convert without --examples, if the results are to stay",
            "note" if wanted or count > SMALL else None,
        )


def _count(before: np.ndarray, after: np.ndarray) -> tuple[int | None, bool]:
    """The number of values n, and whether the variance grew; None where it is not that."""
    old, new = numbers(before), numbers(after)
    alive = np.isfinite(old) & np.isfinite(new) & (old > 0) & (new > 0)
    if old.shape != new.shape or not alive.any():
        return None, False
    rounding = 2 * max(float(np.spacing(np.ones((), values.dtype))) for values in (before, after))
    logarithms = np.log(new[alive] / old[alive])
    size = abs(float(np.median(logarithms)))
    if size <= 2 * rounding or np.ptp(logarithms) > 2 * rounding:
        return None, False
    count = -1 / np.expm1(-size)
    whole = round(count)
    fits = whole >= 2 and abs(count - whole) <= rounding * count**2
    return (whole if fits else None), bool(logarithms[0] > 0)
