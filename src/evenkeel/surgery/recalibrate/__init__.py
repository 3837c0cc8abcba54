# SPDX-License-Identifier: Apache-2.0
"""The population statistics of every normalizer, estimated anew from data; the weights stay."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from evenkeel import arguments
from evenkeel.errors import InputError
from evenkeel.surgery.recalibrate import subject as subjects
from evenkeel.surgery.recalibrate.feeding import batches, shown
from evenkeel.surgery.recalibrate.judging import Judge, judge
from evenkeel.surgery.recalibrate.passes import METHODS
from evenkeel.surgery.recalibrate.processes import Gather, gatherer
from evenkeel.surgery.recalibrate.report import RecalibrationReport, Renewed, renewed

__all__ = ["RecalibrationReport", "Renewed", "recalibrate"]


def recalibrate(
    model: Any,
    data: Any,
    *,
    method: str = "pooled",
    batch_size: int = 32,
    steps: int | None = None,
    phase: Any = None,
    feed: Callable[[Any], Any] | None = None,
    include_frozen: bool = False,
    keep_if_better: Any = None,
    gather: Gather | None = None,
    progress: bool | Callable[[Iterable[Any]], Iterable[Any]] = False,
) -> RecalibrationReport:
    """Estimates the statistics of every normalizer of a model anew, from all values of all batches.

    The model runs in inference mode; dropout is off, no weight and no other state changes. What an exception interrupts
    is as before. Batches of any size count by their values. A channel that is not finite in a batch is left out of it.

    In several processes (torch.distributed, jax.distributed, the scope of a `tf.distribute` strategy) `data` is the
    share of this one; all get the same statistics, to the last bit.

    Args:
        model: a Keras model; a `torch.nn.Module`; a `flax.nnx.Module`; a `tf.compat.v1.Session`, whose graph has
            update operations of `moving_mean` and `moving_variance`.
        data: arrays, with the rows first; dictionaries and lists of arrays for several inputs; `tf.data`, a torch
            DataLoader, a `keras.utils.PyDataset`, an iterable of batches or a function that makes one; the path of a
            `.npy` or `.npz`, which stays on disk. Of a tuple `(x, y)` the `y` is ignored.
        method: "pooled": one pass, in which every layer normalizes with the statistics of the batch, as in training;
            batches should be as large as those. "sequential": a pass a layer and one more, in which each layer sees
            what the new statistics of those before it make, as at inference; the size of the batches does not matter.
        batch_size: rows of a batch, where data is arrays.
        steps: at most so many batches a pass.
        phase: for a session, the bool tensor that is True in training, or a dictionary of tensor and value in training.
        feed: for a session, a function of a batch that gives the feed dictionary.
        include_frozen: also layers that are frozen: `trainable=False`, `frozen=True`, or in torch a layer in eval mode
            inside a module in training mode.
        keep_if_better: `(x, y)`, or a function without arguments whose result is the better the larger. The old
            statistics come back if they do better. With class labels the accuracy decides, else the loss of a compiled
            Keras model.
        gather: in several processes that are none of the above, gives of a row of float64 the rows of all.
        progress: draw a bar; or a function that wraps the batches, such as `tqdm`.

    Returns:
        `RecalibrationReport`; print it.

    Raises:
        ArgumentError: an argument that cannot be honoured.
        InputError: data or a model that cannot be used.

    Example:
        >>> import keras
        >>> model = keras.Sequential([keras.Input([1]), keras.layers.BatchNormalization()])
        >>> report = recalibrate(model, np.array([[1.0], [3.0], [8.0]]), batch_size=2)
        >>> keras.ops.convert_to_numpy(model.layers[0].moving_mean.value), report.renewed[0].values
        (array([4.], dtype=float32), 3.0)

    References:
        Wu and Johnson 2021, Rethinking "Batch" in BatchNorm, section 3 (precise statistics).
    """
    passes = METHODS[arguments.choice("method", method, METHODS)]
    size = arguments.positive_integer("batch_size", batch_size)
    if steps is not None:
        steps = arguments.positive_integer("steps", steps)
    source = batches(data, batch_size=size, steps=steps)
    subject = subjects.of(
        model, source, phase=phase, feed=feed, training=method == "pooled", include_frozen=include_frozen
    )
    if not subject.normalizers:
        raise InputError(f"the {type(model).__name__} has no batch normalization; there is nothing to recalibrate")
    before = {normalizer: normalizer.read() for normalizer in subject.normalizers if normalizer.left is None}
    gather = gather or gatherer()
    judged = None if keep_if_better is None else judge(model, keep_if_better, size, subject.call, subject.class_axis)
    rounds = functools.partial(shown, source, source.count, progress, "recalibrating")
    scores = [_score(judged, gather)]
    try:
        pools = passes(subject, rounds, before, gather) if before else {}
        if before and not pools:
            raise InputError("no data reached a normalizer; see that there is a batch, and that the model uses them")
        changes = [
            renewed(normalizer.name, pool, before[normalizer], normalizer.read()) for normalizer, pool in pools.items()
        ]
        scores.append(_score(judged, gather))
        better = judged is None or judged.prefers_new(*scores)
    except BaseException:
        better = False
        raise
    finally:
        if not better:
            for normalizer, state in before.items():
                normalizer.write(state)
    before_after = scores if judged else (None, None)
    return RecalibrationReport(
        method=method,
        renewed=changes,
        unreached=[normalizer.name for normalizer in before if normalizer not in pools],
        left={normalizer.name: normalizer.left for normalizer in subject.normalizers if normalizer.left is not None},
        measure=judged.measure if judged else None,
        before=before_after[0],
        after=before_after[1],
        kept="new" if better else "old",
    )


def _score(judged: Judge | None, gather: Gather) -> float:
    """The same in all processes."""
    return 0.0 if judged is None else float(gather(np.array([judged.score()]))[0][0])
