# SPDX-License-Identifier: Apache-2.0
"""`.keras` files; those of tf_keras are in test_tf_keras_files.py, hostile ones in test_hdf5_files.py."""

import json
import os
import zipfile

import numpy as np
import pytest

import evenkeel
from evenkeel.checkpoints import formats
from evenkeel.checkpoints.contents import Checkpoint, Facts, Variable
from evenkeel.checkpoints.formats import hdf5, keras
from evenkeel.errors import InputError

pytestmark = pytest.mark.skipif(os.environ.get("KERAS_BACKEND", "numpy") != "numpy", reason="no framework takes part")


def nested():
    """A model with models, wrappers and recurrent layers in it."""
    from keras import Input, Model, layers

    def inner(name, shape):
        inputs = Input(shape)
        return Model(inputs, layers.BatchNormalization(name="bn", scale=False)(inputs), name=name)

    inputs = Input((8, 8, 3))
    h = layers.Conv2D(4, 3, name="stem")(inputs)
    h = inner("first", (6, 6, 4))(h)
    h = inner("second", (6, 6, 4))(h)
    h = layers.DepthwiseConv2D(3, use_bias=False)(h)
    h = layers.SeparableConv2D(3, 3)(h)
    h = layers.BatchNormalization(renorm=True, momentum=0.5, epsilon=0.1)(h)
    h = evenkeel.BatchNormalization(name="ours", average="cumulative", bessel_correction=True)(h)
    h = layers.LayerNormalization(center=False)(layers.Reshape((4, 3))(h))
    h = layers.TimeDistributed(layers.Dense(3))(layers.Dropout(0.1)(h))
    h = layers.Bidirectional(layers.GRU(2))(h)
    return Model(inputs, layers.Dense(2, name="out")(layers.BatchNormalization()(h)), name="whole")


NAMES = """
stem/kernel stem/bias
first/bn/beta first/bn/moving_mean first/bn/moving_variance
second/bn/beta second/bn/moving_mean second/bn/moving_variance
depthwise_conv2d/depthwise_kernel
separable_conv2d/depthwise_kernel separable_conv2d/pointwise_kernel separable_conv2d/bias
{0}/gamma {0}/beta {0}/moving_mean {0}/moving_variance {0}/moving_stddev {0}/renorm_mean {0}/renorm_stddev
ours/gamma ours/beta ours/moving_mean ours/moving_variance ours/updates
layer_normalization/gamma
{1}/gamma {1}/beta {1}/moving_mean {1}/moving_variance
out/kernel out/bias
bidirectional/backward_gru/gru_cell/kernel bidirectional/backward_gru/gru_cell/recurrent_kernel
bidirectional/backward_gru/gru_cell/bias
bidirectional/forward_gru/gru_cell/kernel bidirectional/forward_gru/gru_cell/recurrent_kernel
bidirectional/forward_gru/gru_cell/bias
time_distributed/dense/kernel time_distributed/dense/bias
"""


@pytest.fixture(scope="module")
def model():
    import keras

    keras.utils.clear_session()
    model = nested()
    generator = np.random.default_rng(0)
    for variable in model.weights:
        variable.assign(generator.uniform(1, 2, variable.shape))
    return model


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("keras")
    model.save(folder / "net.keras")
    model.save(folder / "net.h5")
    model.save_weights(folder / "net.weights.h5")
    return folder


def values(checkpoint):
    return {name: variable.read() for name, variable in checkpoint.variables.items() if "seed_generator" not in name}


def assert_same(found, wanted):
    assert sorted(found) == sorted(wanted)
    assert {name: (value.dtype, value.tobytes()) for name, value in found.items()} == {
        name: (value.dtype, value.tobytes()) for name, value in wanted.items()
    }


def test_names_of_all_variables(folder, model):
    checkpoint = formats.recognised(folder / "net.keras").read(folder / "net.keras")
    names = NAMES.format("batch_normalization", "batch_normalization_1").split()
    assert [name for name in checkpoint.variables if "seed_generator" not in name] == names
    assert len(names) == len(model.weights)
    assert (
        checkpoint.variables["stem/kernel"].where
        == f"layers/conv2d/vars/0 of model.weights.h5 of {folder / 'net.keras'}"
    )


def test_values_are_those_of_the_model(folder, model):
    found = values(keras.read(folder / "net.keras"))
    for path in ("stem/kernel", "ours/moving_variance", "batch_normalization/renorm_stddev", "out/bias"):
        variable = next(item for item in model.weights if item.path == path)
        np.testing.assert_array_equal(found[path], np.asarray(variable.value), err_msg=path)


@pytest.mark.parametrize("name", ["net.h5", "net.weights.h5"])
def test_other_formats_have_the_same_values(name, folder):
    found = values(formats.recognised(folder / name).read(folder / name))
    wanted = values(keras.read(folder / "net.keras"))
    common = sorted(set(found) & set(wanted))
    assert_same({key: found[key] for key in common}, {key: wanted[key] for key in common})
    assert len(common) == (len(wanted) if name == "net.h5" else 20)


def test_facts(folder):
    facts = keras.read(folder / "net.keras").facts
    plain = Facts("keras.layers.BatchNormalization", 0.001, 0.99, -1, False)
    assert facts == {
        "first/bn": plain,
        "second/bn": plain,
        "batch_normalization": plain._replace(epsilon=0.1, momentum=0.5),
        "ours": plain._replace(kind="evenkeel.BatchNormalization", bessel_correction=True, frozen=False),
        "batch_normalization_1": plain,
    }
    assert hdf5.read(folder / "net.h5").facts == facts


def test_normalizers(folder):
    found = {item.name: (item.dialect, item.missing) for item in keras.read(folder / "net.keras").normalizers}
    assert found == dict.fromkeys(keras.read(folder / "net.keras").facts, ("keras", ()))


@pytest.mark.parametrize("source", ["net.keras", "net.h5"])
@pytest.mark.parametrize("target", ["new.keras", "new.h5"])
def test_round_trip(source, target, folder, model, tmp_path):
    import keras as library

    checkpoint = formats.recognised(folder / source).read(folder / source)
    formats.of_name(tmp_path / target).write(checkpoint, tmp_path / target)
    assert list(tmp_path.iterdir()) == [tmp_path / target]
    assert_same(values(formats.recognised(tmp_path / target).read(tmp_path / target)), values(checkpoint))
    x = np.random.default_rng(1).normal(size=(2, 8, 8, 3)).astype("float32")
    loaded = library.saving.load_model(tmp_path / target)
    np.testing.assert_array_equal(np.asarray(loaded(x)), np.asarray(model(x)))


def changed(checkpoint, **changes):
    variables = {**checkpoint.variables, **changes}
    return Checkpoint("memory", "memory", "keras", {k: v for k, v in variables.items() if v}, {}, checkpoint.model)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"out/bias": None}, "has no out/bias"),
        ({"extra/gamma": Variable.of([1.0])}, "has extra/gamma, for which the model has no place"),
        ({"out/bias": Variable.of(np.ones(3, "float32"))}, r"of shape \(3,\), and out/bias of the model is .*\(2,\)"),
        ({"out/bias": Variable.of(np.ones(2, "float64"))}, r"is float64 of shape \(2,\), and out/bias .* float32"),
    ],
)
def test_variables_that_do_not_fit_are_refused(changes, text, folder, tmp_path):
    with pytest.raises(InputError, match=text):
        keras.write(changed(keras.read(folder / "net.keras"), **changes), tmp_path / "new.keras")
    assert list(tmp_path.iterdir()) == []


def test_model_is_needed(tmp_path):
    with pytest.raises(InputError, match=r"a \.keras file is a whole model; write new\.h5"):
        keras.write(Checkpoint("memory", "memory", "keras", {"a": Variable.of([1.0])}), tmp_path / "new.keras")
    assert list(tmp_path.iterdir()) == []


def of_layer(layer):
    return {
        "module": "keras",
        "class_name": "Sequential",
        "config": {
            "name": "net",
            "layers": [
                {"module": "keras.layers", "class_name": "InputLayer", "config": {"batch_shape": [None, 2]}},
                layer,
            ],
        },
    }


LAMBDA = {"class_name": "__lambda__", "config": {"value": "4wEAAAAAAAAAAAAAAA=="}}


@pytest.mark.parametrize("target", ["new.keras", "new.h5", "new.weights.h5"])
@pytest.mark.parametrize(
    "layer",
    [
        {"module": "keras.layers", "class_name": "Lambda", "config": {"name": "l", "function": LAMBDA}},
        {"module": "keras.layers", "class_name": "Activation", "config": {"name": "l", "activation": LAMBDA}},
        {"module": "os", "class_name": "system", "config": "touch executed"},
        {"module": "keras.layers", "class_name": "TFSMLayer", "config": {"name": "l", "filepath": "folder"}},
        {"module": None, "class_name": "Mine", "config": {"name": "l"}, "registered_name": "package>Mine"},
        {"module": "keras.utils", "class_name": "function", "config": "get_file", "registered_name": "get_file"},
    ],
    ids=lambda layer: layer["class_name"],
)
def test_code_is_not_run(layer, target, tmp_path):
    checkpoint = Checkpoint("source", "memory", "keras", {}, {}, of_layer(layer))
    with pytest.raises(InputError, match="source"):
        formats.of_name(tmp_path / target).write(checkpoint, tmp_path / target)
    assert list(tmp_path.iterdir()) == []


def test_model_without_the_shape_of_its_input_is_refused(tmp_path):
    model = of_layer({"module": "keras.layers", "class_name": "Dense", "config": {"units": 2}})
    del model["config"]["layers"][0]
    with pytest.raises(InputError, match="does not say the shape of its input"):
        keras.write(Checkpoint("source", "memory", "keras", {}, {}, model), tmp_path / "new.keras")


def test_layers_of_one_name_are_told_apart(tmp_path):
    import keras as library

    class Twins(library.Model):
        def __init__(self):
            super().__init__()
            self.one = library.layers.BatchNormalization(name="bn")
            self.others = [library.layers.BatchNormalization(name="bn"), library.layers.Dense(2, name="dense")]

        def build(self, shape):
            for layer in (self.one, *self.others):
                layer.build(shape)

    model = Twins()
    model.build((None, 3))
    model.save(tmp_path / "net.keras")
    checkpoint = keras.read(tmp_path / "net.keras")
    parts = "gamma", "beta", "moving_mean", "moving_variance"
    scopes = ["batch_normalization", "batch_normalization_1"]  # the groups of the file
    assert list(checkpoint.variables) == [
        *(f"{scope}/{part}" for scope in scopes for part in parts),
        "dense/kernel",
        "dense/bias",
    ]
    assert [(item.name, item.dialect) for item in checkpoint.normalizers] == [(scope, "keras") for scope in scopes]


def test_written_archive_is_keras_own(folder, tmp_path):
    keras.write(keras.read(folder / "net.keras"), tmp_path / "new.keras")
    with zipfile.ZipFile(tmp_path / "new.keras") as archive:
        assert sorted(archive.namelist()) == ["config.json", "metadata.json", "model.weights.h5"]
        assert json.loads(archive.read("metadata.json"))["keras_version"].startswith("3.")
        assert {item.compress_type for item in archive.infolist()} == {zipfile.ZIP_STORED}
