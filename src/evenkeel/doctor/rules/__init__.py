# SPDX-License-Identifier: Apache-2.0
"""Which rules there are, and what they find.

A rule is a file in this folder. Its docstring is its page in `docs/rules`: a title, and the three sections "What it
looks for", "Why it matters" (whose first sentence goes with every finding) and "What to do". It has `ID`; `SEVERITY`,
which a finding may override; `SICK` and `HEALTHY`, evidence in which it finds something and nothing; and `check`, a
generator whose parameter's type says which evidence it looks at. It may have `EXPLAINS`, the IDs of rules that find the
same fault by its consequences: what they find comes after what this one finds.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
import pkgutil
import typing
from collections.abc import Callable, Iterable, Iterator
from types import ModuleType
from typing import Any

from evenkeel.doctor.evidence import Evidence
from evenkeel.doctor.finding import Finding, Severity
from evenkeel.errors import ArgumentError

__all__ = ["Rule", "explained", "look", "rule", "rules"]

SECTIONS = ("What it looks for", "Why it matters", "What to do")


@dataclasses.dataclass(frozen=True)
class Rule:
    """A file of this folder.

    name: of the file, such as "never_updated".
    title: one line.
    sections: heading -> text; the headings are `SECTIONS`.
    explains: IDs of rules that find consequences of this one's fault.
    kinds: the classes of evidence that `check` looks at.
    """

    id: str
    name: str
    severity: Severity
    title: str
    sections: dict[str, str]
    explains: tuple[str, ...]
    kinds: tuple[type, ...]
    sick: tuple[Evidence, ...]
    healthy: tuple[Evidence, ...]
    check: Callable[[Any], Iterable[Finding]] = dataclasses.field(repr=False)

    @property
    def why(self) -> str:
        """The first sentence of why it matters."""
        return " ".join(self.sections["Why it matters"].split()).split(". ")[0].rstrip(".") + "."


@functools.cache
def rules() -> tuple[Rule, ...]:
    """All of them, in the order of their IDs."""
    modules = (importlib.import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__))
    return tuple(sorted(map(_rule, modules), key=lambda rule: rule.id))


def rule(identifier: str) -> Rule:
    """The rule of an ID, in any case, or of a name.

    Raises:
        ArgumentError: there is none.
    """
    wanted = identifier.lower()
    found = [item for item in rules() if wanted in (item.id.lower(), item.name)]
    if not found:
        raise ArgumentError(f"there is no rule {identifier!r}; the rules are {', '.join(item.id for item in rules())}")
    return found[0]


def look(evidence: Evidence) -> Iterator[Finding]:
    """What all rules find in it.

    Example:
        >>> import numpy as np
        >>> from evenkeel.doctor.evidence import Normalizer
        >>> finding, = look(Normalizer("bn", np.zeros(3), np.ones(3)))
        >>> finding.rule, finding.severity, finding.where, finding.seen
        ('EK101', 'error', 'bn', 'mean all 0, variance all 1')
    """
    for item in rules():
        if isinstance(evidence, item.kinds):
            for finding in item.check(evidence):
                yield dataclasses.replace(finding, severity=finding.severity or item.severity, why=item.why)


def explained(findings: Iterable[Finding]) -> set[str]:
    """The IDs of rules whose findings follow from others among these."""
    present = {finding.rule for finding in findings}
    return {other for item in rules() if item.id in present for other in item.explains}


def _rule(module: ModuleType) -> Rule:
    title, sections = _page(inspect.getdoc(module) or "")
    (kind,) = list(typing.get_type_hints(module.check).values())[:1]
    return Rule(
        module.ID,
        module.__name__.rpartition(".")[2],
        module.SEVERITY,
        title,
        sections,
        tuple(getattr(module, "EXPLAINS", ())),
        typing.get_args(kind) or (kind,),
        tuple(module.SICK),
        tuple(module.HEALTHY),
        module.check,
    )


def _page(docstring: str) -> tuple[str, dict[str, str]]:
    """The title, and the text below each heading: a line that starts at the margin and has an indented line below."""
    title, *lines = docstring.splitlines()
    sections: dict[str, list[str]] = {}
    for line in lines:
        if line and not line.startswith(" "):
            sections[line] = []
        elif sections:
            sections[next(reversed(sections))].append(line)
    return title.rstrip("."), {heading: inspect.cleandoc("\n".join(text)) for heading, text in sections.items()}
