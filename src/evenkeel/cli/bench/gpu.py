# SPDX-License-Identifier: Apache-2.0
"""Ours beside torch's, Keras's and JAX's on a GPU: measured and shown."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from rich.console import Console
from rich.table import Table

from evenkeel.cli.bench.running import machine_here, patience, progress_bar
from evenkeel.cli.bench.shown import by, draw_beside, median, show_backends, show_machine
from evenkeel.workloads import gpu
from evenkeel.workloads.gpu import Found, Gpu, GpuCase
from evenkeel.workloads.processes import Process, ProcessEndedError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# What was wanted of ours on an H200: so many times faster; such a share of the bandwidth of a copy; half of what torch
# keeps, where nothing is added: with a residual y is kept too, as by torch.
WANTED, WANTED_OF_COPY, WANTED_KEPT = {"eager": 1.8, "compiled": 1.1}, 0.8, "half"
OTHERS = {"eager": "torch, eager", "compiled": "torch.compile", "keras": "Keras", "jax": "JAX"}


class Report(NamedTuple):
    """All of a run with `--device cuda`, as `--json` has it.

    gpu: its `name`, and `bandwidth`: bytes a second that a copy in it reads and writes; empty if it did not answer.
    The rest as in `contest.Report`.
    """

    machine: dict[str, Any]
    backends: dict[str, dict[str, str] | str]
    gpu: dict[str, Any]
    cases: list[Found]
    failures: list[str]


def measure(console: Console, cases: list[GpuCase], seconds: float) -> Report:
    report = Report(machine_here(), {}, {}, [], [])
    with progress_bar(console) as progress:
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


def _add_torch(report: Report, cases: list[GpuCase], seconds: float) -> Iterator[Found]:
    # Not in this process, which a GPU that gives up would take along.
    variables = {"KERAS_BACKEND": "torch"}
    with Process(gpu.measure, cases, seconds, environment=variables, patience=patience(seconds)) as process:
        for item in process:
            if isinstance(item, Gpu):
                report.gpu.update(name=item.name, bandwidth=item.bandwidth)
                report.backends["torch"] = item.versions
            else:
                report.cases.append(item)
                yield item


def _add_jax(report: Report, cases: list[GpuCase], seconds: float, platform: str = "gpu") -> Iterator[Found]:
    """JAX beside what is in the report, if JAX calculates on that platform by default."""
    if importlib.util.find_spec("jax") is None:
        report.backends["jax"] = "jax is not installed"
        return
    places = [place for place, item in enumerate(report.cases) if item.case.compiled]
    cases = [report.cases[place].case for place in places]
    variables = {"KERAS_BACKEND": "jax"}
    with Process(gpu.measure_jax, cases, seconds, environment=variables, patience=patience(seconds)) as process:
        items = iter(process)
        versions = next(items)
        if versions["device"] != platform:
            report.backends["jax"] = f"jax {versions['jax']} finds no {platform.upper()}"
            return
        report.backends["jax"] = versions
        for place, result in zip(places, items, strict=True):
            report.cases[place] = report.cases[place].joined_by(result)
            yield report.cases[place]


def show(console: Console, report: Report) -> None:
    show_machine(console, report.machine)
    show_backends(console, report.backends)
    if report.cases:
        console.print(_table(report))
    console.print(
        "Medians; quartiles are in --json and --plot. x: so many times faster is ours. GB/s: of the bytes a step must "
        "move. Kept for the backward pass, and needed at the highest point of a step: in sizes of the input, ours and "
        "torch's, eager. *: not replayed from a graph."
    )
    faults: dict[str, list[str]] = {}
    for item in report.cases:
        for result in item.results:
            if result.fault:
                faults.setdefault(f"{result.name}: {result.fault}", []).append(_named(item.case))
    wrong = [f"wrong: {', '.join(cases)}: {fault}" for fault, cases in faults.items()]
    for line in (*wrong, *report.failures):
        console.print(line, markup=False, soft_wrap=True)


def _table(report: Report) -> Table:
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
            _named(item.case),
            median(ours.seconds, 1e3) + _mark(ours),
            f"{share * bandwidth / 1e9:.0f}" if share else "-",
            f"{100 * share:.0f}" if share else "-",
            *(median(item.beside.get(role)) + _mark(item.fastest(role)) for role in OTHERS),
            *sizes,
            f"[red]not {', '.join(faulty)}[/red]" if faulty else "all",
        )
    return table


def _mark(result: gpu.Result) -> str:
    """For whom Python has held up while others were replayed; JAX makes graphs of its own."""
    return "*" if result.seconds and not result.captured and result.role != "jax" else ""


def _named(case: GpuCase) -> str:
    return f"{by(case.shape)} {case.dtype}{'' if case.channels_last else ' first'}{' +add' if case.residual else ''}"


def figure(report: Report) -> Figure:
    """Time beside ours: a group of bars for each case, a line for the bytes."""
    from matplotlib.figure import Figure

    colours = ("#9aa5b1", "#5c6b7a", "#e08e45", "#b3392f")
    others = [(role, name, colour) for (role, name), colour in zip(OTHERS.items(), colours, strict=True)]
    others = [bar for bar in others if any(bar[0] in item.beside for item in report.cases)]
    figure = Figure(figsize=(8, 2 + 0.8 * len(report.cases)), layout="constrained")
    axes = figure.subplots()
    limits = [item.of_copy or math.nan for item in report.cases]
    names = [_named(item.case).replace(" ", "\n", 1) for item in report.cases]
    draw_beside(axes, names, others, [item.beside for item in report.cases], limits)
    axes.set_xlabel("time of a training step, ours = 1")
    figure.suptitle(
        f"Batch norm (+ add) + ReLU on {report.gpu['name']}\nshorter is faster; whiskers are quartiles", fontsize=11
    )
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    return figure


def faulty(report: Report) -> bool:
    """Whether ours gave a wrong answer."""
    return any(result.fault for item in report.cases for result in item.results if result.role == "ours")
