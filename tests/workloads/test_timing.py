# SPDX-License-Identifier: Apache-2.0
"""Statistics, turns, bytes and memory, without any framework."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from evenkeel.workloads import timing
from evenkeel.workloads.timing import FEWEST_ROUNDS, SHORTEST, Quartiles

SOURCE = Path(__file__).parents[2] / "src"


class Clock:
    """Time that passes only in `work`; writes down who worked."""

    def __init__(self):
        self.now, self.turns = 0.0, []

    def __call__(self):
        return self.now

    def work(self, name, seconds):
        def run():
            self.turns.append(name)
            self.now += seconds(self.now) if callable(seconds) else seconds

        return run


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([7.0], (7, 7, 7)),
        ([1.0, 2.0], (1.25, 1.5, 1.75)),
        ([5.0, 1.0, 3.0, 2.0, 4.0], (2, 3, 4)),
        ([1.0, 1.0, 1.0, 1000.0], (1, 1, 250.75)),
    ],
)
def test_quartiles(values, expected):
    assert timing.quartiles(values) == Quartiles(*expected)


def test_a_ratio_is_of_the_same_round():
    slow_rounds = np.array([1.0, 50.0, 1.0, 9.0, 1.0])
    assert timing.ratio(list(3 * slow_rounds), list(slow_rounds)) == Quartiles(3, 3, 3)


def test_a_ratio_of_medians_would_have_differed():
    numerators, denominators = [1.0, 10.0, 10.0], [1.0, 1.0, 10.0]
    assert timing.ratio(numerators, denominators).median == 1
    assert timing.quartiles(numerators).median / timing.quartiles(denominators).median == 10


def test_a_round_without_a_partner_is_refused():
    with pytest.raises(ValueError, match="shorter"):
        timing.ratio([1.0, 2.0], [1.0])


def test_the_fastest_has_the_smallest_median():
    assert timing.fastest({"a": [1.0, 9.0, 9.0], "b": [8.0, 8.0, 8.0]}) == "b"


def test_times_are_those_of_the_clock():
    clock = Clock()
    times = timing.interleaved({"a": clock.work("a", 1.0), "b": clock.work("b", 0.25)}, seconds=10, clock=clock)
    assert times == {"a": [1.0] * 8, "b": [0.25] * 8}


def test_everybody_has_one_turn_a_round_and_begins_equally_often():
    clock = Clock()
    contenders = {name: clock.work(name, 1.0) for name in "abc"}
    timing.interleaved(contenders, seconds=18, clock=clock)
    rounds = ["".join(clock.turns[at : at + 3]) for at in range(3, len(clock.turns), 3)]
    assert rounds == ["abc", "bca", "cab", "cba", "acb", "bac"]


def test_a_machine_that_slows_down_does_not_move_the_ratio():
    clock = Clock()
    contenders = {"a": clock.work("a", lambda now: 0.1 + now), "b": clock.work("b", lambda now: 0.2 + 2 * now)}
    times = timing.interleaved(contenders, seconds=1e6, clock=clock)
    assert times["a"][-1] > 100 * times["a"][0]
    assert 1 < timing.ratio(times["b"], times["a"]).median < 4


def test_short_runs_are_repeated():
    clock = Clock()
    times = timing.interleaved({"short": clock.work("short", SHORTEST / 10)}, seconds=0, clock=clock)
    assert len(clock.turns) == 1 + 10 * FEWEST_ROUNDS
    assert times["short"] == pytest.approx([SHORTEST / 10] * FEWEST_ROUNDS)


def test_there_are_a_few_rounds_however_little_time():
    clock = Clock()
    assert len(timing.interleaved({"a": clock.work("a", 1.0)}, seconds=0.001, clock=clock)["a"]) == FEWEST_ROUNDS


def test_real_time_passes():
    times = timing.interleaved({"sleep": lambda: time.sleep(0.01)}, seconds=0.01)
    assert min(times["sleep"]) >= 0.01


@pytest.mark.parametrize(("passes", "copies"), [(2, 1), (8, 4)])
def test_every_byte_is_moved_as_often_as_asked(passes, copies, monkeypatch):
    moved = []
    monkeypatch.setattr(timing.np, "copyto", lambda target, source: moved.append(len(source)))
    ways = timing.moving_bytes(1001, passes=passes)
    for way in ways.values():
        way()
    assert sum(moved) == 1001 * copies * len(ways)


@pytest.mark.parametrize(
    ("cores", "names"),
    [(1, ["1 thread"]), (2, ["1 thread", "2 threads"]), (16, ["1 thread", "2 threads", "8 threads", "16 threads"])],
)
def test_more_threads_are_tried_where_there_are_cores(cores, names, monkeypatch):
    monkeypatch.setattr(timing, "cores", lambda: cores)
    assert list(timing.moving_bytes(64, passes=2)) == [f"copy, {name}" for name in names]


@pytest.fixture
def peak_memory():
    if timing.peak_memory(lambda: None) is None:
        pytest.skip("this system does not say what a call needed at its highest point")
    return timing.peak_memory


@pytest.mark.parametrize("megabytes", [20, 80])
def test_peak_memory_is_that_of_the_call(peak_memory, megabytes):
    def call():
        for _ in range(3):
            np.ones(megabytes << 20, np.uint8)

    call()
    assert peak_memory(call) / 2**20 == pytest.approx(megabytes, abs=3)


def test_what_was_there_before_does_not_count(peak_memory):
    held = np.ones(80 << 20, np.uint8)
    assert peak_memory(lambda: held[0]) < 4 << 20


def test_what_glibc_kept_of_earlier_calls_counts_all_the_same(peak_memory):
    code = """
import threading, numpy as np
from evenkeel.workloads import timing
timing.keep_no_memory()
def call():
    thread = threading.Thread(target=lambda: [np.ones(8 << 20, np.uint8) for _ in range(2)])
    thread.start()
    thread.join()
call()
print(timing.peak_memory(call) / 2**20)
"""
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    process = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert float(process.stdout) == pytest.approx(16, abs=2)
