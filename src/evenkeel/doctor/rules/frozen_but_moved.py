# SPDX-License-Identifier: Apache-2.0
"""A frozen normalizer's statistics moved.

What it looks for
    Moving statistics that differ between two checkpoints, though the normalizer is frozen in one of them, and the
    other does not say that it is not.
Why it matters
    The statistics follow new data though gamma and beta, or the layers behind them, were left as they fit the old.
    Taking gradients away does not stop the statistics, nor does `trainable = False` after `compile` with
    TensorFlow, and `train()` wakes what `eval()` froze (pytorch/pytorch#86590, pgniewko/gt-pyg#112).
What to do
    `evenkeel.freeze(model)` before the training: no `fit`, `train()` or `trainable = True` changes them then. Take the
    statistics of the checkpoint before.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from evenkeel.checkpoints.flags import numbers
from evenkeel.doctor.evidence import Normalizer, Pair, differ
from evenkeel.doctor.finding import Finding

ID = "EK151"
SEVERITY = "error"
EXPLAINS = ("EK401", "EK403")


def _bn(mean: float = 0.5, frozen: bool | str | None = None, dtype: str = "float32") -> Normalizer:
    return Normalizer("bn", np.array([mean, -1.0], dtype), np.array([1.0, 4.0], dtype), frozen=frozen)


SICK = [
    Pair(_bn(frozen=True), _bn(0.6, frozen=True)),
    Pair(_bn(), _bn(0.6, frozen="all")),
    Pair(_bn(frozen=True), _bn(0.6)),
]
HEALTHY = [
    Pair(_bn(frozen=True), _bn(frozen=True)),
    Pair(_bn(0.1, frozen=True), _bn(0.1, frozen=True, dtype="float16")),
    Pair(_bn(frozen=False), _bn(0.6, frozen=True)),
    Pair(_bn(frozen=True), _bn(0.6, frozen=False)),
    Pair(_bn(), _bn(0.6)),
]


def check(pair: Pair) -> Iterator[Finding]:
    before, after = pair.before, pair.after
    said = (before.frozen, after.frozen)
    if not any(said) or False in said:
        return
    if before.moving_mean is None or after.moving_mean is None:
        return
    if before.moving_variance is None or after.moving_variance is None:
        return
    if differ(before.moving_mean, after.moving_mean) or differ(before.moving_variance, after.moving_variance):
        yield Finding(
            ID,
            after.name,
            f"frozen, and {_distance(before.moving_mean, after.moving_mean, before.moving_variance)}, "
            f"{_ratio(before.moving_variance, after.moving_variance)}",
            "evenkeel.freeze(model) before the training, and the statistics of the checkpoint before",
        )


def _distance(before: np.ndarray, after: np.ndarray, variance: np.ndarray) -> str:
    with np.errstate(invalid="ignore"):  # infinity less infinity
        deviations = np.abs(numbers(after) - numbers(before)) / np.sqrt(np.maximum(numbers(variance), 1e-12))
    return f"the mean moved by up to {deviations.max():.3g} standard deviations"


def _ratio(before: np.ndarray, after: np.ndarray) -> str:
    old, new = (np.maximum(numbers(variance), 1e-12) for variance in (before, after))
    with np.errstate(invalid="ignore"):
        return f"the variance by a factor of up to {np.maximum(old / new, new / old).max():.3g}"
