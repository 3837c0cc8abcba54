# SPDX-License-Identifier: Apache-2.0
"""`evenkeel train` in several processes: the numbers of one, and what is left when a process is killed."""

import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from evenkeel.cli import application, train
from evenkeel.errors import InputError, SynchronizationError, UnequalError
from evenkeel.workloads.launch import LOST_ANOTHER
from evenkeel.workloads.training import Place

from conftest import NAME
from ports import free_ports

if NAME == "numpy":
    pytest.skip("Keras trains on TensorFlow, JAX and PyTorch", allow_module_level=True)

SOURCE = Path(__file__).parents[2] / "src"
EPOCHS, BATCH, RATE = 30, 240, 0.02
KILLED = 1
BOUND = 60
"""Seconds in which all must have ended after one was killed."""
# From the same weights and batches: what is left is rounding, which steps amplify.
SAME = 1e-4
# JAX ends a process by itself where its coordinator is gone: one that was not the first to notice.
ENDS_OF_SURVIVORS = {LOST_ANOTHER, -signal.SIGABRT} if NAME == "jax" else {LOST_ANOTHER}


def started(*arguments, **variables):
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), "KERAS_BACKEND": "tensorflow", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "evenkeel", "train", "--backend", NAME, *map(str, arguments)],
        env=environment | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def told(rank, processes, port):
    """What a launcher puts into the environment of a process."""
    if NAME == "torch":
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(processes)}
        return shared | {"RANK": str(rank)}
    if NAME == "jax":
        shared = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}", "JAX_NUM_PROCESSES": str(processes)}
        return shared | {"JAX_PROCESS_ID": str(rank)}
    workers = [f"127.0.0.1:{port + place}" for place in range(processes)]
    return {
        "TF_CONFIG": json.dumps({"cluster": {"worker": workers}, "task": {"type": "worker", "index": rank}}),
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }


class Ended(NamedTuple):
    """seconds: from when one of the processes was killed."""

    code: int
    out: str
    err: str
    seconds: float


def history(folder):
    return json.loads((folder / train.HISTORY).read_text())


def wait_for_epochs(count, processes, folder):
    until = time.monotonic() + 400
    while time.monotonic() < until and all(process.poll() is None for process in processes):
        with contextlib.suppress(FileNotFoundError):
            if len(history(folder)["epochs"]) >= count:
                return
        time.sleep(0.01)
    said = [process.communicate(timeout=20) for process in processes if process.poll() is not None]
    raise AssertionError(f"no epoch {count}: {said}")


def of_all(processes, since, within=BOUND):
    """What each process said, and how it ended."""
    ends = []
    for process in processes:
        out, err = process.communicate(timeout=within)
        ends.append(Ended(process.returncode, out, err, time.monotonic() - since))
    return ends


def workers_of(process):
    """Rank -> process id of what the command has started."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(child) for child in children if b"train" in Path(f"/proc/{child}/cmdline").read_bytes()]


def alive(process_id):
    with contextlib.suppress(FileNotFoundError):
        return Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


class Run(NamedTuple):
    """A training that lost one of two processes started by hand, then one of the command's two, and was then finished
    by one: this process.
    """

    folder: Path
    survivors: list[Ended]
    by_hand: dict
    files_by_hand: list[str]
    command: Ended
    left: list[int]
    by_command: dict
    last: dict


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes") / "run"
    arguments = ["--epochs", EPOCHS, "--batch-size", BATCH, "--learning-rate", RATE, "--out", folder]
    with contextlib.ExitStack() as stack:

        def watched(process):
            stack.enter_context(process)
            stack.callback(process.kill)
            return process

        port = free_ports(2)
        two = [watched(started(*arguments, **told(rank, 2, port))) for rank in range(2)]
        wait_for_epochs(2, two, folder)
        two[KILLED].kill()
        survivors = of_all(two, time.monotonic())
        by_hand, files = history(folder), sorted(path.name for path in folder.iterdir())

        launcher = watched(started(*arguments, "--resume", "--processes", 2))
        wait_for_epochs(len(by_hand["epochs"]) + 2, [launcher], folder)
        workers = workers_of(launcher)
        os.kill(workers[1], signal.SIGKILL)
        (command,) = of_all([launcher], time.monotonic())
        left = [worker for worker in workers if alive(worker)]
        by_command = history(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "_compare", lambda *_: None)  # by a fresh process: test_train.py has seen it
        train.run(backend=NAME, epochs=EPOCHS, batch_size=BATCH, learning_rate=RATE, out=folder, resume=True)
    return Run(folder, survivors, by_hand, files, command, left, by_command, history(folder))


def test_survivors_end_by_themselves_in_our_words(run):
    for rank, survivor in enumerate(run.survivors):
        if rank == KILLED:
            assert survivor.code == -signal.SIGKILL
        else:
            assert survivor.code in ENDS_OF_SURVIVORS, (rank, survivor)
            if survivor.code == LOST_ANOTHER:
                (said,) = [line for line in survivor.err.splitlines() if line.startswith("evenkeel: ")]
                assert said.startswith(
                    "evenkeel: another process was lost, and this one ends too; the same command with --resume"
                )


def test_survivors_end_within_the_bound(run):
    assert max(survivor.seconds for survivor in run.survivors) < BOUND


@pytest.mark.parametrize("rank", range(2))
def test_only_the_first_speaks(run, rank):
    assert bool(run.survivors[rank].out) == (rank == 0)


def test_the_folder_is_whole_after_a_process_was_killed(run):
    assert run.files_by_hand == sorted([train.HISTORY, run.by_hand["checkpoint"]])
    assert run.by_hand["checkpoint"] == f"checkpoint-{len(run.by_hand['epochs'])}.keras"


def test_the_command_says_which_process_was_killed(run):
    done = len(run.by_command["epochs"])
    assert run.command.err == (
        f"evenkeel: the process of rank 1 was ended by SIGKILL, and the others with it; {run.folder} has {done} of "
        f"{EPOCHS} epochs; the same command with --resume goes on\n"
    )
    assert run.command.code == LOST_ANOTHER


def test_the_command_ends_within_the_bound_and_leaves_nothing_running(run):
    assert run.command.seconds < BOUND
    assert run.left == []


def test_the_command_goes_on_where_others_have_ended(run):
    lines = run.command.out.splitlines()
    assert lines[0] == train.HEADER
    assert lines[1:] == [train._line(train.Row(**row)) for row in run.by_command["epochs"]][: len(lines) - 1]
    assert len(run.by_command["epochs"]) >= len(run.by_hand["epochs"]) + 2


def losses(rows):
    return np.array([[row["train_loss"], row["test_loss"]] for row in rows])


@pytest.fixture(scope="module")
def alone():
    """The rows of one process that was never killed."""
    settings = train.Settings("mlp", "digits", NAME, BATCH, RATE, 0.9, False, None, 0)
    return rows_of(settings, EPOCHS)


def rows_of(settings, epochs):
    dataset = train._dataset(None, 0)
    network = train._new(settings, dataset.train_images)
    numbers = range(1, epochs + 1)
    return [row._asdict() for row in train._epochs(numbers, network, dataset, settings, after_step=lambda: None)]


def test_processes_that_were_killed_learn_what_one_learns(run, alone):
    assert run.last["epochs"][: len(run.by_command["epochs"])] == run.by_command["epochs"]
    np.testing.assert_allclose(losses(run.last["epochs"]), losses(alone), rtol=SAME, atol=0)


def test_statistics_of_shares_would_have_been_noticed(alone):
    settings = train.Settings("mlp", "digits", NAME, BATCH, RATE, 0.9, False, BATCH // 2, 0)
    assert np.abs(losses(rows_of(settings, 5)) / losses(alone[:5]) - 1).max() > 10 * SAME


REFUSED = {
    "virtual batches": (
        ["--processes", "2", "--virtual-batch-size", "8"],
        {},
        "--virtual-batch-size 8 splits the batch",
    ),
    "several of several": (["--processes", "2"], told(0, 2, 1), "--processes 2 was given to one of several processes"),
    "an old API": (["--processes", "2", "--api", "helper"], {}, "--processes 2 needs --api evenkeel"),
    "no data": (["--processes", "2", "--data", "/nowhere"], {}, "/nowhere is not a folder"),
}


@pytest.mark.parametrize(("arguments", "variables", "said"), REFUSED.values(), ids=REFUSED)
def test_refused_before_any_process_is_started(monkeypatch, capsys, tmp_path, arguments, variables, said):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(train, "launch", lambda *_: pytest.fail("was started"))
    result = CliRunner().invoke(application(), ["train", "--backend", NAME, "--out", str(tmp_path), *arguments])
    assert result.exit_code == 2
    assert result.stderr.startswith("evenkeel: ") and said in result.stderr


@pytest.fixture
def parallel(monkeypatch):
    """What several processes use, in this one, which believes to be the first of two."""
    for name, value in told(0, 2, 1).items():
        monkeypatch.setenv(name, value)
    module = importlib.import_module(f"evenkeel.workloads.parallel.{NAME}")
    monkeypatch.setattr(module, "join", lambda: Place(0, 2))
    return module


@pytest.fixture
def ends(monkeypatch):
    """Into this list goes how the process would have ended, with code and words."""
    result = []
    monkeypatch.setattr(train, "_end_at_once", lambda code, why="": result.append((code, why)))
    monkeypatch.setattr(train.atexit, "register", lambda function, *arguments: function(*arguments))
    return result


SETTINGS = train.Settings("mlp", "digits", NAME, BATCH, RATE, 0.9, False, None, 0)


def error_of(kind):
    """What the backend raises where another process is gone, and where memory is."""
    if NAME == "torch":
        import torch

        return {"gone": SynchronizationError("it is gone"), "memory": torch.OutOfMemoryError("no memory")}[kind]
    if NAME == "jax":
        import jax

        words = {"gone": "UNAVAILABLE: it is gone", "memory": "RESOURCE_EXHAUSTED: no memory"}
        return jax.errors.JaxRuntimeError(words[kind])
    import tensorflow as tf

    kinds = {"gone": tf.errors.UnavailableError, "memory": tf.errors.ResourceExhaustedError}
    return kinds[kind](None, None, f"it is {kind}")


ENDS = {
    "a check that did not hold": (lambda: typer.Exit(1), 1),
    "a result that is not equal": (lambda: UnequalError("not equal"), 1),
    "bad input": (lambda: InputError("bad"), 2),
    "a fault of ours": (lambda: RuntimeError("ours"), 1),
    "no memory": (lambda: error_of("memory"), 1),
    "Ctrl-C": (KeyboardInterrupt, 130),
    "another lost": (lambda: error_of("gone"), LOST_ANOTHER),
}


@pytest.mark.usefixtures("parallel")
@pytest.mark.parametrize(("error", "code"), ENDS.values(), ids=ENDS)
def test_only_a_lost_process_is_told_as_one(ends, error, code):
    error = error()
    with pytest.raises(type(error)), train._joined(SETTINGS):
        raise error
    assert ends[0][0] == code
    assert ("another process was lost" in ends[0][1]) == (code == LOST_ANOTHER)


def test_waiting_for_others_has_an_end(monkeypatch, parallel):
    ended = threading.Event()
    ends = []
    monkeypatch.setattr(train, "JOINING", 1)
    monkeypatch.setattr(train, "_end_at_once", lambda code, why: (ends.append((code, why)), ended.set()))
    monkeypatch.setattr(parallel, "join", lambda: ended.wait(60))
    with train._joined(SETTINGS) as came:
        assert came
    assert ends == [(LOST_ANOTHER, train.NOBODY_CAME.format(seconds=1))]


def test_no_end_where_all_came(monkeypatch, parallel, ends):
    monkeypatch.setattr(train, "JOINING", 0.1)
    with train._joined(SETTINGS):
        time.sleep(0.5)
    assert ends == []


@pytest.mark.parametrize("given", [[3, 2], [4, 1]])
def test_different_runs_are_noticed(monkeypatch, parallel, tmp_path, given):
    values = []
    monkeypatch.setattr(parallel, "gathered", lambda value: values.append(value) or values)
    train._meet(Place(0, 2), SETTINGS, tmp_path, 3, 1)
    with pytest.raises(InputError, match=f"different runs; .* where {tmp_path} is the same folder"):
        train._meet(Place(1, 2), SETTINGS, tmp_path, *given)


def test_the_same_run_is_none_of_them(monkeypatch, parallel, tmp_path):
    values = []
    monkeypatch.setattr(parallel, "gathered", lambda value: values.append(value) or values)
    for rank in range(2):
        train._meet(Place(rank, 2), SETTINGS, tmp_path, 3, 1)
    assert len(values) == 2


only_torch = pytest.mark.skipif(NAME != "torch", reason="one backend is enough")


@pytest.fixture
def one_of_one():
    import torch

    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{free_ports(2)}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@only_torch
@pytest.mark.usefixtures("one_of_one")
def test_nothing_is_removed_before_all_have_read_it(monkeypatch, parallel, tmp_path):
    dataset = train._dataset(None, 0)
    network = train._new(SETTINGS, dataset.train_images)
    row = train.Row(1, *network.evaluate(dataset.train_images, dataset.train_labels, training=True), 0.5, 0.5)
    checkpoint = tmp_path / "checkpoint-1.keras"
    train._save(tmp_path, network, train.Saved(SETTINGS, checkpoint.name, [row]))
    seen = []
    restore, gathered = parallel.Network.restore, parallel.gathered
    monkeypatch.setattr(parallel.Network, "restore", lambda *given: seen.append("read") or restore(*given))
    monkeypatch.setattr(parallel, "gathered", lambda value: seen.append(checkpoint.exists()) or gathered(value))
    monkeypatch.setattr(train, "_compare", lambda *_: None)
    train.run(backend=NAME, epochs=1, batch_size=BATCH, learning_rate=RATE, out=tmp_path, resume=True)
    assert seen == [True, "read", True]
    assert not checkpoint.exists()


@only_torch
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_the_command_takes_its_processes_along(tmp_path, number):
    arguments = ["--epochs", 1000, "--batch-size", BATCH, "--learning-rate", RATE, "--out", tmp_path]
    workers = []
    with started(*arguments, "--processes", 2) as command:
        try:
            wait_for_epochs(1, [command], tmp_path)
            workers = workers_of(command)
            assert len(workers) == 2
            command.send_signal(number)
            until = time.monotonic() + 20
            while any(map(alive, workers)) and time.monotonic() < until:
                time.sleep(0.1)
            assert [worker for worker in workers if alive(worker)] == []
            code = command.wait(timeout=20)
        finally:
            command.kill()
            for worker in filter(alive, workers):
                os.kill(worker, signal.SIGKILL)
    assert code == (128 + signal.SIGTERM if number == signal.SIGTERM else -signal.SIGKILL)
