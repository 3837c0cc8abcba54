# SPDX-License-Identifier: Apache-2.0
"""What the plots of a report look like: pieces of SVG that take their colours from the page."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from evenkeel.doctor.report.groups import shown
from evenkeel.doctor.report.layers import Layer
from evenkeel.errors import MissingLibraryError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Matplotlib knows no light and dark: each of its colours here stands for a variable of the page's style.
INK, LINE, CALM, LOUD = "#010101", "#020202", "#030303", "#040404"
VARIABLES = {INK: "var(--ink)", LINE: "var(--line)", CALM: "var(--calm)", LOUD: "var(--error)"}
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "evenkeel",
    "font.size": 9,
    "axes.edgecolor": LINE,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.grid": True,
    "axes.formatter.use_mathtext": False,
    "grid.color": LINE,
    "grid.linewidth": 0.5,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "lines.linewidth": 1.5,
}
FAR = 0.5  # nats: about a mean that is one standard deviation off, or a variance 3.7 times as large
POINTS = 400  # of a plot; more are no clearer, and make the page slow
LABELS = 20
LARGEST = 1e30  # or the axis itself overflows


def channels(layer: Layer, moment: str) -> str:
    """The moving mean or variance of each channel against that of the batch; those far away stand out."""
    old, new = getattr(layer, f"moving_{moment}"), getattr(layer, f"batch_{moment}")
    chosen = _chosen(layer, old, new, positive=moment == "variance")
    far = np.nan_to_num(layer.divergence, nan=np.inf) > FAR

    def draw(axes: Axes) -> None:
        both = np.concatenate([old[chosen], new[chosen]]) if chosen.size else np.ones(1)
        ends = np.array([both.min(), both.max()])
        if moment == "variance":
            ends = 10.0 ** np.array([np.floor(np.log10(ends[0])), np.ceil(np.log10(ends[1]))])
            axes.set_xscale("log")
            axes.set_yscale("log")
            axes.tick_params(which="minor", labelbottom=False, labelleft=False)
        else:
            axes.locator_params(nbins=5)
        axes.plot(ends, ends, color=LINE, linewidth=1, zorder=1)
        for colour, marker, part in ((CALM, "o", chosen[~far[chosen]]), (LOUD, "D", chosen[far[chosen]])):
            axes.plot(old[part], new[part], marker, color=colour, markersize=4, markeredgewidth=0, zorder=2)
        axes.set_xlabel(f"moving {moment}")
        axes.set_ylabel(f"{moment} of the data")
        if chosen.size < old.size:
            axes.set_title(f"{chosen.size:,} of {old.size:,} channels drawn", fontsize=9)

    return _svg(draw, (3.5, 3.0))


def divergences(layers: list[Layer]) -> str:
    """By depth: the channel in the middle, and the range of nearly all of them."""

    def draw(axes: Axes) -> None:
        values = [np.nan_to_num(layer.divergence, nan=np.inf) for layer in layers]
        ranges = np.array([np.percentile(item, [5, 50, 95], method="nearest") for item in values]).T
        known = ranges[np.isfinite(ranges)]
        top = 10 * min(max(known.max(initial=0), FAR), LARGEST)
        if known.size < ranges.size:
            axes.set_title("what is not finite stands at the top", fontsize=9)
        low, middle, high = np.clip(ranges, 1e-6, top)  # what is nearer than that is rounding
        places = np.arange(len(layers))
        loud = middle > FAR
        for colour, part in ((CALM, ~loud), (LOUD, loud)):
            axes.vlines(places[part], low[part], high[part], color=colour, linewidth=3, alpha=0.4)
            axes.plot(places[part], middle[part], "o", color=colour, markersize=5)
        axes.axhline(FAR, color=LOUD, linewidth=1, linestyle="--")
        axes.set_yscale("log")
        axes.set_ylabel("divergence (nats)")
        _name(axes, [layer.name for layer in layers])

    return _svg(draw, (7.5, 3.6))


def by_layer(measure: str, values: list[tuple[str, float]], training: float, blamed: str | None) -> str:
    """A score as layer after layer uses its batch; the step at the layer to blame stands out."""

    def draw(axes: Axes) -> None:
        heights = np.nan_to_num(np.array([value for _, value in values]), posinf=LARGEST)
        places = np.arange(len(values))
        axes.axhline(heights[0], color=LINE, linewidth=1.5, linestyle="--")
        axes.axhline(training, color=LINE, linewidth=1.5, linestyle=":")
        axes.plot(places, heights, "o-", color=CALM, markersize=5)
        for place in places[1:]:
            if values[place][0] == blamed:
                axes.plot(places[place - 1 : place + 1], heights[place - 1 : place + 1], "o-", color=LOUD, markersize=6)
        axes.set_ylabel({"gap": "gap", "loss": "loss (nats)"}.get(measure, measure))
        _name(axes, ["(none)", *(name for name, _ in values[1:])])

    return _svg(draw, (7.5, 3.6))


def _chosen(layer: Layer, old: np.ndarray, new: np.ndarray, *, positive: bool) -> np.ndarray:
    """Places of the channels to draw: if there are too many the farthest, and as many of the others, evenly spread."""
    known = (np.abs(old) < LARGEST) & (np.abs(new) < LARGEST)
    if positive:
        known &= (old > 0) & (new > 0)
    places = np.flatnonzero(known)
    if places.size <= POINTS:
        return places
    order = places[np.argsort(-np.nan_to_num(layer.divergence[places], nan=np.inf), kind="stable")]
    rest = order[POINTS // 2 :]
    return np.concatenate([order[: POINTS // 2], rest[np.linspace(0, rest.size - 1, POINTS // 2).astype(int)]])


def _name(axes: Any, names: list[str]) -> None:
    """Layers along the axis; of many, some."""
    step = -(-len(names) // LABELS)
    places = np.arange(0, len(names), step)
    axes.set_xticks(places, [_drawn(names[place]) for place in places], rotation=40, ha="right", parse_math=False)
    axes.tick_params(axis="x", labelsize=8)
    axes.grid(axis="x", visible=False)


def _drawn(name: str) -> str:
    """What Matplotlib's own font has letters for; the end of what is too long."""
    text = shown(name).encode("ascii", "backslashreplace").decode()
    return text if len(text) <= 28 else f"...{text[-25:]}"


def _svg(draw: Callable[[Any], None], size: tuple[float, float]) -> str:
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingLibraryError(
            'matplotlib is not installed, and there is something to draw; pip install "evenkeel[train]"'
        ) from error
    file = io.StringIO()
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots()
        draw(axes)
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    text = file.getvalue()
    # Without the headings of a file, and without the names of groups, which would be the same in every plot.
    text = re.sub(r'<g id="[^"]*">', "<g>", text[text.index("<svg") :])
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, variable)
    return text
