# SPDX-License-Identifier: Apache-2.0
"""How rows are split into virtual batches and put together again."""

from __future__ import annotations

from typing import Any

from evenkeel import arguments
from evenkeel.backends.contract import Tensor
from evenkeel.errors import ArgumentError
from evenkeel.functional.layout import Layout

WHOLE_AND_PARTS = (
    "virtual_batch_size={size} takes the statistics of a few rows, and synchronized=True those of the rows of all "
    "devices; leave one of them out"
)


def check(rows: Any, axis: Any, *, ndim: int | None = None, synchronized: bool = False) -> int:
    """`rows` as an integer, if a layer with the channels at `axis` may have groups of so many.

    Args:
        rows: of a group.
        axis: as it was given, one or several.
        ndim: dimensions of the input, once they are known: an axis may be counted from the end.
        synchronized: the statistics of all devices are wanted.

    Raises:
        ArgumentError: not a positive integer, synchronized, or the channels are in the rows.
    """
    rows = arguments.positive_integer("virtual_batch_size", rows)
    if synchronized:
        raise ArgumentError(WHOLE_AND_PARTS.format(size=rows))
    axes = arguments.axes(axis)
    if 0 in (axes if ndim is None else arguments.axes_within(axes, ndim)):
        raise ArgumentError(f"axis={axis} has axis 0, which virtual_batch_size splits; give other axes")
    return rows


def split(
    backend: Any, x: Tensor, weights: Tensor | None, layout: Layout, rows: int
) -> tuple[Tensor, Tensor | None, Layout]:
    """`x` and its weights as `(groups, rows, ...)`, and the layout of that.

    Group j holds rows `j * rows` up to `(j + 1) * rows`. A last group that is not full is filled up with
    rows of weight 0, so that all groups are computed at once.
    """
    if 0 in layout.channels:
        raise ArgumentError("virtual batches split axis 0, which is a channel axis here; give other channel axes")
    batch = backend.size(x, 0)
    if isinstance(batch, int):
        rows = min(rows, batch)
    missing = -batch % rows
    full = isinstance(missing, int) and missing == 0
    if weights is None and not full:
        weights = backend.cast(backend.convert([[1.0]], like=x), backend.dtype(x))
        weights = backend.reshape(weights, [1] * layout.ndim)
    if weights is not None:
        inner = [backend.size(weights, axis) for axis in range(1, layout.ndim)]
        weights = backend.broadcast_to(weights, [batch, *inner])
    if not full:
        x, weights = backend.pad_rows(x, missing), backend.pad_rows(weights, missing)

    def grouped(tensor: Tensor) -> Tensor:
        return backend.reshape(tensor, [-1, rows, *(backend.size(tensor, axis) for axis in range(1, layout.ndim))])

    return grouped(x), None if weights is None else grouped(weights), layout.grouped()


def join(backend: Any, y: Tensor, like: Tensor) -> Tensor:
    """`y` in the rows of `like`."""
    shape = [backend.size(like, axis) for axis in range(1, len(backend.shape(like)))]
    return backend.reshape(y, [-1, *shape])[: backend.size(like, 0)]
