# SPDX-License-Identifier: Apache-2.0
"""The normalizers of a Flax nnx module: Flax's own and ours."""

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
    """The classes of the normalizers are watched while the model runs, for Python looks up `__call__` there."""

    class_axis = -1

    def __init__(self, module: Any, *, include_frozen: bool) -> None:
        from flax import nnx

        self._module = module
        nodes = [(path, node) for path, node in nnx.iter_graph(module) if isinstance(node, nnx.Module)]
        self._switched = [node for _, node in nodes]
        self._layers = {
            id(node): _normalizer("/".join(map(str, path)), node, include_frozen=include_frozen)
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

        from evenkeel.layers.flax import BatchNorm

        originals = {kind: kind.__call__ for kind in (nnx.BatchNorm, BatchNorm)}
        try:
            for kind, original in originals.items():
                kind.__call__ = self._watched(original, seen)  # type: ignore[method-assign]
            yield self.call
        finally:
            for kind, original in originals.items():
                kind.__call__ = original  # type: ignore[method-assign]

    def _watched(self, original: Callable[..., Any], seen: Seen) -> Callable[..., Any]:
        def call(layer: Any, x: Any, use_running_average: bool | None = None, *, mask: Any = None, **more: Any) -> Any:
            normalizer = self._layers.get(id(layer))
            if normalizer is None or normalizer.left is not None:
                return original(layer, x, use_running_average, mask=mask, **more)
            weights = {"mask": mask, "sample_weight": more.get("sample_weight")}
            measure, glance = (functools.partial(how, x, axis=layer.axis, **weights) for how in (measured, glanced))
            masked = any(weight is not None for weight in weights.values())
            state = seen(normalizer, Call(x, layer.axis, measure, glance, masked=masked))
            if state is not None:
                normalizer.write(state)
            return original(layer, x, True, mask=mask, **more)

        return call

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


def _normalizer(name: str, layer: Any, *, include_frozen: bool) -> Normalizer:
    def variables() -> State:
        return State(layer.mean, layer.var, *(getattr(layer, field, None) for field in State._fields[2:]))

    def read() -> State:
        return State(*(None if variable is None else np.array(variable[...]) for variable in variables()))

    def write(state: State) -> None:
        for variable, value in zip(variables(), state, strict=True):
            if variable is not None:
                variable[...] = value

    left = "frozen" if getattr(layer, "frozen", False) and not include_frozen else None
    sample = getattr(layer, "bessel_correction", False)
    return Normalizer(name, layer.epsilon, sample, read, write, left, one_pass=layer.use_fast_variance)
