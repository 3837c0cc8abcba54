# SPDX-License-Identifier: Apache-2.0
"""The normalizers of a TensorFlow 1 graph, made today or imported, and what goes into them.

A graph has no layers. A normalizer is a `moving_mean` that an operation moves towards a value, and a `moving_variance`
beside it; its input is the nearest tensor before that value whose mean over a batch is the value. It is found by its
numbers, so it does not matter which operations, of which version, compute them.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from evenkeel.errors import ArgumentError, InputError
from evenkeel.functional.moments import Moments, bessel
from evenkeel.functional.moving import State
from evenkeel.surgery.recalibrate.feeding import Batches
from evenkeel.surgery.recalibrate.pool import measured
from evenkeel.surgery.recalibrate.subject import Call, Normalizer, Seen

MEAN, VARIANCE = "moving_mean", "moving_variance"
NO_FEED = "feed is missing, and a batch is a {kind}; give a function of a batch that returns the feed dictionary"
NO_UPDATES = (
    "the graph has no operation that updates a moving_mean; give the graph that was trained, built with "
    "is_training=True or a tensor, not one built for inference, and call tf.disable_v2_behavior() before "
    "building it, for nobody sees into the branches of TensorFlow 2"
)
NO_PHASE = 'method="sequential" needs the graph in inference; give phase, the bool tensor that is True in training'
NO_INPUT = (
    "no tensor before its update has the mean of the batch: weights or masks, a batch of one value a channel, "
    "or a phase that is not training"
)
NO_UPDATE = "no operation that updates it was found, as in inference or in a branch of TensorFlow 2"
WITH_RENORM = "batch renormalization, whose epsilon the graph does not tell"

# What may stand between an operation and the variable, or the value, that it speaks of.
_PASSING = ("Identity", "Switch", "RefSwitch", "RefIdentity", "Enter", "RefEnter", "ReadVariableOp", "Cast")
_SHAPING = ("Cast", "Identity", "Reshape", "Squeeze", "Switch")
_VARIABLES = ("Variable", "VariableV2", "VarHandleOp")
_FETCHES, _LOOKED_AT = 24, 400


class _Input(NamedTuple):
    """tensor: what is normalized. axis: of its channels. sample: the variance kept is the sample's."""

    tensor: Any
    axis: int
    sample: bool

    def moments(self, value: np.ndarray) -> Moments:
        return measured(value, axis=self.axis)


class TF1Session:
    """In training, where each normalizer uses its batch, all inputs are fetched at once; in inference one by one."""

    call, class_axis = None, -1

    def __init__(self, session: Any, batches: Batches, *, phase: Any, feed: Any, training: bool) -> None:
        self._session, self._feed, self._training = session, feed, training
        on = {} if phase is None else dict(phase) if isinstance(phase, Mapping) else {phase: True}
        off = {key: not value if isinstance(value, bool | np.bool_) else value for key, value in on.items()}
        if not training and phase is None:
            raise ArgumentError(NO_PHASE)
        self._phases = {True: on, False: off}
        variables = {variable.op.name: variable for variable in _in(session.graph, "GLOBAL_VARIABLES")}
        self._others = [variable for variable in variables.values() if not _trained(session.graph, variable)]
        values = moved_towards(session.graph, list(variables))
        names = [name for name in values if name.endswith(MEAN) and _sibling(name) in variables]
        if not names:
            raise InputError(NO_UPDATES)
        self._inputs: dict[Normalizer, _Input] = {}
        self.normalizers = []
        with self._unchanged():
            first = batches.first()
            for name in names:
                found = self._found(first, values[name], values.get(_sibling(name)))
                pair = variables[name], variables[_sibling(name)]
                renorm = _sibling(name, "renorm_mean") in variables
                left = WITH_RENORM if renorm else NO_INPUT if found is None else None
                normalizer = self._normalizer(name, pair, found is not None and found.sample, left)
                self.normalizers.append(normalizer)
                if found is not None and not renorm:
                    self._inputs[normalizer] = found
        for name in variables:
            if name.endswith(MEAN) and _sibling(name) in variables and name not in names:
                pair = variables[name], variables[_sibling(name)]
                self.normalizers.append(self._normalizer(name, pair, False, NO_UPDATE))

    @contextlib.contextmanager
    def running(self, seen: Seen) -> Iterator[Callable[[Any], None]]:
        def run(batch: Any) -> None:
            fetched: dict[Normalizer, np.ndarray] = {}
            if self._training:
                tensors = [found.tensor for found in self._inputs.values()]
                fetched = dict(zip(self._inputs, self._run(batch, tensors, training=True), strict=True))

            def measure(found: _Input, value: np.ndarray | None) -> Moments:
                return found.moments(self._run(batch, found.tensor, training=False) if value is None else value)

            for normalizer, found in self._inputs.items():
                value = fetched.get(normalizer)
                measured_now = functools.partial(measure, found, value)
                seen(normalizer, Call(value, found.axis, measured_now, measured_now))

        with self._unchanged():
            yield run

    @contextlib.contextmanager
    def _unchanged(self) -> Iterator[None]:
        """An output may wait for the updates (`updates_collections=None`); what they moved goes back."""
        before = self._session.run(self._others)
        try:
            yield
        finally:
            for variable, value in zip(self._others, before, strict=True):
                self._load(variable, value)

    def _run(self, batch: Any, fetches: Any, *, training: bool) -> Any:
        if self._feed is None and not isinstance(batch, Mapping):
            raise ArgumentError(NO_FEED.format(kind=type(batch).__name__))
        fed = batch if self._feed is None else self._feed(batch)
        return self._session.run(fetches, {**fed, **self._phases[training]})

    def _load(self, variable: Any, value: np.ndarray) -> None:
        # The initializer is an assignment; feeding it works in a graph that is finalized too.
        start = variable.initializer
        self._session.run(start, {start.inputs[1]: value})

    def _normalizer(self, name: str, pair: tuple[Any, Any], sample: bool, left: str | None) -> Normalizer:
        def write(state: State) -> None:
            for variable, value in zip(pair, state, strict=False):
                self._load(variable, value)

        scope = name.rpartition("/")[0] or name
        return Normalizer(scope, 0.0, sample, lambda: State(*self._session.run(list(pair))), write, left)

    def _found(self, batch: Any, mean: Any, variance: Any) -> _Input | None:
        """The nearest tensor before `mean` whose mean it is."""
        import tensorflow as tf

        kept = self._run(batch, [mean] if variance is None else [mean, variance], training=True)
        for candidate in _candidates(self._session.graph, mean, kept[0].size):
            try:
                value = self._run(batch, candidate, training=True)
                if not self._training:
                    self._run(batch, candidate, training=False)
            except tf.errors.InvalidArgumentError:
                continue  # in a branch that was not taken
            for axis in range(value.ndim - 1, -1, -1):
                if value.shape[axis] == kept[0].size:
                    found = _Input(candidate, axis, sample=False)
                    batch_moments = found.moments(value)
                    if _same_mean(batch_moments, kept[0].ravel()):
                        sample = variance is not None and _is_sample(batch_moments, kept[1].ravel())
                        return found._replace(sample=sample)
        return None


def moved_towards(graph: Any, names: list[str]) -> dict[str, Any]:
    """Name of a variable -> what an operation moves it towards, in the order of the graph.

    An average without the start value (`zero_debias`) is kept in a variable `.../NAME/biased` beside.
    """
    found: dict[str, Any] = {}
    for operation in graph.get_operations():
        if operation.type in ("AssignSub", "AssignSubVariableOp"):
            moved = _variable(operation.inputs[0])
            value = moved and _value(operation.inputs[1], moved)
            if moved and value is not None:
                plain = moved.removesuffix("/biased")
                ends = [name for name in names if plain == name or plain.endswith(f"/{name}")]
                found.setdefault(moved if plain == moved else max(ends, key=len, default=moved), value)
    return found


def _value(difference: Any, moved: str) -> Any:
    """The value in `(variable - value) * share`, or in a choice between that and zeros; None for another difference."""
    operation = difference.op
    if operation.type in ("Select", "SelectV2"):
        return _value(operation.inputs[1], moved)
    if operation.type == "Mul":
        found = (_value(factor, moved) for factor in operation.inputs)
        return next((value for value in found if value is not None), None)
    if operation.type in _PASSING:
        return _value(operation.inputs[0], moved)
    if operation.type == "Sub" and _variable(operation.inputs[0]) == moved:
        chain = [operation.inputs[1]]
        while chain[-1].op.type in _SHAPING:  # perhaps in a branch, from where it cannot be fetched
            chain.append(chain[-1].op.inputs[0])
        # The last may be a branch of TensorFlow 2, which cannot either, though what passes on its result can.
        return next((value for value in reversed(chain) if value.graph.is_fetchable(value.op)), chain[-1])
    return None


def _variable(tensor: Any) -> str | None:
    """The name of the variable that a tensor is, or was read from."""
    while tensor.op.type in _PASSING:
        tensor = tensor.op.inputs[0]
    return tensor.op.name if tensor.op.type in _VARIABLES else None


def _candidates(graph: Any, value: Any, channels: int) -> Iterator[Any]:
    """Tensors before `value` that may have so many channels, the nearest first."""
    todo, given = [value], 0
    seen: set[str] = set()
    for tensor in todo:
        for before in tensor.op.inputs:
            if before.name in seen or len(seen) > _LOOKED_AT:
                continue
            seen.add(before.name)
            todo.append(before)
            shape = before.shape
            fits = shape.rank is None or (shape.rank > 1 and not {channels, None}.isdisjoint(shape.as_list()))
            if fits and before.dtype.is_floating and graph.is_fetchable(before.op) and given < _FETCHES:
                given += 1
                yield before


def _same_mean(batch: Moments, mean: np.ndarray) -> bool:
    finite = np.isfinite(batch.mean) & np.isfinite(mean)
    with np.errstate(invalid="ignore"):
        near = np.abs(batch.mean - mean) <= 1e-3 * np.sqrt(batch.variance) + 1e-5 * np.abs(batch.mean)
    return int(batch.count) > 1 and bool(finite.any()) and bool(near[finite].all())


def _is_sample(batch: Moments, variance: np.ndarray) -> bool:
    """Whether the variance kept of a batch is nearer to the sample's than to the population's."""
    sample = batch.variance * bessel(np, batch.count)
    return bool(np.nansum(np.abs(variance - sample)) < np.nansum(np.abs(variance - batch.variance)))


def _sibling(name: str, leaf: str = VARIANCE) -> str:
    return name.removesuffix(MEAN) + leaf


def _in(graph: Any, collection: str) -> list[Any]:
    import tensorflow as tf

    return graph.get_collection(getattr(tf.compat.v1.GraphKeys, collection))


def _trained(graph: Any, variable: Any) -> bool:
    return any(variable is other for other in _in(graph, "TRAINABLE_VARIABLES"))
