# SPDX-License-Identifier: Apache-2.0
"""`evenkeel bench`: how fast our layer is beside what else there is, on this machine."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import json
import math
import multiprocessing
import os
import platform
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import numpy as np
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from evenkeel.errors import ArgumentError, EvenkeelError, MissingLibraryError
from evenkeel.files import check_free, replacing
from evenkeel.workloads import timing
from evenkeel.workloads.contenders import BACKENDS, Case, Contender, Data, contenders, epoch_stopwatch, networks, wrong
from evenkeel.workloads.timing import Quartiles

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HELP = "Time our layer beside Keras's, the framework's own operation, and the bytes that must move."

SHAPES = ("32,56,56,64", "32,28,28,256", "256,1024", "32,16,16,16,32")
DTYPES = ("float32", "bfloat16")
SECONDS, IMAGES = 4.0, 1024
QUICK_SHAPES, QUICK_SECONDS, QUICK_IMAGES = ("8,8,8,16", "64,32"), 0.05, 64

RUNS_AS = {"tensorflow": "tf.function", "jax": "jax.jit", "torch": "eager"}
BATCH_SIZE = 32


class Result(NamedTuple):
    """One contender in one case.

    role: `"ours"`, `"keras"`, `"native"`, or `"bytes"` for the copies.
    name: what its users call it.
    seconds: of a step; None where it does not run.
    fault: what is wrong with its answer or why it does not run; empty if all is well.
    """

    role: str
    name: str
    seconds: Quartiles | None
    fault: str


class Measured(NamedTuple):
    """One case under one backend.

    rounds: in which everybody had a turn.
    results: of everybody.
    beside: seconds of the fastest in a role divided by ours in the same round; for `"bytes"` ours divided by those of
        the fastest copy. None where one of the two does not run.
    """

    backend: str
    case: Case
    rounds: int
    results: list[Result]
    beside: dict[str, Quartiles | None]

    def fastest(self, role: str) -> Result:
        """The one in a role that counts; one without a name if nobody has that role."""
        return min(
            (result for result in self.results if result.role == role),
            key=lambda result: result.seconds.median if result.seconds else math.inf,
            default=Result(role, "", None, ""),
        )


class Memory(NamedTuple):
    """By how many bytes resident memory rises during a training step of a contender; None where nobody can say."""

    backend: str
    case: Case
    name: str
    size: int | None


class Fit(NamedTuple):
    """An epoch of `fit` of the small ResNet under one backend.

    images: in an epoch.
    rounds: epochs of each network that were timed.
    ours, keras, without: seconds an epoch, with our layer, with Keras's and without normalization.
    beside: those with Keras's layer divided by ours, in the same round.
    bound: those with Keras's layer divided by those without normalization: no layer could be faster by more.
    fault: by how much the losses of the first epoch differ, if they do.
    """

    backend: str
    images: int
    rounds: int
    ours: Quartiles
    keras: Quartiles
    without: Quartiles
    beside: Quartiles
    bound: Quartiles
    fault: str


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


def run(
    backend: Annotated[
        list[str] | None, typer.Option(help=f"{', '.join(BACKENDS)}; several times for several. [default: installed]")
    ] = None,
    shape: Annotated[
        list[str] | None, typer.Option(help=f"Channels last; several times for several. [default: {' '.join(SHAPES)}]")
    ] = None,
    dtype: Annotated[
        list[str] | None, typer.Option(help=f"Several times for several. [default: {' '.join(DTYPES)}]")
    ] = None,
    seconds: Annotated[float | None, typer.Option(help=f"For each case. [default: {SECONDS}]", min=0.001)] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Small tensors, a moment each: shows that all runs.")] = False,
    fit: Annotated[bool, typer.Option(help="Also train a small ResNet with ours and with Keras's layer.")] = True,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all numbers there.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw them there, as PNG.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace these files if they are there.")] = False,
) -> None:
    """Measure, show a table, write what was asked for.

    Everything runs on the CPU. Each backend has processes of its own; inside one, all contenders take turns.

    Raises:
        EvenkeelError: an option cannot be honoured.
        typer.Exit: with code 1, where our layer gives a wrong answer, or a process ended before it was done.
    """
    shapes = [_shape(text) for text in shape or (QUICK_SHAPES if quick else SHAPES)]
    dtypes = [_dtype(text) for text in dtype or DTYPES]
    cases = [Case(sizes, name, training) for training in (True, False) for sizes in shapes for name in dtypes]
    seconds = seconds or (QUICK_SECONDS if quick else SECONDS)
    for path in filter(None, (json_file, plot)):
        check_free(path, overwrite=overwrite)
    if plot and importlib.util.find_spec("matplotlib") is None:
        raise MissingLibraryError('matplotlib is not installed; pip install "evenkeel[train]", or leave out --plot')
    backends = _backends(backend)

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 120
    report = _measure(console, backends, cases, seconds, QUICK_IMAGES if quick else IMAGES, fit)
    # Before the tables: whatever becomes of the terminal meanwhile, the numbers are safe.
    if json_file:
        with replacing(json_file) as path:
            path.write_text(json.dumps(_plain(report), indent=1, allow_nan=False) + "\n")
    if plot and report.cases:
        _plot(plot, report)
    _show(console, report)
    if report.failures or any(_ours_is_wrong(item) for item in report.cases) or any(item.fault for item in report.fit):
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
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task("", total=len(installed) * (len(cases) + len(training) + fit))
        for name, lacks in backends.items():
            if lacks:
                report.backends[name] = f"{lacks} is not installed"
                continue
            report.backends[name] = "failed"
            progress.update(bar, description=f"{name}: timing")
            try:
                for item in _in_a_process(_time, name, cases, seconds):
                    if isinstance(item, Measured):
                        report.cases.append(item)
                        progress.advance(bar)
                    else:
                        report.backends[name] = item
                progress.update(bar, description=f"{name}: memory")
                for item in _in_a_process(_weigh, name, training):
                    report.memory.extend(item)
                    progress.advance(bar)
                if fit:
                    progress.update(bar, description=f"{name}: fit")
                    report.fit.extend(_in_a_process(_train, name, images, 5 * seconds))
                    progress.advance(bar)
            except _ProcessEndedError as error:
                report.failures.append(f"{name}: {error}")
    return report


class _ProcessEndedError(EvenkeelError, RuntimeError):
    """A process ended before it was done."""


def _in_a_process(work: Callable[..., Iterator[Any]], backend: str, *arguments: Any) -> Iterator[Any]:
    """What `work(backend, *arguments)` yields, one by one, in a fresh process whose Keras runs on `backend`."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    with tempfile.TemporaryDirectory() as folder:
        words = Path(folder, "stderr")
        process = context.Process(target=_child, args=(theirs, words, work, backend, *arguments))
        process.start()
        theirs.close()
        try:
            while True:
                done, item = ours.recv()
                if done:
                    break
                yield item
        except EOFError:
            process.join()
            last = words.read_text(errors="replace").strip().rpartition("\n")[2] if words.exists() else ""
            raise _ProcessEndedError(
                f"{work.__name__.strip('_')} ended with exit code {process.exitcode}, and the last words: {last}"
            ) from None
        finally:
            process.terminate()
            process.join()
            ours.close()


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


# In a process of a backend.


def _child(pipe: Any, words: Path, work: Callable[..., Iterator[Any]], backend: str, *arguments: Any) -> None:
    """Send what `work` yields as `(False, item)`, and `(True, None)` when it is done."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # The parent alone answers Ctrl-C.
    # What frameworks say while they load goes past sys.stderr, so it is kept from the terminal down here.
    os.dup2(os.open(words, os.O_CREAT | os.O_WRONLY), 2)
    os.environ["KERAS_BACKEND"] = backend
    # The bytes are those of the processor's memory, so nobody may compute elsewhere.
    os.environ.update(CUDA_VISIBLE_DEVICES="-1", JAX_PLATFORMS="cpu")
    if work is _weigh:
        # The same operations, with memory from the system instead of a pool that keeps what it once had.
        os.environ["TF_ONEDNN_USE_SYSTEM_ALLOCATOR"] = "1"
    for item in work(backend, *arguments):
        pipe.send((False, item))
    pipe.send((True, None))


def _time(backend: str, cases: list[Case], seconds: float) -> Iterator[dict[str, str] | Measured]:
    """The versions of all libraries, then each case."""
    timing.keep_memory()
    yield _versions(backend)
    for case in cases:
        yield _time_case(backend, case, seconds)


def _versions(backend: str) -> dict[str, str]:
    names = [backend, "keras", *(["flax"] if backend == "jax" and importlib.util.find_spec("flax") else [])]
    return {name: importlib.import_module(name).__version__ for name in names}


def _time_case(backend: str, case: Case, seconds: float) -> Measured:
    data = Data.of(case)
    roles: dict[str, str] = {}
    steps, faults = {}, {}
    for contender in contenders(backend, case, data):
        roles[contender.name] = contender.role
        runs, faults[contender.name] = _try(contender, case, data)
        if runs:
            steps[contender.name] = contender.step
    ways = timing.moving_bytes(case.size, passes=case.passes)
    roles |= dict.fromkeys(ways, "bytes")
    times = timing.interleaved(steps | ways, seconds=seconds)

    results = [
        Result(role, name, timing.quartiles(times[name]) if name in times else None, faults.get(name, ""))
        for name, role in roles.items()
    ]
    best = {}
    for role in ("ours", "keras", "native", "bytes"):
        candidates = {name: times[name] for name in times if roles[name] == role}
        best[role] = candidates[timing.fastest(candidates)] if candidates else None
    beside = {
        "keras": _ratio(best["keras"], best["ours"]),
        "native": _ratio(best["native"], best["ours"]),
        "bytes": _ratio(best["ours"], best["bytes"]),
    }
    return Measured(backend, case, len(next(iter(times.values()))), results, beside)


def _ratio(numerators: list[float] | None, denominators: list[float] | None) -> Quartiles | None:
    return timing.ratio(numerators, denominators) if numerators and denominators else None


def _try(contender: Contender, case: Case, data: Data) -> tuple[bool, str]:
    """Whether a contender runs, and what is wrong with its first answer."""
    try:
        answer = contender.step()
    except Exception as error:  # Whatever a framework raises, the others go on.
        return False, f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
    return True, wrong(contender, case, data, answer)


def _weigh(backend: str, cases: list[Case]) -> Iterator[list[Memory]]:
    """The memory of every contender, case by case: the most in five steps, after one to warm up."""
    timing.keep_no_memory()
    for case in cases:
        result = []
        for contender in contenders(backend, case, Data.of(case)):
            try:
                contender.step()
            except Exception:  # The process that times has told of it.
                continue
            sizes = [timing.peak_memory(contender.step) for _ in range(5)]
            # What a framework frees late, in a thread of its own, is missing in the next step.
            size = max((size for size in sizes if size is not None), default=None)
            result.append(Memory(backend, case, contender.name, size))
        yield result


def _train(backend: str, images: int, seconds: float) -> Iterator[Fit]:
    """Epochs of three networks by turns, after one each to warm up; the losses of ours and of Keras's must agree."""
    timing.keep_memory()
    random = np.random.default_rng(0)
    x = random.standard_normal((images, 32, 32, 3), np.float32)
    y = random.integers(0, 10, images)

    stopwatch = epoch_stopwatch()

    def epoch(network: Any) -> float:
        history = network.fit(x, y, batch_size=BATCH_SIZE, shuffle=False, verbose=0, callbacks=[stopwatch])
        return history.history["loss"][0]

    compete = networks()
    loss = {name: epoch(network) for name, network in compete.items()}
    steps = {name: (lambda network=network: epoch(network)) for name, network in compete.items()}
    times = timing.interleaved(steps, seconds=seconds, clock=lambda: stopwatch.seconds)
    apart = abs(loss["ours"] - loss["keras"])
    # Rounding grows from step to step; 1e-5 was seen, and a wrong gradient shows in the second digit.
    fault = "" if apart <= 1e-3 * abs(loss["keras"]) else f"losses of the first epoch are {apart:.2g} apart"
    yield Fit(
        backend,
        images,
        len(times["ours"]),
        timing.quartiles(times["ours"]),
        timing.quartiles(times["keras"]),
        timing.quartiles(times["without"]),
        timing.ratio(times["keras"], times["ours"]),
        timing.ratio(times["keras"], times["without"]),
        fault,
    )


# What is shown.


def _ours_is_wrong(measured: Measured) -> bool:
    return any(result.fault for result in measured.results if result.role == "ours")


def _show(console: Console, report: Report) -> None:
    machine = report.machine
    console.print(
        f"{machine['processor']}, {machine['cores']} cores, {machine['system']}; Python {machine['python']}, "
        f"NumPy {machine['numpy']}, evenkeel {machine['evenkeel']}"
    )
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


def _plot(path: Path, report: Report) -> None:
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
    with replacing(path) as partial:
        figure.savefig(partial, format="png", dpi=150)


def _panel(item: Measured) -> tuple[str, bool]:
    return item.backend, item.case.training


def _draw(axes: Axes, measured: list[Measured]) -> None:
    places = np.arange(len(measured))
    bars = (("ours", "evenkeel", "#1b6ca8"), ("keras", "Keras", "#e08e45"), ("native", "framework's own", "#9aa5b1"))
    one = Quartiles(1.0, 1.0, 1.0)
    for number, (role, label, colour) in enumerate(bars):
        found = [one if role == "ours" else item.beside[role] for item in measured]
        first, median, third = np.array([each or (np.nan,) * 3 for each in found]).T
        at = places + 0.27 * (number - 1)
        whiskers = None if role == "ours" else (median - first, third - median)
        axes.barh(at, median, 0.25, xerr=whiskers, color=colour, label=label, error_kw={"lw": 0.8, "ecolor": "#333333"})
        if role != "ours":
            for height, end, value in zip(at, third, median, strict=True):
                if np.isfinite(value):
                    axes.annotate(
                        f"{value:.2f}", (end, height), (3, 0), textcoords="offset points", va="center", fontsize=7
                    )
    limits = [1 / item.beside["bytes"].median if item.beside["bytes"] else np.nan for item in measured]
    axes.vlines(limits, places - 0.42, places + 0.42, color="black", lw=1.8, label="moving the bytes")
    axes.set_yticks(places, [f"{_by(item.case.shape)}\n{item.case.dtype}" for item in measured], fontsize=8)
    axes.set_ylim(len(measured) - 0.4, -0.6)
    axes.margins(x=0.12)
    axes.set_xlim(left=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", alpha=0.25)
    axes.set_axisbelow(True)
