# SPDX-License-Identifier: Apache-2.0
"""`evenkeel fold`: what it writes, what it says, and how it ends."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from evenkeel.cli import application

from conftest import NAME

if NAME == "numpy":
    pytest.skip("Keras models run on a framework", allow_module_level=True)

import keras

SOURCE = Path(__file__).parents[2] / "src"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model of two inputs, and a batch for it."""
    result = tmp_path_factory.mktemp("fold")
    one, two = keras.Input((4,), name="one"), keras.Input((3,), name="two")
    x = keras.layers.BatchNormalization(name="bn")(keras.layers.Dense(3, name="dense")(one))
    model = keras.Model({"one": one, "two": two}, keras.layers.Add()([x, two]))
    model.get_layer("bn").moving_mean.assign([1.0, -2.0, 3.0])
    model.save(result / "model.keras")
    generator = np.random.default_rng(0)
    arrays = {"one": generator.normal(size=(5, 4)), "two": generator.normal(size=(5, 3))}
    np.savez(result / "batch.npz", **{name: array.astype("float32") for name, array in arrays.items()})
    np.savez(result / "wrong.npz", np.zeros((5, 9), "float32"))
    (result / "weights.pt").touch()
    (result / "broken.keras").write_text("not a model")
    return result


def test_it_folds_and_says_so_as_a_process(folder):
    ended = subprocess.run(
        [sys.executable, "-m", "evenkeel", "fold", "model.keras", "-o", "folded.keras", "--data", "batch.npz"],
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "folded 1 of 1 normalizers\n  bn into dense before it\n" in ended.stdout
    assert "float64, given data" in ended.stdout
    before, after = (keras.saving.load_model(folder / name) for name in ("model.keras", "folded.keras"))
    with np.load(folder / "batch.npz") as file:
        wanted, got = (keras.ops.convert_to_numpy(model(dict(file))) for model in (before, after))
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)
    assert not any(isinstance(layer, keras.layers.BatchNormalization) for layer in after.layers)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("model.keras", "-o", "model.keras"), "model.keras is there already; give --overwrite or another name"),
        (("model.keras", "-o", "out.h5"), "out.h5 does not end with .keras"),
        (("weights.pt", "-o", "out.keras"), "call evenkeel.fold(model, data) in Python"),
        (("missing.keras", "-o", "out.keras"), "missing.keras is no file of a whole Keras model"),
        (("broken.keras", "-o", "out.keras"), "broken.keras cannot be loaded"),
        (("model.keras", "-o", "out.keras", "--data", "weights.pt"), "weights.pt is no .npz"),
        (("model.keras", "-o", "out.keras", "--data", "wrong.npz"), "does not take the given data"),
    ],
)
def test_bad_input_ends_with_2_and_writes_nothing(monkeypatch, folder, arguments, words):
    monkeypatch.chdir(folder)
    before = {path.name for path in folder.iterdir()}
    ended = CliRunner().invoke(application(), ["fold", *arguments])
    assert ended.exit_code == 2
    assert words in ended.stderr
    assert {path.name for path in folder.iterdir()} == before
