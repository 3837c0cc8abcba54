# SPDX-License-Identifier: Apache-2.0
"""How a training operation is run until it is enough: `train`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

v1 = tf.compat.v1


def train(
    train_op: Any,
    logdir: str | None,
    master: str = "",
    is_chief: bool = True,
    scaffold: Any = None,
    hooks: Sequence[Any] | None = None,
    chief_only_hooks: Sequence[Any] | None = None,
    save_checkpoint_secs: float | None = 600,
    save_summaries_steps: int | None = 100,
    config: Any = None,
    max_wait_secs: int = 7200,
    run_metadata: Any = None,
) -> Any:
    """Runs `train_op` in a `tf.train.MonitoredTrainingSession` until a hook asks to stop.

    Args:
        train_op: such as that of `create_train_op`.
        logdir: of checkpoints and summaries; None for neither.
        hooks: at least one that stops, such as `tf.train.StopAtStepHook`.
        save_checkpoint_secs, save_summaries_steps: seconds, and steps, from one to the next.

    Returns:
        The last value of `train_op`.

    Raises:
        ValueError: no directory, and something to save; or no hooks, so no end.
    """
    if logdir is None and is_chief and (save_summaries_steps or save_checkpoint_secs):
        raise ValueError("logdir cannot be None when save_summaries_steps or save_checkpoint_secs is set; give it")
    value = None
    with v1.train.MonitoredTrainingSession(
        master=master,
        is_chief=is_chief,
        checkpoint_dir=logdir,
        scaffold=scaffold,
        hooks=hooks,
        chief_only_hooks=chief_only_hooks,
        save_checkpoint_secs=save_checkpoint_secs,
        save_summaries_steps=save_summaries_steps,
        config=config,
        max_wait_secs=max_wait_secs,
    ) as session:
        while not session.should_stop():
            value = session.run(train_op, run_metadata=run_metadata)
    return value
