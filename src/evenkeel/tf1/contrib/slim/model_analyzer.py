# SPDX-License-Identifier: Apache-2.0
"""`slim.model_analyzer`: how large a model is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def tensor_description(var: Any) -> str:
    """Type and shape, such as `float32 3x3x8x16`.

    Example:
        >>> import tensorflow as tf
        >>> with tf.Graph().as_default():
        ...     tensor_description(tf.compat.v1.placeholder(tf.float32, [None, 3]))
        'float32 ?x3'
    """
    sizes = "x".join("?" if size is None else str(size) for size in var.shape.as_list())
    return f"{var.dtype.base_dtype.name} {sizes}"


def analyze_vars(variables: Sequence[Any], print_info: bool = False) -> tuple[int, int]:
    """How many values variables have, and how many bytes.

    Args:
        print_info: prints a line for each.

    Example:
        >>> import tensorflow as tf
        >>> with tf.Graph().as_default():
        ...     analyze_vars([tf.compat.v1.get_variable("v", [3, 4])])
        (12, 48)
    """
    sizes = [variable.shape.num_elements() or 0 for variable in variables]
    octets = [size * variable.dtype.size for size, variable in zip(sizes, variables, strict=True)]
    if print_info:
        print("---------", "Variables: name (type shape) [size]", "---------", sep="\n")
        for variable, size, count in zip(variables, sizes, octets, strict=True):
            print(f"{variable.name} ({tensor_description(variable)}) [{size}, bytes: {count}]")
        print(f"Total size of variables: {sum(sizes)}", f"Total bytes of variables: {sum(octets)}", sep="\n")
    return sum(sizes), sum(octets)


def analyze_ops(graph: Any, print_info: bool = False) -> int:
    """How many values the outputs of all operations of a graph have; those of unknown size count nothing.

    Args:
        print_info: prints a line for each.
    """
    if print_info:
        print("---------", "Operations: name -> (type shapes) [size]", "---------", sep="\n")
    total = 0
    for op in graph.get_operations():
        known = [output for output in op.outputs if output.shape.rank is not None]
        size = sum(output.shape.num_elements() or 0 for output in known)
        total += size
        if print_info:
            shapes = ", ".join(map(tensor_description, known))
            print(f"{op.name}\t->{f' ({shapes}) [{size}]' if shapes else ''}")
    if print_info:
        print("---------", f"Total size: {total}", sep="\n")
    return total
