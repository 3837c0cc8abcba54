# SPDX-License-Identifier: Apache-2.0
"""`evenkeel bench`, as a process: what it measures, writes and refuses."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from evenkeel.cli import bench
from evenkeel.errors import ArgumentError, InputError
from evenkeel.files import check_free
from evenkeel.workloads.contenders import Case
from evenkeel.workloads.timing import Quartiles

SOURCE = Path(__file__).parents[2] / "src"
BACKEND = os.environ["KERAS_BACKEND"]
needs_keras = pytest.mark.skipif(BACKEND == "numpy", reason="Keras runs on TensorFlow, JAX and PyTorch")


class Ended(NamedTuple):
    code: int
    out: str
    err: str


def run(*arguments):
    process = subprocess.run(
        [sys.executable, "-m", "evenkeel", "bench", *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    return Ended(process.returncode, process.stdout, process.stderr)


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """A quick run on the backend of this process; its ending, its JSON, its folder."""
    folder = tmp_path_factory.mktemp("bench")
    files = ["--json", folder / "numbers.json", "--plot", folder / "bars.png"]
    ended = run("--quick", "--backend", BACKEND, "--shape", "4,3,5,8", "--no-fit", *files)
    return ended, json.loads((folder / "numbers.json").read_text()), folder


@needs_keras
def test_a_quick_run_ends_well(quick):
    ended, _, _ = quick
    assert (ended.code, ended.err) == (0, "")


@needs_keras
def test_a_quick_run_shows_a_table(quick):
    ended, numbers, _ = quick
    assert numbers["machine"]["processor"] in ended.out
    assert ended.out.count("4x3x5x8") == 4
    assert f"{BACKEND} {numbers['backends'][BACKEND][BACKEND]}" in ended.out


@needs_keras
def test_json_has_every_case(quick):
    _, numbers, _ = quick
    cases = [(item["case"]["dtype"], item["case"]["training"]) for item in numbers["cases"]]
    assert sorted(cases) == [("bfloat16", False), ("bfloat16", True), ("float32", False), ("float32", True)]


@needs_keras
@pytest.mark.parametrize("at", range(4))
def test_every_role_has_a_time_and_no_fault(quick, at):
    results = quick[1]["cases"][at]["results"]
    assert {result["role"] for result in results} == {"ours", "keras", "native", "bytes"}
    assert all(0 < result["seconds"]["first"] <= result["seconds"]["median"] for result in results)
    assert [result["fault"] for result in results if result["fault"]] == []


@needs_keras
@pytest.mark.parametrize("at", range(4))
def test_every_ratio_is_there(quick, at):
    beside = quick[1]["cases"][at]["beside"]
    assert set(beside) == {"keras", "native", "bytes"}
    assert all(0 < ratio["first"] <= ratio["median"] <= ratio["third"] for ratio in beside.values())


@needs_keras
def test_memory_is_that_of_training_steps(quick):
    _, numbers, _ = quick
    assert all(item["case"]["training"] for item in numbers["memory"])
    assert {item["name"] for item in numbers["memory"]} >= {
        "evenkeel.BatchNormalization",
        "keras.layers.BatchNormalization",
    }


@needs_keras
def test_the_plot_is_a_png(quick):
    assert (quick[2] / "bars.png").read_bytes().startswith(b"\x89PNG")


@needs_keras
def test_nothing_else_is_left(quick):
    assert sorted(path.name for path in quick[2].iterdir()) == ["bars.png", "numbers.json"]


@needs_keras
@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")
def test_fit_agrees_and_is_timed(backend):
    (fit,) = bench._train(BACKEND, images=32, seconds=0.01)
    assert fit.fault == ""
    assert fit.rounds >= 5 and fit.beside.median > 0
    assert fit.without.median > 0 and fit.bound.median > 0


@pytest.mark.parametrize("option", ["--json", "--plot"])
def test_a_file_is_not_overwritten_unasked(tmp_path, option):
    path = tmp_path / "there"
    path.write_text("precious")
    ended = run("--quick", option, path)
    assert ended == (2, "", f"evenkeel: {path} is there already; give --overwrite or another name\n")
    assert path.read_text() == "precious"


def test_a_file_is_overwritten_when_asked(tmp_path):
    path = tmp_path / "there"
    path.write_text("old")
    check_free(path, overwrite=True)


def test_a_folder_that_is_not_there_is_told_before_anything_runs(tmp_path):
    with pytest.raises(InputError, match="nowhere is not a folder"):
        check_free(tmp_path / "nowhere" / "numbers.json", overwrite=False)


def test_an_unknown_backend_is_one_line():
    ended = run("--backend", "theano")
    assert ended == (2, "", "evenkeel: --backend theano is unknown; give tensorflow, jax or torch\n")


@pytest.mark.parametrize("text", ["", "7", "8,x", "0,4", "1,4", "1,1,4", "2,2,2,2,2,2", "-2,-3"])
def test_a_shape_that_cannot_be(text):
    with pytest.raises(ArgumentError, match=f"--shape {text} is not"):
        bench._shape(text)


def test_a_shape():
    assert bench._shape("32,56,56,64") == (32, 56, 56, 64)


def test_an_unknown_dtype():
    with pytest.raises(ArgumentError, match="--dtype int8 is unknown"):
        bench._dtype("int8")


def test_a_backend_that_is_missing_is_listed(monkeypatch):
    monkeypatch.setattr(bench, "_missing", lambda name: "jax" if name == "jax" else "")
    assert bench._backends(None) == {"tensorflow": "", "jax": "jax", "torch": ""}


def test_a_backend_that_is_missing_cannot_be_asked_for(monkeypatch):
    monkeypatch.setattr(bench, "_missing", lambda name: name)
    with pytest.raises(ImportError, match=r'jax is not installed; pip install "evenkeel\[jax\]"'):
        bench._backends(["jax"])


def a_case(role, fault):
    results = [
        bench.Result("ours", "evenkeel.BatchNormalization", Quartiles(1, 2, 3), fault if role == "ours" else ""),
        bench.Result("keras", "keras.layers.BatchNormalization", Quartiles(2, 4, 6), fault if role == "keras" else ""),
        bench.Result("bytes", "copy, 1 thread", Quartiles(1, 1, 1), ""),
    ]
    beside = {"keras": Quartiles(2, 2, 2), "native": None, "bytes": Quartiles(1, 2, 3)}
    return bench.Measured("jax", Case((2, 3), "float32", True), 5, results, beside)


def report_of(case):
    machine = dict.fromkeys(("processor", "cores", "system", "python", "numpy", "evenkeel"), "x")
    return bench.Report(machine, {"jax": {"jax": "1"}, "torch": "torch is not installed"}, [case], [], [], [])


@pytest.mark.parametrize("role", ["ours", "keras"])
def test_who_is_wrong_is_told(role, capsys):
    case = a_case(role, "dx is off by 0.1, and 1e-05 is allowed")
    bench._show(bench.Console(width=120), report_of(case))
    out = capsys.readouterr().out
    assert f"not {role}" in out and "torch: torch is not installed" in out and "native: not installed" in out
    assert "wrong: jax, 2x3, float32, training: " in out and "dx is off by 0.1, and 1e-05 is allowed" in out
    assert bench._ours_is_wrong(case) == (role == "ours")


def test_who_is_right_is_not(capsys):
    bench._show(bench.Console(width=120), report_of(a_case("ours", "")))
    out = capsys.readouterr().out
    assert " all " in out and "wrong" not in out


@pytest.mark.parametrize(("fault", "code"), [("dx is off by 1, and 0.1 is allowed", 1), ("", 0)])
def test_a_wrong_answer_of_ours_is_exit_code_1(fault, code, monkeypatch, tmp_path):
    monkeypatch.setattr(bench, "_backends", lambda asked: {"jax": ""})
    monkeypatch.setattr(bench, "_measure", lambda *arguments: report_of(a_case("ours", fault)))
    arguments = dict.fromkeys(("backend", "shape", "dtype", "seconds", "json_file", "plot"))
    try:
        bench.run(**arguments, quick=True, fit=False, overwrite=False)
        ended = 0
    except bench.typer.Exit as exit_:
        ended = exit_.exit_code
    assert ended == code


def dies(backend):
    yield 1
    print("no memory left", file=sys.stderr, flush=True)
    os._exit(9)


def lives(backend):
    yield 1


def test_a_process_that_dies_is_told_with_its_last_words():
    items = bench._in_a_process(dies, "jax")
    assert next(items) == 1
    with pytest.raises(
        bench._ProcessEndedError, match="dies ended with exit code 9, and the last words: no memory left"
    ):
        next(items)


def test_a_process_that_lives_just_ends():
    assert list(bench._in_a_process(lives, "jax")) == [1]


@pytest.mark.parametrize(
    ("value", "digits"), [(0.01234, "0.0123"), (0.9996, "1.000"), (1.0, "1.00"), (12.345, "12.3"), (12345.6, "12346")]
)
def test_three_digits(value, digits):
    assert bench._digits(value) == digits
