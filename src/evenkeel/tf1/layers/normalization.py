# SPDX-License-Identifier: Apache-2.0
"""`tf.layers.batch_normalization`: a step of `functional`, its state in variables, its updates in a collection."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from evenkeel.functional.layout import Layout
from evenkeel.tf1 import steps
from evenkeel.tf1.layers.base import InputSpec, Layer
from evenkeel.tf1.normalizer import Normalizer

v1 = tf.compat.v1

_CLIPPING_KEYS = ["rmax", "rmin", "dmax"]


class BatchNormalization(Normalizer, Layer):
    """Batch normalization of `tf.layers` in TensorFlow 1.15, with its names, its collections and its numbers.

    Two update operations a call go to UPDATE_OPS; run them with the training step:

        update_ops = tf.get_collection(tf.GraphKeys.UPDATE_OPS)
        with tf.control_dependencies(update_ops):
            train_op = optimizer.minimize(loss)

    Unlike there, a batch that is not finite, is empty or has one value a channel leaves the moving statistics alone,
    and `axis=1` works on the CPU.

    Args:
        axis: of the channels, or a list of them.
        momentum: share of the old average that is kept; a number or a tensor.
        epsilon: added to the variance; at least 1.001e-5 where `fused` serves, as cuDNN has it.
        center, scale: have beta, have gamma.
        beta_initializer, gamma_initializer, moving_mean_initializer, moving_variance_initializer: of the variables.
        beta_regularizer, gamma_regularizer: functions of the variable that give a loss.
        beta_constraint, gamma_constraint: functions that the optimizer applies after its update.
        renorm: batch renormalization.
        renorm_clipping: its limits `rmin`, `rmax`, `dmax`, numbers or scalar tensors.
        renorm_momentum: share of the old renorm statistics that is kept.
        fused: None or True keeps the sample variance (n - 1) for four dimensions with the channels at 1 or 3, unless
            renorm, virtual batches or an adjustment are asked for; otherwise the population's is kept.
        trainable: gamma and beta go to TRAINABLE_VARIABLES, and there are updates.
        virtual_batch_size: example i is normalized with group i mod (batch / virtual_batch_size); must divide
            the batch.
        adjustment: a function of the shape tensor of the input that gives a scale and an offset, in training.
        name: of the variable scope, made unique.
        dtype: of the variables; float32 for 16-bit inputs.

    Attributes: gamma, beta, moving_mean, moving_variance; with renorm moving_stddev, renorm_mean, renorm_stddev.

    Example:
        >>> with tf.Graph().as_default() as graph, tf.compat.v1.Session() as session:
        ...     layer = BatchNormalization(momentum=0.5, epsilon=0.0)
        ...     y = layer(tf.constant([[1.0], [3.0]]), training=True)
        ...     session.run(tf.compat.v1.global_variables_initializer())
        ...     _ = session.run(tf.compat.v1.get_collection("update_ops"))
        ...     session.run([y, layer.moving_mean, layer.moving_variance])
        [array([[-1.], [ 1.]], dtype=float32), array([1.], dtype=float32), array([1.], dtype=float32)]

    References:
        Ioffe and Szegedy 2015, Batch Normalization; Ioffe 2017, Batch Renormalization. tf.layers of TensorFlow 1.15.
    """

    def __init__(
        self,
        axis: int | list[int] = -1,
        momentum: Any = 0.99,
        epsilon: float = 1e-3,
        center: bool = True,
        scale: bool = True,
        beta_initializer: Any = None,
        gamma_initializer: Any = None,
        moving_mean_initializer: Any = None,
        moving_variance_initializer: Any = None,
        beta_regularizer: Any = None,
        gamma_regularizer: Any = None,
        beta_constraint: Any = None,
        gamma_constraint: Any = None,
        renorm: bool = False,
        renorm_clipping: dict[str, Any] | None = None,
        renorm_momentum: float = 0.99,
        fused: bool | None = None,
        trainable: bool = True,
        virtual_batch_size: int | None = None,
        adjustment: Callable[[Any], tuple[Any, Any]] | None = None,
        name: Any = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(trainable=trainable, name=name, **kwargs)
        if isinstance(axis, bool) or not isinstance(axis, int | list):
            raise TypeError(f"axis must be int or list, type given: {type(axis)}")
        self.axis = list(axis) if isinstance(axis, list) else axis
        self.momentum = momentum
        self.epsilon = epsilon
        self.center = center
        self.scale = scale
        self.beta_initializer = beta_initializer or v1.zeros_initializer()
        self.gamma_initializer = gamma_initializer or v1.ones_initializer()
        self.moving_mean_initializer = moving_mean_initializer or v1.zeros_initializer()
        self.moving_variance_initializer = moving_variance_initializer or v1.ones_initializer()
        self.beta_regularizer = beta_regularizer
        self.gamma_regularizer = gamma_regularizer
        self.beta_constraint = beta_constraint
        self.gamma_constraint = gamma_constraint
        self.renorm = renorm
        self.renorm_clipping = dict(renorm_clipping or {})
        if renorm and not set(self.renorm_clipping) <= set(_CLIPPING_KEYS):
            raise ValueError(f"renorm_clipping {renorm_clipping} contains keys not in {_CLIPPING_KEYS}")
        self.renorm_momentum = renorm_momentum
        self.fused = True if fused is None else fused
        self.virtual_batch_size = virtual_batch_size
        self.adjustment = adjustment
        self.gamma = self.beta = self.moving_mean = self.moving_variance = None
        self.moving_stddev = self.renorm_mean = self.renorm_stddev = None

    def build(self, input_shape: Any) -> None:
        input_shape = self.begin_build(input_shape)
        if not input_shape.rank:
            raise ValueError("Input has undefined rank:", input_shape)
        sizes = input_shape.as_list()
        channels = self._channels(len(sizes))
        self.axis = channels
        if None in (sizes[axis] for axis in channels):
            raise ValueError("Input has undefined `axis` dimension. Input shape: ", input_shape)
        self._check_virtual_batches(channels)
        self.fused = bool(self.fused) and self.can_be_fused(len(sizes), channels)
        if self.fused or self.renorm:
            steps.check_fused_type(self._dtype, "give fused=False and renorm=False for float64")
        self.input_spec = InputSpec(ndim=len(sizes), axes={axis: sizes[axis] for axis in channels})
        shape = list(Layout.of(len(sizes), channels).parameter_shape(tuple(sizes)))
        if self.virtual_batch_size is not None:
            # As 1.15 stores them: with the dimension of the groups, even for one axis.
            full = [size if axis in channels else 1 for axis, size in enumerate(sizes)]
            shape = [full[0], 1, *full[1:]]
        dtype = "float32" if self._dtype in ("float16", "bfloat16") else self._dtype

        def variable(name: str, initializer: Any, **options: Any) -> Any:
            return self.add_weight(name, shape, dtype=dtype, initializer=initializer, **options)

        if self.scale:
            self.gamma = variable(
                "gamma", self.gamma_initializer, regularizer=self.gamma_regularizer, constraint=self.gamma_constraint
            )
        if self.center:
            self.beta = variable(
                "beta", self.beta_initializer, regularizer=self.beta_regularizer, constraint=self.beta_constraint
            )
        with steps.unpartitioned(self._scope):

            def statistic(name: str, initializer: Any) -> Any:
                return variable(
                    name,
                    initializer,
                    trainable=False,
                    synchronization=tf.VariableSynchronization.ON_READ,
                    aggregation=tf.VariableAggregation.MEAN,
                )

            self.moving_mean = statistic("moving_mean", self.moving_mean_initializer)
            self.moving_variance = statistic("moving_variance", self.moving_variance_initializer)
            if self.renorm:

                def deviation(shape: Any, dtype: Any = None, partition_info: Any = None) -> Any:
                    return tf.sqrt(self.moving_variance_initializer(shape, dtype=dtype))

                self.moving_stddev = statistic("moving_stddev", deviation)
                self.renorm_mean = statistic("renorm_mean", self.moving_mean_initializer)
                self.renorm_stddev = statistic("renorm_stddev", deviation)
        self.built = True

    def call(self, inputs: Any, training: Any = False) -> Any:
        """
        Args:
            inputs: floating point, shape `(batch, ..., channels, ...)`.
            training: normalize with the statistics of the batch; a bool, or a bool tensor. None asks a placeholder
                `keras_learning_phase`, False unless fed.

        Returns:
            Shape and type of `inputs`.
        """
        y, updates = self.normalized(inputs, steps.phase(training), self._channels(inputs.shape.rank))
        if self.trainable:
            self.add_update(updates, inputs=True)
        return y

    def _channels(self, ndim: int) -> list[int]:
        given = self.axis if isinstance(self.axis, list) else [self.axis]
        channels = [axis + ndim if axis < 0 else axis for axis in given]
        for axis in channels:
            if not 0 <= axis < ndim:
                raise ValueError(f"Invalid axis: {axis}")
        if not channels or len(set(channels)) < len(channels):
            raise ValueError(f"Duplicate axis: {channels}" if channels else "axis is an empty list; give an axis")
        return channels

    def _check_virtual_batches(self, channels: list[int]) -> None:
        if self.virtual_batch_size is None:
            return
        if self.virtual_batch_size <= 0:
            raise ValueError(
                f"virtual_batch_size must be a positive integer that divides the true batch size of the input tensor, "
                f"not {self.virtual_batch_size}"
            )
        if 0 in channels:
            raise ValueError(
                f"When using virtual_batch_size, the batch dimension must be 0 and thus axis cannot include 0, got "
                f"axis={channels}"
            )
        if self.adjustment is not None:
            raise ValueError("When using virtual_batch_size, adjustment cannot be specified; give one of the two")


def batch_normalization(
    inputs: Any,
    axis: int | list[int] = -1,
    momentum: Any = 0.99,
    epsilon: float = 1e-3,
    center: bool = True,
    scale: bool = True,
    beta_initializer: Any = None,
    gamma_initializer: Any = None,
    moving_mean_initializer: Any = None,
    moving_variance_initializer: Any = None,
    beta_regularizer: Any = None,
    gamma_regularizer: Any = None,
    beta_constraint: Any = None,
    gamma_constraint: Any = None,
    training: Any = False,
    trainable: bool = True,
    name: Any = None,
    reuse: Any = None,
    renorm: bool = False,
    renorm_clipping: dict[str, Any] | None = None,
    renorm_momentum: float = 0.99,
    fused: bool | None = None,
    virtual_batch_size: int | None = None,
    adjustment: Callable[[Any], tuple[Any, Any]] | None = None,
) -> Any:
    """`BatchNormalization` as a function; its arguments, and those of its call.

    Args:
        name: of the variable scope, as it is; made from the default name, and unique, if None.
        reuse: use the variables that are there under that name.

    Raises:
        ValueError: a name used before without reuse, reuse of what is not there, an axis or shape that cannot be.

    Example:
        >>> with tf.Graph().as_default():
        ...     y = batch_normalization(tf.ones([8, 3]), training=True, name="bn")
        ...     len(tf.compat.v1.get_collection("update_ops")), y.name
        (2, 'bn/batchnorm/add_1:0')
    """
    layer = BatchNormalization(
        axis=axis,
        momentum=momentum,
        epsilon=epsilon,
        center=center,
        scale=scale,
        beta_initializer=beta_initializer,
        gamma_initializer=gamma_initializer,
        moving_mean_initializer=moving_mean_initializer,
        moving_variance_initializer=moving_variance_initializer,
        beta_regularizer=beta_regularizer,
        gamma_regularizer=gamma_regularizer,
        beta_constraint=beta_constraint,
        gamma_constraint=gamma_constraint,
        renorm=renorm,
        renorm_clipping=renorm_clipping,
        renorm_momentum=renorm_momentum,
        fused=fused,
        trainable=trainable,
        virtual_batch_size=virtual_batch_size,
        adjustment=adjustment,
        name=name,
        _reuse=reuse,
        _scope=name,
    )
    return layer.apply(inputs, training=training)


BatchNorm = BatchNormalization
batch_norm = batch_normalization
