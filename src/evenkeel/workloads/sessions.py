# SPDX-License-Identifier: Apache-2.0
"""How the mlp of `workloads.models` is built in a graph and learns in a session, whoever normalizes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np

import evenkeel.tf1 as tf
from evenkeel.workloads.apis import evenkeel
from evenkeel.workloads.training import Settings, unreadable

__all__ = ["InSession", "Measured", "first_kernels", "mlp", "train_op"]


def first_kernels(settings: Settings, shape: tuple[int, ...]) -> list[np.ndarray]:
    """The first weights of the dense layers of our own network; from here on TensorFlow is TensorFlow 1."""
    layers = evenkeel.Network(settings, shape).model.layers
    kernels = [layer.get_weights()[0] for layer in layers if isinstance(layer, keras.layers.Dense)]
    tf.logging.set_verbosity(tf.logging.FATAL)  # of deprecations, and of what is raised as well
    tf.disable_v2_behavior()
    return kernels


def mlp(images: Any, kernels: list[np.ndarray], normalized: Callable[[Any], Any]) -> Any:
    """Logits: layers that are dense without a bias, normalized, ReLU; and a dense one.

    Args:
        images: shape `(batch, height, width, channels)`.
        kernels: first weights of the dense layers.
        normalized: from a tensor `(batch, channels)` to its like; the updates go to the collection UPDATE_OPS.
    """
    x = tf.layers.flatten(images)
    for kernel in kernels[:-1]:
        x = tf.nn.relu(normalized(_dense(x, kernel, use_bias=False)))
    return _dense(x, kernels[-1])


def _dense(x: Any, kernel: np.ndarray, **arguments: Any) -> Any:
    return tf.layers.dense(x, kernel.shape[1], kernel_initializer=tf.constant_initializer(kernel), **arguments)


class Measured(NamedTuple):
    """How well each image of a batch is read.

    losses: cross-entropy in nats, shape `(batch,)`.
    right: 1 or 0, shape `(batch,)`.
    """

    losses: Any
    right: Any

    @classmethod
    def of(cls, logits: Any, labels: Any) -> Measured:
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits)
        return cls(losses, tf.cast(tf.equal(tf.argmax(logits, 1), labels), tf.float32))


def train_op(loss: Any, updates: list[Any], learning_rate: float) -> Any:
    """A step of gradient descent, with the updates of the moving statistics."""
    with tf.control_dependencies(updates):
        return tf.train.GradientDescentOptimizer(learning_rate).minimize(loss, tf.train.get_or_create_global_step())


class InSession:
    """A `Trainer` that feeds a graph, and saves with `tf.train.Saver`."""

    def __init__(self, settings: Settings, shape: tuple[int, ...]) -> None:
        kernels = first_kernels(settings, shape)
        self._batch_size = settings.batch_size
        self._session = tf.Session(graph=tf.Graph())
        with self._opened():
            self._images = tf.placeholder(tf.float32, [None, *shape], "images")
            self._labels = tf.placeholder(tf.int64, [None], "labels")
            self._training, self._logits, updates = self._build(self._images, settings, kernels)
            self._measured = Measured.of(self._logits, self._labels)
            self._step = train_op(tf.reduce_mean(self._measured.losses), updates, settings.learning_rate)
            self._session.run(tf.global_variables_initializer())
            self._saver = tf.train.Saver()

    def _build(self, images: Any, settings: Settings, kernels: list[np.ndarray]) -> tuple[Any, Any, list[Any]]:
        """The phase, which is fed; the logits; the updates."""
        training = tf.placeholder(tf.bool, [], "training")
        logits = mlp(images, kernels, lambda x: self.normalized(x, training, settings.momentum))
        return training, logits, tf.get_collection(tf.GraphKeys.UPDATE_OPS)

    def normalized(self, x: Any, training: Any, momentum: float) -> Any:
        """`x` of shape `(batch, channels)`, normalized; the updates go to the collection UPDATE_OPS."""
        raise NotImplementedError

    def epoch(self, images: np.ndarray, labels: np.ndarray, *, after_step: Callable[[], None]) -> None:
        for _ in self._runs(self._step, images, labels, training=True):
            after_step()

    def evaluate(self, images: np.ndarray, labels: np.ndarray, *, training: bool) -> tuple[float, float]:
        losses, right = zip(*self._runs(self._measured, images, labels, training=training), strict=True)
        return float(np.concatenate(losses).mean()), float(np.concatenate(right).mean())

    def predict(self, images: np.ndarray) -> np.ndarray:
        return np.concatenate(list(self._runs(self._logits, images)))

    def save(self, path: Path) -> None:
        with self._opened():
            self._saver.save(self._session, str(path / "model.ckpt"))

    def restore(self, path: Path) -> None:
        try:
            self._saver.restore(self._session, str(path / "model.ckpt"))
        except (ValueError, tf.OpError) as error:
            raise unreadable(path, error) from error

    @contextlib.contextmanager
    def _opened(self) -> Iterator[None]:
        """The session and its graph as the default ones."""
        with self._session.graph.as_default(), self._session.as_default():
            yield

    def _runs(
        self, wanted: Any, images: np.ndarray, labels: np.ndarray | None = None, *, training: bool = False
    ) -> Iterator[Any]:
        """What `wanted` is, batch after batch."""
        for start in range(0, len(images), self._batch_size):
            batch = slice(start, start + self._batch_size)
            feed = {self._images: images[batch], self._training: training}
            if labels is not None:
                feed[self._labels] = labels[batch]
            yield self._session.run(wanted, feed)
