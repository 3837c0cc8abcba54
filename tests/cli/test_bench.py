# SPDX-License-Identifier: Apache-2.0
"""`evenkeel bench`, as a process: what it measures, writes and refuses."""

import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pytest

from evenkeel.cli import bench
from evenkeel.cli.bench import contest as contest_bench
from evenkeel.cli.bench import gpu as gpu_bench
from evenkeel.cli.bench import running, shown
from evenkeel.cli.bench import scaling as scaling_bench
from evenkeel.errors import ArgumentError, InputError
from evenkeel.files import check_free
from evenkeel.workloads import contenders, contest, gpu, processes, scaling
from evenkeel.workloads.contenders import Case
from evenkeel.workloads.processes import ProcessEndedError
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
    (fit,) = contest.train(BACKEND, images=32, seconds=0.01)
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
        contest.Result("ours", "evenkeel.BatchNormalization", Quartiles(1, 2, 3), fault if role == "ours" else ""),
        contest.Result(
            "keras", "keras.layers.BatchNormalization", Quartiles(2, 4, 6), fault if role == "keras" else ""
        ),
        contest.Result("bytes", "copy, 1 thread", Quartiles(1, 1, 1), ""),
    ]
    beside = {"keras": Quartiles(2, 2, 2), "native": None, "bytes": Quartiles(1, 2, 3)}
    return contest.Measured("jax", Case((2, 3), "float32", True), 5, results, beside)


def report_of(case):
    machine = dict.fromkeys(("processor", "cores", "system", "python", "numpy", "evenkeel"), "x")
    return contest_bench.Report(machine, {"jax": {"jax": "1"}, "torch": "torch is not installed"}, [case], [], [], [])


@pytest.mark.parametrize("role", ["ours", "keras"])
def test_who_is_wrong_is_told(role, capsys):
    case = a_case(role, "dx is off by 0.1, and 1e-05 is allowed")
    contest_bench.show(bench.Console(width=120), report_of(case))
    out = capsys.readouterr().out
    assert f"not {role}" in out and "torch: torch is not installed" in out and "native: not installed" in out
    assert "wrong: jax, 2x3, float32, training: " in out and "dx is off by 0.1, and 1e-05 is allowed" in out
    assert contest_bench.faulty(report_of(case)) == (role == "ours")


def test_who_is_right_is_not(capsys):
    contest_bench.show(bench.Console(width=120), report_of(a_case("ours", "")))
    out = capsys.readouterr().out
    assert " all " in out and "wrong" not in out


@pytest.mark.parametrize(("fault", "code"), [("dx is off by 1, and 0.1 is allowed", 1), ("", 0)])
def test_a_wrong_answer_of_ours_is_exit_code_1(fault, code, monkeypatch, tmp_path):
    monkeypatch.setattr(bench, "_backends", lambda asked: {"jax": ""})
    monkeypatch.setattr(contest_bench, "measure", lambda *arguments: report_of(a_case("ours", fault)))
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
    items = running.in_a_process(dies, "jax")
    assert next(items) == 1
    with pytest.raises(ProcessEndedError, match="dies ended with exit code 9, and the last words: no memory left"):
        next(items)


def test_a_process_that_lives_just_ends():
    assert list(running.in_a_process(lives, "jax")) == [1]


@pytest.mark.parametrize(
    ("value", "digits"), [(0.01234, "0.0123"), (0.9996, "1.000"), (1.0, "1.00"), (12.345, "12.3"), (12345.6, "12346")]
)
def test_three_digits(value, digits):
    assert shown.digits(value) == digits


# --processes


@pytest.fixture(scope="module")
def scaled(tmp_path_factory):
    """A quick run in one and in two processes; its ending, its JSON, its folder."""
    folder = tmp_path_factory.mktemp("scaled")
    files = ["--json", folder / "numbers.json", "--plot", folder / "lines.png"]
    ended = run("--processes", 2, "--quick", "--backend", BACKEND, "--shape", "4,3,5,8", "--dtype", "float32", *files)
    return ended, json.loads((folder / "numbers.json").read_text()), folder


@needs_keras
def test_processes_end_well_and_show_a_table(scaled):
    ended, numbers, _ = scaled
    assert (ended.code, ended.err) == (0, "")
    assert numbers["machine"]["processor"] in ended.out and ended.out.count("4x3x5x8") == 2


@needs_keras
def test_the_json_of_processes_has_every_field(scaled):
    _, numbers, _ = scaled
    assert set(numbers) == set(scaling_bench.Report._fields)
    assert (numbers["processes"], numbers["failures"]) == ([1, 2], [])
    assert set(numbers["backends"][BACKEND]) == {BACKEND, "keras"}
    assert [(item["backend"], item["processes"]) for item in numbers["cases"]] == [(BACKEND, 1), (BACKEND, 2)]
    assert all(set(item) == set(scaling.Scaled._fields) for item in numbers["cases"])


@needs_keras
@pytest.mark.parametrize("at", [0, 1])
def test_processes_have_times_and_no_fault(scaled, at):
    item = scaled[1]["cases"][at]
    spreads = [item[name] for name in ("synchronized", "local", "cost", "efficiency", "efficiency_local")]
    assert all(0 < spread["first"] <= spread["median"] <= spread["third"] for spread in spreads)
    assert (item["fault"], item["rounds"] >= 5) == ("", True)
    assert item["bound"] == min(1, scaled[1]["machine"]["cores"] / item["processes"])


@needs_keras
def test_one_process_is_as_efficient_as_itself(scaled):
    item = scaled[1]["cases"][0]
    assert item["efficiency"] == item["efficiency_local"] == {"first": 1.0, "median": 1.0, "third": 1.0}


@needs_keras
@pytest.mark.parametrize("at", [0, 1])
def test_what_is_seen_to_be_sent_is_what_the_formula_says(scaled, at):
    item = scaled[1]["cases"][at]
    assert item["sent"] == item["expected"]
    assert item["sent_local"] == {key: {"messages": 0, "size": 0} for key in ("forward", "backward")}


@needs_keras
def test_two_processes_send(scaled):
    sent = scaled[1]["cases"][1]["sent"]
    # 8 channels: in float64 two sums of each and two counts; JAX in float32, twice, and back what is not a count
    wanted = {"forward": (2, 4 * (9 + 18)), "backward": (1, 4 * 16)} if BACKEND == "jax" else None
    wanted = wanted or {"forward": (1, 8 * 18), "backward": (1, 8 * 18)}
    assert {name: (traffic["messages"], traffic["size"]) for name, traffic in sent.items()} == wanted


@needs_keras
def test_the_plot_of_processes_is_a_png(scaled):
    assert (scaled[2] / "lines.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in scaled[2].iterdir()) == ["lines.png", "numbers.json"]


@pytest.mark.parametrize("count", [-1, 0, 1, 100_000])
def test_so_many_processes_there_cannot_be(count):
    with pytest.raises(ArgumentError, match=f"--processes {count} is not from 2"):
        bench._check_processes(count)


def test_so_many_processes_there_can_be():
    bench._check_processes(2)


def test_a_bad_number_of_processes_is_one_line():
    ended = run("--processes", 1)
    assert (ended.code, ended.out, ended.err.count("\n")) == (2, "", 1)
    assert ended.err.startswith("evenkeel: --processes 1 is not from 2")


def a_scaled_case(**more):
    one, nothing = Quartiles(1.0, 1.0, 1.0), scaling.expected("torch", 3, 1)
    fields = dict.fromkeys(("synchronized", "local", "cost", "efficiency", "efficiency_local"), one)
    fields |= dict.fromkeys(("sent", "expected", "sent_local"), nothing) | {"fault": "", "bound": 1.0, "rounds": 5}
    return scaling.Scaled(backend="torch", case=Case((2, 3), "float32", True), processes=2, **fields | more)


def scaling_report_of(case):
    machine = dict.fromkeys(("processor", "system", "python", "numpy", "evenkeel"), "x") | {"cores": 2}
    return scaling_bench.Report(machine, {"torch": {"torch": "1"}}, [1, 2], [case], [])


@pytest.mark.parametrize(("fault", "code"), [("local, process 1: y is off by 1, and 0.1 is allowed", 1), ("", 0)])
def test_a_wrong_answer_in_processes_is_exit_code_1(fault, code, monkeypatch, capsys):
    monkeypatch.setattr(bench, "_backends", lambda asked: {"torch": ""})
    monkeypatch.setattr(scaling_bench, "measure", lambda *arguments: scaling_report_of(a_scaled_case(fault=fault)))
    try:
        bench.run(processes=2, quick=True)
        ended = 0
    except bench.typer.Exit as exit_:
        ended = exit_.exit_code
    assert (ended, f"wrong: torch, 2 processes, 2x3, float32: {fault}" in capsys.readouterr().out) == (code, bool(code))


@pytest.mark.parametrize(("count", "noted"), [(2, False), (4, True)])
def test_more_processes_than_cores_are_noted(count, noted, capsys):
    report = scaling_report_of(a_scaled_case()._replace(processes=count, bound=2 / count))
    scaling_bench.show(bench.Console(width=120), report)
    out = capsys.readouterr().out
    assert (" 2 cores " in out, " 50 % " in out) == (noted, noted)


def answers(case, world, spoiled=None):
    """Right answers of all processes; one value of the last is off by 0.5 in the arm `spoiled`."""
    whole = scaling._whole(case, world)
    data = contenders.Data.of(whole)

    def right(case, data):
        exact = {name: value for name, value, _ in contenders._expected(case, data, "population")}
        return contenders.Answer(**exact)

    joined, rows = right(whole, data), case.shape[0]
    result = []
    for rank in range(world):
        mine = slice(rank * rows, (rank + 1) * rows)
        part = joined._replace(
            y=joined.y[mine].copy(), dx=joined.dx[mine], dgamma=joined.dgamma / world, dbeta=joined.dbeta / world
        )
        result.append({"synchronized": part, "local": right(case, scaling._share(data, rank, rows))})
    if spoiled:
        result[-1][spoiled].y[0, 0] += 0.5
    return result


@pytest.mark.parametrize(
    ("spoiled", "fault"),
    [
        (None, ""),
        ("synchronized", "synchronized: y is off by 0.5"),
        ("local", "local, process 1: y is off by 0.5"),
    ],
)
def test_answers_are_checked(spoiled, fault):
    case = Case((6, 3), "float32", True)
    found = scaling._fault(case, answers(case, 2, spoiled))
    assert found.startswith(fault) and bool(found) == bool(fault)


def test_statistics_of_a_share_are_no_answer_for_all():
    case = Case((6, 3), "float32", True)
    local = [answer | {"synchronized": answer["local"]} for answer in answers(case, 2)]
    assert scaling._fault(case, local).startswith("synchronized: y is off by")


def echoes(*given):
    order = yield given
    while order != "die":
        order = yield order
    os._exit(7)


@pytest.fixture
def team():
    with processes.Process(echoes, 0, environment={}) as first, processes.Process(echoes, 1, environment={}) as second:
        yield [first, second]


def test_all_answer_in_their_order(team):
    assert processes.ask_all(team, None) == [(0,), (1,)]
    assert processes.ask_all(team, "go") == ["go", "go"]


def test_one_that_dies_ends_the_question(team):
    processes.ask_all(team, None)
    with pytest.raises(ProcessEndedError, match="echoes ended with exit code 7"):
        processes.ask_all(team, "die")


def test_silence_has_an_end(team, monkeypatch):
    monkeypatch.setattr(processes, "PATIENCE", 0.0)
    with pytest.raises(ProcessEndedError, match="2 of 2 processes gave no answer in 0 s"):
        processes.ask_all(team, None)


def test_silence_of_one_has_an_end():
    silence = pytest.raises(ProcessEndedError, match="echoes gave no answer in 0 s")
    with processes.Process(echoes, environment={}, patience=0.0) as process, silence:
        next(iter(process))


def falls_silent():
    for descriptor in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            if os.readlink(f"/proc/self/fd/{descriptor}").startswith("socket:"):
                os.close(int(descriptor))
    time.sleep(60)
    yield


def test_one_that_closes_its_pipe_and_lives_is_ended(monkeypatch):
    monkeypatch.setattr(processes, "GRACE", 0.1)
    end = pytest.raises(ProcessEndedError, match="falls_silent ended with exit code -9")
    with processes.Process(falls_silent, environment={}) as process, end:
        next(iter(process))


@pytest.mark.parametrize(
    ("arm", "fault"),
    [
        (None, ""),
        ("synchronized", "synchronized: Sent(forward=Traffic(messages=7, size=8), "),
        ("local", "local: Sent(forward=Traffic(messages=7, size=8), "),
    ],
)
def test_what_is_sent_is_checked(arm, fault):
    formula = scaling.expected("torch", 3, 2)
    sent = {"synchronized": formula, "local": scaling.NOTHING}
    if arm:
        sent[arm] = sent[arm]._replace(forward=scaling.Traffic(7, 8))
    found = scaling._fault_of_sent(sent, formula)
    assert found.startswith(fault) and bool(found) == bool(fault)


# --device cuda

only_torch = pytest.mark.skipif(BACKEND != "torch", reason="a GPU is measured with torch")
MEASURE = gpu.measure
GPU_CASES = [
    gpu.GpuCase((4, 3, 5, 6), "bfloat16", True, True),
    gpu.GpuCase((2, 5, 4, 4), "float32", False, False, compiled=False),
]


def on_cpu(cases, seconds):
    yield from MEASURE(cases, seconds, device="cpu")


def dies_after_one(cases, seconds):
    yield gpu.Gpu("a GPU", 1e9, {"torch": "1"})
    yield a_found()
    print("illegal memory access", file=sys.stderr, flush=True)
    os._exit(9)


def jax_elsewhere(cases, seconds):
    yield {"jax": "1", "device": "cpu"}


def jax_here(cases, seconds):
    yield {"jax": "1", "device": "gpu"}
    for _ in cases:
        yield gpu.Result("jax", "by XLA", Quartiles(4.0, 4.0, 4.0), False, None, None, "")


def a_found(fault=""):
    results = [
        gpu.Result("ours", "evenkeel.torch", Quartiles(1.0, 2.0, 3.0), True, 240, 480, fault),
        gpu.Result("eager", "torch.nn + ReLU", Quartiles(2.0, 4.0, 6.0), False, 480, 960, ""),
        gpu.Result("compiled", "torch.nn + ReLU, torch.compile", None, False, None, None, "RuntimeError: [no] kernel"),
    ]
    case = gpu.GpuCase((2, 3, 4, 5), "bfloat16", False, False)
    return gpu.Found(case, 5, results, {"eager": Quartiles(2.0, 2.0, 2.0)}, 0.79)


def gpu_report_of(*found):
    machine = dict.fromkeys(("processor", "cores", "system", "python", "numpy", "evenkeel"), "x")
    return gpu_bench.Report(
        machine,
        {"torch": {"torch": "1"}, "jax": "jax is not installed"},
        {"name": "G", "bandwidth": 4e12},
        [*found],
        [],
    )


def gpu_run(patch, measure, measure_jax=jax_elsewhere, **options):
    """The exit code, as if there were a GPU."""
    patch.setattr(gpu, "available", lambda: "")
    patch.setattr(gpu, "measure", measure)
    patch.setattr(gpu, "measure_jax", measure_jax)
    patch.setattr(gpu, "QUICK_CASES", GPU_CASES)
    try:
        bench.run(device="cuda", quick=True, **options)
    except bench.typer.Exit as exit_:
        return exit_.exit_code
    return 0


@pytest.fixture(scope="module")
def as_on_a_gpu(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gpu")
    with pytest.MonkeyPatch.context() as patch:
        code = gpu_run(patch, on_cpu, json_file=folder / "numbers.json", plot=folder / "bars.png")
    return code, json.loads((folder / "numbers.json").read_text()), folder


@only_torch
def test_a_gpu_run_ends_well_and_writes(as_on_a_gpu):
    code, numbers, folder = as_on_a_gpu
    assert (code, set(numbers)) == (0, set(gpu_bench.Report._fields))
    assert (numbers["gpu"]["name"], numbers["gpu"]["bandwidth"] > 0, numbers["failures"]) == ("cpu", True, [])
    assert {"torch", "triton", "keras", "cuda"} >= set(numbers["backends"]["torch"]) >= {"torch", "keras"}
    assert numbers["backends"]["jax"] == "jax 1 finds no GPU"
    assert (folder / "bars.png").read_bytes().startswith(b"\x89PNG")


@only_torch
@pytest.mark.parametrize(
    ("at", "roles"), [(0, {"ours", "eager", "compiled", "keras"}), (1, {"ours", "eager", "keras"})]
)
def test_all_contenders_are_right_and_timed(as_on_a_gpu, at, roles):
    item = as_on_a_gpu[1]["cases"][at]
    assert {result["role"] for result in item["results"]} == roles == {"ours", *item["beside"]}
    assert [result["fault"] for result in item["results"] if result["fault"]] == []
    assert all(0 < result["seconds"]["first"] <= result["seconds"]["median"] for result in item["results"])
    assert all(result["kept"] > 0 for result in item["results"])


@pytest.mark.skipif(BACKEND == "numpy", reason="one kind of process is enough there")
def test_a_gpu_that_gives_up_loses_no_case(monkeypatch, capsys):
    assert gpu_run(monkeypatch, dies_after_one, jax_here) == 1
    out = capsys.readouterr().out
    assert "torch: dies_after_one ended with exit code 9, and the last words: illegal memory access" in out
    assert "2x3x4x5 bfloat16 first" in out and "jax: jax 1, device gpu" in out


def test_after_ctrl_c_the_rest_is_told(monkeypatch, capsys):
    def stopped(report, cases, seconds):
        report.gpu.update(name="G", bandwidth=1e9)
        report.cases.append(a_found())
        yield
        raise KeyboardInterrupt

    monkeypatch.setattr(gpu_bench, "_add_torch", stopped)
    assert gpu_run(monkeypatch, on_cpu) == 1
    out = capsys.readouterr().out
    assert "torch: stopped" in out and "2x3x4x5 bfloat16 first" in out


def test_the_table_of_a_gpu(capsys):
    joined = a_found().joined_by(gpu.Result("jax", "by XLA", Quartiles(3.0, 5.0, 6.0), False, None, None, ""))
    gpu_bench.show(bench.Console(width=120), gpu_report_of(joined))
    out = capsys.readouterr().out
    (row,) = (line for line in out.splitlines() if "2x3x4x5" in line and line.startswith("│"))
    cells = [cell.strip() for cell in row.strip("│").split("│")]
    assert cells == [
        *("2x3x4x5 bfloat16 first", "2000", "3160", "79"),
        *("2.00*", "-", "-", "2.50", "1.0, 2.0", "2.0, 4.0", "not compiled"),
    ]
    assert "wrong: 2x3x4x5 bfloat16 first: torch.nn + ReLU, torch.compile: RuntimeError: [no] kernel" in out
    assert "G, copies at 4000 GB/s" in out and "jax: jax is not installed" in out


def test_one_fault_of_two_cases_is_one_line(capsys):
    gpu_bench.show(bench.Console(width=120), gpu_report_of(a_found(), a_found()))
    wrong = [line for line in capsys.readouterr().out.splitlines() if line.startswith("wrong:")]
    assert len(wrong) == 1 and wrong[0].count("2x3x4x5") == 2


@pytest.mark.parametrize(("fault", "code"), [("y is off by 1", 1), ("", 0)])
def test_a_wrong_answer_on_a_gpu_is_exit_code_1(fault, code, monkeypatch):
    monkeypatch.setattr(gpu_bench, "measure", lambda *arguments: gpu_report_of(a_found(fault)))
    assert gpu_run(monkeypatch, on_cpu) == code


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"device": "tpu"}, "--device tpu is unknown; give cpu or cuda"),
        ({"device": "cuda", "backend": ["torch"]}, "leave out --backend"),
        ({"device": "cuda", "processes": 2}, "leave out --processes"),
        ({"device": "cuda"}, "--device cuda cannot be had here: no such thing; "),
        ({"device": "cuda", "json_file": Path("nowhere/it.json")}, "cannot be had here: no such thing; "),
    ],
)
def test_a_device_that_cannot_be(options, text, monkeypatch):
    monkeypatch.setattr(gpu, "available", lambda: "no such thing")
    with pytest.raises(ArgumentError, match=text):
        bench.run(**options)


@pytest.mark.parametrize("text", ["8,4", "1,4,1,1", "2,3,4,5,6", "x"])
def test_a_shape_that_no_gpu_case_has(text):
    with pytest.raises(ArgumentError, match=f"--shape {text} is not"):
        bench._gpu_cases([text], None, False)


def test_a_dtype_that_no_gpu_case_has():
    with pytest.raises(ArgumentError, match="--dtype float64 is unknown; give float32, bfloat16, float16"):
        bench._gpu_cases(None, ["float64"], False)


@pytest.mark.parametrize(
    ("shapes", "dtypes", "quick", "cases"),
    [
        (None, None, True, gpu.QUICK_CASES),
        (None, None, False, gpu.CASES),
        (
            ["2,3,1,1"],
            ["float16"],
            False,
            [gpu.GpuCase((2, 3, 1, 1), "float16", True, added) for added in (False, True)],
        ),
        (
            None,
            ["float16"],
            True,
            [case._replace(dtype="float16") for case in gpu.QUICK_CASES],
        ),
    ],
)
def test_cases_are_those_asked_for(shapes, dtypes, quick, cases):
    assert bench._gpu_cases(shapes, dtypes, quick) == cases
