# SPDX-License-Identifier: Apache-2.0
"""How training and evaluation take turns."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import tensorflow as tf

from evenkeel.errors import ArgumentError
from evenkeel.tf1.estimator.arguments import check_positive, hooks_of, listeners_of
from evenkeel.tf1.estimator.estimator import Estimator
from evenkeel.tf1.estimator.exporters import Exporter

v1 = tf.compat.v1


class _Train(NamedTuple):
    input_fn: Callable[..., Any]
    max_steps: int | None
    hooks: tuple[Any, ...]
    saving_listeners: tuple[Any, ...]


class TrainSpec(_Train):
    """What to train with.

    Args:
        input_fn: as of `Estimator.train`.
        max_steps: the global step at which training ends; None is when the data end.
        hooks: SessionRunHooks.
        saving_listeners: CheckpointSaverListeners.

    Raises:
        ValueError: `max_steps` that is not positive.
        TypeError: `input_fn` cannot be called; a hook or a listener is none.
    """

    __slots__ = ()

    def __new__(
        cls,
        input_fn: Callable[..., Any],
        max_steps: int | None = None,
        hooks: Iterable[Any] | None = None,
        saving_listeners: Iterable[Any] | None = None,
    ) -> TrainSpec:
        _check_callable(input_fn)
        check_positive("max_steps", max_steps)
        return super().__new__(cls, input_fn, max_steps, hooks_of(hooks), listeners_of(saving_listeners))


class _Evaluate(NamedTuple):
    input_fn: Callable[..., Any]
    steps: int | None
    name: str | None
    hooks: tuple[Any, ...]
    exporters: tuple[Exporter, ...]
    start_delay_secs: float
    throttle_secs: float


class EvalSpec(_Evaluate):
    """What to evaluate with, how often, and what to export then.

    Args:
        input_fn: as of `Estimator.evaluate`.
        steps: batches an evaluation; None is until the data end.
        name: of the evaluation; its summaries lie in `eval_<name>`.
        hooks: SessionRunHooks.
        exporters: an Exporter or several, with names that differ.
        start_delay_secs: seconds to wait; only a cluster waits.
        throttle_secs: seconds between evaluations, at the least. The last checkpoint is evaluated always.

    Raises:
        ValueError: a number out of range; exporters with one name.
        TypeError: `input_fn` cannot be called; a name, a hook or an exporter is none.
    """

    __slots__ = ()

    def __new__(
        cls,
        input_fn: Callable[..., Any],
        steps: int | None = 100,
        name: str | None = None,
        hooks: Iterable[Any] | None = None,
        exporters: Any = None,
        start_delay_secs: float = 120,
        throttle_secs: float = 600,
    ) -> EvalSpec:
        _check_callable(input_fn)
        check_positive("steps", steps)
        if name is not None and not isinstance(name, str):
            raise TypeError(f"`name` must be string, given: {name!r}")
        for what, seconds in (("start_delay_secs", start_delay_secs), ("throttle_secs", throttle_secs)):
            if seconds < 0:
                raise ArgumentError(f"Must specify {what} >= 0, given: {seconds}")
        return super().__new__(
            cls, input_fn, steps, name, hooks_of(hooks), _exporters(exporters), start_delay_secs, throttle_secs
        )


def train_and_evaluate(estimator: Estimator, train_spec: TrainSpec, eval_spec: EvalSpec) -> tuple[Any, list[Any]]:
    """Train, and evaluate and export checkpoints on the way: one that was saved `throttle_secs` after the last one
    evaluated, and the last of all.

    Returns:
        The last metrics, and what the exporters exported with them; `(None, [])` if `max_steps` was reached before.

    Raises:
        ValueError: TF_CONFIG speaks of a cluster of several machines.
        TypeError: an argument is of another class.
    """
    for name, value, wanted in (
        ("estimator", estimator, Estimator),
        ("train_spec", train_spec, TrainSpec),
        ("eval_spec", eval_spec, EvalSpec),
    ):
        if not isinstance(value, wanted):
            raise TypeError(f"`{name}` must have type `tf.estimator.{wanted.__name__}`, given {type(value)}")
    config = estimator.config
    if config.num_ps_replicas or config.num_worker_replicas != 1:
        raise ArgumentError(
            f"TF_CONFIG makes this task {config.task_type}:{config.task_id} of a cluster, and train_and_evaluate works "
            "in one process; unset TF_CONFIG, or give it a cluster of one chief"
        )
    listener = _EvaluateWhenSaved(estimator, train_spec, eval_spec)
    estimator.train(
        train_spec.input_fn,
        hooks=train_spec.hooks,
        max_steps=train_spec.max_steps,
        saving_listeners=(*train_spec.saving_listeners, listener),
    )
    return listener.metrics, listener.exports


class _EvaluateWhenSaved(tf.compat.v1.train.CheckpointSaverListener):
    """Evaluates and exports the checkpoint just written."""

    def __init__(self, estimator: Estimator, train_spec: TrainSpec, eval_spec: EvalSpec) -> None:
        self._estimator = estimator
        self._last_step = train_spec.max_steps
        self._spec = eval_spec
        self.metrics: Any = None
        self.exports: list[Any] = []

    def begin(self) -> None:
        self._timer = v1.train.SecondOrStepTimer(every_secs=self._spec.throttle_secs)
        self._untrained = True

    def after_save(self, session: Any, global_step_value: int) -> None:
        if self._untrained:
            self._untrained = False
        elif self._timer.should_trigger_for_step(global_step_value):
            self._evaluate(global_step_value)
        else:
            v1.logging.info(
                "Skip the current checkpoint eval due to throttle secs (%s secs).", self._spec.throttle_secs
            )

    def end(self, session: Any, global_step_value: int) -> None:
        if global_step_value != self._timer.last_triggered_step():
            self._evaluate(global_step_value)

    def _evaluate(self, step: int) -> None:
        self._timer.update_last_triggered_step(step)
        checkpoint = str(self._estimator.latest_checkpoint())
        spec = self._spec
        self.metrics = self._estimator.evaluate(spec.input_fn, spec.steps, spec.hooks, checkpoint, spec.name)
        final = self._last_step is not None and self.metrics["global_step"] >= self._last_step
        self.exports = [
            exporter.export(
                self._estimator,
                export_path=os.path.join(self._estimator.model_dir, "export", exporter.name),
                checkpoint_path=checkpoint,
                eval_result=self.metrics,
                is_the_final_export=final,
            )
            for exporter in spec.exporters
        ]


def _check_callable(input_fn: Any) -> None:
    if not callable(input_fn):
        raise TypeError(f"`input_fn` must be callable, given: {input_fn!r}")


def _exporters(exporters: Any) -> tuple[Exporter, ...]:
    exporters = (exporters,) if isinstance(exporters, Exporter) else tuple(exporters or ())
    for exporter in exporters:
        if not isinstance(exporter, Exporter):
            raise TypeError(f"`exporters` must be an Exporter or several, given: {exporter!r}")
    names = [exporter.name for exporter in exporters]
    if len(set(names)) < len(names):
        raise ArgumentError(f"`exporters` must have unique names. Such a name cannot be had twice: {names}")
    return exporters
