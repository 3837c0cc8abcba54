# SPDX-License-Identifier: Apache-2.0
"""`synchronized=True` under a real MirroredStrategy of two replicas, in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import NAME

pytestmark = pytest.mark.skipif(NAME != "tensorflow", reason="replicas in one process are TensorFlow's")

PROGRAM = """
import sys
import numpy as np
import tensorflow as tf

cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
import evenkeel as ek

rows = np.random.default_rng(0).normal([1e3, 2, 3], 2, (8, 3)).astype("float32")
shards = [slice(0, 3), slice(3, 8)]  # unequal
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])

def whole_batch(synchronized, masked):
    mask = np.array([1, 1, 0, 1, 1, 0, 1, 1], bool) if masked else np.ones(8, bool)
    with strategy.scope():
        layer = ek.BatchNormalization(momentum=0.0, synchronized=synchronized)
        layer.build((None, 3))

    def value(context):
        shard = shards[context.replica_id_in_sync_group]
        return tf.constant(rows[shard]), tf.constant(mask[shard])

    def step(x, mask):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, training=True, mask=mask if masked else None)
            loss = tf.reduce_sum(y**3)
        return y, tape.gradient(loss, x)

    inputs = strategy.experimental_distribute_values_from_function(value)
    y, dx = tf.function(lambda pair: strategy.run(step, pair))(inputs)
    y, dx = (np.concatenate([part.numpy() for part in strategy.experimental_local_results(item)]) for item in (y, dx))

    with tf.GradientTape() as tape:
        alone = ek.BatchNormalization(momentum=0.0)
        x = tf.constant(rows)
        tape.watch(x)
        wanted = alone(x, training=True, mask=tf.constant(mask) if masked else None)
        loss = tf.reduce_sum(wanted**3)
    same = [
        np.allclose(y, wanted, atol=2e-3),
        np.allclose(dx, tape.gradient(loss, x), atol=2e-2),
        np.allclose(layer.moving_variance.numpy(), alone.moving_variance.numpy(), rtol=1e-4),
        np.allclose(layer.moving_mean.numpy(), alone.moving_mean.numpy(), rtol=1e-5),
    ]
    print(all(same), same, file=sys.stderr)
    return all(same)

for case in [(True, False), (True, True), (False, False)]:
    print(whole_batch(*case))
"""


@pytest.fixture(scope="module")
def found():
    """Whether it is the whole batch's: synchronized, synchronized with a mask, and not synchronized."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src")}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.split()[-3:]


@pytest.mark.parametrize("masked", [False, True])
def test_two_replicas_are_one_batch(found, masked):
    assert found[masked] == "True"


def test_without_it_they_are_two(found):
    assert found[2] == "False"
