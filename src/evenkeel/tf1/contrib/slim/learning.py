# SPDX-License-Identifier: Apache-2.0
"""`slim.learning`: a training operation, and the loop that runs it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tensorflow as tf

from evenkeel.tf1.contrib import training
from evenkeel.tf1.contrib.training.gradients import (
    USE_GLOBAL_STEP,
    add_gradients_summaries,
    clip_gradient_norms,
    multiply_gradients,
)

v1 = tf.compat.v1

_USE_DEFAULT = 0


def create_train_op(
    total_loss: Any,
    optimizer: Any,
    global_step: Any = USE_GLOBAL_STEP,
    update_ops: Sequence[Any] | None = None,
    variables_to_train: Sequence[Any] | None = None,
    clip_gradient_norm: float = 0,
    summarize_gradients: bool = False,
    gate_gradients: int = v1.train.Optimizer.GATE_OP,
    aggregation_method: Any = None,
    colocate_gradients_with_ops: bool = False,
    gradient_multipliers: Mapping[Any, Any] | None = None,
    check_numerics: bool = True,
) -> Any:
    """The loss, as a tensor that takes a training step when it is evaluated; UPDATE_OPS run before.

    Args:
        clip_gradient_norm: largest norm of each gradient; 0 for any.
        gradient_multipliers: variable, or its name -> factor of its gradient; before clipping.

    The other arguments are those of `tf.contrib.training.create_train_op`.
    """

    def transformed(pairs: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
        if gradient_multipliers:
            with v1.name_scope("multiply_grads"):
                pairs = multiply_gradients(pairs, gradient_multipliers)
        if clip_gradient_norm > 0:
            with v1.name_scope("clip_grads"):
                pairs = clip_gradient_norms(pairs, clip_gradient_norm)
        return pairs

    return training.create_train_op(
        total_loss,
        optimizer,
        global_step=global_step,
        update_ops=update_ops,
        variables_to_train=variables_to_train,
        transform_grads_fn=transformed,
        summarize_gradients=summarize_gradients,
        gate_gradients=gate_gradients,
        aggregation_method=aggregation_method,
        colocate_gradients_with_ops=colocate_gradients_with_ops,
        check_numerics=check_numerics,
    )


def train_step(sess: Any, train_op: Any, global_step: Any, train_step_kwargs: Mapping[str, Any]) -> tuple[Any, Any]:
    """One step of `train`.

    Args:
        train_step_kwargs: `should_stop`, a tensor that says whether this was the last step; `should_log`, a tensor;
            `should_trace`, a tensor, with `logdir` and `summary_writer`. Each may be missing.

    Returns:
        The loss, and whether to stop.
    """
    started = time.monotonic()
    options = metadata = None
    if "should_trace" in train_step_kwargs:
        if "logdir" not in train_step_kwargs:
            raise ValueError("logdir must be present in train_step_kwargs when should_trace is present")
        if sess.run(train_step_kwargs["should_trace"]):
            options = v1.RunOptions(trace_level=v1.RunOptions.FULL_TRACE)
            metadata = v1.RunMetadata()
    loss, step = sess.run([train_op, global_step], options=options, run_metadata=metadata)
    if metadata is not None:
        path = os.path.join(train_step_kwargs["logdir"], f"tf_trace-{step}.pb")
        v1.logging.info("Writing trace to %s", path)
        with tf.io.gfile.GFile(path, "wb") as file:
            file.write(metadata.SerializeToString())
        if train_step_kwargs.get("summary_writer"):
            train_step_kwargs["summary_writer"].add_run_metadata(metadata, f"run_metadata-{step}")
    if "should_log" in train_step_kwargs and sess.run(train_step_kwargs["should_log"]):
        v1.logging.info("global step %d: loss = %.4f (%.3f sec/step)", step, loss, time.monotonic() - started)
    stop = bool(sess.run(train_step_kwargs["should_stop"])) if "should_stop" in train_step_kwargs else False
    return loss, stop


def train(
    train_op: Any,
    logdir: str | None,
    train_step_fn: Callable[..., tuple[Any, Any]] = train_step,
    train_step_kwargs: Any = _USE_DEFAULT,
    log_every_n_steps: int | None = 1,
    graph: Any = None,
    master: str = "",
    is_chief: bool = True,
    global_step: Any = None,
    number_of_steps: int | None = None,
    init_op: Any = _USE_DEFAULT,
    init_feed_dict: Mapping[Any, Any] | None = None,
    local_init_op: Any = _USE_DEFAULT,
    init_fn: Callable[[Any], Any] | None = None,
    ready_op: Any = _USE_DEFAULT,
    summary_op: Any = _USE_DEFAULT,
    save_summaries_secs: float = 600,
    summary_writer: Any = _USE_DEFAULT,
    startup_delay_steps: int = 0,
    saver: Any = None,
    save_interval_secs: float = 600,
    sync_optimizer: Any = None,
    session_config: Any = None,
    session_wrapper: Callable[[Any], Any] | None = None,
    trace_every_n_steps: int | None = None,
    ignore_live_threads: bool = False,
) -> Any:
    """Runs `train_op` under a `tf.train.Supervisor`: initializes or restores, starts queues, saves, stops.

    Args:
        train_op: such as that of `create_train_op`.
        logdir: of checkpoints and summaries; None for neither.
        train_step_fn: one step, of session, `train_op`, global step and `train_step_kwargs`.
        train_step_kwargs: by default what `train_step` takes, made from the arguments here.
        log_every_n_steps: a line in the log each so many steps; None for none.
        global_step: that of the graph by default, made where there is none.
        number_of_steps: global step to stop at; None for no end but that of the data.
        init_op, local_init_op, ready_op, summary_op, summary_writer: those of the supervisor by default; None for none.
        init_fn: called with the session after `init_op`, such as that of `assign_from_checkpoint_fn`.
        save_summaries_secs, save_interval_secs: seconds from one to the next.
        startup_delay_steps: global step that a worker other than the chief waits for.
        sync_optimizer: a `tf.train.SyncReplicasOptimizer`, or a list of one.
        session_wrapper: of the session, gives the one that is used, such as a debugger.
        trace_every_n_steps: a trace each so many steps, in `logdir`.

    Returns:
        The loss of the last step; None if there was none.

    Raises:
        ValueError: nothing to train, or a directory that is missing for traces and summaries.
    """
    if train_op is None:
        raise ValueError("train_op cannot be None.")
    if logdir is None:
        if summary_op != _USE_DEFAULT and summary_op is not None:
            raise ValueError("Cannot provide summary_op because logdir=None")
        if saver is not None:
            raise ValueError("Cannot provide saver because logdir=None")
        if trace_every_n_steps is not None:
            raise ValueError("Cannot provide trace_every_n_steps because logdir=None")
        summary_op, summary_writer = None, None
    if sync_optimizer is not None and startup_delay_steps > 0:
        raise ValueError("startup_delay_steps must be zero when sync_optimizer is supplied.")
    if number_of_steps is not None and number_of_steps <= 0:
        raise ValueError(f"`number_of_steps` must be either None or a positive number; got {number_of_steps}")
    graph = graph or v1.get_default_graph()
    with graph.as_default():
        if global_step is None:
            global_step = v1.train.get_or_create_global_step()
        saver = saver or v1.train.Saver()
        synchronizers = [] if sync_optimizer is None else tf.nest.flatten(sync_optimizer)
        with v1.name_scope("init_ops"):
            if init_op == _USE_DEFAULT:
                init_op = v1.global_variables_initializer()
            if ready_op == _USE_DEFAULT:
                ready_op = v1.report_uninitialized_variables()
            if local_init_op == _USE_DEFAULT:
                local_init_op = tf.group(v1.local_variables_initializer(), v1.tables_initializer())
            for synchronizer in synchronizers:
                own = synchronizer.chief_init_op if is_chief else synchronizer.local_step_init_op
                local_init_op = tf.group(local_init_op, own)
        queues = [synchronizer.get_chief_queue_runner() for synchronizer in synchronizers]
        if summary_op == _USE_DEFAULT:
            summary_op = v1.summary.merge_all()
        if summary_writer == _USE_DEFAULT:
            summary_writer = v1.train.Supervisor.USE_DEFAULT
        if train_step_kwargs == _USE_DEFAULT:
            train_step_kwargs = _train_step_kwargs(
                global_step, number_of_steps, log_every_n_steps, trace_every_n_steps, logdir, summary_writer
            )
        supervisor = v1.train.Supervisor(
            graph=graph,
            is_chief=is_chief,
            logdir=logdir,
            init_op=init_op,
            init_feed_dict=init_feed_dict,
            local_init_op=local_init_op,
            ready_for_local_init_op=next((item.ready_for_local_init_op for item in synchronizers), None),
            ready_op=ready_op,
            summary_op=summary_op,
            summary_writer=summary_writer,
            global_step=global_step,
            saver=saver,
            save_summaries_secs=save_summaries_secs,
            save_model_secs=save_interval_secs,
            init_fn=init_fn,
        )
        if train_step_kwargs.get("summary_writer") is v1.train.Supervisor.USE_DEFAULT:
            train_step_kwargs["summary_writer"] = supervisor.summary_writer
    loss = None
    with supervisor.managed_session(master, start_standard_services=False, config=session_config) as session:
        v1.logging.info("Starting Session.")
        session = session if session_wrapper is None else session_wrapper(session)
        if is_chief and logdir:
            supervisor.start_standard_services(session)
        elif startup_delay_steps > 0:
            _wait_for_step(session, global_step, min(startup_delay_steps, number_of_steps or startup_delay_steps))
        threads = supervisor.start_queue_runners(session)
        if is_chief and queues:
            supervisor.start_queue_runners(session, queues)
        try:
            while not supervisor.should_stop():
                loss, stop = train_step_fn(session, train_op, global_step, train_step_kwargs)
                if stop:
                    v1.logging.info("Stopping Training.")
                    supervisor.request_stop()
                    break
        except tf.errors.OutOfRangeError:
            # The data are at their end.
            v1.logging.info("Caught OutOfRangeError. Stopping Training.")
        if logdir and is_chief:
            v1.logging.info("Finished training! Saving model to disk.")
            supervisor.saver.save(session, supervisor.save_path, global_step=supervisor.global_step)
            # The end of the managed session closes the writer.
            supervisor.stop(threads, close_summary_writer=False, ignore_live_threads=ignore_live_threads)
    return loss


def _train_step_kwargs(
    global_step: Any,
    number_of_steps: int | None,
    log_every_n_steps: int | None,
    trace_every_n_steps: int | None,
    logdir: str | None,
    summary_writer: Any,
) -> dict[str, Any]:
    with v1.name_scope("train_step"):
        made: dict[str, Any] = {}
        if number_of_steps:
            made["should_stop"] = tf.greater_equal(global_step, number_of_steps)
        if log_every_n_steps:
            made["should_log"] = tf.equal(global_step % log_every_n_steps, 0)
        if trace_every_n_steps is not None:
            made["should_trace"] = tf.equal(global_step % trace_every_n_steps, 0)
            made["logdir"] = logdir
            made["summary_writer"] = summary_writer
        return made


def _wait_for_step(session: Any, global_step: Any, step: int) -> None:
    while session.run(global_step) < step:
        v1.logging.info("Waiting for step %d before starting training.", step)
        time.sleep(1)


__all__ = [
    "add_gradients_summaries",
    "clip_gradient_norms",
    "create_train_op",
    "multiply_gradients",
    "train",
    "train_step",
]
