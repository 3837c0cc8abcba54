# SPDX-License-Identifier: Apache-2.0
"""`evenkeel convert`, as a process: what it writes, what it says, how it ends."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from evenkeel.checkpoints import Checkpoint, Variable, read_checkpoint, write_checkpoint

pytestmark = pytest.mark.skipif(os.environ.get("KERAS_BACKEND", "numpy") != "numpy", reason="no framework takes part")
SOURCE = Path(__file__).parents[2] / "src"
PARTS = ("gamma", "beta", "moving_mean", "moving_variance")


def run(*arguments, folder):
    return subprocess.run(
        [sys.executable, "-m", "evenkeel", "convert", *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
        cwd=folder,
        capture_output=True,
        text=True,
    )


def write(path, names):
    values = {name: np.linspace(1, 2, 4, dtype="float32") for name in names}
    values = {name: value.reshape(1, 4) if name.endswith("weights") else value for name, value in values.items()}
    variables = {name: Variable.of(value) for name, value in values.items()}
    write_checkpoint(path, Checkpoint("memory", "memory", "tensorflow", variables))


@pytest.fixture
def folder(tmp_path):
    write(tmp_path / "net.npz", ["fc1/weights", *(f"bn1/{part}" for part in PARTS)])
    return tmp_path


def test_a_file_becomes_one_of_torch(folder):
    ended = run(
        "net.npz", "out.pt", "--map", "fc1=layers.0", "--map", r"re:bn(\d)=norms.\1", "--verbose", folder=folder
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.splitlines() == [
        "fc1/weights          layers.0.weight",
        "bn1/gamma            norms.1.weight",
        "bn1/beta             norms.1.bias",
        "bn1/moving_mean      norms.1.running_mean",
        "bn1/moving_variance  norms.1.running_var",
        "num_batches_tracked of 1 normalizer is not in the source: 0, or what the target has",
        "1 normalizer: variances were divided by n or n - 1, which the file does not say, and torch divides by n - 1: "
        "copied as they are",
        "1 normalizer: the source does not say epsilon; torch takes 1e-05",
        "out.pt has 5 variables of net.npz under names of torch. "
        "Normalizers compared on random data, in float64: 1; largest difference 0.",
    ]
    assert read_checkpoint(folder / "out.pt").variables["layers.0.weight"].shape == (4, 1)


def test_names_are_shown_only_when_asked_for(folder):
    assert "running_var" not in run("net.npz", "out.pt", folder=folder).stdout


def test_what_is_left_is_said(tmp_path):
    write(tmp_path / "like.npz", [f"bn1/{part}" for part in PARTS])
    write(tmp_path / "source.npz", [f"{scope}/{part}" for scope in ("bn1", "bn2") for part in PARTS])
    ended = run("source.npz", "out.npz", "--like", "like.npz", folder=tmp_path)
    assert ended.returncode == 0
    assert f"not in out.npz: {', '.join(f'bn2/{part}' for part in PARTS)}" in ended.stdout.splitlines()


def test_a_dry_run_writes_nothing(folder):
    ended = run("net.npz", "out.npz", "--dry-run", "--to", "torch", folder=folder)
    assert ended.returncode == 0 and "out.npz would get 5 variables" in ended.stdout
    assert [path.name for path in folder.iterdir()] == ["net.npz"]


def test_a_target_that_computes_something_else_is_not_kept(tmp_path):
    write(tmp_path / "source.npz", [f"bn/{part}" for part in PARTS])
    write(tmp_path / "like.npz", [f"bn/{part}" for part in PARTS if part != "gamma"])
    ended = run("source.npz", "out.npz", "--like", "like.npz", folder=tmp_path)
    assert ended.returncode == 1
    assert ended.stderr.startswith("evenkeel: bn and bn differ by")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["like.npz", "source.npz"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("missing.npz", "out.npz"), "missing.npz does not exist"),
        (("garbage.npz", "out.npz"), "garbage.npz"),
        (("net.npz", "garbage.npz"), "garbage.npz already exists"),
        (("net.npz", "out.txt"), "out.txt ends in .txt"),
        (("net.npz", "out.npz", "--map", "nothing=x"), "the rule 'nothing=x' changes no name"),
        (("net.npz", "out.npz", "--like", "missing.npz"), "missing.npz does not exist"),
    ],
)
def test_bad_input_is_one_line_and_code_2(arguments, message, folder):
    (folder / "garbage.npz").write_bytes(b"garbage")
    ended = run(*arguments, folder=folder)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert len(ended.stderr.splitlines()) == 1 and message in ended.stderr
    assert sorted(path.name for path in folder.iterdir()) == ["garbage.npz", "net.npz"]
    assert (folder / "garbage.npz").read_bytes() == b"garbage"


def test_overwrite(folder):
    (folder / "out.npz").write_bytes(b"garbage")
    assert run("net.npz", "out.npz", "--overwrite", folder=folder).returncode == 0
    assert len(read_checkpoint(folder / "out.npz").variables) == 5
