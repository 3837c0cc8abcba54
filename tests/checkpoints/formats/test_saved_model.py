# SPDX-License-Identifier: Apache-2.0
"""The variables of SavedModels: of TensorFlow 1.15's, of today's, and of damaged ones."""

import os
import shutil

import numpy as np
import pytest

from evenkeel.checkpoints import read_checkpoint
from evenkeel.checkpoints.formats import saved_model
from evenkeel.errors import InputError

from conftest import GOLDENS

pytestmark = pytest.mark.skipif(os.environ.get("KERAS_BACKEND") != "tensorflow", reason="TensorFlow's own files")
GOLDEN = GOLDENS / "checkpoints" / "f1_saved_model_mlp"


@pytest.fixture
def model(tmp_path):
    return shutil.copytree(GOLDEN / "saved_model", tmp_path / "model")


@pytest.mark.parametrize("inside", ["", "saved_model.pb"])
def test_golden(inside):
    path = GOLDEN / "saved_model" / inside
    assert saved_model.recognises(path)
    checkpoint = read_checkpoint(path)
    assert checkpoint.format == saved_model.DESCRIPTION
    with np.load(GOLDEN / "io.npz") as stored:
        wanted = {name.removeprefix("vars/"): stored[name] for name in stored if name.startswith("vars/")}
    assert {name: variable.shape for name, variable in checkpoint.variables.items()} == {
        name: values.shape for name, values in wanted.items()
    }
    for name, variable in checkpoint.variables.items():
        np.testing.assert_array_equal(variable.read(), wanted[name], strict=True)


def test_of_today(tmp_path):
    import tensorflow as tf

    module = tf.Module()
    module.factor = tf.Variable([1.0, 2.0], name="factor")
    tf.saved_model.save(module, str(tmp_path / "model"))
    ((name, variable),) = saved_model.read(tmp_path / "model").variables.items()
    assert name == "factor/.ATTRIBUTES/VARIABLE_VALUE"
    assert variable.read().tolist() == [1.0, 2.0]


def test_a_folder_of_checkpoints_is_none(tmp_path):
    assert not saved_model.recognises(GOLDENS / "checkpoints" / "a1_contrib_mlp")
    assert not saved_model.recognises(tmp_path / "nothing")


def test_without_variables(model):
    shutil.rmtree(model / "variables")
    with pytest.raises(InputError, match=r"model has no variables: there is no .*variables\.index"):
        read_checkpoint(model)


def test_without_values(model):
    (model / "variables" / "variables.data-00000-of-00001").unlink()
    with pytest.raises(InputError, match=r"variables\.data-00000-of-00001 is missing; .*: bn0/beta"):
        read_checkpoint(model)


def test_cannot_be_written():
    assert not hasattr(saved_model, "write")
