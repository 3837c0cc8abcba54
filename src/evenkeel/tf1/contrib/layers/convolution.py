# SPDX-License-Identifier: Apache-2.0
"""How layers connect neighbours: convolutions of one to three dimensions, transposed ones, separable ones."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf

from evenkeel.tf1.contrib.framework.scopes import add_arg_scope
from evenkeel.tf1.contrib.framework.variables import model_variable
from evenkeel.tf1.contrib.layers.initializers import xavier_initializer
from evenkeel.tf1.contrib.layers.utils import (
    channel_dimension,
    get_variable_collections,
    last_dimension,
    two_element_tuple,
)
from evenkeel.tf1.contrib.layers.weighted import (
    IMAGES,
    VOLUMES,
    ZEROS,
    channels_axis,
    finish,
    model_variable_getter,
    weighted,
)
from evenkeel.tf1.layers.convolutional import (
    Conv1D,
    Conv2D,
    Conv2DTranspose,
    Conv3D,
    Conv3DTranspose,
    SeparableConv2D,
)

v1 = tf.compat.v1

Function = Callable[..., Any]

_FORMATS = (None, "NWC", "NCW", "NHWC", "NCHW", "NDHWC", "NCDHW")
_CLASSES = {1: Conv1D, 2: Conv2D, 3: Conv3D}
_SEPARABLE = {
    "depthwise_kernel": "depthwise_weights",
    "pointwise_kernel": "pointwise_weights",
    "bias": "biases",
}


def _convolution(
    inputs: Any,
    num_outputs: int,
    kernel_size: Any,
    stride: Any = 1,
    padding: str = "SAME",
    data_format: str | None = None,
    rate: Any = 1,
    activation_fn: Function | None = tf.nn.relu,
    normalizer_fn: Function | None = None,
    normalizer_params: Mapping[str, Any] | None = None,
    weights_initializer: Any = xavier_initializer(),  # noqa: B008
    weights_regularizer: Function | None = None,
    biases_initializer: Any = ZEROS,
    biases_regularizer: Function | None = None,
    reuse: Any = None,
    variables_collections: Any = None,
    outputs_collections: Any = None,
    trainable: bool = True,
    scope: Any = None,
    conv_dims: int | None = None,
) -> Any:
    """Convolution, then biases or a normalizer, then the activation.

    Args:
        inputs: shape `(batch, ..., channels)`, or `(batch, channels, ...)`; one to three dimensions between.
        num_outputs: channels of the output.
        kernel_size, stride, rate: an integer, or one a dimension. A rate above 1 spreads the kernel; then the stride
            must be 1.
        padding: `"SAME"` or `"VALID"`.
        data_format: `"NC..."` for the channels at 1. The normalizer is not told; give it in `normalizer_params`.
        normalizer_fn, ..., outputs_collections: as for `fully_connected`.
        scope: of the variables; `Conv`, made unique, by default.
        conv_dims: dimensions that the input must have besides batch and channels.

    Raises:
        ValueError: an unknown `data_format`, or an input of another rank.

    Example:
        >>> with tf.Graph().as_default():
        ...     y = conv2d(tf.ones([8, 4, 4, 3]), 5, [3, 3], stride=2)
        ...     y.shape.as_list(), [variable.op.name for variable in tf.compat.v1.model_variables()]
        ([8, 2, 2, 5], ['Conv/weights', 'Conv/biases'])
    """
    if data_format not in _FORMATS:
        raise ValueError(f"Invalid data_format: {data_format!r}; give one of {', '.join(map(repr, _FORMATS))}")
    inputs = tf.convert_to_tensor(inputs)
    rank = inputs.shape.rank
    if conv_dims is not None and rank != conv_dims + 2:
        raise ValueError(f"Convolution expects input with rank {conv_dims + 2}, got {rank}")
    if rank is None or rank - 2 not in _CLASSES:
        raise ValueError(f"Convolution not supported for input with rank {rank}; give 3, 4 or 5 dimensions")
    return weighted(
        _CLASSES[rank - 2],
        inputs,
        "Conv",
        {
            "filters": num_outputs,
            "kernel_size": kernel_size,
            "strides": stride,
            "padding": padding,
            "data_format": "channels_first" if (data_format or "").startswith("NC") else "channels_last",
            "dilation_rate": rate,
            "kernel_initializer": weights_initializer,
            "kernel_regularizer": weights_regularizer,
        },
        activation_fn=activation_fn,
        normalizer_fn=normalizer_fn,
        normalizer_params=normalizer_params,
        biases_initializer=biases_initializer,
        biases_regularizer=biases_regularizer,
        reuse=reuse,
        variables_collections=variables_collections,
        outputs_collections=outputs_collections,
        trainable=trainable,
        scope=scope,
    )


def _of_dimensions(conv_dims: int) -> Function:
    """`convolution` of inputs with this many dimensions besides batch and channels; `arg_scope` knows it apart."""

    @functools.wraps(_convolution)
    def function(*args: Any, **kwargs: Any) -> Any:
        return _convolution(*args, **{**kwargs, "conv_dims": conv_dims})

    signature = inspect.signature(_convolution)
    parameters = [item for item in signature.parameters.values() if item.name != "conv_dims"]
    function.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    function.__name__ = function.__qualname__ = f"convolution{conv_dims}d"
    return add_arg_scope(function)


_convolution.__name__ = _convolution.__qualname__ = "convolution"
convolution = add_arg_scope(_convolution)
convolution1d = conv1d = _of_dimensions(1)
convolution2d = conv2d = _of_dimensions(2)
convolution3d = conv3d = _of_dimensions(3)


@add_arg_scope
def convolution2d_transpose(
    inputs: Any,
    num_outputs: int,
    kernel_size: Any,
    stride: Any = 1,
    padding: str = "SAME",
    data_format: str = "NHWC",
    activation_fn: Function | None = tf.nn.relu,
    normalizer_fn: Function | None = None,
    normalizer_params: Mapping[str, Any] | None = None,
    weights_initializer: Any = xavier_initializer(),  # noqa: B008
    weights_regularizer: Function | None = None,
    biases_initializer: Any = ZEROS,
    biases_regularizer: Function | None = None,
    reuse: Any = None,
    variables_collections: Any = None,
    outputs_collections: Any = None,
    trainable: bool = True,
    scope: Any = None,
) -> Any:
    """The transpose of `conv2d`, to make images larger; arguments as there, the default scope is `Conv2d_transpose`.

    Example:
        >>> with tf.Graph().as_default():
        ...     conv2d_transpose(tf.ones([8, 4, 4, 3]), 5, 3, stride=2).shape.as_list()
        [8, 8, 8, 5]
    """
    return weighted(
        Conv2DTranspose,
        inputs,
        "Conv2d_transpose",
        {
            "filters": num_outputs,
            "kernel_size": kernel_size,
            "strides": stride,
            "padding": padding,
            "data_format": channels_axis(data_format, IMAGES),
            "kernel_initializer": weights_initializer,
            "kernel_regularizer": weights_regularizer,
        },
        activation_fn=activation_fn,
        normalizer_fn=normalizer_fn,
        normalizer_params=normalizer_params,
        biases_initializer=biases_initializer,
        biases_regularizer=biases_regularizer,
        reuse=reuse,
        variables_collections=variables_collections,
        outputs_collections=outputs_collections,
        trainable=trainable,
        scope=scope,
    )


@add_arg_scope
def convolution3d_transpose(
    inputs: Any,
    num_outputs: int,
    kernel_size: Any,
    stride: Any = 1,
    padding: str = "SAME",
    data_format: str = "NDHWC",
    activation_fn: Function | None = tf.nn.relu,
    normalizer_fn: Function | None = None,
    normalizer_params: Mapping[str, Any] | None = None,
    weights_initializer: Any = xavier_initializer(),  # noqa: B008
    weights_regularizer: Function | None = None,
    biases_initializer: Any = ZEROS,
    biases_regularizer: Function | None = None,
    reuse: Any = None,
    variables_collections: Any = None,
    outputs_collections: Any = None,
    trainable: bool = True,
    scope: Any = None,
) -> Any:
    """The transpose of `conv3d`; arguments as there, and the default scope `Conv3d_transpose`."""
    return weighted(
        Conv3DTranspose,
        inputs,
        "Conv3d_transpose",
        {
            "filters": num_outputs,
            "kernel_size": kernel_size,
            "strides": stride,
            "padding": padding,
            "data_format": channels_axis(data_format, VOLUMES),
            "kernel_initializer": weights_initializer,
            "kernel_regularizer": weights_regularizer,
        },
        activation_fn=activation_fn,
        normalizer_fn=normalizer_fn,
        normalizer_params=normalizer_params,
        biases_initializer=biases_initializer,
        biases_regularizer=biases_regularizer,
        reuse=reuse,
        variables_collections=variables_collections,
        outputs_collections=outputs_collections,
        trainable=trainable,
        scope=scope,
    )


@add_arg_scope
def separable_convolution2d(
    inputs: Any,
    num_outputs: int | None,
    kernel_size: Any,
    depth_multiplier: int = 1,
    stride: Any = 1,
    padding: str = "SAME",
    data_format: str = "NHWC",
    rate: Any = 1,
    activation_fn: Function | None = tf.nn.relu,
    normalizer_fn: Function | None = None,
    normalizer_params: Mapping[str, Any] | None = None,
    weights_initializer: Any = xavier_initializer(),  # noqa: B008
    pointwise_initializer: Any = None,
    weights_regularizer: Function | None = None,
    biases_initializer: Any = ZEROS,
    biases_regularizer: Function | None = None,
    reuse: Any = None,
    variables_collections: Any = None,
    outputs_collections: Any = None,
    trainable: bool = True,
    scope: Any = None,
) -> Any:
    """A convolution of each channel by itself, then one across the channels.

    Args:
        num_outputs: channels of the output; None leaves the second convolution out.
        depth_multiplier: channels that the first convolution makes of each.
        weights_initializer, pointwise_initializer: of the first and of the second; the first serves both by default.
        scope: of the variables; `SeparableConv2d`, made unique, by default.

    The other arguments are those of `conv2d`.

    Example:
        >>> with tf.Graph().as_default():
        ...     y = separable_conv2d(tf.ones([8, 4, 4, 3]), 5, 3)
        ...     [variable.op.name.split("/")[1] for variable in tf.compat.v1.model_variables()]
        ['depthwise_weights', 'pointwise_weights', 'biases']
    """
    channels = channels_axis(data_format, IMAGES)
    finishing = {
        "activation_fn": activation_fn,
        "normalizer_fn": normalizer_fn,
        "normalizer_params": normalizer_params,
        "outputs_collections": outputs_collections,
    }
    if num_outputs is not None:
        return weighted(
            SeparableConv2D,
            inputs,
            "SeparableConv2d",
            {
                "filters": num_outputs,
                "kernel_size": kernel_size,
                "strides": stride,
                "padding": padding,
                "data_format": channels,
                "dilation_rate": two_element_tuple(rate),
                "depth_multiplier": depth_multiplier,
                "depthwise_initializer": weights_initializer,
                "pointwise_initializer": pointwise_initializer or weights_initializer,
                "depthwise_regularizer": weights_regularizer,
                "pointwise_regularizer": weights_regularizer,
            },
            rename=_SEPARABLE,
            biases_initializer=biases_initializer,
            biases_regularizer=biases_regularizer,
            reuse=reuse,
            variables_collections=variables_collections,
            trainable=trainable,
            scope=scope,
            **finishing,
        )
    getter = model_variable_getter(_SEPARABLE)
    with v1.variable_scope(scope, "SeparableConv2d", [inputs], reuse=reuse, custom_getter=getter) as variable_scope:
        inputs = tf.convert_to_tensor(inputs)
        count = channel_dimension(inputs.shape, channels, min_rank=4)
        weights = model_variable(
            "depthwise_weights",
            shape=[*two_element_tuple(kernel_size), count, depth_multiplier],
            dtype=inputs.dtype.base_dtype,
            initializer=weights_initializer,
            regularizer=weights_regularizer,
            trainable=trainable,
            collections=get_variable_collections(variables_collections, "weights"),
        )
        height, width = two_element_tuple(stride)
        outputs = v1.nn.depthwise_conv2d(
            inputs,
            weights,
            [1, 1, height, width] if channels == "channels_first" else [1, height, width, 1],
            padding,
            rate=two_element_tuple(rate),
            data_format=data_format,
        )
        if normalizer_fn is None and biases_initializer is not None:
            made = count * depth_multiplier
            biases = _biases(made, inputs, biases_initializer, biases_regularizer, trainable, variables_collections)
            outputs = tf.nn.bias_add(outputs, biases, data_format=data_format)
        return finish(outputs, variable_scope.name, **finishing)


@add_arg_scope
def convolution2d_in_plane(
    inputs: Any,
    kernel_size: Any,
    stride: Any = 1,
    padding: str = "SAME",
    activation_fn: Function | None = tf.nn.relu,
    normalizer_fn: Function | None = None,
    normalizer_params: Mapping[str, Any] | None = None,
    weights_initializer: Any = xavier_initializer(),  # noqa: B008
    weights_regularizer: Function | None = None,
    biases_initializer: Any = ZEROS,
    biases_regularizer: Function | None = None,
    reuse: Any = None,
    variables_collections: Any = None,
    outputs_collections: Any = None,
    trainable: bool = True,
    scope: Any = None,
) -> Any:
    """One kernel, the same for all channels, each convolved by itself; the default scope is `ConvInPlane`.

    Args:
        inputs: shape `(batch, height, width, channels)`.

    The other arguments are those of `conv2d`.

    Example:
        >>> with tf.Graph().as_default():
        ...     y = conv2d_in_plane(tf.ones([8, 4, 4, 3]), [1, 2])
        ...     [variable.shape.as_list() for variable in tf.compat.v1.model_variables()]
        [[1, 2, 1, 1], [3]]
    """
    with v1.variable_scope(scope, "ConvInPlane", [inputs], reuse=reuse) as variable_scope:
        inputs = tf.convert_to_tensor(inputs)
        count = last_dimension(inputs.shape, min_rank=4)
        weights = model_variable(
            "weights",
            shape=[*two_element_tuple(kernel_size), 1, 1],
            dtype=inputs.dtype.base_dtype,
            initializer=weights_initializer,
            regularizer=weights_regularizer,
            trainable=trainable,
            collections=get_variable_collections(variables_collections, "weights"),
        )
        strides = [1, *two_element_tuple(stride), 1]
        outputs = v1.nn.depthwise_conv2d(inputs, tf.tile(weights, [1, 1, count, 1]), strides, padding)
        if normalizer_fn is None and biases_initializer is not None:
            biases = _biases(count, inputs, biases_initializer, biases_regularizer, trainable, variables_collections)
            outputs = tf.nn.bias_add(outputs, biases)
        return finish(
            outputs,
            variable_scope.name,
            activation_fn=activation_fn,
            normalizer_fn=normalizer_fn,
            normalizer_params=normalizer_params,
            outputs_collections=outputs_collections,
        )


def _biases(count: int, inputs: Any, initializer: Any, regularizer: Any, trainable: bool, collections: Any) -> Any:
    return model_variable(
        "biases",
        shape=[count],
        dtype=inputs.dtype.base_dtype,
        initializer=initializer,
        regularizer=regularizer,
        trainable=trainable,
        collections=get_variable_collections(collections, "biases"),
    )


conv2d_in_plane = convolution2d_in_plane
conv2d_transpose = convolution2d_transpose
conv3d_transpose = convolution3d_transpose
separable_conv2d = separable_convolution2d
