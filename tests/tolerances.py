# SPDX-License-Identifier: Apache-2.0
"""How far from the exact answer a correct algorithm may be, and why."""

import math

UNIT_ROUNDOFF = {"bfloat16": 2.0**-8, "float16": 2.0**-11, "float32": 2.0**-24, "float64": 2.0**-53}

# Statistics are computed in float32 or wider whatever the type of the data.
WIDE = {"bfloat16": "float32", "float16": "float32", "float32": "float32", "float64": "float64"}


def condition(mean, variance):
    """How much more the mean of a channel weighs than its spread: `sqrt(1 + mean^2 / variance)`."""
    return math.sqrt(1 + mean**2 / variance)


def variance(dtype, count, condition):
    """Relative error a two-pass variance may have. `condition` is sqrt(1 + mean^2 / variance)."""
    rounding = 8 * UNIT_ROUNDOFF[WIDE[dtype]] * max(1.0, math.log2(count))
    return rounding + (rounding * condition) ** 2


def mean(dtype, count, condition):
    """Error of a mean, in standard deviations: the sum's rounding, and the rounding of the result itself."""
    return 8 * UNIT_ROUNDOFF[WIDE[dtype]] * max(1.0, math.log2(count)) * condition


def output(dtype, count, condition, largest=4.0):
    """Error of a normalized value of at most `largest`, with gamma 1: that of its mean and of its standard deviation,
    of one scale and one offset instead of a difference (as fused operations compute it), and of rounding to `dtype`.
    """
    statistics = mean(dtype, count, condition) + largest * variance(dtype, count, condition)
    return statistics + 4 * UNIT_ROUNDOFF[WIDE[dtype]] * condition + 2 * largest * UNIT_ROUNDOFF[dtype]


def gradient(dtype, count, condition, scale):
    """Error of a gradient whose terms are about `scale`: every term carries the error of a normalized value."""
    return 4 * scale * output(dtype, count, condition)
