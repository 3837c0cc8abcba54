# SPDX-License-Identifier: Apache-2.0
"""`evenkeel inspect`: what it prints, draws and refuses, and what it says of the checkpoints of TensorFlow 1.15."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import evenkeel
from evenkeel.checkpoints import Checkpoint, Facts, Variable
from evenkeel.cli import application, inspect

from conftest import GOLDENS

SOURCE = Path(__file__).parents[2] / "src"
BACKEND = os.environ["KERAS_BACKEND"]
needs_no_framework = pytest.mark.skipif(BACKEND != "numpy", reason="no framework takes part")
needs_tensorflow = pytest.mark.skipif(BACKEND != "tensorflow", reason="reads files of TensorFlow")

NEVER = "mean all 0, variance all 1: never updated"
MISSING = "mean and variance missing: saved with trainable variables only, or a layer normalization"
LONG = "/".join(["a_scope_with_a_long_name"] * 8)


def normalizer(scope, channels=4, **parts):
    four = {"gamma": np.ones, "beta": np.zeros, "moving_mean": np.zeros, "moving_variance": np.ones}
    return {f"{scope}/{name}": parts.get(name, make(channels)) for name, make in four.items()}


TRAINED = normalizer("bn1", moving_mean=np.array([-0.12345, 7, 0, 1]), moving_variance=np.array([2.0, 3, 4, 1e-7]))
VARIABLES = {"dense/kernel": np.ones((3, 4), "float32"), **TRAINED, **normalizer("bn2"), "step": np.array(3)}


def run(path, *options, width=None):
    """The verb in this process; with a width as on a terminal so wide."""
    environment = {} if width is None else {"FORCE_COLOR": "1", "COLUMNS": str(width)}
    return CliRunner().invoke(application(), ["inspect", str(path), *map(str, options)], env=environment)


def strict(text):
    """JSON as its standard has it, without NaN and Infinity."""
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} in JSON"))


@pytest.fixture
def save(tmp_path):
    def save(variables):
        np.savez(tmp_path / "file.npz", **variables)
        return tmp_path / "file.npz"

    return save


@pytest.fixture
def file(save):
    return save(VARIABLES)


def line_of(output, start):
    (line,) = [line for line in output.splitlines() if line.startswith(start)]
    return line


# What is printed.


@needs_no_framework
def test_a_line_for_each_normalizer(file):
    result = run(file)
    assert (result.exit_code, result.stderr) == (0, "")
    cells = line_of(result.stdout, "bn1").split("  ")
    assert [cell.strip() for cell in cells if cell][2:] == ["4", "-0.123 … 7", "1e-07 … 4", "1", "0"]


@needs_no_framework
def test_flags_are_in_words(file):
    assert line_of(run(file).stdout, "bn2").endswith(NEVER)


@needs_no_framework
def test_totals(file):
    first, second = run(file).stdout.splitlines()[-2:]
    assert first == f"10 variables, 45 values, {12 * 4 + 33 * 8} bytes"
    assert second == "2 normalizers (2 tf.layers), 1 flagged"


@needs_no_framework
def test_absent_is_not_missing(save):
    path = save({"bn/moving_mean": np.ones(2), "bn/moving_variance": np.full(2, 2.0)})
    line = line_of(run(path).stdout, "bn")
    assert line.count("–") == 2
    assert "missing" not in line


@needs_no_framework
def test_missing_statistics(save):
    line = line_of(run(save({"bn/gamma": np.ones(2), "bn/beta": np.ones(2)})).stdout, "bn")
    assert line.split()[3:5] == ["missing", "missing"]
    assert line.endswith(MISSING)


@needs_no_framework
def test_averages_are_told_from_raw_values(save):
    """The average of gamma is named, and not shown; the average of a helper's mean is its mean."""
    shadows = {"bn/gamma/ExponentialMovingAverage": np.full(4, 9.0), "help/beta": np.zeros(3)}
    for part, raw, average in (("mean", 5.0, 0.5), ("variance", 6.0, 0.25)):
        shadows |= {f"help/{part}": np.full(3, raw), f"help/{part}/ExponentialMovingAverage": np.full(3, average)}
    output = run(save(normalizer("bn", moving_mean=np.ones(4)) | shadows)).stdout
    assert line_of(output, "bn").endswith("  moving averages (EMA shadows) of gamma present")
    assert line_of(output, "help").split() == ["help", "helper", "3", "0.5", "0.25", "–", "0"]


@needs_no_framework
def test_bytes_of_text_are_not_known():
    variables = {"text": Variable.of(np.array(["a", "b"], object)), "number": Variable.of(np.ones(3, "float32"))}
    totals = inspect._totals(Checkpoint("file", "memory", "tensorflow", variables))
    assert (totals["values"], totals["bytes"]) == (5, 12)


@needs_no_framework
def test_without_normalizers(save):
    assert run(save({"kernel": np.ones(3)})).stdout.splitlines()[-1] == "no normalizers"


@needs_no_framework
def test_a_pipe_gets_whole_names(save):
    assert line_of(run(save(normalizer(LONG))).stdout, LONG).endswith(NEVER)


@needs_no_framework
def test_a_terminal_of_100_columns(save):
    """Nothing is cut off: numbers stand whole, names and flags fold."""
    wide = np.array([-1.234e-10, -1.234e10])
    scope = f"{LONG}/BatchNorm"
    path = save(normalizer(scope, moving_mean=wide, moving_variance=wide, gamma=wide, beta=wide))
    lines = re.sub(r"\x1b\[\d*m", "", run(path, width=100).stdout).splitlines()
    table = [line for line in lines[1:-2] if line.strip()]
    assert max(map(len, table)) <= 100
    assert sum(line.count("-1.23e+10") for line in table) == sum(line.count("-1.23e-10") for line in table) == 4
    assert any("  tf.contrib.layers  " in line for line in table)
    assert scope in "".join(line.split("  ")[0] for line in table)


@needs_no_framework
def test_only_flagged(file):
    output = run(file, "--only-flagged").stdout
    assert "bn1" not in output
    assert "bn2" in output


@needs_no_framework
def test_only_flagged_where_all_is_well(save):
    lines = run(save(TRAINED), "--only-flagged").stdout.splitlines()
    assert lines[1:] == [
        "nothing odd",
        "4 variables, 16 values, 128 bytes",
        "1 normalizers (1 tf.layers), none flagged",
    ]


@needs_no_framework
def test_all_variables(file):
    lines = [line.split() for line in run(file, "--variables").stdout.splitlines()]
    assert ["dense/kernel", "3x4", "float32"] in lines
    assert ["step", "scalar", "int64"] in lines
    assert ["bn2/gamma", "4", "float64"] in lines


@needs_no_framework
def test_names_do_not_steer_the_terminal(capsys):
    variables = {name: Variable.of(values) for name, values in normalizer("\x1b[2Jbn[red]:boom:\n").items()}
    checkpoint = Checkpoint("file", "memory", "tensorflow", variables)
    rows = list(inspect._rows(checkpoint, only_flagged=False, draw=False))
    inspect._show(checkpoint, rows, variables=True, only_flagged=False)
    output = capsys.readouterr().out
    assert "\x1b" not in output
    assert output.count(r"\x1b[2Jbn[red]:boom:\n") == 5


@needs_no_framework
def test_a_kernel_is_not_read():
    """Only the parts of normalizers are, each once."""
    reads = []

    def variable(name, values):
        return Variable(values.shape, values.dtype, name, lambda: reads.append(name) or values)

    variables = {name: variable(name, values) for name, values in VARIABLES.items()}
    list(inspect._rows(Checkpoint("file", "memory", "tensorflow", variables), only_flagged=False, draw=True))
    assert sorted(reads) == sorted(name for name in VARIABLES if name.startswith("bn"))


# JSON.


@needs_no_framework
def test_json_has_all(file):
    document = strict(run(file, "--json").stdout)
    assert document["totals"] == {
        "variables": 10,
        "values": 45,
        "bytes": 312,
        "normalizers": 2,
        "dialects": {"tf.layers": 2},
    }
    assert document["variables"]["dense/kernel"] == {"shape": [3, 4], "dtype": "float32"}
    first, second = document["normalizers"]
    assert (first["name"], first["channels"], first["missing"], first["flags"]) == ("bn1", 4, [], [])
    assert first["parts"]["mean"] == {
        "shape": [4],
        "dtype": "float64",
        "minimum": -0.12345,
        "maximum": 7.0,
        "nan": 0,
        "infinite": 0,
    }
    assert second["flags"] == [NEVER]


@needs_no_framework
def test_json_has_no_nan(save):
    values = np.full(3, np.nan)
    (found,) = strict(
        run(save(normalizer("bn", 3, moving_mean=values, beta=np.array([1, np.inf, 2]))), "--json").stdout
    )["normalizers"]
    counts = {name: found["parts"]["mean"][name] for name in ("minimum", "maximum", "nan", "infinite")}
    assert counts == {"minimum": None, "maximum": None, "nan": 3, "infinite": 0}
    assert found["parts"]["beta"]["infinite"] == 1
    assert found["flags"] == ["NaN in 3 of 3 channels (mean)", "infinity in 1 of 3 channels (beta)"]


@needs_no_framework
def test_json_has_no_nan_of_a_configuration():
    variables = {name: Variable.of(values) for name, values in normalizer("bn").items()}
    facts = {"bn": Facts(kind="BatchNormalization", epsilon=float("nan"), momentum=0.9)}
    checkpoint = Checkpoint("file", "memory", "keras", variables, facts)
    (found,) = inspect._document(checkpoint, list(inspect._rows(checkpoint, only_flagged=False, draw=False)))[
        "normalizers"
    ]
    assert (found["facts"]["epsilon"], found["facts"]["momentum"]) == (None, 0.9)


# The plot.


@needs_no_framework
def test_plot(file, tmp_path):
    result = run(file, "--plot", tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    assert result.stdout.endswith("plot.png has 2 of 2\n")


@needs_no_framework
@pytest.mark.parametrize(
    "values",
    [
        pytest.param([0.0, 0, 0], id="zeros"),
        pytest.param([np.nan] * 3, id="NaN"),
        pytest.param([1.7e308, -1.7e308, np.inf], id="huge"),
        pytest.param([5e-324, 0, 1e-310], id="subnormal"),
        pytest.param([1, 1 + 1e-16, 1 - 1e-16], id="nearly equal"),
        pytest.param([], id="no channels"),
    ],
)
def test_anything_is_drawn(save, tmp_path, values):
    """Names with dollars too, which Matplotlib would take for formulas, or letters that its font has not."""
    values = np.array(values)
    path = save(normalizer("$\\漢$", moving_mean=values, moving_variance=values, gamma=values, beta=values))
    assert run(path, "--plot", tmp_path / "plot.png").exit_code == 0
    assert (tmp_path / "plot.png").exists()


@needs_no_framework
def test_a_histogram_counts_every_channel():
    counts = inspect._histogram("mean", np.array([1.0, 2, 2, 5])).counts
    assert (counts[counts > 0] == [1, 2, 1]).all()


@needs_no_framework
def test_a_histogram_of_variances_is_of_their_logarithm():
    histogram = inspect._histogram("variance", np.array([1e-3, 1e3, 0, -1, np.nan]))
    assert -3.2 < histogram.edges[0] < -3 and 3 < histogram.edges[-1] < 3.2
    assert (histogram.counts.sum(), histogram.left_out) == (2, 3)


@needs_no_framework
def test_plot_says_what_is_left_out(save, tmp_path):
    variables = {}
    for number in range(42):
        variables |= {f"bn{number}/moving_mean": np.ones(2), f"bn{number}/moving_variance": np.ones(2)}
    last = run(save(variables), "--plot", tmp_path / "plot.png").stdout.splitlines()[-1]
    assert last.endswith("has the first 40 of 42; left out: bn40, bn41")


@needs_no_framework
def test_as_many_as_are_drawn_have_histograms():
    variables = {}
    for number in range(42):
        variables |= {name: Variable.of(values) for name, values in normalizer(f"bn{number}").items()}
    rows = inspect._rows(Checkpoint("file", "memory", "tensorflow", variables), only_flagged=True, draw=True)
    assert [len(row.histograms) for row in rows] == [4] * 40 + [0] * 2


@needs_no_framework
def test_nothing_to_draw(save, tmp_path):
    result = run(save({"kernel": np.ones(2)}), "--plot", tmp_path / "plot.png")
    assert result.stdout.endswith("was not written: there is nothing to draw\n")
    assert not (tmp_path / "plot.png").exists()


@needs_no_framework
def test_overwrite(file, tmp_path):
    (tmp_path / "plot.png").write_text("old")
    assert run(file, "--plot", tmp_path / "plot.png", "--overwrite").exit_code == 0
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


@needs_no_framework
@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("old.png", [], "is there already; give --overwrite or another name"),
        ("file.npz", ["--overwrite"], "is the checkpoint itself"),
        (".", ["--overwrite"], "is a folder"),
        ("nowhere/plot.png", [], "nowhere is not a folder"),
    ],
)
def test_plots_that_are_refused(file, tmp_path, name, options, words):
    (tmp_path / "old.png").write_text("old")
    before = file.read_bytes()
    result = run(file, "--plot", tmp_path / name, *options)
    assert (result.exit_code, result.stdout) == (2, "")
    assert words in result.stderr
    assert ((tmp_path / "old.png").read_text(), file.read_bytes()) == ("old", before)


# What cannot be read.


@needs_no_framework
@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x00" * 1000, b"random", None])
def test_a_file_that_cannot_be_read(tmp_path, content):
    if content is not None:
        (tmp_path / "broken.npz").write_bytes(content)
    result = run(tmp_path / "broken.npz", "--json")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("evenkeel: ") and result.stderr.count("\n") == 1
    assert "broken.npz" in result.stderr


@needs_no_framework
@pytest.mark.parametrize("name", ["bn1/moving_variance"])
def test_a_variable_that_cannot_be_read(file, name):
    """Its bytes were changed, so its checksum does not fit."""
    content = file.read_bytes()
    assert content.count(VARIABLES[name].tobytes()) == 1
    file.write_bytes(content.replace(VARIABLES[name].tobytes(), b"\x01" * 32))
    result = run(file)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "file.npz" in result.stderr and name in result.stderr


# The checkpoints of TensorFlow 1.15.


OBJECTS = {"layer_with_weights-1": "bn_0", "layer_with_weights-3": "bn_1"}
"""Object checkpoints of TensorFlow call layers by their place in the model."""


@pytest.fixture(
    scope="module",
    params=[
        "a1_contrib_mlp",
        "b1_layers_conv",
        "c1_estimator_mlp/model_dir",
        "d1_keras_mlp/model.h5",
        "d1_keras_mlp/weights.h5",
        "d1_keras_mlp/tf_weights",
        "e1_slim_resnet_block/model.ckpt-60",
        "f1_saved_model_mlp/saved_model",
        "g1_v1_format_mlp",
        "h1_trainable_only_mlp/model.ckpt-60.index",
        "i1_updates_never_run_mlp",
    ],
)
def golden(request):
    """What JSON says of one, its meta.json, and its variables at the end of training."""
    import tensorflow  # noqa: F401  before the verb tells it how to be loaded

    folder = GOLDENS / "checkpoints" / request.param.split("/")[0]
    result = run(GOLDENS / "checkpoints" / request.param, "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    meta = json.loads((folder / "meta.json").read_text())
    with np.load(folder / "io.npz") as file:
        arrays = {name.removeprefix("vars/"): file[name] for name in file.files if name.startswith("vars/")}
    return strict(result.stdout), meta, arrays


@needs_tensorflow
def test_golden_normalizers_and_channels(golden):
    document, meta, _ = golden
    shapes = meta["variable_shapes"]
    wanted = {name.removesuffix("/gamma"): shape[0] for name, shape in shapes.items() if name.endswith("/gamma")}
    assert wanted
    found = {OBJECTS.get(item["name"], item["name"]): item["channels"] for item in document["normalizers"]}
    assert found == wanted


@needs_tensorflow
def test_golden_parts(golden):
    document, meta, _ = golden
    lost = meta.get("missing_variables", [])
    wanted = ["mean", "variance"] if any(name.endswith("/moving_mean") for name in lost) else []
    assert [item["missing"] for item in document["normalizers"]] == [wanted] * len(document["normalizers"])
    present = [{"gamma", "beta", "mean", "variance"} - set(wanted)] * len(document["normalizers"])
    assert [set(item["parts"]) for item in document["normalizers"]] == present


@needs_tensorflow
def test_golden_flags(golden):
    document, meta, _ = golden
    wanted = [MISSING] if "trainable" in meta["name"] else [NEVER] if meta.get("update_ops_run") is False else []
    assert [item["flags"] for item in document["normalizers"]] == [wanted] * len(document["normalizers"])


@needs_tensorflow
def test_golden_ranges(golden):
    document, _, arrays = golden
    roles = {"gamma": "gamma", "beta": "beta", "mean": "moving_mean", "variance": "moving_variance"}
    for item in document["normalizers"]:
        for role, part in item["parts"].items():
            values = arrays[f"{OBJECTS.get(item['name'], item['name'])}/{roles[role]}"]
            assert (part["minimum"], part["maximum"]) == (values.min(), values.max())


@needs_tensorflow
def test_as_a_process():
    """Nothing but the table: TensorFlow's own words at its import are not heard."""
    ended = subprocess.run(
        [sys.executable, "-m", "evenkeel", "inspect", str(GOLDENS / "checkpoints" / "i1_updates_never_run_mlp")],
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
        capture_output=True,
        text=True,
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert line_of(ended.stdout, "bn0 ").endswith(NEVER)


@pytest.mark.skipif(BACKEND == "numpy", reason="the layer has no NumPy backend")
@pytest.mark.parametrize(("affine", "wanted"), [(False, "frozen"), (True, "frozen, gamma and beta too")])
def test_a_frozen_model(affine, wanted, tmp_path):
    import keras

    model = keras.Sequential([keras.Input((3,)), evenkeel.BatchNormalization()])
    evenkeel.freeze(model, affine=affine)
    model.save(tmp_path / "model.keras")
    (frozen,) = json.loads(run(tmp_path / "model.keras", "--json").stdout)["normalizers"]
    assert frozen["facts"]["frozen"] == ("all" if affine else True)
    assert wanted in frozen["flags"]
