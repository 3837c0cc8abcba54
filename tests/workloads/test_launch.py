# SPDX-License-Identifier: Apache-2.0
"""How a training is started in several processes, and which of them is told to have failed."""

import contextlib
import gc
import json
import logging
import os
import signal
import time
import warnings

import pytest

from evenkeel.errors import ArgumentError
from evenkeel.workloads import launch
from evenkeel.workloads.training import ALONE, Place

from conftest import NAME

CLUSTER = {"chief": ["a:1"], "worker": ["b:1", "c:1"]}
UNREADABLE = {
    "no JSON": ("{", "Expecting property name"),
    "no object": ("[]", "'list' object has no attribute 'get'"),
    "a cluster that is a list": ('{"cluster": []}', "'list' object has no attribute 'get'"),
    "no workers": ('{"cluster": {"worker": null}}', "'NoneType' has no len"),
    "no task": (json.dumps({"cluster": CLUSTER}), "'task'"),
    "an evaluator": (json.dumps({"cluster": CLUSTER, "task": {"type": "evaluator", "index": 0}}), "'evaluator', 0"),
    "one too many": (json.dumps({"cluster": CLUSTER, "task": {"type": "worker", "index": 2}}), "'worker', 2"),
}


@pytest.mark.parametrize(("config", "said"), UNREADABLE.values(), ids=UNREADABLE)
def test_a_config_that_does_not_say_who_this_is(monkeypatch, config, said):
    monkeypatch.setenv("TF_CONFIG", config)
    with pytest.raises(ArgumentError, match="; give a JSON object with cluster, ") as raised:
        launch.launched("tensorflow")
    assert f"TF_CONFIG={config!r} does not say" in str(raised.value) and said in str(raised.value)


@pytest.mark.parametrize(
    ("config", "place"),
    [
        ("", ALONE),
        ('{"cluster": {"worker": ["a:1"]}}', ALONE),
        (json.dumps({"cluster": CLUSTER, "task": {"type": "chief", "index": 0}}), Place(0, 3)),
        (json.dumps({"cluster": CLUSTER, "task": {"type": "worker", "index": "1"}}), Place(2, 3)),
    ],
)
def test_a_config_that_says_who_this_is(monkeypatch, config, place):
    monkeypatch.setenv("TF_CONFIG", config)
    assert launch.place_of_tensorflow() == place
    assert launch.launched("tensorflow") == (place != ALONE)


@pytest.fixture
def launched(monkeypatch, tmp_path):
    """What becomes of a program in so many processes; `rank` and `folder`, where they may meet, are known to it."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def run(processes, program):
        head = f"import os, pathlib, signal, sys, time\nfolder = pathlib.Path({str(tmp_path)!r})\n"
        (tmp_path / "program.py").write_text(f"{head}rank = int(os.environ['JAX_PROCESS_ID'])\n{program}")
        return launch.launch("jax", processes, ["program"])

    return run


DEAF = """
if rank:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    (folder / f"deaf-{rank}").touch()
    time.sleep(60)
while len(list(folder.glob("deaf-*"))) < 3:
    time.sleep(0.01)
(folder / "ended").touch()
sys.exit(3)
"""


def test_all_have_the_same_time_to_end(monkeypatch, launched, tmp_path):
    monkeypatch.setattr(launch, "GRACE", 2.0)
    assert launched(4, DEAF)[:2] == (0, 3)
    assert 2.0 <= time.time() - (tmp_path / "ended").stat().st_mtime < 4.0


@pytest.mark.parametrize("consequence", ["os.abort()", f"os._exit({launch.LOST_ANOTHER})"])
def test_the_one_that_was_killed_is_named_and_not_the_one_that_noticed(launched, consequence):
    program = f"{consequence} if rank == 0 else (time.sleep(0.5), os.kill(os.getpid(), signal.SIGKILL))"
    assert launched(2, program) == launch.Failure(1, -signal.SIGKILL, "")


def test_one_that_aborts_by_itself_is_named(monkeypatch, launched):
    monkeypatch.setattr(launch, "GRACE", 0.5)
    assert launched(2, "os.abort() if rank == 1 else time.sleep(60)")[:2] == (1, -signal.SIGABRT)


def test_processes_share_the_cores_they_may_use(monkeypatch, launched):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(launch.timing, "cores", lambda: 6)
    assert launched(2, "sys.exit(os.environ['OMP_NUM_THREADS'])").said == "3\n"


@pytest.mark.skipif(NAME != "torch", reason="torch's launcher")
def test_the_launcher_of_torch_leaves_this_process_as_it_was(monkeypatch, tmp_path):
    (tmp_path / "program.py").write_text("")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    before = dict(os.environ), signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    logging.disable(logging.DEBUG)
    try:
        with warnings.catch_warnings(action="ignore", category=ResourceWarning):  # it leaves files open
            assert launch.launch("torch", 1, ["program"]) is None
            gc.collect()
        assert logging.root.manager.disable == logging.DEBUG
    finally:
        logging.disable(logging.NOTSET)
    assert (dict(os.environ), signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_ports_are_free_and_different():
    ports = launch.free_ports(3)
    with contextlib.ExitStack() as stack:
        for port in ports:
            stack.enter_context(launch.socket.create_server(("127.0.0.1", port)))
    assert len(set(ports)) == 3
