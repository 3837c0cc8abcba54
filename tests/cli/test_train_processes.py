# SPDX-License-Identifier: Apache-2.0
"""`evenkeel train` in several processes: the numbers of one, and what is left when a process is killed."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from typer.testing import CliRunner

from evenkeel.cli import application, train
from evenkeel.workloads.launch import LOST_ANOTHER

from conftest import NAME
from ports import free_ports

if NAME == "numpy":
    pytest.skip("Keras trains on TensorFlow, JAX and PyTorch", allow_module_level=True)

SOURCE = Path(__file__).parents[2] / "src"
EPOCHS, BATCH, RATE = 30, 240, 0.02
KILLED = 2
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
    """A training that lost a process of four started by hand, then one of two, and was then finished by one."""

    folder: Path
    survivors: list[Ended]
    after_four: dict
    files_after_four: list[str]
    command: Ended
    left: list[int]
    after_two: dict
    last: Ended


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes") / "run"
    arguments = ["--epochs", EPOCHS, "--batch-size", BATCH, "--learning-rate", RATE, "--out", folder]
    with contextlib.ExitStack() as stack:

        def watched(process):
            stack.enter_context(process)
            stack.callback(process.kill)
            return process

        port = free_ports(4)
        four = [watched(started(*arguments, **told(rank, 4, port))) for rank in range(4)]
        wait_for_epochs(2, four, folder)
        four[KILLED].kill()
        survivors = of_all(four, time.monotonic())
        after_four, files = history(folder), sorted(path.name for path in folder.iterdir())

        two = watched(started(*arguments, "--resume", "--processes", 2))
        wait_for_epochs(len(after_four["epochs"]) + 2, [two], folder)
        workers = workers_of(two)
        os.kill(workers[1], signal.SIGKILL)
        (command,) = of_all([two], time.monotonic())
        left = [worker for worker in workers if alive(worker)]
        after_two = history(folder)

        (last,) = of_all([watched(started(*arguments, "--resume"))], time.monotonic(), within=400)
    return Run(folder, survivors, after_four, files, command, left, after_two, last)


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


@pytest.mark.parametrize("rank", range(4))
def test_only_the_first_speaks(run, rank):
    assert bool(run.survivors[rank].out) == (rank == 0)


def test_the_folder_is_whole_after_a_process_was_killed(run):
    assert run.files_after_four == sorted([train.HISTORY, run.after_four["checkpoint"]])
    assert run.after_four["checkpoint"] == f"checkpoint-{len(run.after_four['epochs'])}.keras"


def test_the_command_says_which_process_was_killed(run):
    done = len(run.after_two["epochs"])
    assert run.command.err == (
        f"evenkeel: the process of rank 1 was ended by SIGKILL, and the others with it; {run.folder} has {done} of "
        f"{EPOCHS} epochs; the same command with --resume goes on\n"
    )
    assert run.command.code == LOST_ANOTHER


def test_the_command_ends_within_the_bound_and_leaves_nothing_running(run):
    assert run.command.seconds < BOUND
    assert run.left == []


def test_the_command_goes_on_where_four_have_ended(run):
    lines = run.command.out.splitlines()
    assert lines[0] == train.HEADER
    assert lines[1:] == [train._line(train.Row(**row)) for row in run.after_two["epochs"]][: len(lines) - 1]
    assert len(run.after_two["epochs"]) >= len(run.after_four["epochs"]) + 2


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
    assert run.last.code == 0, run.last.err
    assert history(run.folder)["epochs"][: len(run.after_two["epochs"])] == run.after_two["epochs"]
    np.testing.assert_allclose(losses(history(run.folder)["epochs"]), losses(alone), rtol=SAME, atol=0)


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
