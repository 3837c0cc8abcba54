# SPDX-License-Identifier: Apache-2.0
"""What a subject may be told beside itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Options:
    """The arguments of `diagnose`; its docstring has their meaning."""

    data: Any = None
    batch_size: int = 32
    steps: int | None = None
    batches_per_step: int = 1
    optimizer: Any = None
    train_op: Any = None
    phase: Any = None
    feed: Callable[[Any], Any] | None = None
    backend: str = "tensorflow"
    progress: bool = False
