# SPDX-License-Identifier: Apache-2.0
"""What of a graph is written down for TensorBoard."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable
from typing import Any

import tensorflow as tf

v1 = tf.compat.v1


def summarize_tensor(tensor: Any, tag: str | None = None) -> Any:
    """A scalar or histogram summary; None for strings and booleans, which have none.

    Args:
        tag: name of the summary; by default `<name>_summary`.
    """
    if tensor.dtype.base_dtype in (tf.string, tf.bool):
        return None
    kind = v1.summary.scalar if tensor.shape.rank == 0 else v1.summary.histogram
    return kind(tag or f"{tensor.op.name}_summary", tensor)


def summarize_activation(op: Any) -> Any:
    """A histogram of an activation; how many values are at 0 after a relu, and at 6 after a relu6."""
    name, kind = op.op.name, op.op.type
    if kind in ("Relu", "Softplus", "Relu6"):
        before = op.op.inputs[0]
        v1.summary.scalar(f"{name}/zeros", tf.reduce_mean(tf.cast(before < 0, tf.float32)))
        if kind == "Relu6":
            v1.summary.scalar(f"{name}/sixes", tf.reduce_mean(tf.cast(before > 6, tf.float32)))
    return v1.summary.histogram(f"{name}/activation", op)


def summarize_tensors(tensors: Iterable[Any], summarizer: Callable[[Any], Any] = summarize_tensor) -> list[Any]:
    """A summary of each."""
    return [summarizer(tensor) for tensor in tensors]


def summarize_collection(
    collection: str, name_filter: str | None = None, summarizer: Callable[[Any], Any] = summarize_tensor
) -> list[Any]:
    """A summary of each tensor of a collection.

    Args:
        name_filter: regular expression for the beginning of the name.
    """
    found = [
        tensor
        for tensor in v1.get_collection(collection)
        if name_filter is None or re.match(name_filter, tensor.op.name)
    ]
    return summarize_tensors(found, summarizer)


summarize_variables = functools.partial(summarize_collection, v1.GraphKeys.GLOBAL_VARIABLES)
summarize_weights = functools.partial(summarize_collection, v1.GraphKeys.WEIGHTS)
summarize_biases = functools.partial(summarize_collection, v1.GraphKeys.BIASES)


def summarize_activations(
    name_filter: str | None = None, summarizer: Callable[[Any], Any] = summarize_activation
) -> list[Any]:
    """A summary of each tensor of the collection ACTIVATIONS."""
    return summarize_collection(v1.GraphKeys.ACTIVATIONS, name_filter, summarizer)
