# SPDX-License-Identifier: Apache-2.0
"""How a network with `tf.keras` of TensorFlow 1 learns: in a session, with an optimizer of TensorFlow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

import evenkeel.tf1 as tf
from evenkeel.workloads.sessions import InSession
from evenkeel.workloads.training import Settings, unreadable

__all__ = ["Network"]


class Network(InSession):
    """A `Trainer` that feeds the learning phase, runs `model.updates`, and saves with Keras."""

    def _build(self, images: Any, settings: Settings, kernels: list[np.ndarray]) -> tuple[Any, Any, list[Any]]:
        layers = tf.keras.layers
        inputs = layers.Input(tensor=images)
        x = layers.Flatten()(inputs)
        for kernel in kernels[:-1]:
            x = layers.Dense(kernel.shape[1], use_bias=False, kernel_initializer=tf.constant_initializer(kernel))(x)
            x = layers.BatchNormalization(momentum=settings.momentum)(x)
            x = layers.Activation("relu")(x)
        logits = layers.Dense(kernels[-1].shape[1], kernel_initializer=tf.constant_initializer(kernels[-1]))(x)
        self._model = tf.keras.Model(inputs, logits)
        return tf.keras.backend.learning_phase(), logits, self._model.updates

    def save(self, path: Path) -> None:
        with self._opened():
            self._model.save_weights(path)

    def restore(self, path: Path) -> None:
        try:
            with self._opened():
                self._model.load_weights(path)
        except (OSError, ValueError, KeyError) as error:
            raise unreadable(path, error) from error
