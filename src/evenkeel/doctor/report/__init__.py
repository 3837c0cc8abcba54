# SPDX-License-Identifier: Apache-2.0
"""What was looked at, and what was found."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evenkeel import files
from evenkeel.doctor import rules
from evenkeel.doctor.evidence import Evidence, Normalizer, Observed, Pair, Phase, Phases, Source, Unseen, Updates
from evenkeel.doctor.finding import SEVERITIES, Finding
from evenkeel.doctor.report.groups import Group, grouped

__all__ = ["Group", "Report", "examined"]


NO_NORMALIZERS = Unseen("normalizers", "no batch normalization was found", "see that this is the model, built")


@dataclass(frozen=True)
class Report:
    """What was looked at, and what was found; print it.

    subject: its path, or what kind of object it is and its name.
    kind: in words, such as "Keras model".
    findings: the gravest first; among equals causes before consequences.
    normalizers: names of those that were looked at.
    unseen: what could not be looked at, and why.
    observed: what each normalizer saw of the data; None without data.
    phases: the outputs with moving and with batch statistics; None without data.
    """

    subject: str
    kind: str
    findings: tuple[Finding, ...]
    normalizers: tuple[str, ...] = ()
    unseen: tuple[Unseen, ...] = ()
    observed: Observed | None = None
    phases: Phases | None = None

    @property
    def errors(self) -> tuple[Finding, ...]:
        """The findings that make results wrong."""
        return self._of("error")

    @property
    def warnings(self) -> tuple[Finding, ...]:
        """The findings that may."""
        return self._of("warning")

    @property
    def notes(self) -> tuple[Finding, ...]:
        """The findings that cost something, or look odd."""
        return self._of("note")

    @property
    def healthy(self) -> bool:
        """No error was found; there may be warnings."""
        return not self.errors

    @functools.cached_property
    def groups(self) -> tuple[Group, ...]:
        """The findings of each rule together, in the order of the findings."""
        return grouped(self.findings)

    def document(self) -> dict[str, Any]:
        """All of it in plain dictionaries and lists; docs/doctor-report.md says what is where.

        Example:
            >>> document = examined("model.npz", "checkpoint", []).document()
            >>> document["schema"], document["healthy"], document["findings"]
            (1, True, [])
        """
        from evenkeel.doctor.report import document

        return document.document(self)

    def to_json(self) -> str:
        """The document as JSON: one value a line, and only finite numbers."""
        return json.dumps(self.document(), indent=1, allow_nan=False)

    def to_sarif(self) -> str:
        """The findings as SARIF 2.1.0, for code hosts and editors; those of a program have their lines."""
        from evenkeel.doctor.report import sarif

        return json.dumps(sarif.sarif(self), indent=1, allow_nan=False)

    def to_html(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Writes one page that needs nothing else, with plots where there was data.

        Raises:
            InputError: nothing can be written there, or a file is there that is not to be overwritten.
            MissingLibraryError: there is something to draw, and Matplotlib is not installed.
        """
        from evenkeel.doctor.report import page

        files.check_free(Path(path), overwrite=overwrite)
        text = page.page(self)
        with files.replacing(Path(path)) as partial:
            partial.write_text(text, encoding="utf-8")

    def _of(self, severity: str) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.severity == severity)

    def __str__(self) -> str:
        from evenkeel.doctor.report import text

        return text.text(self)


def examined(subject: Any, kind: str, evidence: Iterable[Evidence]) -> Report:
    """All rules, on all there is to be seen."""
    findings: list[Finding] = []
    names: dict[str, None] = {}
    unseen, observed, phases, source = [], None, None, False
    for item in evidence:
        findings += rules.look(item)
        names.update(dict.fromkeys(_normalizers(item)))
        if isinstance(item, Unseen):
            unseen.append(item)
        elif isinstance(item, Observed):
            observed = item
        elif isinstance(item, Phases):
            phases = item
        source |= isinstance(item, Source)
    if not (names or findings or unseen or source):
        unseen.append(NO_NORMALIZERS)
    return Report(_named(subject), kind, _ordered(findings), tuple(names), tuple(unseen), observed, phases)


def _ordered(findings: list[Finding]) -> tuple[Finding, ...]:
    """By severity; what others explain after these; then by rule, and in the order of the subject.

    A warning that explains an error is one too: it is the cause.
    """
    consequences = rules.explained(findings)
    grave = {finding.rule for finding in findings if finding.severity == "error"}
    findings = [
        dataclasses.replace(finding, severity="error")
        if finding.severity == "warning" and grave.intersection(rules.rule(finding.rule).explains)
        else finding
        for finding in findings
    ]

    def key(finding: Finding) -> tuple[int, bool, str]:
        return SEVERITIES.index(finding.severity or "error"), finding.rule in consequences, finding.rule

    return tuple(sorted(dict.fromkeys(findings), key=key))


def _normalizers(item: Evidence) -> list[str]:
    if isinstance(item, Normalizer | Phase | Updates):
        return [item.name]
    return [item.after.name] if isinstance(item, Pair) else []


def _named(subject: Any) -> str:
    if isinstance(subject, str | os.PathLike):
        return os.fspath(subject)
    if isinstance(subject, tuple | list):
        return " -> ".join(map(_named, subject))
    name = getattr(subject, "name", None)
    return f"{type(subject).__name__} {name}" if isinstance(name, str) else type(subject).__name__
