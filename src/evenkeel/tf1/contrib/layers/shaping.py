# SPDX-License-Identifier: Apache-2.0
"""Layers without weights of their own, or with biases alone: flatten, dropout, softmax and the like."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from evenkeel.tf1.contrib.framework.scopes import add_arg_scope
from evenkeel.tf1.contrib.framework.variables import model_variable
from evenkeel.tf1.contrib.layers.utils import (
    channel_dimension,
    collect_named_outputs,
    get_variable_collections,
    last_dimension,
)
from evenkeel.tf1.contrib.layers.weighted import IMAGES, ZEROS, channels_axis, finish, model_variable_getter
from evenkeel.tf1.layers.core import Dropout, Flatten

v1 = tf.compat.v1


@add_arg_scope
def bias_add(
    inputs: Any,
    activation_fn: Callable[[Any], Any] | None = None,
    initializer: Any = ZEROS,
    regularizer: Callable[[Any], Any] | None = None,
    reuse: Any = None,
    variables_collections: Any = None,
    outputs_collections: Any = None,
    trainable: bool = True,
    data_format: str = "NHWC",
    scope: Any = None,
) -> Any:
    """`activation_fn(inputs + biases)`; the default scope is `BiasAdd`.

    Args:
        inputs: shape `(batch, ..., channels)`; for `"NCHW"` `(batch, channels, height, width)`.

    Raises:
        ValueError: another `data_format`, an unknown number of channels, `"NCHW"` for other than four dimensions.
    """
    axis = channels_axis(data_format, IMAGES)
    with v1.variable_scope(scope, "BiasAdd", [inputs], reuse=reuse) as variable_scope:
        inputs = tf.convert_to_tensor(inputs)
        rank = inputs.shape.rank
        if rank is None:
            raise ValueError(f"Dims of shape must be known but is None: {inputs}")
        if rank != 4 and data_format == "NCHW":
            raise ValueError(f"Data format NCHW only supports 4D Tensor; got {rank} dimensions")
        biases = model_variable(
            "biases",
            shape=[channel_dimension(inputs.shape, axis)],
            dtype=inputs.dtype.base_dtype,
            initializer=initializer,
            regularizer=regularizer,
            trainable=trainable,
            collections=get_variable_collections(variables_collections, "biases"),
        )
        outputs = tf.nn.bias_add(inputs, biases, data_format=data_format if rank == 4 else None)
        return finish(
            outputs, variable_scope.name, activation_fn=activation_fn, outputs_collections=outputs_collections
        )


@add_arg_scope
def dropout(
    inputs: Any,
    keep_prob: Any = 0.5,
    noise_shape: Any = None,
    is_training: Any = True,
    outputs_collections: Any = None,
    scope: Any = None,
    seed: int | None = None,
) -> Any:
    """In training, keeps a share of the input, divided by that share, and sets the rest to 0.

    Args:
        keep_prob: the share that is kept; a number or a scalar tensor.
        noise_shape: of the choice between keeping and dropping, broadcast to the input.
        is_training: a bool, or a bool tensor.
        scope: `Dropout`, made unique, by default.

    Example:
        >>> with tf.Graph().as_default(), v1.Session():
        ...     dropout(tf.ones([2]), keep_prob=0.5, is_training=False).eval()
        array([1., 1.], dtype=float32)
    """
    with v1.variable_scope(scope, "Dropout", [inputs], custom_getter=model_variable_getter()) as variable_scope:
        inputs = tf.convert_to_tensor(inputs)
        layer = Dropout(
            rate=1 - keep_prob, noise_shape=noise_shape, seed=seed, name=variable_scope.name, _scope=variable_scope
        )
        outputs = layer(inputs, training=is_training)
        return collect_named_outputs(outputs_collections, variable_scope.name, outputs)


@add_arg_scope
def flatten(inputs: Any, outputs_collections: Any = None, scope: str | None = None) -> Any:
    """All dimensions but that of the batch in one; the default scope is `Flatten`.

    Example:
        >>> with tf.Graph().as_default():
        ...     flatten(v1.placeholder(tf.float32, [None, 4, 4, 3])).shape.as_list()
        [None, 48]
    """
    with v1.name_scope(scope, "Flatten", [inputs]) as name:
        return collect_named_outputs(outputs_collections, name, Flatten()(tf.convert_to_tensor(inputs)))


@add_arg_scope
def maxout(inputs: Any, num_units: int, axis: int = -1, scope: str | None = None) -> Any:
    """The maxima of groups of channels; the default scope is `MaxOut`.

    Args:
        num_units: channels of the output; must divide those of the input.

    Raises:
        ValueError: it does not.
    """
    with v1.name_scope(scope, "MaxOut", [inputs]):
        inputs = tf.convert_to_tensor(inputs)
        sizes = inputs.shape.as_list()
        channels = sizes[axis]
        if channels is None or channels % num_units:
            raise ValueError(f"number of features({channels}) is not a multiple of num_units({num_units})")
        dynamic = tf.shape(inputs)
        shape = [dynamic[i] if size is None else size for i, size in enumerate(sizes)]
        shape[axis] = num_units
        # As 1.15 has it: the groups lie in a new last dimension, whatever the axis.
        outputs = tf.reduce_max(tf.reshape(inputs, [*shape, channels // num_units]), axis=-1)
        sizes[axis] = num_units
        outputs.set_shape(sizes)
        return outputs


@add_arg_scope
def one_hot_encoding(
    labels: Any,
    num_classes: int,
    on_value: float = 1.0,
    off_value: float = 0.0,
    outputs_collections: Any = None,
    scope: str | None = None,
) -> Any:
    """Class `i` as a row of `num_classes` values with `on_value` at `i`; the default scope is `OneHotEncoding`.

    Example:
        >>> with tf.Graph().as_default(), v1.Session():
        ...     one_hot_encoding([1, 0], 3).eval().tolist()
        [[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]
    """
    with v1.name_scope(scope, "OneHotEncoding", [labels, num_classes]) as name:
        labels = tf.convert_to_tensor(labels)
        labels = tf.cast(labels, tf.int64) if labels.dtype == tf.int32 else labels
        outputs = tf.one_hot(labels, num_classes, on_value=on_value, off_value=off_value)
        return collect_named_outputs(outputs_collections, name, outputs)


@add_arg_scope
def softmax(logits: Any, scope: Any = None) -> Any:
    """Softmax over the last axis of an input of any rank; the default scope is `softmax`."""
    with v1.variable_scope(scope, "softmax", [logits]):
        classes = last_dimension(logits.shape, min_rank=2)
        outputs = tf.reshape(tf.nn.softmax(tf.reshape(logits, [-1, classes])), tf.shape(logits))
        outputs.set_shape(logits.shape)
        return outputs


@add_arg_scope
def unit_norm(inputs: Any, dim: int, epsilon: float = 1e-7, scope: Any = None) -> Any:
    """`inputs / sqrt(epsilon + sum of squares along dim)`; the default scope is `UnitNorm`.

    Raises:
        ValueError: the rank is unknown, or `dim` is not one of 0 to rank - 1.
    """
    with v1.variable_scope(scope, "UnitNorm", [inputs]):
        rank = inputs.shape.rank
        if not rank:
            raise ValueError(f"The input rank must be known, and at least 1; got {rank}")
        if not 0 <= dim < rank:
            raise ValueError(f"dim must be positive but smaller than the input rank; got {dim} for rank {rank}")
        return inputs / tf.sqrt(epsilon + tf.reduce_sum(tf.square(inputs), axis=dim, keepdims=True))
