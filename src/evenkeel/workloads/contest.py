# SPDX-License-Identifier: Apache-2.0
"""How the contenders of `evenkeel bench` do: time, memory, and an epoch of training.

`time_all`, `weigh` and `train` are generators, each for a fresh process whose Keras runs on the backend.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
from collections.abc import Generator
from typing import Any, NamedTuple

import numpy as np

from evenkeel.workloads import timing
from evenkeel.workloads.contenders import Case, Contender, Data, contenders, epoch_stopwatch, networks, wrong
from evenkeel.workloads.timing import Quartiles

__all__ = ["Fit", "Measured", "Memory", "Result", "time_all", "train", "weigh"]

BATCH_SIZE = 32


class Result(NamedTuple):
    """One contender in one case.

    role: `"ours"`, `"keras"`, `"native"`, or `"bytes"` for the copies.
    name: what its users call it.
    seconds: of a step; None where it does not run.
    fault: what is wrong with its answer or why it does not run; empty if all is well.
    """

    role: str
    name: str
    seconds: Quartiles | None
    fault: str


class Measured(NamedTuple):
    """One case under one backend.

    rounds: in which everybody had a turn.
    results: of everybody.
    beside: seconds of the fastest in a role divided by ours in the same round; for `"bytes"` ours divided by those of
        the fastest copy. None where one of the two does not run.
    """

    backend: str
    case: Case
    rounds: int
    results: list[Result]
    beside: dict[str, Quartiles | None]

    def fastest(self, role: str) -> Result:
        """The one in a role that counts; one without a name if nobody has that role."""
        return min(
            (result for result in self.results if result.role == role),
            key=lambda result: result.seconds.median if result.seconds else math.inf,
            default=Result(role, "", None, ""),
        )


class Memory(NamedTuple):
    """By how many bytes resident memory rises during a training step of a contender; None where nobody can say."""

    backend: str
    case: Case
    name: str
    size: int | None


class Fit(NamedTuple):
    """An epoch of `fit` of the small ResNet under one backend.

    images: in an epoch.
    rounds: epochs of each network that were timed.
    ours, keras, without: seconds an epoch, with our layer, with Keras's and without normalization.
    beside: those with Keras's layer divided by ours, in the same round.
    bound: those with Keras's layer divided by those without normalization: no layer could be faster by more.
    fault: by how much the losses of the first epoch differ, if they do.
    """

    backend: str
    images: int
    rounds: int
    ours: Quartiles
    keras: Quartiles
    without: Quartiles
    beside: Quartiles
    bound: Quartiles
    fault: str


def time_all(backend: str, cases: list[Case], seconds: float) -> Generator[dict[str, str] | Measured, None, None]:
    """The versions of all libraries, then each case."""
    timing.keep_memory()
    yield _versions(backend)
    for case in cases:
        yield _time_case(backend, case, seconds)


def _versions(backend: str) -> dict[str, str]:
    names = [backend, "keras", *(["flax"] if backend == "jax" and importlib.util.find_spec("flax") else [])]
    return {name: importlib.import_module(name).__version__ for name in names}


def _time_case(backend: str, case: Case, seconds: float) -> Measured:
    data = Data.of(case)
    roles: dict[str, str] = {}
    steps, faults = {}, {}
    for contender in contenders(backend, case, data):
        roles[contender.name] = contender.role
        runs, faults[contender.name] = _try(contender, case, data)
        if runs:
            steps[contender.name] = contender.step
    ways = timing.moving_bytes(case.size, passes=case.passes)
    roles |= dict.fromkeys(ways, "bytes")
    times = timing.interleaved(steps | ways, seconds=seconds)

    results = [
        Result(role, name, timing.quartiles(times[name]) if name in times else None, faults.get(name, ""))
        for name, role in roles.items()
    ]
    best = {}
    for role in ("ours", "keras", "native", "bytes"):
        candidates = {name: times[name] for name in times if roles[name] == role}
        best[role] = candidates[timing.fastest(candidates)] if candidates else None
    beside = {
        "keras": _ratio(best["keras"], best["ours"]),
        "native": _ratio(best["native"], best["ours"]),
        "bytes": _ratio(best["ours"], best["bytes"]),
    }
    return Measured(backend, case, len(next(iter(times.values()))), results, beside)


def _ratio(numerators: list[float] | None, denominators: list[float] | None) -> Quartiles | None:
    return timing.ratio(numerators, denominators) if numerators and denominators else None


def _try(contender: Contender, case: Case, data: Data) -> tuple[bool, str]:
    """Whether a contender runs, and what is wrong with its first answer."""
    try:
        answer = contender.step()
    except Exception as error:  # Whatever a framework raises, the others go on.
        return False, f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
    return True, wrong(contender, case, data, answer)


def weigh(backend: str, cases: list[Case]) -> Generator[list[Memory], None, None]:
    """The memory of every contender, case by case: the most in five steps, after one to warm up."""
    timing.keep_no_memory()
    for case in cases:
        result = []
        for contender in contenders(backend, case, Data.of(case)):
            try:
                contender.step()
            except Exception:  # The process that times has told of it.
                continue
            sizes = [timing.peak_memory(contender.step) for _ in range(5)]
            # What a framework frees late, in a thread of its own, is missing in the next step.
            size = max((size for size in sizes if size is not None), default=None)
            result.append(Memory(backend, case, contender.name, size))
        yield result


def train(backend: str, images: int, seconds: float) -> Generator[Fit, None, None]:
    """Epochs of three networks by turns, after one each to warm up; the losses of ours and of Keras's must agree."""
    timing.keep_memory()
    random = np.random.default_rng(0)
    x = random.standard_normal((images, 32, 32, 3), np.float32)
    y = random.integers(0, 10, images)

    stopwatch = epoch_stopwatch()

    def epoch(network: Any) -> float:
        history = network.fit(x, y, batch_size=BATCH_SIZE, shuffle=False, verbose=0, callbacks=[stopwatch])
        return history.history["loss"][0]

    compete = networks()
    loss = {name: epoch(network) for name, network in compete.items()}
    steps = {name: (lambda network=network: epoch(network)) for name, network in compete.items()}
    times = timing.interleaved(steps, seconds=seconds, clock=lambda: stopwatch.seconds)
    apart = abs(loss["ours"] - loss["keras"])
    # Rounding grows from step to step; 1e-5 was seen, and a wrong gradient shows in the second digit.
    fault = "" if apart <= 1e-3 * abs(loss["keras"]) else f"losses of the first epoch are {apart:.2g} apart"
    yield Fit(
        backend,
        images,
        len(times["ours"]),
        timing.quartiles(times["ours"]),
        timing.quartiles(times["keras"]),
        timing.quartiles(times["without"]),
        timing.ratio(times["keras"], times["ours"]),
        timing.ratio(times["keras"], times["without"]),
        fault,
    )
