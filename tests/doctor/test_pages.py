# SPDX-License-Identifier: Apache-2.0
"""docs/rules is what the rules say of themselves."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from evenkeel.doctor.pages import page, pages
from evenkeel.doctor.rules import SECTIONS, rule, rules

from conftest import NAME

if NAME != "numpy":
    pytest.skip("no framework takes part", allow_module_level=True)

DOCS = Path(__file__).parents[2] / "docs" / "rules"
AGAIN = "run: python -m evenkeel.doctor.pages docs/rules"


@pytest.mark.parametrize("name", sorted(pages()))
def test_what_is_committed_is_what_the_rules_say(name):
    assert (DOCS / name).is_file(), AGAIN
    assert (DOCS / name).read_text(encoding="utf-8") == pages()[name], AGAIN


def test_there_is_no_page_without_a_rule():
    assert {path.name for path in DOCS.iterdir()} == set(pages()), AGAIN


@pytest.mark.parametrize("item", [pytest.param(item, id=item.name) for item in rules()])
def test_a_page_has_all_of_its_rule(item):
    text = page(item)
    assert text.startswith(f"# {item.id}: {item.title}\n") and item.severity in text.splitlines()[2]
    assert [line.removeprefix("## ") for line in text.splitlines() if line in {f"## {name}" for name in SECTIONS}] == [
        *SECTIONS
    ]
    assert f"[{item.id}]({item.id}.md)" in pages()["README.md"]


def test_an_example_is_what_the_rule_says_of_it():
    assert "```python\nNormalizer('bn', np.zeros(3), np.ones(3))\n```" in page(rule("EK101"))
    assert "    bn: mean all 0, variance all 1\n    -> run the updates" in page(rule("EK101"))


def test_the_command_writes_them_and_removes_what_is_gone(tmp_path):
    (tmp_path / "EK999.md").write_text("gone")
    (tmp_path / "notes.txt").write_text("mine")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src")}
    subprocess.run([sys.executable, "-m", "evenkeel.doctor.pages", str(tmp_path)], check=True, env=environment)
    assert {path.name for path in tmp_path.iterdir()} == {*pages(), "notes.txt"}
