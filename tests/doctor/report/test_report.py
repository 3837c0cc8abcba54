# SPDX-License-Identifier: Apache-2.0
"""A report: its order, its text, its JSON, and SARIF."""

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest

import evenkeel
from evenkeel import Moments
from evenkeel.doctor import Finding, Report
from evenkeel.doctor.evidence import Normalizer, Observed, Phases, Score, Seen, Unseen
from evenkeel.doctor.report import examined
from evenkeel.doctor.rules import rule

DOCUMENTED = Path(__file__).parents[3] / "docs" / "doctor-report.md"
NEVER = [Normalizer(f"block{number}/bn", np.zeros(3), np.ones(3)) for number in range(53)]
SOURCE = Finding("EK101", "train me.py", "minimize", "run them", "error", "It matters.", line=3, column=5)


def strict(text):
    """JSON as its standard has it, without NaN and Infinity."""
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} in JSON"))


def program(*findings):
    return Report("train me.py", "Python program", findings)


# Text.


def test_what_many_layers_have_is_said_once():
    text = str(examined("model.npz", "checkpoint", NEVER))
    assert "model.npz (checkpoint): 53 normalizers" in text
    assert text.count("error EK101: Moving statistics never left their starting values") == 1
    assert "53 normalizers: block0/bn, block1/bn, block2/bn, block3/bn and 49 more\n" in text
    assert text.count("mean all 0, variance all 1") == text.count(rule("EK101").why) == 1
    assert text.splitlines()[-1] == "53 errors; begin with EK101: evenkeel doctor --explain EK101"


def test_one_layer_is_named():
    assert re.search(r"where +block0/bn\n", str(examined("model.npz", "checkpoint", NEVER[:1])))


def test_what_was_seen_is_said_of_each_where_it_differs():
    found = [Finding("EK101", f"bn{number}", f"mean {number}", "recalibrate", "error", "Why.") for number in range(6)]
    text = str(Report("x", "model", tuple(found), tuple(item.where for item in found)))
    lines = [f"bn{number}: mean {number}" for number in range(4)] + ["and 2 more"]
    assert "  seen   " + "\n         ".join(lines) + "\n" in text


def test_severities_of_one_rule_are_apart():
    found = [Finding("EK101", "a", "x", "y", "error", "z"), Finding("EK101", "b", "x", "y", "note", "z")]
    report = Report("x", "model", tuple(found))
    assert [(group.severity, len(group.findings)) for group in report.groups] == [("error", 1), ("note", 1)]
    assert str(report).endswith("1 error, 1 note; begin with EK101: evenkeel doctor --explain EK101")


def test_a_line_of_a_program():
    assert "train me.py:3:5" in str(program(SOURCE))


def test_a_remedy_may_have_lines():
    finding = Finding("EK101", "bn", "x", "first line\nsecond line", "error", "Why.")
    assert "  next   first line\n         second line\n" in str(Report("x", "model", (finding,)))


def test_nothing_found():
    text = str(examined("model.npz", "checkpoint", [Normalizer("bn")]))
    assert text == "model.npz (checkpoint): 1 normalizer\n\nhealthy: nothing was found"


def test_notes_are_no_illness():
    report = Report("x", "model", (Finding("EK101", "bn", "x", "y", "note", "Why."),))
    assert report.healthy and str(report).endswith("\n\nhealthy: 1 note")


def test_what_new_statistics_would_give_is_said():
    phases = Phases(Score(0.0, 0.25), Score(1.0, 1.0), {}, 64, pooled=Score(0.9, 0.75))
    words = "accuracy 0.25 with moving statistics, 1 with those of the batch, 0.75 with those of all the data"
    assert f"on 64 rows: {words}\n" in str(examined("x", "model", [phases]))


def test_without_labels_the_gap_is_said():
    text = str(examined("x", "model", [Phases(Score(0.0), Score(0.125), {}, 1)]))
    assert (
        "on 1 row: with the statistics of the batch the outputs differ by 0.125 of their standard deviation\n" in text
    )


def test_what_was_not_looked_at_is_said():
    text = str(examined("x", "model", [Unseen("the graph", "it is hidden", "show it")]))
    assert "\nnot looked at: the graph: it is hidden; show it\n" in text
    assert text.endswith("nothing was found, and no batch normalization was looked at")


def test_both_phases_are_said(sick):
    assert "on 64 rows: accuracy 0.25 with moving statistics, 1 with those of the batch" in str(sick)


def test_no_name_steers_a_terminal(sick):
    assert r"bn\x1b[2J\x07<script>" in str(sick) and not {"\x1b", "\x07"} & set(str(sick))


# JSON.


def test_the_document_is_strict_and_whole(sick):
    document = strict(sick.to_json())
    assert document == sick.document()
    assert (document["schema"], document["healthy"], document["subject"]) == (1, False, "model.keras")
    assert document["counts"]["error"] == len(sick.errors) >= 3
    assert [item["rule"] for item in document["findings"]] == [item.rule for item in sick.findings]
    assert document["findings"][0]["where"] == "bn3" and document["findings"][0]["why"] == rule("EK101").why
    assert document["unseen"][0] == {
        "what": "the structure",
        "why": "the model is a subclass",
        "remedy": "give a functional model",
    }


def test_the_figures_of_a_layer(sick):
    layers = sick.document()["layers"]
    assert [item["name"] for item in layers] == list(sick.normalizers)
    assert layers[0]["channels"] == 5 and layers[0]["values"] == 64.0 and layers[0]["batches"] == [32, 32]
    assert layers[0]["moving_mean"] == layers[0]["batch_mean"] and layers[0]["divergence"] == [0.0] * 5
    assert layers[3]["moving_variance"] == [1.0] * 5 and min(layers[3]["divergence"]) > 1e-4


def test_the_divergence_is_that_of_two_gaussians():
    """Of equal variances v it is half the square of the distance of the means, divided by v; epsilon is part of v."""
    seen = Seen(Normalizer("bn", np.zeros(1), np.ones(1), epsilon=1.0), Moments(np.full(1, 4.0), np.ones(1), 8))
    (layer,) = examined("x", "model", [Observed((seen,))]).document()["layers"]
    assert layer["divergence"] == [pytest.approx(4.0)]


def test_the_curve(sick):
    phases = sick.document()["phases"]
    assert phases["rows"] == 64 and phases["inference"] == {"gap": 0.0, "accuracy": 0.25, "loss": None}
    assert [item["name"] for item in phases["swapped"]] == list(sick.normalizers)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_null(value):
    moments = Moments(np.full(2, value), np.ones(2), np.full(2, 4.0))
    seen = Seen(Normalizer("bn", np.array([value, 0]), None), moments)
    phases = Phases(Score(value), Score(value), {"bn": Score(value, None, value)}, 4)
    document = strict(examined("x", "model", [Observed((seen,)), phases]).to_json())
    (layer,) = document["layers"]
    assert layer["moving_mean"] == [None, 0.0] and layer["batch_mean"] == layer["moving_variance"] == [None, None]
    assert document["phases"]["swapped"] == [{"name": "bn", "gap": None, "accuracy": None, "loss": None}]


def test_without_data_there_are_no_figures():
    document = examined("x", "model", NEVER).document()
    assert document["layers"] is None and document["phases"] is None


def keys(value):
    if isinstance(value, dict):
        return set(value) | set().union(*map(keys, value.values()))
    return set().union(*map(keys, value)) if isinstance(value, list) else set()


def test_every_name_in_the_document_is_documented(sick):
    assert keys(sick.document()) - set(re.findall(r"`(\w+)`", DOCUMENTED.read_text())) == set()


# SARIF.


def test_sarif_of_a_program(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (run,) = strict(program(SOURCE).to_sarif())["runs"]
    (result,) = run["results"]
    assert result["ruleId"] == "EK101" and result["ruleIndex"] == 0 and result["level"] == "error"
    assert result["message"]["text"] == "minimize. It matters. Next step: run them"
    (location,) = result["locations"]
    assert location == {
        "physicalLocation": {
            "artifactLocation": {"uri": "train%20me.py"},
            "region": {"startLine": 3, "startColumn": 5},
        }
    }


def test_sarif_has_what_its_standard_demands(sick):
    log = strict(sick.to_sarif())
    assert log["version"] == "2.1.0" and log["$schema"].endswith("sarif-2.1.0.json")
    (run,) = log["runs"]
    driver = run["tool"]["driver"]
    assert driver["name"] and driver["semanticVersion"] == evenkeel.__version__
    assert len({item["id"] for item in driver["rules"]}) == len(driver["rules"])
    for item in driver["rules"]:
        assert item["shortDescription"]["text"] and item["help"]["text"] and item["help"]["markdown"]
        assert item["defaultConfiguration"]["level"] in ("error", "warning", "note")
    for result, finding in zip(run["results"], sick.findings, strict=True):
        assert driver["rules"][result["ruleIndex"]]["id"] == result["ruleId"] == finding.rule
        assert result["level"] == finding.severity
        assert result["locations"] == [{"logicalLocations": [{"name": finding.where}]}]


def test_sarif_of_nothing():
    (run,) = strict(program().to_sarif())["runs"]
    assert run["results"] == [] and run["tool"]["driver"]["rules"] == []


@pytest.mark.parametrize("path", ["below/train.py", os.path.join("{here}", "below", "train.py")])
def test_paths_below_the_working_directory_are_relative(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = Finding("EK101", path.format(here=tmp_path), "x", "y", "error", "z", line=1)
    assert artifact(program(found)) == "below/train.py"


def test_paths_elsewhere_are_whole(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    found = Finding("EK101", str(tmp_path / "train.py"), "x", "y", "error", "z", line=1)
    assert artifact(program(found)) == (tmp_path / "train.py").as_uri()


def artifact(report):
    (result,) = json.loads(report.to_sarif())["runs"][0]["results"]
    return result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"]


def test_a_warning_that_explains_an_error_is_an_error_and_comes_first():
    slow = Normalizer("bn", np.ones(2), np.ones(2), momentum=0.99, updates=240)
    phases = Phases(Score(0.0, 0.5, 2.0), Score(1.0, 0.9, 0.2), {"bn": Score(1.0, 0.9, 0.2)}, 256)
    alone, together = (examined("x", "model", items) for items in ([slow], [phases, slow]))
    assert [(finding.rule, finding.severity) for finding in alone.findings] == [("EK201", "warning")]
    assert [(finding.rule, finding.severity) for finding in together.findings][:2] == [
        ("EK201", "error"),
        ("EK403", "error"),
    ]
