# SPDX-License-Identifier: Apache-2.0
"""Whether a contender's answer is told from a wrong one, and whether all contenders are right."""

import contextlib

import numpy as np
import pytest

from evenkeel.workloads import contenders
from evenkeel.workloads.contenders import EPSILON, MOMENTUM, Answer, Case, Contender, Data

import oracle

SHAPES = [(64, 32), (8, 6, 12), (4, 5, 6, 16), (2, 4, 3, 5, 8)]
DTYPES = ["float32", "bfloat16"]


def longhand(case, data, divisor="population"):
    """The answer of the tests' own oracle."""
    x, dy, gamma, beta, moving_mean, moving_variance = data
    if not case.training:
        return Answer(oracle.normalize(x, moving_mean, moving_variance, gamma, beta, EPSILON))
    mean, variance, count = oracle.moments(x)
    dx, dgamma, dbeta = oracle.gradients(x, dy, gamma, EPSILON)
    kept = variance * count / (count - 1) if divisor == "sample" else variance
    return Answer(
        oracle.normalize(x, mean, variance, gamma, beta, EPSILON),
        dx,
        dgamma,
        dbeta,
        oracle.moved(moving_mean, mean, MOMENTUM),
        oracle.moved(moving_variance, kept, MOMENTUM),
    )


def fault(case, data, answer, divisor="population"):
    contender = Contender("native", "longhand", lambda: answer, np.asarray, divisor)
    return contenders.wrong(contender, case, data, contender.step())


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_oracle_is_right(shape, dtype, training):
    case = Case(shape, dtype, training)
    data = Data.of(case)
    assert fault(case, data, longhand(case, data)) == ""


@pytest.mark.parametrize("divisor", ["population", "sample"])
def test_the_variance_that_a_contender_keeps_is_right(divisor):
    case = Case((64, 32), "float32", True)
    data = Data.of(case)
    assert fault(case, data, longhand(case, data, divisor), divisor) == ""


def test_the_other_variance_is_noticed():
    case = Case((256, 1024), "float32", True)
    data = Data.of(case)
    assert fault(case, data, longhand(case, data, "sample"), "population").startswith("moving_variance is off by ")


@pytest.mark.parametrize(("dtype", "share"), [("float32", 1e-3), ("bfloat16", 0.2)])
@pytest.mark.parametrize("part", Answer._fields)
def test_a_wrong_part_is_noticed(part, dtype, share):
    case = Case((8, 9, 7, 16), dtype, True)
    data = Data.of(case)
    right = longhand(case, data)
    assert fault(case, data, right._replace(**{part: getattr(right, part) * (1 + share)})).startswith(f"{part} is off")


@pytest.mark.parametrize("part", Answer._fields)
def test_one_nan_is_noticed(part):
    case = Case((64, 32), "float32", True)
    data = Data.of(case)
    answer = longhand(case, data)
    getattr(answer, part).flat[3] = np.nan
    assert fault(case, data, answer).startswith(f"{part} is off by nan")


def test_bfloat16_data_are_bfloat16():
    data = Data.of(Case((64, 32), "bfloat16", True))
    assert not np.any(data.x.view(np.uint32) & 0xFFFF) and not np.any(data.dy.view(np.uint32) & 0xFFFF)


def test_float32_data_are_not():
    assert np.any(Data.of(Case((64, 32), "float32", True)).x.view(np.uint32) & 0xFFFF)


@pytest.fixture
def as_users_run_it(differentiable):
    """The backend; without JAX's strict promotion, in which Flax does not compute in bfloat16."""
    jax = differentiable.name == "jax"
    with differentiable.jax.numpy_dtype_promotion("standard") if jax else contextlib.nullcontext():
        yield differentiable.name


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_everybody_is_right(as_users_run_it, shape, dtype, training):
    case = Case(shape, dtype, training)
    data = Data.of(case)
    competing = contenders.contenders(as_users_run_it, case, data)
    faults = {item.name: contenders.wrong(item, case, data, item.step()) for item in competing}
    assert {name: fault for name, fault in faults.items() if fault} == {}


def test_everybody_competes(differentiable):
    case = Case((4, 5, 6, 16), "float32", True)
    roles = {item.role for item in contenders.contenders(differentiable.name, case, Data.of(case))}
    assert roles == {"ours", "keras", "native"}


def test_a_second_step_goes_on_from_the_first(differentiable):
    case = Case((64, 32), "float32", True)
    data = Data.of(case)
    ours = next(contenders.contenders(differentiable.name, case, data))
    first = np.array(ours.numpy(ours.step().moving_variance))
    second = ours.numpy(ours.step().moving_variance)
    batch = oracle.moments(data.x)[1]
    np.testing.assert_allclose(second, oracle.moved(first, batch, MOMENTUM), rtol=1e-6)
