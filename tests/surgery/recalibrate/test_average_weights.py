# SPDX-License-Identifier: Apache-2.0
"""The programs of docs/how-to/average-weights.md: after each, the statistics are those of the averaged weights."""

import re
from pathlib import Path

import numpy as np
import pytest

import oracle
import tolerances
from conftest import NAME

TEXT = (Path(__file__).parents[3] / "docs" / "how-to" / "average-weights.md").read_text()
USE_EMA, SWA, TORCH = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
CALL = re.compile(r"report = evenkeel\.recalibrate\(.*\)")


def run(*programs):
    names = {"__name__": "docs"}
    for program in programs:
        exec(program, names)
    return names


def check(mean, variance, inputs, sample=False):
    wanted_mean, wanted_variance, count = oracle.moments(inputs)
    if sample:
        wanted_variance = wanted_variance * count / (count - 1)
    condition = max(map(tolerances.condition, wanted_mean, wanted_variance))
    # Twice: the inputs too are rounded.
    bound = 2 * tolerances.mean("float32", 256, condition)
    assert (np.abs(mean - wanted_mean) <= bound * np.sqrt(wanted_variance)).all()
    assert (np.abs(variance / wanted_variance - 1) <= 2 * bound).all()


def check_keras(names):
    import keras

    first, normalizer = names["model"].layers[:2]
    kernel, bias, mean, variance = (
        keras.ops.convert_to_numpy(variable.value).astype("float64")
        for variable in (first.kernel, first.bias, normalizer.moving_mean, normalizer.moving_variance)
    )
    check(mean, variance, names["x"].astype("float64") @ kernel + bias)
    return kernel


def check_torch(names):
    first, normalizer = list(names["averaged"].module)[:2]
    inputs = names["x"].double() @ first.weight.detach().double().T + first.bias.detach().double()
    check(normalizer.running_mean.numpy(), normalizer.running_var.numpy(), inputs.numpy(), sample=True)


PROGRAMS = {"use_ema": ([USE_EMA], check_keras), "swa": ([USE_EMA, SWA], check_keras), "torch": ([TORCH], check_torch)}


def program(name):
    if NAME == "numpy" or (name == "torch" and NAME != "torch"):
        pytest.skip(f"does not train on {NAME}")
    return PROGRAMS[name]


@pytest.mark.parametrize("name", PROGRAMS)
def test_statistics_are_those_of_the_averaged_weights(name):
    programs, checked = program(name)
    names = run(*programs)
    checked(names)
    assert len(names["report"].renewed) == 1


@pytest.mark.parametrize("name", PROGRAMS)
def test_without_recalibration_they_are_not(name):
    programs, checked = program(name)
    names = run(*programs[:-1], CALL.sub("", programs[-1]))
    with pytest.raises(AssertionError):
        checked(names)


@pytest.mark.skipif(NAME == "numpy", reason="does not train on numpy")
def test_swa_averages():
    names = run(USE_EMA, SWA)
    import keras

    average = names["average"]
    for total, variable in zip(average.sums, names["model"].trainable_variables, strict=True):
        np.testing.assert_allclose(keras.ops.convert_to_numpy(variable.value), total / 3, rtol=1e-6)
