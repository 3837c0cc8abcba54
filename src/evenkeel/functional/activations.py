# SPDX-License-Identifier: Apache-2.0
"""What may be applied to the result in the same step."""

from __future__ import annotations

from typing import Any

from evenkeel.backends.contract import INVERTIBLE, SLOPE, Tensor
from evenkeel.errors import ArgumentError

__all__ = ["ACTIVATIONS", "INVERTIBLE", "apply", "check"]

ACTIVATIONS = ("relu", "leaky_relu", "elu")
"""With the numbers of torch.nn: a slope of 0.01, an alpha of 1."""


def check(name: str | None) -> None:
    """Whether it is one of these, or None."""
    if name not in (None, *ACTIVATIONS):
        raise ArgumentError(
            f"activation={name!r} is unknown here; give None or one of {', '.join(map(repr, ACTIVATIONS))}"
        )


def apply(backend: Any, name: str | None, y: Tensor) -> Tensor:
    """The activation of that name; None is none.

    Example:
        >>> apply(backends.primitives("numpy"), "leaky_relu", np.array([-1.0, 2.0]))
        array([-0.01,  2.  ])
    """
    if name == "relu":
        return backend.relu(y)
    if name == "leaky_relu":
        return backend.where(y > 0, y, SLOPE * y)
    if name == "elu":
        # No minimum: at 0, JAX gives half of its derivative to either side.
        zero = backend.cast(backend.convert(0.0, like=y), backend.dtype(y))
        return backend.where(y > 0, y, backend.expm1(backend.where(y > 0, zero, y)))
    return y
