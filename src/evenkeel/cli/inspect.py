# SPDX-License-Identifier: Apache-2.0
"""`evenkeel inspect`: which normalizers a checkpoint has, and what is odd about them."""

from __future__ import annotations

import collections
import importlib.util
import json
import math
import os
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import typer
from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table

from evenkeel.checkpoints import Checkpoint, Normalizer, Variable, flags, read_checkpoint
from evenkeel.doctor.report.groups import shown
from evenkeel.errors import InputError, MissingLibraryError
from evenkeel.files import check_free, replacing

HELP = "Show the normalizers of a checkpoint: channels, ranges, what is missing, what is odd."

FOUR = ("mean", "variance", "gamma", "beta")
HEADER = ("name", "dialect", "channels", *FOUR, "flags")
PLOTTED = 40
BINS = 40


class Range(NamedTuple):
    """What a part of a normalizer holds.

    minimum, maximum: of its finite values; None where there are none.
    nan, infinite: how many of the others.
    """

    minimum: float | None
    maximum: float | None
    nan: int
    infinite: int

    def __str__(self) -> str:
        if self.minimum is None or self.maximum is None:
            return "not finite" if self.nan + self.infinite else "empty"
        ends = [f"{end:.3g}" for end in (self.minimum, self.maximum)]
        return " … ".join(dict.fromkeys(ends))


class Histogram(NamedTuple):
    """How many channels have which value.

    counts: shape `(bins,)`.
    edges: shape `(bins + 1,)`.
    left_out: how many values have no place on the axis: not finite, or no logarithm.
    """

    counts: np.ndarray
    edges: np.ndarray
    left_out: int


class Row(NamedTuple):
    """A normalizer, its values summed up.

    ranges: part -> what it holds; None for a part that is not numbers.
    flags: what is odd, in words.
    histograms: of `FOUR` those that are there; empty where nothing is to be drawn.
    """

    normalizer: Normalizer
    ranges: Mapping[str, Range | None]
    flags: list[str]
    histograms: Mapping[str, Histogram]


def run(
    path: Annotated[Path, typer.Argument(help="A file, a folder, or the prefix of TensorFlow's files.")],
    variables: Annotated[bool, typer.Option("--variables", help="List all variables too.")] = False,
    only_flagged: Annotated[bool, typer.Option("--only-flagged", help="Only normalizers with something odd.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print all of it as one JSON document.")] = False,
    plot: Annotated[Path | None, typer.Option(help="Draw histograms of the channels there, as PNG.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace that file if it is there.")] = False,
) -> None:
    """Read one variable after the other, and print what they hold.

    Raises:
        EvenkeelError: the checkpoint cannot be read, or the plot not be written.
    """
    if plot:
        _check_plot(plot, path, overwrite=overwrite)
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    os.environ["TF_ENABLE_ONEDNN_OPTS"] = "0"  # or TensorFlow speaks of it when it is imported
    checkpoint = read_checkpoint(path)
    rows = list(_rows(checkpoint, only_flagged=only_flagged, draw=plot is not None))
    if plot and rows:
        _plot(plot, str(path), rows)
    if as_json:
        print(json.dumps(_document(checkpoint, rows), indent=1, allow_nan=False))
    else:
        _show(checkpoint, rows, variables=variables, only_flagged=only_flagged)
        if plot:
            _say_what_is_drawn(plot, rows)


def _check_plot(plot: Path, path: Path, *, overwrite: bool) -> None:
    if importlib.util.find_spec("matplotlib") is None:
        raise MissingLibraryError('matplotlib is not installed; pip install "evenkeel[train]", or leave out --plot')
    if plot.exists() and path.exists() and plot.samefile(path):
        raise InputError(f"{plot} is the checkpoint itself; give --plot another name")
    check_free(plot, overwrite=overwrite)


# What is read.


def _rows(checkpoint: Checkpoint, *, only_flagged: bool, draw: bool) -> Iterator[Row]:
    console = Console(stderr=True)
    normalizers = track(
        checkpoint.normalizers, "reading", console=console, transient=True, disable=not console.is_terminal
    )
    drawn = 0
    for normalizer in normalizers:
        row = _row(normalizer, draw=draw and drawn < PLOTTED)
        if row.flags or not only_flagged:
            drawn += 1
            yield row


def _row(normalizer: Normalizer, *, draw: bool) -> Row:
    values = {role: part.read() for role, part in _parts(normalizer).items()}
    found = flags.find(values, missing=normalizer.missing, epsilon=normalizer.facts.epsilon)
    if normalizer.facts.frozen:
        found.append("frozen, gamma and beta too" if normalizer.facts.frozen == "all" else "frozen")
    numbers = {role: flags.numbers(array) for role, array in values.items() if flags.are_numbers(array.dtype)}
    ranges = {role: _range(numbers[role]) if role in numbers else None for role in values}
    four = [role for role in FOUR if role in numbers] if draw else []
    return Row(normalizer, ranges, found, {role: _histogram(role, numbers[role]) for role in four})


def _parts(normalizer: Normalizer) -> dict[str, Variable]:
    four = {role: getattr(normalizer, role) for role in FOUR}
    return {role: part for role, part in four.items() if part is not None} | dict(normalizer.others)


def _range(numbers: np.ndarray) -> Range:
    finite = numbers[np.isfinite(numbers)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (None, None)
    return Range(low, high, int(np.isnan(numbers).sum()), int(np.isinf(numbers).sum()))


def _histogram(role: str, numbers: np.ndarray) -> Histogram:
    if role == "variance":
        numbers = np.log10(numbers, out=np.full(numbers.shape, np.nan), where=numbers > 0)
    finite = np.clip(numbers[np.isfinite(numbers)], -1e38, 1e38)  # or the axis itself overflows
    low, high = (finite.min(), finite.max()) if finite.size else (0.0, 0.0)
    largest = max(abs(low), abs(high))
    spread = high - low
    # Equal values, or nearly: float64 could not divide what is between them into bins.
    margin = spread / 50 if spread > max(1e-6 * largest, 1e-38) else largest / 10
    counts, edges = np.histogram(finite, BINS, (low - margin, high + margin))
    return Histogram(counts, edges, numbers.size - finite.size)


# What is shown.


def _show(checkpoint: Checkpoint, rows: list[Row], *, variables: bool, only_flagged: bool) -> None:
    """A table that folds on a terminal; elsewhere lines as long as they need to be."""
    print(f"{shown(checkpoint.path)}: {shown(checkpoint.format)}")
    if variables:
        print(*_aligned(_shown_variable(*item) for item in checkpoint.variables.items()), sep="\n", end="\n\n")
    console = Console(highlight=False, markup=False, emoji=False)
    if rows and console.is_terminal:
        console.print(_table(rows, console.width))
    elif rows:
        print(*_aligned([HEADER, *map(_cells, rows)]), sep="\n")
    elif checkpoint.normalizers:
        print("nothing odd")
    totals = _totals(checkpoint)
    print(f"{totals['variables']:,} variables, {totals['values']:,} values, {totals['bytes']:,} bytes")
    dialects = ", ".join(f"{count} {dialect}" for dialect, count in totals["dialects"].items())
    flagged = sum(bool(row.flags) for row in rows) or "none"
    print(f"{totals['normalizers']} normalizers ({dialects}), {flagged} flagged" if dialects else "no normalizers")


def _table(rows: list[Row], width: int) -> Table:
    """Flags stand below the name, which is the only column that folds."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    table.add_column("name, ! flags", overflow="fold")
    for heading in HEADER[1:-1]:
        table.add_column(heading, justify="left" if heading == "dialect" else "right", no_wrap=True)
    for row in rows:
        name, *cells, _ = _cells(row)
        if width <= 140:
            cells = [cell.replace(" … ", "\n") for cell in cells]
        table.add_row("\n".join([name, *(f"! {flag}" for flag in row.flags)]), *cells)
    return table


def _cells(row: Row) -> tuple[str, ...]:
    normalizer, ranges = row.normalizer, row.ranges
    four = ["missing" if role in normalizer.missing else str(ranges.get(role, "–") or "?") for role in FOUR]
    name = shown(normalizer.name) or "(no name)"
    return (name, normalizer.dialect, str(normalizer.channels), *four, "; ".join(row.flags))


def _shown_variable(name: str, variable: Variable) -> tuple[str, ...]:
    return shown(name), "x".join(map(str, variable.shape)) or "scalar", str(variable.dtype)


def _aligned(rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    """Columns as wide as their widest cell, two blanks between them."""
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def _totals(checkpoint: Checkpoint) -> dict[str, Any]:
    variables = checkpoint.variables.values()
    return {
        "variables": len(variables),
        "values": sum(variable.size for variable in variables),
        "bytes": sum(variable.size * variable.dtype.itemsize for variable in variables if not variable.dtype.hasobject),
        "normalizers": len(checkpoint.normalizers),
        "dialects": dict(collections.Counter(item.dialect for item in checkpoint.normalizers)),
    }


def _document(checkpoint: Checkpoint, rows: list[Row]) -> dict[str, Any]:
    return {
        "path": checkpoint.path,
        "format": checkpoint.format,
        "convention": checkpoint.convention,
        "totals": _totals(checkpoint),
        "normalizers": [_described(row) for row in rows],
        "variables": {name: _described_variable(variable) for name, variable in checkpoint.variables.items()},
    }


def _described(row: Row) -> dict[str, Any]:
    normalizer = row.normalizer
    parts = {
        role: _described_variable(part) | (range_._asdict() if (range_ := row.ranges[role]) else {})
        for role, part in _parts(normalizer).items()
    }
    return {
        "name": normalizer.name,
        "dialect": normalizer.dialect,
        "channels": normalizer.channels,
        "parts": parts,
        "missing": list(normalizer.missing),
        "facts": {
            name: None if isinstance(fact, float) and not math.isfinite(fact) else fact
            for name, fact in normalizer.facts._asdict().items()
        },
        "flags": row.flags,
    }


def _described_variable(variable: Variable) -> dict[str, Any]:
    return {"shape": list(variable.shape), "dtype": str(variable.dtype)}


# What is drawn.


def _plot(plot: Path, path: str, rows: list[Row]) -> None:
    from matplotlib.figure import Figure

    rows = rows[:PLOTTED]
    figure = Figure(figsize=(12, 1 + len(rows)), layout="constrained")
    figure.suptitle(_drawn(path), fontsize=9, parse_math=False)
    panels = figure.subplots(len(rows), len(FOUR), squeeze=False)
    for axes, role in zip(panels[0], FOUR, strict=True):
        axes.set_title("log10 variance" if role == "variance" else role, fontsize=9)
    for row, line in zip(rows, panels, strict=True):
        label = "\n".join(textwrap.wrap(_drawn(row.normalizer.name), 32))
        line[0].set_ylabel(label, rotation=0, ha="right", va="center", fontsize=7, parse_math=False)
        for axes, role in zip(line, FOUR, strict=True):
            _draw(axes, row.histograms.get(role))
    with replacing(plot) as partial:
        figure.savefig(partial, format="png", dpi=100)


def _draw(axes: Any, histogram: Histogram | None) -> None:
    axes.tick_params(labelsize=6)
    axes.set_yticks([])
    axes.spines[["top", "right", "left"]].set_visible(False)
    note = {"xy": (0.5, 0.5), "xycoords": "axes fraction", "ha": "center", "va": "center", "fontsize": 7}
    if histogram is None:
        axes.set_xticks([])
        axes.annotate("none", **note)
        return
    axes.stairs(histogram.counts, histogram.edges, fill=True, color="#1b6ca8")
    axes.locator_params(axis="x", nbins=5)
    axes.xaxis.get_offset_text().set_fontsize(6)
    if histogram.left_out:
        axes.annotate(f"{histogram.left_out} not drawn", **note | {"color": "#b03a2e"})


def _drawn(name: str) -> str:
    """What Matplotlib's own font has letters for; the end of what is too long."""
    text = shown(name).encode("ascii", "backslashreplace").decode()
    return text if len(text) <= 96 else f"...{text[-93:]}"


def _say_what_is_drawn(plot: Path, rows: list[Row]) -> None:
    if not rows:
        print(f"{plot} was not written: there is nothing to draw")
    elif left_out := [shown(row.normalizer.name) for row in rows[PLOTTED:]]:
        print(f"{plot} has the first {PLOTTED} of {len(rows)}; left out: {', '.join(left_out)}")
    else:
        print(f"{plot} has {len(rows)} of {len(rows)}")
