# SPDX-License-Identifier: Apache-2.0
"""Keras's batch normalization of TensorFlow 1.15: tf_keras's arguments, variables and files, our numbers."""

from __future__ import annotations

from typing import Any

import tensorflow as tf
import tf_keras
from tf_keras.api._v1 import keras

from evenkeel.tf1 import steps
from evenkeel.tf1.graph import after, can_be_run
from evenkeel.tf1.normalizer import Normalizer

v1 = tf.compat.v1


def called_in(graph: Any) -> list[Any]:
    """The layers that were called in a graph; a collection would be saved with it."""
    if not hasattr(graph, "evenkeel_keras_normalizers"):
        graph.evenkeel_keras_normalizers = []
    return graph.evenkeel_keras_normalizers


class _BatchNormalization(Normalizer):
    """What both versions do."""

    axis: Any
    trainable: bool

    def build(self, input_shape: Any) -> None:
        shape = tf.TensorShape(input_shape)
        if shape.rank is not None:
            given = [self.axis] if isinstance(self.axis, int) else list(self.axis)
            self.decide_fused(shape.rank, [axis + shape.rank if axis < 0 else axis for axis in given])
        super().build(input_shape)  # type: ignore[misc]

    def call(self, inputs: Any, training: Any = None) -> Any:
        """
        Args:
            inputs: floating point, `(batch, ..., channels, ...)`.
            training: normalize with the statistics of the batch; a bool, or a bool tensor. None asks
                `tf.keras.backend.learning_phase()`.

        Returns:
            Shape of `inputs`, in the layer's type of computation.
        """
        return self.normalized_with_phase(inputs, training)

    @tf.autograph.experimental.do_not_convert  # Keras has AutoGraph rewrite `call`, and all that it calls.
    def normalized_with_phase(self, inputs: Any, training: Any) -> Any:
        inputs = tf.cast(inputs, self.compute_dtype)  # type: ignore[attr-defined]
        # tf_keras counts the dimension of the groups in.
        channels = [axis - (self.virtual_batch_size is not None) for axis in self.axis]
        y, updates = self.normalized(inputs, steps.phase(self.phase(training)), channels)
        if v1.executing_eagerly_outside_functions():
            return y  # The updates have run, or tf.function runs them.
        if not can_be_run(getattr(update, "op", update) for update in updates):
            # Nobody could run them from `layer.updates`, so the output takes them along.
            return after(updates, y) if self.trainable else y
        self.add_update(updates)  # type: ignore[attr-defined]
        called_in(v1.get_default_graph()).append(self)
        return y

    def updates_to(self, *arguments: Any) -> list[Any]:
        # What is made eagerly, or in a function, runs, whatever `layer.updates` says of a frozen layer.
        at_once = v1.executing_eagerly_outside_functions() or v1.get_default_graph().building_function
        return super().updates_to(*arguments) if self.trainable or not at_once else []

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Any:
        """The layer of a configuration; with virtual batches, that of a built layer counts their dimension in."""
        if config.get("virtual_batch_size") is not None and not isinstance(config["axis"], int):
            config = {**config, "axis": [axis - 1 for axis in config["axis"]]}
        return super().from_config(config)  # type: ignore[misc]

    def decide_fused(self, ndim: int, channels: list[int]) -> None:
        raise NotImplementedError

    def phase(self, training: Any) -> Any:
        return keras.backend.learning_phase() if training is None else training


class BatchNormalization(_BatchNormalization, keras.layers.BatchNormalization):
    """`tf.keras.layers.BatchNormalization` of TensorFlow 1.15.

    Its updates are in `layer.updates` and `model.updates`, not in a collection; `fit` runs them, and beside an
    optimizer of TensorFlow they go before the minimize:

        with tf.control_dependencies(model.updates):
            train_op = tf.train.AdamOptimizer().minimize(loss)

    `trainable=False` stops the updates, not the use of the batch's statistics; call with `training=False` for that. A
    batch that is not finite, is empty or has one value a channel leaves the moving statistics alone. A mask is passed
    on, and counts for nothing here.

    Args:
        axis, momentum, epsilon, center, scale, initializers, regularizers, constraints, renorm, renorm_clipping,
            renorm_momentum, fused, trainable, virtual_batch_size, adjustment: as for `tf.layers.BatchNormalization`;
            initializers and their like also by name.
        name: of the layer, and of its variables.
        dtype: of the input; variables are float32 for 16-bit ones.

    Attributes: gamma, beta, moving_mean, moving_variance, which is also the order of `get_weights`.

    Example:
        >>> import evenkeel.tf1 as tf
        >>> with tf.Graph().as_default(), tf.Session() as session:
        ...     layer = BatchNormalization(momentum=0.5, epsilon=0.0)
        ...     y = layer(tf.constant([[1.0], [3.0]]))
        ...     session.run(tf.global_variables_initializer())
        ...     _ = session.run(layer.updates, {tf.keras.backend.learning_phase(): True})
        ...     session.run([layer.moving_mean, layer.moving_variance])
        [array([1.], dtype=float32), array([1.], dtype=float32)]

    References:
        tf.keras of TensorFlow 1.15.
    """

    def decide_fused(self, ndim: int, channels: list[int]) -> None:
        self.fused = bool(self.fused) and self.can_be_fused(ndim, channels)
        if self.fused or self.renorm:
            steps.check_fused_type(self.dtype or "float32", "give fused=False and renorm=False for float64")


class BatchNormalizationV2(_BatchNormalization, tf_keras.layers.BatchNormalization):
    """`tf.compat.v2.keras.layers.BatchNormalization` of TensorFlow 1.15: as the other, in graphs and eagerly.

    A layer with `trainable=False` is in inference mode; `fused=True` is an error where there is no fused operation.

    Raises:
        ValueError: `fused=True` and another number of dimensions than four.
    """

    def decide_fused(self, ndim: int, channels: list[int]) -> None:
        if self.fused and ndim != 4:
            raise ValueError(
                f"Batch normalization layers with fused=True only support 4D input tensors, not {ndim} dimensions; "
                "give fused=None"
            )
        if self.fused is None:
            self.fused = self.can_be_fused(ndim, channels)

    def phase(self, training: Any) -> Any:
        return super().phase(training) if self.trainable else False


BatchNormalizationV2.__name__ = "BatchNormalization"  # as files have it


class _Stored:
    """What files mean by BatchNormalization: as in 1.15, the version of TensorFlow's own behaviour."""

    @staticmethod
    def from_config(config: dict[str, Any]) -> Any:
        version = BatchNormalizationV2 if v1.executing_eagerly_outside_functions() else BatchNormalization
        return version.from_config(config)


keras.utils.get_custom_objects().update(
    BatchNormalization=_Stored,
    BatchNormalizationV1=BatchNormalization,  # TensorFlow 1.13 and 1.14 wrote the names of their classes.
    BatchNormalizationV2=BatchNormalizationV2,
)
