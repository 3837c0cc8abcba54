# SPDX-License-Identifier: Apache-2.0
"""Kernel and bias after folding, against the longhand: apply the layer, apply the normalizer."""

import numpy as np
import pytest

from evenkeel.surgery.fold.algebra import Kernel, Linear, after, before
from evenkeel.surgery.fold.plan import Call, Normalizer, plan

# What a layer does at one position of its output: every tap of the kernel sees one value of each channel.
LAYERS = {
    "dense": ("io", "i", "o"),
    "grouped": ("tigo", "gi", "go"),
    "torch grouped": ("goit", "gi", "go"),
    "torch transposed": ("giot", "gi", "go"),
    "depthwise": ("tgo", "g", "go"),
}
SIZES = {"t": 3, "g": 2, "i": 4, "o": 5}


def linear(labels, reads, writes):
    generator = np.random.default_rng(0)
    kernel = generator.normal(size=[SIZES[label] for label in labels])
    bias = generator.normal(size=[SIZES[label] for label in writes])
    return Linear((Kernel(kernel, labels),), bias, writes, {1: reads}, {1: writes})


def apply(layer, x, labels, reads, writes):
    """x has one value for each tap and channel."""
    taps = "t" if "t" in labels else ""
    x = x.reshape([SIZES[label] for label in taps + reads])
    return (np.einsum(f"{labels},{taps}{reads}->{writes}", layer.kernels[0].values, x) + layer.bias).ravel()


def affine(labels):
    generator = np.random.default_rng(1)
    channels = int(np.prod([SIZES[label] for label in labels]))
    return generator.normal(size=channels), generator.normal(size=channels)


def data(labels, reads):
    channels = int(np.prod([SIZES[label] for label in reads]))
    return np.random.default_rng(2).normal(size=(SIZES["t"] if "t" in labels else 1, channels))


@pytest.mark.parametrize("name", LAYERS)
def test_after(name):
    labels, reads, writes = LAYERS[name]
    layer, x, (scale, offset) = linear(*LAYERS[name]), data(labels, reads), affine(writes)
    got = apply(after(layer, 1, scale, offset), x, *LAYERS[name])
    np.testing.assert_allclose(got, scale * apply(layer, x, *LAYERS[name]) + offset, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("name", LAYERS)
def test_before(name):
    labels, reads, _ = LAYERS[name]
    layer, x, (scale, offset) = linear(*LAYERS[name]), data(labels, reads), affine(reads)
    got = apply(before(layer, 1, scale, offset), x, *LAYERS[name])
    np.testing.assert_allclose(got, apply(layer, scale * x + offset, *LAYERS[name]), rtol=1e-13, atol=1e-13)


def bn(mean, variance):
    return Normalizer.of(1, [mean] * 2, [variance] * 2, None, None, 0.0)


def dense():
    return Linear((Kernel(np.eye(2), "io"),), np.zeros(2), "o", {1: "i"}, {1: "o"})


def test_a_plan_prefers_the_layer_before():
    calls = {
        0: Call("input", "Input", ()),
        1: Call("one", "Dense", (0,), dense()),
        2: Call("bn", "BatchNormalization", (1,), bn(1.0, 4.0)),
        3: Call("two", "Dense", (2,), dense()),
    }
    result = plan(calls, [3])
    assert result.folded == [("bn", "one", "before")] and list(result.linears) == [1]
    np.testing.assert_array_equal(result.linears[1].kernels[0].values, np.eye(2) / 2)
    np.testing.assert_array_equal(result.linears[1].bias, [-0.5, -0.5])


@pytest.mark.parametrize("variance", [0.0, np.nan, -1.0])
def test_a_scale_that_is_not_finite_stays(variance):
    calls = {
        0: Call("input", "Input", ()),
        1: Call("one", "Dense", (0,), dense()),
        2: Call("bn", "BatchNormalization", (1,), bn(0.0, variance)),
    }
    assert plan(calls, [2]).left == [("bn", "its scale or offset is not finite")]
