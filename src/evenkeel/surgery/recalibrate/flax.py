# SPDX-License-Identifier: Apache-2.0
"""The normalizers of a Flax nnx module."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from evenkeel.functional.moving import State
from evenkeel.surgery.recalibrate.feeding import plain
from evenkeel.surgery.recalibrate.pool import glanced, measured
from evenkeel.surgery.recalibrate.subject import Call, Normalizer, Seen

_SWITCHES = ("deterministic", "use_running_average")


class FlaxModule:
    """`nnx.BatchNorm` is watched as a class while the model runs, for Python looks up `__call__` there."""

    class_axis = -1

    def __init__(self, module: Any) -> None:
        from flax import nnx

        self._module = module
        nodes = [(path, node) for path, node in nnx.iter_graph(module) if isinstance(node, nnx.Module)]
        self._switched = [node for _, node in nodes]
        self._layers = {
            id(node): _normalizer("/".join(map(str, path)), node)
            for path, node in nodes
            if isinstance(node, nnx.BatchNorm)
        }
        self.normalizers = list(self._layers.values())

    def call(self, batch: Any) -> Any:
        """The output in eval mode; a dictionary is keyword arguments, a list several arguments."""
        with self._evaluating():
            if isinstance(batch, Mapping):
                return self._module(**{name: plain(value) for name, value in batch.items()})
            return self._module(*map(plain, batch if isinstance(batch, list) else [batch]))

    @contextlib.contextmanager
    def running(self, seen: Seen) -> Iterator[Callable[[Any], Any]]:
        from flax import nnx

        original = nnx.BatchNorm.__call__

        def call(layer: Any, x: Any, use_running_average: bool | None = None, *, mask: Any = None) -> Any:
            normalizer = self._layers.get(id(layer))
            if normalizer is None:
                return original(layer, x, use_running_average, mask=mask)
            measure, glance = (functools.partial(how, x, axis=layer.axis, mask=mask) for how in (measured, glanced))
            state = seen(normalizer, Call(x, layer.axis, measure, glance, masked=mask is not None))
            if state is not None:
                normalizer.write(state)
            return original(layer, x, True, mask=mask)

        nnx.BatchNorm.__call__ = call  # type: ignore[assignment,method-assign]
        try:
            yield self.call
        finally:
            nnx.BatchNorm.__call__ = original  # type: ignore[method-assign]

    @contextlib.contextmanager
    def _evaluating(self) -> Iterator[None]:
        before = [
            (node, name, getattr(node, name)) for node in self._switched for name in _SWITCHES if hasattr(node, name)
        ]
        for node, name, _ in before:
            setattr(node, name, True)
        try:
            yield
        finally:
            for node, name, value in before:
                setattr(node, name, value)


def _normalizer(name: str, layer: Any) -> Normalizer:
    def variables() -> tuple[Any, Any]:
        return layer.mean, layer.var

    def read() -> State:
        return State(*(np.array(variable[...]) for variable in variables()))

    def write(state: State) -> None:
        for variable, value in zip(variables(), state, strict=False):
            variable[...] = value

    return Normalizer(name, layer.epsilon, False, read, write, one_pass=layer.use_fast_variance)
