# SPDX-License-Identifier: Apache-2.0
"""What recalibration needs to know of a model, whoever made it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from evenkeel.functional.moments import Moments, bessel
from evenkeel.functional.moving import State
from evenkeel.functional.normalize import scale_and_offset
from evenkeel.surgery.recalibrate.pool import Pool


@dataclass(frozen=True, eq=False)
class Normalizer:
    """A layer that keeps statistics.

    name: in the model.
    epsilon: added to the variance.
    sample: its variance is the sample's (divided by n - 1), not the population's.
    read, write: its statistics, in NumPy; what it does not keep is None.
    left: why its statistics are to stay; None where they are to be estimated anew.
    """

    name: str
    epsilon: float
    sample: bool
    read: Callable[[], State]
    write: Callable[[State], None]
    left: str | None = None

    def renewed(self, old: State, pool: Pool, *, sample: bool) -> State:
        """The statistics of the pool, and the old ones in a channel of which fewer than two values were seen."""
        shape = old.moving_mean.shape
        mean, variance, count = (np.reshape(value, shape) for value in pool.moments)
        known = count > 1
        if sample:
            variance = variance * bessel(np, count)
        # Normalizing divides by it, so its inverse is the scale.
        deviation = 1 / scale_and_offset(mean, np.where(known, variance, 1.0), epsilon=self.epsilon)[0]
        counted = None if old.updates is None else np.maximum(old.updates, pool.calls - np.reshape(pool.spoiled, shape))
        new = State(mean, variance, deviation, mean, deviation, counted)
        return State(
            *(
                None if before is None else np.where(known, after, before).astype(before.dtype)
                for before, after in zip(old, new, strict=True)
            )
        )


Seen = Callable[[Normalizer, Callable[[], Moments]], State | None]
"""Told of every call of a normalizer: which, and how to measure its input; answers with what it normalizes with."""


class Subject(Protocol):
    """A model to be recalibrated.

    normalizers: all that it has.
    """

    normalizers: list[Normalizer]

    def running(self, seen: Seen) -> AbstractContextManager[Callable[[Any], object]]:
        """Within it, the function that runs the model on a batch, in inference mode; outside, all is as before."""
