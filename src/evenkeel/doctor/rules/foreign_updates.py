# SPDX-License-Identifier: Apache-2.0
"""The train operation runs the updates of another part of the graph.

What it looks for
    Update operations that a train operation runs, whose batch comes from a placeholder without default that neither
    the loss nor its gradients need: all of UPDATE_OPS, under the train operation of one network of several.
Why it matters
    Each training step wants a feed that has nothing to do with its loss: "You must feed a value for placeholder
    tensor ...". Feeding something only to satisfy it moves the other network's statistics towards that.
What to do
    Give each train operation the updates of its own part: `tf.get_collection(tf.GraphKeys.UPDATE_OPS,
    scope="generator")`.
"""

from __future__ import annotations

from collections.abc import Iterator

from evenkeel.doctor.evidence import Updates
from evenkeel.doctor.finding import Finding

ID = "EK302"
SEVERITY = "error"
MEAN, VARIANCE = "discriminator/bn/AssignMovingAvg", "discriminator/bn/AssignMovingAvg_1"
SICK = [
    Updates(
        "discriminator/bn",
        "train_generator",
        (MEAN, VARIANCE),
        (MEAN, VARIANCE),
        foreign={MEAN: ("images",), VARIANCE: ("images",)},
        trained=False,
    )
]
HEALTHY = [
    # Both batches are fed for the loss.
    Updates("discriminator/bn", "train_discriminator", (MEAN, VARIANCE), (MEAN, VARIANCE)),
    Updates("discriminator/bn", "train_generator", (MEAN, VARIANCE), (), trained=False),
]


def check(updates: Updates) -> Iterator[Finding]:
    if updates.foreign:
        first = next(iter(updates.foreign))
        needed = ", ".join(sorted({name for names in updates.foreign.values() for name in names}))
        yield Finding(
            ID,
            updates.name,
            f"{updates.train_op!r} runs {first!r}, which needs placeholder {needed}; its loss does not",
            'tf.get_collection(tf.GraphKeys.UPDATE_OPS, scope="SCOPE OF WHAT IS TRAINED")',
        )
