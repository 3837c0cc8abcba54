# SPDX-License-Identifier: Apache-2.0
"""A model for inference normalizes with the statistics of its batch.

What it looks for
    A model for inference (a SavedModel's signature, a frozen graph, a graph without train operation) in which a
    normalizer uses its batch whatever is fed: it was built with `is_training=True`, or its phase has the default True.
    A torch module in eval mode with a normalizer that is not, or one without statistics.
Why it matters
    The answer for one example depends on which others are in its batch, and alone it is beta, whatever the input was.
What to do
    Build the graph again with `training=False`, load the checkpoint into it and export that. Its values are good;
    only the graph is wrong. In torch `model.eval()`, and `track_running_stats=True` where there are no statistics.
"""

from __future__ import annotations

from collections.abc import Iterator

from evenkeel.doctor.evidence import Phase
from evenkeel.doctor.finding import Finding

ID = "EK303"
SEVERITY = "error"
EXPLAINS = ("EK402", "EK403")
IN_TORCH = {
    "track_running_stats=False": "track_running_stats=True, then train on, or evenkeel.recalibrate(model, data)",
    "in training mode inside a module in eval mode": "model.eval()",
}
SICK = [Phase("bn", "inference", True, "FusedBatchNormV3 with is_training=True")]
HEALTHY = [
    Phase("bn", "inference", False, "FusedBatchNormV3 with is_training=False"),
    Phase("bn", "training", True, "FusedBatchNormV3 with is_training=True"),
]


def check(phase: Phase) -> Iterator[Finding]:
    if phase.model == "inference" and phase.batch:
        remedy = "build it with training=False, restore the checkpoint, export again"
        yield Finding(ID, phase.name, phase.because, IN_TORCH.get(phase.because, remedy))
