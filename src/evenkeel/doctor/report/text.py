# SPDX-License-Identifier: Apache-2.0
"""A report as plain text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from evenkeel.doctor import rules
from evenkeel.doctor.evidence import Phases
from evenkeel.doctor.report.groups import Group, shown

if TYPE_CHECKING:
    from evenkeel.doctor.report import Report


def text(report: Report) -> str:
    """A paragraph for each rule that found something, a line for what could not be looked at, and one at the end."""
    paragraphs = [_lines(group, report) for group in report.groups]
    unseen = [f"not looked at: {line}" for line in unlooked(report)]
    paragraphs = ["\n".join([heading(report), *compared(report)]), *paragraphs, "\n".join(unseen), summary(report)]
    return "\n\n".join(filter(None, paragraphs))


def heading(report: Report) -> str:
    """What was looked at."""
    count = len(report.normalizers)
    return f"{shown(report.subject)} ({report.kind})" + (f": {_counted(count, 'normalizer')}" if count else "")


def compared(report: Report) -> Iterator[str]:
    """Both phases in numbers, where there was data."""
    if report.phases:
        yield f"on {_counted(report.phases.rows, 'row')}: {both(report.phases)}"


def both(phases: Phases) -> str:
    """The outputs with moving statistics, with those of the batch, and with those of all the data."""
    scores = []
    for word in ("accuracy", "loss"):
        old, new, pooled = (getattr(score, word, None) for score in (phases.inference, phases.training, phases.pooled))
        if old is not None and new is not None:
            cured = "" if pooled is None else f", {pooled:.4g} with those of all the data"
            scores.append(f"{word} {old:.4g} with moving statistics, {new:.4g} with those of the batch{cured}")
    gap = (
        f"with the statistics of the batch the outputs differ by {phases.training.gap:.3g} of their standard deviation"
    )
    return "; ".join(scores or [gap])


def unlooked(report: Report) -> Iterator[str]:
    """A line for each thing that could not be looked at."""
    for item in report.unseen:
        yield f"{shown(item.what)}: {shown(item.why)}; {shown(item.remedy)}"


def summary(report: Report) -> str:
    """One line."""
    found = ((report.errors, "error"), (report.warnings, "warning"), (report.notes, "note"))
    counts = ", ".join(_counted(len(items), word) for items, word in found if items)
    if not (report.findings or report.normalizers) and report.unseen:
        return "nothing was found, and no batch normalization was looked at"
    if not report.errors and not report.warnings:
        return f"healthy: {counts or 'nothing was found'}{', in what could be looked at' if report.unseen else ''}"
    first = report.findings[0]
    return f"{counts}; begin with {first.rule}: evenkeel doctor --explain {first.rule}"


def _lines(group: Group, report: Report) -> str:
    title = rules.rule(group.rule).title
    rows = [
        ("where", group.where(report.normalizers)),
        *(("seen" if not place else "", line) for place, line in enumerate(group.seen)),
        ("why", group.why),
        *(("next" if not place else "", line) for place, line in enumerate(group.remedy.splitlines())),
    ]
    return "\n".join([f"{group.severity} {group.rule}: {title}", *(f"  {head:5}  {line}" for head, line in rows)])


def _counted(count: int, word: str) -> str:
    return f"{count:,} {word}{'' if count == 1 else 's'}"
