# SPDX-License-Identifier: Apache-2.0
"""Whether a training step moves the moving statistics."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import tensorflow as tf

from evenkeel.tf1.graph import ancestors

v1 = tf.compat.v1

NOT_RUN = """\
train_op does not run the update operations of {layers}: their moving statistics stay where they are, and evaluation, \
prediction and the exported model normalize with them. In the model_fn write

    with tf.control_dependencies(tf.get_collection(tf.GraphKeys.UPDATE_OPS)):
        train_op = optimizer.minimize(loss, tf.train.get_global_step())

or let tf.estimator.RunConfig(run_update_ops=True) do it."""


class UpdatesNotRunWarning(UserWarning):
    """A training step that leaves moving statistics behind. A class of its own, so that it can be made an error."""


def not_run(train_op: Any) -> list[Any]:
    """The update operations of the graph that running `train_op` does not run.

    Example:
        >>> with tf.Graph().as_default() as graph:
        ...     update = tf.no_op("update")
        ...     graph.add_to_collection(v1.GraphKeys.UPDATE_OPS, update)
        ...     alone = tf.no_op("alone")
        ...     with tf.control_dependencies([update]):
        ...         together = tf.no_op("together")
        ...     [len(not_run(alone)), len(not_run(together))]
        [1, 0]
    """
    reached = ancestors(_operation(train_op))
    updates = train_op.graph.get_collection(v1.GraphKeys.UPDATE_OPS)
    return [update for update in updates if _operation(update) not in reached]


def warn_of(updates: Iterable[Any]) -> None:
    """Name the layers whose updates these are, and the repair."""
    layers = sorted({_layer(_operation(update).name) for update in updates})
    message = NOT_RUN.format(layers=", ".join(layers))
    # Of Estimator.train, whose caller is to see it as theirs.
    warnings.warn(message, UpdatesNotRunWarning, stacklevel=5)


def _operation(tensor: Any) -> Any:
    return tensor if isinstance(tensor, tf.Operation) else tensor.op


def _layer(name: str) -> str:
    return name.split("/AssignMovingAvg")[0] if "/AssignMovingAvg" in name else name.rpartition("/")[0] or name
