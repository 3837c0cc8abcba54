# SPDX-License-Identifier: Apache-2.0
"""What a train operation of a graph runs and trains."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from evenkeel.doctor.subjects.graph.kept import Kept
from evenkeel.doctor.subjects.graph.nodes import Graph, Node, ancestors, descendants, variable

OPTIMIZERS = ("Apply", "ResourceApply", "SparseApply", "ResourceSparseApply")


@dataclass(eq=False)
class Training:
    """A train operation, or several that are run together.

    run: what a session runs for it.
    trained: variables that it trains.
    behind: what stands behind these variables.
    missing: placeholders that must be fed, though the loss and its gradients do not need them.
    """

    name: str
    run: set[Node]
    trained: set[Node]
    behind: set[Node]
    missing: set[Node]

    @classmethod
    def of(cls, graph: Graph, operations: Iterable[Node]) -> Training:
        operations = list(operations)
        run = ancestors(operations)
        steps = [node for node in run if node.op.startswith(OPTIMIZERS) and node.inputs]
        trained = {moved for node in steps if (moved := variable(node.inputs[0])) is not None}
        behind = descendants(graph, trained, controls=False)
        missing = placeholders(run) - placeholders(ancestors(steps, controls=False))
        return cls(operations[0].name, run, trained, behind, missing)

    def foreign(self, kept: Kept) -> dict[str, tuple[str, ...]]:
        """Updates that it runs -> placeholders that they need and the loss does not."""
        reached = [node for node in kept.updates if node in self.run] if self.missing else []
        needed = {node.name: self.missing & ancestors([node]) for node in reached}
        return {name: tuple(sorted(other.name for other in others)) for name, others in needed.items() if others}


def trainings(graph: Graph, collected: Iterable[str]) -> list[Training]:
    """The last operations of those behind an optimizer's, or behind what is in the collection of train operations."""
    steps = [node for node in graph.nodes.values() if node.op.startswith(OPTIMIZERS)]
    behind = descendants(graph, [*steps, *graph.named(collected)])
    last = [node for node in graph.nodes.values() if node in behind and behind.isdisjoint(graph.after(node))]
    return [training for node in last if (training := Training.of(graph, [node])).trained]


def has_gradients(graph: Graph) -> bool:
    """Whether something is differentiated, so that the graph is for training though no optimizer is in it."""
    return any(node.op.endswith(("Grad", "GradV2", "GradV3")) for node in graph.nodes.values())


def placeholders(nodes: Iterable[Node]) -> set[Node]:
    """Those among them that must be fed."""
    return {node for node in nodes if node.op in ("Placeholder", "PlaceholderV2")}
