# SPDX-License-Identifier: Apache-2.0
"""Which findings a reader wants to hear of together, and how names of files and layers may be shown."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import NamedTuple

from evenkeel.doctor.finding import Finding, Severity

NAMED = 4


class Group(NamedTuple):
    """What one rule has found, of one severity; of a model with 53 sick layers that is one entry.

    findings: at least one, in the order of the report.
    """

    rule: str
    severity: Severity
    findings: tuple[Finding, ...]

    def where(self, normalizers: Collection[str]) -> str:
        """How many places, and which are the first.

        Example:
            >>> sick = tuple(Finding("EK101", f"bn{number}", "mean all 0", "recalibrate") for number in range(53))
            >>> Group("EK101", "error", sick).where([finding.where for finding in sick])
            '53 normalizers: bn0, bn1, bn2, bn3 and 49 more'
        """
        places = list(dict.fromkeys(finding.place for finding in self.findings))
        if len(places) == 1:
            return shown(places[0])
        noun = "normalizers" if all(finding.where in normalizers for finding in self.findings) else "places"
        return f"{len(places)} {noun}: {some(places)}"

    @property
    def seen(self) -> tuple[str, ...]:
        """What was seen, a line each: once if it was the same everywhere, else of the first places."""
        if len({finding.seen for finding in self.findings}) == 1:
            return (shown(self.findings[0].seen),)
        lines = [f"{shown(finding.place)}: {shown(finding.seen)}" for finding in self.findings[:NAMED]]
        more = len(self.findings) - NAMED
        return (*lines, f"and {more} more") if more > 0 else tuple(lines)

    @property
    def why(self) -> str:
        """It matters."""
        return shown(self.findings[0].why)

    @property
    def remedy(self) -> str:
        """Of the first; it may have several lines."""
        return "\n".join(map(shown, self.findings[0].remedy.splitlines()))


def grouped(findings: Iterable[Finding]) -> tuple[Group, ...]:
    """By rule and severity, in the order of the first finding of each."""
    found: dict[tuple[str, Severity], list[Finding]] = {}
    for finding in findings:
        found.setdefault((finding.rule, finding.severity or "error"), []).append(finding)
    return tuple(Group(rule, severity, tuple(items)) for (rule, severity), items in found.items())


def some(names: list[str]) -> str:
    """The first of them, and how many more there are."""
    more = len(names) - NAMED
    return ", ".join(map(shown, names[:NAMED])) + (f" and {more} more" if more > 0 else "")


def shown(text: str) -> str:
    r"""Without what would steer a terminal: a file may name its variables as it likes.

    Example:
        >>> shown("bn\x1b[2J")
        'bn\\x1b[2J'
    """
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)
