# SPDX-License-Identifier: Apache-2.0
"""One model's moving statistics from those that several processes have kept, each of its own share of the data."""

from __future__ import annotations

import sys
from typing import Any, NamedTuple

import numpy as np

from evenkeel.errors import ArgumentError, InputError
from evenkeel.functional.moments import Moments, merge_moments
from evenkeel.functional.moving import State
from evenkeel.surgery.recalibrate.pool import Pool
from evenkeel.surgery.recalibrate.processes import Gather, gatherer
from evenkeel.surgery.recalibrate.subject import Normalizer
from evenkeel.surgery.walk import keras_names, keras_normalizers

__all__ = ["MergeReport", "Merged", "merge_statistics_across_processes"]

FOREIGN = "a {kind} has no statistics to merge; give a built Keras model or a torch.nn.Module"
UNBUILT = "{name} was never called, so it has no statistics; call the model once, in every process"
UNLIKE = (
    "the processes hold {sizes} numbers; they must have the same model, with the same normalizers in the same order, "
    "and all must call this"
)


class Merged(NamedTuple):
    """A normalizer.

    means, variances: what each process had, shape `(processes, channels)`.
    shift: of each process, how far its mean was from the merged one, in merged standard deviations; the largest over
        the channels.
    """

    name: str
    means: np.ndarray
    variances: np.ndarray
    shift: list[float]


class MergeReport(NamedTuple):
    """What each process had; as text, a line a normalizer.

    merged: in the order of the model.
    processes: how many there are.
    """

    merged: list[Merged]
    processes: int

    def __str__(self) -> str:
        lines = [f"statistics of {len(self.merged)} normalizers merged from {self.processes} processes"]
        for item in self.merged:
            had = ", ".join(f"{shift:.3g}" for shift in item.shift)
            lines.append(f"{item.name}: the means of the processes were {had} standard deviations away")
        return "\n".join(lines)


def merge_statistics_across_processes(model: Any, *, rows: float = 2.0, gather: Gather | None = None) -> MergeReport:
    """Gives the models of all processes the same moving statistics: those of all their data together.

    For models that were trained with local statistics, before evaluation and saving. The mean of the variances is too
    small where the means differ; what is between them is added, by Chan's formula. A channel that is not finite in a
    process does not count there. Call it in every process.

    Args:
        model: a built Keras model, or a `torch.nn.Module`; of the same structure in every process.
        rows: how many rows this process has trained on lately, where they differ.
        gather: in processes that are none of torch.distributed, jax.distributed or `tf.distribute`, gives of a row of
            float64 the rows of all.

    Returns:
        `MergeReport`: what each process had.

    Raises:
        ArgumentError: no model, or a negative number of rows.
        InputError: a model without statistics, or models that differ.

    Example:
        >>> import keras
        >>> model = keras.Sequential([keras.Input([1]), keras.layers.BatchNormalization()])
        >>> other = np.array([2.0, 4.0, 1.0])  # of another process: its rows, its mean, its variance
        >>> gather = lambda mine: [mine, other if mine.size > 1 else mine]  # first it tells how much there is
        >>> report = merge_statistics_across_processes(model, gather=gather)
        >>> [float(v[0]) for v in (model.layers[0].moving_mean, model.layers[0].moving_variance)]
        [2.0, 5.0]

    References:
        Chan, Golub and LeVeque 1979, Updating formulae and a pairwise algorithm for computing sample variances.
    """
    if not rows >= 0:
        raise ArgumentError(f"rows={rows!r} is no number of rows; give how many this process has trained on")
    normalizers = _normalizers(model)
    states = [normalizer.read() for normalizer in normalizers]
    shapes = [state.moving_mean.shape for state in states]
    parts = [
        np.concatenate([np.ravel(state.moving_mean), np.ravel(state.moving_variance), _updates(state)])
        for state in states
    ]
    gather = gather or gatherer()
    row = np.concatenate([[rows], *parts]).astype("float64")
    # By itself: what gathers may want rows of one length.
    sizes = [int(size[0]) for size in gather(np.array([float(row.size)]))]
    if len(set(sizes)) > 1:
        raise InputError(UNLIKE.format(sizes=", ".join(map(str, sizes))))
    shares = gather(row)
    found, start = [], 1
    for normalizer, state, shape, part in zip(normalizers, states, shapes, parts, strict=True):
        size = int(np.prod(shape))
        each = [(share[0], *np.split(share[start : start + part.size], [size, 2 * size])) for share in shares]
        start += part.size
        moments = merge_moments(*(_finite(*share[:3]) for share in each))
        # Statistics are of many values, however the shares are counted; a channel of which nobody has any stays.
        known = np.where(moments.count > 0, 2.0, 0.0)
        counted = Moments(*(value.reshape(shape) for value in (moments.mean, moments.variance, known)))
        newest = np.max([updates for *_, updates in each], axis=0).reshape(_updates(state).shape)
        kept = state if state.updates is None else state._replace(updates=newest.reshape(state.updates.shape))
        normalizer.write(normalizer.renewed(kept, Pool(counted, 0, np.zeros(shape)), sample=False))
        found.append(_report(normalizer.name, moments, each))
    return MergeReport(found, len(shares))


def _normalizers(model: Any) -> list[Normalizer]:
    keras, torch = sys.modules.get("keras"), sys.modules.get("torch")
    # With torch as its backend, a Keras layer is a torch module too.
    if keras is not None and isinstance(model, keras.layers.Layer):
        from evenkeel.surgery.recalibrate.keras import normalizer_of

        layers = keras_normalizers(model)
        if unbuilt := [layer.name for layer in layers if layer.moving_mean is None]:
            raise InputError(UNBUILT.format(name=unbuilt[0]))
        names = keras_names(layers)
        found = [normalizer_of(layer, names[id(layer)], include_frozen=True) for layer in layers]
    elif torch is not None and isinstance(model, torch.nn.Module):
        from evenkeel.surgery.recalibrate.torch import TorchModule

        found = [item for item in TorchModule(model, include_frozen=True).normalizers if item.left is None]
    else:
        raise ArgumentError(FOREIGN.format(kind=type(model).__name__))
    if not found:
        raise InputError(
            f"the {type(model).__name__} keeps no statistics of batch normalization; there is nothing to merge"
        )
    return found


def _updates(state: State) -> np.ndarray:
    return np.zeros(0) if state.updates is None else np.ravel(state.updates)


def _finite(rows: float, mean: np.ndarray, variance: np.ndarray) -> Moments:
    """What a process has, but for channels that are not finite."""
    return Moments(mean, variance, np.where(np.isfinite(mean) & np.isfinite(variance), rows, 0.0))


def _report(name: str, merged: Moments, each: list[tuple[Any, ...]]) -> Merged:
    means, variances = (np.stack([share[place] for share in each]) for place in (1, 2))
    with np.errstate(all="ignore"):  # a constant channel, or statistics that were destroyed
        shifts = np.nan_to_num(np.abs(means - merged.mean) / np.sqrt(merged.variance), nan=0.0)
    shift = np.where(np.isfinite(means) & np.isfinite(variances), shifts, np.inf).max(axis=1, initial=0.0)
    return Merged(name, means, variances, shift.tolist())
