# SPDX-License-Identifier: Apache-2.0
"""Normalizers of each example by itself: over the layer, over the image, over groups of channels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tensorflow as tf

from evenkeel.tf1.contrib.framework.scopes import add_arg_scope
from evenkeel.tf1.contrib.framework.variables import model_variable
from evenkeel.tf1.contrib.layers.utils import get_variable_collections
from evenkeel.tf1.contrib.layers.weighted import IMAGES, channels_axis, finish

v1 = tf.compat.v1

_INITIALIZERS = {"beta": v1.zeros_initializer(), "gamma": v1.ones_initializer()}


@add_arg_scope
def layer_norm(
    inputs: Any,
    center: bool = True,
    scale: bool = True,
    activation_fn: Callable[[Any], Any] | None = None,
    reuse: Any = None,
    variables_collections: Any = None,
    outputs_collections: Any = None,
    trainable: bool = True,
    begin_norm_axis: int = 1,
    begin_params_axis: int = -1,
    scope: Any = None,
) -> Any:
    """Each example by the mean and variance of its values; the default scope is `LayerNorm`.

    Args:
        center, scale: have beta, have gamma.
        begin_norm_axis: the first axis that the mean and variance are taken over, to the last.
        begin_params_axis: beta and gamma have the shape of the input from this axis on.

    Raises:
        ValueError: an axis that the input does not have, or an unknown size of beta and gamma.

    Example:
        >>> with tf.Graph().as_default():
        ...     y = layer_norm(tf.ones([8, 4, 3]))
        ...     [variable.op.name for variable in v1.model_variables()]
        ['LayerNorm/beta', 'LayerNorm/gamma']

    References:
        Ba, Kiros and Hinton 2016, Layer Normalization.
    """
    with v1.variable_scope(scope, "LayerNorm", [inputs], reuse=reuse) as variable_scope:
        inputs = tf.convert_to_tensor(inputs)
        rank = _rank(inputs)
        begin_norm_axis += rank if begin_norm_axis < 0 else 0
        if begin_params_axis >= rank or begin_norm_axis >= rank:
            raise ValueError(
                f"begin_params_axis ({begin_params_axis}) and begin_norm_axis ({begin_norm_axis}) must be < "
                f"rank(inputs) ({rank})"
            )
        shape = inputs.shape[begin_params_axis:]
        if not shape.is_fully_defined():
            raise ValueError(
                f"Inputs {inputs.name}: shape(inputs)[{begin_params_axis}:] is not fully defined: {inputs.shape}"
            )
        beta = _parameter("beta", center, shape, inputs, None, trainable, variables_collections)
        gamma = _parameter("gamma", scale, shape, inputs, None, trainable, variables_collections)
        mean, variance = v1.nn.moments(inputs, list(range(begin_norm_axis, rank)), keepdims=True)
        # float16 has no 1e-12.
        epsilon = 1e-3 if inputs.dtype == tf.float16 else 1e-12
        outputs = tf.nn.batch_normalization(inputs, mean, variance, beta, gamma, epsilon)
        outputs.set_shape(inputs.shape)
        return finish(
            outputs, variable_scope.name, activation_fn=activation_fn, outputs_collections=outputs_collections
        )


@add_arg_scope
def instance_norm(
    inputs: Any,
    center: bool = True,
    scale: bool = True,
    epsilon: float = 1e-6,
    activation_fn: Callable[[Any], Any] | None = None,
    param_initializers: Mapping[str, Any] | None = None,
    reuse: Any = None,
    variables_collections: Any = None,
    outputs_collections: Any = None,
    trainable: bool = True,
    data_format: str = "NHWC",
    scope: Any = None,
) -> Any:
    """Each channel of each example by its own mean and variance; the default scope is `InstanceNorm`.

    Args:
        center, scale: have beta, have gamma; one value a channel.
        epsilon: added to the variance.
        param_initializers: for `"beta"`, `"gamma"`.
        data_format: `"NCHW"` for the channels at 1, `"NHWC"` for the channels last; of any rank.

    Raises:
        ValueError: another `data_format`, or an unknown number of channels.

    References:
        Ulyanov, Vedaldi and Lempitsky 2016, Instance Normalization.
    """
    channels_first = channels_axis(data_format, IMAGES) == "channels_first"
    inputs = tf.convert_to_tensor(inputs)
    rank = _rank(inputs)
    with v1.variable_scope(scope, "InstanceNorm", [inputs], reuse=reuse) as variable_scope:
        axis = 1 if channels_first else rank - 1
        shape = _channels(inputs, axis)
        beta = _parameter("beta", center, shape, inputs, param_initializers, trainable, variables_collections)
        gamma = _parameter("gamma", scale, shape, inputs, param_initializers, trainable, variables_collections)
        if channels_first:
            along = [1, *shape, *[1] * (rank - 2)]
            beta, gamma = (value if value is None else tf.reshape(value, along) for value in (beta, gamma))
        axes = [other for other in range(1, rank) if other != axis]
        mean, variance = v1.nn.moments(inputs, axes, keepdims=True)
        outputs = tf.nn.batch_normalization(inputs, mean, variance, beta, gamma, epsilon, name="instancenorm")
        outputs.set_shape(inputs.shape)
        return finish(
            outputs, variable_scope.name, activation_fn=activation_fn, outputs_collections=outputs_collections
        )


@add_arg_scope
def group_norm(
    inputs: Any,
    groups: int = 32,
    channels_axis: int = -1,
    reduction_axes: Sequence[int] = (-3, -2),
    center: bool = True,
    scale: bool = True,
    epsilon: float = 1e-6,
    activation_fn: Callable[[Any], Any] | None = None,
    param_initializers: Mapping[str, Any] | None = None,
    reuse: Any = None,
    variables_collections: Any = None,
    outputs_collections: Any = None,
    trainable: bool = True,
    scope: Any = None,
    mean_close_to_zero: bool = False,
) -> Any:
    """Groups of channels of each example by their mean and variance; the default scope is `GroupNorm`.

    Args:
        groups: number of groups; must divide the channels.
        channels_axis: of the channels.
        reduction_axes: what else the mean and variance are taken over.
        center, scale: have beta, have gamma; one value a channel.
        mean_close_to_zero: 1.15 then took a shorter way to the same numbers, which is not right far from zero; taken,
            and without effect.

    Raises:
        ValueError: groups that do not divide the channels, an unknown number of channels, a repeated axis.

    References:
        Wu and He 2018, Group Normalization.
    """
    inputs = tf.convert_to_tensor(inputs)
    rank = _rank(inputs)
    axis = channels_axis % rank
    reduced = [other % rank for other in reduction_axes]
    if axis in reduced or len(set(reduced)) < len(reduced):
        raise ValueError(f"reduction_axes {list(reduction_axes)} and channels_axis {channels_axis} must all differ")
    with v1.variable_scope(scope, "GroupNorm", [inputs], reuse=reuse) as variable_scope:
        shape = _channels(inputs, axis)
        (channels,) = shape
        if groups > channels or channels % groups:
            raise ValueError(f"Invalid groups {groups} for {channels} channels; give a number that divides them")
        beta = _parameter("beta", center, shape, inputs, param_initializers, trainable, variables_collections)
        gamma = _parameter("gamma", scale, shape, inputs, param_initializers, trainable, variables_collections)
        sizes = tf.unstack(tf.shape(inputs), rank)
        grouped = tf.reshape(inputs, tf.stack([*sizes[:axis], groups, channels // groups, *sizes[axis + 1 :]]))
        # The axes behind the channels move by one; a group's own channels are at axis + 1.
        axes = [other + (other > axis) for other in reduced] + [axis + 1]
        mean, variance = v1.nn.moments(grouped, axes, keepdims=True)
        along = [1] * (rank + 1)
        along[axis : axis + 2] = [groups, channels // groups]
        beta, gamma = (value if value is None else tf.reshape(value, along) for value in (beta, gamma))
        outputs = tf.nn.batch_normalization(grouped, mean, variance, beta, gamma, epsilon)
        outputs = tf.reshape(outputs, tf.shape(inputs))
        outputs.set_shape(inputs.shape)
        return finish(
            outputs, variable_scope.name, activation_fn=activation_fn, outputs_collections=outputs_collections
        )


def _rank(inputs: Any) -> int:
    if inputs.shape.rank is None:
        raise ValueError(f"Inputs {inputs.name} has undefined rank; use set_shape")
    return inputs.shape.rank


def _channels(inputs: Any, axis: int) -> list[int]:
    size = inputs.shape.as_list()[axis]
    if size is None:
        raise ValueError(f"Inputs {inputs.name} has undefined channels dimension (axis {axis}); use set_shape")
    return [size]


def _parameter(
    name: str, wanted: bool, shape: Any, inputs: Any, initializers: Any, trainable: bool, collections: Any
) -> Any:
    """beta or gamma as a model variable, or None."""
    if not wanted:
        return None
    return model_variable(
        name,
        shape=shape,
        dtype=inputs.dtype.base_dtype,
        initializer=(initializers or {}).get(name, _INITIALIZERS[name]),
        trainable=trainable,
        collections=get_variable_collections(collections, name),
    )
