# SPDX-License-Identifier: Apache-2.0
"""Which normalizers a program trained without ever running their update operations."""

from __future__ import annotations

import contextlib
import functools
import sys
import weakref
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import tensorflow as tf

v1 = tf.compat.v1

_OPTIMIZERS = ("Apply", "ResourceApply", "SparseApply", "ResourceSparseApply")
_STATISTICS = ("moving_", "renorm_")
_DEPTH = 10
_GIVEN = ("Const", "Placeholder", "PlaceholderWithDefault", "VariableV2", "VarHandleOp")


class Seen(NamedTuple):
    """What the sessions have run of one graph.

    run: names of the operations that a fetch needed.
    trained: names of the operations of an optimizer among them.
    waiting: normalizer -> names of its update operations, as of the last `run` that fetched something new.
    sources: normalizer -> names of the operations that the updates come from, the statistics of its batch among them.
    """

    run: set[str]
    trained: set[str]
    waiting: dict[str, set[str]]
    sources: dict[str, set[str]]

    def never_updated(self) -> list[str]:
        """The normalizers that saw a batch and none of whose updates were run, if anything was trained."""
        return [
            name
            for name, updates in self.waiting.items()
            if self.trained and self.sources[name] & self.run and not updates & self.run
        ]


@contextlib.contextmanager
def watched() -> Iterator[list[Seen]]:
    """What the sessions inside run, one entry a graph.

    An operation counts as run when a fetch needs it: inputs and control dependencies are followed. Programs that run
    through `make_callable` or `partial_run` are not seen, nor is work in another process. Names are kept, not graphs.

    Example:
        >>> with watched() as graphs, tf.Graph().as_default(), v1.Session() as session:
        ...     total = tf.constant(1.0, name="one") + 2.0
        ...     _ = session.run(total)
        >>> sorted(graphs[0].run)
        ['add', 'add/y', 'one']
    """
    seen: list[Seen] = []
    of_graph: weakref.WeakKeyDictionary[Any, Seen] = weakref.WeakKeyDictionary()

    def ran(graph: Any, fetches: Any) -> None:
        if graph not in of_graph:
            of_graph[graph] = Seen(set(), set(), {}, {})
            seen.append(of_graph[graph])
        _note(of_graph[graph], graph, fetches)

    with _after_run(v1.Session, ran), _after_run(v1.InteractiveSession, ran):
        yield seen


@contextlib.contextmanager
def _after_run(kind: Any, ran: Any) -> Iterator[None]:
    original = kind.run

    @functools.wraps(original)
    def run(self: Any, fetches: Any, *arguments: Any, **options: Any) -> Any:
        result = original(self, fetches, *arguments, **options)
        ran(self.graph, fetches)
        return result

    kind.run = run
    try:
        yield
    finally:
        del kind.run  # both inherit it


def _note(seen: Seen, graph: Any, fetches: Any) -> None:
    todo = [operation for operation in _operations(graph, fetches) if operation.name not in seen.run]
    if not todo:
        return
    while todo:
        operation = todo.pop()
        if operation.name not in seen.run:
            seen.run.add(operation.name)
            if operation.type.startswith(_OPTIMIZERS):
                seen.trained.add(operation.name)
            todo += _before(operation)
    seen.waiting.clear()
    seen.sources.clear()
    for operation in _operations(graph, graph.get_collection(v1.GraphKeys.UPDATE_OPS) + _updates_of_keras(graph)):
        normalizer, sources = _normalizer(operation)
        if normalizer:
            seen.waiting.setdefault(normalizer, set()).add(operation.name)
            seen.sources.setdefault(normalizer, set()).update(sources)


def _operations(graph: Any, fetches: Any) -> Iterator[Any]:
    """The operations a session is asked for, in whatever they are nested."""
    if isinstance(fetches, Mapping):
        fetches = list(fetches.values())
    if isinstance(fetches, list | tuple):
        for fetch in fetches:
            yield from _operations(graph, fetch)
        return
    # A sparse tensor, or indexed slices, are several.
    for element in tf.nest.flatten(fetches, expand_composites=True):
        # Programs may teach sessions to fetch what they like: that cannot be followed, and must not end the program.
        with contextlib.suppress(TypeError, ValueError, KeyError):
            found = graph.as_graph_element(element)
            yield getattr(found, "op", found)


def _before(operation: Any) -> list[Any]:
    return [*(tensor.op for tensor in operation.inputs), *operation.control_inputs]


def _updates_of_keras(graph: Any) -> list[Any]:
    """What is in no collection: the updates of the Keras normalizers that may move."""
    keras = sys.modules.get("evenkeel.tf1.keras.normalization")
    return [update for layer in keras.called_in(graph) for update in layer.updates] if keras else []


def _normalizer(operation: Any) -> tuple[str | None, set[str]]:
    """The scope of the statistic that an operation updates, None where it updates something else; what it comes from.

    Under a tensor phase the statistic is a few operations before the one that ends the cond; it is the nearest, for
    those of other normalizers come in through the batch.
    """
    normalizer, sources, level = None, set(), [operation]
    seen = {operation}
    for _ in range(_DEPTH):
        # Each once: many paths lead through a branch.
        level = list(dict.fromkeys(before for holder in level for before in _before(holder) if before not in seen))
        seen.update(level)
        for holder in level:
            scope, _, name = holder.name.rpartition("/")
            if holder.type not in _GIVEN:
                sources.add(holder.name)
            elif normalizer is None and name.startswith(_STATISTICS):
                normalizer = scope or name
    return normalizer, sources
