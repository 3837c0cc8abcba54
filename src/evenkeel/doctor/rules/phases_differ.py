# SPDX-License-Identifier: Apache-2.0
"""The model does better, or something else, with the statistics of the batch.

What it looks for
    The same rows with moving statistics, as at inference, and with those of their batch, as in training; dropout is
    off in both. With class labels: more than 5 points of accuracy, and 8 rows, in favour of training. Without:
    outputs that are 0.7 standard deviations apart (a warning), or a whole one (an error), even where all layers use
    the statistics of all the data, for batches alone scatter; fewer than 8 rows say nothing. Frozen layers stay as
    they are in both.
Why it matters
    What the network learned is there, and the moving statistics lose it: this is why evaluation is so much worse
    than training. The layer named is the one at which most of the difference arises when the layers, from the first
    on, are swapped to the batch one after the other.
What to do
    `evenkeel.recalibrate(model, data)` with data of the training; then see what kept the statistics from following.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from evenkeel.doctor.distance import step
from evenkeel.doctor.evidence import Phases, Score
from evenkeel.doctor.finding import Finding

ID = "EK403"
SEVERITY = "error"
POINTS, ROWS = 0.05, 8
# Measured with the statistics of all the data: 0.1 to 0.5 after a good training; 1 to 6 where the momentum was too slow
# for the steps, or data was scaled differently.
WARNING, ERROR = 0.7, 1.0

_WELL, _BADLY = Score(2.0, accuracy=0.97, loss=0.1), Score(0.0, accuracy=0.4, loss=3.0)
SICK = [
    Phases(_BADLY, _WELL, {"one": Score(0.1, 0.41, 2.9), "two": _WELL}, 256),
    Phases(Score(0.0), Score(1.5), {"bn": Score(1.5)}, 64, pooled=Score(1.4)),
    Phases(Score(0.0), Score(0.8), {"bn": Score(0.8)}, 64),
]
HEALTHY = [
    Phases(Score(0.0, 0.95, 0.2), Score(0.3, 0.97, 0.1), {"bn": Score(0.3, 0.97, 0.1)}, 256),
    Phases(Score(0.0, 0.5, 0.7), Score(0.3, 0.8, 0.5), {"bn": Score(0.3, 0.8, 0.5)}, 16),
    Phases(Score(0.0, 0.97, 0.1), Score(2.0, 0.4, 3.0), {"bn": Score(2.0, 0.4, 3.0)}, 256),
    Phases(Score(0.0), Score(0.9), {"bn": Score(0.9)}, 64, pooled=Score(0.2)),
    Phases(Score(0.0), Score(0.3), {"bn": Score(0.3)}, 64, pooled=Score(2.0)),
    Phases(Score(0.0), Score(1.5), {"bn": Score(1.5)}, 1),
]


def check(phases: Phases) -> Iterator[Finding]:
    inference, training = phases.inference, phases.training
    if inference.accuracy is not None and training.accuracy is not None:
        better = training.accuracy - inference.accuracy
        if better > POINTS and better * phases.rows >= ROWS:
            seen = f"accuracy {inference.accuracy:.1%} at inference, {training.accuracy:.1%} with batch statistics"
            yield Finding(ID, _where(phases), seen, "evenkeel.recalibrate(model, data)")
        return
    gap = min(training.gap, training.gap if phases.pooled is None else phases.pooled.gap)
    if gap > WARNING and phases.rows >= ROWS:
        seen = f"outputs in the two phases are {gap:.2g} standard deviations apart"
        remedy = "evenkeel.recalibrate(model, data)"
        yield Finding(ID, _where(phases), seen, remedy, "error" if gap > ERROR else "warning")


def _where(phases: Phases) -> str:
    """The layer at which most of the difference arises."""
    scores = [phases.inference, *phases.swapped.values()]
    steps = [step(*pair) for pair in itertools.pairwise(scores)]
    return list(phases.swapped)[steps.index(max(steps))] if steps else "outputs"
