# SPDX-License-Identifier: Apache-2.0
"""`evenkeel bench`: how fast our layer is beside what else there is, on this machine."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import importlib.util
import itertools
import json
import math
import platform
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import numpy as np
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from evenkeel.errors import ArgumentError, MissingLibraryError
from evenkeel.files import check_free, replacing
from evenkeel.workloads import gpu, scaling, timing
from evenkeel.workloads.contenders import BACKENDS, Case
from evenkeel.workloads.contest import Fit, Measured, Memory, time_all, train, weigh
from evenkeel.workloads.gpu import Found, Gpu, GpuCase
from evenkeel.workloads.processes import Process, ProcessEndedError
from evenkeel.workloads.scaling import Scaled, Sent
from evenkeel.workloads.timing import Quartiles

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

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

# What was wanted of ours on an H200: so many times faster; such a share of the bandwidth of a copy; half of what torch
# keeps, where nothing is added: with a residual y is kept too, as by torch.
WANTED, WANTED_OF_COPY, WANTED_KEPT = {"eager": 1.8, "compiled": 1.1}, 0.8, "half"
OTHERS = {"eager": "torch, eager", "compiled": "torch.compile", "keras": "Keras", "jax": "JAX"}

RUNS_AS = {"tensorflow": "tf.function", "jax": "jax.jit", "torch": "eager"}


class Report(NamedTuple):
    """All of a run, as `--json` has it.

    machine: what it ran on.
    backends: versions of each, or why there are none.
    failures: what ended before it was done, one line each.
    """

    machine: dict[str, Any]
    backends: dict[str, dict[str, str] | str]
    cases: list[Measured]
    memory: list[Memory]
    fit: list[Fit]
    failures: list[str]


class GpuReport(NamedTuple):
    """All of a run with `--device cuda`, as `--json` has it.

    gpu: its `name`, and `bandwidth`: bytes a second that a copy in it reads and writes; empty if it did not answer.
    The rest as in `Report`.
    """

    machine: dict[str, Any]
    backends: dict[str, dict[str, str] | str]
    gpu: dict[str, Any]
    cases: list[Found]
    failures: list[str]


class ScalingReport(NamedTuple):
    """All of a run with `--processes`, as `--json` has it.

    processes: how many there were, each number in turn.
    The rest as in `Report`.
    """

    machine: dict[str, Any]
    backends: dict[str, dict[str, str] | str]
    processes: list[int]
    cases: list[Scaled]
    failures: list[str]


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
    measure: Callable[[], Report | ScalingReport | GpuReport]
    if on_gpu:
        measure = functools.partial(_measure_gpu, console, _gpu_cases(shape, dtype, quick), seconds)
    else:
        shapes = [_shape(text) for text in shape or (QUICK_SHAPES if quick else SHARES if processes else SHAPES)]
        dtypes = [_dtype(text) for text in dtype or DTYPES]
        steps = (True,) if processes else (True, False)
        cases = [Case(sizes, name, training) for training in steps for sizes in shapes for name in dtypes]
        given = console, _backends(backend), cases
        if processes:
            measure = functools.partial(_measure_scaling, *given, processes, seconds)
        else:
            measure = functools.partial(_measure, *given, seconds, QUICK_IMAGES if quick else IMAGES, fit)
    for path in filter(None, (json_file, plot)):
        check_free(path, overwrite=overwrite)
    if plot and importlib.util.find_spec("matplotlib") is None:
        raise MissingLibraryError('matplotlib is not installed; pip install "evenkeel[train]", or leave out --plot')
    _tell(console, measure(), json_file, plot)


def _tell(
    console: Console, report: Report | ScalingReport | GpuReport, json_file: Path | None, plot: Path | None
) -> None:
    # Before the tables: whatever becomes of the terminal meanwhile, the numbers are safe.
    if json_file:
        with replacing(json_file) as path:
            path.write_text(json.dumps(_plain(report), indent=1, allow_nan=False) + "\n")
    draw: dict[type, Callable[[Any], Figure]]
    draw = {Report: _figure, ScalingReport: _scaling_figure, GpuReport: _gpu_figure}
    if plot and report.cases:
        with replacing(plot) as path:
            draw[type(report)](report).savefig(path, format="png", dpi=150)
    if isinstance(report, ScalingReport):
        _show_scaling(console, report)
        faulty = any(item.fault for item in report.cases)
    elif isinstance(report, GpuReport):
        _show_gpu(console, report)
        faulty = any(map(_ours_is_wrong, report.cases))
    else:
        _show(console, report)
        faulty = any(map(_ours_is_wrong, report.cases)) or any(item.fault for item in report.fit)
    if report.failures or faulty:
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
    if device != gpu.DEVICE:
        raise ArgumentError(f"--device {device} is unknown; give cpu or {gpu.DEVICE}")
    for option, value in (("--backend", backend), ("--processes", processes)):
        if value:
            raise ArgumentError(f"--device {device} measures PyTorch and JAX in a process each; leave out {option}")
    if lacks := gpu.available():
        raise ArgumentError(
            f"--device {device} cannot be had here: {lacks}; give it where there is one, or leave it out"
        )
    return True


def _gpu_cases(shapes: list[str] | None, dtypes: list[str] | None, quick: bool) -> list[GpuCase]:
    standard = gpu.QUICK_CASES if quick else gpu.CASES
    if not shapes and not dtypes:
        return standard
    for name in dtypes or ():
        if name not in gpu.WIDTH:
            raise ArgumentError(f"--dtype {name} is unknown; give {', '.join(gpu.WIDTH)}")
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


# In the process of `evenkeel bench`.


def _measure(
    console: Console, backends: dict[str, str], cases: list[Case], seconds: float, images: int, fit: bool
) -> Report:
    report = Report(_machine(), {}, [], [], [], [])
    training = [case for case in cases if case.training]
    installed = [name for name, lacks in backends.items() if not lacks]
    with _progress(console) as progress:
        bar = progress.add_task("", total=len(installed) * (len(cases) + len(training) + fit))
        for name in _each(backends, report):
            progress.update(bar, description=f"{name}: timing")
            try:
                for item in _in_a_process(time_all, name, cases, seconds):
                    if isinstance(item, Measured):
                        report.cases.append(item)
                        progress.advance(bar)
                    else:
                        report.backends[name] = item
                progress.update(bar, description=f"{name}: memory")
                # The same operations, with memory from the system instead of a pool that keeps what it once had.
                for item in _in_a_process(weigh, name, training, TF_ONEDNN_USE_SYSTEM_ALLOCATOR="1"):
                    report.memory.extend(item)
                    progress.advance(bar)
                if fit:
                    progress.update(bar, description=f"{name}: fit")
                    report.fit.extend(_in_a_process(train, name, images, 5 * seconds))
                    progress.advance(bar)
            except ProcessEndedError as error:
                report.failures.append(f"{name}: {error}")
    return report


def _measure_scaling(
    console: Console, backends: dict[str, str], cases: list[Case], processes: int, seconds: float
) -> ScalingReport:
    report = ScalingReport(_machine(), {}, scaling.worlds(processes), [], [])
    installed = [name for name, lacks in backends.items() if not lacks]
    with _progress(console) as progress:
        bar = progress.add_task("", total=len(installed) * (1 + len(cases)))
        for name in _each(backends, report):
            progress.update(bar, description=f"{name}: starting {sum(report.processes)} processes")
            try:
                for item in scaling.measure(name, cases, processes, seconds, _environment(name)):
                    if isinstance(item, dict):
                        report.backends[name] = item
                        progress.update(bar, description=f"{name}: timing")
                    else:
                        report.cases.extend(item)
                    progress.advance(bar)
            except ProcessEndedError as error:
                report.failures.append(f"{name}: {error}")
    return report


def _measure_gpu(console: Console, cases: list[GpuCase], seconds: float) -> GpuReport:
    report = GpuReport(_machine(), {}, {}, [], [])
    with _progress(console) as progress:
        bar = progress.add_task("", total=len(cases) + sum(case.compiled for case in cases))
        for name, add in (("torch", _add_torch), ("jax", _add_jax)):
            progress.update(bar, description=name)
            report.backends[name] = "failed"
            try:
                for _ in add(report, cases, seconds):
                    progress.advance(bar)
            except ProcessEndedError as error:
                report.failures.append(f"{name}: {error}")
            except KeyboardInterrupt:
                report.failures.append(f"{name}: stopped")
                break
    return report


def _add_torch(report: GpuReport, cases: list[GpuCase], seconds: float) -> Iterator[Found]:
    # Not in this process, which a GPU that gives up would take along.
    with Process(gpu.measure, cases, seconds, environment={"KERAS_BACKEND": "torch"}) as process:
        for item in process:
            if isinstance(item, Gpu):
                report.gpu.update(name=item.name, bandwidth=item.bandwidth)
                report.backends["torch"] = item.versions
            else:
                report.cases.append(item)
                yield item


def _add_jax(report: GpuReport, cases: list[GpuCase], seconds: float, platform: str = "gpu") -> Iterator[Found]:
    """JAX beside what is in the report, if JAX calculates on that platform by default."""
    if importlib.util.find_spec("jax") is None:
        report.backends["jax"] = "jax is not installed"
        return
    places = [place for place, item in enumerate(report.cases) if item.case.compiled]
    cases = [report.cases[place].case for place in places]
    with Process(gpu.measure_jax, cases, seconds, environment={"KERAS_BACKEND": "jax"}) as process:
        items = iter(process)
        versions = next(items)
        if versions["device"] != platform:
            report.backends["jax"] = f"jax {versions['jax']} finds no {platform.upper()}"
            return
        report.backends["jax"] = versions
        for place, result in zip(places, items, strict=True):
            report.cases[place] = report.cases[place].joined_by(result)
            yield report.cases[place]


def _progress(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console, transient=True)


def _each(backends: dict[str, str], report: Report | ScalingReport) -> Iterator[str]:
    """Those that are installed. Until somebody knows better, the report says that they failed."""
    for name, lacks in backends.items():
        report.backends[name] = f"{lacks} is not installed" if lacks else "failed"
        if not lacks:
            yield name


def _in_a_process(
    work: Callable[..., Generator[Any, Any, None]], backend: str, *arguments: Any, **environment: str
) -> Iterator[Any]:
    """What `work(backend, *arguments)` yields, one by one, in a fresh process whose Keras runs on `backend`."""
    with Process(work, backend, *arguments, environment=_environment(backend) | environment) as process:
        yield from process


def _environment(backend: str) -> dict[str, str]:
    # The bytes are those of the processor's memory, so nobody may compute elsewhere.
    return {"KERAS_BACKEND": backend, "CUDA_VISIBLE_DEVICES": "-1", "JAX_PLATFORMS": "cpu"}


def _machine() -> dict[str, Any]:
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


# What is shown.


def _ours_is_wrong(measured: Measured | Found) -> bool:
    return any(result.fault for result in measured.results if result.role == "ours")


def _show(console: Console, report: Report) -> None:
    _show_machine(console, report.machine)
    memory = {(item.backend, item.case, item.name): item.size for item in report.memory}
    for backend, versions in report.backends.items():
        if isinstance(versions, str):
            console.print(f"{backend}: {versions}")
            continue
        named = ", ".join(f"{name} {version}" for name, version in versions.items())
        for training, title in ((True, "training step"), (False, "inference")):
            measured = [item for item in report.cases if item.backend == backend and item.case.training == training]
            if measured:
                console.print(_table(f"{title}: {named}, {RUNS_AS[backend]}", measured, memory))
        _show_natives(console, [item for item in report.cases if item.backend == backend])
    if report.fit:
        console.print(_fit_table(report.fit))
    console.print(
        "Medians, below them quartiles; ratios are taken round by round. Memory: what a training step needs at its "
        "highest point, in sizes of the input."
    )
    for line in (*_faults(report), *report.failures):
        console.print(line, markup=False, soft_wrap=True)


def _show_machine(console: Console, machine: dict[str, Any]) -> None:
    console.print(
        f"{machine['processor']}, {machine['cores']} cores, {machine['system']}; Python {machine['python']}, "
        f"NumPy {machine['numpy']}, evenkeel {machine['evenkeel']}"
    )


def _table(title: str, measured: list[Measured], memory: dict[tuple[str, Case, str], int | None]) -> Table:
    table = Table(title=title, title_justify="left", show_lines=True)
    table.add_column("case")
    for heading in (
        "ours, ms",
        "x faster\nthan Keras",
        "x faster\nthan native",
        "x time of\nthe bytes",
        "GB/s\ncopied",
    ):
        table.add_column(heading, justify="right")
    if measured[0].case.training:
        table.add_column("memory: ours,\nKeras, native", justify="right")
    table.add_column("correct")
    for item in measured:
        best = {role: item.fastest(role) for role in ("ours", "keras", "native", "bytes")}
        assert best["bytes"].seconds
        copied = item.case.passes * item.case.size / best["bytes"].seconds.median / 1e9
        cells = [
            f"{_by(item.case.shape)}\n{item.case.dtype}",
            _spread(best["ours"].seconds, 1e3),
            *(_spread(item.beside[name]) for name in ("keras", "native", "bytes")),
            f"{copied:.0f}",
        ]
        if item.case.training:
            sizes = [memory.get((item.backend, item.case, best[role].name)) for role in ("ours", "keras", "native")]
            cells.append(", ".join("-" if size is None else f"{size / item.case.size:.1f}" for size in sizes))
        faulty = [role for role in ("ours", "keras", "native") if best[role].fault]
        cells.append(f"[red]not {', '.join(faulty)}[/red]" if faulty else "all")
        table.add_row(*cells)
    return table


def _fit_table(fits: list[Fit]) -> Table:
    table = Table(title="an epoch of fit, small ResNet, jit_compile='auto'", title_justify="left")
    for name in ("backend", "images", "ours, s", "Keras, s", "without, s", "x faster\nthan Keras", "x faster\nif free"):
        table.add_column(name, justify="left" if name == "backend" else "right")
    for fit in fits:
        numbers = (fit.ours, fit.keras, fit.without, fit.beside, fit.bound)
        table.add_row(fit.backend, str(fit.images), *map(_spread, numbers))
    return table


def _show_natives(console: Console, measured: list[Measured]) -> None:
    """Which operation the native one was."""
    natives = {item.fastest("native").name for item in measured} - {""}
    console.print(f"native: {'; '.join(sorted(natives)) or 'not installed'}\n", markup=False)


def _faults(report: Report) -> Iterator[str]:
    for item in report.cases:
        for result in item.results:
            if result.fault:
                step = "training" if item.case.training else "inference"
                where = f"{item.backend}, {_by(item.case.shape)}, {item.case.dtype}, {step}"
                yield f"wrong: {where}: {result.name}: {result.fault}"
    for fit in report.fit:
        if fit.fault:
            yield f"wrong: {fit.backend}, fit: {fit.fault}"


def _show_scaling(console: Console, report: ScalingReport) -> None:
    _show_machine(console, report.machine)
    for backend, versions in report.backends.items():
        named = versions if isinstance(versions, str) else ", ".join(f"{name} {it}" for name, it in versions.items())
        console.print(f"{backend}: {named}")
    if report.cases:
        console.print(_scaling_table(report))
    console.print(
        "Every process has a share of this shape, and one core. Medians, below them quartiles; ratios are taken round "
        "by round. Efficiency: time in one process divided by time here; its bound is what there are cores for. "
        "Messages that a step was seen to send, forward and below it backward, and their bytes; beside them what the "
        "formula of the layer says."
    )
    wrong = [
        f"wrong: {item.backend}, {item.processes} processes, {_by(item.case.shape)}, {item.case.dtype}: {item.fault}"
        for item in report.cases
        if item.fault
    ]
    for line in (*wrong, *report.failures):
        console.print(line, markup=False, soft_wrap=True)


def _scaling_table(report: ScalingReport) -> Table:
    table = Table(title="training step in several processes", title_justify="left", show_lines=True)
    table.add_column("share")
    for heading in (
        "pro-\ncesses",
        "synchro-\nnized, ms",
        "local,\nms",
        "x time\nof local",
        "efficiency\n(of local)",
        "bound",
        "messages:\nbytes",
        "by the\nformula",
    ):
        table.add_column(heading, justify="right")
    table.add_column("correct")
    cores = report.machine["cores"]
    for item in report.cases:
        table.add_row(
            f"{item.backend}\n{item.case.dtype}\n{_by(item.case.shape)}",
            str(item.processes),
            _spread(item.synchronized, 1e3),
            _spread(item.local, 1e3),
            _spread(item.cost),
            f"{100 * item.efficiency.median:.0f} %\n({100 * item.efficiency_local.median:.0f} %)",
            f"{100 * item.bound:.0f} %" + (f"\n{cores} cores" if item.processes > cores else ""),
            _messages(item.sent),
            _messages(item.expected) if item.sent == item.expected else f"[red]{_messages(item.expected)}[/red]",
            "[red]no[/red]" if item.fault else "yes",
        )
    return table


def _show_gpu(console: Console, report: GpuReport) -> None:
    _show_machine(console, report.machine)
    for backend, versions in report.backends.items():
        named = versions if isinstance(versions, str) else ", ".join(f"{name} {it}" for name, it in versions.items())
        console.print(f"{backend}: {named}")
    if report.cases:
        console.print(_gpu_table(report))
    console.print(
        "Medians; quartiles are in --json and --plot. x: so many times faster is ours. GB/s: of the bytes a step must "
        "move. Kept for the backward pass, and needed at the highest point of a step: in sizes of the input, ours and "
        "torch's, eager. *: not replayed from a graph."
    )
    faults: dict[str, list[str]] = {}
    for item in report.cases:
        for result in item.results:
            if result.fault:
                faults.setdefault(f"{result.name}: {result.fault}", []).append(_gpu_case(item.case))
    wrong = [f"wrong: {', '.join(cases)}: {fault}" for fault, cases in faults.items()]
    for line in (*wrong, *report.failures):
        console.print(line, markup=False, soft_wrap=True)


def _gpu_table(report: GpuReport) -> Table:
    bandwidth = report.gpu["bandwidth"]
    title = f"training step of batch norm (+ add) + ReLU: {report.gpu['name']}, copies at {bandwidth / 1e9:.0f} GB/s"
    table = Table(title=title, title_justify="left", padding=0)
    table.add_column("case")
    headings = ["ours,\nms\n", "GB/s\n\n", f"% of\ncopy\nwant {100 * WANTED_OF_COPY:.0f}"]
    for role, name in OTHERS.items():
        headings.append(
            f"x {name}\n".replace(" torch", "\ntorch") + (f"\nwant {WANTED[role]}" if role in WANTED else "")
        )
    for heading in (*headings, f"kept\n\nwant {WANTED_KEPT}", "peak\n\n"):
        table.add_column(heading, justify="right")
    table.add_column("correct")
    for item in report.cases:
        ours, eager = item.fastest("ours"), item.fastest("eager")
        share = item.of_copy
        sizes = [
            ", ".join("-" if size is None else f"{size / item.case.size:.1f}" for size in pair)
            for pair in ((ours.kept, eager.kept), (ours.peak, eager.peak))
        ]
        faulty = dict.fromkeys(result.role for result in item.results if result.fault)
        table.add_row(
            _gpu_case(item.case),
            _median(ours.seconds, 1e3) + _mark(ours),
            f"{share * bandwidth / 1e9:.0f}" if share else "-",
            f"{100 * share:.0f}" if share else "-",
            *(_median(item.beside.get(role)) + _mark(item.fastest(role)) for role in OTHERS),
            *sizes,
            f"[red]not {', '.join(faulty)}[/red]" if faulty else "all",
        )
    return table


def _median(quartiles: Quartiles | None, factor: float = 1) -> str:
    return _digits(factor * quartiles.median) if quartiles else "-"


def _mark(result: gpu.Result) -> str:
    """For whom Python has held up while others were replayed; JAX makes graphs of its own."""
    return "*" if result.seconds and not result.captured and result.role != "jax" else ""


def _gpu_case(case: GpuCase) -> str:
    return f"{_by(case.shape)} {case.dtype}{'' if case.channels_last else ' first'}{' +add' if case.residual else ''}"


def _messages(sent: Sent) -> str:
    return "\n".join(f"{messages}: {size:,}" for messages, size in sent)


def _spread(quartiles: Quartiles | None, factor: float = 1) -> str:
    """The median, and below it the first and the third quartile."""
    if quartiles is None:
        return "-"
    first, median, third = (_digits(factor * value) for value in quartiles)
    return f"{median}\n[dim]{first}-{third}[/dim]"


def _digits(value: float) -> str:
    """Three digits, and no fewer than are before the point."""
    return f"{value:.{max(0, 2 - math.floor(math.log10(value)))}f}"


def _by(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _plain(value: Any) -> Any:
    """For JSON: a named tuple as what its fields are called."""
    if hasattr(value, "_asdict"):
        return {name: _plain(item) for name, item in value._asdict().items()}
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _figure(report: Report) -> Figure:
    """Time beside ours: a panel for each backend and step, a group of bars for each case, a line for the bytes."""
    from matplotlib.figure import Figure

    backends = list(dict.fromkeys(item.backend for item in report.cases))
    steps = list(dict.fromkeys(item.case.training for item in report.cases))
    rows = max(
        sum(_panel(item) == (backend, training) for item in report.cases) for backend in backends for training in steps
    )
    figure = Figure(figsize=(2 + 4 * len(backends), 1.4 + (0.8 + 0.5 * rows) * len(steps)), layout="constrained")
    panels = figure.subplots(len(steps), len(backends), squeeze=False, sharey="row")
    for row, training in zip(panels, steps, strict=True):
        for axes, backend in zip(row, backends, strict=True):
            _draw(axes, [item for item in report.cases if _panel(item) == (backend, training)])
            axes.set_title(f"{'training step' if training else 'inference'}, {backend} ({RUNS_AS[backend]})")
    for axes in panels[-1]:
        axes.set_xlabel("time, ours = 1")
    handles, labels = panels[0][0].get_legend_handles_labels()
    machine = f"{report.machine['processor']}, {report.machine['cores']} cores"
    figure.suptitle(f"Batch normalization on {machine}\nshorter is faster; whiskers are quartiles", fontsize=11)
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    return figure


def _panel(item: Measured) -> tuple[str, bool]:
    return item.backend, item.case.training


def _draw(axes: Axes, measured: list[Measured]) -> None:
    names = [f"{_by(item.case.shape)}\n{item.case.dtype}" for item in measured]
    bars = [("keras", "Keras", "#e08e45"), ("native", "framework's own", "#9aa5b1")]
    limits = [1 / item.beside["bytes"].median if item.beside["bytes"] else math.nan for item in measured]
    _draw_beside(axes, names, bars, [item.beside for item in measured], limits)


def _draw_beside(
    axes: Axes,
    names: list[str],
    others: list[tuple[str, str, str]],
    beside: Sequence[Mapping[str, Quartiles | None]],
    limits: list[float],
) -> None:
    """A group of bars for each case, ours first, and a line for the bytes; `others` are role, label and colour."""
    places, width = np.arange(len(names)), 0.81 / (1 + len(others))
    for number, (role, label, colour) in enumerate([("ours", "evenkeel", "#1b6ca8"), *others]):
        found = [Quartiles(1.0, 1.0, 1.0) if role == "ours" else ratios.get(role) for ratios in beside]
        first, median, third = np.array([each or (np.nan,) * 3 for each in found]).T
        at = places + width * (number - len(others) / 2)
        whiskers = None if role == "ours" else (median - first, third - median)
        axes.barh(
            at,
            median,
            0.93 * width,
            xerr=whiskers,
            color=colour,
            label=label,
            error_kw={"lw": 0.8, "ecolor": "#333333"},
        )
        if role != "ours":
            for height, end, value in zip(at, third, median, strict=True):
                if np.isfinite(value):
                    axes.annotate(
                        f"{value:.2f}", (end, height), (3, 0), textcoords="offset points", va="center", fontsize=7
                    )
    axes.vlines(limits, places - 0.42, places + 0.42, color="black", lw=1.8, label="moving the bytes")
    axes.set_yticks(places, names, fontsize=8)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.margins(x=0.12)
    axes.set_xlim(left=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", alpha=0.25)
    axes.set_axisbelow(True)


def _gpu_figure(report: GpuReport) -> Figure:
    """Time beside ours: a group of bars for each case, a line for the bytes."""
    from matplotlib.figure import Figure

    colours = ("#9aa5b1", "#5c6b7a", "#e08e45", "#b3392f")
    others = [(role, name, colour) for (role, name), colour in zip(OTHERS.items(), colours, strict=True)]
    others = [bar for bar in others if any(bar[0] in item.beside for item in report.cases)]
    figure = Figure(figsize=(8, 2 + 0.8 * len(report.cases)), layout="constrained")
    axes = figure.subplots()
    limits = [item.of_copy or math.nan for item in report.cases]
    names = [_gpu_case(item.case).replace(" ", "\n", 1) for item in report.cases]
    _draw_beside(axes, names, others, [item.beside for item in report.cases], limits)
    axes.set_xlabel("time of a training step, ours = 1")
    figure.suptitle(
        f"Batch norm (+ add) + ReLU on {report.gpu['name']}\nshorter is faster; whiskers are quartiles", fontsize=11
    )
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    return figure


def _scaling_figure(report: ScalingReport) -> Figure:
    """Cost of synchronization, and weak scaling efficiency, over the number of processes: a line for each case."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 5), layout="constrained")
    cost, efficiency = figure.subplots(1, 2)
    colours = {"tensorflow": "#e08e45", "jax": "#1b6ca8", "torch": "#b3392f"}
    cases = list(dict.fromkeys(item.case for item in report.cases))
    for backend in dict.fromkeys(item.backend for item in report.cases):
        for case, marker in zip(cases, itertools.cycle("os^Dv<>P")):
            items = [item for item in report.cases if (item.backend, item.case) == (backend, case)]
            label = f"{backend}, {_by(case.shape)}, {case.dtype}"
            for axes, field in ((cost, "cost"), (efficiency, "efficiency")):
                first, median, third = np.array([getattr(item, field) for item in items]).T
                axes.errorbar(
                    [item.processes for item in items],
                    median,
                    (median - first, third - median),
                    color=colours[backend],
                    marker=marker,
                    markersize=4,
                    lw=1.2,
                    elinewidth=0.8,
                    label=label,
                )
    bounds = {item.processes: item.bound for item in report.cases}
    efficiency.plot(list(bounds), list(bounds.values()), color="black", ls="--", label="cores / processes")
    cost.set_title("time synchronized, local = 1")
    efficiency.set_title("weak scaling efficiency, synchronized")
    cost.set_yscale("log")
    efficiency.set_ylim(bottom=0)
    for axes in (cost, efficiency):
        axes.set_xscale("log", base=2)
        axes.set_xticks(report.processes, list(map(str, report.processes)))
        axes.set_xlabel("processes")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    machine = f"{report.machine['processor']}, {report.machine['cores']} cores"
    figure.suptitle(
        f"Synchronized batch normalization on {machine}\na share and a core each; bars are quartiles", fontsize=11
    )
    figure.legend(
        *efficiency.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize=7
    )
    return figure
