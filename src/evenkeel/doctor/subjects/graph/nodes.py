# SPDX-License-Identifier: Apache-2.0
"""What the operations of a graph of TensorFlow 1 depend on, read from its description; nothing is imported or run.

Bodies of functions (the branches of TensorFlow 2, the calls of a SavedModel) stand in the graph where they are called,
with a `Switch` before what goes into a branch and a `Merge` behind what comes out, as TensorFlow 1 wrote them.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from evenkeel.errors import InputError

VARIABLES = ("Variable", "VariableV2", "VarHandleOp")
CALLS = {
    "PartitionedCall": ("f",),
    "StatefulPartitionedCall": ("f",),
    "If": ("else_branch", "then_branch"),
    "StatelessIf": ("else_branch", "then_branch"),
    "Case": ("branches",),
    "StatelessCase": ("branches",),
    "While": ("body",),
    "StatelessWhile": ("body",),
}
CHOICES = ("If", "StatelessIf", "Case", "StatelessCase")
LOOPS = ("While", "StatelessWhile")
_READING = ("Identity", "Switch", "RefSwitch", "RefIdentity", "Enter", "RefEnter", "ReadVariableOp", "Cast")
# Where outputs with names of their own stand among an operation's outputs; all others are the first.
_OUTPUTS = {"batch_mean": 1, "batch_variance": 2, "reserve_space_1": 3, "reserve_space_2": 4, "output_true": 1}
_DEEPEST, _MOST_NODES, _MOST_VALUES = 30, 1_000_000, 1_000_000

# Of operations whose inputs are asked for by their place.
_FEWEST_INPUTS = {
    **dict.fromkeys(("Identity", "RefIdentity", "Cast", "Reshape", "Enter", "RefEnter", "ReadVariableOp", "Sqrt"), 1),
    **dict.fromkeys(("Rsqrt", *CHOICES), 1),
    **dict.fromkeys(("Switch", "RefSwitch", "Assign", "AssignAdd", "AssignSub", "Mul", "Sub", "Add", "AddV2"), 2),
    **dict.fromkeys(("AssignVariableOp", "AssignAddVariableOp", "AssignSubVariableOp", "Equal", "NotEqual"), 2),
    **dict.fromkeys(("Select", "SelectV2"), 3),
}

NOT_THERE = "{name} takes {input}, which the graph does not have; it is damaged"
TOO_FEW = "{name} is a {op} with {inputs} inputs; the graph is damaged"
TOO_DEEP = "functions call each other {deep} deep; no program does that"
TOO_MANY = "the graph has more than {many} operations once its functions stand where they are called"


class Edge(NamedTuple):
    """Which output of which operation."""

    node: Node
    output: int = 0


@dataclass(eq=False, slots=True)
class Node:
    """An operation. attributes: as TensorFlow describes them; values are read when they are asked for."""

    name: str
    op: str
    attributes: Mapping[str, Any] = field(repr=False)
    inputs: list[Edge] = field(default_factory=list, repr=False)
    controls: list[Node] = field(default_factory=list, repr=False)

    def before(self, *, controls: bool = True) -> Iterator[Node]:
        """What must run first."""
        yield from (edge.node for edge in self.inputs)
        if controls:
            yield from self.controls


class Graph:
    """All operations, by name; those in the body of a function have the name of its call before their own.

    consumers: operation -> those that take what comes out of it.
    followers: operation -> those that only wait for it.

    Args:
        description: a `GraphDef`.

    Raises:
        InputError: it is damaged, or made to keep us busy.
    """

    def __init__(self, description: Any) -> None:
        self._functions = {function.signature.name: function for function in description.library.function}
        self._results: dict[tuple[Node, int], Node] = {}
        self.nodes: dict[str, Node] = {}
        self._add(description.node, "", {}, 0)
        self.consumers: dict[Node, list[Node]] = {}
        self.followers: dict[Node, list[Node]] = {}
        for node in self.nodes.values():
            for edge in node.inputs:
                self.consumers.setdefault(edge.node, []).append(node)
            for other in node.controls:
                self.followers.setdefault(other, []).append(node)

    def _add(self, described: Iterable[Any], prefix: str, arguments: Mapping[str, Edge], depth: int) -> list[Node]:
        if depth > _DEEPEST:
            raise InputError(TOO_DEEP.format(deep=depth))
        added = {item.name: Node(prefix + item.name, item.op, item.attr) for item in described}
        if len(self.nodes) + len(added) > _MOST_NODES:
            raise InputError(TOO_MANY.format(many=_MOST_NODES))
        self.nodes.update((node.name, node) for node in added.values())
        for item in described:
            node = added[item.name]
            for name in item.input:
                if name[:1] == "^" and name[1:] in added:
                    node.controls.append(added[name[1:]])
                elif edge := self._edge(name, added, arguments):
                    node.inputs.append(edge)
                else:
                    raise InputError(NOT_THERE.format(name=node.name, input=name))
            if len(node.inputs) < _FEWEST_INPUTS.get(node.op, 0):
                raise InputError(TOO_FEW.format(name=node.name, op=node.op, inputs=len(node.inputs)))
        for node in added.values():
            if node.op in CALLS or node.op in self._functions:
                self._call(node, depth)
        return list(added.values())

    def _edge(self, name: str, nodes: Mapping[str, Node], arguments: Mapping[str, Edge]) -> Edge | None:
        """Of `name`, `name:output`, or in a body `name:output's name:output`."""
        name, *outputs = name.split(":")
        if name not in nodes:
            return arguments.get(name)
        node, last = nodes[name], outputs[-1] if outputs else "0"
        output = (int(last) if last.isdecimal() else 0) + _OUTPUTS.get(outputs[0] if outputs else "", 0)
        if node.op in CALLS or node.op in self._functions:
            return Edge(self._result(node, output))
        return Edge(node, output)

    def _result(self, call: Node, output: int) -> Node:
        key = (call, output)
        if key not in self._results:
            node = Node(f"{call.name}:{output}", "Merge", {}, [], [call])
            self._results[key] = self.nodes[node.name] = node
        return self._results[key]

    def _call(self, call: Node, depth: int) -> None:
        attributes = [call.attributes[name] for name in CALLS.get(call.op, ()) if name in call.attributes]
        called = [function.name for item in attributes for function in (item.list.func or [item.func])]
        choice = call.op in CHOICES
        given = call.inputs[choice:]
        for branch, name in enumerate(called or [call.op]):
            function = self._functions.get(name)
            if function is None:
                continue
            arguments, prefix = {}, f"{call.name}/" if len(called) < 2 else f"{call.name}/branch_{branch}/"
            for argument, edge in zip(function.signature.input_arg, given, strict=False):
                # A loop's argument is what it starts with, or what the round before returned; both come together here.
                kind, inputs = ("Switch", [edge, call.inputs[0]]) if choice else ("Merge", [edge])
                entered = Node(prefix + argument.name, kind if choice or call.op in LOOPS else "Identity", {}, inputs)
                self.nodes[entered.name] = entered
                arguments[argument.name] = Edge(entered, branch if choice else 0)
            inside = self._add(function.node_def, prefix, arguments, depth + 1)
            nodes = {node.name.removeprefix(prefix): node for node in inside}
            # A body runs whatever changes a variable, needed or not.
            call.controls += [node for node in inside if node.op.startswith(("Assign", "ResourceApply"))]
            for output, argument in enumerate(function.signature.output_arg):
                returned = self._edge(function.ret.get(argument.name, argument.name), nodes, arguments)
                if returned is None:
                    raise InputError(NOT_THERE.format(name=f"function {name}", input=argument.name))
                self._result(call, output).inputs.append(returned)
                if call.op in LOOPS and output < min(len(arguments), len(given)):
                    arguments[function.signature.input_arg[output].name].node.inputs.append(returned)
                    self._result(call, output).inputs.append(given[output])

    def after(self, node: Node) -> list[Node]:
        """What takes what comes out of it, or waits for it."""
        return [*self.consumers.get(node, ()), *self.followers.get(node, ())]

    def named(self, names: Iterable[str]) -> list[Node]:
        """The operations of these names that are there; of a call, what comes out of it too."""
        found = [self.nodes[name] for name in names if name in self.nodes]
        return found + [result for (call, _), result in self._results.items() if call in found]


def ancestors(nodes: Iterable[Node], *, controls: bool = True) -> set[Node]:
    """What must run for these, and these."""
    seen = set(nodes)
    left = list(seen)
    while left:
        for node in left.pop().before(controls=controls):
            if node not in seen:
                seen.add(node)
                left.append(node)
    return seen


def descendants(graph: Graph, nodes: Iterable[Node], *, controls: bool = True) -> set[Node]:
    """What these must run for, and these."""
    seen = set(nodes)
    left = list(seen)
    while left:
        node = left.pop()
        for consumer in graph.after(node) if controls else graph.consumers.get(node, ()):
            if consumer not in seen:
                seen.add(consumer)
                left.append(consumer)
    return seen


def through(edge: Edge, operations: Collection[str]) -> Node:
    """The first before an edge that is none of these operations, by way of their first inputs."""
    seen = set()
    while edge.node.op in operations and edge.node.inputs and edge.node not in seen:
        seen.add(edge.node)
        edge = edge.node.inputs[0]
    return edge.node


def variable(edge: Edge) -> Node | None:
    """The variable that it is, or was read from."""
    node = through(edge, _READING)
    return node if node.op in VARIABLES else None


def shape(node: Node) -> tuple[int, ...] | None:
    """Of a variable or a constant, if it is known."""
    attribute = node.attributes["value"].tensor.tensor_shape if node.op == "Const" else node.attributes["shape"].shape
    sizes = tuple(dimension.size for dimension in attribute.dim)
    return None if attribute.unknown_rank or min(sizes, default=0) < 0 else sizes


def constant(node: Node) -> np.ndarray | None:
    """The values of a constant; None of another operation, and where they are damaged or no normalizer has so many."""
    import tensorflow as tf

    if node.op != "Const" or "value" not in node.attributes:
        return None
    sizes = shape(node)
    if sizes is None or math.prod(sizes) > _MOST_VALUES:
        return None
    try:
        return np.asarray(tf.make_ndarray(node.attributes["value"].tensor))
    except (TypeError, ValueError):
        return None


def decimal(number: float) -> float:
    """The number that a program had, before it was rounded to float32.

    Example:
        >>> decimal(float(np.float32(0.001)))
        0.001
    """
    return float(f"{number:.6g}")
