# SPDX-License-Identifier: Apache-2.0
"""`tf.layers.dense`, `dropout` and `flatten`: layers that know nothing of images."""

from __future__ import annotations

import math
from typing import Any

import tensorflow as tf

from evenkeel.tf1 import steps
from evenkeel.tf1.layers import arguments, layout
from evenkeel.tf1.layers.base import InputSpec, Layer
from evenkeel.tf1.layers.functions import function_of

v1 = tf.compat.v1


class Dense(Layer):
    """`activation(inputs @ kernel + bias)` over the last axis.

    Args:
        units: size of the last axis of the output.
        activation: a function, or its name such as `"relu"`; None for none.
        use_bias: have a bias.
        kernel_initializer, bias_initializer: of the variables, or a name such as `"he_normal"`; None is for the
            variable scope to decide.
        kernel_regularizer, bias_regularizer, activity_regularizer: functions of the variable, or of the output, that
            give a loss.
        kernel_constraint, bias_constraint: functions that the optimizer applies after its update.
        trainable: the variables go to TRAINABLE_VARIABLES.
        name: of the variable scope, made unique.
        options: `dtype`, of the variables.

    Attributes: kernel, shape `(channels, units)`; bias, shape `(units,)` or None.

    Example:
        >>> with tf.Graph().as_default():
        ...     layer = Dense(10, activation="relu")
        ...     layer(tf.ones([8, 5, 3])).shape.as_list(), [variable.name for variable in layer.variables]
        ([8, 5, 10], ['dense/kernel:0', 'dense/bias:0'])
    """

    def __init__(
        self,
        units: Any,
        activation: Any = None,
        use_bias: bool = True,
        kernel_initializer: Any = None,
        bias_initializer: Any = arguments.ZEROS,
        kernel_regularizer: Any = None,
        bias_regularizer: Any = None,
        activity_regularizer: Any = None,
        kernel_constraint: Any = None,
        bias_constraint: Any = None,
        trainable: bool = True,
        name: Any = None,
        **options: Any,
    ) -> None:
        super().__init__(trainable=trainable, name=name, activity_regularizer=activity_regularizer, **options)
        self.units = int(units)
        self.activation = arguments.activation(activation)
        self.use_bias = use_bias
        self.kernel_initializer = arguments.initializer(kernel_initializer)
        self.bias_initializer = arguments.initializer(bias_initializer)
        self.kernel_regularizer = kernel_regularizer
        self.bias_regularizer = bias_regularizer
        self.kernel_constraint = kernel_constraint
        self.bias_constraint = bias_constraint
        self.kernel = self.bias = None
        self.input_spec = InputSpec(min_ndim=2)

    def build(self, input_shape: Any) -> None:
        input_shape = self.begin_build(input_shape)
        dtype = tf.as_dtype(self.dtype)
        if not (dtype.is_floating or dtype.is_complex):
            raise TypeError(
                f"Unable to build `Dense` layer with non-floating point dtype {dtype.name}; tf.cast the inputs to "
                "tf.float32"
            )
        channels = input_shape.as_list()[-1]
        if channels is None:
            raise ValueError(
                "The last dimension of the inputs to `Dense` should be defined. Found `None`; call set_shape on them"
            )
        self.input_spec = InputSpec(min_ndim=2, axes={-1: channels})
        self.kernel = self.add_weight(
            "kernel",
            [channels, self.units],
            initializer=self.kernel_initializer,
            regularizer=self.kernel_regularizer,
            constraint=self.kernel_constraint,
        )
        if self.use_bias:
            self.bias = self.add_weight(
                "bias",
                [self.units],
                initializer=self.bias_initializer,
                regularizer=self.bias_regularizer,
                constraint=self.bias_constraint,
            )
        self.built = True

    def call(self, inputs: Any) -> Any:
        """
        Args:
            inputs: shape `(batch, ..., channels)`, or a sparse tensor of two dimensions.

        Returns:
            Shape `(batch, ..., units)`.
        """
        inputs = tf.cast(inputs, self.dtype)
        kernel = tf.convert_to_tensor(self.kernel)
        rank = inputs.shape.rank
        if isinstance(inputs, tf.SparseTensor):
            outputs = tf.sparse.sparse_dense_matmul(inputs, kernel)
        elif rank == 2:
            outputs = tf.matmul(inputs, kernel)
        else:
            outputs = tf.tensordot(inputs, kernel, [[rank - 1], [0]])
        if self.bias is not None:
            outputs = tf.nn.bias_add(outputs, tf.convert_to_tensor(self.bias))
        return outputs if self.activation is None else self.activation(outputs)


class Dropout(Layer):
    """In training, sets a random share `rate` of the input to 0 and divides the rest by `1 - rate`.

    Args:
        rate: from 0 up to but not 1; a number or a scalar tensor.
        noise_shape: of the choice between keeping and dropping, broadcast to the input; None in it is the size of the
            input there. `(None, 1, 5)` drops the same in all steps of `(batch, steps, 5)`.
        seed: of the random numbers, with that of the graph.
        name: of the layer.

    Raises:
        ValueError: when called, a rate outside; an input in training that is not floating point.

    Example:
        >>> with tf.Graph().as_default(), tf.compat.v1.Session():
        ...     Dropout(0.5)(tf.ones([2])).eval()
        array([1., 1.], dtype=float32)
    """

    def __init__(
        self, rate: Any = 0.5, noise_shape: Any = None, seed: int | None = None, name: Any = None, **options: Any
    ) -> None:
        super().__init__(name=name, **options)
        self.rate = rate
        self.noise_shape = noise_shape
        self.seed = seed

    def call(self, inputs: Any, training: Any = False) -> Any:
        """
        Args:
            inputs: floating point.
            training: drop; a bool, or a bool tensor.
        """

        def dropped() -> Any:
            return tf.nn.dropout(inputs, rate=self.rate, noise_shape=self._noise_shape(inputs), seed=self.seed)

        training = steps.phase(training)
        if isinstance(training, bool):
            return dropped() if training else tf.identity(inputs)
        return v1.cond(training, dropped, lambda: tf.identity(inputs))

    def _noise_shape(self, inputs: Any) -> Any:
        if self.noise_shape is None or tf.is_tensor(self.noise_shape):
            return self.noise_shape
        shape = tf.shape(inputs)
        return tf.stack([shape[axis] if size is None else size for axis, size in enumerate(self.noise_shape)])


class Flatten(Layer):
    """All dimensions but that of the batch in one.

    Args:
        data_format: `"channels_first"` puts the channels last before.
        options: `name`, of the layer.

    Example:
        >>> with tf.Graph().as_default():
        ...     Flatten()(tf.compat.v1.placeholder(tf.float32, [None, 4, 4, 3])).shape.as_list()
        [None, 48]
    """

    def __init__(self, data_format: str | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.data_format = layout.data_format(data_format)
        self.input_spec = InputSpec(min_ndim=1)

    def call(self, inputs: Any) -> Any:
        """
        Args:
            inputs: shape `(batch, ...)`.

        Returns:
            Shape `(batch, product of the rest)`; 1 where there is no rest.
        """
        if self.data_format == "channels_first" and inputs.shape.rank > 1:
            inputs = layout.channels_last(inputs)
        batch, *rest = inputs.shape.as_list()
        outputs = tf.reshape(inputs, [tf.shape(inputs)[0], -1 if None in rest else math.prod(rest)])
        outputs.set_shape([batch, None])
        return outputs


dense = function_of(Dense)


def dropout(
    inputs: Any,
    rate: Any = 0.5,
    noise_shape: Any = None,
    seed: int | None = None,
    training: Any = False,
    name: Any = None,
) -> Any:
    """`Dropout` as a function; its arguments, and those of its call.

    Example:
        >>> with tf.Graph().as_default():
        ...     dropout(tf.ones([8, 3]), rate=0.1, training=True).op.name.split("/")[0]
        'dropout'
    """
    return Dropout(rate, noise_shape=noise_shape, seed=seed, name=name)(inputs, training=training)


def flatten(inputs: Any, name: Any = None, data_format: str = "channels_last") -> Any:
    """`Flatten` as a function.

    Example:
        >>> with tf.Graph().as_default():
        ...     flatten(tf.ones([8, 2, 3])).shape.as_list()
        [8, 6]
    """
    return Flatten(data_format=data_format, name=name)(inputs)


FullyConnected = Dense
fully_connected = dense
