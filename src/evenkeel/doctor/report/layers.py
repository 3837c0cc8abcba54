# SPDX-License-Identifier: Apache-2.0
"""How far the moving statistics of each layer are from those of the data."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np

from evenkeel.doctor import distance
from evenkeel.doctor.evidence import Observed, Phases, Score, Seen
from evenkeel.functional.moments import Moments

MOST = 10.0


class Layer(NamedTuple):
    """A normalizer that the data reached; arrays in float64, of shape `(channels,)`.

    moving_mean, moving_variance: as the model has them; NaN where it has none.
    batch_mean, batch_variance: of all the data.
    divergence: symmetric Kullback-Leibler divergence of the two Gaussians, epsilon added to both variances, in nats;
        NaN where a statistic is no statistic.
    """

    seen: Seen
    moving_mean: np.ndarray
    moving_variance: np.ndarray
    batch_mean: np.ndarray
    batch_variance: np.ndarray
    divergence: np.ndarray

    @property
    def name(self) -> str:
        return self.seen.normalizer.name

    @property
    def typical(self) -> float:
        """The average over the channels, each of which counts for at most 10; so does what is no statistic."""
        return float(np.nan_to_num(self.divergence, nan=MOST).clip(0, MOST).mean())


def layers(observed: Observed) -> list[Layer]:
    """Each of them, in the order of the first calls."""
    return [_layer(seen) for seen in observed.seen]


def measured(phases: Phases) -> tuple[str, list[tuple[str, float]]]:
    """The score that says most, and its values: with moving statistics everywhere, then as layer after layer changes.

    Returns:
        `"accuracy"`, `"loss"` or `"gap"`, and name -> value in the order of the layers; the first name is empty.
    """
    scores: dict[str, Score] = {"": phases.inference, **phases.swapped}
    for measure in ("accuracy", "loss"):
        values = [getattr(score, measure) for score in scores.values()]
        if all(value is not None and np.isfinite(value) for value in values):
            return measure, list(zip(scores, values, strict=True))
    return "gap", [(name, score.gap) for name, score in scores.items()]


def to_blame(phases: Phases) -> str | None:
    """The layer at which the outputs change most as layer after layer changes; None where they do not.

    Example:
        >>> to_blame(Phases(Score(0.0), Score(1.0), {"bn1": Score(0.1), "bn2": Score(0.9), "bn3": Score(1.0)}, 32))
        'bn2'
    """
    scores = [phases.inference, *phases.swapped.values()]
    steps = [distance.step(before, after) for before, after in itertools.pairwise(scores)]
    return list(phases.swapped)[int(np.argmax(steps))] if any(steps) else None


def _layer(seen: Seen) -> Layer:
    normalizer = seen.normalizer
    mean, variance = (np.asarray(part, np.float64).ravel() for part in seen.moments[:2])
    old_mean, old_variance = (
        np.full(mean.shape, np.nan) if part is None else np.asarray(part, np.float64).ravel()
        for part in (normalizer.moving_mean, normalizer.moving_variance)
    )
    far = distance.divergence(Moments(old_mean, old_variance, 0), Moments(mean, variance, 0), normalizer.epsilon or 0.0)
    return Layer(seen, old_mean, old_variance, mean, variance, far)
