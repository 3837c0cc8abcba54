# SPDX-License-Identifier: Apache-2.0
"""`evenkeel doctor`: what it says, writes, repairs and refuses, and how it ends."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from evenkeel.cli import application
from evenkeel.doctor.evidence import Normalizer, Unseen
from evenkeel.doctor.report import examined
from evenkeel.doctor.rules import rule

from conftest import NAME

SOURCE = Path(__file__).parents[2] / "src"
needs_no_framework = pytest.mark.skipif(NAME != "numpy", reason="no framework takes part")
needs_keras = pytest.mark.skipif(NAME == "numpy", reason="Keras computes with a framework")
X = np.random.default_rng(0).normal(3, 2, (64, 4)).astype("float32")
NEVER = {"moving_mean": np.zeros(4), "moving_variance": np.ones(4)}
TRAINED = {"moving_mean": np.array([0.1, -2.0, 0.3, 4.0]), "moving_variance": np.array([0.5, 1.5, 3.0, 2.0])}
HOSTILE = "bn\x1b[2J[red]x[/red]:boom:"


def normalizer(scope, statistics):
    parts = {"gamma": np.full(4, 1.1), "beta": np.full(4, 0.1), **statistics}
    return {f"{scope}/{name}": array.astype("float32") for name, array in parts.items()}


def called(*arguments, width=None):
    """The verb in this process; with a width as on a terminal so wide."""
    environment = {} if width is None else {"FORCE_COLOR": "1", "COLUMNS": str(width)}
    return CliRunner().invoke(application(), ["doctor", *map(str, arguments)], env=environment)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """With checkpoints; the working directory."""
    monkeypatch.chdir(tmp_path)
    np.savez("sick.npz", **normalizer("a", NEVER), **normalizer("[red]b[/red]", NEVER))
    np.savez("well.npz", **normalizer("a", TRAINED))
    np.savez("x.npz", x=X, y=(X[:, 0] > 3).astype("int32"))
    return tmp_path


@pytest.fixture
def model(folder, backend):
    """A Keras model whose statistics were never updated, and whose weights are good."""
    import keras

    model = keras.Sequential([keras.Input([4]), keras.layers.BatchNormalization(name="bn"), keras.layers.Dense(2)])
    # The class is whether the first input is above its mean.
    model.layers[1].set_weights([np.outer([1, 0, 0, 0], [-1, 1]), np.zeros(2)])
    model.save("model.keras")
    return model


# What it says, and how it ends.


@needs_no_framework
def test_a_process(folder):
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), "KERAS_BACKEND": NAME}
    command = [sys.executable, "-m", "evenkeel", "doctor", "sick.npz"]
    process = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (process.returncode, process.stderr) == (1, "")
    assert "error EK101: Moving statistics never left their starting values" in process.stdout


@needs_no_framework
def test_a_healthy_one(folder):
    result = called("well.npz")
    assert result.exit_code == 0, result.output
    assert "error" not in result.stdout and "warning" not in result.stdout


@needs_no_framework
def test_two_are_a_pair(folder):
    result = called("well.npz", "sick.npz", "--json")
    assert json.loads(result.stdout)["subject"] == "well.npz -> sick.npz"


@needs_no_framework
@pytest.mark.parametrize("width", [60, 100, 200])
def test_a_table_on_a_terminal(folder, width):
    result = called("sick.npz", width=width)
    assert result.exit_code == 1
    assert "EK101" in result.stdout and "\x1b[1;31m" in result.stdout  # red
    assert max(map(len, plain(result.stdout).splitlines())) <= width


@needs_no_framework
@pytest.mark.parametrize("width", [None, 200])
def test_no_name_steers_the_terminal(folder, monkeypatch, width):
    found = examined(
        "sick\x07", "checkpoint", [Normalizer(HOSTILE, *NEVER.values()), Unseen(HOSTILE, HOSTILE, HOSTILE)]
    )
    monkeypatch.setattr("evenkeel.cli.doctor.diagnose", lambda *arguments, **options: found)
    shown = plain(called("sick.npz", width=width).stdout)
    assert "\x1b" not in shown and "\x07" not in shown
    assert "".join(shown.split()).count(r"bn\x1b[2J[red]x[/red]:boom:") == 4


def plain(text):
    """Without colours."""
    return re.sub(r"\x1b\[[\d;]*m", "", text)


@needs_no_framework
def test_json_is_strict_and_alone(folder):
    result = called("sick.npz", "--json")
    document = json.loads(result.stdout, parse_constant=lambda name: pytest.fail(f"{name} in JSON"))
    assert result.exit_code == 1 and document["counts"]["error"] >= 2 and document["fixed"] is None
    assert {"a", "[red]b[/red]"} == {item["where"] for item in document["findings"]}


@needs_no_framework
@pytest.mark.parametrize("name", ["EK101", "ek101", "never_updated"])
def test_a_rule_is_explained(name):
    result = called("--explain", name)
    assert result.exit_code == 0 and result.stdout.startswith(f"# EK101: {rule('EK101').title}\n")


@needs_no_framework
def test_a_rule_is_explained_on_a_terminal():
    result = called("--explain", "EK101", width=80)
    assert "What to do" in result.stdout and "## What" not in plain(result.stdout)


@needs_no_framework
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "there is nothing to look at; give a SUBJECT, or --explain RULE"),
        (["--explain", "EK999"], "there is no rule 'EK999'"),
        (["gone.npz"], "gone.npz"),
        (["broken.npz"], "broken.npz"),
        (["sick.npz", "--data", "gone.npz"], "--data gone.npz is no file"),
        (["sick.npz", "--html", "x.npz"], "x.npz is there already; give --overwrite"),
        (["sick.npz", "--sarif", "x.npz"], "x.npz is there already; give --overwrite"),
        (["sick.npz", "--html", "gone/page.html"], "gone is not a folder"),
        (["sick.npz", "--html", "sick.npz", "--overwrite"], "--html sick.npz would replace another file of this call"),
        (["sick.npz", "--html", "a", "--sarif", "a"], "--html a would replace another file of this call"),
        (["sick.npz", "--fix", "new.keras"], "--fix new.keras estimates statistics from data; give --data too"),
        (["sick.npz", "--data", "x.npz", "--fix", "new.keras"], "repairs whole Keras models, .keras, .h5, .hdf5, and"),
        (["m.keras", "--data", "x.npz", "--fix", "new.txt"], "--fix new.txt ends with .txt"),
        (["sick.npz", "well.npz", "--data", "x.npz", "--fix", "new.keras"], "repairs one model, and"),
    ],
)
def test_what_cannot_be_done(folder, arguments, said):
    Path("broken.npz").write_bytes(b"no archive")
    before = {path: path.read_bytes() for path in folder.iterdir()}
    result = called(*arguments)
    assert result.exit_code == 2 and result.stderr.startswith("evenkeel: ") and said in result.stderr
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


@needs_no_framework
def test_a_fault_of_ours_is_not_an_illness(folder, monkeypatch):
    """Code 1 says that the model is ill."""

    def fails(*arguments, **options):
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr("evenkeel.cli.doctor.diagnose", fails)
    result = called("sick.npz")
    assert result.exit_code == 2 and "sick.npz could not be looked at: ZeroDivisionError: by zero" in result.stderr


# What it writes.


@needs_no_framework
def test_a_page_and_sarif(folder):
    result = called("sick.npz", "--html", "page.html", "--sarif", "log.sarif")
    assert result.exit_code == 1
    assert Path("page.html").read_text().startswith("<!DOCTYPE html>")
    assert json.loads(Path("log.sarif").read_text())["version"] == "2.1.0"


@needs_no_framework
def test_files_are_replaced_when_asked(folder):
    Path("page.html").write_text("mine")
    assert called("well.npz", "--html", "page.html").exit_code == 2
    assert Path("page.html").read_text() == "mine"
    assert called("well.npz", "--html", "page.html", "--overwrite").exit_code == 0
    assert Path("page.html").read_text() != "mine"


# Keras models, with data, and repaired.


@needs_keras
def test_a_page_with_plots(model):
    pytest.importorskip("matplotlib")
    result = called("model.keras", "--data", "x.npz", "--html", "page.html", "--backend", NAME)
    assert result.exit_code == 1, result.output
    assert Path("page.html").read_text().count("<svg") >= 3
    assert "on 64 rows: accuracy" in result.stdout


@needs_keras
def test_what_is_repaired(model):
    before = Path("model.keras").read_bytes()
    result = called("model.keras", "--data", "x.npz", "--fix", "new.keras", "--backend", NAME)
    assert result.exit_code == 0, result.output
    assert "error EK101" in result.stdout and "new.keras has new statistics, for EK101" in result.stdout
    assert "what is left there:\nnew.keras" in result.stdout
    assert Path("model.keras").read_bytes() == before
    import keras

    mean = keras.saving.load_model("new.keras").layers[0].moving_mean.value
    np.testing.assert_allclose(keras.ops.convert_to_numpy(mean), X.mean(0, dtype="float64"), rtol=1e-6)


@needs_keras
def test_what_is_repaired_as_json(model):
    result = called("model.keras", "--data", "x.npz", "--fix", "new.keras", "--json", "--backend", NAME)
    document = json.loads(result.stdout)
    assert result.exit_code == 0 and not document["healthy"] and document["fixed"]["left"]["healthy"]
    assert document["fixed"]["file"] == "new.keras"


@needs_keras
def test_nothing_to_repair(model):
    called("model.keras", "--data", "x.npz", "--fix", "new.keras", "--backend", NAME)
    result = called("new.keras", "--data", "x.npz", "--fix", "newer.keras", "--backend", NAME)
    assert result.exit_code == 0 and "newer.keras was not written: there is nothing to repair" in result.stdout
    assert not Path("newer.keras").exists()


@needs_keras
def test_what_statistics_do_not_cure(model):
    """The file says that training is True at this call, whoever calls it; the statistics are right."""
    import keras

    x = keras.Input([4])
    stuck = keras.Model(x, keras.layers.BatchNormalization()(x, training=True))
    stuck.layers[1].set_weights([np.ones(4), np.zeros(4), X.mean(0), X.var(0)])
    stuck.save("stuck.keras")
    result = called("stuck.keras", "--data", "x.npz", "--fix", "new.keras", "--backend", NAME)
    assert result.exit_code == 1, result.output
    assert (
        "error EK303" in result.stdout and "new.keras was not written: new statistics do not cure EK" in result.stdout
    )
    assert not Path("new.keras").exists()
