# SPDX-License-Identifier: Apache-2.0
"""Momentum looks like a number of the other convention.

What it looks for
    A share of the old average that is kept below 0.5 (below 0.2 it is an error). Exactly 0 or 1 may be meant, and
    is a warning; an error where statistics that are to move are at their start. Keras, TensorFlow and Flax mean by
    momentum the share that is kept, 0.9 to 0.999; torch the share that is replaced, 0.001 to 0.1.
Why it matters
    With the other library's number the moving statistics are those of the last batch or two, and noise. With 1 in
    Keras, or 0 in torch, they never leave their start.
What to do
    Give one minus the number, or instead of 0 and 1 the library's own, and train on or `evenkeel.recalibrate(model,
    data)`.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from evenkeel.checkpoints.flags import never_updated
from evenkeel.doctor.evidence import Normalizer
from evenkeel.doctor.finding import Finding, Severity

ID = "EK202"
SEVERITY = "error"
EXPLAINS = ("EK401", "EK403")
CERTAIN, LIKELY = 0.2, 0.5
SICK = [
    Normalizer("bn", library="keras", momentum=0.1),
    Normalizer("bn", library="torch", momentum=1 - 0.99),
    Normalizer("bn", library="torch", momentum=0.4),
    Normalizer("bn", library="keras", momentum=0.0),
    Normalizer("bn", library="keras", momentum=1.0),
    Normalizer("bn", np.zeros(2), np.ones(2), library="torch", momentum=1.0, moves=True),
]
HEALTHY = [
    Normalizer("bn", library="keras", momentum=0.5),
    Normalizer("bn", library="torch", momentum=0.9),
    Normalizer("bn", library="keras", momentum=0.9999),
    Normalizer("bn", library="keras", momentum=0.1, average="cumulative"),
    Normalizer("bn", library="keras", momentum=1.0, average="debiased"),
    Normalizer("bn", library="torch", momentum=1.0, frozen=True),
    Normalizer("bn"),
]


def check(normalizer: Normalizer) -> Iterator[Finding]:
    kept = normalizer.momentum
    if kept is None or normalizer.average == "cumulative" or normalizer.frozen:
        return
    if kept == 1 and normalizer.average == "debiased":  # then every batch counts the same
        return
    if kept == 1:
        mean, variance = normalizer.moving_mean, normalizer.moving_variance
        at_start = mean is not None and variance is not None and never_updated(mean, variance)
        yield _finding(normalizer, kept, "so they never move", "error" if normalizer.moves and at_start else "warning")
    elif kept == 0:
        yield _finding(normalizer, kept, "so they are those of the last batch", "warning")
    elif kept < LIKELY:
        yield _finding(normalizer, kept, "so few batches make them", "error" if kept < CERTAIN else "warning")


def _finding(normalizer: Normalizer, kept: float, meaning: str, severity: Severity) -> Finding:
    written, usual = kept, 1 - kept if 0 < kept < CERTAIN else 0.99
    if normalizer.library == "torch":
        written, usual = 1 - kept, kept if 0 < kept < CERTAIN else 0.1
    seen = f"momentum={written:.6g} keeps {kept:.3g} of the old statistics, {meaning}"
    return Finding(ID, normalizer.name, seen, f"momentum={usual:.6g}; then train on, or recalibrate", severity)
