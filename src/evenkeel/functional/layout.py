# SPDX-License-Identifier: Apache-2.0
"""Which dimensions of the input are channels, which are groups, and which are averaged over."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple, SupportsIndex

from evenkeel import arguments
from evenkeel.backends.contract import Tensor


class Layout(NamedTuple):
    """The dimensions of an input of `ndim` dimensions.

    channels: the axes whose every position has its own statistics and parameters.
    groups: the axes whose every position has its own statistics, but shares the parameters.
    All other axes are averaged over.

    Parameters have shape `(channels,)` for one channel axis, and for several the shape of the input
    with 1 in every other dimension, as in TensorFlow.
    """

    ndim: int
    channels: tuple[int, ...]
    groups: tuple[int, ...] = ()

    @classmethod
    def of(cls, ndim: int, axis: SupportsIndex | Iterable[SupportsIndex]) -> Layout:
        return cls(ndim, arguments.axes_within(arguments.axes(axis), ndim))

    @property
    def reduced(self) -> tuple[int, ...]:
        return tuple(axis for axis in range(self.ndim) if axis not in self.channels + self.groups)

    def grouped(self) -> Layout:
        """The layout after the rows were split into `(groups, rows of a group)`."""
        return Layout(self.ndim + 1, tuple(axis + 1 for axis in self.channels), (0,))

    def parameter_shape(self, shape: tuple[Any, ...]) -> tuple[Any, ...]:
        """Of an input without groups.

        Example:
            >>> Layout.of(4, -1).parameter_shape((8, 5, 5, 3)), Layout.of(4, [1, 2]).parameter_shape((8, 5, 6, 3))
            ((3,), (1, 5, 6, 1))
        """
        if len(self.channels) == 1:
            return (shape[self.channels[0]],)
        return tuple(size if axis in self.channels else 1 for axis, size in enumerate(shape))

    def spread(self, backend: Any, parameter: Tensor) -> Tensor:
        """A parameter in a shape that broadcasts against the input."""
        if len(self.channels) == 1:
            return backend.reshape(parameter, [-1 if axis in self.channels else 1 for axis in range(self.ndim)])
        shape = list(backend.shape(parameter))
        for axis in self.groups:
            shape.insert(axis, 1)
        return backend.reshape(parameter, shape)

    def gather(self, backend: Any, statistic: Tensor, parameter: Tensor) -> Tensor:
        """A statistic with one value a channel, in the shape of `parameter`."""
        return backend.reshape(statistic, backend.shape(parameter))
