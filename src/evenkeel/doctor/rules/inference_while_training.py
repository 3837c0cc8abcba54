# SPDX-License-Identifier: Apache-2.0
"""A normalizer that is trained uses its moving statistics, and nothing moves them.

What it looks for
    While a model is trained, a normalizer whose gamma or beta learns, or one without these behind weights that learn,
    uses its moving statistics whatever is fed: it was built with `training=False`, which is the default of
    `tf.layers.batch_normalization`. A layer whose gamma and beta are frozen too is frozen on purpose.
Why it matters
    Nothing is normalized: the statistics stay what they were, at the start 0 and 1, and training is as unstable as
    without batch normalization.
What to do
    Pass `training=True`, or a placeholder, and run the update operations with the training step. To freeze the layer
    on purpose, freeze its gamma and beta too: `trainable=False`.
"""

from __future__ import annotations

from collections.abc import Iterator

from evenkeel.doctor.evidence import Phase
from evenkeel.doctor.finding import Finding, Severity

ID = "EK304"
SEVERITY = "error"
EXPLAINS = ("EK101", "EK201")
BECAUSE = "FusedBatchNormV3 with is_training=False"
SICK = [Phase("bn", "training", False, BECAUSE), Phase("bn", "training", False, BECAUSE, moved=True)]
HEALTHY = [
    Phase("bn", "training", False, BECAUSE, trained=False),
    Phase("bn", "training", True, "FusedBatchNormV3 with is_training=True"),
    Phase("bn", "inference", False, BECAUSE),
]


def check(phase: Phase) -> Iterator[Finding]:
    if phase.model == "training" and not phase.batch and phase.trained:
        # Statistics from an earlier training are often kept on purpose, with gamma and beta learning on.
        severity: Severity | None = "note" if phase.moved else None
        yield Finding(ID, phase.name, phase.because, "training=True, and run UPDATE_OPS with the train op", severity)
