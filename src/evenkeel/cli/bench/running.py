# SPDX-License-Identifier: Apache-2.0
"""Where it is measured: on which machine, and in which processes."""

from __future__ import annotations

import contextlib
import importlib.metadata
import platform
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from evenkeel.workloads import timing
from evenkeel.workloads.processes import PATIENCE, Process

COMPILING = 6 * PATIENCE
"""Seconds that one answer may take where all contenders are compiled for it."""


def progress_bar(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console, transient=True)


def installed_of(backends: dict[str, str], report: Any) -> Iterator[str]:
    """Those that are installed. Until somebody knows better, the report says that they failed."""
    for name, lacks in backends.items():
        report.backends[name] = f"{lacks} is not installed" if lacks else "failed"
        if not lacks:
            yield name


def in_a_process(
    work: Callable[..., Generator[Any, Any, None]],
    backend: str,
    *arguments: Any,
    patience: float = COMPILING,
    **variables: str,
) -> Iterator[Any]:
    """What `work(backend, *arguments)` yields, one by one, in a fresh process whose Keras runs on `backend`."""
    variables = environment(backend) | variables
    with Process(work, backend, *arguments, environment=variables, patience=patience) as process:
        yield from process


def patience(seconds: float) -> float:
    """How long to wait for an answer that measures for so many seconds, in seconds.

    Example:
        >>> patience(4.0)
        1840.0
    """
    return COMPILING + 10 * seconds


def environment(backend: str) -> dict[str, str]:
    # The bytes are those of the processor's memory, so nobody may compute elsewhere.
    return {"KERAS_BACKEND": backend, "CUDA_VISIBLE_DEVICES": "-1", "JAX_PLATFORMS": "cpu"}


def machine_here() -> dict[str, Any]:
    return {
        "processor": _processor(),
        "cores": timing.cores(),
        "system": platform.system(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "evenkeel": importlib.import_module("evenkeel").__version__,
    }


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
