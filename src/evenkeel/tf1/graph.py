# SPDX-License-Identifier: Apache-2.0
"""Where in a graph an operation stands."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import tensorflow as tf

v1 = tf.compat.v1


def can_be_run(operations: Iterable[Any]) -> bool:
    """Whether a session may run the operations, just made: none stands in a branch of a cond or the body of a loop.

    Example:
        >>> with tf.Graph().as_default():
        ...     can_be_run([tf.zeros([]).op])
        True
    """
    graph = v1.get_default_graph()
    with tf.init_scope():
        # Under the new control flow, a branch or a body is a graph of its own.
        outermost = v1.get_default_graph()
    return graph is outermost and all(graph.is_fetchable(operation) for operation in operations)


def after(operations: Iterable[Any], outputs: Any) -> Any:
    """`outputs`, which whoever evaluates runs the operations too."""
    with tf.control_dependencies(list(operations)):
        return tf.nest.map_structure(tf.identity, outputs)


def parts(variable: Any) -> list[Any]:
    """The variables of a partitioned variable, or the variable."""
    return [variable] if isinstance(variable, tf.Variable | tf.Tensor) else list(variable)


def add_once(collection: str, elements: Iterable[Any]) -> None:
    """Puts into a collection what is not there yet."""
    held = v1.get_collection_ref(collection)
    for element in elements:
        if not any(element is other for other in held):
            held.append(element)


def reaches(tensors: Iterable[Any], operation: Any) -> bool:
    """Whether an operation depends on any of the tensors, by data or by control.

    Example:
        >>> with tf.Graph().as_default():
        ...     x, y = tf.zeros([]), tf.zeros([])
        ...     reaches([x], (x + 1).op), reaches([y], (x + 1).op)
        (True, False)
    """
    return not ancestors(operation).isdisjoint(tensor.op for tensor in tensors)


def ancestors(operation: Any) -> set[Any]:
    """What a session runs for an operation: itself, and all that it depends on by data or by control."""
    seen, left = {operation}, [operation]
    while left:
        current = left.pop()
        before = {*(tensor.op for tensor in current.inputs), *current.control_inputs} - seen
        seen |= before
        left.extend(before)
    return seen
