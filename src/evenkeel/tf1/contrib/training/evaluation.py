# SPDX-License-Identifier: Apache-2.0
"""How a model is evaluated: once, or at each new checkpoint."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import tensorflow as tf

v1 = tf.compat.v1


def get_or_create_eval_step() -> Any:
    """The counter of evaluated batches: an int64 variable that is local to this process."""
    found = v1.get_collection(v1.GraphKeys.EVAL_STEP)
    if len(found) > 1:
        raise ValueError(f"Multiple tensors added to tf.GraphKeys.EVAL_STEP: {found}; keep one")
    return (
        found[0]
        if found
        else v1.get_variable(
            "eval_step",
            shape=[],
            dtype=tf.int64,
            initializer=v1.zeros_initializer(),
            trainable=False,
            collections=[v1.GraphKeys.LOCAL_VARIABLES, v1.GraphKeys.EVAL_STEP],
        )
    )


class StopAfterNEvalsHook(tf.compat.v1.train.SessionRunHook):
    """Asks to stop after a number of evaluations; counted by `get_or_create_eval_step`.

    Args:
        num_evals: how many; None for no end but that of the data.
        log_progress: writes to the log.
    """

    def __init__(self, num_evals: int | None, log_progress: bool = True) -> None:
        self._num_evals = num_evals
        self._log_progress = log_progress
        self._count: Any = None

    def begin(self) -> None:
        # A second session finds the graph finalized.
        if self._count is None:
            self._count = v1.assign_add(get_or_create_eval_step(), 1)

    def before_run(self, run_context: Any) -> Any:
        return v1.train.SessionRunArgs({"evals_completed": self._count})

    def after_run(self, run_context: Any, run_values: Any) -> None:
        done = run_values.results["evals_completed"]
        if self._log_progress:
            v1.logging.info("Evaluation [%d%s]", done, "" if self._num_evals is None else f"/{self._num_evals}")
        if self._num_evals is not None and done >= self._num_evals:
            run_context.request_stop()


class SummaryAtEndHook(tf.compat.v1.train.SessionRunHook):
    """Writes a summary when the session ends.

    Args:
        log_dir: directory of the event file, if there is no `summary_writer`.
        summary_writer: of `tf.summary.FileWriter`.
        summary_op: all summaries of the graph by default.
        feed_dict: for `summary_op`.

    Raises:
        ValueError: neither `log_dir` nor `summary_writer`.
    """

    def __init__(
        self, log_dir: str | None = None, summary_writer: Any = None, summary_op: Any = None, feed_dict: Any = None
    ) -> None:
        if summary_writer is None and log_dir is None:
            raise ValueError("log_dir or summary_writer should be specified; got neither")
        self._log_dir = log_dir
        self._summary_writer = summary_writer
        self._summary_op = summary_op
        self._feed_dict = feed_dict

    def begin(self) -> None:
        if self._summary_op is None:
            self._summary_op = v1.summary.merge_all()
        self._global_step = v1.train.get_or_create_global_step()

    def after_create_session(self, session: Any, coord: Any) -> None:
        if self._summary_writer is None and self._log_dir:
            self._summary_writer = v1.summary.FileWriterCache.get(self._log_dir)

    def end(self, session: Any) -> None:
        step = v1.train.global_step(session, self._global_step)
        if self._summary_op is not None:
            self._summary_writer.add_summary(session.run(self._summary_op, self._feed_dict), step)
        self._summary_writer.flush()


def evaluate_once(
    checkpoint_path: str,
    master: str = "",
    scaffold: Any = None,
    eval_ops: Any = None,
    feed_dict: Mapping[Any, Any] | None = None,
    final_ops: Any = None,
    final_ops_feed_dict: Mapping[Any, Any] | None = None,
    hooks: Sequence[Any] | None = None,
    config: Any = None,
) -> Any:
    """Restores a checkpoint, runs `eval_ops` until a hook asks to stop or the data end, then `final_ops`.

    Args:
        checkpoint_path: prefix of the checkpoint.
        scaffold: how the session begins; its saver restores.
        eval_ops: run again and again; nothing by default.
        final_ops: run once, after them.
        hooks: such as `StopAfterNEvalsHook`.

    Returns:
        The values of `final_ops`; None without.
    """
    get_or_create_eval_step()
    final = v1.train.FinalOpsHook(final_ops, final_ops_feed_dict)
    creator = v1.train.ChiefSessionCreator(
        scaffold=scaffold, checkpoint_filename_with_path=checkpoint_path, master=master, config=config
    )
    with v1.train.MonitoredSession(session_creator=creator, hooks=[*(hooks or []), final]) as session:
        if eval_ops is not None:
            while not session.should_stop():
                session.run(eval_ops, feed_dict)
    return final.final_ops_values


def evaluate_repeatedly(
    checkpoint_dir: str,
    master: str = "",
    scaffold: Any = None,
    eval_ops: Any = None,
    feed_dict: Mapping[Any, Any] | None = None,
    final_ops: Any = None,
    final_ops_feed_dict: Mapping[Any, Any] | None = None,
    eval_interval_secs: float = 60,
    hooks: Sequence[Any] | None = None,
    config: Any = None,
    max_number_of_evaluations: int | None = None,
    timeout: float | None = None,
    timeout_fn: Callable[[], bool] | None = None,
) -> Any:
    """`evaluate_once` of each new checkpoint of a directory.

    Args:
        eval_interval_secs: seconds from one evaluation to the next, at least.
        max_number_of_evaluations: None for no end.
        timeout: seconds to wait for a new checkpoint; None for no end.
        timeout_fn: asked after a timeout; True ends the evaluations, False waits on.

    Returns:
        The values of `final_ops` at the last evaluation; None without, or if there was no evaluation.
    """
    values = None
    checkpoints = checkpoints_iterator(checkpoint_dir, eval_interval_secs, timeout, timeout_fn)
    for number, path in enumerate(checkpoints, 1):
        values = evaluate_once(
            path, master, scaffold, eval_ops, feed_dict, final_ops, final_ops_feed_dict, hooks, config
        )
        if max_number_of_evaluations is not None and number >= max_number_of_evaluations:
            break
    return values


def wait_for_new_checkpoint(
    checkpoint_dir: str, last_checkpoint: str | None = None, seconds_to_sleep: float = 1, timeout: float | None = None
) -> str | None:
    """The path of the latest checkpoint once it is another than `last_checkpoint`; None after `timeout` seconds."""
    stop = None if timeout is None else time.monotonic() + timeout
    while (path := tf.train.latest_checkpoint(checkpoint_dir)) is None or path == last_checkpoint:
        if stop is not None and time.monotonic() + seconds_to_sleep > stop:
            return None
        time.sleep(seconds_to_sleep)
    return path


def checkpoints_iterator(
    checkpoint_dir: str,
    min_interval_secs: float = 0,
    timeout: float | None = None,
    timeout_fn: Callable[[], bool] | None = None,
) -> Iterator[str]:
    """The paths of new checkpoints of a directory, as they come; one that is overtaken by a newer is left out.

    Args:
        min_interval_secs: seconds from one to the next, at least.
        timeout: seconds to wait for a new one; None for no end.
        timeout_fn: asked after a timeout; True ends, False waits on. Without it, the timeout ends.
    """
    return tf.train.checkpoints_iterator(checkpoint_dir, min_interval_secs, timeout, timeout_fn)
