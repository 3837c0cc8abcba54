# SPDX-License-Identifier: Apache-2.0
"""The train operation does not run the updates of the moving statistics.

What it looks for
    A normalizer of a graph of TensorFlow 1 that uses its batch while it is trained, and a train operation that needs
    none of its update operations, by data or by control; or none of those of one of its variables. With towers it is
    enough that each variable is updated by one of them.
Why it matters
    The moving statistics stay what they were while the network changes, so inference normalizes with numbers that
    belong to no data. `tf.layers` and `tf.contrib.layers` only put the updates into a collection; running them is up
    to the program.
What to do
    Build the train operation under a control dependency on the updates:

        with tf.control_dependencies(tf.get_collection(tf.GraphKeys.UPDATE_OPS)):
            train_op = optimizer.minimize(loss)

    or use `tf.contrib.slim.learning.create_train_op`. Where a program fetches the updates beside the train operation,
    give both: `diagnose(graph, train_op=[train_op, *updates])`. A model that was trained like this is repaired with
    `evenkeel.recalibrate(session, data, phase=..., feed=...)`.
"""

from __future__ import annotations

from collections.abc import Iterator

from evenkeel.doctor.evidence import Updates
from evenkeel.doctor.finding import Finding

ID = "EK301"
SEVERITY = "error"
EXPLAINS = ("EK101", "EK152", "EK401", "EK403")
MEAN, VARIANCE = "bn/AssignMovingAvg", "bn/AssignMovingAvg_1"
SICK = [
    Updates("bn", "train", (MEAN, VARIANCE), ()),
    Updates("bn", "train", (), ()),
    Updates("bn", "train", (MEAN, VARIANCE), (MEAN,), unreached=("bn/moving_variance",)),
    Updates("bn", "train", (MEAN, VARIANCE), (), moved=True),
]
HEALTHY = [
    Updates("bn", "train", (MEAN, VARIANCE), (MEAN, VARIANCE)),
    # The second tower's are not run.
    Updates("bn", "train", (MEAN, VARIANCE, f"tower_1/{MEAN}", f"tower_1/{VARIANCE}"), (MEAN, VARIANCE)),
    # The generator, for the train operation of the discriminator.
    Updates("bn", "train", (MEAN, VARIANCE), (), trained=False),
]
REMEDY = (
    "with tf.control_dependencies(tf.get_collection(tf.GraphKeys.UPDATE_OPS)):\n    train_op = optimizer.minimize(loss)"
)


def check(updates: Updates) -> Iterator[Finding]:
    if not updates.trained or (updates.reached and not updates.unreached):
        return
    if not updates.all:
        seen = f"the graph has no operation that updates it; {updates.train_op!r} trains with its batch"
    elif not updates.reached:
        first, *more = updates.all
        others = f" and {len(more)} more" if more else ""
        seen = f"{updates.train_op!r} does not run {first!r}{others}"
    else:
        seen = f"{updates.train_op!r} runs no update of {', '.join(updates.unreached)}"
    # Something moved them: another train operation, an earlier training, or updates that are fetched beside.
    yield Finding(ID, updates.name, seen, REMEDY, "warning" if updates.moved else None)
