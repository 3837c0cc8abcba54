# SPDX-License-Identifier: Apache-2.0
"""Ours beside Keras's, the native operation and the bytes: measured and shown."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from rich.console import Console
from rich.table import Table

from evenkeel.cli.bench.running import in_a_process, installed_of, machine_here, patience, progress_bar
from evenkeel.cli.bench.shown import by, draw_beside, show_machine, spread
from evenkeel.workloads.contenders import Case
from evenkeel.workloads.contest import Fit, Measured, Memory, time_all, train, weigh
from evenkeel.workloads.processes import ProcessEndedError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

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


def measure(
    console: Console, backends: dict[str, str], cases: list[Case], seconds: float, images: int, fit: bool
) -> Report:
    report = Report(machine_here(), {}, [], [], [], [])
    training = [case for case in cases if case.training]
    installed = [name for name, lacks in backends.items() if not lacks]
    with progress_bar(console) as progress:
        bar = progress.add_task("", total=len(installed) * (len(cases) + len(training) + fit))
        for name in installed_of(backends, report):
            progress.update(bar, description=f"{name}: timing")
            try:
                for item in in_a_process(time_all, name, cases, seconds, patience=patience(seconds)):
                    if isinstance(item, Measured):
                        report.cases.append(item)
                        progress.advance(bar)
                    else:
                        report.backends[name] = item
                progress.update(bar, description=f"{name}: memory")
                # The same operations, with memory from the system instead of a pool that keeps what it once had.
                for item in in_a_process(weigh, name, training, TF_ONEDNN_USE_SYSTEM_ALLOCATOR="1"):
                    report.memory.extend(item)
                    progress.advance(bar)
                if fit:
                    progress.update(bar, description=f"{name}: fit")
                    longer = 5 * seconds
                    report.fit.extend(in_a_process(train, name, images, longer, patience=patience(longer)))
                    progress.advance(bar)
            except ProcessEndedError as error:
                report.failures.append(f"{name}: {error}")
    return report


def show(console: Console, report: Report) -> None:
    show_machine(console, report.machine)
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
            f"{by(item.case.shape)}\n{item.case.dtype}",
            spread(best["ours"].seconds, 1e3),
            *(spread(item.beside[name]) for name in ("keras", "native", "bytes")),
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
        table.add_row(fit.backend, str(fit.images), *map(spread, numbers))
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
                where = f"{item.backend}, {by(item.case.shape)}, {item.case.dtype}, {step}"
                yield f"wrong: {where}: {result.name}: {result.fault}"
    for fit in report.fit:
        if fit.fault:
            yield f"wrong: {fit.backend}, fit: {fit.fault}"


def figure(report: Report) -> Figure:
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
    names = [f"{by(item.case.shape)}\n{item.case.dtype}" for item in measured]
    bars = [("keras", "Keras", "#e08e45"), ("native", "framework's own", "#9aa5b1")]
    limits = [1 / item.beside["bytes"].median if item.beside["bytes"] else math.nan for item in measured]
    draw_beside(axes, names, bars, [item.beside for item in measured], limits)


def faulty(report: Report) -> bool:
    """Whether ours gave a wrong answer."""
    wrong = any(result.fault for item in report.cases for result in item.results if result.role == "ours")
    return wrong or any(item.fault for item in report.fit)
