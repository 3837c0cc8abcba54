# SPDX-License-Identifier: Apache-2.0
"""Batch normalization you can trust. Every name is loaded on first use: importing this imports no framework."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from evenkeel.checkpoints import read_checkpoint, write_checkpoint
    from evenkeel.checkpoints.convert import convert
    from evenkeel.doctor import diagnose
    from evenkeel.doctor.monitor.keras import NormalizationMonitor
    from evenkeel.doctor.monitor.session import NormalizationHook
    from evenkeel.doctor.monitor.speaking import NormalizationWarning
    from evenkeel.functional.batch_norm import Parameters, batch_norm
    from evenkeel.functional.choice import without_kernels
    from evenkeel.functional.moments import Moments, merge_moments, moments
    from evenkeel.functional.moving import State
    from evenkeel.functional.normalize import normalize, scale_and_offset
    from evenkeel.layers.keras import BatchNormalization
    from evenkeel.surgery.decay import decay_exclusions
    from evenkeel.surgery.fold import fold
    from evenkeel.surgery.freeze import freeze, unfreeze
    from evenkeel.surgery.merging import merge_statistics_across_processes
    from evenkeel.surgery.no_update import no_update
    from evenkeel.surgery.recalibrate import RecalibrationReport, recalibrate
    from evenkeel.surgery.upgrade import upgrade

__all__ = [
    "BatchNormalization",
    "Moments",
    "NormalizationHook",
    "NormalizationMonitor",
    "NormalizationWarning",
    "Parameters",
    "RecalibrationReport",
    "State",
    "batch_norm",
    "convert",
    "decay_exclusions",
    "diagnose",
    "fold",
    "freeze",
    "merge_moments",
    "merge_statistics_across_processes",
    "moments",
    "no_update",
    "normalize",
    "read_checkpoint",
    "recalibrate",
    "scale_and_offset",
    "unfreeze",
    "upgrade",
    "without_kernels",
    "write_checkpoint",
]

__version__ = "0.1.0"

_HOME = {
    "BatchNormalization": "layers.keras",
    "Moments": "functional.moments",
    "NormalizationHook": "doctor.monitor.session",
    "NormalizationMonitor": "doctor.monitor.keras",
    "NormalizationWarning": "doctor.monitor.speaking",
    "Parameters": "functional.batch_norm",
    "RecalibrationReport": "surgery.recalibrate",
    "State": "functional.moving",
    "batch_norm": "functional.batch_norm",
    "convert": "checkpoints.convert",
    "decay_exclusions": "surgery.decay",
    "diagnose": "doctor",
    "fold": "surgery.fold",
    "freeze": "surgery.freeze",
    "merge_moments": "functional.moments",
    "merge_statistics_across_processes": "surgery.merging",
    "moments": "functional.moments",
    "no_update": "surgery.no_update",
    "normalize": "functional.normalize",
    "read_checkpoint": "checkpoints",
    "recalibrate": "surgery.recalibrate",
    "scale_and_offset": "functional.normalize",
    "unfreeze": "surgery.freeze",
    "upgrade": "surgery.upgrade",
    "without_kernels": "functional.choice",
    "write_checkpoint": "checkpoints",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'evenkeel' has no attribute {name!r}")
    return getattr(importlib.import_module(f"evenkeel.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
