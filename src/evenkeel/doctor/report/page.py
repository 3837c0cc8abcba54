# SPDX-License-Identifier: Apache-2.0
"""A report as one page of HTML that needs nothing else."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np

import evenkeel
from evenkeel.doctor import rules
from evenkeel.doctor.report import drawing, text
from evenkeel.doctor.report.groups import Group, shown, some
from evenkeel.doctor.report.layers import Layer, layers, measured, to_blame

if TYPE_CHECKING:
    from evenkeel.doctor.report import Report

PLOTTED = 20
STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --faint: #5a6575; --line: #cdd4dd; --paper: #ffffff; --card: #f4f6f9;
  --calm: #1b6ca8; --error: #b3261e; --warning: #8a5a00; --note: #3d6b4f; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e8ee; --faint: #a3adba; --line: #414b59; --paper: #14181e; --card: #1d232c;
    --calm: #6cb6f0; --error: #ff8a80; --warning: #f0b95a; --note: #8fd0a5; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 62rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; margin: 0; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .75rem; }
h3 { font-size: 1rem; margin: 0; }
p { margin: .5rem 0; }
.error { --tone: var(--error); }
.warning { --tone: var(--warning); }
.note { --tone: var(--note); }
.verdict { color: var(--tone); font-size: 1.15rem; font-weight: 600; }
.card { background: var(--card); border-left: 4px solid var(--tone); border-radius: 4px; padding: .75rem 1rem;
  margin: .75rem 0; }
.card h3 b { color: var(--tone); text-transform: uppercase; }
.faint, dt, figcaption { color: var(--faint); }
dl { display: grid; grid-template-columns: 5.5rem 1fr; gap: .25rem .75rem; margin: .5rem 0; }
dd { margin: 0; min-width: 0; }
details { margin: .5rem 0 0; }
figure + details { margin-bottom: 1.5rem; }
summary { cursor: pointer; }
code, pre { font: .9em/1.45 ui-monospace, monospace; }
pre { white-space: pre-wrap; margin: 0; }
figure { margin: 0; }
figcaption { font-size: .9rem; }
.scroll { overflow-x: auto; }
svg { display: block; width: 100%; height: auto; }
svg text { font-family: system-ui, sans-serif; }
.wide svg { min-width: 36rem; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(18rem, 100%), 1fr)); gap: .5rem;
  margin-bottom: 1.5rem; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { border-bottom: 1px solid var(--line); padding: .2rem .75rem .2rem 0; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
@media (max-width: 30rem) {
  dl { grid-template-columns: 1fr; gap: 0; }
  dd { margin-bottom: .35rem; }
}
"""
CURVES = {
    "accuracy": "Accuracy when the layers up to this one use the statistics of their batch, and those after it the "
    "moving ones.",
    "loss": "Loss when the layers up to this one use the statistics of their batch, and those after it the moving "
    "ones.",
    "gap": "How far the outputs are from those at inference, in their standard deviations, when the layers up to this "
    "one use the statistics of their batch.",
}


def page(report: Report) -> str:
    """The page. It loads nothing, runs nothing, and whatever a file called its layers is text in it."""
    title = _text(f"{report.subject} - evenkeel doctor")
    main = "\n".join([*_head(report), *_findings(report), *_unseen(report), *_phases(report), *_layers(report)])
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{STYLE}</style>
</head>
<body>
{main}
<p class="faint">evenkeel {evenkeel.__version__}</p>
</body>
</html>
"""


def _head(report: Report) -> Iterator[str]:
    severity = report.findings[0].severity if report.findings else "note"
    yield f"<h1>{_text(report.subject)}</h1>"
    count = len(report.normalizers)
    normalizers = f", {count:,} normalizer{'' if count == 1 else 's'}" if count else ""
    yield f'<p class="faint">{_text(report.kind)}{normalizers}</p>'
    yield f'<p class="verdict {severity}">{_text(text.summary(report))}</p>'
    yield from (f"<p>{_text(line)}</p>" for line in text.compared(report))


def _findings(report: Report) -> Iterator[str]:
    if report.groups:
        yield "<h2>What was found</h2>"
    for group in report.groups:
        rule = rules.rule(group.rule)
        yield f'<section class="card {group.severity}">'
        yield f"<h3><b>{group.severity}</b> {rule.id}: {_text(rule.title)}</h3>"
        yield "<dl>"
        yield f"<dt>where</dt><dd>{_text(group.where(report.normalizers))}</dd>"
        yield f"<dt>seen</dt><dd>{'<br>'.join(map(_text, group.seen))}</dd>"
        yield f"<dt>why</dt><dd>{_marked(group.why)}</dd>"
        yield f"<dt>next step</dt><dd><pre>{_text(group.remedy, breaks=True)}</pre></dd>"
        yield "</dl>"
        yield from _all(group)
        yield f"<details><summary>About {rule.id}</summary>"
        for heading, section in rule.sections.items():
            yield f"<p><strong>{_text(heading)}</strong></p>{_prose(section)}"
        yield "</details></section>"


def _all(group: Group) -> Iterator[str]:
    if len(group.findings) > 1:
        lines = (_text(f"{item.place}: {item.seen}; {' '.join(item.remedy.split())}") for item in group.findings)
        yield f"<details><summary>All {len(group.findings)}</summary><p>{'<br>'.join(lines)}</p></details>"


def _unseen(report: Report) -> Iterator[str]:
    if report.unseen:
        yield "<h2>What could not be looked at</h2>"
        yield "<ul>" + "".join(f"<li>{_text(line)}</li>" for line in text.unlooked(report)) + "</ul>"


def _phases(report: Report) -> Iterator[str]:
    if report.phases is None:
        return
    measure, values = measured(report.phases)
    blamed = to_blame(report.phases)
    gaps = [("", report.phases.inference.gap), *((name, item.gap) for name, item in report.phases.swapped.items())]
    yield f"<h2>{'Layer by layer' if report.healthy else 'Which layer is to blame'}</h2>"
    curves = {measure: values} | {"gap": gaps}
    for name, curve in curves.items():
        end = getattr(report.phases.training, name)
        caption = f"{CURVES[name]} Dashed: moving statistics everywhere; dotted: those of the batch everywhere."
        if report.observed and len(report.phases.swapped) < len(report.observed.seen):
            caption += f" {len(report.phases.swapped)} of {len(report.observed.seen)} layers were tried."
        if blamed is not None:
            caption += f" Red: {blamed}, where the outputs change most."
        yield _figure(drawing.by_layer(name, curve, end, blamed), caption, "wide")
        yield _table(
            ("up to", name), [(layer or "(none)", f"{value:.4g}") for layer, value in [*curve, ("(all)", end)]]
        )


def _layers(report: Report) -> Iterator[str]:
    if report.observed is None or not report.observed.seen:
        return
    found = layers(report.observed)
    yield "<h2>How far the statistics are from the data</h2>"
    caption = (
        "Symmetric Kullback-Leibler divergence between the moving statistics and those of the data, in the order of "
        "the layers: a dot for the channel in the middle, a bar from 5 % to 95 % of the channels. Above the dashed "
        "line a mean is about one standard deviation off, or a variance nearly four times as large."
    )
    yield _figure(drawing.divergences(found), caption, "wide")
    yield _table(("layer", "channels", "values", "middle", "farthest", "channel"), map(_row, found))
    suspicious = {item.where for item in (*report.errors, *report.warnings)}
    worst = sorted((item for item in found if item.name in suspicious), key=lambda item: -item.typical)
    chosen = [item for item in found if any(item is other for other in worst[:PLOTTED])]
    if chosen:
        yield "<h2>Suspicious layers, channel by channel</h2>"
        yield '<p class="faint">On the line both agree. Red diamonds are channels that are far away.</p>'
    if left_out := [item.name for item in worst[PLOTTED:]]:
        yield f"<p>The {PLOTTED} farthest of {len(worst)}; {len(left_out)} left out: {_text(some(left_out))}.</p>"
    for layer in chosen:
        yield f'<h3>{_text(layer.name)}</h3><div class="pair">'
        for moment in ("mean", "variance"):
            yield _figure(drawing.channels(layer, moment), f"{moment} of {layer.name}", "", said=False)
        yield "</div>"


def _row(layer: Layer) -> tuple[str, ...]:
    divergence = np.nan_to_num(layer.divergence, nan=np.inf)
    middle, farthest = np.percentile(divergence, 50, method="nearest"), int(divergence.argmax())
    values = float(np.max(layer.seen.moments.count, initial=0))
    numbers = f"{divergence.size:,}", f"{values:,.0f}", f"{middle:.3g}", f"{divergence[farthest]:.3g}"
    return layer.name, *numbers, str(farthest)


def _figure(svg: str, caption: str, kind: str, *, said: bool = True) -> str:
    svg = svg.replace("<svg", f'<svg role="img" aria-label="{_text(caption)}"', 1)
    below = f"<figcaption>{_text(caption)}</figcaption>" if said else ""
    return f'<figure><div class="scroll {kind}">{svg}</div>{below}</figure>'


def _table(heads: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = "".join("<tr>" + "".join(f"<td>{_text(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    head = "".join(f"<th>{_text(cell)}</th>" for cell in heads)
    table = f'<div class="scroll"><table><tr>{head}</tr>{lines}</table></div>'
    return f"<details><summary>In numbers</summary>{table}</details>"


def _prose(section: str) -> str:
    """Paragraphs, and blocks of code where lines are indented."""
    parts = []
    for block in re.split(r"\n\s*\n", section):
        if all(line.startswith("    ") for line in block.splitlines()):
            parts.append(f"<pre>{_text(block, breaks=True)}</pre>")
        else:
            parts.append(f"<p>{_marked(block)}</p>")
    return "".join(parts)


def _marked(prose: str) -> str:
    return re.sub(r"`+([^`]+)`+", r"<code>\1</code>", _text(" ".join(prose.split())))


def _text(value: str, *, breaks: bool = False) -> str:
    lines = value.splitlines() if breaks else [value]
    return html.escape("\n".join(map(shown, lines)))
