# SPDX-License-Identifier: Apache-2.0
"""How much each value of the input counts."""

from __future__ import annotations

from typing import Any

from evenkeel.backends.contract import Tensor
from evenkeel.errors import WeightShapeError
from evenkeel.functional.layout import Layout


def combined(
    backend: Any, x: Tensor, layout: Layout, dtype: str, mask: Tensor | None, sample_weight: Tensor | None
) -> Tensor | None:
    """Mask times sample weight, in as many dimensions as `x`; None where every value counts once.

    A mask is a yes or no: whatever is not zero counts once. A sample weight of 2 counts a value twice.

    A mask of fewer dimensions than the input starts at the batch, as Keras's do: `(batch, time)` for
    `(batch, time, channels)`, and also for `(batch, channels, time)`, where the channel axis is left out.
    One that does not fit so may be aligned at its end, as NumPy broadcasts.
    """
    result = None
    for name, value in (("mask", mask), ("sample_weight", sample_weight)):
        if value is None:
            continue
        value = backend.convert(value, like=x)
        value = backend.cast(backend.cast(value, "bool") if name == "mask" else value, dtype)
        value = _aligned(backend, name, value, backend.shape(x), layout)
        result = value if result is None else result * value
    return result


def _aligned(backend: Any, name: str, value: Tensor, shape: tuple[int | None, ...], layout: Layout) -> Tensor:
    given = backend.shape(value)
    missing = layout.ndim - len(given)
    candidates = []
    if missing == len(layout.channels):
        rest = iter(range(len(given)))
        candidates.append([None if axis in layout.channels else next(rest) for axis in range(layout.ndim)])
    if missing >= 0:
        candidates.append([*range(len(given)), *[None] * missing])
        candidates.append([*[None] * missing, *range(len(given))])
    for candidate in candidates:
        sizes = [1 if source is None else given[source] for source in candidate]
        if all(size in (1, None, wanted) or wanted is None for size, wanted in zip(sizes, shape, strict=True)):
            if not missing:
                return value
            # The sizes known only at run time are asked of the tensor.
            return backend.reshape(
                value, [1 if source is None else backend.size(value, source) for source in candidate]
            )
    raise WeightShapeError(
        f"{name} has shape {given}, which does not fit the input's {shape}; "
        "give a shape that broadcasts against it, or the shape without the channels"
    )


def counts(backend: Any, weights: Tensor, x: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
    """The sum of the weights, and how many values have any weight; both keep the reduced dimensions as 1.

    The channels keep the size that the weights have there, 1 if all channels share them.
    """
    full = [
        backend.size(weights if axis in layout.channels + layout.groups else x, axis) for axis in range(layout.ndim)
    ]
    weights = backend.broadcast_to(weights, full)
    present = backend.cast(backend.cast(weights, "bool"), backend.dtype(weights))
    return backend.sum(weights, layout.reduced), backend.sum(present, layout.reduced)
