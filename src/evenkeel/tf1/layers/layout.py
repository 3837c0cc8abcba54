# SPDX-License-Identifier: Apache-2.0
"""Where the channels of an input are, and how they get to where an operation wants them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from evenkeel.tf1.layers.arguments import word


def data_format(value: Any) -> str:
    """`"channels_last"` or `"channels_first"`, in whatever case they arrive; None is the first.

    Raises:
        ArgumentError: anything else, such as `"NCHW"`.

    Example:
        >>> data_format("Channels_First"), data_format(None)
        ('channels_first', 'channels_last')
    """
    return word("data_format", "channels_last" if value is None else value, ["channels_last", "channels_first"])


def channels_last(inputs: Any) -> Any:
    """Shape `(batch, channels, ...)` as `(batch, ..., channels)`."""
    return tf.transpose(inputs, [0, *range(2, inputs.shape.rank), 1])


def channels_first(inputs: Any) -> Any:
    """Shape `(batch, ..., channels)` as `(batch, channels, ...)`."""
    last = inputs.shape.rank - 1
    return tf.transpose(inputs, [0, last, *range(1, last)])


def in_channels_last(compute: Callable[[Any], Any], inputs: Any, data_format: str) -> Any:
    """`compute(inputs)`, where `compute` knows channels last only; in and out are in `data_format`.

    TensorFlow's operations for the CPU want the channels last. On a GPU, Grappler chooses the layout by itself.

    Example:
        >>> with tf.Graph().as_default(), tf.compat.v1.Session():
        ...     images = tf.ones([2, 3, 8, 8])
        ...     pooled = in_channels_last(lambda x: tf.nn.max_pool(x, 2, 2, "VALID"), images, "channels_first")
        ...     pooled.eval().shape
        (2, 3, 4, 4)
    """
    if data_format == "channels_last":
        return compute(inputs)
    return channels_first(compute(channels_last(inputs)))
