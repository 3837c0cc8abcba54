# SPDX-License-Identifier: Apache-2.0
"""`synchronized=True` in two and in four real processes: what one process finds for the whole batch."""

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from layers import one_of_many

import tolerances
from conftest import NAME
from ports import free_ports

if NAME == "numpy":
    pytest.skip("NumPy has no processes", allow_module_level=True)

import keras

import evenkeel as ek

ROOT = Path(__file__).parents[2]
NAMES = one_of_many.names(NAME)


def processes(jobs):
    """Run each job of `{folder: [world]}` or `{folder: [world, fault]}`; for each, code and stderr by rank."""
    sizes = [size for size, *_ in jobs.values()]
    ports = itertools.accumulate(sizes[:-1], initial=free_ports(sum(sizes)))
    given = [[job[0], port, str(folder), *job[1:]] for (folder, job), port in zip(jobs.items(), ports, strict=True)]
    for folder in jobs:
        folder.mkdir()
    with subprocess.Popen(
        [sys.executable, one_of_many.__file__, NAME, json.dumps(given)],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src"), "TF_CPP_MIN_LOG_LEVEL": "3"},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as started:
        try:
            _, error = started.communicate(timeout=400)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(started.pid, signal.SIGKILL)
    assert started.returncode == 0, error
    return [
        [(int((folder / f"{rank}.code").read_text()), (folder / f"{rank}.stderr").read_text()) for rank in range(size)]
        for folder, size in zip(jobs, sizes, strict=True)
    ]


@pytest.fixture(scope="module")
def worlds(tmp_path_factory):
    """By the number of processes: what each has of each case, in a list by rank."""
    parent = tmp_path_factory.mktemp("worlds")
    folders = {size: parent / str(size) for size in (2, 4)}
    for ended in processes({folder: [size] for size, folder in folders.items()}):
        assert {code for code, _ in ended} == {0}, "\n".join(error for _, error in ended)
    return {size: [dict(np.load(path)) for path in sorted(folder.glob("*.npz"))] for size, folder in folders.items()}


@pytest.fixture(params=[2, 4])
def world(request, worlds):
    return worlds[request.param]


def alone(name):
    """Output, gradients and state of one process that has the whole batch."""
    x, call = one_of_many.given(name)
    layer = one_of_many.layer(one_of_many.CASES[name][0])
    x, dy = (one_of_many.shaped(name, value) for value in (x, one_of_many.upstream()))
    if NAME == "torch":
        import torch

        inputs = torch.tensor(x, requires_grad=True)
        y = layer(inputs, training=True, **{key: torch.tensor(value) for key, value in call.items()})
        y.backward(torch.tensor(dy))
        found = {"y": y.detach().numpy(), "dx": inputs.grad.numpy(), "gamma": layer.gamma.value.grad.numpy()}
    elif NAME == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            inputs = tf.constant(x)
            tape.watch(inputs)
            y = layer(inputs, training=True, **call)
            total = tf.reduce_sum(y * dy)
        dx, gamma = tape.gradient(total, [inputs, layer.gamma.value])
        found = {"y": y.numpy(), "dx": dx.numpy(), "gamma": gamma.numpy()}
    else:
        import jax

        trained, kept = ([v.value for v in part] for part in (layer.trainable_variables, layer.non_trainable_variables))

        def total(trained, x):
            y, new = layer.stateless_call(trained, kept, x, training=True, **call)
            return (y * dy).sum(), (y, new)

        (_, (y, new)), ((gamma, _), dx) = jax.value_and_grad(total, (0, 1), has_aux=True)(trained, x)
        for variable, value in zip(layer.non_trainable_variables, new, strict=True):
            variable.assign(value)
        found = {"y": np.asarray(y), "dx": np.asarray(dx), "gamma": np.asarray(gamma)}
    return found | one_of_many.state(layer)


def skip_more_compilations(name, world):
    if name.startswith("compiled") and len(world) > 2:
        pytest.skip("two processes compile, which takes long enough")


def flat(values):
    return values.reshape(-1, one_of_many.CHANNELS)


@pytest.mark.parametrize("name", NAMES)
def test_processes_find_what_one_finds(world, name):
    skip_more_compilations(name, world)
    wanted = alone(one_of_many.plain(name))
    x = one_of_many.rows().astype("float64")
    condition = max(tolerances.condition(*pair) for pair in zip(x.mean(0), x.var(0), strict=True))
    # Both have rounded.
    close = 2 * tolerances.output("float32", 12, condition)
    joined = {key: np.concatenate([flat(part[f"{name}/{key}"]) for part in world]) for key in ("y", "dx")}
    np.testing.assert_allclose(joined["y"], flat(wanted["y"]), rtol=0, atol=close)
    np.testing.assert_allclose(joined["dx"], flat(wanted["dx"]), rtol=0, atol=4 * close / np.sqrt(x.var(0)).min())
    np.testing.assert_allclose(world[0][f"{name}/gamma"], wanted["gamma"], rtol=0, atol=12 * 4 * close)
    for key in (key for key in wanted if key.startswith("state/")):
        np.testing.assert_allclose(
            world[0][f"{name}/{key}"],
            wanted[key],
            rtol=2 * tolerances.variance("float32", 12, condition),
            atol=2 * tolerances.mean("float32", 12, condition) * 2,
        )


@pytest.mark.parametrize("name", NAMES)
def test_all_processes_keep_the_same_state(world, name):
    skip_more_compilations(name, world)
    keys = [key for key in world[0] if key.startswith(f"{name}/state/")]
    assert len(keys) >= 2
    assert all(part[key].tobytes() == world[0][key].tobytes() for part in world for key in keys)


def test_a_shard_with_nan_moves_nothing_in_its_channel(world):
    mean, variance = (world[0][f"nan/state/{key}"] for key in ("moving_mean", "moving_variance"))
    assert (mean[1], variance[1]) == (0, 1) and mean[0] > 100


def test_merged_statistics_are_those_of_all_data(world):
    x = one_of_many.rows().astype("float64")
    for part in world:
        np.testing.assert_allclose(part["merged/state/moving_mean"], x.mean(0), rtol=1e-6)
        np.testing.assert_allclose(part["merged/state/moving_variance"], x.var(0), rtol=1e-4)
    assert world[0]["merged/shift"].shape == (len(world),) and world[0]["merged/shift"].max() > 0.1


@pytest.mark.skipif(NAME != "torch", reason="DistributedDataParallel is PyTorch's")
def test_under_distributed_data_parallel_processes_learn_what_one_learns(world):
    wanted = one_of_many.torch_trained(one_of_many.rows(), one_of_many.upstream())
    for part in world:
        for key, value in wanted.items():
            # The sums of three steps are taken in another order.
            np.testing.assert_allclose(part[f"trained/{key}"], value, rtol=1e-4, atol=1e-5, err_msg=key)


def test_statistics_of_the_whole_batch_and_of_a_few_rows_contradict():
    with pytest.raises(ek.errors.ArgumentError, match=r"virtual_batch_size=4 .* leave one of them out"):
        ek.BatchNormalization(synchronized=True, virtual_batch_size=4)


@pytest.mark.parametrize("name", ["process_group", "axis_name"])
def test_a_group_is_of_one_backend(name):
    if {"process_group": "torch", "axis_name": "jax"}[name] == NAME:
        with pytest.raises(ek.errors.ArgumentError, match="give synchronized=True too"):
            ek.BatchNormalization(**{name: "data"})
    else:
        with pytest.raises(ek.errors.ArgumentError, match=f"Keras computes with {NAME}"):
            ek.BatchNormalization(**{name: "data"}, synchronized=True)


DISTRIBUTED = """
import keras, numpy as np, evenkeel as ek
keras.distribution.set_distribution(keras.distribution.DataParallel())
x = np.repeat([0.0, 10.0, 20.0, 50.0], 2).astype("float32")[:, None]
for synchronized in (False, True):
    layer = ek.BatchNormalization(momentum=0.0, synchronized=synchronized)
    model = keras.Sequential([keras.Input([1]), layer])
    model.compile("sgd", "mse")
    model.fit(x, x, batch_size=8, shuffle=False, verbose=0)
    print(float(layer.moving_mean.value[0]), float(layer.moving_variance.value[0]))
"""


@pytest.mark.skipif(NAME != "jax", reason="keras.distribution is JAX's")
def test_under_a_distribution_each_device_has_its_own_or_all_have_one():
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    environment["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"
    done = subprocess.run(
        [sys.executable, "-c", DISTRIBUTED], env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["20.0", "0.0", "20.0", "350.0"], done.stderr[-3000:]


def test_one_process_needs_no_others():
    keras.utils.set_random_seed(0)
    x = one_of_many.rows()
    layers = [ek.BatchNormalization(synchronized=synchronized) for synchronized in (True, False)]
    first, second = (keras.ops.convert_to_numpy(layer(x, training=True)) for layer in layers)
    np.testing.assert_array_equal(first, second)
