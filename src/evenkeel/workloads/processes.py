# SPDX-License-Identifier: Apache-2.0
"""How work is done in fresh processes, and how they are asked for it."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import tempfile
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

from evenkeel.errors import EvenkeelError

__all__ = ["PATIENCE", "Process", "ProcessEndedError", "ask_all"]

PATIENCE = 300.0
"""Seconds that one answer may take: importing a framework on a busy machine takes a minute."""

GRACE = 5.0
"""Seconds that a process may still live after it has closed its pipe."""


class ProcessEndedError(EvenkeelError, RuntimeError):
    """A process ended before it was done, or gives no answer."""


class Process:
    """A fresh process that runs a generator, `work(*arguments)`, one item each time it is asked.

    What the parent sends with `ask` is what `yield` returns there; the first question only starts the generator.
    Leaving the `with` block ends the process wherever it is.

    Args:
        work: a generator function at the top of a module.
        arguments: anything that can be pickled.
        environment: what is set before the generator starts.
        core: of those this process may use, the one that the new one is to have; by default it may use all.
        patience: seconds that one answer may take.

    Raises:
        ProcessEndedError: from `answer`, with the last line that the process wrote, or after `patience`.
    """

    def __init__(
        self,
        work: Callable[..., Generator[Any, Any, None]],
        *arguments: Any,
        environment: Mapping[str, str],
        core: int | None = None,
        patience: float = PATIENCE,
    ) -> None:
        self._patience = patience
        context = multiprocessing.get_context("spawn")
        self._name = work.__name__.strip("_")
        self._folder = tempfile.TemporaryDirectory()
        self._words = Path(self._folder.name, "words")
        self.pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=_child, args=(theirs, self._words, dict(environment), core, work, *arguments)
        )
        self._process.start()
        theirs.close()

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()  # Frameworks catch SIGTERM.
        self._process.join()
        self.pipe.close()
        self._folder.cleanup()

    def __iter__(self) -> Generator[Any, None, None]:
        """What the generator yields until it is done."""
        while True:
            self.ask(None)
            done, item = self.answer()
            if done:
                return
            yield item

    def ask(self, order: Any) -> None:
        """Go on, with `order` as the value of `yield`; the answer is waited for elsewhere."""
        try:
            self.pipe.send(order)
        except OSError:
            raise self._ended() from None

    def answer(self) -> tuple[bool, Any]:
        """Whether the generator is done, and the item if it is not."""
        try:
            if not self.pipe.poll(self._patience):
                raise ProcessEndedError(f"{self._name} gave no answer in {self._patience:.0f} s")
            return self.pipe.recv()
        except (EOFError, OSError):
            raise self._ended() from None

    def _ended(self) -> ProcessEndedError:
        self._process.join(GRACE)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        last = self._words.read_text(errors="replace").strip().rpartition("\n")[2] if self._words.exists() else ""
        return ProcessEndedError(
            f"{self._name} ended with exit code {self._process.exitcode}, and the last words: {last}"
        )


def ask_all(processes: Sequence[Process], order: Any) -> list[Any]:
    """The next item of each process, asked for at the same time.

    Raises:
        ProcessEndedError: one ended, or an answer took longer than `PATIENCE`.
    """
    for process in processes:
        process.ask(order)
    waiting = {process.pipe: place for place, process in enumerate(processes)}
    answers: list[Any] = [None] * len(processes)
    while waiting:
        ready = multiprocessing.connection.wait(list(waiting), PATIENCE)
        if not ready:
            raise ProcessEndedError(f"{len(waiting)} of {len(processes)} processes gave no answer in {PATIENCE:.0f} s")
        for pipe in ready:
            place = waiting.pop(pipe)  # type: ignore[call-overload]
            _, answers[place] = processes[place].answer()
    return answers


def _child(
    pipe: Any,
    words: Path,
    environment: dict[str, str],
    core: int | None,
    work: Callable[..., Generator[Any, Any, None]],
    *arguments: Any,
) -> None:
    """Send what `work` yields as `(False, item)`, and `(True, None)` when it is done."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # The parent alone answers Ctrl-C.
    # What frameworks say goes past sys.stdout and sys.stderr, so it is kept from the terminal down here.
    for stream in (1, 2):
        os.dup2(os.open(words, os.O_CREAT | os.O_WRONLY | os.O_APPEND), stream)
    os.environ.update(environment)
    if core is not None and hasattr(os, "sched_setaffinity"):
        # Before any framework loads: each then makes as many threads as it has cores, one.
        mine = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {mine[core % len(mine)]})
    items = work(*arguments)
    while True:
        order = pipe.recv()
        try:
            item = items.send(order)
        except StopIteration:
            break
        pipe.send((False, item))
    pipe.send((True, None))
