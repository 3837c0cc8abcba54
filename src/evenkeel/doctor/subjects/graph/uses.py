# SPDX-License-Identifier: Apache-2.0
"""Where a graph normalizes, and with which statistics in which phase."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from evenkeel.doctor.subjects.graph.kept import Kept
from evenkeel.doctor.subjects.graph.nodes import Edge, Node, constant, decimal, through
from evenkeel.doctor.subjects.graph.origins import ALWAYS, FUSED, Origins, Phase

_INNER = ("batchnorm", "moments", "cond", "sufficient_statistics", "Rsqrt", "FusedBatchNorm")
_CALLS = ("PartitionedCall", "StatefulPartitionedCall")
_ADDING, _ROOTS = ("Add", "AddV2"), ("Rsqrt", "Sqrt")


@dataclass(eq=False)
class Use:
    """An operation that divides by a standard deviation.

    name: of the normalizer; of its scope of names where nothing is kept.
    batch: phases in which the variance is that of the batch.
    moving: phases in which it is a moving one.
    epsilon: added to the variance.
    """

    node: Node
    name: str
    batch: frozenset[Phase]
    moving: frozenset[Phase]
    epsilon: float | None

    @property
    def because(self) -> str:
        """What says so, in words, where there is no choice."""
        batch = ALWAYS in self.batch
        if self.node.op in FUSED:
            return f"{self.node.op} {self.node.name!r} has is_training={batch}"
        return (
            f"{self.node.name!r} takes {'the variance of its batch' if batch else 'the moving variance'}, in any phase"
        )


def uses(origins: Origins, kept: Mapping[str, Kept]) -> list[Use]:
    """In the order of the graph; layer normalization and its kin are none."""
    owners = {name: item.name for item in kept.values() for name in item.statistics}
    moments = {node: item.name for item in kept.values() for node in item.moments}
    affine = {node: item.name for item in kept.values() for node in item.affine}
    found = []
    for node in origins.graph.nodes.values():
        if node.op in FUSED and len(node.inputs) >= 3:
            training, phase = node.attributes["is_training"].b, origins.phase(node)
            if phase is None:
                continue
            batch, moving = ({phase}, set()) if training else (set(), {phase})
            sources = {node} if training else {item.node for edge in node.inputs[3:] for item in origins.of(edge)}
            epsilon: float | None = decimal(node.attributes["epsilon"].f)
            beside: list[Edge] = node.inputs[1:3]
        elif node.op in _ROOTS and (spread := _spread(node)):
            edge, epsilon = spread
            phase = origins.phase(node)
            of = [] if phase is None else list(origins.of(edge, phase))
            batch = {
                origin.phase | (origins.phase(origin.node) or ALWAYS) for origin in of if origins.is_of_batch(origin)
            }
            moving = {origin.phase for origin in of if origin.node.name in owners}
            if not batch and not moving:
                continue
            sources = {origin.node for origin in of}
            beside = [other for consumer in origins.graph.consumers.get(node, ()) for other in consumer.inputs]
        else:
            continue
        candidates = [
            {owners[source.name] for source in sources if source.name in owners},
            {moments[source] for source in sources if source in moments},
            {max((scope for scope in kept if node.name.startswith(f"{scope}/")), key=len, default="")} & kept.keys(),
            {affine[source] for source in map(_parameter, beside) if source in affine},
        ]
        name = next((min(names) for names in candidates if names), _scope(node.name))
        found.append(Use(node, name, frozenset(batch), frozenset(moving), epsilon))
    return found


def normalized(use: Use, consumers: Mapping[Node, list[Node]]) -> Iterator[Node]:
    """Operations behind whose inputs stand what is normalized, and the gamma it is scaled with."""
    yield use.node
    if use.node.op in _ROOTS:
        for factor in consumers.get(use.node, ()):
            if factor.op in ("Mul", "RealDiv", "Reciprocal", "Switch", "Merge", "Identity"):
                yield factor
                yield from (product for product in consumers.get(factor, ()) if product.op == "Mul")


def _spread(root: Node) -> tuple[Edge, float] | None:
    """The variance and epsilon under a root."""
    total = root.inputs[0].node if root.inputs else root
    if total.op in _ADDING:
        for variance, added in (total.inputs, reversed(total.inputs)):
            epsilon = constant(added.node)
            if epsilon is not None and epsilon.size == 1 and 0 < epsilon.item() < 1:
                return variance, decimal(epsilon.item())
    return None


def _parameter(edge: Edge) -> Node:
    """The variable or constant that it is, or has the values of."""
    return through(edge, ("Reshape", "Identity", "Switch", "Cast", "Enter", "ReadVariableOp"))


def _scope(name: str) -> str:
    parts = name.split("/")
    while len(parts) > 1 and parts[0].startswith(_CALLS):
        del parts[0]
    inner = [place for place, part in enumerate(parts) if place and part.startswith(_INNER)]
    return "/".join(parts[: inner[0]] if inner else parts)
