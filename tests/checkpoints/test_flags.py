# SPDX-License-Identifier: Apache-2.0
"""What is odd about a normalizer, and what only looks so."""

import os

import hypothesis.extra.numpy
import hypothesis.strategies
import ml_dtypes
import numpy as np
import pytest

from evenkeel.checkpoints import flags

pytestmark = pytest.mark.skipif(os.environ["KERAS_BACKEND"] != "numpy", reason="no framework takes part")

NAN, INFINITY = float("nan"), float("inf")
HEALTHY = {
    "gamma": np.array([1.0, 0.9, 1.2], "float32"),
    "beta": np.array([0.0, -0.1, 0.2], "float32"),
    "mean": np.array([0.3, -2.0, 0.0], "float32"),
    "variance": np.array([1.5, 0.2, 1.0], "float32"),
}


def changed(role, values, dtype="float32"):
    return HEALTHY | {role: np.array(values, dtype)}


NO_LONGER = "count 0, but mean or variance moved: momentum=None would start anew"
SHUFFLED = "mean all positive and about 1, negative variance: gamma and beta in their place, order of weights?"


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        pytest.param({"mean": np.zeros(64), "variance": np.ones(64)}, "mean all 0, variance all 1: never updated"),
        pytest.param(changed("mean", [NAN, 1, NAN]), "NaN in 2 of 3 channels (mean)"),
        pytest.param(changed("gamma", [NAN, 1, 2], "float16"), "NaN in 1 of 3 channels (gamma)"),
        pytest.param(changed("beta", [0, 1, -INFINITY]), "infinity in 1 of 3 channels (beta)"),
        pytest.param(changed("renorm_mean", [NAN, NAN]), "NaN in 2 of 2 channels (renorm_mean)"),
        pytest.param(changed("variance", [-1e-12, 1, 2]), "negative variance in 1 of 3"),
        pytest.param(changed("variance", [0, -0.0, 2]), "variance 0 in 2 of 3"),
        pytest.param(changed("variance", [1e-4, 1e-40, 2]), "variance below epsilon (0.001) in 2 of 3"),
        pytest.param(changed("gamma", [0, 0, 0]), "gamma all 0: only beta comes out"),
        pytest.param(changed("gamma", ["a", "b"], None), "gamma is of type <U1, not numbers"),
        pytest.param(changed("gamma", [1j], None), "gamma is of type complex128, not numbers"),
        pytest.param(changed("mean", [1, 2, -3], "float16"), "16-bit statistics (mean)"),
        pytest.param(changed("variance", [1, 2, 3], ml_dtypes.bfloat16), "16-bit statistics (variance)"),
        pytest.param(changed("variance", [1, 2, 3], ml_dtypes.float8_e4m3fn), "8-bit statistics (variance)"),
        pytest.param(changed("count", 0, "int64"), NO_LONGER),
        pytest.param(changed("gamma_average", [1, 2, 3]), "moving averages (EMA shadows) of gamma present"),
    ],
)
def test_oddity(values, sentence):
    assert flags.find(values, epsilon=1e-3) == [sentence]


def test_statistics_in_the_place_of_gamma_and_beta():
    order = ("mean", "variance", "gamma", "beta")
    values = dict(zip(order, HEALTHY.values(), strict=True))
    assert flags.find(values) == ["negative variance in 1 of 3", "variance 0 in 1 of 3", SHUFFLED]


@pytest.mark.parametrize(
    ("mean", "variance"),
    [
        pytest.param([0.9, 1.0, -1.1], [-0.2, 0.1, 0.3], id="one mean is negative"),
        pytest.param([0.9, 1.0, 1.1], [0.0, 0.1, 0.3], id="no variance is negative"),
        pytest.param([90.0, 100.0, 110.0], [-0.2, 0.1, 0.3], id="means far from 1"),
    ],
)
def test_what_does_not_look_like_gamma_and_beta(mean, variance):
    assert SHUFFLED not in flags.find({"mean": np.array(mean), "variance": np.array(variance)})


@pytest.mark.parametrize(
    ("missing", "sentence"),
    [
        (
            ("mean", "variance"),
            "mean and variance missing: saved with trainable variables only, or a layer normalization",
        ),
        (("variance",), "variance missing"),
        (("gamma", "mean"), "gamma and mean missing"),
    ],
)
def test_missing(missing, sentence):
    values = {role: array for role, array in HEALTHY.items() if role not in missing}
    assert flags.find(values, missing=missing) == [sentence]


@pytest.mark.parametrize(
    "values",
    [
        pytest.param(HEALTHY, id="trained"),
        pytest.param({"mean": HEALTHY["mean"], "variance": HEALTHY["variance"]}, id="neither gamma nor beta"),
        pytest.param(changed("mean", [0, 0, 0]), id="mean 0 with a variance that moved"),
        pytest.param(changed("variance", [1, 1, 1]), id="variance 1 with a mean that moved"),
        pytest.param({"mean": np.array([0.0, 1e-30]), "variance": np.ones(2)}, id="moved by next to nothing"),
        pytest.param(changed("gamma", [0, 0, 1e-20]), id="gamma nearly 0"),
        pytest.param(changed("beta", [0, 0, 0]), id="beta 0"),
        pytest.param(changed("count", 7, "int64"), id="counted"),
        pytest.param(changed("variance", [1e-3, 1, 1], "float64"), id="variance at epsilon"),
        pytest.param(changed("mean", [0.9, 1.0, 1.1]), id="mean about 1 with a real variance"),
        pytest.param(changed("mean", [1, 2, 3], "float64"), id="float64"),
        pytest.param({role: array.reshape(1, 1, 3) for role, array in HEALTHY.items()}, id="as virtual batches keep"),
        pytest.param({}, id="nothing"),
        pytest.param({role: np.zeros(0) for role in HEALTHY}, id="no channels"),
    ],
)
def test_nothing_odd(values):
    assert flags.find(values, epsilon=1e-3) == []


def test_a_helper_class_without_its_averages():
    values = {"batch_mean": np.ones(2), "batch_variance": np.ones(2)}
    found = flags.find(values, missing=["mean", "variance"])
    assert found == ["mean and variance missing: there is only that of the last batch"]


def test_a_new_module_of_torch_was_never_updated():
    """Its count is 0 with reason."""
    values = {"mean": np.zeros(2), "variance": np.ones(2), "count": np.array(0)}
    assert flags.find(values) == ["mean all 0, variance all 1: never updated"]


@pytest.mark.parametrize("epsilon", [None, NAN, 0.0])
def test_an_epsilon_that_is_not_known_flags_nothing(epsilon):
    assert flags.find(changed("variance", [1e-9, 1, 2]), epsilon=epsilon) == []


@hypothesis.given(
    hypothesis.strategies.dictionaries(
        hypothesis.strategies.sampled_from(["gamma", "beta", "mean", "variance", "count", "mean_average"]),
        hypothesis.extra.numpy.arrays(
            hypothesis.extra.numpy.scalar_dtypes(), hypothesis.extra.numpy.array_shapes(min_dims=0, min_side=0)
        ),
    )
)
def test_whatever_a_file_holds_is_described(values):
    """Of any type and shape, without a warning, and without a change to the values."""
    before = {role: array.tobytes() for role, array in values.items()}
    sentences = flags.find(values, missing=["beta"], epsilon=1e-3)
    assert sentences[0] == "beta missing"
    assert {role: array.tobytes() for role, array in values.items()} == before
