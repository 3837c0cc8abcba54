# SPDX-License-Identifier: Apache-2.0
"""A report as SARIF 2.1.0, which code hosts and editors show beside the lines of a program."""

from __future__ import annotations

import urllib.parse
from pathlib import Path
from typing import TYPE_CHECKING, Any

import evenkeel
from evenkeel.doctor import rules
from evenkeel.doctor.finding import Finding

if TYPE_CHECKING:
    from evenkeel.doctor.report import Report


def sarif(report: Report) -> dict[str, Any]:
    """One run: the rules that found something, and what they found.

    References:
        OASIS 2020, Static Analysis Results Interchange Format (SARIF) Version 2.1.0.
    """
    found = list(dict.fromkeys(finding.rule for finding in report.findings))
    driver = {
        "name": "evenkeel doctor",
        "semanticVersion": evenkeel.__version__,
        "rules": [_rule(rules.rule(identifier)) for identifier in found],
    }
    return {
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [
            {
                "tool": {"driver": driver},
                "columnKind": "unicodeCodePoints",
                "results": [_result(finding, found.index(finding.rule)) for finding in report.findings],
            }
        ],
    }


def _rule(rule: rules.Rule) -> dict[str, Any]:
    help_text = "\n\n".join(f"{heading}\n{text}" for heading, text in rule.sections.items())
    markdown = "\n\n".join(f"**{heading}**\n\n{text}" for heading, text in rule.sections.items())
    return {
        "id": rule.id,
        "name": rule.name,
        "shortDescription": {"text": rule.title},
        "fullDescription": {"text": rule.why},
        "help": {"text": help_text, "markdown": markdown},
        "defaultConfiguration": {"level": rule.severity},
    }


def _result(finding: Finding, index: int) -> dict[str, Any]:
    return {
        "ruleId": finding.rule,
        "ruleIndex": index,
        "level": finding.severity,
        "message": {"text": f"{finding.seen}. {finding.why} Next step: {finding.remedy}"},
        "locations": [_location(finding)],
    }


def _location(finding: Finding) -> dict[str, Any]:
    """A line of a program, or the name of a layer."""
    if finding.line is None:
        return {"logicalLocations": [{"name": finding.where}]}
    region = {"startLine": finding.line} | ({} if finding.column is None else {"startColumn": finding.column})
    return {"physicalLocation": {"artifactLocation": {"uri": _uri(finding.where)}, "region": region}}


def _uri(path: str) -> str:
    """Relative to the working directory, where it is below that."""
    absolute = Path(path).absolute()
    if absolute.is_relative_to(Path.cwd()):
        return urllib.parse.quote(absolute.relative_to(Path.cwd()).as_posix())
    return absolute.as_uri()
