# SPDX-License-Identifier: Apache-2.0
"""How one of several processes learns from its share of each batch, with the numbers of one that has the whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np

from evenkeel.layers.keras import BatchNormalization
from evenkeel.workloads.apis.evenkeel import Network
from evenkeel.workloads.training import Settings

__all__ = ["Sharing", "losses", "right", "rows_of"]


class Sharing(Network):
    """A `Trainer` of which every process has one, all with the same images in the same order.

    What it learns is in `model`, in every process, so that saving and predicting need no other process. The loss of a
    batch is the mean over all its images, whatever the shares; gradients are summed over the processes.
    """

    def __init__(self, settings: Settings, shape: tuple[int, ...]) -> None:
        self._batch_size = settings.batch_size
        super().__init__(settings, shape)
        self._prepare()

    def restore(self, path: Path) -> None:
        super().restore(path)
        self._prepare()

    def epoch(self, images: np.ndarray, labels: np.ndarray, *, after_step: Callable[[], None]) -> None:
        for batch in self._split(images, labels):
            self._learn(*batch)
            after_step()

    def evaluate(self, images: np.ndarray, labels: np.ndarray, *, training: bool) -> tuple[float, float]:
        totals = [self._measure(*batch, training) for batch in self._split(images, labels)]
        loss, correct = np.sum(np.asarray(totals, "float64"), axis=0) / len(labels)
        return float(loss), float(correct)

    def _prepare(self) -> None:
        """What there is to do with a new model before it learns."""
        self.model.optimizer.build(self.model.trainable_variables)

    def _learn(self, images: np.ndarray, labels: np.ndarray) -> None:
        """One step of the optimizer, with a whole batch of which each process takes its share."""
        raise NotImplementedError

    def _measure(self, images: np.ndarray, labels: np.ndarray, training: bool) -> Any:
        """Of a whole batch the sum of the losses, and how many images are read right: two numbers, the same in all."""
        raise NotImplementedError

    def _split(self, images: np.ndarray, labels: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for start in range(0, len(labels), self._batch_size):
            batch = slice(start, start + self._batch_size)
            yield images[batch], labels[batch]

    def _take(self, model: keras.Model) -> None:
        for layer in model.layers:
            if isinstance(layer, BatchNormalization):
                layer.synchronized = True
        super()._take(model)


def rows_of(count: Any, rank: Any, processes: int) -> slice:
    """The share of a process of a batch of `count` images; the last ones may have fewer, or none.

    Example:
        >>> [rows_of(5, rank, processes=4) for rank in range(4)]
        [slice(0, 2, None), slice(2, 4, None), slice(4, 6, None), slice(6, 8, None)]
    """
    size = -(-count // processes)
    return slice(rank * size, (rank + 1) * size)


def losses(logits: Any, labels: Any) -> Any:
    """Softmax cross-entropy of each image, in nats."""
    return keras.ops.sparse_categorical_crossentropy(labels, logits, from_logits=True)


def right(logits: Any, labels: Any) -> Any:
    """1 for each image that is read right, 0 for the others."""
    return keras.ops.cast(keras.ops.equal(keras.ops.argmax(logits, -1), labels), "float32")
