# SPDX-License-Identifier: Apache-2.0
"""`slim.evaluation`: metrics over a data set, from one checkpoint or from each new one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tensorflow as tf

from evenkeel.tf1.contrib import training
from evenkeel.tf1.contrib.training import checkpoints_iterator, wait_for_new_checkpoint

v1 = tf.compat.v1

_USE_DEFAULT = 0


def evaluate_once(
    master: str,
    checkpoint_path: str,
    logdir: str,
    num_evals: int = 1,
    initial_op: Any = None,
    initial_op_feed_dict: Mapping[Any, Any] | None = None,
    eval_op: Any = None,
    eval_op_feed_dict: Mapping[Any, Any] | None = None,
    final_op: Any = None,
    final_op_feed_dict: Mapping[Any, Any] | None = None,
    summary_op: Any = _USE_DEFAULT,
    summary_op_feed_dict: Mapping[Any, Any] | None = None,
    variables_to_restore: Any = None,
    session_config: Any = None,
    hooks: Sequence[Any] | None = None,
) -> Any:
    """Restores a checkpoint, runs `eval_op` `num_evals` times, then `final_op`, and writes a summary.

    Args:
        master: of the session; `""` for this process.
        checkpoint_path: prefix of the checkpoint.
        logdir: of the summary.
        initial_op: run first; the initializer of local variables always is.
        summary_op: all summaries of the graph by default; None for none.
        variables_to_restore: a list, or name in the checkpoint -> variable, such as
            `ExponentialMovingAverage.variables_to_restore()`; all global variables by default.
        hooks: of the session, besides.

    Returns:
        The value of `final_op`; None without.
    """
    return training.evaluate_once(
        checkpoint_path,
        master=master,
        scaffold=_scaffold(initial_op, initial_op_feed_dict, variables_to_restore),
        eval_ops=eval_op,
        feed_dict=eval_op_feed_dict,
        final_ops=final_op,
        final_ops_feed_dict=final_op_feed_dict,
        hooks=_hooks(num_evals, logdir, summary_op, summary_op_feed_dict, hooks),
        config=session_config,
    )


def evaluation_loop(
    master: str,
    checkpoint_dir: str,
    logdir: str,
    num_evals: int = 1,
    initial_op: Any = None,
    initial_op_feed_dict: Mapping[Any, Any] | None = None,
    init_fn: Callable[..., Any] | None = None,
    eval_op: Any = None,
    eval_op_feed_dict: Mapping[Any, Any] | None = None,
    final_op: Any = None,
    final_op_feed_dict: Mapping[Any, Any] | None = None,
    summary_op: Any = _USE_DEFAULT,
    summary_op_feed_dict: Mapping[Any, Any] | None = None,
    variables_to_restore: Any = None,
    eval_interval_secs: float = 60,
    max_number_of_evaluations: int | None = None,
    session_config: Any = None,
    timeout: float | None = None,
    timeout_fn: Callable[[], bool] | None = None,
    hooks: Sequence[Any] | None = None,
) -> Any:
    """`evaluate_once` for each new checkpoint of a directory.

    Args:
        checkpoint_dir: directory of the checkpoints.
        init_fn: called with scaffold and session, after `initial_op`.
        eval_interval_secs: seconds from one evaluation to the next, at least.
        max_number_of_evaluations: None for no end.
        timeout: seconds to wait for a new checkpoint; None for no end.
        timeout_fn: asked after a timeout; True ends the evaluations, False waits on.

    The other arguments are those of `evaluate_once`.

    Returns:
        The value of `final_op` at the last evaluation; None without.
    """
    return training.evaluate_repeatedly(
        checkpoint_dir,
        master=master,
        scaffold=_scaffold(initial_op, initial_op_feed_dict, variables_to_restore, init_fn),
        eval_ops=eval_op,
        feed_dict=eval_op_feed_dict,
        final_ops=final_op,
        final_ops_feed_dict=final_op_feed_dict,
        eval_interval_secs=eval_interval_secs,
        hooks=_hooks(num_evals, logdir, summary_op, summary_op_feed_dict, hooks),
        config=session_config,
        max_number_of_evaluations=max_number_of_evaluations,
        timeout=timeout,
        timeout_fn=timeout_fn,
    )


def _scaffold(initial_op: Any, feed_dict: Any, variables_to_restore: Any, init_fn: Any = None) -> Any:
    # That of the scaffold is made later, and has the global step of the summary too.
    saver = None if variables_to_restore is None else v1.train.Saver(variables_to_restore)
    return v1.train.Scaffold(init_op=initial_op, init_feed_dict=feed_dict, init_fn=init_fn, saver=saver)


def _hooks(num_evals: int, logdir: str, summary_op: Any, feed_dict: Any, hooks: Sequence[Any] | None) -> list[Any]:
    all_hooks = [training.StopAfterNEvalsHook(num_evals), *(hooks or [])]
    if summary_op is not None:
        op = v1.summary.merge_all() if summary_op == _USE_DEFAULT else summary_op
        all_hooks.append(training.SummaryAtEndHook(log_dir=logdir, summary_op=op, feed_dict=feed_dict))
    return all_hooks


__all__ = ["checkpoints_iterator", "evaluate_once", "evaluation_loop", "wait_for_new_checkpoint"]
