# SPDX-License-Identifier: Apache-2.0
"""A model for inference normalizes with the statistics of its batch.

What it looks for
    A model for inference (a SavedModel's signature, a frozen graph, a graph without train operation) in which a
    normalizer uses its batch whatever is fed: it was built with `is_training=True`, or its phase has the default True.
Why it matters
    The answer for one example depends on which others are in its batch, and alone it is beta, whatever the input was.
What to do
    Build the graph again with `training=False`, load the checkpoint into it and export that. Its values are good;
    only the graph is wrong.
"""

from __future__ import annotations

from collections.abc import Iterator

from evenkeel.doctor.evidence import Phase
from evenkeel.doctor.finding import Finding

ID = "EK303"
SEVERITY = "error"
EXPLAINS = ("EK402", "EK403")
SICK = [Phase("bn", "inference", True, "FusedBatchNormV3 with is_training=True")]
HEALTHY = [
    Phase("bn", "inference", False, "FusedBatchNormV3 with is_training=False"),
    Phase("bn", "training", True, "FusedBatchNormV3 with is_training=True"),
]


def check(phase: Phase) -> Iterator[Finding]:
    if phase.model == "inference" and phase.batch:
        yield Finding(
            ID, phase.name, phase.because, "build it with training=False, restore the checkpoint, export again"
        )
