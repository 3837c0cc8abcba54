# SPDX-License-Identifier: Apache-2.0
"""How long things take beside each other, and how much memory they need meanwhile."""

from __future__ import annotations

import concurrent.futures
import contextlib
import ctypes
import gc
import itertools
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

__all__ = [
    "Quartiles",
    "cores",
    "fastest",
    "interleaved",
    "keep_memory",
    "keep_no_memory",
    "moving_bytes",
    "peak_memory",
    "quartiles",
    "ratio",
]

# A run shorter than this, in seconds, is repeated until it is not: what one contender leaves behind (threads that still
# spin, caches full of other data) then weighs little in the time of the next.
SHORTEST = 0.005

# Of so few rounds there are quartiles at all.
FEWEST_ROUNDS = 5


class Quartiles(NamedTuple):
    """What a quarter, a half and three quarters of the values are not above; in the unit of the values."""

    first: float
    median: float
    third: float


def quartiles(values: Sequence[float]) -> Quartiles:
    """Between two values they are interpolated linearly.

    Example:
        >>> quartiles([1.0, 2.0, 3.0, 10.0, 30.0])
        Quartiles(first=2.0, median=3.0, third=10.0)
    """
    return Quartiles(*np.quantile(values, (0.25, 0.5, 0.75)).tolist())


def ratio(numerators: Sequence[float], denominators: Sequence[float]) -> Quartiles:
    """Quartiles of the ratios round by round: what slows a whole round down does not show.

    Args:
        numerators: a value for each round.
        denominators: values of the same rounds.

    Example:
        >>> ratio([2.0, 20.0, 2.0], [1.0, 10.0, 1.0])
        Quartiles(first=2.0, median=2.0, third=2.0)
    """
    return quartiles([above / below for above, below in zip(numerators, denominators, strict=True)])


def fastest(times: Mapping[str, Sequence[float]]) -> str:
    """The name with the smallest median.

    Example:
        >>> fastest({"tortoise": [2.0, 2.0, 2.0], "hare": [1.0, 9.0, 9.0]})
        'tortoise'
    """
    return min(times, key=lambda name: quartiles(times[name]).median)


def interleaved(
    contenders: Mapping[str, Callable[[], object]], *, seconds: float, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Time contenders in rounds; in a round each has one turn, so all of them meet the same machine.

    Who begins moves on by one from round to round, and every other time round the order is turned back to front, so
    that nobody always comes after the same one. A turn is as many calls as last 5 milliseconds, at least one. What a
    call returns is freed within its time. There are five rounds at least.

    Args:
        contenders: functions without arguments that return when the work is done. Each was called before: nothing
            here warms up but the caches.
        seconds: how long to go on.
        clock: gives the time in seconds.

    Returns:
        For each name the seconds a call took, round by round.

    Example:
        >>> times = interleaved({"a": lambda: sum(range(100)), "b": lambda: sum(range(10_000))}, seconds=0.05)
        >>> fastest(times), len(times["a"]) == len(times["b"]) >= 5
        ('a', True)
    """
    names = list(contenders)
    once = {name: _time(contenders[name], 1, clock) for name in names}
    calls = {name: math.ceil(SHORTEST / max(once[name], 1e-6)) for name in names}
    times: dict[str, list[float]] = {name: [] for name in names}
    end = clock() + seconds
    for number in itertools.count():
        if number >= FEWEST_ROUNDS and clock() >= end:
            break
        start = number % len(names)
        order = names[start:] + names[:start]
        for name in reversed(order) if number // len(names) % 2 else order:
            times[name].append(_time(contenders[name], calls[name], clock))
    return times


def _time(function: Callable[[], object], calls: int, clock: Callable[[], float]) -> float:
    """Seconds a call."""
    start = clock()
    for _ in range(calls):
        function()
    return (clock() - start) / calls


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def moving_bytes(size: int, *, passes: int) -> dict[str, Callable[[], object]]:
    """Ways to move as many bytes as `passes` over a tensor read or write, and to do nothing else.

    They differ in the number of threads; the fastest is the limit. A computation that reaches it is as good as one that
    must go through memory can be. The copies allocate nothing, write to pages that are there already, and each thread
    copies its own part over and over without waiting for the others: a computation has it harder in all three.

    Args:
        size: of the tensor, in bytes.
        passes: how many times the tensor is read or written; even, for a copy reads once and writes once.

    Example:
        >>> [name for name in moving_bytes(1000, passes=8)][0]
        'copy, 1 thread'
    """
    assert passes % 2 == 0
    source, target = np.ones(size, np.uint8), np.zeros(size, np.uint8)
    target[:] = 0  # np.zeros alone leaves the pages to be made by the first copy

    def copy(start: int, stop: int) -> None:
        for _ in range(passes // 2):
            np.copyto(target[start:stop], source[start:stop])

    def shared(threads: int) -> Callable[[], object]:
        pool = concurrent.futures.ThreadPoolExecutor(threads)
        edges = [size * part // threads for part in range(threads + 1)]
        return lambda: list(pool.map(copy, edges[:-1], edges[1:]))

    ways: dict[str, Callable[[], object]] = {"copy, 1 thread": lambda: copy(0, size)}
    threads = 2
    while threads < cores():
        ways[f"copy, {threads} threads"] = shared(threads)
        threads *= 4
    if cores() > 1:
        ways[f"copy, {cores()} threads"] = shared(cores())
    return ways


def peak_memory(function: Callable[[], object]) -> int | None:
    """How far resident memory rises during a call above where it was before, in bytes; None where nobody can say.

    This counts what the call returns and whatever it needs on the way, and not what was there before, such as its
    inputs and its weights. Free memory is given back to the system first, so that the call has to ask for its own; the
    kernel's record of the highest point is then set back. Only Linux has such a record, and only glibc gives
    memory back. The record is some dozens of pages late, so a fraction of a megabyte means little.

    Call `keep_no_memory` first of all, and the function once before: otherwise compilers and libraries that load are
    counted too.
    """
    record = Path("/proc/self/clear_refs")
    try:
        give_back = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return None
    gc.collect()
    give_back(0)
    try:
        record.write_text("5")
    except OSError:
        return None
    before = _highest()
    function()
    return _highest() - before


def keep_no_memory() -> None:
    """From here on, large blocks come from the system one by one and go back at once, as far as glibc has the say.

    Otherwise it keeps blocks of up to 32 MiB for whoever asks next, and a call that gets one seems to need less. This
    costs time: it is for a process that measures none.
    """
    _set_malloc(_MMAP_THRESHOLD, 64 * 1024)


def keep_memory() -> None:
    """From here on, what is freed stays with the process for whoever asks next, as far as glibc has the say.

    Otherwise blocks go back to the system and come again as empty pages, which the system fills with zeros one by one:
    half of the time of a training step was seen to go there. Whom it hits depends on who ran just before, so it says
    nothing about either. A longer training run is set up so in practice, with jemalloc or tcmalloc.
    """
    _set_malloc(_MMAP_THRESHOLD, 32 * 2**20)  # the most there is
    _set_malloc(_TRIM_THRESHOLD, 2**31 - 1)
    _set_malloc(_ARENA_MAX, 1)  # the others are trimmed whatever the threshold


# Of malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8


def _set_malloc(option: int, value: int) -> None:
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).mallopt(option, value)


def _highest() -> int:
    """The largest resident memory of this process so far, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return 1024 * int(line.split()[1])
    raise AssertionError("Linux has this line for every process")
