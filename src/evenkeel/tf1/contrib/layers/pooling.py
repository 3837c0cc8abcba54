# SPDX-License-Identifier: Apache-2.0
"""What stands for a window of an image: its mean or its maximum."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from evenkeel.tf1.contrib.framework.scopes import add_arg_scope
from evenkeel.tf1.contrib.layers.utils import collect_named_outputs, n_positive_integers
from evenkeel.tf1.contrib.layers.weighted import IMAGES, VOLUMES, channels_axis
from evenkeel.tf1.layers.pooling import AveragePooling2D, AveragePooling3D, MaxPooling2D, MaxPooling3D

v1 = tf.compat.v1


@add_arg_scope
def avg_pool2d(
    inputs: Any,
    kernel_size: Any,
    stride: Any = 2,
    padding: str = "VALID",
    data_format: str = "NHWC",
    outputs_collections: Any = None,
    scope: str | None = None,
) -> Any:
    """The mean of each window; arguments as for `max_pool2d`, and the default scope `AvgPool2D`."""
    axis = channels_axis(data_format, IMAGES)
    return _pooled(
        AveragePooling2D, "AvgPool2D", inputs, kernel_size, stride, padding, axis, outputs_collections, scope
    )


@add_arg_scope
def avg_pool3d(
    inputs: Any,
    kernel_size: Any,
    stride: Any = 2,
    padding: str = "VALID",
    data_format: str = "NDHWC",
    outputs_collections: Any = None,
    scope: str | None = None,
) -> Any:
    """The mean of each window of a volume; arguments as for `max_pool2d`, and the default scope `AvgPool3D`."""
    axis = channels_axis(data_format, VOLUMES)
    return _pooled(
        AveragePooling3D, "AvgPool3D", inputs, kernel_size, stride, padding, axis, outputs_collections, scope
    )


@add_arg_scope
def max_pool2d(
    inputs: Any,
    kernel_size: Any,
    stride: Any = 2,
    padding: str = "VALID",
    data_format: str = "NHWC",
    outputs_collections: Any = None,
    scope: str | None = None,
) -> Any:
    """The maximum of each window.

    Args:
        inputs: shape `(batch, height, width, channels)`; for `"NCHW"` `(batch, channels, height, width)`.
        kernel_size, stride: an integer, or two.
        padding: `"VALID"` or `"SAME"`.
        outputs_collections: collection, or list of them, of the output; its alias is the name of the scope.
        scope: name scope; `MaxPool2D`, made unique, by default.

    Raises:
        ValueError: another `data_format`.

    Example:
        >>> with tf.Graph().as_default():
        ...     y = max_pool2d(tf.ones([8, 4, 4, 3]), 2)
        ...     y.op.name, y.shape.as_list()
        ('MaxPool2D/MaxPool', [8, 2, 2, 3])
    """
    axis = channels_axis(data_format, IMAGES)
    return _pooled(MaxPooling2D, "MaxPool2D", inputs, kernel_size, stride, padding, axis, outputs_collections, scope)


@add_arg_scope
def max_pool3d(
    inputs: Any,
    kernel_size: Any,
    stride: Any = 2,
    padding: str = "VALID",
    data_format: str = "NDHWC",
    outputs_collections: Any = None,
    scope: str | None = None,
) -> Any:
    """The maximum of each window of a volume; arguments as for `max_pool2d`, and the default scope `MaxPool3D`."""
    axis = channels_axis(data_format, VOLUMES)
    return _pooled(MaxPooling3D, "MaxPool3D", inputs, kernel_size, stride, padding, axis, outputs_collections, scope)


@add_arg_scope
def pool(
    inputs: Any,
    kernel_size: Any,
    pooling_type: str,
    padding: str = "VALID",
    data_format: str | None = None,
    dilation_rate: Any = 1,
    stride: Any = 1,
    outputs_collections: Any = None,
    scope: str | None = None,
) -> Any:
    """`tf.nn.pool` of inputs with one to three dimensions besides batch and channels.

    Args:
        pooling_type: `"AVG"` or `"MAX"`.
        scope: name scope; `avg_pool` or `max_pool`, made unique, by default.

    Raises:
        ValueError: an input of fewer than three dimensions, or of an unknown number.
    """
    with v1.name_scope(scope, f"{pooling_type.lower()}_pool", [inputs]) as name:
        inputs = tf.convert_to_tensor(inputs)
        rank = inputs.shape.rank
        if rank is None or rank < 3:
            raise ValueError(f"Rank of inputs must be known and >= 3; got {rank}")
        outputs = v1.nn.pool(
            input=inputs,
            window_shape=n_positive_integers(rank - 2, kernel_size),
            pooling_type=pooling_type,
            padding=padding,
            data_format=data_format,
            dilation_rate=n_positive_integers(rank - 2, dilation_rate),
            strides=n_positive_integers(rank - 2, stride),
            name=name,
        )
        return collect_named_outputs(outputs_collections, name, outputs)


def _pooled(
    layer_class: Any,
    default_scope: str,
    inputs: Any,
    kernel_size: Any,
    stride: Any,
    padding: str,
    axis: str,
    outputs_collections: Any,
    scope: str | None,
) -> Any:
    with v1.name_scope(scope, default_scope, [inputs]) as name:
        inputs = tf.convert_to_tensor(inputs)
        layer = layer_class(pool_size=kernel_size, strides=stride, padding=padding, data_format=axis, _scope=name)
        return collect_named_outputs(outputs_collections, name, layer(inputs))
