# SPDX-License-Identifier: Apache-2.0
"""One of the processes of `tf.distribute.MultiWorkerMirroredStrategy`, which `TF_CONFIG` tells of each other."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from evenkeel.workloads.launch import place_of_tensorflow
from evenkeel.workloads.parallel.sharing import Sharing, losses, right, rows_of
from evenkeel.workloads.training import WAITING, Place

__all__ = ["Network", "gathered", "join", "lost"]

LOST = (
    tf.errors.UnavailableError,
    tf.errors.DeadlineExceededError,
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.InternalError,
)


def join() -> Place:
    _strategy()
    return place_of_tensorflow()


def gathered(value: int) -> list[int]:
    def gather() -> tf.Tensor:
        return tf.distribute.get_replica_context().all_gather(tf.constant([value], "int64"), axis=0)

    values: list[int] = _strategy().experimental_local_results(_strategy().run(tf.function(gather)))[0].numpy().tolist()
    return values


def lost(error: BaseException) -> bool:
    return isinstance(error, LOST)


@functools.cache
def _strategy() -> tf.distribute.Strategy:
    options = tf.distribute.experimental.CommunicationOptions(timeout_seconds=WAITING)
    return tf.distribute.MultiWorkerMirroredStrategy(communication_options=options)


class Network(Sharing):
    """A `Trainer` that learns with a mirrored copy of the model."""

    def epoch(self, images: np.ndarray, labels: np.ndarray, *, after_step: Callable[[], None]) -> None:
        super().epoch(images, labels, after_step=after_step)
        for own, mirrored in zip(_state(self.model), _state(self._mirrored), strict=True):
            own.assign(keras.ops.convert_to_numpy(mirrored))

    def _prepare(self) -> None:
        super()._prepare()
        model = self.model
        with _strategy().scope():
            self._mirrored = keras.models.clone_model(model)
            self._mirrored.compile(optimizer=type(model.optimizer).from_config(model.optimizer.get_config()))
            self._mirrored.optimizer.build(self._mirrored.trainable_variables)
        for own, mirrored in zip(_state(model), _state(self._mirrored), strict=True):
            mirrored.assign(own)
        # One trace serves batches of all sizes: two processes that trace at different steps would wait for ever.
        batch = [tf.TensorSpec([None, *model.input_shape[1:]], "float32"), tf.TensorSpec([None], "int64")]
        self._steps = tf.function(lambda *batch: _strategy().run(_step, (self._mirrored, *batch)), batch)
        self._sums = {
            training: tf.function(
                lambda *batch, training=training: _strategy().run(_sums, (self._mirrored, *batch, training)), batch
            )
            for training in (False, True)
        }

    def _learn(self, images: np.ndarray, labels: np.ndarray) -> None:
        self._steps(images, labels)

    def _measure(self, images: np.ndarray, labels: np.ndarray, training: bool) -> Any:
        return _strategy().experimental_local_results(self._sums[training](images, labels))[0]


def _state(model: keras.Model) -> list[Any]:
    return [*model.weights, *model.optimizer.variables]


def _step(model: keras.Model, images: tf.Tensor, labels: tf.Tensor) -> None:
    """What a replica does of a step; the optimizer sums the gradients of all."""
    mine = _my_rows(labels)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(losses(model(images[mine], training=True), labels[mine]))
        loss /= tf.cast(tf.shape(labels)[0], loss.dtype)
    variables = model.trainable_variables
    model.optimizer.apply(tape.gradient(loss, [variable.value for variable in variables]), variables)


def _sums(model: keras.Model, images: tf.Tensor, labels: tf.Tensor, training: bool) -> tf.Tensor:
    mine = _my_rows(labels)
    weights = model.trainable_variables, model.non_trainable_variables
    logits, _ = model.stateless_call(*weights, images[mine], training=training)
    sums = tf.stack([tf.reduce_sum(losses(logits, labels[mine])), tf.reduce_sum(right(logits, labels[mine]))])
    return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, sums)


def _my_rows(labels: tf.Tensor) -> slice:
    context = tf.distribute.get_replica_context()
    return rows_of(tf.shape(labels)[0], context.replica_id_in_sync_group, context.num_replicas_in_sync)
