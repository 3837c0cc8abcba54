# SPDX-License-Identifier: Apache-2.0
"""Flax nnx modules: what they say of their normalizers."""

import importlib.util

import numpy as np
import pytest

from conftest import NAME

if NAME != "jax" or importlib.util.find_spec("flax") is None:
    pytest.skip("of JAX, with Flax", allow_module_level=True)

from flax import nnx

import evenkeel as ek
from evenkeel.doctor import subjects
from evenkeel.doctor.evidence import Normalizer, Observed, Unseen
from evenkeel.doctor.options import Options


class Network(nnx.Module):
    def __init__(self, **options):
        rngs = nnx.Rngs(0)
        self.dense = nnx.Linear(4, 3, rngs=rngs)
        self.blocks = nnx.List([nnx.BatchNorm(3, rngs=rngs, **options)])

    def __call__(self, x):
        return self.blocks[0](self.dense(x))


def numbers():
    return np.random.default_rng(0).normal(1, 2, (16, 4)).astype("float32")


def evidence(module, wanted, **options):
    return [item for item in subjects.of(module).evidence(module, Options(**options)) if isinstance(item, wanted)]


def test_values_and_settings():
    module = Network(momentum=0.8, epsilon=0.01, use_bias=False)
    layer = module.blocks[0]
    layer.mean[...], layer.var[...], layer.scale[...] = np.arange(3.0), np.arange(3.0) + 1, np.arange(3.0) + 2
    (found,) = evidence(module, Normalizer, steps=9, batches_per_step=2)
    values = [found.moving_mean, found.moving_variance, found.gamma]
    np.testing.assert_array_equal(values, np.arange(3) + np.arange(3)[:, None])
    assert (found.name, found.momentum, found.epsilon, found.library, found.beta) == (
        "blocks/0",
        0.8,
        0.01,
        "flax",
        None,
    )
    assert (found.steps, found.batches_per_step, found.bessel_correction) == (9, 2, False)


@pytest.mark.parametrize(("told", "moves"), [(True, None), (False, True)])
def test_whether_training_moves_it(told, moves):
    (found,) = evidence(Network(use_running_average=told), Normalizer)
    assert found.moves is moves


def test_what_is_not_seen_is_said():
    assert [item.why for item in evidence(Network(), Unseen)] == [
        "a Flax module is a program, and has no graph",
        "no data was given",
    ]


def test_data_is_looked_at():
    (found,) = evidence(Network(), Observed, data=numbers())
    assert [item.normalizer.name for item in found.seen] == ["blocks/0"]


def test_without_normalizers_there_is_nothing():
    module = nnx.Linear(4, 3, rngs=nnx.Rngs(0))
    assert list(subjects.of(module).evidence(module, Options(data=numbers()))) == []


def test_of_a_healthy_module_nothing_is_said():
    module = Network(momentum=0.5)
    for _ in range(8):
        module(numbers())
    assert ek.diagnose(module).findings == ()


def test_one_that_was_never_updated_is_found():
    assert [(finding.rule, finding.where) for finding in ek.diagnose(Network()).findings] == [("EK101", "blocks/0")]
