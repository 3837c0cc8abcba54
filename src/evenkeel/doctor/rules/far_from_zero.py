# SPDX-License-Identifier: Apache-2.0
"""The input of a normalizer is so far from zero that its digits do not reach.

What it looks for
    Channels whose mean is more than 1000 standard deviations (with epsilon) from zero; in bfloat16 30, in float16 250,
    in float64 a million. It is an error where the library computes mean of squares minus square of the mean: Keras's
    own layer on torch, and Flax with `use_fast_variance`.
Why it matters
    That difference has no digits left: the variance comes out as anything, negative too, and outputs become NaN.
    Elsewhere the layer itself is right, but its input was rounded coarsely before it came.
What to do
    Take the mean away first, such as with `keras.layers.Normalization`; or `evenkeel.BatchNormalization`, or
    `use_fast_variance=False` in Flax, which square after the mean was taken away.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from evenkeel.doctor.evidence import Normalizer, Observed, Seen
from evenkeel.doctor.finding import Finding
from evenkeel.functional.moments import Moments

ID = "EK407"
SEVERITY = "warning"
EXPLAINS = ("EK103", "EK104", "EK401", "EK403")
# Data of 16 bits has 11 and 8 of them before the spread begins.
LIMITS = {"float16": 250.0, "bfloat16": 30.0, "float64": 1e6}
LIMIT = 1e3
ROUNDING = 2.0**-24


def _example(mean: float, deviation: float, dtype: str = "float32", *, one_pass: bool = False) -> Seen:
    moments = Moments(np.array([0.0, mean]), np.array([1.0, deviation**2]), np.full(2, 64.0))
    return Seen(Normalizer("bn", epsilon=1e-5), moments, dtype=dtype, one_pass=one_pass)


SICK = [
    Observed((_example(3000.0, 0.5, one_pass=True),)),
    Observed((_example(3000.0, 0.5),)),
    Observed((_example(300.0, 1.0, "float16"),)),
]
HEALTHY = [
    Observed((_example(900.0, 1.0), _example(900.0, 1.0, one_pass=True), _example(200.0, 1.0, "float16"))),
    Observed((_example(3000.0, 0.5, "float64"),)),
    Observed((_example(1.0, 0.0), _example(0.0, 0.0), _example(5.0, 0.0))),
]


def check(observed: Observed) -> Iterator[Finding]:
    for seen in observed.seen:
        with np.errstate(all="ignore"):
            deviation = np.sqrt(seen.moments.variance + (seen.normalizer.epsilon or 0.0))
            ratios = np.nan_to_num(np.abs(seen.moments.mean) / deviation, nan=0.0)
        # Of a constant, two passes find the variance of 0 that it has.
        ratios = np.where((seen.moments.variance > 0) | seen.one_pass, ratios, 0.0)
        channel = int(np.argmax(ratios)) if ratios.size else 0
        if ratios.size and ratios[channel] > LIMITS.get(seen.dtype or "", LIMIT):
            mean, variance = seen.moments.mean[channel], seen.moments.variance[channel]
            where = f"channel {channel}: mean {mean:.3g}, {ratios[channel]:.2g} standard deviations from 0"
            error = f"; its variance of {variance:.2g} is computed to within {mean**2 * ROUNDING:.2g}"
            yield Finding(
                ID,
                seen.normalizer.name,
                where + (error if seen.one_pass else f", in {seen.dtype}"),
                "take the mean away before (keras.layers.Normalization), or use evenkeel.BatchNormalization",
                "error" if seen.one_pass else "warning",
            )
