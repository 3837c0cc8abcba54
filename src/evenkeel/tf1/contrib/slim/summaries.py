# SPDX-License-Identifier: Apache-2.0
"""`slim.summaries`: summaries of lists of tensors, named after them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import tensorflow as tf

v1 = tf.compat.v1


def add_histogram_summary(tensor: Any, name: str | None = None, prefix: str | None = None) -> Any:
    """A histogram of a tensor."""
    return v1.summary.histogram(_name(tensor, name, prefix), tensor)


def add_histogram_summaries(tensors: Iterable[Any], prefix: str | None = None) -> list[Any]:
    """A histogram of each."""
    return [add_histogram_summary(tensor, prefix=prefix) for tensor in tensors]


def add_image_summary(
    tensor: Any, name: str | None = None, prefix: str | None = None, print_summary: bool = False
) -> Any:
    """Images of a tensor of shape `(batch, height, width, channels)`."""
    return _shown(v1.summary.image, tensor, name, prefix, print_summary)


def add_image_summaries(tensors: Iterable[Any], prefix: str | None = None) -> list[Any]:
    """Images of each."""
    return [add_image_summary(tensor, prefix=prefix) for tensor in tensors]


def add_scalar_summary(
    tensor: Any, name: str | None = None, prefix: str | None = None, print_summary: bool = False
) -> Any:
    """The value of a scalar.

    Args:
        name: that of the tensor by default.
        prefix: before the name, with a slash.
        print_summary: prints the value whenever the summary is evaluated.
    """
    return _shown(v1.summary.scalar, tensor, name, prefix, print_summary)


def add_scalar_summaries(tensors: Iterable[Any], prefix: str | None = None, print_summary: bool = False) -> list[Any]:
    """The value of each."""
    return [add_scalar_summary(tensor, prefix=prefix, print_summary=print_summary) for tensor in tensors]


def add_zero_fraction_summary(
    tensor: Any, name: str | None = None, prefix: str | None = None, print_summary: bool = False
) -> Any:
    """The share of zeros."""
    name = _name(tensor, name, prefix or "Fraction_of_Zero_Values")
    return _shown(v1.summary.scalar, tf.math.zero_fraction(tensor), name, None, print_summary)


def add_zero_fraction_summaries(tensors: Iterable[Any], prefix: str | None = None) -> list[Any]:
    """The share of zeros of each."""
    return [add_zero_fraction_summary(tensor, prefix=prefix) for tensor in tensors]


def _name(tensor: Any, name: str | None, prefix: str | None) -> str:
    name = name or tensor.op.name
    return f"{prefix}/{name}" if prefix else name


def _shown(kind: Callable[..., Any], tensor: Any, name: str | None, prefix: str | None, print_summary: bool) -> Any:
    name = _name(tensor, name, prefix)
    if not print_summary:
        return kind(name, tensor)
    summary = kind(name, tensor, collections=[])
    with tf.control_dependencies([v1.print(name, tensor)]):
        summary = tf.identity(summary)
    v1.add_to_collection(v1.GraphKeys.SUMMARIES, summary)
    return summary
