# SPDX-License-Identifier: Apache-2.0
"""Two and four real processes, each with an uneven share of the batches: equal to the bit, and equal to one process."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from conftest import NAME

pytestmark = pytest.mark.skipif(NAME == "numpy", reason="NumPy has no processes")
SOURCE = Path(__file__).parents[3] / "src"

DATA = """
import json, os, sys
import numpy as np

rank, world, port = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
x = np.random.default_rng(0).normal([300, 2, 3], 2, (40, 3)).astype("float32")
batches = np.split(x, [3, 10, 11, 24, 30])
# All of the last batches are the last process's, and with four processes the first has none.
mine = [batch for place, batch in enumerate(batches) if min(place + world // 3, world - 1) == rank]

def alone(row):
    return [row]

def compare(recalibrated):
    def bits(*arguments, **options):
        return [np.asarray(value, "float32").tobytes().hex() for value in recalibrated(*arguments, **options)]

    print(json.dumps({
        method: [bits(mine, method=method), bits(batches, method=method, gather=alone)]
        for method in ("pooled", "sequential")
    }))
"""

KERAS = """
import keras, evenkeel

def recalibrated(batches, **options):
    # `keras.utils.set_random_seed` would import TensorFlow.
    dense = keras.layers.Dense(4, kernel_initializer=keras.initializers.GlorotUniform(0))
    layers = [keras.Input([3]), evenkeel.BatchNormalization(), dense, evenkeel.BatchNormalization()]
    model = keras.Sequential(layers)
    evenkeel.recalibrate(model, lambda: batches, **options)
    return [variable.value for variable in model.variables if "moving" in variable.path]
"""

PROGRAMS = {
    "torch": """
import torch
import evenkeel
torch.set_num_threads(1)
torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)

def recalibrated(batches, **options):
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    evenkeel.recalibrate(module, lambda: batches, **options)
    return [value for name, value in module.state_dict().items() if "running" in name]

compare(recalibrated)
torch.distributed.destroy_process_group()
""",
    "jax": """
import jax
jax.distributed.initialize(f"127.0.0.1:{port}", world, rank)
"""
    + KERAS
    + """
compare(recalibrated)
""",
    "tensorflow": """
ports = [f"127.0.0.1:{int(port) + place}" for place in range(world)]
os.environ["TF_CONFIG"] = json.dumps({"cluster": {"worker": ports}, "task": {"type": "worker", "index": rank}})
import tensorflow as tf
strategy = tf.distribute.MultiWorkerMirroredStrategy()
"""
    + KERAS
    + """
with strategy.scope():
    compare(recalibrated)
""",
}


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def statistics(world):
    """What each process found: method -> with the others, alone."""
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), "KERAS_BACKEND": NAME, "TF_CPP_MIN_LOG_LEVEL": "3"}
    port = str(free_port())
    command = [sys.executable, "-c", DATA + PROGRAMS[NAME]]
    processes = [
        subprocess.Popen(
            [*command, str(rank), str(world), port],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]
    try:
        ended = [process.communicate(timeout=100) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * world, "\n".join(error for _, error in ended)
    return [json.loads(output.splitlines()[-1]) for output, _ in ended]


def numbers(said):
    return [np.frombuffer(bytes.fromhex(text), "float32") for text in said]


@pytest.mark.parametrize("world", [2, 4])
def test_processes_find_what_one_finds(world):
    if NAME != "torch" and world == 4:
        pytest.skip("torch runs four; they take the better part of a minute to start elsewhere")
    said = statistics(world)
    for method, (together, alone) in said[0].items():
        assert all(other[method] == [together, alone] for other in said)
        # What is merged is float64, in another order; what is kept, float32. The second layer sees what the first kept.
        for found, wanted in zip(numbers(together), numbers(alone), strict=True):
            np.testing.assert_array_max_ulp(found, wanted, maxulp=1 if method == "pooled" else 8)
