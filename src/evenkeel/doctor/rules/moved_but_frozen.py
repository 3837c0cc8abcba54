# SPDX-License-Identifier: Apache-2.0
"""A model was trained, and its moving statistics stood still.

What it looks for
    Moving mean and variance that are the same to the bit in two checkpoints, though the model was trained between
    them, gamma and beta with it, and neither checkpoint says that the normalizer is frozen.
Why it matters
    The weights no longer fit the statistics that inference uses. The update operations were not run, the model was
    called in its inference phase, or `stateless_call` gave new statistics that nobody kept.
What to do
    Run the updates with the training step, call the model with `training=True`, or `model.train()`; then
    `evenkeel.recalibrate(model, data)`. If it was meant so, say it: `evenkeel.freeze(model)`.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from evenkeel.doctor.evidence import Normalizer, Pair, differ
from evenkeel.doctor.finding import Finding

ID = "EK152"
SEVERITY = "warning"
EXPLAINS = ("EK101",)


def _bn(gamma: float | None = 1.0, mean: float = 0.5, frozen: bool | None = None) -> Normalizer:
    scale = None if gamma is None else np.array([gamma, 1.0])
    return Normalizer("bn", np.array([mean, -1.0]), np.array([1.0, 4.0]), gamma=scale, frozen=frozen)


SICK = [
    Pair(_bn(), _bn(1.1), trained=True),
    Pair(_bn(None), _bn(None), trained=True),
]
HEALTHY = [
    Pair(_bn(), _bn(1.1, mean=0.500001), trained=True),
    Pair(_bn(), _bn(), trained=True),
    Pair(_bn(), _bn(1.1, frozen=True), trained=True),
    Pair(_bn(), _bn(1.1), trained=False),
    Pair(_bn(), _bn(1.1)),
    Pair(Normalizer("bn"), Normalizer("bn"), trained=True),
]


def check(pair: Pair) -> Iterator[Finding]:
    before, after = pair.before, pair.after
    if not pair.trained or before.frozen or after.frozen:
        return
    affine = _changes(pair, "gamma", "beta")
    statistics = _changes(pair, "moving_mean", "moving_variance")
    # A layer whose gamma and beta stayed too was frozen on purpose, as in a backbone below a new head.
    if statistics and not any(statistics) and (any(affine) or not affine):
        yield Finding(
            ID,
            after.name,
            "weights changed, and moving mean and variance are the same to the bit",
            "run the updates with the training step; then evenkeel.recalibrate(model, data)",
        )


def _changes(pair: Pair, *parts: str) -> list[bool]:
    """Of those parts that both have."""
    values = ((getattr(pair.before, part), getattr(pair.after, part)) for part in parts)
    return [differ(old, new) for old, new in values if old is not None and new is not None]
