# SPDX-License-Identifier: Apache-2.0
"""Which variables of a graph are moving statistics, and which operations update them."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass, field

import numpy as np

from evenkeel.checkpoints import names
from evenkeel.doctor.subjects.graph.nodes import (
    VARIABLES,
    Edge,
    Graph,
    Node,
    ancestors,
    constant,
    decimal,
    shape,
    through,
    variable,
)
from evenkeel.doctor.subjects.graph.origins import Origins

ASSIGNMENTS = ("Assign", "AssignAdd", "AssignSub", "AssignVariableOp", "AssignAddVariableOp", "AssignSubVariableOp")
_STATISTICS = ("mean", "variance", "moving_stddev", "renorm_mean", "renorm_stddev")
# What an average without the start value keeps beside the variable that gets the result.
_BESIDE = re.compile(r"/(biased|local_step)(_\d+)?$")
_PASSING, _DEEPEST = ("Identity", "Switch", "Cast"), 8


@dataclass(eq=False)
class Kept:
    """What a normalizer keeps, beside each variable of its statistics the operations that update it.

    name: scope of its statistics, as `read_checkpoint` calls it.
    affine: its gamma and beta.
    moments: operations that compute what the updates take from a batch.
    """

    name: str
    statistics: dict[str, list[Node]] = field(default_factory=dict)
    affine: list[Node] = field(default_factory=list)
    moments: set[Node] = field(default_factory=set)

    @property
    def updates(self) -> list[Node]:
        """All of them, in the order of the graph."""
        return [update for updates in self.statistics.values() for update in updates]

    def momentum(self) -> float | None:
        """The share of the old average that is kept, where the graph says it."""
        shares = {decimal(share) for update in self.updates for share in _shares(update)}
        return decimal(1 - shares.pop()) if len(shares) == 1 else None


def kept(origins: Origins) -> dict[str, Kept]:
    """By scope, in the order of the graph: those with names that are known, and averages of what a batch is like."""
    nodes = origins.graph.nodes.values()
    variables = {node.name: node for node in nodes if node.op in VARIABLES}
    variables = variables or frozen(origins.graph)
    found: dict[str, Kept] = {}
    owners: dict[str, Kept] = {}
    for scope, _, roles, _ in names.find({name: shape(node) or () for name, node in variables.items()}, {}):
        found[scope] = Kept(scope)
        for role, name in roles.items():
            if role in _STATISTICS:
                owners[name] = found[scope]
                found[scope].statistics[name] = []
            elif role in ("gamma", "beta"):
                found[scope].affine.append(variables[name])
    for node in nodes:
        if node.op not in ASSIGNMENTS or len(node.inputs) < 2:
            continue
        moved = variable(node.inputs[0])
        if moved is None or _BESIDE.search(moved.name):
            continue
        of = list(origins.of(node.inputs[1]))
        moments = {origin.node for origin in of if origins.is_of_batch(origin)}
        owner = owners.get(moved.name)
        if owner is None and moments and shape(moved) != () and _averages(moved, {origin.node for origin in of}):
            scope = _scope(moved.name, origins.graph)
            owner = owners[moved.name] = found.setdefault(scope, Kept(scope))
        if owner is not None and (moments or _any_moments(origins, node.inputs[1])):
            owner.statistics.setdefault(moved.name, []).append(node)
            owner.moments |= moments
    return {scope: item for scope, item in found.items() if item.statistics}


def frozen(graph: Graph) -> dict[str, Node]:
    """Constants that have the names of what a normalizer keeps."""
    return {
        node.name: node
        for node in graph.nodes.values()
        if node.op == "Const" and node.name.rpartition("/")[2] in names.LEAVES
    }


def restored(graph: Graph) -> dict[str, str]:
    """Name of a variable -> name of what the graph restores it from."""
    found = {}
    for node in graph.nodes.values():
        moved = variable(node.inputs[0]) if node.op in ASSIGNMENTS and len(node.inputs) > 1 else None
        if moved is None:
            continue
        edge = node.inputs[1]
        if edge.node.op == "Identity":
            edge = edge.node.inputs[0]
        keys = constant(edge.node.inputs[1].node) if edge.node.op == "RestoreV2" and len(edge.node.inputs) > 1 else None
        if keys is not None and edge.output < keys.size:
            key = keys.ravel()[edge.output]
            found[moved.name] = key.decode(errors="replace") if isinstance(key, bytes) else str(key)
    return found


def _scope(name: str, graph: Graph) -> str:
    """Of an average of a tensor, that of the tensor, whose name it has below the scope that it was made in."""
    averaged, average, _ = name.rpartition("/ExponentialMovingAverage")
    parts = averaged.split("/")
    inner = ("/".join(parts[place:]) for place in range(len(parts)))
    tensor = next((stem for stem in inner if stem in graph.nodes), averaged) if average else name
    return tensor.partition("/moments/")[0] if "/moments/" in tensor else tensor.rpartition("/")[0] or tensor


def _averages(moved: Node, origins: set[Node]) -> bool:
    """Whether what is assigned mixes the old value with another, or is TensorFlow's class for averages at work."""
    return moved in origins or "/ExponentialMovingAverage" in moved.name


def _any_moments(origins: Origins, value: Edge) -> bool:
    """An initializer and what restores a checkpoint have none; those of batch renormalization come a long way."""
    return any(origins.is_moment(node) for node in ancestors([value.node]))


def _shares(update: Node) -> set[float]:
    """In `variable -= (variable - value) * share`; where training decides on the share, the one of training."""
    if not update.op.startswith("AssignSub"):
        return set()
    product = through(update.inputs[1], _PASSING)
    if product.op != "Mul" or "Sub" not in {edge.node.op for edge in product.inputs}:
        return set()
    factors = [factor for edge in product.inputs for factor in _numbers(edge.node)]
    return {factor for factor in factors if 0 < factor < 1}


def _numbers(node: Node, depth: int = 0) -> set[float]:
    """What it may be, if the graph says so."""
    if node.op == "Const":
        values = constant(node)
        number = values is not None and values.size == 1 and np.issubdtype(values.dtype, np.number)
        return {float(values.item())} if values is not None and number else set()
    if node.op in _PASSING and depth < _DEEPEST:
        return _numbers(node.inputs[0].node, depth + 1)
    if node.op not in ("Merge", "Sub") or len(node.inputs) < 2 or depth == _DEEPEST:
        return set()
    first, second = (_numbers(edge.node, depth + 1) for edge in node.inputs[:2])
    return first | second if node.op == "Merge" else {one - other for one, other in itertools.product(first, second)}
