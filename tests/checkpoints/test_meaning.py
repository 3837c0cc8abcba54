# SPDX-License-Identifier: Apache-2.0
"""Names and layouts of four conventions: each way there and back, and what the libraries themselves make of it."""

import os

import numpy as np
import pytest

from evenkeel.checkpoints.contents import Checkpoint, Facts, Variable
from evenkeel.checkpoints.meaning import layers, relaid, translated
from evenkeel.errors import InputError

pytestmark = pytest.mark.skipif(os.environ.get("KERAS_BACKEND", "numpy") != "numpy", reason="no framework takes part")

BN = {"gamma": (4,), "beta": (4,), "moving_mean": (4,), "moving_variance": (4,)}


def checkpoint(shapes, convention, facts=None):
    random = np.random.default_rng(0)
    values = {name: random.normal(size=shape).astype("float32") for name, shape in shapes.items()}
    variables = {name: Variable.of(value, name) for name, value in values.items()}
    return Checkpoint("example", "memory", convention, variables, facts or {})


def shapes_of(checkpoint):
    return {name: variable.shape for name, variable in checkpoint.variables.items()}


KERAS = {
    "dense/kernel": (2, 3),
    "dense/bias": (3,),
    "net/conv/kernel": (3, 5, 2, 4),
    "net/bn/gamma": (4,),
    "net/bn/beta": (4,),
    "net/bn/moving_mean": (4,),
    "net/bn/moving_variance": (4,),
    "depthwise/depthwise_kernel": (3, 5, 4, 1),
    "conv2d_transpose/kernel": (3, 5, 4, 2),
    "layer_norm/gamma": (4,),
    "layer_norm/beta": (4,),
    "embedding/embeddings": (10, 4),
    "conv1d/kernel": (5, 2, 4),
    "conv3d/kernel": (1, 2, 3, 4, 5),
    "global_step": (),
}
TORCH = {
    "dense.weight": (3, 2),
    "dense.bias": (3,),
    "net.conv.weight": (4, 2, 3, 5),
    "net.bn.weight": (4,),
    "net.bn.bias": (4,),
    "net.bn.running_mean": (4,),
    "net.bn.running_var": (4,),
    "net.bn.num_batches_tracked": (),
    "depthwise.weight": (4, 1, 3, 5),
    "conv2d_transpose.weight": (2, 4, 3, 5),
    "layer_norm.weight": (4,),
    "layer_norm.bias": (4,),
    "embedding.weight": (10, 4),
    "conv1d.weight": (4, 2, 5),
    "conv3d.weight": (5, 4, 1, 2, 3),
    "global_step": (),
}
FLAX = {
    "params/dense/kernel": (2, 3),
    "params/dense/bias": (3,),
    "params/net/conv/kernel": (3, 5, 2, 4),
    "params/net/bn/scale": (4,),
    "params/net/bn/bias": (4,),
    "batch_stats/net/bn/mean": (4,),
    "batch_stats/net/bn/var": (4,),
    "params/depthwise/kernel": (3, 5, 1, 4),
    "params/conv2d_transpose/kernel": (3, 5, 2, 4),
    "params/layer_norm/scale": (4,),
    "params/layer_norm/bias": (4,),
    "params/embedding/embedding": (10, 4),
    "params/conv1d/kernel": (5, 2, 4),
    "params/conv3d/kernel": (1, 2, 3, 4, 5),
    "params/global_step": (),
}
EACH = {"keras": KERAS, "tensorflow": KERAS, "torch": TORCH, "flax": FLAX}


@pytest.mark.parametrize("target", EACH)
@pytest.mark.parametrize("source", EACH)
def test_names_and_shapes(source, target):
    assert shapes_of(translated(checkpoint(EACH[source], source), target)) == EACH[target]


@pytest.mark.parametrize("target", EACH)
@pytest.mark.parametrize("source", EACH)
def test_there_and_back_is_the_same_bit_for_bit(source, target):
    before = checkpoint(EACH[source], source)
    after = translated(translated(before, target), source)
    skipped = "net.bn.num_batches_tracked"  # which only torch has
    assert {name: variable.read().tobytes() for name, variable in after.variables.items() if name != skipped} == {
        name: variable.read().tobytes() for name, variable in before.variables.items() if name != skipped
    }


@pytest.mark.parametrize(
    ("name", "word"),
    {
        "fc/weights": "fc.weight",
        "fc/biases": "fc.bias",
        "FullyConnected/W": "FullyConnected.weight",
        "sep/depthwise_weights": "sep.depthwise.weight",
        "dense_1/dense_1_W": "dense_1.weight",
        "layer-0/kernel/.ATTRIBUTES/VARIABLE_VALUE": "layer-0.weight",
        "fc/weights/Momentum": "fc.weights.Momentum",
    }.items(),
)
def test_other_words_of_tensorflow(name, word):
    shapes = {name: (1, 1, 2, 4)}
    if "depthwise" in name:
        shapes["sep/pointwise_weights"] = (1, 1, 8, 4)
    assert next(iter(translated(checkpoint(shapes, "tensorflow"), "torch").variables)) == word


def test_a_separable_convolution_is_two_modules():
    shapes = {"s/depthwise_kernel": (3, 3, 2, 2), "s/pointwise_kernel": (1, 1, 4, 5), "s/bias": (5,)}
    assert shapes_of(translated(checkpoint(shapes, "keras"), "torch")) == {
        "s.depthwise.weight": (4, 1, 3, 3),
        "s.pointwise.weight": (5, 4, 1, 1),
        "s.pointwise.bias": (5,),
    }


@pytest.mark.parametrize(
    "shapes",
    [
        {"bn/beta": (4,), "bn/gamma": (4,), "bn/mean/EMA": (4,), "bn/variance/EMA": (4,)},
        {
            "bn/beta": (4,),
            "bn/gamma": (4,),
            "bn/mean/ExponentialMovingAverage": (4,),
            "bn/variance/ExponentialMovingAverage": (4,),
        },
    ],
    ids=["tensorpack", "helper"],
)
def test_statistics_under_other_names_are_the_moving_ones(shapes):
    assert shapes_of(translated(checkpoint(shapes, "tensorflow"), "keras")) == {f"bn/{part}": (4,) for part in BN}


def test_other_layers_have_a_mean_too():
    shapes = {"normalization/mean": (4,), "normalization/variance": (4,), "normalization/count": ()}
    there = translated(checkpoint(shapes, "keras"), "torch")
    assert list(there.variables) == ["normalization.mean", "normalization.variance", "normalization.count"]
    assert shapes_of(translated(there, "keras")) == shapes


def test_within_a_convention_nothing_changes():
    before = checkpoint({"bn/gamma": (4,), "bn/mean/EMA": (4,), "x": ()}, "tensorflow")
    assert translated(before, "tensorflow") is before


def test_variables_of_a_layer_come_in_the_order_of_the_layer():
    names = ["bn/beta", "bn/gamma", "bn/moving_variance", "bn/moving_mean", "fc/bias", "fc/kernel"]
    shapes = dict(zip(names, [(4,), (4,), (4,), (4,), (4,), (2, 4)], strict=True))
    result = translated(checkpoint(shapes, "tensorflow"), "keras")
    assert list(result.variables) == [*(f"bn/{part}" for part in BN), "fc/kernel", "fc/bias"]


def test_two_variables_of_one_name_are_refused():
    shapes = {"a/weights": (2, 4), **{f"a/{part}": shape for part, shape in BN.items()}}
    with pytest.raises(InputError, match=r"a/weights and a/gamma would both be called a.weight"):
        translated(checkpoint(shapes, "tensorflow"), "torch")


def test_facts_go_with_the_normalizer():
    facts = {"net/bn": Facts(kind="BatchNormalization", epsilon=0.1, momentum=0.9, bessel_correction=False)}
    normalizer = translated(checkpoint(KERAS, "keras", facts), "torch").normalizers[0]
    assert (normalizer.name, normalizer.dialect) == ("net.bn", "torch")
    assert normalizer.facts == Facts(epsilon=0.1, momentum=0.9, bessel_correction=True)


def test_nothing_is_read_before_it_is_asked_for():
    def load():
        raise AssertionError("read")

    variable = Variable((10**6, 10**6), np.dtype("float32"), "nowhere", load)
    result = translated(Checkpoint("example", "memory", "keras", {"a/kernel": variable}), "torch").variables["a.weight"]
    with pytest.raises(AssertionError, match="read"):
        result.read()


def test_many_variables_take_seconds():
    shapes = {f"net/block_{i}/conv/kernel": (1, 1, 2, 2) for i in range(3 * 10**4)}
    assert len(translated(checkpoint(shapes, "keras"), "torch").variables) == 3 * 10**4


@pytest.mark.parametrize("name", ["", "/", "//", "a//kernel", "nan", "params", "value", ".", "a.b/kernel", "é/kernel"])
@pytest.mark.parametrize("source", EACH)
@pytest.mark.parametrize("target", EACH)
def test_odd_names_are_translated(name, source, target):
    result = translated(checkpoint({name: (2, 2)}, source), target)
    assert [variable.size for variable in result.variables.values()] == [4]


@pytest.mark.parametrize("shape", [(2, 3, 1), (6,), (3, 2, 2), (1, 3, 3)])
def test_a_shape_that_cannot_be_had_is_refused(shape):
    with pytest.raises(InputError, match=r"w has shape \(2, 3\), which cannot become"):
        relaid(Variable.of(np.zeros((2, 3)), "w"), ("dense", "keras"), ("dense", "torch"), shape)


def test_a_convolution_over_one_value_is_dense():
    kernel = np.arange(6.0).reshape(1, 1, 2, 3)
    dense = relaid(Variable.of(kernel), ("convolution", "keras"), ("dense", "torch"), (3, 2))
    np.testing.assert_array_equal(dense.read(), kernel[0, 0].T)


def test_a_depthwise_kernel_with_several_outputs_an_input():
    kernel = np.random.default_rng(0).normal(size=(3, 5, 2, 4))
    there = relaid(Variable.of(kernel), ("depthwise", "keras"), ("depthwise", "torch"))
    assert there.shape == (8, 1, 3, 5) and there.read()[1 * 4 + 3, 0, 2, 1] == kernel[2, 1, 1, 3]
    back = relaid(there, ("depthwise", "torch"), ("depthwise", "keras"), (3, 5, 2, 4))
    np.testing.assert_array_equal(back.read(), kernel)


def test_layers_of_a_scope_with_kernel_and_statistics():
    shapes = {"conv/W": (3, 3, 2, 4), "conv/beta": (4,), "conv/moving_mean": (4,), "conv/moving_variance": (4,)}
    found = layers(checkpoint(shapes, "tensorflow"))
    assert [(layer.path, layer.kind, list(layer.parts)) for layer in found] == [
        (("conv",), "convolution", ["kernel"]),
        (("conv",), "normalizer", ["beta", "mean", "variance"]),
    ]
