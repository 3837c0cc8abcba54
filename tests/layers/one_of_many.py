# SPDX-License-Identifier: Apache-2.0
"""Processes that normalize one batch together.

`python one_of_many.py BACKEND JOBS`, where JOBS is a list in JSON of `[WORLD, PORT, FOLDER]` or
`[WORLD, PORT, FOLDER, FAULT]`, imports what takes long and starts WORLD copies of itself for each job. Each writes
what it has of every case to `FOLDER/RANK.npz`: `CASE/y`, `CASE/dx`, `CASE/gamma` (its gradient), and the state. Its
stderr is in `FOLDER/RANK.stderr`, its exit code in `FOLDER/RANK.code`.
With a fault the last process of the job does something wrong in its third step.
"""

import datetime
import functools
import importlib
import json
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np

CHANNELS = 3


def rows(count=12):
    return np.random.default_rng(0).normal([300, 2, -5], [2, 1, 0.1], (count, CHANNELS)).astype("float32")


def upstream(count=12):
    return np.random.default_rng(1).normal(size=(count, CHANNELS)).astype("float32")


def nan_in_one(count=12):
    x = rows(count)
    x[-1, 1] = np.nan
    return x


# Case: what the layer is made with, and how many of the 12 rows each of two and of four processes has.
EQUAL, UNEVEN, EMPTY = {2: [6, 6], 4: [3, 3, 3, 3]}, {2: [2, 10], 4: [1, 5, 2, 4]}, {2: [0, 12], 4: [5, 0, 0, 7]}
CASES = {
    "equal": ({}, EQUAL),
    "uneven": ({}, UNEVEN),
    "empty": ({}, EMPTY),
    "sample variance": ({"bessel_correction": True}, UNEVEN),
    "renorm": ({"renorm": True, "renorm_clipping": {"rmax": 2.0, "rmin": 0.5, "dmax": 1.0}}, UNEVEN),
    "debiased": ({"average": "debiased"}, UNEVEN),
    "masked": ({}, UNEVEN),
    "first masked": ({}, EQUAL),
    "weights": ({}, UNEVEN),
    "nan": ({}, EQUAL),
    "pictures": ({"axis": 3}, UNEVEN),
}
OF_JAX = [name for name, (_, shares) in CASES.items() if shares is EQUAL]
"""Arrays of JAX have shards of one size."""
WAYS = {
    "jax": [f"jit: {name}" for name in OF_JAX],
    "tensorflow": [],
    "torch": [f"{way}: uneven" for way in ("compiled", "checkpoint", "reentrant checkpoint")],
}
"""Cases that are called in another way, and must give the same."""
PATIENCE = 6
"""Seconds that a process waits for the others, where one of them is at fault."""
UNLIKE = {"channels": ({}, 2), "type": ({"dtype": "float64"}, 1)}
"""Faults of the input: what else the layer is made with, and how many times as many channels there are."""
meanwhile = []
"""What the process at fault does between making a layer and calling it."""


def names(backend):
    return (OF_JAX if backend == "jax" else list(CASES)) + WAYS[backend]


def plain(name):
    return name.split(": ")[-1]


def shaped(name, x, rank=0):
    """As pictures of one column, and of one row in every second process, in the case that is about them."""
    if name != "pictures":
        return x
    return x[None, None] if rank % 2 else x[None, :, None]


def given(name):
    """The input of a case, and what else the layer is called with."""
    kept = np.arange(12) % 3 != 1
    weights = (0.5 + np.arange(12) % 4).astype("float32")
    first = np.arange(12) >= 6
    call = {"masked": {"mask": kept}, "first masked": {"mask": first}, "weights": {"sample_weight": weights[:, None]}}
    return (nan_in_one() if name == "nan" else rows()), call.get(name, {})


def layer(options, **more):
    import evenkeel as ek

    made = ek.BatchNormalization(momentum=0.5, **options, **more)
    made.build((*[None] * options.get("axis", 1), CHANNELS))
    for act in meanwhile:
        act()
    return made


def state(made):
    import keras

    names = [variable.name for variable in made.non_trainable_variables]
    return {
        f"state/{n}": keras.ops.convert_to_numpy(v) for n, v in zip(names, made.non_trainable_variables, strict=True)
    }


def merged(x):
    """What `merge_statistics_across_processes` makes of the statistics of the shares."""
    import evenkeel as ek

    made = layer({})
    if len(x):
        made.moving_mean.assign(x.mean(0))
        made.moving_variance.assign(x.var(0))
    report = ek.merge_statistics_across_processes(made, rows=max(len(x), 1e-9))
    return state(made) | {"shift": np.array(report.merged[0].shift)}


def torch_case(options, x, dy, call, way=lambda made: made):
    import torch

    made = layer(options, synchronized=True)
    inputs = torch.tensor(x, requires_grad=True)
    y = way(made)(inputs, training=True, **{name: torch.tensor(value) for name, value in call.items()})
    y.backward(torch.tensor(dy))
    torch.distributed.all_reduce(gamma := made.gamma.value.grad)
    return {"y": y.detach().numpy(), "dx": inputs.grad.numpy(), "gamma": gamma.numpy()} | state(made)


def torch_trained(x, dy, world=None):
    """Weights and state after three steps; over several processes with DistributedDataParallel."""
    import keras
    import torch

    import evenkeel as ek

    inputs, wanted = torch.tensor(x - np.float32([300, 2, -5])), torch.tensor(dy)
    normalizer = ek.BatchNormalization(momentum=0.5, synchronized=bool(world))
    # Through the first layer, gradients pass the normalizer. `keras.utils.set_random_seed` would import TensorFlow.
    seeded = map(keras.initializers.GlorotUniform, range(2))
    dense = [keras.layers.Dense(CHANNELS, kernel_initializer=initializer) for initializer in seeded]
    model = keras.Sequential([keras.Input([CHANNELS]), dense[0], normalizer, dense[1]])
    trained = torch.nn.parallel.DistributedDataParallel(model) if world else model
    optimizer = torch.optim.SGD([variable.value for variable in model.trainable_variables], 0.01)
    for _ in range(3):
        optimizer.zero_grad()
        # DistributedDataParallel takes the mean of the gradients over the processes.
        loss = ((trained(inputs, training=True) - wanted) ** 2).sum() * (world or 1)
        loss.backward()
        optimizer.step()
    return {str(place): value.detach().numpy() for place, value in enumerate(v.value for v in model.variables)}


def torch_main(rank, world, port, seconds):
    import torch
    from torch.utils.checkpoint import checkpoint

    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=world, timeout=datetime.timedelta(seconds=seconds)
    )
    yield from ((name, torch_case) for name in CASES)
    ways = (
        lambda made: torch.compile(made, fullgraph=True, backend="aot_eager"),
        lambda made: functools.partial(checkpoint, made, use_reentrant=False),
        # The old kind hands no keywords on.
        lambda made: lambda x, training: checkpoint(lambda x: made(x, training=training), x, use_reentrant=True),
    )
    for name, way in zip(WAYS["torch"], ways, strict=True):
        if world == 2 or not name.startswith("compiled"):
            yield name, functools.partial(torch_case, way=way)
    yield "trained", lambda options, x, dy, call: torch_trained(x, dy, world)
    yield "merged", lambda options, x, *_: merged(x)
    torch.distributed.destroy_process_group()


def tensorflow_main(rank, world, port, seconds):
    workers = [f"127.0.0.1:{port + place}" for place in range(world)]
    os.environ["TF_CONFIG"] = json.dumps({"cluster": {"worker": workers}, "task": {"type": "worker", "index": rank}})
    import tensorflow as tf

    options = tf.distribute.experimental.CommunicationOptions(timeout_seconds=seconds)
    strategy = tf.distribute.MultiWorkerMirroredStrategy(communication_options=options)

    def case(options, x, dy, call):
        with strategy.scope():
            made = layer(options, synchronized=True)

        def step():
            with tf.GradientTape() as tape:
                inputs = tf.constant(x)
                tape.watch(inputs)
                y = made(inputs, training=True, **call)
                total = tf.reduce_sum(y * dy)
            dx, gamma = tape.gradient(total, [inputs, made.gamma.value])
            gamma = tf.distribute.get_replica_context().all_reduce("sum", gamma)
            return y, dx, gamma

        found = tf.function(lambda: strategy.run(step))()
        y, dx, gamma = (strategy.experimental_local_results(item)[0].numpy() for item in found)
        return {"y": y, "dx": dx, "gamma": gamma} | state(made)

    yield from ((name, case) for name in CASES)
    with strategy.scope():
        yield "merged", lambda options, x, *_: merged(x)


def jax_main(rank, world, port, seconds):
    import jax

    bounds = {"heartbeat_timeout_seconds": seconds, "shutdown_timeout_seconds": seconds}
    jax.distributed.initialize(f"127.0.0.1:{port}", world, rank, **bounds)
    from jax.sharding import AxisType, NamedSharding, PartitionSpec

    mesh = jax.make_mesh((world,), ("data",), axis_types=(AxisType.Auto,))
    rows_of, same = PartitionSpec("data"), PartitionSpec()

    def spread(value):
        return jax.make_array_from_process_local_data(NamedSharding(mesh, rows_of), value)

    def case(options, x, dy, call, mapped=True):
        made = layer(options, synchronized=True)
        trained, kept = ([v.value for v in part] for part in (made.trainable_variables, made.non_trainable_variables))

        def step(trained, kept, x, dy, call):
            def total(trained, x):
                y, new = made.stateless_call(trained, kept, x, training=True, **call)
                return (y * dy).sum(), (y, new)

            (gamma, _), dx, (y, new) = with_gradients(total, trained, x)
            return y, dx, gamma, new

        def with_gradients(total, trained, x):
            (_, aux), (by_weights, dx) = jax.value_and_grad(total, (0, 1), has_aux=True)(trained, x)
            return by_weights, dx, aux

        if mapped:
            step = jax.shard_map(
                step,
                mesh=mesh,
                in_specs=(same, same, rows_of, rows_of, rows_of),
                out_specs=(rows_of, rows_of, same, same),
            )
        y, dx, gamma, new = jax.jit(step)(trained, kept, spread(x), spread(dy), jax.tree.map(spread, call))
        y, dx = (np.concatenate([np.asarray(shard.data) for shard in item.addressable_shards]) for item in (y, dx))
        names = [variable.name for variable in made.non_trainable_variables]
        found = {f"state/{name}": np.asarray(value) for name, value in zip(names, new, strict=True)}
        return {"y": y, "dx": dx, "gamma": np.asarray(gamma)} | found

    yield from ((name, case) for name in OF_JAX)
    # Under jit alone an array is the whole of its shards, and the partitioner says what is sent.
    yield from ((name, lambda *given: case(*given, mapped=False)) for name in WAYS["jax"])
    yield "merged", lambda options, x, *_: merged(x)


def fail(fault):
    time.sleep(1)  # by now the others wait for this one
    if fault == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if fault == "behind":
        time.sleep(3 * PATIENCE)
    sys.exit()


def main(backend, rank, world, port, folder, fault=None):
    found = {}
    cases = {"torch": torch_main, "tensorflow": tensorflow_main, "jax": jax_main}[backend]
    for step, (name, case) in enumerate(cases(rank, world, port, PATIENCE if fault else 120)):
        options, shares = CASES.get(plain(name), ({}, UNEVEN))
        ends = np.cumsum([0, *shares[world]])
        mine = slice(ends[rank], ends[rank + 1])
        x, call = given(plain(name))
        x, dy = x[mine], upstream()[mine]
        if fault and step == 2 and rank == world - 1:
            if fault not in UNLIKE:
                meanwhile.append(functools.partial(fail, fault))
            more, times = UNLIKE.get(fault, ({}, 1))
            options = options | more
            globals()["CHANNELS"] *= times
            x, dy = np.tile(x, times), np.tile(dy, times)
        x, dy = (shaped(plain(name), value, rank) for value in (x, dy))
        result = case(options, x, dy, {key: value[mine] for key, value in call.items()})
        found |= {f"{name}/{key}": value for key, value in result.items()}
    np.savez(Path(folder) / f"{rank}.npz", **found)


if __name__ == "__main__":
    backend = sys.argv[1]
    for module in (backend, "keras", "evenkeel"):
        importlib.import_module(module)
    codes = {}
    for world, port, folder, *fault in json.loads(sys.argv[2]):
        for rank in range(world):
            process = os.fork()
            if not process:
                os.dup2(os.open(f"{folder}/{rank}.stderr", os.O_WRONLY | os.O_CREAT, 0o600), 2)
                main(backend, rank, world, port, folder, *fault)
                sys.exit()
            codes[process] = Path(folder, f"{rank}.code")
    while codes:
        process, status = os.wait()
        codes.pop(process).write_text(str(os.waitstatus_to_exitcode(status)))
