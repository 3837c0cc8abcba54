# SPDX-License-Identifier: Apache-2.0
"""`.weights.h5` files of Keras 3; tf_keras has test_tf_keras_files.py, hostile files test_hdf5_files.py."""

import json
import os

import h5py
import numpy as np
import pytest

from evenkeel.checkpoints import convert, formats
from evenkeel.checkpoints.contents import Checkpoint, Facts, Variable
from evenkeel.checkpoints.formats import weights
from evenkeel.errors import InputError

pytestmark = pytest.mark.skipif(os.environ.get("KERAS_BACKEND", "numpy") != "numpy", reason="no framework takes part")

PARTS = "gamma", "beta", "moving_mean", "moving_variance"


@pytest.fixture
def model():
    import keras

    return keras.Sequential(
        [
            keras.Input((4, 4, 3)),
            keras.layers.Conv2D(2, 3, use_bias=False, name="conv"),
            keras.layers.BatchNormalization(name="bn"),
            keras.layers.BatchNormalization(name="half", scale=False),
        ],
        name="net",
    )


def test_layers_have_the_names_in_the_file(model, tmp_path):
    path = tmp_path / "net.weights.h5"
    model.save_weights(path)
    checkpoint = formats.recognised(path).read(path)
    half = [f"half/vars/{index}" for index in range(3)]
    assert list(checkpoint.variables) == [*(f"bn/{part}" for part in PARTS), *half, "conv/kernel"]
    np.testing.assert_array_equal(checkpoint.variables["conv/kernel"].read(), np.asarray(model.layers[0].kernel.value))
    assert checkpoint.facts == {"bn": Facts("keras.layers.BatchNormalization")}
    assert [(item.name, item.dialect) for item in checkpoint.normalizers] == [("bn", "keras")]


@pytest.mark.parametrize(
    ("group", "shapes", "names"),
    [
        ("layers/batch_normalization_7", [(3,)] * 4, [f"batch_normalization_7/{part}" for part in PARTS]),
        ("layers/batch_normalization", [(3,), (3,), (3,), (4,)], [f"batch_normalization/vars/{k}" for k in range(4)]),
        ("layers/batch_normalization", [(3,)] * 3, [f"batch_normalization/vars/{k}" for k in range(3)]),
        ("_layer_checkpoint_dependencies/dense", [(3, 2), (2,)], ["dense/kernel", "dense/bias"]),
        ("layers/dense_1", [(3, 2)], ["dense_1/kernel"]),
        ("layers/conv2d_transpose", [(3, 3, 2, 2), (2,)], ["conv2d_transpose/kernel", "conv2d_transpose/bias"]),
        (
            "layers/functional/layers/layer_normalization",
            [(2,)] * 2,
            [f"functional/layer_normalization/{p}" for p in PARTS[:2]],
        ),
        ("layers/layer_normalization", [(2,)], ["layer_normalization/vars/0"]),
        ("layers/mine", [(2,)] * 11, [f"mine/vars/{index}" for index in range(11)]),
        ("blocks/residual/bn", [(2,)] * 4, [f"blocks/residual/bn/vars/{k}" for k in range(4)]),
    ],
)
def test_names_without_configuration(group, shapes, names, tmp_path):
    path = tmp_path / "net.weights.h5"
    with h5py.File(path, "w") as file:
        for index, shape in enumerate(shapes):
            file[f"{group}/vars/{index}"] = np.full(shape, index, "float32")
        file["optimizer/vars/0"] = np.ones(1)
    found = weights.read(path).variables
    assert {name: (variable.shape, variable.read().flat[0]) for name, variable in found.items()} == {
        name: (shape, index) for index, (name, shape) in enumerate(zip(names, shapes, strict=True))
    }


def test_round_trip_through_the_model(model, tmp_path):
    generator = np.random.default_rng(0)
    variables = {
        variable.path.removeprefix("net/"): Variable.of(generator.uniform(1, 2, variable.shape).astype("float32"))
        for variable in model.weights
    }
    path = tmp_path / "net.weights.h5"
    weights.write(Checkpoint("memory", "memory", "keras", variables, {}, json.loads(model.to_json())), path)
    assert list(tmp_path.iterdir()) == [path]
    model.load_weights(path)
    for variable in model.weights:
        wanted = variables[variable.path.removeprefix("net/")].read()
        np.testing.assert_array_equal(np.asarray(variable.value), wanted, err_msg=variable.path)


def test_a_normalizer_without_gamma_is_compared_after_conversion(model, tmp_path):
    """The file does not say which of four it is without; the model does."""
    model.layers[2].set_weights([np.full(2, value) for value in (3.0, 4.0, 5.0)])
    model.save(tmp_path / "net.keras")
    path = tmp_path / "net.weights.h5"
    report = convert(tmp_path / "net.keras", path)
    assert (report.normalizers, report.difference, report.left) == (2, 0.0, ())
    model.layers[2].set_weights([np.zeros(2)] * 3)
    model.load_weights(path)
    np.testing.assert_array_equal(model.layers[2].get_weights(), [[3, 3], [4, 4], [5, 5]])


def test_model_is_needed(tmp_path):
    with pytest.raises(InputError, match=r"by the order of the layers; write net\.h5, which"):
        weights.write(Checkpoint("memory", "memory", "keras", {"a/b": Variable.of([1.0])}), tmp_path / "net.weights.h5")
    assert list(tmp_path.iterdir()) == []


def test_older_files_are_not_taken_for_these(tmp_path):
    path = tmp_path / "net.weights.h5"
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [b"bn"]
        file["bn/vars/0"] = np.ones(1)
    assert not weights.recognises(path)
    with pytest.raises(InputError, match="no groups called vars"):
        weights.read(path)
