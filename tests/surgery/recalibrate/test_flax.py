# SPDX-License-Identifier: Apache-2.0
"""Flax nnx modules, recalibrated."""

import importlib.util

import numpy as np
import pytest

import oracle
from conftest import NAME

if NAME != "jax" or importlib.util.find_spec("flax") is None:
    pytest.skip("of JAX, with Flax", allow_module_level=True)

from flax import nnx

from evenkeel.surgery.recalibrate import recalibrate

METHODS = ["pooled", "sequential"]


class Network(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.first, self.second = nnx.BatchNorm(4, rngs=rngs), nnx.BatchNorm(3, rngs=rngs)
        self.dense = nnx.Linear(4, 3, use_bias=False, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.unused = nnx.BatchNorm(2, rngs=rngs)

    def __call__(self, x, mask=None):
        return self.second(self.dense(self.dropout(self.first(x, mask=mask))))


def numbers(mean=0.0):
    return np.random.default_rng(0).normal(mean, 2, (20, 4)).astype("float32")


def statistics(layer):
    return np.array([layer.mean[...], layer.var[...]])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("training", [True, False])
def test_statistics_are_of_all_values(method, training):
    network, x = Network(), numbers(1e3)
    (network.train if training else network.eval)()
    report = recalibrate(network, x, batch_size=8, method=method)
    np.testing.assert_allclose(statistics(network.first), oracle.moments(x)[:2], rtol=1e-6)
    parts = [x] if method == "sequential" else np.split(x, [8, 16])
    normalized = [oracle.normalize(part, *oracle.moments(part)[:2], epsilon=1e-5) for part in parts]
    wanted = oracle.moments(np.concatenate(normalized) @ np.array(network.dense.kernel[...], "float64"))[:2]
    np.testing.assert_allclose(statistics(network.second), wanted, rtol=1e-3, atol=1e-3)
    assert report.unreached == ["unused"] and (statistics(network.unused) == [[0, 0], [1, 1]]).all()
    assert network.first.use_running_average is network.dropout.deterministic is not training


def test_masked_values_do_not_count():
    network, x = Network(), numbers()
    mask = np.ones((20, 1), bool)
    mask[5:9] = False
    recalibrate(network, {"x": x, "mask": mask}, batch_size=8)
    np.testing.assert_allclose(statistics(network.first), oracle.moments(x, weights=mask)[:2], rtol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_an_exception_leaves_all_as_it_was(method):
    network, call = Network(), nnx.BatchNorm.__call__

    def batches():
        yield numbers(5)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        recalibrate(network, batches, method=method)
    assert nnx.BatchNorm.__call__ is call and not network.first.use_running_average
    assert (statistics(network.first) == [[0] * 4, [1] * 4]).all()
