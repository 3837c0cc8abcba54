# SPDX-License-Identifier: Apache-2.0
"""What a training is asked for, and what whoever trains can do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from evenkeel.errors import InputError

__all__ = ["ALONE", "JOINING", "SUFFIXES", "WAITING", "Place", "Settings", "Trainer", "unreadable"]

SUFFIXES = {
    "evenkeel": ".keras",
    "helper": ".saver",
    "layers": ".saver",
    "contrib": ".saver",
    "estimator": ".estimator",
    "keras": ".h5",
}
"""API -> how what it saves is called; each is a module of `workloads.apis`."""


JOINING, WAITING = 300, 45
"""Seconds that one of several processes waits for the others: for their start, and for a message while they train."""


class Place(NamedTuple):
    """Which of the processes that train together this one is.

    rank: from 0 on; 0 writes the files and speaks.
    processes: how many there are.
    """

    rank: int
    processes: int


ALONE = Place(0, 1)


class Settings(NamedTuple):
    """What decides every number of a run; `--resume` asks for the same again."""

    model: str
    data: str
    backend: str
    batch_size: int
    learning_rate: float
    momentum: float
    renorm: bool
    virtual_batch_size: int | None
    seed: int
    api: str = "evenkeel"


class Trainer(Protocol):
    """A network that learns, in whatever API it is written. The class `Network` of each of `workloads.apis` is one.

    Images are float32 in [0, 1] of shape `(count, height, width, 1)`, labels int64 of shape `(count,)`. All methods
    take them in the order they are in, `settings.batch_size` at a time; the last batch may be smaller.

    Args:
        settings: decide the first weights, which are the same in all APIs.
        shape: of one image, `(height, width, channels)`.
    """

    def __init__(self, settings: Settings, shape: tuple[int, ...]) -> None: ...

    def epoch(self, images: np.ndarray, labels: np.ndarray, *, after_step: Callable[[], None]) -> None:
        """Learn from each image once; `after_step` is called after each batch."""

    def evaluate(self, images: np.ndarray, labels: np.ndarray, *, training: bool) -> tuple[float, float]:
        """Mean softmax cross-entropy in nats, and the share read right; what is learned stays as it is.

        Args:
            training: normalize each batch with its own statistics; with the moving ones otherwise.
        """

    def predict(self, images: np.ndarray) -> np.ndarray:
        """Logits, shape `(count, classes)`, normalized with the moving statistics."""

    def save(self, path: Path) -> None:
        """Write a file or a folder, by the means of the API."""

    def restore(self, path: Path) -> None:
        """Go on from what `save` wrote.

        Raises:
            InputError: it cannot be read.
        """


def unreadable(path: Path, error: Exception) -> InputError:
    """What to raise where `restore` cannot read.

    Example:
        >>> unreadable(Path("checkpoint-3.h5"), OSError("no signature found"))
        InputError('checkpoint-3.h5 cannot be loaded (no signature found); start again with --overwrite')
    """
    reason = str(error).partition("\n")[0]
    return InputError(f"{path} cannot be loaded ({reason}); start again with --overwrite")
