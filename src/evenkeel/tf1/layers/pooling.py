# SPDX-License-Identifier: Apache-2.0
"""`tf.layers.max_pooling2d` and its family: one value for each window."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import tensorflow as tf

from evenkeel.tf1.layers import arguments, layout
from evenkeel.tf1.layers.base import InputSpec, Layer
from evenkeel.tf1.layers.functions import function_of


class Pooling(Layer):
    """A window that slides over one, two or three dimensions of space, each channel for itself.

    Args:
        pool_size: of the window; an integer, or one for each dimension of space.
        strides: from window to window, likewise.
        padding: `"valid"`, only windows that lie inside, or `"same"`; padding does not count in an average.
        data_format: `"channels_last"`, shape `(batch, ..., channels)`, or `"channels_first"`.
        name: of the layer.

    Raises:
        ValueError: a size, padding or data format that cannot be; when called, another number of dimensions.
    """

    rank: ClassVar[int]
    pool: ClassVar[Callable[..., Any]]

    def __init__(
        self,
        pool_size: arguments.Sizes,
        strides: arguments.Sizes,
        padding: str = "valid",
        data_format: str | None = "channels_last",
        name: Any = None,
        **options: Any,
    ) -> None:
        if strides is None:
            raise ValueError("Argument `strides` must not be None; give pool_size again for windows side by side")
        super().__init__(name=name, **options)
        self.pool_size = arguments.sizes("pool_size", pool_size, self.rank)
        self.strides = arguments.sizes("strides", strides, self.rank)
        self.padding = arguments.padding(padding)
        self.data_format = layout.data_format(data_format)
        self.input_spec = InputSpec(ndim=self.rank + 2)

    def call(self, inputs: Any) -> Any:
        def pooled(inputs: Any) -> Any:
            return self.pool(inputs, self.pool_size, self.strides, self.padding.upper())

        return layout.in_channels_last(pooled, inputs, self.data_format)


class AveragePooling1D(Pooling):
    """`Pooling` by the mean of each window along `(batch, steps, channels)`."""

    rank = 1
    pool = staticmethod(tf.nn.avg_pool)


class AveragePooling2D(Pooling):
    """`Pooling` by the mean of each window of `(batch, height, width, channels)`."""

    rank = 2
    pool = staticmethod(tf.nn.avg_pool)


class AveragePooling3D(Pooling):
    """`Pooling` by the mean of each window of `(batch, depth, height, width, channels)`."""

    rank = 3
    pool = staticmethod(tf.nn.avg_pool)


class MaxPooling1D(Pooling):
    """`Pooling` by the largest value of each window along `(batch, steps, channels)`."""

    rank = 1
    pool = staticmethod(tf.nn.max_pool)


class MaxPooling2D(Pooling):
    """`Pooling` by the largest value of each window of `(batch, height, width, channels)`.

    Example:
        >>> with tf.Graph().as_default():
        ...     MaxPooling2D(2, 2)(tf.ones([8, 28, 28, 3])).shape.as_list()
        [8, 14, 14, 3]
    """

    rank = 2
    pool = staticmethod(partial(tf.nn.max_pool, name="MaxPool"))


class MaxPooling3D(Pooling):
    """`Pooling` by the largest value of each window of `(batch, depth, height, width, channels)`."""

    rank = 3
    pool = staticmethod(tf.nn.max_pool)


average_pooling1d = function_of(AveragePooling1D, reuse=False)
average_pooling2d = function_of(AveragePooling2D, reuse=False)
average_pooling3d = function_of(AveragePooling3D, reuse=False)
max_pooling1d = function_of(MaxPooling1D, reuse=False)
max_pooling2d = function_of(MaxPooling2D, reuse=False)
max_pooling3d = function_of(MaxPooling3D, reuse=False)

AvgPool2D = AveragePooling2D
MaxPool2D = MaxPooling2D
avg_pool2d = average_pooling2d
max_pool2d = max_pooling2d
