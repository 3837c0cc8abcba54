# SPDX-License-Identifier: Apache-2.0
"""Data that breaks batch normalization, by name. Every numerical test takes it."""

from typing import NamedTuple

import ml_dtypes
import numpy as np


class Case(NamedTuple):
    """x: the data, as NumPy has it; axis: of the channels."""

    x: np.ndarray
    axis: int = -1


def _normal(shape, mean=0.0, std=1.0, dtype="float32", seed=0):
    x = np.random.default_rng(seed).normal(mean, std, shape)
    return x.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)


FINITE = {
    "plain": Case(_normal((16, 5, 5, 4), 1, 2)),
    "dense": Case(_normal((64, 7), 1, 2)),
    "sequence": Case(_normal((8, 9, 3), -1, 3)),
    "volume": Case(_normal((4, 3, 4, 5, 6), 1, 2)),
    "far from zero": Case(_normal((256, 8, 3), 1e4)),
    "far below zero": Case(_normal((512, 3), -3000, 0.5)),
    "constant channel": Case(np.concatenate([_normal((32, 2)), np.full((32, 1), 7, "float32")], axis=1)),
    "two values a channel": Case(_normal((2, 5))),
    "one channel": Case(_normal((12, 4, 1), 3)),
    "subnormal": Case(_normal((16, 3), std=1e-40)),
    "near float16's limit": Case(_normal((64, 3), 2e4, 5e3, "float16")),
    "float16": Case(_normal((64, 4), 0, 300, "float16")),
    "bfloat16": Case(_normal((64, 4, 4, 8), 0, 300, "bfloat16")),
    "channels first": Case(_normal((8, 3, 6, 5), 2, 3), axis=1),
    "axis in the middle": Case(_normal((6, 5, 4, 7), 2, 3), axis=2),
    "axis at the front": Case(_normal((3, 16, 4), 2, 3), axis=0),
    "not contiguous": Case(_normal((5, 16, 6), 2, 3).transpose(1, 2, 0)),
    "many values": Case(_normal((20000, 2), 100, 1)),
}


def non_finite(value):
    """One bad value in channel 1 of three."""
    x = _normal((16, 5, 3), 1, 2)
    x[3, 2, 1] = value
    return x


NON_FINITE = {"one NaN": non_finite(np.nan), "one infinity": non_finite(np.inf), "minus infinity": non_finite(-np.inf)}

# Nothing that statistics could be taken from; the mask where there is one.
USELESS = {
    "empty batch": (np.zeros((0, 5, 3), "float32"), None),
    "one value a channel": (_normal((1, 3), 5), None),
    "one image of one pixel": (_normal((1, 1, 1, 3), 5), None),
    "all masked": (_normal((16, 5, 3), 5), np.zeros((16, 5), bool)),
    "all but one masked": (_normal((16, 3), 5), np.arange(16) == 7),
}
