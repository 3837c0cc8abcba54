# SPDX-License-Identifier: Apache-2.0
"""`evenkeel recalibrate`, as a process and as a call: what it writes, says and refuses."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from evenkeel.cli import application

import oracle
from conftest import NAME

if NAME == "numpy":
    pytest.skip("Keras computes with a framework", allow_module_level=True)

import keras

import evenkeel

SOURCE = Path(__file__).parents[2] / "src"
X = np.random.default_rng(0).normal(3, 2, (50, 4)).astype("float32")


@pytest.fixture
def folder(tmp_path, monkeypatch, backend):
    """With a model and data of it; the working directory."""
    monkeypatch.chdir(tmp_path)
    layers = [keras.Input([4]), evenkeel.BatchNormalization(), keras.layers.Dense(2), keras.layers.BatchNormalization()]
    keras.Sequential(layers).save("model.keras")
    np.save("x.npy", X)
    return tmp_path


def called(*arguments):
    return CliRunner().invoke(application(), ["recalibrate", *arguments])


def test_a_process(folder):
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), "KERAS_BACKEND": NAME}
    command = [sys.executable, "-m", "evenkeel", "recalibrate", "model.keras", "--data", "x.npy", "-o", "new.keras"]
    process = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert process.stdout.count("50 values, mean moved by up to") == 2
    mean, variance, _ = oracle.moments(X)
    layer = keras.saving.load_model("new.keras").layers[0]
    np.testing.assert_allclose(keras.ops.convert_to_numpy(layer.moving_mean.value), mean, rtol=1e-6)
    np.testing.assert_allclose(keras.ops.convert_to_numpy(layer.moving_variance.value), variance, rtol=1e-6)


@pytest.mark.parametrize("name", ["new.keras", "new.h5"])
@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
def test_what_is_written_and_said(folder, name):
    options = ["--method", "sequential", "--batch-size", "10", "--steps", "2"]
    result = called("model.keras", "--data", "x.npy", "-o", name, *options)
    assert result.exit_code == 0, result.output
    assert result.stdout.count(": 20 values, mean moved by up to") == 2
    layer = keras.saving.load_model(name, compile=False).layers[0]
    found = keras.ops.convert_to_numpy(layer.moving_mean.value)
    np.testing.assert_allclose(found, X[:20].mean(0, dtype="float64"), rtol=1e-6)
    assert sorted(path.name for path in folder.iterdir()) == sorted(["model.keras", name, "x.npy"])


def test_nothing_is_replaced_unless_asked(folder):
    arguments = ["model.keras", "--data", "x.npy", "-o", "model.keras"]
    before = Path("model.keras").read_bytes()
    refused = called(*arguments)
    assert refused.exit_code == 2 and "model.keras is there already; give --overwrite" in refused.stderr
    assert Path("model.keras").read_bytes() == before
    assert called(*arguments, "--overwrite").exit_code == 0
    assert Path("model.keras").read_bytes() != before


@pytest.mark.parametrize(
    ("model", "data", "out", "said"),
    [
        ("gone.keras", "x.npy", "new.keras", "gone.keras is no file of a whole Keras model"),
        ("x.npy", "x.npy", "new.keras", "x.npy is no file of a whole Keras model"),
        ("broken.keras", "x.npy", "new.keras", "broken.keras cannot be loaded"),
        ("model.keras", "gone.npy", "new.keras", "gone.npy cannot be read"),
        ("model.keras", "x.csv", "new.keras", "x.csv is no .npy"),
        ("model.keras", "x.npy", "new.txt", "new.txt ends with .txt"),
        ("model.keras", "x.npy", "gone/new.keras", "gone is not a folder"),
    ],
)
def test_what_cannot_be_used(folder, model, data, out, said):
    Path("broken.keras").write_bytes(b"no model")
    result = called(model, "--data", data, "-o", out)
    assert result.exit_code == 2 and result.stderr.startswith("evenkeel: ") and said in result.stderr
    assert not Path(out).exists()
