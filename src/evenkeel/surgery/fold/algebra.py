# SPDX-License-Identifier: Apache-2.0
"""What kernel and bias a linear layer has that does a normalizer's work too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np


class Kernel(NamedTuple):
    """values: float64, one dimension for each letter of `labels`."""

    values: np.ndarray
    labels: str


class Linear(NamedTuple):
    """A convolution, a dense layer, or any other that is linear but for a bias; in float64.

    kernels: one after the other; two in a separable convolution.
    bias: one dimension for each letter of `bias_labels`; zeros if the layer has none.
    reads, writes: axis of the input, of the output -> the dimensions that it is of the first kernel, of the last. A
        channel of a grouped convolution is two: which group, which channel in it.
    pads: not every value of the output has seen every position of the kernel, as where zeros stand round the input.
    """

    kernels: tuple[Kernel, ...]
    bias: np.ndarray
    bias_labels: str
    reads: Mapping[int, str]
    writes: Mapping[int, str]
    pads: bool = False


def after(linear: Linear, axis: int, scale: np.ndarray, offset: np.ndarray) -> Linear:
    """The layer whose output is `scale * y + offset`.

    Args:
        linear: the layer that gives `y`.
        axis: of the channels in `y`.
        scale, offset: shape `(channels,)`.

    Example:
        >>> dense = Linear((Kernel(np.array([[1.0, 2.0]]), "io"),), np.array([1.0, 1.0]), "o", {1: "i"}, {1: "o"})
        >>> result = after(dense, 1, np.array([10.0, 100.0]), np.array([0.5, 0.5]))
        >>> result.kernels[0].values, result.bias
        (array([[ 10., 200.]]), array([ 10.5, 100.5]))
    """
    channels, last = linear.writes[axis], linear.kernels[-1]
    scale, offset = (value.reshape(_sizes(last, channels)) for value in (scale, offset))
    bias = _times(linear.bias, linear.bias_labels, scale, channels)
    bias += _times(np.ones_like(bias), linear.bias_labels, offset, channels)
    return linear._replace(kernels=(*linear.kernels[:-1], _scaled(last, scale, channels)), bias=bias)


def before(linear: Linear, axis: int, scale: np.ndarray, offset: np.ndarray) -> Linear:
    """The layer whose output for `x` is that of `linear` for `scale * x + offset`.

    Args:
        linear: the layer; if it pads, the offset must be 0.
        axis: of the channels in `x`.
        scale, offset: shape `(channels,)`.

    Example:
        >>> dense = Linear((Kernel(np.array([[1.0], [2.0]]), "io"),), np.array([1.0]), "o", {1: "i"}, {1: "o"})
        >>> result = before(dense, 1, np.array([10.0, 100.0]), np.array([0.5, 0.0]))
        >>> result.kernels[0].values, result.bias
        (array([[ 10.],
               [200.]]), array([1.5]))
    """
    channels, first = linear.reads[axis], linear.kernels[0]
    scale, offset = (value.reshape(_sizes(first, channels)) for value in (scale, offset))
    shift, labels = offset, channels
    following = [*(kernel.labels for kernel in linear.kernels[1:]), linear.bias_labels]
    for kernel, next_labels in zip(linear.kernels, following, strict=True):
        # What the kernel makes of an input that is the offset everywhere.
        kept = "".join(label for label in kernel.labels if label in next_labels)
        shift, labels = np.einsum(f"{kernel.labels},{labels}->{kept}", kernel.values, shift), kept
    shift = _times(np.ones_like(linear.bias), linear.bias_labels, shift, labels)
    return linear._replace(kernels=(_scaled(first, scale, channels), *linear.kernels[1:]), bias=linear.bias + shift)


def _sizes(kernel: Kernel, labels: str) -> list[int]:
    return [kernel.values.shape[kernel.labels.index(label)] for label in labels]


def _scaled(kernel: Kernel, scale: np.ndarray, labels: str) -> Kernel:
    return kernel._replace(values=_times(kernel.values, kernel.labels, scale, labels))


def _times(values: np.ndarray, labels: str, factor: np.ndarray, factor_labels: str) -> np.ndarray:
    return np.einsum(f"{labels},{factor_labels}->{labels}", values, factor)
