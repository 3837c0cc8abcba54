# SPDX-License-Identifier: Apache-2.0
"""What random values weights start with."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import tensorflow as tf

v1 = tf.compat.v1


def variance_scaling_initializer(
    factor: float = 2.0, mode: str = "FAN_IN", uniform: bool = False, seed: int | None = None, dtype: Any = tf.float32
) -> Callable[..., Any]:
    """Random weights whose variance is `factor / n`; the defaults are those of He et al. 2015.

    Args:
        factor: of the variance.
        mode: what `n` is: inputs of a unit (`"FAN_IN"`), outputs (`"FAN_OUT"`), or the mean of both (`"FAN_AVG"`).
        uniform: uniform; otherwise normal, cut off at two standard deviations.

    Raises:
        TypeError: an unknown mode, or a type that is not floating point.

    Example:
        >>> with tf.Graph().as_default():
        ...     variance_scaling_initializer()([3, 3, 8, 16]).shape.as_list()
        [3, 3, 8, 16]
    """
    _floating(dtype)
    if mode not in ("FAN_IN", "FAN_OUT", "FAN_AVG"):
        raise TypeError(f"Unknown mode {mode} [FAN_IN, FAN_OUT, FAN_AVG]; give one of these")

    def initializer(shape: Any, dtype: Any = dtype, partition_info: Any = None) -> Any:
        _floating(dtype)
        sizes = tf.TensorShape(shape).as_list()
        field = math.prod(sizes[:-2])
        fan_in = float(field * sizes[-2 if len(sizes) > 1 else -1]) if sizes else 1.0
        fan_out = float(field * sizes[-1]) if sizes else 1.0
        n = {"FAN_IN": fan_in, "FAN_OUT": fan_out, "FAN_AVG": (fan_in + fan_out) / 2.0}[mode]
        if uniform:
            limit = math.sqrt(3.0 * factor / n)
            return v1.random_uniform(shape, -limit, limit, dtype, seed=seed)
        # 1.3 makes up for the variance that is lost with the tails.
        return v1.truncated_normal(shape, 0.0, math.sqrt(1.3 * factor / n), dtype, seed=seed)

    return initializer


def xavier_initializer(uniform: bool = True, seed: int | None = None, dtype: Any = tf.float32) -> Callable[..., Any]:
    """Glorot and Bengio 2010: variance `2 / (inputs + outputs)`, uniform by default."""
    return variance_scaling_initializer(factor=1.0, mode="FAN_AVG", uniform=uniform, seed=seed, dtype=dtype)


xavier_initializer_conv2d = xavier_initializer


def _floating(dtype: Any) -> None:
    if not tf.as_dtype(dtype).is_floating:
        raise TypeError(f"Cannot create initializer for non-floating point type {dtype}; give tf.float32, say")
