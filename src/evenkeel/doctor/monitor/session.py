# SPDX-License-Identifier: Apache-2.0
"""What training does to the normalizers of a graph of TensorFlow 1, while a session runs it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from evenkeel import arguments
from evenkeel.doctor import evidence
from evenkeel.doctor.monitor.apart import UNKNOWN, apart, not_finite, statistics
from evenkeel.doctor.monitor.records import Records
from evenkeel.doctor.monitor.speaking import Listener, Speaker, excused
from evenkeel.doctor.subjects.graph.kept import Kept, kept
from evenkeel.doctor.subjects.graph.nodes import Graph, ancestors
from evenkeel.doctor.subjects.graph.origins import Origins
from evenkeel.doctor.subjects.graph.training import OPTIMIZERS
from evenkeel.errors import InputError
from evenkeel.functional.moments import Moments
from evenkeel.surgery.recalibrate.tf1 import MEAN, VARIANCE, moved_towards

v1 = tf.compat.v1

NO_NORMALIZER = "the graph has no moving_mean with a moving_variance beside it; leave the NormalizationHook out"
PARTS = {"moving_mean": MEAN, "moving_variance": VARIANCE, "gamma": "gamma", "beta": "beta"}


class Period(NamedTuple):
    """What some training steps did to a normalizer.

    step: the global step afterwards; without one, training steps since the hook began.
    normalizer: scope of its statistics.
    steps: training steps since the row before.
    moved: channels whose moving mean or variance is another than before.
    not_finite: channels whose moving mean or variance is not finite.
    moved_kl, moved_shift: from the statistics before to those now, as `Apart` has them.
    batch_kl, batch_shift: from the moving statistics to those of the last batch, which scatter the more the smaller it
        is; NaN where the graph does not tell them: the last steps of a training, a branch, inference.
    """

    step: int
    normalizer: str
    steps: int
    moved: int
    not_finite: int
    moved_kl: float
    moved_shift: float
    batch_kl: float
    batch_shift: float


class _Needs(NamedTuple):
    """What a `run` does. trains: an optimizer is among it. values: normalizer -> tensors of its batch, among it too."""

    trains: bool
    values: dict[str, list[Any]]


class NormalizationHook(tf.compat.v1.train.SessionRunHook):
    """Watches the moving statistics of a graph while a MonitoredSession, or an estimator, trains it.

    Every so many training steps there is a row for each normalizer, and the rules of the doctor look. An error or a
    warning of theirs is a Python warning, `NormalizationWarning`, once a rule and normalizer. Nothing is added to the
    graph; a step that is watched fetches what it computes anyway.

    A step is a `run` that fetches an optimizer's operation.

    Args:
        every_steps: training steps from row to row; what is left at the end has a row too.
        csv: path of a file with a line for each row.
        log_dir: of files for TensorBoard.
        append: the file of `csv` is there, and this training goes on with it.
        on_finding: called with each finding instead of the warning; what it raises ends the training.

    Attributes:
        history: list of `Period`.

    Raises:
        ArgumentError: `every_steps` is no positive integer.
        InputError: the CSV is there, or cannot be written; a graph without normalizers, when training begins.

    Example:
        >>> hook = NormalizationHook(every_steps=2)
        >>> with tf.Graph().as_default():
        ...     from evenkeel.tf1 import layers
        ...     y = layers.batch_normalization(tf.constant([[1.0], [3.0]]), training=True, momentum=0.5, name="bn")
        ...     loss = tf.reduce_mean(tf.square(y - 1.0))
        ...     with tf.control_dependencies(v1.get_collection("update_ops")):
        ...         train = v1.train.GradientDescentOptimizer(0.1).minimize(loss)
        ...     with v1.train.MonitoredTrainingSession(hooks=[hook]) as session:
        ...         for _ in range(4):
        ...             _ = session.run(train)
        >>> [(row.step, row.normalizer, row.moved) for row in hook.history]
        [(2, 'bn', 1), (4, 'bn', 1)]
    """

    def __init__(
        self,
        every_steps: int = 100,
        *,
        csv: str | os.PathLike[str] | None = None,
        log_dir: str | os.PathLike[str] | None = None,
        append: bool = False,
        on_finding: Listener | None = None,
    ) -> None:
        self._every = arguments.positive_integer("every_steps", every_steps)
        self._records = Records(Period, csv, log_dir, append=append)
        self._speaker = Speaker(on_finding)
        self.history: list[Period] = []

    def after_create_session(self, session: Any, coord: Any) -> None:
        graph = session.graph
        self._nodes = Graph(graph.as_graph_def())
        self._needs: dict[tuple[str, ...], _Needs] = {}
        self._kept = {item.name: item for item in kept(Origins(self._nodes)).values()}
        variables = {variable.op.name: variable for variable in graph.get_collection(v1.GraphKeys.GLOBAL_VARIABLES)}
        parts = {name: _parts(item, variables) for name, item in self._kept.items()}
        self._variables = {name: found for name, found in parts.items() if {MEAN, VARIANCE} <= found.keys()}
        if not self._variables:
            raise InputError(NO_NORMALIZER)
        values = moved_towards(graph, list(variables))
        self._values = {
            name: [values[found[part].op.name] for part in (MEAN, VARIANCE)]
            for name, found in self._variables.items()
            if all(found[part].op.name in values for part in (MEAN, VARIANCE))
        }
        self._global_step = v1.train.get_global_step(graph)
        self._steps = self._shown = 0
        self._before, _ = self._read(session)

    def before_run(self, run_context: Any) -> Any:
        self._now = self._needed(run_context.session.graph, run_context.original_args.fetches)
        watched = self._now.trains and (self._steps + 1) % self._every == 0
        return v1.train.SessionRunArgs(self._now.values) if watched and self._now.values else None

    def after_run(self, run_context: Any, run_values: Any) -> None:
        if self._now.trains:
            self._steps += 1
            if self._steps % self._every == 0:
                self._show(run_context.session, run_values.results or {})

    def end(self, session: Any) -> None:
        if self._steps > self._shown:
            self._show(session, {})
        self._records.close()

    def _needed(self, graph: Any, fetches: Any) -> _Needs:
        """What these fetches have the session run."""
        names = tuple(_names(graph, fetches))
        if names not in self._needs:
            run = ancestors([self._nodes.nodes[name] for name in names if name in self._nodes.nodes])
            run_names = {node.name for node in run}
            values = {
                name: tensors
                for name, tensors in self._values.items()
                if all(tensor.op.name in run_names and graph.is_fetchable(tensor.op) for tensor in tensors)
            }
            self._needs[names] = _Needs(any(node.op.startswith(OPTIMIZERS) for node in run), values)
        return self._needs[names]

    def _read(self, session: Any) -> tuple[dict[str, evidence.Normalizer], int]:
        step = {} if self._global_step is None else {"step": self._global_step}
        found, more = session.run((self._variables, step))
        normalizers = {
            name: evidence.Normalizer(
                name,
                **{field: parts.get(part) for field, part in PARTS.items()},
                momentum=self._kept[name].momentum(),
                moves=bool(self._kept[name].updates),
            )
            for name, parts in found.items()
        }
        return normalizers, int(more.get("step", self._steps))

    def _show(self, session: Any, batches: dict[str, list[np.ndarray]]) -> None:
        before, steps = self._before, self._steps - self._shown
        self._before, step = self._read(session)
        self._shown = self._steps
        rows = [
            Period(
                step,
                name,
                steps,
                _moved(before[name], now),
                not_finite(now),
                *apart(statistics(before[name]), statistics(now), None),
                *(apart(statistics(now), _moments(batches[name]), None) if name in batches else UNKNOWN),
            )
            for name, now in self._before.items()
        ]
        self.history += rows
        self._records.write(rows)
        self._speaker.say(session.graph, _found(before, self._before))


def _parts(item: Kept, variables: dict[str, Any]) -> dict[str, Any]:
    """Last part of the name -> variable, of those that a session can read."""
    names = [*item.statistics, *(node.name for node in item.affine)]
    found = {name.rpartition("/")[2]: variables[name] for name in names if name in variables}
    return {part: found[part] for part in PARTS.values() if part in found}


def _names(graph: Any, fetches: Any) -> Iterator[str]:
    """Of the operations that a session is asked for."""
    for element in tf.nest.flatten(fetches, expand_composites=True):
        try:
            found = graph.as_graph_element(element)
        except (TypeError, ValueError, KeyError):  # programs may teach sessions to fetch what they like
            continue
        yield getattr(found, "op", found).name


def _moments(values: list[np.ndarray]) -> Moments:
    mean, variance = (np.ravel(value).astype("float64") for value in values)
    return Moments(mean, variance, 0)


def _moved(before: evidence.Normalizer, now: evidence.Normalizer) -> int:
    changes = [
        (one != other) & ~(np.isnan(one) & np.isnan(other))
        for one, other in zip(statistics(before)[:2], statistics(now)[:2], strict=True)
    ]
    return int(np.count_nonzero(np.any(changes, axis=0)))


def _found(
    before: dict[str, evidence.Normalizer], after: dict[str, evidence.Normalizer]
) -> Iterator[evidence.Evidence]:
    for name, now in after.items():
        yield excused(now)
        if now.moves:
            yield evidence.Pair(before[name], now, trained=True)
