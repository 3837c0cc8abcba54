# SPDX-License-Identifier: Apache-2.0
"""Epsilon is another one than before.

What it looks for
    Two checkpoints, or a checkpoint and its conversion, whose normalizers add different numbers to the variance. It is
    an error where that changes the scale of a channel by more than 1 %; channels of no variance do not count.
Why it matters
    Channels of small variance come out on another scale than the one that what follows was trained on. Keras and
    TensorFlow take 1e-3 if nothing is said, torch and Flax 1e-5, and no file of weights holds it.
What to do
    Give the new layer the epsilon of the old: `BatchNormalization(epsilon=1e-5)`, `nn.BatchNorm2d(n, eps=1e-3)`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from evenkeel.checkpoints.flags import numbers
from evenkeel.doctor.evidence import Normalizer, Pair
from evenkeel.doctor.finding import Finding

ID = "EK153"
SEVERITY = "warning"
EXPLAINS = ("EK403",)
GRAVE = 0.01
SMALLEST = 1e-12


def _bn(epsilon: float | None, variance: float = 0.01) -> Normalizer:
    return Normalizer("bn", moving_variance=np.array([variance, 1.0]), epsilon=epsilon)


SICK = [
    Pair(_bn(1e-3), _bn(1e-5)),
    Pair(_bn(1e-3, 1.0), _bn(1e-5, 1.0)),
    Pair(Normalizer("bn", epsilon=1e-3), Normalizer("bn", epsilon=1e-5)),
]
HEALTHY = [
    Pair(_bn(1e-3), _bn(float(np.float32(1e-3)))),
    Pair(_bn(1e-3), _bn(None)),
    Pair(_bn(1e-5), _bn(1e-5, 0.02)),
]


def check(pair: Pair) -> Iterator[Finding]:
    old, new = pair.before.epsilon, pair.after.epsilon
    if old is None or new is None or math.isclose(old, new, rel_tol=1e-6):
        return
    effect = _effect(pair.after.moving_variance, old, new)
    yield Finding(
        ID,
        pair.after.name,
        f"epsilon {new:g}, and {old:g} before" + (f": {effect:.2g} times the scale" if effect > 1 + 1e-6 else ""),
        f"give the layer epsilon={old:g} (eps={old:g} in torch)",
        "error" if effect > 1 + GRAVE else None,
    )


def _effect(variance: np.ndarray | None, old: float, new: float) -> float:
    """The largest factor by which the scale of a channel differs."""
    wide = np.empty(0) if variance is None else numbers(variance)
    alive = wide[np.isfinite(wide) & (wide > SMALLEST)]
    ratios = np.sqrt((alive + max(old, new)) / (alive + min(old, new)))
    return float(ratios.max(initial=1.0))
