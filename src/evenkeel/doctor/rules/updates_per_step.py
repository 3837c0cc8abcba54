# SPDX-License-Identifier: Apache-2.0
"""The statistics were not updated once for every batch of a step.

What it looks for
    A number of updates that is neither the number of batches that the optimizer's steps saw nor one beside it. Fewer,
    and a small multiple, are a warning; other surpluses a note, for a model that was trained before looks like that.
Why it matters
    Forward passes that train nothing move the statistics too, or passes that train do not. Activation checkpointing
    runs layers twice, SAM and gradient penalties run more batches, a GAN's discriminator sees two distributions, a
    layer may stand at several places (EK505).
What to do
    Where gradients are accumulated, say so: `evenkeel.diagnose(model, batches_per_step=4)`. Else run the additional
    passes in `with evenkeel.no_update(model):`, and those that train in training mode.
"""

from __future__ import annotations

from collections.abc import Iterator

from evenkeel.doctor.evidence import Normalizer
from evenkeel.doctor.finding import Finding

ID = "EK203"
SEVERITY = "warning"
MANY, NEAR = 8, 0.02
SICK = [
    Normalizer("bn", updates=200, steps=100),
    Normalizer("bn", updates=50, steps=100),
    Normalizer("bn", updates=100, steps=100, batches_per_step=2),
    Normalizer("bn", updates=5123, steps=100),
]
HEALTHY = [
    Normalizer("bn", updates=100, steps=100),
    Normalizer("bn", updates=101, steps=100),
    Normalizer("bn", updates=99, steps=100),
    Normalizer("bn", updates=400, steps=100, batches_per_step=4),
    Normalizer("bn", updates=0, steps=100),
    Normalizer("bn", updates=50, steps=100, frozen=True),
    Normalizer("bn", updates=50, steps=100, trainable=False),
    Normalizer("bn", updates=200),
]


def check(normalizer: Normalizer) -> Iterator[Finding]:
    if not normalizer.updates or not normalizer.steps or normalizer.frozen:
        return
    batches = normalizer.steps * normalizer.batches_per_step
    if abs(normalizer.updates - batches) <= 1:
        return
    ratio = normalizer.updates / batches
    if ratio < 1 and normalizer.trainable is False:  # of a backbone that was trained before, and stood still since
        return
    likely = ratio < 1 or (1.5 < ratio < MANY + NEAR and abs(ratio - round(ratio)) <= NEAR)
    yield Finding(
        ID,
        normalizer.name,
        f"{normalizer.updates} updates in {batches} batches of the optimizer: {ratio:.3g} for each",
        "with evenkeel.no_update(model): round passes that do not train; or say batches_per_step",
        "warning" if likely else "note",
    )
