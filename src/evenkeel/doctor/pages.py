# SPDX-License-Identifier: Apache-2.0
"""The page of each rule, in Markdown: `python -m evenkeel.doctor.pages docs/rules` writes them all."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import sys
import textwrap
from pathlib import Path

from evenkeel.doctor import rules
from evenkeel.doctor.evidence import Source
from evenkeel.doctor.rules import Rule

__all__ = ["page", "pages"]

SHORT = 25  # lines of an example
INDEX = """# The rules of the doctor

What `evenkeel doctor` and `evenkeel.diagnose` know to look for. An **error** makes results wrong, a **warning** may, a
**note** costs something or looks odd. A finding may be graver or lighter than its rule.
`evenkeel doctor --explain EK101` prints a page.

These pages are written by `python -m evenkeel.doctor.pages docs/rules`, from the rules in `src/evenkeel/doctor/rules/`.

| Rule | Severity | What is wrong | Seen in |
| --- | --- | --- | --- |
"""
SEEN_IN = {
    "Normalizer": "any checkpoint or model",
    "Pair": "two checkpoints",
    "Decay": "a model with its optimizer",
    "Structure": "a model",
    "Phase": "a model or graph",
    "Updates": "a graph with a train operation",
    "Placeholder": "a graph",
    "Observed": "a model with data",
    "Phases": "a model with data",
    "Rows": "a model with data",
    "Batching": "a model with data",
    "Source": "a Python program",
}


def pages() -> dict[str, str]:
    """Name of a file -> its text."""
    lines = [
        f"| [{item.id}]({item.id}.md) {item.name} | {item.severity} | {item.title} | {_seen_in(item)} |"
        for item in rules.rules()
    ]
    return {"README.md": INDEX + "\n".join(lines) + "\n"} | {f"{item.id}.md": page(item) for item in rules.rules()}


def page(rule: Rule) -> str:
    """The page of a rule.

    Example:
        >>> print(page(rules.rule("EK101")).splitlines()[0])
        # EK101: Moving statistics never left their starting values
    """
    parts = [
        f"# {rule.id}: {rule.title}",
        f"`{rule.name}` · {rule.severity} · seen in {_seen_in(rule)}",
        *(f"## {heading}\n{text}" for heading, text in rule.sections.items()),
        *_example(rule),
    ]
    if others := [f"[{item.id}]({item.id}.md)" for item in rules.rules() if item.id in rule.explains]:
        parts.append(f"It explains what {', '.join(others)} may find besides; a report names it before them.")
    return "\n\n".join(parts) + "\n"


def _seen_in(rule: Rule) -> str:
    return ", ".join(dict.fromkeys(SEEN_IN[kind.__name__] for kind in rule.kinds))


def _example(rule: Rule) -> list[str]:
    """What is said of the first sick one, below it where it is short and plain."""
    sick = rule.sick[0]
    code = textwrap.dedent(sick.text).strip() if isinstance(sick, Source) else _written(rule)
    found = next(item for item in rules.look(sick) if item.rule == rule.id)
    said = textwrap.indent(f"{found.place}: {found.seen}\n-> {found.remedy}", "    ")
    # Names of the rule's own, such as _bn, say nothing to a reader.
    if code.count("\n") < SHORT and not re.search(r"\b_[a-z]", code):
        return [f"## An example\n```python\n{code}\n```\nOf this it says\n\n{said}"]
    return [f"## What it says, for example\n\n{said}"]


def _written(rule: Rule) -> str:
    """The first sick example, as the file of the rule has it."""
    text = inspect.getsource(importlib.import_module(f"{rules.__name__}.{rule.name}"))
    (sick,) = (
        node.value
        for node in ast.parse(text).body
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["SICK"]
    )
    return ast.unparse(sick.elts[0] if isinstance(sick, ast.List | ast.Tuple) else sick)


def _write(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    wanted = pages()
    for path in folder.glob("EK*.md"):
        if path.name not in wanted:
            path.unlink()
    for name, text in wanted.items():
        (folder / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    (folder,) = sys.argv[1:]
    _write(Path(folder))
