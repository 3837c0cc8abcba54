# SPDX-License-Identifier: Apache-2.0
"""Where the values of a tensor come from: from a batch, from a variable, and in which phase."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, NamedTuple

from evenkeel.doctor.subjects.graph.nodes import VARIABLES, Edge, Graph, Node, constant, descendants

FUSED = ("FusedBatchNorm", "FusedBatchNormV2", "FusedBatchNormV3", "_FusedBatchNormEx")
_SWITCHES = ("Switch", "RefSwitch")
_CHOOSING = ("Select", "SelectV2")
_COMPUTING = (
    *("Identity", "RefIdentity", "StopGradient", "Cast", "Reshape", "Squeeze", "ExpandDims", "EnsureShape", "Snapshot"),
    *("CheckNumerics", "Enter", "RefEnter", "Exit", "Merge", "RefMerge", "NextIteration", "PreventGradient"),
    *("Add", "AddV2", "Sub", "Mul", "RealDiv", "Div", "DivNoNan", "Neg", "Square", "Sqrt", "Rsqrt", "Pow", "Maximum"),
    *("Minimum", "Abs", "AddN", "Pack", "Concat", "ConcatV2", "Split", "Unpack", "Assign", "AssignAdd", "AssignSub"),
)
_LOGICAL = (
    *("Identity", "Cast", "StopGradient", "Reshape", "Squeeze", "EnsureShape", "ReadVariableOp", "Enter"),
    *("LogicalNot", "LogicalAnd", "LogicalOr", "Equal", "NotEqual", "Greater", "GreaterEqual", "Less", "LessEqual"),
)
_KNOWN: Mapping[str, Callable[[list[Any]], Any]] = {
    **dict.fromkeys(("Identity", "Cast", "Squeeze", "StopGradient", "PlaceholderWithDefault"), lambda known: known[0]),
    "LogicalNot": lambda known: not known[0],
    "LogicalAnd": all,
    "LogicalOr": any,
    "Equal": lambda known: known[0] == known[1],
    "NotEqual": lambda known: known[0] != known[1],
}
_MOST_LOGIC = 200
PLACEHOLDERS = ("Placeholder", "PlaceholderV2", "PlaceholderWithDefault")

Phase = frozenset[tuple[Node, bool]]
"""Of choices that a person makes, such as `is_training`: what each must be."""
ALWAYS: Phase = frozenset()


class Origin(NamedTuple):
    """An operation that a value comes from, and the phase in which it does."""

    node: Node
    phase: Phase
    output: int = 0


class Origins:
    """Answers of one graph.

    unfed: names of the placeholders that certainly keep their default.
    """

    def __init__(self, graph: Graph, unfed: Collection[str] = ()) -> None:
        self.graph = graph
        self._unfed = unfed
        sources = (node for node in graph.nodes.values() if not node.inputs and node.op not in ("Const", *VARIABLES))
        self._data = descendants(graph, sources, controls=False)
        self._values: dict[Node, Any] = {}
        self._choices: dict[Node, frozenset[Node] | bool | None] = {}

    def of(self, edge: Edge, phase: Phase = ALWAYS) -> Iterator[Origin]:
        """From where simple arithmetic leads to it. Branches that data chooses, such as by its size, all count."""
        left = [(edge, phase)]
        seen = set(left)
        while left:
            (node, output), phase = left.pop()
            steps: list[tuple[Edge, Phase | None]]
            if node.op in _SWITCHES:
                steps = [(node.inputs[0], self._within(phase, node.inputs[1].node, output))]
            elif node.op in _CHOOSING:
                chosen, *sides = node.inputs
                steps = [(side, self._within(phase, chosen.node, 1 - place)) for place, side in enumerate(sides)]
            elif node.op == "IdentityN":
                steps = [(edge, phase) for edge in node.inputs[output : output + 1]]
            elif node.op in _COMPUTING:
                steps = [(before, phase) for before in node.inputs]
            elif node.op == "ReadVariableOp":
                # What an update returns is a variable that is read after it.
                updates = [update for update in node.controls if update.op.startswith("Assign")]
                steps = [(edge, phase) for edge in (node.inputs[0], *(update.inputs[1] for update in updates))]
            else:
                yield Origin(node, phase, output)
                continue
            for before, within in steps:
                if within is not None and (before, within) not in seen:
                    seen.add((before, within))
                    left.append((before, within))

    def phase(self, node: Node) -> Phase | None:
        """In which phase an operation runs; None is never."""
        phase: Phase | None = ALWAYS
        left: list[Edge] = [Edge(node)]
        seen = {node}
        while left:
            current, output = left.pop()
            if current.op in _SWITCHES and phase is not None:
                phase = self._within(phase, current.inputs[1].node, output)
            # A branch that ended before says nothing of what came after.
            if current.op in ("Merge", "RefMerge"):
                continue
            for edge in current.inputs[:1] if current.op in _SWITCHES else current.inputs:
                if edge.node not in seen:
                    seen.add(edge.node)
                    left.append(edge)
        return phase

    def is_of_batch(self, origin: Origin) -> bool:
        """Whether it is a mean or a variance of a batch: over the rows, of what is no weight."""
        return self.is_moment(origin.node) and (origin.node.op not in FUSED or origin.output > 0)

    def is_moment(self, node: Node) -> bool:
        """Whether it computes such."""
        return node.attributes["is_training"].b if node.op in FUSED else self._is_of_rows(node)

    def _is_of_rows(self, node: Node) -> bool:
        if node not in self._data or node.op not in ("Mean", "Sum") or len(node.inputs) < 2:
            return False
        axes = constant(node.inputs[1].node)
        return axes is not None and 0 in axes.ravel()

    def placeholders(self, phase: Phase) -> list[Node]:
        """On which a phase depends."""
        found = {node for choice, _ in phase for node in self._choice(choice) or ()}
        return sorted((node for node in found if node.op in PLACEHOLDERS), key=lambda node: node.name)

    def _within(self, phase: Phase, choice: Node, output: int) -> Phase | None:
        decided = self._choice(choice)
        if isinstance(decided, bool):
            return phase if decided == bool(output) else None
        if not decided:
            return phase
        return None if (choice, not output) in phase else phase | {(choice, bool(output))}

    def _choice(self, node: Node) -> Any:
        """What decides: True or False where that is known, placeholders and variables, or None where the data does."""
        if node not in self._choices:
            before = ancestors_through(node, (*_LOGICAL, "PlaceholderWithDefault"))
            known = self._known(node) if len(before) <= _MOST_LOGIC else None
            self._choices[node] = self._deciders(node) if known is None else bool(known)
        return self._choices[node]

    def _deciders(self, node: Node) -> frozenset[Node] | None:
        before = ancestors_through(node, _LOGICAL)
        last = {other for other in before if other.op not in (*_LOGICAL, "Const")}
        return frozenset(last) if all(other.op in (*PLACEHOLDERS, *VARIABLES) for other in last) else None

    def _known(self, node: Node) -> Any:
        """The value of a choice that is made when the graph is built; None where it is not."""
        if node not in self._values:
            self._values[node] = None  # while it is being looked for, in a loop
            self._values[node] = self._computed(node)
        return self._values[node]

    def _computed(self, node: Node) -> Any:
        if node.op == "Const":
            values = constant(node)
            return None if values is None or values.size != 1 else values.item()
        if node.op not in _KNOWN or (node.op == "PlaceholderWithDefault" and node.name not in self._unfed):
            return None
        known = [self._known(edge.node) for edge in node.inputs]
        if node.op == "LogicalAnd" and False in known:
            return False
        if node.op == "LogicalOr" and True in known:
            return True
        return None if None in known or not known else _KNOWN[node.op](known)


def ancestors_through(node: Node, operations: Collection[str]) -> set[Node]:
    """It, and what comes before it by way of these operations alone."""
    seen, left = {node}, [node]
    while left:
        current = left.pop()
        if current.op in operations or current.op in _SWITCHES:
            for edge in current.inputs[:1] if current.op in _SWITCHES else current.inputs:
                if edge.node not in seen:
                    seen.add(edge.node)
                    left.append(edge.node)
    return seen
