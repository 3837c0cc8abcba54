# SPDX-License-Identifier: Apache-2.0
"""`evenkeel bench`: how fast our layer is beside what else there is, on this machine.

What is measured is a module each, `contest`, `scaling` and `gpu`: `Report`, `measure`, `show`, `figure`, `faulty`.
"""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import typer
from rich.console import Console

from evenkeel.cli.bench import contest, gpu, scaling
from evenkeel.cli.bench.shown import plain
from evenkeel.errors import ArgumentError, MissingLibraryError
from evenkeel.files import check_free, replacing
from evenkeel.workloads import gpu as gpus
from evenkeel.workloads import timing
from evenkeel.workloads.contenders import BACKENDS, Case
from evenkeel.workloads.gpu import GpuCase

HELP = (
    "Time our layer beside Keras's, the framework's own operation, and the bytes that must move, on the CPU or with "
    "--device cuda on a GPU; or, with --processes, synchronized beside not."
)

SHAPES = ("32,56,56,64", "32,28,28,256", "256,1024", "32,16,16,16,32")
DTYPES = ("float32", "bfloat16")
SHARES = ("32,28,28,128", "256,1024")
MOST_A_CORE = 8
SECONDS, GPU_SECONDS, IMAGES = 4.0, 1.0, 1024
QUICK_SHAPES, QUICK_SECONDS, QUICK_IMAGES = ("8,8,8,16", "64,32"), 0.05, 64


def run(
    backend: Annotated[
        list[str] | None, typer.Option(help=f"{', '.join(BACKENDS)}; several times for several. [default: installed]")
    ] = None,
    shape: Annotated[
        list[str] | None,
        typer.Option(
            help=f"Channels last; several times for several. [default: {' '.join(SHAPES)}; "
            f"with --processes, of each: {' '.join(SHARES)}] With --device cuda N,C,H,W. [default: those of ResNet-50]"
        ),
    ] = None,
    dtype: Annotated[
        list[str] | None, typer.Option(help=f"Several times for several. [default: {' '.join(DTYPES)}]")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, or cuda for PyTorch and JAX on a GPU.")] = "cpu",
    seconds: Annotated[
        float | None,
        typer.Option(help=f"For each case. [default: {SECONDS}, with --device cuda {GPU_SECONDS}]", min=0.001),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Small tensors, a moment each: shows that all runs.")] = False,
    fit: Annotated[bool, typer.Option(help="Also train a small ResNet with ours and with Keras's layer.")] = True,
    processes: Annotated[
        int | None,
        typer.Option(help="Instead, train in 1, 2, 4, ... and so many, each with a core, synchronized and not."),
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all numbers there.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw them there, as PNG.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace these files if they are there.")] = False,
) -> None:
    """Measure, show a table, write what was asked for.

    Everything runs on the CPU, if not asked otherwise. Each backend has processes of its own; inside one, all
    contenders take turns. With `--processes` all numbers of processes take turns.

    Raises:
        EvenkeelError: an option cannot be honoured.
        typer.Exit: with code 1, where our layer gives a wrong answer, or a process ended before it was done.
    """
    on_gpu = _on_gpu(device, backend, processes)
    if processes is not None:
        _check_processes(processes)
    seconds = seconds or (QUICK_SECONDS if quick else GPU_SECONDS if on_gpu else SECONDS)
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 120
    kind: ModuleType
    given: tuple[Any, ...]
    if on_gpu:
        kind, given = gpu, (_gpu_cases(shape, dtype, quick), seconds)
    else:
        shapes = [_shape(text) for text in shape or (QUICK_SHAPES if quick else SHARES if processes else SHAPES)]
        dtypes = [_dtype(text) for text in dtype or DTYPES]
        steps = (True,) if processes else (True, False)
        cases = [Case(sizes, name, training) for training in steps for sizes in shapes for name in dtypes]
        if processes:
            kind, given = scaling, (_backends(backend), cases, processes, seconds)
        else:
            images = QUICK_IMAGES if quick else IMAGES
            kind, given = contest, (_backends(backend), cases, seconds, images, fit)
    for path in filter(None, (json_file, plot)):
        check_free(path, overwrite=overwrite)
    if plot and importlib.util.find_spec("matplotlib") is None:
        raise MissingLibraryError('matplotlib is not installed; pip install "evenkeel[train]", or leave out --plot')
    _tell(console, kind, kind.measure(console, *given), json_file, plot)


def _tell(console: Console, kind: ModuleType, report: Any, json_file: Path | None, plot: Path | None) -> None:
    # Before the tables: whatever becomes of the terminal meanwhile, the numbers are safe.
    if json_file:
        with replacing(json_file) as path:
            path.write_text(json.dumps(plain(report), indent=1, allow_nan=False) + "\n")
    if plot and report.cases:
        with replacing(plot) as path:
            kind.figure(report).savefig(path, format="png", dpi=150)
    kind.show(console, report)
    if report.failures or kind.faulty(report):
        raise typer.Exit(1)


# What was asked for.


def _shape(text: str) -> tuple[int, ...]:
    try:
        shape = tuple(map(int, text.split(",")))
    except ValueError:
        shape = ()
    if not 2 <= len(shape) <= 5 or min(shape) < 1 or math.prod(shape[:-1]) < 2:
        raise ArgumentError(f"--shape {text} is not 2 to 5 sizes with two values a channel; give one like 32,56,56,64")
    return shape


def _dtype(text: str) -> str:
    if text not in DTYPES:
        raise ArgumentError(f"--dtype {text} is unknown; give {' or '.join(DTYPES)}")
    return text


def _on_gpu(device: str, backend: list[str] | None, processes: int | None) -> bool:
    if device == "cpu":
        return False
    if device != gpus.DEVICE:
        raise ArgumentError(f"--device {device} is unknown; give cpu or {gpus.DEVICE}")
    for option, value in (("--backend", backend), ("--processes", processes)):
        if value:
            raise ArgumentError(f"--device {device} measures PyTorch and JAX in a process each; leave out {option}")
    if lacks := gpus.available():
        raise ArgumentError(
            f"--device {device} cannot be had here: {lacks}; give it where there is one, or leave it out"
        )
    return True


def _gpu_cases(shapes: list[str] | None, dtypes: list[str] | None, quick: bool) -> list[GpuCase]:
    standard = gpus.QUICK_CASES if quick else gpus.CASES
    if not shapes and not dtypes:
        return standard
    for name in dtypes or ():
        if name not in gpus.WIDTH:
            raise ArgumentError(f"--dtype {name} is unknown; give {', '.join(gpus.WIDTH)}")
    if not shapes:
        return list(dict.fromkeys(case._replace(dtype=name) for name in dtypes or () for case in standard))
    return [
        GpuCase(_gpu_shape(text), name, True, residual)
        for text in shapes
        for name in dtypes or ("bfloat16",)
        for residual in (False, True)
    ]


def _gpu_shape(text: str) -> tuple[int, ...]:
    shape = _shape(text)
    if len(shape) != 4 or math.prod(shape) < 2 * shape[1]:
        raise ArgumentError(f"--shape {text} is not N,C,H,W with two values a channel; give one like 64,256,56,56")
    return shape


def _check_processes(processes: int) -> None:
    if not 2 <= processes <= MOST_A_CORE * timing.cores():
        raise ArgumentError(
            f"--processes {processes} is not from 2, which have somebody to synchronize with, to "
            f"{MOST_A_CORE * timing.cores()}, {MOST_A_CORE} for each core of this machine; give one of these"
        )


def _backends(asked: list[str] | None) -> dict[str, str]:
    """Each backend to measure, and what it lacks: empty if it is installed."""
    for name in asked or ():
        if name not in BACKENDS:
            raise ArgumentError(f"--backend {name} is unknown; give {', '.join(BACKENDS[:-1])} or {BACKENDS[-1]}")
    missing = {name: _missing(name) for name in BACKENDS if not asked or name in asked}
    for name, lacks in missing.items():
        if lacks and (asked or all(missing.values())):
            raise MissingLibraryError(f'{lacks} is not installed; pip install "evenkeel[{name}]"')
    return missing


def _missing(backend: str) -> str:
    return next((name for name in (backend, "keras") if importlib.util.find_spec(name) is None), "")
