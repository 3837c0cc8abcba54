# SPDX-License-Identifier: Apache-2.0
"""Synchronized beside local, in several processes: measured and shown."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

from evenkeel.cli.bench.running import environment, installed_of, machine_here, progress_bar
from evenkeel.cli.bench.shown import by, show_backends, show_machine, spread
from evenkeel.workloads import scaling
from evenkeel.workloads.contenders import Case
from evenkeel.workloads.processes import ProcessEndedError
from evenkeel.workloads.scaling import Scaled, Sent

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Report(NamedTuple):
    """All of a run with `--processes`, as `--json` has it.

    processes: how many there were, each number in turn.
    The rest as in `contest.Report`.
    """

    machine: dict[str, Any]
    backends: dict[str, dict[str, str] | str]
    processes: list[int]
    cases: list[Scaled]
    failures: list[str]


def measure(console: Console, backends: dict[str, str], cases: list[Case], processes: int, seconds: float) -> Report:
    report = Report(machine_here(), {}, scaling.worlds(processes), [], [])
    installed = [name for name, lacks in backends.items() if not lacks]
    with progress_bar(console) as progress:
        bar = progress.add_task("", total=len(installed) * (1 + len(cases)))
        for name in installed_of(backends, report):
            progress.update(bar, description=f"{name}: starting {sum(report.processes)} processes")
            try:
                for item in scaling.measure(name, cases, processes, seconds, environment(name)):
                    if isinstance(item, dict):
                        report.backends[name] = item
                        progress.update(bar, description=f"{name}: timing")
                    else:
                        report.cases.extend(item)
                    progress.advance(bar)
            except ProcessEndedError as error:
                report.failures.append(f"{name}: {error}")
    return report


def show(console: Console, report: Report) -> None:
    show_machine(console, report.machine)
    show_backends(console, report.backends)
    if report.cases:
        console.print(_table(report))
    console.print(
        "Every process has a share of this shape, and one core. Medians, below them quartiles; ratios are taken round "
        "by round. Efficiency: time in one process divided by time here; its bound is what there are cores for. "
        "Messages that a step was seen to send, forward and below it backward, and their bytes; beside them what the "
        "formula of the layer says."
    )
    wrong = [
        f"wrong: {item.backend}, {item.processes} processes, {by(item.case.shape)}, {item.case.dtype}: {item.fault}"
        for item in report.cases
        if item.fault
    ]
    for line in (*wrong, *report.failures):
        console.print(line, markup=False, soft_wrap=True)


def _table(report: Report) -> Table:
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
            f"{item.backend}\n{item.case.dtype}\n{by(item.case.shape)}",
            str(item.processes),
            spread(item.synchronized, 1e3),
            spread(item.local, 1e3),
            spread(item.cost),
            f"{100 * item.efficiency.median:.0f} %\n({100 * item.efficiency_local.median:.0f} %)",
            f"{100 * item.bound:.0f} %" + (f"\n{cores} cores" if item.processes > cores else ""),
            _messages(item.sent),
            _messages(item.expected) if item.sent == item.expected else f"[red]{_messages(item.expected)}[/red]",
            "[red]no[/red]" if item.fault else "yes",
        )
    return table


def _messages(sent: Sent) -> str:
    return "\n".join(f"{messages}: {size:,}" for messages, size in sent)


def figure(report: Report) -> Figure:
    """Cost of synchronization, and weak scaling efficiency, over the number of processes: a line for each case."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 5), layout="constrained")
    cost, efficiency = figure.subplots(1, 2)
    colours = {"tensorflow": "#e08e45", "jax": "#1b6ca8", "torch": "#b3392f"}
    cases = list(dict.fromkeys(item.case for item in report.cases))
    for backend in dict.fromkeys(item.backend for item in report.cases):
        for case, marker in zip(cases, itertools.cycle("os^Dv<>P")):
            items = [item for item in report.cases if (item.backend, item.case) == (backend, case)]
            label = f"{backend}, {by(case.shape)}, {case.dtype}"
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


def faulty(report: Report) -> bool:
    """Whether ours gave a wrong answer."""
    return any(item.fault for item in report.cases)
