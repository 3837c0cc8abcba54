# SPDX-License-Identifier: Apache-2.0
"""How numbers are written and drawn, whatever was measured."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console

from evenkeel.workloads.timing import Quartiles

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def show_machine(console: Console, machine: dict[str, Any]) -> None:
    console.print(
        f"{machine['processor']}, {machine['cores']} cores, {machine['system']}; Python {machine['python']}, "
        f"NumPy {machine['numpy']}, evenkeel {machine['evenkeel']}"
    )


def show_backends(console: Console, backends: Mapping[str, Mapping[str, str] | str]) -> None:
    """The versions of each, or why there are none."""
    for backend, versions in backends.items():
        named = versions if isinstance(versions, str) else ", ".join(f"{name} {it}" for name, it in versions.items())
        console.print(f"{backend}: {named}")


def median(quartiles: Quartiles | None, factor: float = 1) -> str:
    return digits(factor * quartiles.median) if quartiles else "-"


def spread(quartiles: Quartiles | None, factor: float = 1) -> str:
    """The median, and below it the first and the third quartile."""
    if quartiles is None:
        return "-"
    first, median, third = (digits(factor * value) for value in quartiles)
    return f"{median}\n[dim]{first}-{third}[/dim]"


def digits(value: float) -> str:
    """Three digits, and no fewer than are before the point."""
    return f"{value:.{max(0, 2 - math.floor(math.log10(value)))}f}"


def by(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def plain(value: Any) -> Any:
    """For JSON: a named tuple as what its fields are called."""
    if hasattr(value, "_asdict"):
        return {name: plain(item) for name, item in value._asdict().items()}
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def draw_beside(
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
