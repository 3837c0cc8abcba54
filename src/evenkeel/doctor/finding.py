# SPDX-License-Identifier: Apache-2.0
"""What a rule has found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")


@dataclass(frozen=True)
class Finding:
    """Something that is wrong, or might be.

    rule: its ID, such as "EK101".
    where: name of the normalizer, the variable or the operation; the file of a program.
    seen: a number or a name.
    remedy: the next step: a command, or two lines of code.
    severity: None is that of the rule; so it is until `rules.look` has filled it in.
    why: it matters, in one line; filled in from the page of the rule.
    line, column: in a program, from 1.
    """

    rule: str
    where: str
    seen: str
    remedy: str
    severity: Severity | None = None
    why: str = ""
    line: int | None = None
    column: int | None = None

    @property
    def place(self) -> str:
        """Where, in a program with line and column."""
        return ":".join(str(part) for part in (self.where, self.line, self.column) if part is not None)

    def __str__(self) -> str:
        return f"{self.rule} {self.severity}: {self.place}: {self.seen}. {self.why} -> {self.remedy}"
