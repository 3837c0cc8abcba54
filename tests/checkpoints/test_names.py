# SPDX-License-Identifier: Apache-2.0
"""Normalizers found by the names that libraries give."""

import json
import os
import time

import pytest

from evenkeel.checkpoints.names import find

from conftest import GOLDENS

pytestmark = pytest.mark.skipif(os.environ.get("KERAS_BACKEND", "numpy") != "numpy", reason="no framework takes part")

FOUR = {"gamma", "beta", "mean", "variance"}


def found(text, kinds=None, **shapes):
    """`find` for names with a space between them, of shape (3,) where `shapes` has no other for the last part."""
    return find({name: shapes.get(name.rpartition("/")[2], (3,)) for name in text.split()}, kinds or {})


def only(text, kinds=None, **shapes):
    (normalizer,) = found(text, kinds, **shapes)
    return normalizer


def under(scope, leaves, separator="/"):
    return " ".join(f"{scope}{separator}{leaf}" for leaf in leaves.split())


TF = "beta gamma moving_mean moving_variance"
TORCH = "weight bias running_mean running_var num_batches_tracked"
HELPER = "mean variance beta gamma mean/ExponentialMovingAverage variance/ExponentialMovingAverage"

WHOLE = {
    "tf.layers": (under("net/batch_normalization_1", TF), "net/batch_normalization_1", "tf.layers"),
    "tf.layers in the root": ("beta gamma moving_mean moving_variance", "", "tf.layers"),
    "keras, in the order of its layer": (
        under("conv1_bn", "gamma beta moving_mean moving_variance"),
        "conv1_bn",
        "tf.layers",
    ),
    "slim's resnet_v1_50": (
        under("resnet_v1_50/block1/unit_1/bottleneck_v1/conv1/BatchNorm", TF),
        "resnet_v1_50/block1/unit_1/bottleneck_v1/conv1/BatchNorm",
        "tf.contrib.layers",
    ),
    "contrib, a second one": (under("BatchNorm_1", TF), "BatchNorm_1", "tf.contrib.layers"),
    "contrib, by the order of a file that is not sorted": (under("z", TF) + " a/kernel", "z", "tf.contrib.layers"),
    "contrib, by what it calls kernels": (under("bn", TF) + " fc/weights", "bn", "tf.contrib.layers"),
    "tflearn": (under("BatchNormalization", f"{TF} is_training"), "BatchNormalization", "tflearn"),
    "tflearn, in a scope of its own": (under("conv/bn", f"{TF} is_training"), "conv/bn", "tflearn"),
    "tf.layers, by its default name": (
        under("batch_normalization_2", TF) + " a/weights",
        "batch_normalization_2",
        "tf.layers",
    ),
    "helper class": (under("conv/bn", HELPER), "conv/bn", "helper"),
    "helper class whose averages were made inside of a scope": (
        "conv/bn/mean conv/bn/variance conv/bn/beta conv/bn/gamma conv/conv/bn/mean/ExponentialMovingAverage "
        "conv/conv/bn/variance/ExponentialMovingAverage",
        "conv/bn",
        "helper",
    ),
    "tensorpack": (under("conv0/bn", "gamma beta mean/EMA variance/EMA"), "conv0/bn", "tensorpack"),
    "torchvision": (under("layer1.0.bn1", TORCH, "."), "layer1.0.bn1", "torch"),
    "torchvision, by number": (under("layer2.0.downsample.1", TORCH, "."), "layer2.0.downsample.1", "torch"),
    "torch, saved with slashes": (under("layer2/0", TORCH), "layer2/0", "torch"),
    "flax": (
        "params/BatchNorm_0/bias params/BatchNorm_0/scale batch_stats/BatchNorm_0/mean batch_stats/BatchNorm_0/var",
        "BatchNorm_0",
        "flax",
    ),
    "flax, with dots": (
        "params.ResNetBlock_0.norm.bias params.ResNetBlock_0.norm.scale batch_stats.ResNetBlock_0.norm.mean "
        "batch_stats.ResNetBlock_0.norm.var",
        "ResNetBlock_0.norm",
        "flax",
    ),
    "flax nnx": (under("block/bn", "bias mean scale var"), "block/bn", "flax"),
    "flax nnx, with values": (under("bn", "bias/value mean/value scale/value var/value"), "bn", "flax"),
    "Keras 1": (
        under("bn_conv1", "bn_conv1_gamma bn_conv1_beta bn_conv1_running_mean bn_conv1_running_std"),
        "bn_conv1",
        "keras",
    ),
    "Keras 1, without groups": (
        "batchnormalization_1_gamma batchnormalization_1_beta batchnormalization_1_running_mean "
        "batchnormalization_1_running_std",
        "batchnormalization_1",
        "keras",
    ),
    "TensorFlow 2 object checkpoint": (
        under("model/layer_with_weights-1", " ".join(f"{leaf}/.ATTRIBUTES/VARIABLE_VALUE" for leaf in TF.split())),
        "model/layer_with_weights-1",
        "tf.keras",
    ),
}


@pytest.mark.parametrize("case", WHOLE)
def test_a_whole_normalizer_of_each_library(case):
    text, scope, dialect = WHOLE[case]
    normalizer = only(text)
    assert (normalizer.scope, normalizer.dialect, normalizer.missing) == (scope, dialect, ())
    assert normalizer.roles.keys() >= FOUR


@pytest.mark.parametrize(
    ("kind", "dialect"),
    [
        ("BatchNormalization", "tf.keras"),
        ("BatchNormalizationV1", "tf.keras"),
        ("SyncBatchNormalization", "tf.keras"),
        ("keras.layers.BatchNormalization", "keras"),
        ("evenkeel>BatchNormalization", "keras"),
    ],
)
def test_the_class_says_whose_names_they_are(kind, dialect):
    assert only(under("bn", TF), {"bn": kind}).dialect == dialect


OTHERS = {
    "renorm": (
        under("bn", f"{TF} moving_stddev renorm_mean renorm_stddev"),
        {"moving_stddev", "renorm_mean", "renorm_stddev"},
    ),
    "renorm of TensorFlow 1.13": (
        under("bn", f"{TF} renorm_mean renorm_mean_weight renorm_stddev renorm_stddev_weight"),
        {"renorm_mean", "renorm_mean_weight", "renorm_stddev", "renorm_stddev_weight"},
    ),
    "zero_debias": (
        under("net/bn", TF) + " " + under("net/bn/net/bn", "moving_mean/biased moving_mean/local_step"),
        {"mean_biased", "mean_local_step"},
    ),
    "averages of parts": (
        under("bn", TF) + " " + " ".join(f"bn/{leaf}/ExponentialMovingAverage" for leaf in TF.split()),
        {"gamma_average", "beta_average", "mean_average", "variance_average"},
    ),
    "a second average": (under("bn", f"{TF} gamma/ExponentialMovingAverage_1"), {"gamma_average"}),
    "our layer": (under("bn", f"{TF} updates"), {"updates"}),
    "helper class": (under("bn", HELPER), {"batch_mean", "batch_variance"}),
    "torch": (under("bn", TORCH), {"count"}),
    "optimizers": (
        under("bn", f"{TF} gamma/Adam gamma/Adam_1 beta/Momentum") + " optimizer/bn/gamma/m beta1_power",
        set(),
    ),
    "optimizers of Keras": (under("bn", TF) + " Adam/m/bn/gamma Adam/m/bn/beta Adam/v/bn/gamma Adam/v/bn/beta", set()),
    "optimizers of TensorFlow 2": (
        under("bn", " ".join(f"{leaf}/.ATTRIBUTES/VARIABLE_VALUE" for leaf in TF.split()))
        + " bn/gamma/.OPTIMIZER_SLOT/optimizer/m/.ATTRIBUTES/VARIABLE_VALUE",
        set(),
    ),
}


@pytest.mark.parametrize("case", OTHERS)
def test_what_else_it_keeps(case):
    text, others = OTHERS[case]
    shapes = dict.fromkeys(("renorm_mean_weight", "renorm_stddev_weight", "local_step", "num_batches_tracked"), ())
    assert only(text, **shapes).roles.keys() == FOUR | others


def test_the_averages_of_a_helper_class_are_its_statistics():
    roles = only(under("bn", HELPER)).roles
    assert roles["mean"] == "bn/mean/ExponentialMovingAverage"
    assert roles["batch_mean"] == "bn/mean"


MISSING = {
    "saved by trainable variables only": ("bn1/beta bn1/gamma", None, ("mean", "variance")),
    "a scope that says nothing": ("conv/norm1/beta conv/norm1/gamma", None, ("mean", "variance")),
    "without a scale": ("conv/BatchNorm/beta", None, ("mean", "variance")),
    "without an offset, by class": ("a/gamma", {"a": "BatchNormalization"}, ("mean", "variance")),
    "half of the statistics": ("a/moving_mean", None, ("variance",)),
    "torch, by name": ("net.bn1.weight net.bn1.bias", None, ("mean", "variance")),
    "torch, half of the statistics": ("a.running_var", None, ("mean",)),
    "flax, by name": ("params/BatchNorm_0/scale params/BatchNorm_0/bias", None, ("mean", "variance")),
    "helper class without averages": ("bn/mean bn/variance bn/beta bn/gamma", None, ("mean", "variance")),
}


@pytest.mark.parametrize("case", MISSING)
def test_what_is_missing_is_said(case):
    text, kinds, missing = MISSING[case]
    assert only(text, kinds).missing == missing


NONE = {
    "BERT": ("bert/encoder/layer_0/output/LayerNorm/beta bert/encoder/layer_0/output/LayerNorm/gamma", None),
    "Keras": ("layer_normalization_3/beta layer_normalization_3/gamma", None),
    "inside of an LSTM": ("rnn/layer_norm_basic_lstm_cell/input/gamma rnn/layer_norm_basic_lstm_cell/input/beta", None),
    "groups": ("GroupNorm_1/beta GroupNorm_1/gamma", None),
    "instances, with statistics": ("instance_norm/gamma instance_norm/moving_mean", None),
    "another class": ("bn/beta bn/gamma", {"bn": "LayerNormalization"}),
    "attention": ("attention/gamma attention/kernel", None),
    "torch convolution": ("conv.weight conv.bias", None),
    "torch layer": ("bn_proj.weight", None),
    "torch, a bias": ("bn.bias", None),
    "flax layers": ("params/LayerNorm_0/scale params/LayerNorm_0/bias batch_stats/x", None),
    "Normalization of Keras": ("normalization/mean normalization/variance normalization/count", None),
    "Adam's power": ("beta1_power beta2_power", None),
    "nothing": ("", None),
}


@pytest.mark.parametrize("case", NONE)
def test_what_is_no_normalizer(case):
    text, kinds = NONE[case]
    shapes = {"bn_proj.weight": (3, 3)}
    assert found(text, kinds, **shapes) == []


def test_a_part_of_another_size_is_none():
    normalizer = only(under("bn", TF), gamma=(7,))
    assert normalizer.roles.keys() == {"beta", "mean", "variance"}


def test_contrib_makes_no_gamma_by_default():
    text = "z/beta z/moving_mean z/moving_variance a/kernel"
    assert only(text).dialect == "tf.contrib.layers"
    assert only(" ".join(sorted(text.split()))).dialect == "tf.layers"  # such an order says nothing


def test_where_sizes_are_at_odds_that_of_the_mean_counts():
    normalizer = only(under("bn", "gamma beta moving_mean moving_variance"), gamma=(7,), beta=(7,))
    assert normalizer.roles.keys() == {"mean", "variance"}


def test_parts_may_have_several_axes():
    shape = (1, 1, 3)
    shapes = dict.fromkeys(TF.split(), shape) | {"beta": (3,)}
    assert only(under("bn", TF), **shapes).roles.keys() == FOUR


def test_normalizers_come_in_the_order_of_the_file():
    text = f"{under('z', TF)} dense/kernel {under('a', TF)} {under('m', TF)}"
    assert [normalizer.scope for normalizer in found(text)] == ["z", "a", "m"]


ODD = ["", "/", "//gamma", "nan", ".", "..", "\0", "gamma", "/gamma", "🙂/moving_mean", "a/" * 10_000 + "moving_mean"]
ODD += ["a." * 10_000 + "running_mean", "_" * 10_000, "_gamma", "a\nb_gamma", "/biased", "params/", "batch_stats/scale"]


@pytest.mark.parametrize("name", ODD, ids=lambda name: repr(name[:20]))
def test_odd_names(name):
    for normalizer in find({name: (3,)}, {}):
        assert list(normalizer.roles.values()) == [name]


def test_two_names_for_one_part():
    shapes = {"batch_stats/bn/mean": (3,), "batch_stats/bn/var": (3,), "params/bn/scale": (3,), "bn/scale": (3,)}
    (normalizer,) = find(shapes, {})
    assert normalizer.roles["gamma"] == "params/bn/scale"


def test_many_names_take_no_time():
    names = [f"net/{number}/conv/{number}/bn/{leaf}" for number in range(25_000) for leaf in TF.split()]
    start = time.process_time()
    assert len(find(dict.fromkeys(names, (3,)), {})) == 25_000
    assert time.process_time() - start < 10  # measured 0.8; quadratic would be hours


EXPECTED = {
    "a1_contrib_mlp": ("bn1 bn2", "tf.contrib.layers", ()),
    "b1_layers_conv": ("bn1 bn2", "tf.layers", ()),
    "c1_estimator_mlp": ("bn0 bn1", "tf.layers", ()),
    "d1_keras_mlp": ("bn_0 bn_1", "tf.keras", ()),
    "e1_slim_resnet_block": (
        "resnet/block1/unit_1/conv1/BatchNorm resnet/block1/unit_1/conv2/BatchNorm "
        "resnet/block1/unit_1/shortcut/BatchNorm resnet/conv1/BatchNorm",
        "tf.contrib.layers",
        (),
    ),
    "f1_saved_model_mlp": ("bn0 bn1", "tf.layers", ()),
    "g1_v1_format_mlp": ("bn0 bn1", "tf.layers", ()),
    "h1_trainable_only_mlp": ("bn1 bn2", "tf.contrib.layers", ("mean", "variance")),
    "i1_updates_never_run_mlp": ("bn0 bn1", "tf.layers", ()),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_checkpoints_of_tensorflow_1_15(name):
    scopes, dialect, missing = EXPECTED[name]
    meta = json.loads((GOLDENS / "checkpoints" / name / "meta.json").read_text())
    shapes = {
        saved: tuple(meta["variable_shapes"][saved]) for saved in meta.get("saved_variables") or meta["variables"]
    }
    kinds = dict.fromkeys(meta.get("batch_norm_layers", ()), "BatchNormalization")
    normalizers = find(shapes, kinds)
    assert [normalizer.scope for normalizer in normalizers] == scopes.split()
    assert {(normalizer.dialect, normalizer.missing) for normalizer in normalizers} == {(dialect, missing)}
    assert all(normalizer.roles.keys() == FOUR - set(missing) for normalizer in normalizers)
