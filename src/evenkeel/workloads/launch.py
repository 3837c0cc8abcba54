# SPDX-License-Identifier: Apache-2.0
"""How a training is started in several processes of this machine, and what becomes of all when one fails."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

from evenkeel.errors import ArgumentError
from evenkeel.workloads import timing
from evenkeel.workloads.training import ALONE, Place

__all__ = ["LOST_ANOTHER", "Failure", "follow_launcher", "free_ports", "launch", "launched", "place_of_tensorflow"]

LOST_ANOTHER = 75
"""Exit code of a process that has lost another one: EX_TEMPFAIL of sysexits.h, "try again"."""

LOOK, GRACE = 0.1, 5.0
"""Seconds from look to look at the processes, and between asking them to end and ending them."""

CONSEQUENCES = (-signal.SIGABRT, LOST_ANOTHER, -signal.SIGTERM)
"""How one ends because another has: JAX aborts, ours give up, torch's launcher ends it. The first tells the most."""

LAUNCHER = "EVENKEEL_LAUNCHER"
COUNTS_OF_JAX = ("JAX_NUM_PROCESSES", "OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS")


class Failure(NamedTuple):
    """The process that failed first.

    code: its exit code; minus the number of the signal that ended it.
    said: what it wrote to stderr.
    """

    rank: int
    code: int
    said: str

    def __str__(self) -> str:
        """
        Example:
            >>> print(Failure(rank=1, code=-9, said=""))
            the process of rank 1 was ended by SIGKILL
        """
        if self.code < 0:
            return f"the process of rank {self.rank} was ended by {signal.Signals(-self.code).name}"
        lines = self.said.strip().splitlines()
        return f"the process of rank {self.rank} ended with exit code {self.code}" + (
            f" ({lines[-1]})" if lines else ""
        )


# Both sides of the variables by which a launcher tells a process of the others.


def launched(backend: str) -> bool:
    """Whether whatever started this process says that it is one of several.

    Raises:
        ArgumentError: a variable that says so cannot be read.
    """
    if backend == "tensorflow":
        return place_of_tensorflow().processes > 1
    names = COUNTS_OF_JAX if backend == "jax" else ("WORLD_SIZE",)
    try:
        return any(int(os.environ.get(name, 1)) > 1 for name in names)
    except ValueError as error:
        raise ArgumentError(f"one of {', '.join(names)} in the environment is no number ({error}); unset it") from error


def place_of_tensorflow() -> Place:
    """Which of those that TF_CONFIG names to train this process is.

    Raises:
        ArgumentError: TF_CONFIG names several, and not as TensorFlow wants it, or this process is none of them.
    """
    config = os.environ.get("TF_CONFIG") or "{}"
    try:
        told = json.loads(config)
        cluster = told.get("cluster", {})
        tasks = [(kind, index) for kind in ("chief", "worker") for index in range(len(cluster.get(kind, [])))]
        if len(tasks) < 2:
            return ALONE
        return Place(tasks.index((told["task"]["type"], int(told["task"]["index"]))), len(tasks))
    except (ValueError, AttributeError, TypeError, KeyError) as error:
        raise ArgumentError(
            f"TF_CONFIG={config!r} does not say which process this is ({error}); give a JSON object with cluster, the "
            "addresses of chief and worker, and task, the type and index of one of these"
        ) from error


def _environments(backend: str, processes: int) -> list[dict[str, str]]:
    """What each process is told, by rank; torch's launcher tells its own."""
    if backend == "jax":
        (port,) = free_ports(1)
        shared = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}", "JAX_NUM_PROCESSES": str(processes)}
        return [shared | {"JAX_PROCESS_ID": str(rank)} for rank in range(processes)]
    cluster = {"worker": [f"127.0.0.1:{port}" for port in free_ports(processes)]}
    task = [{"type": "worker", "index": rank} for rank in range(processes)]
    return [{"TF_CONFIG": json.dumps({"cluster": cluster, "task": mine})} for mine in task]


def free_ports(count: int) -> list[int]:
    """So many ports of this machine where nobody listens."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def follow_launcher() -> None:
    """End this process soon after the one that launched it, should that be killed."""
    launcher = os.environ.get(LAUNCHER)

    def watch() -> None:
        while str(os.getppid()) == launcher:
            time.sleep(1)
        os._exit(LOST_ANOTHER)

    if launcher:
        threading.Thread(target=watch, daemon=True).start()


# Starting and watching.


def launch(backend: str, processes: int, arguments: list[str]) -> Failure | None:
    """Run `python -m ARGUMENTS` in so many processes until all have ended.

    As soon as one fails, the others are ended; none is left when this returns. What is written to stdout goes where
    that of this process goes, and what is written to stderr nowhere, unless it is of the failure.

    Returns:
        The failure, or None where all went well.

    Raises:
        KeyboardInterrupt: after Ctrl-C.
    """
    threads = str(max(1, timing.cores() // processes))
    environment = {"OMP_NUM_THREADS": threads, **os.environ, LAUNCHER: str(os.getpid())}
    with tempfile.TemporaryDirectory() as folder, _ended_by_sigterm():
        if backend == "torch":
            return _by_torch(processes, arguments, environment, Path(folder))
        return _by_hand(backend, processes, arguments, environment, Path(folder))


def _by_hand(
    backend: str, processes: int, arguments: list[str], environment: dict[str, str], folder: Path
) -> Failure | None:
    running: dict[int, subprocess.Popen[bytes]] = {}
    first: Failure | None = None
    try:
        for rank, told in enumerate(_environments(backend, processes)):
            with (folder / str(rank)).open("wb") as stderr:
                running[rank] = subprocess.Popen(
                    [sys.executable, "-m", *arguments],
                    env=environment | told,
                    stderr=stderr,
                    start_new_session=True,  # Ctrl-C is for this process alone, which ends them
                )
        until = float("inf")
        while running and time.monotonic() < until:
            for rank in [rank for rank, process in running.items() if process.poll() is not None]:
                code = running.pop(rank).returncode
                # One that has lost another may be seen before the one that it has lost.
                if code and (first is None or _consequence(code) < _consequence(first.code)):
                    until = min(until, time.monotonic() + GRACE) if _consequence(code) else 0
                    first = Failure(rank, code, (folder / str(rank)).read_text(errors="replace"))
            time.sleep(LOOK)
    finally:
        for process in running.values():
            process.terminate()
        until = time.monotonic() + GRACE
        for process in running.values():
            try:
                process.wait(max(0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
    return first


def _consequence(code: int) -> int:
    """0 for an end of its own, more the less it tells.

    Example:
        >>> [_consequence(code) for code in (1, -signal.SIGKILL, -signal.SIGABRT, LOST_ANOTHER, -signal.SIGTERM)]
        [0, 0, 1, 2, 3]
    """
    return CONSEQUENCES.index(code) + 1 if code in CONSEQUENCES else 0


def _by_torch(processes: int, arguments: list[str], environment: dict[str, str], folder: Path) -> Failure | None:
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    options = ["--standalone", "--nproc-per-node", str(processes), "--redirects", "2", "--log-dir", str(folder)]
    try:
        with _left_as_found():
            logging.disable(logging.CRITICAL)  # it tells of what is told here in one line
            os.environ |= environment  # which is what its processes get
            run.run(run.parse_args([*options, "-m", *arguments]))
    except ChildFailedError as error:
        codes = {rank: failure.exitcode for rank, failure in error.failures.items()}
        # The launcher has ended the others, by SIGTERM, before it says what it found.
        rank = min(codes, key=lambda rank: (_consequence(codes[rank]), rank))
        said = "".join(path.read_text(errors="replace") for path in folder.glob(f"*/attempt_0/{rank}/stderr.log"))
        return Failure(rank, codes[rank], said)
    except SignalException as error:
        if error.sigval == signal.SIGINT:
            raise KeyboardInterrupt from None
        raise SystemExit(128 + error.sigval) from None
    return None


@contextlib.contextmanager
def _left_as_found() -> Iterator[None]:
    """Take back what torch's launcher sets for all of this process: the environment, handlers of signals, logging."""
    environment, logged_from = dict(os.environ), logging.root.manager.disable
    main = threading.current_thread() is threading.main_thread()
    handled = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT) if main else ()
    handlers = {number: signal.getsignal(number) for number in handled}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        logging.disable(logged_from)
        os.environ.clear()
        os.environ.update(environment)


@contextlib.contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Let SIGTERM raise, so that whoever started processes can end them."""

    def end(number: int, frame: FrameType | None) -> Any:
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
