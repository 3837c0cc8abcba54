# SPDX-License-Identifier: Apache-2.0
"""Batch normalization you can trust. Every name is loaded on first use: importing this imports no framework."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from evenkeel.functional.batch_norm import Parameters, batch_norm
    from evenkeel.functional.choice import without_kernels
    from evenkeel.functional.moments import Moments, merge_moments, moments
    from evenkeel.functional.moving import State
    from evenkeel.functional.normalize import normalize, scale_and_offset
    from evenkeel.layers.keras import BatchNormalization

__all__ = [
    "BatchNormalization",
    "Moments",
    "Parameters",
    "State",
    "batch_norm",
    "merge_moments",
    "moments",
    "normalize",
    "scale_and_offset",
    "without_kernels",
]

__version__ = "0.1.0"

_HOME = {
    "BatchNormalization": "layers.keras",
    "Moments": "functional.moments",
    "Parameters": "functional.batch_norm",
    "State": "functional.moving",
    "batch_norm": "functional.batch_norm",
    "merge_moments": "functional.moments",
    "moments": "functional.moments",
    "normalize": "functional.normalize",
    "scale_and_offset": "functional.normalize",
    "without_kernels": "functional.choice",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'evenkeel' has no attribute {name!r}")
    return getattr(importlib.import_module(f"evenkeel.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
