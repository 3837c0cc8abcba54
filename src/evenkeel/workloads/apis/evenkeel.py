# SPDX-License-Identifier: Apache-2.0
"""How a network with `evenkeel.BatchNormalization` learns: Keras 3, on any backend."""

from __future__ import annotations

import functools
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np

from evenkeel.layers.keras import BatchNormalization
from evenkeel.workloads import models
from evenkeel.workloads.data import CLASSES
from evenkeel.workloads.training import Settings, unreadable

__all__ = ["Network"]


class Network:
    """A `Trainer` round a Keras model.

    Attributes:
        model: compiled.
    """

    model: keras.Model

    def __init__(self, settings: Settings, shape: tuple[int, ...]) -> None:
        self._batches = {"batch_size": settings.batch_size, "verbose": 0}
        normalization = functools.partial(
            BatchNormalization,
            momentum=settings.momentum,
            renorm=settings.renorm,
            renorm_momentum=settings.momentum,
            virtual_batch_size=settings.virtual_batch_size,
        )
        models.seed_weights(settings.seed)
        self._take(getattr(models, settings.model)(shape, CLASSES, normalization))
        _compile(self.model, optimizer=keras.optimizers.SGD(settings.learning_rate))

    def epoch(self, images: np.ndarray, labels: np.ndarray, *, after_step: Callable[[], None]) -> None:
        callback = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: after_step())
        self.model.fit(images, labels, shuffle=False, callbacks=[callback], **self._batches)

    def evaluate(self, images: np.ndarray, labels: np.ndarray, *, training: bool) -> tuple[float, float]:
        model = self._in_training_phase if training else self.model
        result = model.evaluate(images, labels, return_dict=True, **self._batches)
        return float(result["loss"]), float(result["accuracy"])

    def predict(self, images: np.ndarray) -> np.ndarray:
        return self.model.predict(images, **self._batches)

    def save(self, path: Path) -> None:
        self.model.save(path)

    def restore(self, path: Path) -> None:
        try:
            self._take(keras.saving.load_model(path))
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise unreadable(path, error) from error

    def _take(self, model: keras.Model) -> None:
        self.model = model
        self._in_training_phase = models.InTrainingPhase(model)
        _compile(self._in_training_phase)


def _compile(model: keras.Model, **arguments: Any) -> None:
    model.compile(
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=[keras.metrics.SparseCategoricalAccuracy(name="accuracy")],
        **arguments,
    )
