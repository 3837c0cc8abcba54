# SPDX-License-Identifier: Apache-2.0
"""Models of Keras 1 and 2 and of tf.keras, as files of Keras 3."""

import contextlib
import json
import os
import sys

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import evenkeel as ek
from evenkeel.checkpoints import Checkpoint, Variable, keras_upgrade
from evenkeel.checkpoints.formats import hdf5, keras
from evenkeel.errors import InputError

from conftest import GOLDENS

numpy_only = pytest.mark.skipif(
    os.environ.get("KERAS_BACKEND", "numpy") != "numpy", reason="one library is enough: Keras asks it for numbers only"
)
tensorflow_only = pytest.mark.skipif(
    os.environ.get("KERAS_BACKEND") != "tensorflow", reason="tf_keras, which writes the files, is TensorFlow's"
)
pytestmark = pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file:UserWarning")
D1 = GOLDENS / "checkpoints" / "d1_keras_mlp"


def conv(layers, inputs):
    h = layers.Conv2D(4, 3, padding="same", name="conv", kernel_regularizer="l2")(inputs)
    h = layers.LeakyReLU(alpha=0.1)(layers.BatchNormalization(name="bn", epsilon=0.01, momentum=0.9)(h))
    h = layers.DepthwiseConv2D(3, use_bias=False, activation="relu", depthwise_initializer="he_normal")(h)
    h = layers.ReLU(max_value=6.0)(layers.BatchNormalization(scale=False)(layers.SeparableConv2D(5, 3)(h)))
    h = layers.Conv2DTranspose(3, 2, strides=2, kernel_constraint="max_norm")(layers.ZeroPadding2D(1)(h))
    h = layers.LayerNormalization()(layers.MaxPooling2D()(h))
    h = layers.GlobalAveragePooling2D()(layers.PReLU(shared_axes=[1, 2])(layers.Dropout(0.5)(h)))
    return layers.Dense(2, activation="softmax")(h)


def nested(layers, inputs):
    from tf_keras import Input, Model, Sequential

    inner = Sequential([layers.Conv2D(4, 3, input_shape=(8, 8, 3)), layers.BatchNormalization(name="bn")], name="inner")
    middle = Input((6, 6, 4))
    twice = Sequential([layers.DepthwiseConv2D(1, name="same")], name="twice")  # does not know its input yet
    outer = Model(middle, layers.BatchNormalization(name="bn")(twice(twice(middle))), name="outer")
    return outer(inner(inputs))


def nested_end(layers, inputs):
    from tf_keras import Sequential

    return Sequential([layers.BatchNormalization(), layers.Flatten(), layers.Dense(2)], name="head")(inputs)


def shared(layers, inputs):
    one = layers.Conv2D(3, 3, padding="same", name="one")
    normal = layers.BatchNormalization(name="both")
    first = normal(one(inputs))
    return layers.Concatenate(axis=-1)([layers.Add()([first, inputs]), normal(one(first)), first])


def renorm(layers, inputs):
    return layers.BatchNormalization(renorm=True, renorm_clipping={"rmax": 2.0}, renorm_momentum=0.8)(inputs)


def virtual(layers, inputs):
    return layers.BatchNormalization(virtual_batch_size=2)(inputs)


def axes(layers, inputs):
    return layers.BatchNormalization(axis=[1, 3])(inputs)


def virtual_axes(layers, inputs):
    return layers.BatchNormalization(axis=[1, 3], virtual_batch_size=2)(inputs)


def first_axis(layers, inputs):
    return layers.BatchNormalization(axis=1)(inputs)


def slashes(layers, inputs):
    h = layers.Conv2D(3, 3, name="conv1/conv")(inputs)
    return layers.BatchNormalization(name="conv1/bn")(h)


def sequence(layers, inputs):
    h = layers.BatchNormalization()(layers.Reshape((8, 24))(inputs))
    h = layers.TimeDistributed(layers.Dense(6), name="each")(h)
    h = layers.Bidirectional(layers.LSTM(4, return_sequences=True), name="both")(h)
    h = layers.MultiHeadAttention(2, 3, name="attention")(h, value=h)
    state = layers.Dense(4)(layers.GlobalMaxPooling1D()(h))
    return layers.GRU(4, name="last")(h, initial_state=state)


def two_ends(layers, inputs):
    h = layers.BatchNormalization()(layers.Flatten()(inputs))
    return [layers.Dense(2, name="a")(h), layers.Dense(3, name="b")(h)]


NETS = [conv, nested, nested_end, shared, renorm, virtual, first_axis, slashes, sequence, two_ends]
SEVERAL_AXES = [axes, virtual_axes]
OUR_LAYER = [renorm, virtual, *SEVERAL_AXES]


@pytest.fixture(autouse=True)
def names_start_anew():
    """Numbers in the names that tf_keras gives are for others to count."""
    yield
    if "tf_keras" in sys.modules:
        sys.modules["tf_keras"].backend.clear_session()


def made(net):
    import tf_keras

    tf_keras.backend.clear_session()
    inputs = tf_keras.Input((8, 8, 3), name="image")
    model = tf_keras.Model(inputs, net(tf_keras.layers, inputs), name="whole")
    generator = np.random.default_rng(0)
    for variable in model.weights:  # outputs of about 1, so that the rounding of each library is of one size
        inputs = np.prod(variable.shape[:-1]) if "kernel" in variable.name else 1
        variable.assign(generator.uniform(0.5, 1.5, variable.shape) / inputs)
    return model


X = np.random.default_rng(1).normal(size=(4, 8, 8, 3)).astype("float32")


def outputs(model, x=X):
    values = model(x)
    return [np.asarray(value) for value in (values if isinstance(values, list) else [values])]


@tensorflow_only
@pytest.mark.parametrize("source", ["old.keras", "old.h5"])
@pytest.mark.parametrize(
    ("net", "target"),
    [*((net, "new.keras") for net in NETS + SEVERAL_AXES), *((net, "new.h5") for net in [nested, virtual, sequence])],
)
def test_predictions_of_tf_keras_stay(net, source, target, tmp_path):
    import keras as library

    model = made(net)
    model.save(tmp_path / source)
    report = ek.convert(tmp_path / source, tmp_path / target)
    loaded = library.saving.load_model(tmp_path / target)
    for found, wanted in zip(outputs(loaded), outputs(model), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-6)
    assert report.difference == 0
    assert any("evenkeel.BatchNormalization" in note for note in report.notes) == (net in OUR_LAYER)


@tensorflow_only
@pytest.mark.parametrize("net", SEVERAL_AXES)
def test_several_axes_are_not_for_h5(net, tmp_path):
    made(net).save(tmp_path / "old.keras")
    with pytest.raises(InputError, match=r"only one of axis=\[.*\] of batch_normalization .* write new\.keras"):
        ek.convert(tmp_path / "old.keras", tmp_path / "new.h5")
    assert [path.name for path in tmp_path.iterdir()] == ["old.keras"]


@tensorflow_only
def test_a_model_without_an_input_of_its_own(tmp_path):
    import keras as library
    from tf_keras import Sequential, layers

    model = Sequential([layers.Flatten(), layers.BatchNormalization(), layers.Dense(2)])
    model.build((None, 8, 8, 3))
    model.save(tmp_path / "old.h5")
    ek.convert(tmp_path / "old.h5", tmp_path / "new.keras")
    loaded = library.saving.load_model(tmp_path / "new.keras")
    np.testing.assert_allclose(outputs(loaded)[0], outputs(model)[0], atol=1e-6)


@tensorflow_only
def test_training_goes_on_with_our_layer(tmp_path):
    """Moving statistics after one more step are those of tf_keras."""
    import keras as library

    model = made(renorm)
    model.save(tmp_path / "old.keras")
    ek.convert(tmp_path / "old.keras", tmp_path / "new.keras")
    loaded = library.saving.load_model(tmp_path / "new.keras")
    model(X, training=True)
    loaded(X, training=True)
    for found, wanted in zip(loaded.weights, model.weights, strict=True):
        np.testing.assert_allclose(np.asarray(found.value), wanted.numpy(), rtol=1e-5, err_msg=found.path)


@tensorflow_only
def test_types_of_layers(tmp_path):
    import keras as library
    import tf_keras

    tf_keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        model = made(first_axis)
    finally:
        tf_keras.mixed_precision.set_global_policy("float32")
    model.save(tmp_path / "old.keras")
    ek.convert(tmp_path / "old.keras", tmp_path / "new.keras")
    loaded = library.saving.load_model(tmp_path / "new.keras")
    assert loaded.layers[-1].dtype_policy.name == "mixed_bfloat16"


@tensorflow_only
def test_operations_of_tensorflow_are_refused(tmp_path):
    made(lambda layers, inputs: layers.Flatten()(inputs) * 2.0).save(tmp_path / "old.h5")
    with pytest.raises(InputError, match=r"old\.h5: layer tf\.math\.multiply is a TFOpLambda.*math\.multiply"):
        ek.convert(tmp_path / "old.h5", tmp_path / "new.keras")


@tensorflow_only
def test_the_sample_variance_is_told_and_can_be_converted(tmp_path):
    made(conv).save(tmp_path / "old.h5")
    notes = ek.convert(tmp_path / "old.h5", tmp_path / "new.keras").notes
    assert [note for note in notes if "sample variance" in note] == [
        "bn, batch_normalization: kept the sample variance (n - 1) in training, and keras.layers.BatchNormalization "
        "keeps the population variance (n); the same until it is trained on"
    ]
    ek.convert(tmp_path / "old.h5", tmp_path / "scaled.keras", examples=10)
    old, new = hdf5.read(tmp_path / "old.h5"), keras.read(tmp_path / "scaled.keras")
    name = "bn/moving_variance"
    np.testing.assert_allclose(new.variables[name].read(), old.variables[name].read() * 0.9, rtol=1e-6)


@numpy_only
@pytest.mark.parametrize("target", ["d1.keras", "d1.h5"])
def test_model_of_tensorflow_1(target, tmp_path):
    import keras as library

    report = ek.convert(D1 / "model.h5", tmp_path / target)
    loaded = library.saving.load_model(tmp_path / target)
    with np.load(D1 / "io.npz") as arrays:
        np.testing.assert_allclose(outputs(loaded, arrays["x"])[0], arrays["y_infer"], rtol=0, atol=1e-6)
    assert (report.difference, report.normalizers, report.notes) == (0, 2, ())
    assert list(report.renamed) == list(report.renamed.values())


@numpy_only
def test_upgrading_twice_is_upgrading_once():
    once, _ = keras_upgrade.upgraded(hdf5.read(D1 / "model.h5"))
    again, notes = keras_upgrade.upgraded(once)
    assert (again.model, list(again.variables), notes) == (once.model, list(once.variables), [])


# Models of Keras 1 and 2.


def file(path, layers, weights):
    """An `.h5` file as old Keras wrote it: layer -> its variables."""
    with h5py.File(path, "w") as whole:
        whole.attrs["model_config"] = json.dumps({"class_name": "Sequential", "config": layers}).encode()
        root = whole.create_group("model_weights")
        root.attrs["layer_names"] = [layer["config"]["name"].encode() for layer in layers]
        for layer in layers:
            name = layer["config"]["name"]
            values = weights.get(name, {})
            group = root.create_group(name)
            group.attrs["weight_names"] = [word.encode() for word in values]
            for word, value in values.items():
                group[word] = np.asarray(value, "float32")


KERNEL = np.arange(36.0).reshape(3, 3, 1, 4) / 36
STATISTICS = {
    "gamma": np.arange(1.0, 5),
    "beta": np.arange(4.0),
    "running_mean": np.ones(4),
    "running_std": np.full(4, 4),
}
CONVOLUTION_1 = {
    "name": "c",
    "batch_input_shape": [None, 6, 6, 1],
    "input_dtype": "float32",
    "nb_filter": 4,
    "nb_row": 3,
    "nb_col": 3,
    "init": "glorot_uniform",
    "activation": "relu",
    "border_mode": "same",
    "subsample": [2, 2],
    "dim_ordering": "tf",
    "W_regularizer": None,
    "bias": True,
}
NORMAL_1 = {
    "name": "n",
    "mode": 0,
    "axis": -1,
    "momentum": 0.9,
    "epsilon": 0.01,
    "beta_init": "zero",
    "gamma_init": "one",
}


def keras_1(path, convolution=CONVOLUTION_1, normal=NORMAL_1):
    layers = [("Convolution2D", convolution), ("BatchNormalization", normal), ("Dropout", {"name": "d", "p": 0.5})]
    weights = {
        "c": {"c_W": KERNEL, "c_b": np.arange(4.0)},
        "n": {f"n_{word}": value for word, value in STATISTICS.items()},
    }
    file(path, [{"class_name": kind, "config": config} for kind, config in layers], weights)


@numpy_only
@pytest.mark.parametrize("target", ["new.keras", "new.h5"])
def test_model_of_keras_1(target, tmp_path):
    import keras as library

    keras_1(tmp_path / "old.h5")
    report = ek.convert(tmp_path / "old.h5", tmp_path / target)
    x = np.random.default_rng(0).normal(size=(2, 6, 6, 1)).astype("float32")
    layer = library.layers.Conv2D(4, 3, strides=2, padding="same", activation="relu")
    h = layer(x)
    layer.set_weights([KERNEL, np.arange(4.0)])
    wanted = (np.asarray(layer(x)) - 1) / np.sqrt(4.01) * np.arange(1.0, 5) + np.arange(4.0)
    assert h.shape == wanted.shape
    found = outputs(library.saving.load_model(tmp_path / target), x)[0]
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    assert report.renamed["c/W"] == "c/kernel"
    assert report.notes == ()


@numpy_only
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"normal": {**NORMAL_1, "mode": 1}}, r"layer n does not normalize .* \(mode=1 of Keras 1\)"),
        ({"convolution": {**CONVOLUTION_1, "dim_ordering": "th"}}, "layer c is a Convolution2D with kernels as Theano"),
        ({"convolution": {**CONVOLUTION_1, "swirl": 3}}, "layer c is a Convolution2D with swirl=3, which"),
        (
            {"convolution": {**CONVOLUTION_1, "nb_filter": 5}},
            r"c_W.* of shape \(3, 3, 1, 4\), and c/kernel .* \(3, 3, 1, 5\)",
        ),
    ],
    ids=["mode", "theano", "argument", "shape"],
)
def test_what_keras_3_cannot_do_is_refused(changes, message, tmp_path):
    keras_1(tmp_path / "old.h5", **changes)
    with pytest.raises(InputError, match=message):
        ek.convert(tmp_path / "old.h5", tmp_path / "new.keras")
    assert [path.name for path in tmp_path.iterdir()] == ["old.h5"]


def dense(**settings):
    return {"class_name": "Dense", "config": {"name": "fc", "units": 2, "batch_input_shape": [None, 3], **settings}}


def normal(kind="BatchNormalization", **settings):
    return {"class_name": kind, "config": {"name": "bn", "axis": [1], **settings}}


def upgraded(*layers):
    return keras_upgrade.modernized({"class_name": "Sequential", "config": {"name": "net", "layers": list(layers)}})


@numpy_only
@pytest.mark.parametrize(
    ("layer", "kind", "axis", "told"),
    [
        (normal(), "keras", 1, None),
        (normal(axis=[3]), "keras", 3, "sample variance"),
        (normal(axis=[3], fused=False), "keras", 3, None),
        (normal(axis=-1), "keras", -1, "sample variance"),
        (normal(axis=-1, synchronized=False), "keras", -1, None),
        (normal("BatchNormalizationV1"), "keras", 1, None),
        (normal("BatchNormalizationV2"), "keras", 1, None),
        (normal(axis=[1, 2]), "evenkeel", [1, 2], "evenkeel"),
        (normal(axis=[4], virtual_batch_size=2), "evenkeel", 3, "evenkeel"),
        (normal(axis=[2, 4], virtual_batch_size=2), "evenkeel", [1, 3], "evenkeel"),
        (normal(axis=[-1], virtual_batch_size=2), "evenkeel", -1, "evenkeel"),
        (normal(axis=[3], virtual_batch_size=None), "keras", 3, "sample variance"),
        (normal(axis=[1], renorm=True), "evenkeel", 1, "evenkeel"),
    ],
)
def test_which_layer_a_normalizer_becomes(layer, kind, axis, told):
    model, notes = upgraded(layer)
    (entry,) = model["config"]["layers"]
    assert (entry["module"].partition(".")[0], entry["config"]["axis"]) == (kind, axis)
    assert [note for note in notes if told and told in note] == notes[: told is not None]
    assert bool(notes) == (told is not None)


@numpy_only
def test_one_axis_is_fused_where_the_model_is_channels_first():
    pool = {"class_name": "MaxPooling2D", "config": {"name": "pool", "data_format": "channels_first"}}
    assert "sample variance" in upgraded(pool, normal())[1][0]


@numpy_only
def test_synchronized_normalization():
    model, _ = upgraded(normal("SyncBatchNormalization"))
    assert model["config"]["layers"][0]["config"]["synchronized"] is True


@numpy_only
@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ({"dtype": {"class_name": "Policy", "config": {"name": "mixed_float16"}}}, {"dtype": "mixed_float16"}),
        ({"dtype": {"class_name": "Policy", "config": {"name": "infer"}}}, {"dtype": None}),
        ({"activation": {"class_name": "function", "module": "builtins", "config": "relu"}}, {"activation": "relu"}),
        (
            {"kernel_initializer": {"class_name": "Zeros", "config": {"dtype": "float32"}}},
            {
                "kernel_initializer": {
                    "module": "keras.initializers",
                    "class_name": "Zeros",
                    "config": {},
                    "registered_name": None,
                }
            },
        ),
        ({"W_regularizer": None, "output_dim": 3}, {"kernel_regularizer": None, "units": 3}),
    ],
)
def test_settings(arguments, wanted):
    model, _ = upgraded(dense(**arguments))
    first, layer = model["config"]["layers"]
    assert first["config"] == {"batch_shape": [None, 3], "name": "fc_input"}
    assert layer["config"] == {"name": "fc", "units": 2, **wanted}


LAMBDA = {"class_name": "Lambda", "config": {"name": "l", "function": ["4wEAAAAAAAAAAAAAAA==", None, None]}}


@numpy_only
@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (LAMBDA, "layer l is a Lambda, and code that a file names is not run here"),
        ({"class_name": "Mine", "config": {"name": "m"}}, "layer m is a Mine, which Keras 3 does not have"),
        ({"class_name": "CuDNNLSTM", "config": {"name": "r"}}, "layer r is a CuDNNLSTM, which Keras 3 does not have"),
        ({"class_name": "TFOpLambda", "config": {"name": "t", "function": "io.read_file"}}, r"\(io\.read_file\)"),
        ({"class_name": "TimeDistributed", "config": {"name": "t", "layer": LAMBDA}}, "layer l is a Lambda"),
        (dense(kernel_initializer={"class_name": "Mine", "config": {}}), "layer fc .* kernel_initializer=Mine"),
        (dense(kernel_regularizer={"class_name": "L2", "config": {"l3": 1.0}}), r"layer fc .*=L2 with l3=1\.0"),
        ({"class_name": "Sequential", "config": {"name": "s", "layers": [LAMBDA]}}, "layer l is a Lambda"),
        (dense(activation=LAMBDA), "layer l is a Lambda"),
    ],
)
def test_code_and_classes_of_others_are_refused(layer, message):
    with pytest.raises(InputError, match=message):
        upgraded(layer)


def damaged(**changes):
    config = {
        "name": "net",
        "layers": [{"class_name": "InputLayer", "config": {"name": "x"}, "name": "x", "inbound_nodes": []}],
        "input_layers": [["x", 0, 0]],
        "output_layers": [["x", 0, 0]],
    }
    return {"class_name": "Model", "config": {**config, **changes}}


@numpy_only
@pytest.mark.parametrize(
    "model",
    [
        {"class_name": "Mine", "config": {}},
        {"class_name": ["Model"], "config": {}},
        {"config": {"layers": []}},
        damaged(name=3),
        damaged(layers=5),
        damaged(layers=[5]),
        damaged(layers=[{"class_name": "InputLayer", "config": None}]),
        damaged(layers=[{"class_name": {}, "config": {}, "name": "x", "inbound_nodes": []}]),
        damaged(
            layers=[{"class_name": "Add", "config": {"name": "x"}, "inbound_nodes": [[["x", 0, 0, 5]]], "name": "x"}]
        ),
        damaged(layers=[{"class_name": "Add", "config": {"name": "x"}, "inbound_nodes": [[]], "name": "x"}]),
        damaged(output_layers=5),
        damaged(output_layers=[["y", 0, 0]]),
        {"class_name": "Sequential", "config": [dense(dtype={"class_name": "Policy"})]},
        {"class_name": "Sequential", "config": [normal(axis=["x"], virtual_batch_size=2)]},
    ],
)
def test_damaged_configurations(model, tmp_path):
    with pytest.raises(InputError, match=r"^source: "):
        keras.write(Checkpoint("source", "memory", "keras", {}, {}, model), tmp_path / "new.keras")
    assert list(tmp_path.iterdir()) == []


ODD = st.sampled_from([None, True, -1, 3.5, "", "Lambda", "Model", [], [[]], {}, ["x", 0, 0], {"class_name": "Dense"}])


@numpy_only
@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.data())
def test_odd_configurations(data):
    """Whatever one place of a configuration holds, it can be upgraded or an InputError says why not."""
    inner = damaged(name="inner")
    entry = {**inner, "name": "inner", "inbound_nodes": [[["x", 0, 0, {}]]]}
    model = damaged(layers=[*damaged()["config"]["layers"], entry], output_layers=[["inner", 1, 0]])
    model["config"]["layers"] += [{**layer, "name": "y", "inbound_nodes": []} for layer in (dense(), normal())]
    place = model
    while True:
        key = data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
        if not place[key] or not isinstance(place[key], dict | list) or data.draw(st.integers(0, 3)) == 0:
            place[key] = data.draw(ODD)
            break
        place = place[key]
    with contextlib.suppress(InputError):
        keras_upgrade.upgraded(Checkpoint("source", "memory", "keras", {}, {}, model))


@numpy_only
def test_slashes_in_names_are_replaced():
    old = dense(name="a/fc")
    model, notes = upgraded(old)
    assert [layer["config"]["name"] for layer in model["config"]["layers"]] == ["a_fc_input", "a_fc"]
    assert notes == ["a_fc: named with _ for /, which Keras 3 does not allow in names"]


@numpy_only
def test_names_that_become_one_are_refused():
    names = ["a/b", "a_b"]
    layers = [{"class_name": "Dense", "config": {"name": name, "units": 1}} for name in names]
    variables = {f"{name}/kernel": Variable.of(np.ones((1, 1))) for name in names}
    model = {"class_name": "Sequential", "config": layers}
    with pytest.raises(InputError, match="a/b/kernel and a_b/kernel would both be called a_b/kernel"):
        keras_upgrade.upgraded(Checkpoint("source", "memory", "keras", variables, {}, model))
