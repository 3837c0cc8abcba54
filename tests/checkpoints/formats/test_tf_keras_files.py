# SPDX-License-Identifier: Apache-2.0
"""Files that tf_keras writes, and what it reads of ours."""

import os

import numpy as np
import pytest

from evenkeel.checkpoints import formats
from evenkeel.checkpoints.contents import Checkpoint, Facts, Variable
from evenkeel.checkpoints.formats import hdf5

pytestmark = [
    pytest.mark.skipif(os.environ.get("KERAS_BACKEND") != "tensorflow", reason="tf_keras is TensorFlow's"),
    pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file:UserWarning"),
]


@pytest.fixture(scope="module")
def model():
    from tf_keras import Input, Model, Sequential, layers

    inputs = Input((8, 8, 3))
    inner = Sequential([layers.BatchNormalization(name="bn", scale=False, input_shape=(6, 6, 4))], name="inner")
    h = inner(layers.Conv2D(4, 3, name="conv")(inputs))
    h = layers.DepthwiseConv2D(3, use_bias=False, name="depthwise")(h)
    h = layers.BatchNormalization(virtual_batch_size=2, name="ghost")(h)
    h = layers.TimeDistributed(layers.Dense(3), name="each")(layers.Reshape((16, 4))(h))
    h = layers.BatchNormalization(name="sequence")(h)
    h = layers.Bidirectional(layers.LSTM(2), name="both")(h)
    model = Model(inputs, layers.BatchNormalization(name="last", momentum=0.5, epsilon=0.1)(h), name="whole")
    generator = np.random.default_rng(0)
    model.set_weights([generator.uniform(1, 2, value.shape) for value in model.get_weights()])
    return model


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tf_keras")
    model.save(folder / "net.keras")
    model.save(folder / "net.h5")
    model.save_weights(folder / "net.weights.h5")
    model.save_weights(str(folder / "old.h5"))
    return folder


FACTS = {
    "inner/bn": Facts("BatchNormalization", 0.001, 0.99, 3, True),
    "ghost": Facts("BatchNormalization", 0.001, 0.99, 3, False),
    "sequence": Facts("BatchNormalization", 0.001, 0.99, 2, False),
    "last": Facts("BatchNormalization", 0.1, 0.5, 1, False),
}


@pytest.mark.parametrize("name", ["net.keras", "net.h5", "net.weights.h5", "old.h5"])
def test_each_file_has_all_values(name, folder, model):
    found = formats.recognised(folder / name).read(folder / name).variables
    arrays = sorted((variable.read() for variable in found.values()), key=lambda array: (array.shape, array.flat[0]))
    wanted = sorted(model.get_weights(), key=lambda array: (array.shape, array.flat[0]))
    assert [array.tobytes() for array in arrays] == [array.tobytes() for array in wanted]


@pytest.mark.parametrize("name", ["net.keras", "net.h5"])
def test_names(name, folder, model):
    each = "each/dense" if name == "net.keras" else "each"  # in .h5 files a wrapper takes the variables for its own
    parts = ("gamma", "beta", "moving_mean", "moving_variance")
    lstm = ("kernel", "recurrent_kernel", "bias")
    assert set(formats.recognised(folder / name).read(folder / name).variables) == {
        "conv/kernel",
        "conv/bias",
        "depthwise/depthwise_kernel",
        f"{each}/kernel",
        f"{each}/bias",
        *(f"inner/bn/{part}" for part in parts[1:]),
        *(f"{layer}/{part}" for layer in ("ghost", "sequence", "last") for part in parts),
        *(f"both/{direction}_lstm/lstm_cell/{part}" for direction in ("forward", "backward") for part in lstm),
    }


def test_facts_where_shapes_are_known(folder):
    assert formats.recognised(folder / "net.keras").read(folder / "net.keras").facts == FACTS


def test_facts_where_only_axes_are_known(folder):
    facts = hdf5.read(folder / "net.h5").facts
    assert facts == {**FACTS, "last": FACTS["last"]._replace(bessel_correction=None)}


def test_normalizers(folder):
    checkpoint = hdf5.read(folder / "net.h5")
    assert {item.name: (item.dialect, item.gamma is None, item.missing) for item in checkpoint.normalizers} == {
        name: ("tf.keras", name == "inner/bn", ()) for name in FACTS
    }


def test_tf_keras_loads_weights_by_name(model, tmp_path):
    parts = dict(zip(("beta", "gamma", "moving_variance", "moving_mean"), np.eye(4, dtype="float32"), strict=True))
    variables = {f"last/{part}": Variable.of(value) for part, value in parts.items()}
    variables["global_step"] = Variable.of(np.array(7, "int64"))
    hdf5.write(Checkpoint("memory", "memory", "tensorflow", variables), tmp_path / "net.h5")
    before = model.get_weights()
    try:
        model.load_weights(tmp_path / "net.h5", by_name=True)
        last = model.get_layer("last")
        for part, value in parts.items():
            np.testing.assert_array_equal(getattr(last, part).numpy(), value, err_msg=part)
    finally:
        model.set_weights(before)
