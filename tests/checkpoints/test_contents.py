# SPDX-License-Identifier: Apache-2.0
"""Checkpoints in memory: variables that are read when asked, normalizers among them."""

import os

import numpy as np
import pytest

from evenkeel.checkpoints import Checkpoint, Facts, Variable
from evenkeel.errors import InputError

pytestmark = pytest.mark.skipif(os.environ.get("KERAS_BACKEND", "numpy") != "numpy", reason="no framework takes part")


def checkpoint(facts=None, **values):
    variables = {name.replace("__", "/"): Variable.of(np.asarray(value)) for name, value in values.items()}
    return Checkpoint("example", "memory", "tensorflow", variables, facts or {})


def never():
    raise AssertionError("it was read")


def test_normalizers_are_found_without_reading_anything():
    names = ("bn/gamma", "bn/beta", "bn/moving_mean", "bn/moving_variance")
    variables = {name: Variable((3,), np.dtype("float32"), name, never) for name in names}
    (normalizer,) = Checkpoint("example", "memory", "tensorflow", variables).normalizers
    assert normalizer.channels == 3
    with pytest.raises(AssertionError, match="it was read"):  # so it would have been noticed
        normalizer.mean.read()


def test_parts_are_where_they_belong():
    (normalizer,) = checkpoint(
        bn__gamma=[1.0], bn__beta=[2.0], bn__moving_mean=[3.0], bn__moving_variance=[4.0], bn__renorm_mean=[5.0]
    ).normalizers
    four = (normalizer.gamma, normalizer.beta, normalizer.mean, normalizer.variance)
    assert [part.read().tolist() for part in four] == [[1], [2], [3], [4]]
    assert {role: part.read().tolist() for role, part in normalizer.others.items()} == {"renorm_mean": [5]}


def test_what_the_file_has_not_is_none():
    (normalizer,) = checkpoint(bn__beta=[2.0]).normalizers
    assert (normalizer.gamma, normalizer.mean, normalizer.variance) == (None, None, None)
    assert normalizer.missing == ("mean", "variance")
    assert normalizer.facts == Facts()


def test_facts_come_with_the_normalizer():
    facts = {"bn": Facts("BatchNormalization", 1e-5, 0.9, -1, True)}
    (normalizer,) = checkpoint(facts, bn__moving_mean=[0.0], bn__moving_variance=[1.0]).normalizers
    assert (normalizer.dialect, normalizer.facts) == ("tf.keras", facts["bn"])


@pytest.mark.parametrize(
    ("mean", "variance", "kind", "bessel_correction"),
    [
        ("running_mean", "running_var", None, True),
        ("mean", "var", None, False),
        ("moving_mean", "moving_variance", "keras.layers.BatchNormalization", False),
        ("moving_mean", "moving_variance", "BatchNormalization", None),
        ("moving_mean", "moving_variance", None, None),
    ],
)
def test_which_variance_is_said_where_the_library_leaves_no_doubt(mean, variance, kind, bessel_correction):
    facts = {"bn": Facts(kind)} if kind else {}
    (normalizer,) = checkpoint(facts, **{f"bn__{mean}": [0.0], f"bn__{variance}": [1.0]}).normalizers
    assert normalizer.facts.bessel_correction is bessel_correction


@pytest.mark.parametrize("values", [np.zeros(2, "float32"), np.zeros(3, "float64")], ids=["shape", "type"])
def test_values_that_are_not_as_announced(values):
    variable = Variable((3,), np.dtype("float32"), "file: bn/beta", lambda: values)
    with pytest.raises(InputError, match=rf"file: bn/beta .* holds {values.dtype} of shape \({len(values)},\)"):
        variable.read()
