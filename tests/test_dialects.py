# SPDX-License-Identifier: Apache-2.0
"""The rows of libraries that are installed, against those libraries."""

import inspect

import pytest

from evenkeel.dialects import DIALECTS


def defaults_of(function):
    return {name: item.default for name, item in inspect.signature(function).parameters.items()}


def test_keras():
    keras = pytest.importorskip("keras")
    defaults = defaults_of(keras.layers.BatchNormalization.__init__)
    row = DIALECTS["keras"]
    assert (row.momentum, row.epsilon, row.center, row.scale) == tuple(
        defaults[name] for name in ("momentum", "epsilon", "center", "scale")
    )


def test_our_layer_has_the_defaults_of_keras():
    keras = pytest.importorskip("keras")
    import evenkeel as ek

    theirs, ours = (defaults_of(layer.__init__) for layer in (keras.layers.BatchNormalization, ek.BatchNormalization))
    assert {name: ours[name] for name in theirs} == theirs


def test_torch():
    torch = pytest.importorskip("torch")
    defaults = defaults_of(torch.nn.BatchNorm2d.__init__)
    row = DIALECTS["torch"]
    assert (row.momentum, row.epsilon) == (defaults["momentum"], defaults["eps"])
    assert set(row.names) < set(torch.nn.BatchNorm2d(3).state_dict())


def test_flax():
    nnx = pytest.importorskip("flax.nnx")
    defaults = defaults_of(nnx.BatchNorm.__init__)
    row = DIALECTS["flax"]
    assert (row.momentum, row.epsilon, row.center, row.scale) == tuple(
        defaults[name] for name in ("momentum", "epsilon", "use_bias", "use_scale")
    )


@pytest.mark.parametrize("name", DIALECTS)
def test_a_row_is_whole(name):
    row = DIALECTS[name]
    assert 0.5 < row.kept_share < 1
    assert len(set(row.names)) == 4
