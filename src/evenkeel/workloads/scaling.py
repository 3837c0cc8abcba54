# SPDX-License-Identifier: Apache-2.0
"""What synchronized batch norm costs in several processes of one machine, and what its steps send.

Every process has a share of the batch of one size and one core. All numbers of processes, with and without
`synchronized=True`, take turns in the same rounds; a turn is as long as it was for the slowest process.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import json
import math
import os
import re
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from evenkeel.workloads import timing
from evenkeel.workloads.contenders import Answer, Case, Contender, Data, built, wrong
from evenkeel.workloads.launch import free_ports
from evenkeel.workloads.processes import Process, ask_all
from evenkeel.workloads.timing import Quartiles

__all__ = ["ARMS", "Scaled", "Sent", "Traffic", "expected", "measure", "worlds"]

ARMS = ("synchronized", "local")

# A turn is at least as long, in seconds: to start all processes takes a fraction of a millisecond.
TURN = 0.02


class Traffic(NamedTuple):
    """What each process puts into sums over all: how many messages, and the bytes of all of them together."""

    messages: int
    size: int


class Sent(NamedTuple):
    """What a training step of one layer sends, in each direction."""

    forward: Traffic
    backward: Traffic


NOTHING = Sent(Traffic(0, 0), Traffic(0, 0))


class Scaled(NamedTuple):
    """One case in one number of processes under one backend.

    case: the share of each process.
    rounds: in which every number of processes had a turn with and without synchronization.
    synchronized, local: seconds of a training step, with statistics of all and with those of the share.
    cost: the first divided by the second in the same round.
    efficiency, efficiency_local: seconds in one process divided by those here in the same round.
    bound: what the machine has cores for: no efficiency of work that fills a core is above it, but by chance.
    sent, expected: what a synchronized step was seen to send, and what the formula says.
    sent_local: what a local step was seen to send.
    fault: what is wrong with the first answers, or with what was sent; empty if nothing is.
    """

    backend: str
    case: Case
    processes: int
    rounds: int
    synchronized: Quartiles
    local: Quartiles
    cost: Quartiles
    efficiency: Quartiles
    efficiency_local: Quartiles
    bound: float
    sent: Sent
    expected: Sent
    sent_local: Sent
    fault: str


def worlds(processes: int) -> list[int]:
    """1, 2, 4 and so on, and `processes`.

    Example:
        >>> worlds(4), worlds(6)
        ([1, 2, 4], [1, 2, 4, 6])
    """
    return [2**power for power in range((processes - 1).bit_length())] + [processes]


def expected(backend: str, channels: int, processes: int) -> Sent:
    """What a layer of so many channels sends by `functional.moments.merge_across`; nothing for one process.

    Forward: sums of values and squares of each channel, and two counts, in float64. JAX has no float64: a point
    near each mean goes before, with a count, all in float32. Backward the gradients by all of that, in one message;
    JAX knows that counts have none and nobody asks for those of the point.

    Example:
        >>> expected("torch", 64, 2)
        Sent(forward=Traffic(messages=1, size=1040), backward=Traffic(messages=1, size=1040))
        >>> expected("jax", 64, 2)
        Sent(forward=Traffic(messages=2, size=780), backward=Traffic(messages=1, size=512))
    """
    if processes == 1:
        return NOTHING
    sums = 2 * channels + 2
    if backend == "jax":
        return Sent(Traffic(2, 4 * (channels + 1 + sums)), Traffic(1, 4 * 2 * channels))
    return Sent(Traffic(1, 8 * sums), Traffic(1, 8 * sums))


# In the process of the caller.


def measure(
    backend: str, cases: Sequence[Case], processes: int, seconds: float, environment: dict[str, str]
) -> Iterator[dict[str, str] | list[Scaled]]:
    """The versions of all libraries, then of each case the results for every number of processes.

    Args:
        backend: what computes.
        cases: training steps; the share of each process.
        processes: the largest number of them.
        seconds: for each case, over all numbers of processes together.
        environment: what is set in each process.

    Raises:
        ProcessEndedError: a process ended, or does not answer.
    """
    with contextlib.ExitStack() as stack:
        teams = {world: _team(stack, backend, world, environment) for world in worlds(processes)}
        everybody = [process for team in teams.values() for process in team]
        yield ask_all(everybody, None)[0]
        for case in cases:
            yield _measure_case(backend, case, teams, seconds)


def _team(stack: contextlib.ExitStack, backend: str, world: int, environment: dict[str, str]) -> list[Process]:
    ports = free_ports(world)
    return [
        stack.enter_context(Process(_member, backend, rank, ports, environment=environment, core=rank))
        for rank in range(world)
    ]


def _measure_case(backend: str, case: Case, teams: dict[int, list[Process]], seconds: float) -> list[Scaled]:
    sent: dict[int, dict[str, Sent]] = {}
    faults, calls = {}, {}
    for world, team in teams.items():
        ready: list[_Ready] = ask_all(team, case)
        sent[world] = ready[0].sent
        faults[world] = _fault(case, [item.answers for item in ready]) or _fault_of_sent(
            sent[world], expected(backend, case.shape[-1], world)
        )
        for arm in ARMS:
            calls[world, arm] = math.ceil(TURN / max(ask_all(team, (arm, 1))))
    spent = 0.0

    def turn(world: int, arm: str) -> None:
        nonlocal spent
        spent += max(ask_all(teams[world], (arm, calls[world, arm])))

    turns = {f"{arm} {world}": functools.partial(turn, world, arm) for world, arm in calls}
    took = timing.interleaved(turns, seconds=seconds, clock=lambda: spent)
    times = {(world, arm): [each / count for each in took[f"{arm} {world}"]] for (world, arm), count in calls.items()}
    cores = timing.cores()
    return [
        Scaled(
            backend,
            case,
            world,
            len(times[world, "local"]),
            timing.quartiles(times[world, "synchronized"]),
            timing.quartiles(times[world, "local"]),
            timing.ratio(times[world, "synchronized"], times[world, "local"]),
            timing.ratio(times[1, "synchronized"], times[world, "synchronized"]),
            timing.ratio(times[1, "local"], times[world, "local"]),
            min(1.0, cores / world),
            sent[world]["synchronized"],
            expected(backend, case.shape[-1], world),
            sent[world]["local"],
            faults[world],
        )
        for world in teams
    ]


def _whole(case: Case, world: int) -> Case:
    """What all processes have together."""
    return case._replace(shape=(case.shape[0] * world, *case.shape[1:]))


def _share(data: Data, rank: int, rows: int) -> Data:
    mine = slice(rank * rows, (rank + 1) * rows)
    return data._replace(x=data.x[mine], dy=data.dy[mine])


def _fault(case: Case, answers: list[dict[str, Answer]]) -> str:
    """What is wrong with the first answers of all processes."""
    whole = _whole(case, len(answers))
    data = Data.of(whole)
    parts = [answer["synchronized"] for answer in answers]
    joined = parts[0]._replace(
        y=np.concatenate([part.y for part in parts]),
        dx=np.concatenate([part.dx for part in parts]),
        dgamma=sum(part.dgamma for part in parts),
        dbeta=sum(part.dbeta for part in parts),
    )
    ours = Contender("ours", "evenkeel.BatchNormalization", lambda: joined, np.asarray, "population")
    if fault := wrong(ours, whole, data, joined):
        return f"synchronized: {fault}"
    for rank, answer in enumerate(answers):
        if fault := wrong(ours, case, _share(data, rank, case.shape[0]), answer["local"]):
            return f"local, process {rank}: {fault}"
    return ""


def _fault_of_sent(sent: dict[str, Sent], formula: Sent) -> str:
    """What is wrong with what a step of each arm was seen to send."""
    for arm, wanted in zip(ARMS, (formula, NOTHING), strict=True):
        if sent[arm] != wanted:
            return f"{arm}: {sent[arm]} was sent, and by the formula it is {wanted}"
    return ""


# In each process.


class _Ready(NamedTuple):
    """answers: float32 NumPy, of the first step of each arm; sent: by one step of each."""

    answers: dict[str, Answer]
    sent: dict[str, Sent]


class _Arm(NamedTuple):
    """step: returns when the work is done; answer: of its first run; sent: by a step."""

    step: Callable[[], object]
    answer: Answer
    sent: Sent


def _member(backend: str, rank: int, ports: list[int]) -> Generator[Any, Any, None]:
    """Versions; then `_Ready` for a `Case`, and the seconds for an arm and a number of steps."""
    timing.keep_memory()
    prepare = _PREPARE[backend](rank, ports)
    arms: dict[str, _Arm] = {}
    order = yield {name: importlib.import_module(name).__version__ for name in (backend, "keras")}
    while True:
        if isinstance(order, Case):
            data = _share(Data.of(_whole(order, len(ports))), rank, order.shape[0])
            arms = {arm: prepare(order, data, arm == "synchronized") for arm in ARMS}
            order = yield _Ready(
                {name: arm.answer for name, arm in arms.items()}, {name: arm.sent for name, arm in arms.items()}
            )
        else:
            name, calls = order
            start = time.perf_counter()
            for _ in range(calls):
                arms[name].step()
            order = yield time.perf_counter() - start


def _layer(case: Case, data: Data, synchronized: bool) -> Any:
    from evenkeel import BatchNormalization

    return built(BatchNormalization, case, data, synchronized=synchronized)


def _tensorflow(rank: int, ports: list[int]) -> Callable[[Case, Data, bool], _Arm]:
    workers = [f"127.0.0.1:{port}" for port in ports]
    os.environ["TF_CONFIG"] = json.dumps({"cluster": {"worker": workers}, "task": {"type": "worker", "index": rank}})
    import keras
    import tensorflow as tf

    strategy = tf.distribute.MultiWorkerMirroredStrategy()

    def sends(function: Any, *arguments: Any) -> Traffic:
        graph = function.get_concrete_function(*arguments).graph
        sums = [operation.outputs[0] for operation in graph.get_operations() if "CollectiveReduce" in operation.type]
        return Traffic(len(sums), sum(each.dtype.size * each.shape.num_elements() for each in sums))

    def prepare(case: Case, data: Data, synchronized: bool) -> _Arm:
        with strategy.scope():
            layer = _layer(case, data, synchronized)
        x, dy = (tf.cast(value, case.dtype) for value in (data.x, data.dy))

        def forward(x):
            return layer(x, training=True)

        def train(x, dy):
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = forward(x)
            return y, *tape.gradient(y, [x, layer.gamma.value, layer.beta.value], output_gradients=dy)

        once = tf.function(lambda x: strategy.run(forward, (x,)))
        step = tf.function(lambda x, dy: strategy.run(train, (x, dy)))
        found = (*step(x, dy), layer.moving_mean, layer.moving_variance)
        answer = Answer(*(keras.ops.convert_to_numpy(keras.ops.cast(value, "float32")) for value in found))
        return _Arm(lambda: step(x, dy), answer, _sent(sends(once, x), sends(step, x, dy)))

    return prepare


def _jax(rank: int, ports: list[int]) -> Callable[[Case, Data, bool], _Arm]:
    import jax

    jax.distributed.initialize(f"127.0.0.1:{ports[0]}", len(ports), rank)
    mesh = jax.make_mesh((len(ports),), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.sharding.PartitionSpec("data")

    def spread(value: np.ndarray, dtype: str = "float32") -> Any:
        value = value.astype(jax.numpy.dtype(dtype))
        return jax.make_array_from_process_local_data(jax.sharding.NamedSharding(mesh, rows), value)

    def compiled(function: Callable[..., Any], *arguments: Any) -> Any:
        mapped = jax.shard_map(function, mesh=mesh, in_specs=rows, out_specs=rows)
        return jax.jit(mapped).lower(*arguments).compile()

    def sends(program: Any) -> Traffic:
        # A sum over groups of one device sends nothing.
        sums = re.findall(r"= (.*) all-reduce(?:-start)?\((?!.*replica_groups=\{\{\d+\}\})", program.as_text())
        arrays = [array for each in sums for array in re.findall(r"(\w+)\[([\d,]*)\]", each)]
        assert all(dtype == "f32" for dtype, _ in arrays)
        return Traffic(len(sums), sum(4 * math.prod(map(int, filter(None, sizes.split(",")))) for _, sizes in arrays))

    def prepare(case: Case, data: Data, synchronized: bool) -> _Arm:
        layer = _layer(case, data, synchronized)
        x, dy = spread(data.x, case.dtype), spread(data.dy, case.dtype)
        # Each device has vectors of its own, stacked along a new first axis; what is sent is then the layer's alone,
        # and not also the gradients of weights that all have in common.
        parameters, state = ([spread(value[None]) for value in pair] for pair in (data[2:4], data[4:6]))

        def forward(parameters, state, x):
            return layer.stateless_call([p[0] for p in parameters], [s[0] for s in state], x, training=True)

        def once(parameters, state, x):
            y, state = forward(parameters, state, x)
            return y, [value[None] for value in state]

        def train(parameters, state, x, dy):
            y, pull_back, state = jax.vjp(lambda p, x: forward(p, state, x), parameters, x, has_aux=True)
            (dgamma, dbeta), dx = pull_back(dy)
            return Answer(y, dx, dgamma, dbeta, *(value[None] for value in state))

        program = compiled(train, parameters, state, x, dy)

        def step():
            nonlocal state
            answer = jax.block_until_ready(program(parameters, state, x, dy))
            state = [answer.moving_mean, answer.moving_variance]
            return answer

        sent = _sent(sends(compiled(once, parameters, state, x)), sends(program))
        parts = [np.asarray(value.addressable_shards[0].data, np.float32) for value in step()]
        return _Arm(step, Answer(*parts[:2], *(part[0] for part in parts[2:])), sent)

    return prepare


def _torch(rank: int, ports: list[int]) -> Callable[[Case, Data, bool], _Arm]:
    import torch

    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{ports[0]}", rank=rank, world_size=len(ports))

    @contextlib.contextmanager
    def counting() -> Iterator[list[Traffic]]:
        """Into the list goes what every sum inside sends."""
        sums = torch.distributed.all_reduce
        seen: list[Traffic] = []

        def all_reduce(tensor, *arguments, **options):
            seen.append(Traffic(1, tensor.numel() * tensor.element_size()))
            return sums(tensor, *arguments, **options)

        torch.distributed.all_reduce = all_reduce
        try:
            yield seen
        finally:
            torch.distributed.all_reduce = sums

    def total(seen: list[Traffic]) -> Traffic:
        return Traffic(len(seen), sum(each.size for each in seen))

    def prepare(case: Case, data: Data, synchronized: bool) -> _Arm:
        layer = _layer(case, data, synchronized)
        gamma, beta, *state = (weight.value for weight in layer.weights)
        x, dy = (torch.from_numpy(value).to(getattr(torch, case.dtype)) for value in (data.x, data.dy))
        x.requires_grad_()

        def forward():
            return layer(x, training=True)

        def backward(y):
            return torch.autograd.grad(y, (x, gamma, beta), dy)

        with counting() as before:
            y = forward()
        with counting() as after:
            found = y, *backward(y), *state
        answer = Answer(*(value.detach().float().numpy().copy() for value in found))
        return _Arm(lambda: backward(forward()), answer, Sent(total(before), total(after)))

    return prepare


def _sent(forward: Traffic, both: Traffic) -> Sent:
    return Sent(forward, Traffic(both.messages - forward.messages, both.size - forward.size))


_PREPARE = {"tensorflow": _tensorflow, "jax": _jax, "torch": _torch}
