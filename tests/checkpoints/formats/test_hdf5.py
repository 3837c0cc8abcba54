# SPDX-License-Identifier: Apache-2.0
"""`.h5` files of Keras 1 to 3; those of tf_keras are in test_tf_keras_files.py, hostile ones in test_hdf5_files.py."""

import os

import h5py
import numpy as np
import pytest

from evenkeel.checkpoints import formats, keras_model
from evenkeel.checkpoints.contents import Checkpoint, Facts, Variable
from evenkeel.checkpoints.formats import hdf5
from evenkeel.errors import InputError

from conftest import GOLDENS

pytestmark = pytest.mark.skipif(os.environ.get("KERAS_BACKEND", "numpy") != "numpy", reason="no framework takes part")

FOLDER = GOLDENS / "checkpoints" / "d1_keras_mlp"
PARTS = "gamma", "beta", "moving_mean", "moving_variance"


def values(checkpoint):
    return {name: variable.read() for name, variable in checkpoint.variables.items()}


def same(found, wanted):
    return list(found) == list(wanted) and all(
        found[name].dtype == wanted[name].dtype and np.array_equal(found[name], wanted[name], equal_nan=True)
        for name in wanted
    )


def memory(convention, arrays, **more):
    return Checkpoint(
        "memory", "memory", convention, {name: Variable.of(array) for name, array in arrays.items()}, **more
    )


@pytest.mark.parametrize("name", ["model.h5", "weights.h5"])
def test_file_of_tensorflow_1(name):
    checkpoint = formats.recognised(FOLDER / name).read(FOLDER / name)
    with np.load(FOLDER / "io.npz") as arrays:
        wanted = {key.removeprefix("vars/"): arrays[key] for key in arrays.files if key.startswith("vars/")}
    found = values(checkpoint)
    assert list(found)[:5] == ["dense_0/kernel", *(f"bn_0/{part}" for part in PARTS)]
    assert same(dict(sorted(found.items())), dict(sorted(wanted.items())))
    assert [normalizer.name for normalizer in checkpoint.normalizers] == ["bn_0", "bn_1"]


def test_facts_of_tensorflow_1():
    checkpoint = hdf5.read(FOLDER / "model.h5")
    fact = Facts(kind="BatchNormalization", epsilon=0.001, momentum=0.9, axis=1, bessel_correction=None)
    assert checkpoint.facts == {"bn_0": fact, "bn_1": fact}
    assert checkpoint.model["class_name"] == "Sequential"
    assert hdf5.read(FOLDER / "weights.h5").model is None


def test_file_of_keras_1(tmp_path):
    path = tmp_path / "old.h5"
    parts = {"gamma": 1.0, "beta": 2.0, "running_mean": 3.0, "running_std": 4.0}
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [b"batchnormalization_1", b"activation_1"]
        group = file.create_group("batchnormalization_1")
        group.attrs["weight_names"] = [f"batchnormalization_1_{part}".encode() for part in parts]
        for part, value in parts.items():
            group[f"batchnormalization_1_{part}"] = np.full(2, value, "float32")
        file.create_group("activation_1").attrs["weight_names"] = []
    found = {name: value[0] for name, value in values(hdf5.read(path)).items()}
    assert found == {f"batchnormalization_1/{part}": index + 1 for index, part in enumerate(PARTS)}


@pytest.mark.parametrize(
    ("layer", "weight", "name"),
    [
        ("bn", "bn/gamma:0", "bn/gamma"),
        ("bn", "bn/gamma", "bn/gamma"),
        ("bn", "gamma:0", "bn/gamma"),
        ("bn", "my_model/bn/gamma:0", "bn/gamma"),
        ("encoder", "bn/gamma:0", "encoder/bn/gamma"),
        ("block/bn", "block/bn/gamma:0", "block/bn/gamma"),
        ("global_step", "global_step:0", "global_step"),
        ("top_level_model_weights", "my_model/scale:0", "my_model/scale"),
    ],
)
def test_names(layer, weight, name, tmp_path):
    path = tmp_path / "net.h5"
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [b"other", *([] if layer.startswith("top") else [layer.encode()])]
        file.create_group("other").attrs["weight_names"] = []
        group = file.require_group(layer)
        group.attrs["weight_names"] = [weight.encode()]
        group[weight] = np.ones(2, "float32")
    assert list(hdf5.read(path).variables) == [name]


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({"axis": [3]}, {"axis": 3, "bessel_correction": True}),
        ({"axis": [2]}, {"axis": 2, "bessel_correction": False}),
        ({"axis": [1]}, {"axis": 1}),
        ({"axis": -1}, {"axis": -1}),
        ({"axis": 3}, {"axis": 3}),
        ({"axis": [1, 3]}, {"axis": (1, 3), "bessel_correction": False}),
        ({"axis": [4], "virtual_batch_size": 2}, {"axis": 3, "bessel_correction": False}),
        ({"axis": 3, "virtual_batch_size": 2}, {"axis": 3, "bessel_correction": False}),
        ({"axis": [3], "fused": False}, {"axis": 3, "bessel_correction": False}),
        ({"axis": [3], "renorm": True}, {"axis": 3, "bessel_correction": False}),
        ({"axis": "last", "epsilon": "small", "momentum": True}, {"epsilon": None, "momentum": None}),
        ({"axis": None, "epsilon": 1}, {"epsilon": 1.0}),
    ],
)
def test_facts_of_tf_keras(settings, wanted):
    layer = {
        "class_name": "BatchNormalizationV1",
        "config": {"name": "bn", "epsilon": 0.1, "momentum": 0.5, **settings},
    }
    model = {"class_name": "Model", "config": {"name": "net", "layers": [layer]}}
    found = keras_model.facts(model, "2.2.4-tf", [])
    expected = Facts(kind="BatchNormalizationV1", epsilon=0.1, momentum=0.5)._replace(**wanted)
    if isinstance(settings["axis"], str | None):
        found["bn"] = found["bn"]._replace(bessel_correction=None)  # no axis, no claim
    assert found == {"bn": expected}


ARRAYS = {
    "net/conv/biases": np.zeros(2, "float32"),
    "net/bn/beta": np.array([1, 2], "float32"),
    "net/bn/moving_variance": np.array([3, np.nan], "float32"),
    "net/bn/gamma": np.array([5, 6], "float32"),
    "net/bn/moving_mean": np.array([-0.0, 8], "float32"),
    "global_step": np.array(60, "int64"),
}


def test_weights_come_back_bit_for_bit(tmp_path):
    path = tmp_path / "net.h5"
    hdf5.write(memory("tensorflow", ARRAYS), path)
    found = values(hdf5.read(path))
    assert same(dict(sorted(found.items())), dict(sorted(ARRAYS.items())))
    assert list(found)[1:5] == [f"net/bn/{part}" for part in PARTS]


@pytest.mark.parametrize(
    "name", ["a//b", "", "/a", "a/./b", "a\0b", "a:0", "\udcff", "top_level_model_weights/a", "x" * 70000]
)
def test_name_that_hdf5_cannot_hold_is_refused(name, tmp_path):
    with pytest.raises(InputError, match="HDF5 cannot hold"):
        hdf5.write(memory("tensorflow", {"a": np.ones(1), name: np.ones(1)}), tmp_path / "net.h5")
    assert list(tmp_path.iterdir()) == []


def test_text_is_refused(tmp_path):
    with pytest.raises(InputError, match="Keras keeps numbers only"):
        hdf5.write(memory("tensorflow", {"words": np.array([b"a"])}), tmp_path / "net.h5")
    assert list(tmp_path.iterdir()) == []


def test_interrupted_write_leaves_the_file_as_it_was(tmp_path):
    path = tmp_path / "net.h5"
    path.write_text("before")

    def interrupted():
        raise KeyboardInterrupt

    variables = {"a/b": Variable.of(np.ones(3)), "a/c": Variable((3,), np.dtype("float64"), "memory", interrupted)}
    with pytest.raises(KeyboardInterrupt):
        hdf5.write(Checkpoint("memory", "memory", "keras", variables), path)
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def two_layers(keras):
    inputs = keras.Input((4, 4, 3))
    h = keras.layers.Conv2D(2, 3, name="conv")(inputs)
    return keras.Model(inputs, keras.layers.BatchNormalization(name="bn")(h))


def test_keras_3_loads_weights_by_name(tmp_path):
    import keras

    model = two_layers(keras)
    arrays = {
        "conv/kernel": np.random.default_rng(1).normal(size=(3, 3, 3, 2)).astype("float32"),
        "conv/bias": np.array([1, 2], "float32"),
        "bn/beta": np.array([3, 4], "float32"),
        "bn/gamma": np.array([5, 6], "float32"),
        "bn/moving_mean": np.array([7, 8], "float32"),
        "bn/moving_variance": np.array([9, 10], "float32"),
        "global_step": np.array(60, "int64"),
    }
    hdf5.write(memory("tensorflow", arrays), tmp_path / "net.h5")
    model.load_weights(tmp_path / "net.h5", by_name=True)
    for variable in model.variables:
        np.testing.assert_array_equal(
            keras.ops.convert_to_numpy(variable), arrays[variable.path], err_msg=variable.path
        )
    assert len(model.variables) == 6


def test_whole_model_of_keras_3(tmp_path):
    import keras

    model = two_layers(keras)
    model.save(tmp_path / "net.h5")
    checkpoint = hdf5.read(tmp_path / "net.h5")
    assert list(checkpoint.variables) == [variable.path for variable in model.variables]
    assert checkpoint.facts == {"bn": Facts("keras.layers.BatchNormalization", 0.001, 0.99, -1, False)}
    moved = {name: value + np.arange(2, dtype="float32") for name, value in values(checkpoint).items()}
    hdf5.write(memory("keras", moved, model=checkpoint.model), tmp_path / "moved.h5")
    loaded = keras.saving.load_model(tmp_path / "moved.h5")
    for variable in loaded.variables:
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(variable), moved[variable.path])
    assert same(values(hdf5.read(tmp_path / "moved.h5")), moved)
