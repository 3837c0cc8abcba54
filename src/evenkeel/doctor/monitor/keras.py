# SPDX-License-Identifier: Apache-2.0
"""What each epoch of `fit` does to the normalizers of a Keras model."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import keras
import numpy as np

from evenkeel import arguments
from evenkeel.doctor import evidence
from evenkeel.doctor.monitor.apart import UNKNOWN, apart, not_finite, statistics
from evenkeel.doctor.monitor.records import Records
from evenkeel.doctor.monitor.speaking import Listener, Speaker, excused
from evenkeel.doctor.options import Options
from evenkeel.doctor.subjects import keras as subject
from evenkeel.errors import InputError
from evenkeel.functional.moments import Moments
from evenkeel.surgery.recalibrate.feeding import batches
from evenkeel.surgery.walk import keras_normalizers

NO_NORMALIZER = "the model has no batch normalization; leave the NormalizationMonitor out"
ARRIVED = 0.05
"""Statistics that keep so much of their start are not compared with data: they are on their way."""


class Epoch(NamedTuple):
    """What an epoch did to a normalizer.

    epoch: counted from 0, as Keras does.
    normalizer: path of the layer.
    batches: of the epoch.
    updates: how many of them moved its statistics. Where `steps_per_execution` joins several, all or none count.
    skipped: how many left a channel where it was that others moved. Our layer leaves out a channel that is not finite;
        nor does a channel move in a batch with which the layer is not called.
    not_finite: channels whose moving mean or variance is not finite.
    moved_kl, moved_shift: from the statistics before the epoch to those after it, as `Apart` has them.
    batch_kl, batch_shift: from the moving statistics to those of the data; NaN without data.
    """

    epoch: int
    normalizer: str
    batches: int
    updates: int
    skipped: int
    not_finite: int
    moved_kl: float
    moved_shift: float
    batch_kl: float
    batch_shift: float


class NormalizationMonitor(keras.callbacks.Callback):
    """Watches the normalizers of a model while `fit` trains it: Keras's own and ours, on every backend.

    At the end of an epoch there is a row for each normalizer, and the rules of the doctor look. An error or a warning
    of theirs is a Python warning, `NormalizationWarning`, once a rule and layer. The training computes what it would
    without the monitor, to the last bit.

    Args:
        data: what the statistics ought to describe, such as some batches of the training data; as
            `evenkeel.recalibrate` takes it, and it must last for all epochs. The model runs on it in inference mode,
            every normalizer using its batch. Without data it is only known how far the statistics moved, and whether
            they are finite: not whether they are right.
        csv: path of a file with a line for each row.
        log_dir: of files for TensorBoard.
        append: the file of `csv` is there, and this training goes on with it.
        every: of so many epochs the last one is watched.
        batch_size: rows of a batch, where data is arrays; that of the training is best.
        steps: at most so many batches of data.
        on_finding: called with each finding instead of the warning; what it raises ends the training.

    Attributes:
        history: list of `Epoch`.

    Raises:
        ArgumentError: an argument that cannot be honoured.
        InputError: the CSV is there, or cannot be written; a model without normalizers, when training begins.
        MissingLibraryError: `log_dir`, and nothing is installed that writes for TensorBoard.

    Example:
        >>> model = keras.Sequential([keras.Input([1]), keras.layers.BatchNormalization(momentum=0.5)])
        >>> model.compile("sgd", "mse")
        >>> monitor = NormalizationMonitor()
        >>> x = np.array([[1.0], [3.0], [5.0], [8.0]] * 4, "float32")
        >>> _ = model.fit(x, x, batch_size=2, epochs=2, verbose=0, callbacks=[monitor])
        >>> [(row.epoch, row.updates) for row in monitor.history]
        [(0, 8), (1, 8)]
    """

    def __init__(
        self,
        data: Any = None,
        *,
        csv: str | os.PathLike[str] | None = None,
        log_dir: str | os.PathLike[str] | None = None,
        append: bool = False,
        every: int = 1,
        batch_size: int = 32,
        steps: int | None = None,
        on_finding: Listener | None = None,
    ) -> None:
        super().__init__()
        size = arguments.positive_integer("batch_size", batch_size)
        most = None if steps is None else arguments.positive_integer("steps", steps)
        self._every = arguments.positive_integer("every", every)
        self._data = None if data is None else batches(data, batch_size=size, steps=most)
        self._records = Records(Epoch, csv, log_dir, append=append)
        self._speaker = Speaker(on_finding)
        self._done = 0
        self.history: list[Epoch] = []

    def on_train_begin(self, logs: Any = None) -> None:
        if not keras_normalizers(self.model):
            raise InputError(NO_NORMALIZER)

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._last = -1
        self._watching = (epoch + 1) % self._every == 0
        if self._watching:
            self._layers = [layer for layer in keras_normalizers(self.model) if layer.moving_mean is not None]
            self._before = _normalizers(self.model)
            self._movement = _Movement(self._layers)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if self.params.get("steps"):  # of the last execution Keras says what its end would be were it whole
            batch = min(batch, self.params["steps"] - 1)
        count, self._last = batch - self._last, batch
        self._done += count
        if self._watching and self._layers:
            # On JAX the trainer keeps the state to itself while an epoch lasts; who asks for the model gets it back.
            _ = self.model
            self._movement.look(count)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        if not self._watching:
            return
        number = self._last + 1
        left = max(self.params.get("epochs", 0) - epoch - 1, 0) * number
        iterations = getattr(getattr(self.model, "optimizer", None), "iterations", 0)
        steps = max(int(iterations), self._done) + left
        after = _normalizers(self.model, steps)
        if not after or len(after) != len(self._before):  # built in this epoch, or never: its start is not known
            return
        seen = self._measured(after)
        rows = [
            Epoch(
                epoch,
                now.name,
                number,
                *counts,
                not_finite(now),
                *apart(statistics(before), statistics(now), now.epsilon),
                *(UNKNOWN if found is None else apart(statistics(now), found.moments, now.epsilon)),
            )
            for before, now, counts, found in zip(self._before, after, self._movement.counts(), seen, strict=True)
        ]
        self.history += rows
        self._records.write(rows)
        self._speaker.say(self.model, self._found(after, seen, [row.updates for row in rows]))

    def on_train_end(self, logs: Any = None) -> None:
        self._records.close()

    def _measured(self, normalizers: list[evidence.Normalizer]) -> list[evidence.Seen | None]:
        """What each sees of the data; None where none reaches it, and everywhere without data."""
        data = self._data
        if data is None:
            return [None for _ in normalizers]
        from evenkeel.doctor.observing import same_random_numbers
        from evenkeel.surgery.recalibrate.passes import pooled
        from evenkeel.surgery.recalibrate.processes import gatherer
        from evenkeel.surgery.recalibrate.subject import of

        with same_random_numbers():
            model = of(self.model, data, include_frozen=True)
            state = {normalizer: normalizer.read() for normalizer in model.normalizers if normalizer.left is None}
            try:
                pools = pooled(model, lambda: data, state, gatherer())
            finally:
                for normalizer, values in state.items():
                    normalizer.write(values)
        found = {normalizer.name: pool for normalizer, pool in pools.items()}
        return [
            evidence.Seen(
                item,
                Moments(*(np.ravel(value) for value in found[item.name].moments)),
                spoiled=int(np.max(found[item.name].spoiled)),
            )
            if item.name in found
            else None
            for item in normalizers
        ]

    def _found(
        self, normalizers: list[evidence.Normalizer], seen: list[evidence.Seen | None], updates: list[int]
    ) -> Iterator[evidence.Evidence]:
        for before, now, moves in zip(self._before, normalizers, updates, strict=True):
            now = excused(now)
            yield now
            if now.momentum != 1:
                # Batches that come in the same order bring the statistics of raw data back to the same bits.
                yield evidence.Pair(before, now, trained=self._last >= 0 and not moves)
        arrived = [item for item in seen if item is not None and self._arrived(item.normalizer)]
        if arrived:
            yield evidence.Observed(tuple(arrived))

    def _arrived(self, normalizer: evidence.Normalizer) -> bool:
        return normalizer.average != "exponential" or (normalizer.momentum or 0.0) ** self._done < ARRIVED


class _Movement:
    """In how many batches each channel moved."""

    def __init__(self, layers: list[Any]) -> None:
        self._variables = [
            variable for name in ("moving_mean", "moving_variance") for variable in (getattr(i, name) for i in layers)
        ]
        self._starts = np.cumsum([0, *(int(np.prod(layer.moving_mean.shape)) for layer in layers)])
        self._now = self._read() if layers else np.zeros(0)
        self._batches = 0
        self._moved = np.zeros(self._starts[-1], int)
        self._updates = np.zeros(len(layers), int)

    def look(self, batches: int) -> None:
        """Once so many more have been trained on."""
        before, self._now = self._now, self._read()
        moved = (self._now != before) & ~(np.isnan(self._now) & np.isnan(before))
        channels = moved.reshape(2, -1).any(0)
        self._batches += batches
        self._moved += batches * channels
        self._updates += batches * np.logical_or.reduceat(channels, self._starts[:-1])

    def counts(self) -> Iterator[tuple[int, int]]:
        """Of each layer, how many batches moved it, and how many left out a channel that others moved."""
        for updates, moved in zip(self._updates, np.split(self._moved, self._starts[1:-1]), strict=True):
            yield int(updates), self._batches - int(min(moved[moved > 0], default=self._batches))

    def _read(self) -> np.ndarray:
        # As one array: on a GPU each one takes a journey of its own.
        flat = [keras.ops.reshape(variable.value, [-1]) for variable in self._variables]
        return np.asarray(keras.ops.convert_to_numpy(keras.ops.concatenate(flat)), "float64")


def _normalizers(model: Any, steps: int | None = None) -> list[evidence.Normalizer]:
    """Those that are built, in the order of `keras_normalizers`; what they counted is of all trainings, so left out."""
    found: list[evidence.Normalizer] = []
    for item in subject.evidence(model, Options(steps=steps)):
        if not isinstance(item, evidence.Normalizer):
            break  # what follows are the structure and the optimizer, which take longer to look at
        if item.moving_mean is not None:
            found.append(dataclasses.replace(item, updates=None))
    return found
