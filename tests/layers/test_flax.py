# SPDX-License-Identifier: Apache-2.0
"""`evenkeel.flax.BatchNorm`: what Flax's own module does, what it does beyond that, and how it lives in nnx."""

import copy
import importlib.util
import json
import os
import pickle
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

import hard_data
import oracle
import tolerances
from conftest import NAME

if NAME != "jax" or importlib.util.find_spec("flax") is None:
    pytest.skip("of JAX, with Flax", allow_module_level=True)

import jax
import jax.numpy as jnp
from flax import nnx

import evenkeel as ek
from evenkeel.errors import ArgumentError, AxisError, RenormLimitError, UnknownTensorError, WeightShapeError
from evenkeel.flax import BatchNorm as Ours

Theirs = nnx.BatchNorm
SHAPE = (6, 5, 4)
pytestmark = pytest.mark.usefixtures("backend")  # which makes JAX strict about types


def data(shape=SHAPE, seed=0, mean=3, std=2, dtype="float32"):
    return np.random.default_rng(seed).normal(mean, std, shape).astype(dtype)


def made(kind=Ours, features=4, **arguments):
    return kind(features, **{"rngs": nnx.Rngs(0), **arguments})


def started(features=4, **arguments):
    """A module whose variables no batch would have by chance."""
    layer = made(Ours, features, **arguments)
    for place, variable in enumerate(variables(layer).values()):
        if variable.dtype != "int32":
            variable[...] = jnp.linspace(0.5, 2, features, dtype=variable.dtype) + place / 8
    return layer


@pytest.fixture
def standard_promotion(backend):
    with jax.numpy_dtype_promotion("standard"):
        yield


def variables(layer):
    return {path[0]: variable for path, variable in nnx.to_flat_state(nnx.state(layer))}


def values(layer):
    return {name: np.array(variable[...]).astype("float64") for name, variable in variables(layer).items()}


def statistics(layer):
    return [np.array(variable[...]) for variable in (layer.mean, layer.var)]


def plain(value):
    return np.asarray(value).astype("float64")


@nnx.jit
def forward(layer, x, **call):
    return layer(x, **call)


@nnx.jit
def forward_and_backward(layer, x, dy, call):
    def loss(layer, x):
        y = layer(x, **call)
        return (y.astype(dy.dtype) * dy).sum(), y

    return nnx.grad(loss, argnums=(0, 1), has_aux=True)(layer, x)


def step(layer, x, dy, **call):
    """The output, and the gradients of `sum(dy * y)` by the input and by the parameters."""
    (by_parameters, by_input), y = forward_and_backward(layer, x, dy, call)
    return plain(y), {"x": plain(by_input), **values(by_parameters)}


# What Flax does.


def normal(seed):
    return lambda key, shape, dtype: jax.random.normal(jax.random.key(seed), shape, dtype) + 2


def everything_float32(arrays, dtype=None):
    return tuple(None if array is None else array.astype("float32") for array in arrays)


ARGUMENTS = {
    "defaults": {},
    "axis 1": {"axis": 1},
    "momentum": {"momentum": 0.3},
    "epsilon": {"epsilon": 0.5},
    "dtype bfloat16": {"dtype": jnp.bfloat16},
    "dtype float16": {"dtype": "float16"},
    "param_dtype": {"param_dtype": jnp.bfloat16, "dtype": jnp.float32},
    "no bias": {"use_bias": False},
    "neither": {"use_scale": False, "use_bias": False},
    "initializers": {"bias_init": normal(1), "scale_init": normal(2)},
    "slow variance": {"use_fast_variance": False},
    "promote_dtype": {"promote_dtype": everything_float32},
    "running average": {"use_running_average": True},
    "axis in a list": {"axis": [2]},
    "initializers of Flax": {"scale_init": nnx.initializers.normal(), "bias_init": nnx.initializers.normal()},
    "metadata": {"bias_metadata": {"note": "b"}, "scale_metadata": {"note": "s"}},
}


def both(**arguments):
    """Flax's module and ours for inputs of `SHAPE`."""
    axis = arguments.get("axis", -1)
    features = SHAPE[axis[0] if isinstance(axis, list) else axis]
    theirs = {**arguments, "axis": tuple(axis)} if isinstance(axis, list) else arguments
    return made(Theirs, features, **theirs), made(Ours, features, **arguments)


def close(got, expected, dtype, count=30):
    """Both have rounded."""
    condition = tolerances.condition(3, 4)
    error = 2 * tolerances.gradient(dtype, count, condition, np.abs(expected).max(initial=1.0))
    assert got.shape == expected.shape
    assert np.abs(got - expected).max(initial=0) <= error


# Of the last three it is seen that they make the same module.
@pytest.mark.parametrize("name", [*ARGUMENTS][:-3])
def test_every_argument(name, standard_promotion):
    theirs, ours = both(**ARGUMENTS[name])
    dtype = jnp.dtype(ARGUMENTS[name].get("dtype", "float32")).name
    count = 4 * 5 * 6 // theirs.num_features
    for seed in (1, 2):
        # Flax rounds the input to `dtype` first; ours does not.
        x, dy = data(seed=seed).astype(jnp.dtype(dtype)).astype("float32"), data(seed=seed + 50, mean=0, std=1)
        (wanted, wanted_gradients), (got, gradients) = (step(layer, x, dy) for layer in (theirs, ours))
        close(got, wanted, dtype, count)
        assert gradients.keys() == wanted_gradients.keys()
        largest = max(np.abs(gradient).max() for gradient in wanted_gradients.values())
        for key, gradient in gradients.items():
            close(gradient / largest, wanted_gradients[key] / largest, dtype, count)
        for now, expected in zip(values(ours).values(), values(theirs).values(), strict=True):
            close(now, expected, "float32", count)
    close(plain(ours(x, True)), plain(theirs(x, True)), dtype, count)


def test_the_comparison_notices_another_momentum():
    theirs, ours = made(Theirs), made(Ours, momentum=0.98)
    for layer in (theirs, ours):
        layer(data())
    with pytest.raises(AssertionError):
        close(statistics(ours)[0], statistics(theirs)[0], "float32")


def test_a_mask_of_flax():
    theirs, ours = both()
    mask = np.random.default_rng(7).random((6, 5, 1)) < 0.7
    (wanted, wanted_gradients), (got, gradients) = (
        step(layer, data(), data(seed=1), mask=mask) for layer in (theirs, ours)
    )
    close(got, wanted, "float32")
    close(gradients["x"], wanted_gradients["x"], "float32")
    close(np.stack(statistics(ours)), np.stack(statistics(theirs)), "float32")


@pytest.mark.parametrize("name", ARGUMENTS)
def test_variables_have_flax_s_names_types_metadata_and_start(name):
    theirs, ours = map(variables, both(**ARGUMENTS[name]))
    assert [(key, type(item), item.dtype) for key, item in ours.items()] == [
        (key, type(item), item.dtype) for key, item in theirs.items()
    ]
    for key, item in ours.items():
        np.testing.assert_array_equal(item[...], theirs[key][...])
        assert item.get_metadata() == theirs[key].get_metadata()


def test_other_variables_are_statistics():
    layer = made(renorm=True, average="debiased")
    assert {name: type(item) for name, item in variables(layer).items()} == {
        **dict.fromkeys(["mean", "var", "moving_stddev", "renorm_mean", "renorm_stddev", "updates"], nnx.BatchStat),
        **dict.fromkeys(["scale", "bias"], nnx.Param),
    }


@pytest.mark.parametrize("params", ["float32", "bfloat16"])
@pytest.mark.parametrize("dtype", [None, "bfloat16", "float32"])
@pytest.mark.parametrize("given", ["float16", "bfloat16", "float32", "int32", "uint8", "bool"])
def test_type_of_the_output(given, dtype, params, standard_promotion):
    theirs, ours = both(dtype=dtype, param_dtype=params)
    x = jax.ShapeDtypeStruct(SHAPE, given)
    wanted = nnx.eval_shape(lambda layer, x: layer(x, True), theirs, x).dtype
    assert nnx.eval_shape(lambda layer, x: layer(x, True), ours, x).dtype == wanted
    assert nnx.eval_shape(lambda layer, x: layer(x), ours, x).dtype == wanted


def test_under_strict_promotion_a_mixture_is_an_error_as_in_flax():
    for layer in both():
        with pytest.raises(jax.dtypes.TypePromotionError, match="bfloat16"):
            layer(data(dtype=jnp.bfloat16))


@pytest.mark.parametrize("told", [None, False, True])
@pytest.mark.parametrize("called", [None, False, True])
def test_phases(told, called):
    if told is called is None:
        with pytest.raises(ArgumentError, match="use_running_average=None was given"):
            made(use_running_average=None)(data())
    else:
        theirs, ours = both(use_running_average=told)
        np.testing.assert_allclose(ours(data(), called), theirs(data(), called), atol=1e-5)
        np.testing.assert_allclose(statistics(ours), statistics(theirs), rtol=1e-5)


def test_train_and_eval():
    network = nnx.Sequential(made(momentum=0.5), made())
    network.eval()
    np.testing.assert_allclose(network(data()), data() / (1 + 1e-5), rtol=1e-4)
    network.train()
    assert abs(plain(network(data())).mean()) < 1e-5
    view = nnx.view(network, use_running_average=True)
    before = statistics(network.layers[0])
    view(data())
    np.testing.assert_array_equal(statistics(network.layers[0]), before)


def test_ours_is_one_of_flax_s():
    assert isinstance(made(), Theirs) and not isinstance(made(Theirs), Ours)
    network = nnx.Sequential(made(), made(Theirs))
    assert [type(node) for _, node in nnx.iter_graph(network) if isinstance(node, Theirs)] == [Ours, Theirs]


def test_a_state_of_flax_s_module_fits():
    theirs, ours = both()
    theirs(data())
    nnx.update(ours, nnx.state(theirs))
    np.testing.assert_allclose(ours(data(), True), theirs(data(), True), atol=1e-6)


# Where Flax is wrong, so that ours must differ. A line leaves this list when Flax repairs what it says.

FLAX_IS_WRONG = {
    "far from zero: mean of squares minus square of the mean": (hard_data.FINITE["far from zero"].x, None),
    "one NaN stays": (hard_data.NON_FINITE["one NaN"], None),
    "an empty batch makes them NaN": hard_data.USELESS["empty batch"],
    "one value a channel: 0 out, variance pulled to 0": hard_data.USELESS["one value a channel"],
    "all masked: NaN": hard_data.USELESS["all masked"],
}


@pytest.mark.parametrize("reason", FLAX_IS_WRONG)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of NumPy, in the oracle
def test_flax_is_still_wrong(reason):
    x, mask = FLAX_IS_WRONG[reason]
    mask = None if mask is None else mask[..., None]
    mean, variance, count = oracle.moments(x, weights=mask)
    usable = np.isfinite(x.reshape(-1, 3)).all(0) & (count > 1)
    wanted = np.where(usable, mean, 0), np.where(usable, variance, 1)
    right = []
    for kind in (Theirs, Ours):
        layer = made(kind, 3, momentum=0.0)
        layer(jnp.asarray(x), mask=mask)
        right.append(np.allclose(statistics(layer), wanted, rtol=1e-4, atol=1e-4))
    assert right == [False, True]


@nnx.jit
def over_shards(layer, x, mask):
    return nnx.vmap(lambda layer, x, mask: layer(x, mask=mask), axis_name="shard", in_axes=(None, 0, 0))(layer, x, mask)


def test_flax_s_statistics_of_unequal_masks_are_means_of_means():
    x, mask = data((4, 3, 2)), np.array([[1, 1, 1], [1, 0, 0], [1, 1, 0], [0, 0, 1]], bool)
    right = []
    for kind in (Theirs, Ours):
        layer = made(kind, 2, momentum=0.0, axis_name="shard")
        over_shards(layer, x, mask[..., None])
        right.append(np.allclose(statistics(layer), oracle.moments(x, weights=mask[..., None])[:2], rtol=1e-4))
    assert right == [False, True]


def test_flax_cannot_have_several_axes():
    with pytest.raises((TypeError, ValueError)):
        made(Theirs, 20, axis=(1, 2))(data())


def test_several_axes():
    x = data()
    mean, variance = (f(x.astype("float64"), axis=0, keepdims=True) for f in (np.mean, np.var))
    layer = started(mean.size, axis=[-1, 1], momentum=0.0)
    scale, bias = (plain(variable[...]).reshape(mean.shape) for variable in (layer.scale, layer.bias))
    wanted = (x - mean) / np.sqrt(variance + 1e-5) * scale + bias
    np.testing.assert_allclose(layer(x), wanted, atol=1e-4)
    np.testing.assert_allclose(statistics(layer), [mean.ravel(), variance.ravel()], rtol=1e-5)
    np.testing.assert_allclose(layer(x, True), wanted, atol=1e-4)


# Masks and weights.

FITTING = {
    "batch": (-1, (6,)),
    "batch and time": (-1, (6, 5)),
    "one for all channels": (-1, (6, 5, 1)),
    "full": (-1, (6, 5, 4)),
    "channels first": (1, (6, 4)),
}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("batch", "mask"),
        ("batch and time", "sample_weight"),
        ("batch and time", "number as mask"),
        ("one for all channels", "mask"),
        ("full", "sample_weight"),
        ("channels first", "mask"),
    ],
)
def test_masks_and_weights(name, kind):
    axis, given = FITTING[name]
    weights = np.random.default_rng(5).random(given)
    weights = (weights if kind == "sample_weight" else weights < 0.7).astype(bool if kind == "mask" else "float32")
    layer = made(features=SHAPE[axis], axis=axis, momentum=0.0)
    y = layer(data(), **{kind.split()[-1]: weights})
    full = np.expand_dims(weights, axis) if len(given) == 2 else weights
    mean, variance, _ = oracle.moments(data(), axis, full.reshape([*full.shape, *[1] * (3 - full.ndim)]))
    np.testing.assert_allclose(statistics(layer), [mean, variance], rtol=1e-5)
    np.testing.assert_allclose(y, oracle.normalize(data(), mean, variance, epsilon=1e-5, axis=axis), atol=1e-5)


def test_mask_and_weight_multiply_and_reach_the_gradients():
    x, dy, mask, weight = data(), data(seed=1), np.arange(5) < 3, np.linspace(0.5, 2, 6).astype("float32")
    layer = started(momentum=0.0)
    weights = (mask * weight[:, None])[..., None]
    _, gradients = step(layer, x, dy, mask=mask[None], sample_weight=weight)
    wanted = oracle.gradients(x, dy, plain(layer.scale[...]), 1e-5, weights=weights)
    for got, expected in zip([gradients[key] for key in ("x", "scale", "bias")], wanted, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(statistics(layer), oracle.moments(x, weights=weights)[:2], rtol=1e-5)


def test_a_mask_that_does_not_fit_is_told_with_both_shapes():
    with pytest.raises(WeightShapeError, match=r"mask has shape \(7, 2\).*\(6, 5, 4\)"):
        made()(data(), mask=np.ones((7, 2), bool))


# Beyond Flax.


def test_virtual_batches():
    size = 4  # which leaves a rest of 2
    layer = made(virtual_batch_size=size, momentum=0.0)
    parts = [data()[i : i + size] for i in range(0, 6, size)]
    found = [oracle.moments(part) for part in parts]
    wanted = [oracle.normalize(part, *of[:2], epsilon=1e-5) for part, of in zip(parts, found, strict=True)]
    np.testing.assert_allclose(layer(data()), np.concatenate(wanted), atol=1e-5)
    kept = np.average([of[:2] for of in found], axis=0, weights=[len(part) for part in parts])
    np.testing.assert_allclose(statistics(layer), kept, rtol=1e-5)


@pytest.mark.parametrize(
    ("average", "weight"),
    [
        ("exponential", lambda t: 0.1),
        ("debiased", lambda t: 0.1 / (1 - 0.9**t)),
        ("cumulative", lambda t: 1 / t),
    ],
)
def test_averages(average, weight):
    layer = made(average=average, momentum=0.9)
    mean, variance = statistics(layer)
    for t in (1, 2, 3):
        x = data(seed=t, std=t)
        layer(x)
        mean, variance = (
            oracle.moved(old, new, 1 - weight(t)) for old, new in zip((mean, variance), oracle.moments(x), strict=False)
        )
    np.testing.assert_allclose(statistics(layer), [mean, variance], rtol=1e-5)


@pytest.mark.parametrize("bessel", [False, True])
@pytest.mark.parametrize("mask", [None, np.arange(6) < 4])
def test_which_variance_is_kept(bessel, mask):
    layer = made(bessel_correction=bessel, momentum=0.0)
    layer(data(), mask=mask)
    _, variance, count = oracle.moments(data(), weights=None if mask is None else mask[:, None, None])
    np.testing.assert_allclose(statistics(layer)[1], variance * count / (count - 1) if bessel else variance, rtol=1e-5)


@pytest.mark.parametrize(
    "clipping", [None, {"rmin": 0.9, "rmax": 1.1, "dmax": 0.2}, {"rmax": jnp.float32(1.2)}], ids=str
)
def test_renorm(clipping):
    layer, x = started(renorm=True, renorm_clipping=clipping, renorm_momentum=0.3, momentum=0.6), data()
    before = values(layer)
    y = plain(forward(layer, x))
    mean, variance, _ = oracle.moments(x)
    limits = {name: float(value) for name, value in (clipping or {}).items()}
    r, d = oracle.renorm_corrections(mean, variance, before["renorm_mean"], before["renorm_stddev"], limits, 1e-5)
    wanted = (oracle.normalize(x, mean, variance, epsilon=1e-5) * r + d) * before["scale"] + before["bias"]
    np.testing.assert_allclose(y, wanted, rtol=1e-4, atol=1e-4)
    after, deviation = values(layer), np.sqrt(variance + 1e-5)
    for name, new, kept in (
        ("mean", mean, 0.6),
        ("moving_stddev", deviation, 0.6),
        ("renorm_mean", mean, 0.3),
        ("renorm_stddev", deviation, 0.3),
    ):
        np.testing.assert_allclose(after[name], oracle.moved(before[name], new, kept), rtol=1e-5)
    np.testing.assert_allclose(after["var"], after["moving_stddev"] ** 2 - 1e-5, rtol=1e-5)


def test_renorm_limits_follow_a_schedule():
    layer = made(renorm=True, renorm_clipping={"rmin": 0.0, "rmax": 0.0, "dmax": lambda updates: 1 + updates / 2})
    for t in range(3):
        np.testing.assert_allclose(forward(layer, data(mean=1000, std=1)), np.full(SHAPE, 1 + t / 2), rtol=1e-4)


def doubled(y):
    return 2 * y


ACTIVATIONS = {
    "none": (None, lambda y: y),
    "name": ("relu", jax.nn.relu),
    "nnx.relu": (nnx.relu, jax.nn.relu),
    "leaky_relu": (jax.nn.leaky_relu, jax.nn.leaky_relu),
    "elu": ("elu", jax.nn.elu),
    "gelu": (nnx.gelu, jax.nn.gelu),
    "ours": (doubled, doubled),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation_and_residual(name):
    given, function = ACTIVATIONS[name]
    layer = started(activation=given, momentum=1.0)
    scale, bias, x, dy, residual = (
        *(plain(v[...]) for v in (layer.scale, layer.bias)),
        *map(data, [SHAPE] * 3, (0, 1, 2)),
    )
    y, gradients = step(layer, x, dy, residual=-residual)
    linear = oracle.normalize(x, *oracle.moments(x)[:2], scale, bias, 1e-5) - residual
    wanted, back = jax.vjp(function, linear.astype("float32"))
    np.testing.assert_allclose(y, wanted, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(gradients["x"], oracle.gradients(x, *back(dy), scale, 1e-5)[0], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(layer(x), function((linear + residual).astype("float32")), rtol=1e-5, atol=1e-5)
    linear = oracle.normalize(x, *statistics(layer), scale, bias, 1e-5) - residual
    wanted = function(linear.astype("float32"))
    np.testing.assert_allclose(layer(x, True, residual=-residual), wanted, rtol=1e-5, atol=1e-5)


def test_the_residual_has_a_gradient():
    layer, residual = made(activation="relu"), jnp.asarray(data(seed=2, mean=0))
    by = nnx.grad(lambda layer, residual: (layer(data(), residual=residual) * 3).sum(), argnums=1)(layer, residual)
    np.testing.assert_array_equal(by, np.where(layer(data(), residual=residual) > 0, 3, 0))


def test_a_module_as_activation_learns():
    layer = made(activation=nnx.PReLU(0.25))
    y, gradients = step(layer, data(), data(seed=1))
    plain_y = plain(made()(data()))
    np.testing.assert_allclose(y, np.where(plain_y > 0, plain_y, plain_y / 4), atol=1e-5)
    assert gradients.keys() == {"x", "scale", "bias", "activation"}


@pytest.mark.parametrize("frozen", [True, "all"])
def test_frozen_survives_train(frozen):
    layer, x, dy = started(frozen=frozen), data(), data(seed=1)
    layer.train()
    before = values(layer)
    y, gradients = step(layer, x, dy)
    np.testing.assert_equal(values(layer), before)
    centred = oracle.normalize(x, before["mean"], before["var"], epsilon=1e-5)
    np.testing.assert_allclose(y, centred * before["scale"] + before["bias"], rtol=1e-5, atol=1e-5)
    learns = frozen is True
    wanted = [learns * (dy * centred).sum((0, 1)), learns * dy.sum((0, 1))]
    np.testing.assert_allclose([gradients["scale"], gradients["bias"]], wanted, rtol=1e-4, atol=1e-4)


def test_jit_notices_that_it_is_frozen_later():
    layer = made()
    forward(layer, data())
    layer.frozen = True
    before = statistics(layer)
    forward(layer, data())
    np.testing.assert_array_equal(statistics(layer), before)
    nnx.clone(layer).frozen = False
    assert layer.frozen is True
    layer.frozen = False
    forward(layer, data())
    assert (statistics(layer)[0] != before[0]).all()


# Protection of the state, hard data.

KINDS = {
    "plain": {},
    "renorm": {"renorm": True},
    "debiased": {"average": "debiased"},
    "virtual": {"virtual_batch_size": 4},
    "bfloat16": {"dtype": jnp.bfloat16, "param_dtype": jnp.bfloat16},
}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *((name, kind) for name in hard_data.USELESS for kind in ("plain", "renorm")),
        *(("all but one masked", kind) for kind in ("debiased", "virtual", "bfloat16")),
    ],
)
def test_a_useless_batch_changes_nothing(name, kind):
    x, mask = hard_data.USELESS[name]
    layer = started(3, **KINDS[kind])
    before = values(layer)
    y = layer(x, mask=mask)
    np.testing.assert_equal(values(layer), before)
    np.testing.assert_allclose(plain(y), plain(layer(x, True)), rtol=1e-2 if kind == "bfloat16" else 1e-5)


@pytest.mark.parametrize("kind", ["plain", "renorm", "debiased"])
@pytest.mark.parametrize("name", hard_data.NON_FINITE)
def test_a_channel_with_a_bad_value_keeps_its_state(name, kind):
    layer = started(3, **KINDS[kind])
    before = values(layer)
    forward(layer, hard_data.NON_FINITE[name])
    kept = [key for key in before if key not in ("scale", "bias")]
    changed = np.stack([values(layer)[key] != before[key] for key in kept])
    assert changed[:, [0, 2]].all() and not changed[:, 1].any()


# The others are plain shapes, which the tests of `functional` see.
HARD = ["far from zero", "far below zero", "constant channel", "two values a channel", "subnormal", "bfloat16"]
HARD += ["near float16's limit", "channels first", "axis at the front", "not contiguous"]


@pytest.mark.parametrize("name", HARD)
def test_hard_data(name):
    x, axis = hard_data.FINITE[name]
    layer = made(features=x.shape[axis], axis=axis, momentum=0.0, dtype=x.dtype)
    y = plain(layer(jnp.asarray(x)))
    mean, variance, count = oracle.moments(x, axis)
    condition = tolerances.condition(np.abs(mean).max(), max(variance[variance > 1e-30].min(initial=1), 1e-5))
    dtype = x.dtype.name
    largest = np.abs(oracle.normalize(x, mean, variance, epsilon=1e-5, axis=axis)).max()
    error = tolerances.output(dtype, count[0], condition, largest)
    np.testing.assert_allclose(y, oracle.normalize(x, mean, variance, epsilon=1e-5, axis=axis), rtol=0, atol=error)
    scale = np.sqrt(variance.max())
    np.testing.assert_allclose(statistics(layer)[0], mean, rtol=1e-6, atol=scale * error + 1e-37)
    relative = tolerances.variance(dtype, count[0], condition)
    np.testing.assert_allclose(statistics(layer)[1], variance, rtol=relative, atol=1e-37)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_small_difference_still_moves_the_average(dtype):
    layer = made(features=1, dtype=dtype, param_dtype=dtype)
    layer(np.array([[0.0], [2.25]], dtype))  # variance 1.265625, exact in all types
    assert {key: item.dtype for key, item in variables(layer).items()} == {
        **dict.fromkeys(["mean", "var"], jnp.float32),
        **dict.fromkeys(["scale", "bias"], jnp.dtype(dtype)),
    }
    np.testing.assert_allclose(statistics(layer), [[0.01125], [1.00265625]], rtol=1e-6)


def test_sixteen_bits_in_and_thirty_two_out_are_rounded_once():
    x = data(dtype=jnp.bfloat16)
    layer = made(dtype=jnp.float32)
    wanted = oracle.normalize(x, *oracle.moments(x)[:2], epsilon=1e-5)
    np.testing.assert_allclose(layer(x), wanted, atol=1e-5)
    assert np.abs(plain(layer(x).astype(jnp.bfloat16)) - wanted).max() > 1e-3


def test_float64(backend):
    with backend.double():
        layer, x = made(momentum=0.0, dtype=jnp.float64), data(dtype="float64", mean=1e6)
        y = layer(x)
        assert y.dtype == "float64" and layer.mean.dtype == "float32"
        np.testing.assert_allclose(y, oracle.normalize(x, *oracle.moments(x)[:2], epsilon=1e-5), atol=1e-9)


# Properties.


def test_gradients_are_the_oracle_s_and_sum_to_zero():
    layer, x, dy = started(), data(), data(seed=1)
    _, gradients = step(layer, x, dy)
    wanted = oracle.gradients(x, dy, plain(layer.scale[...]), 1e-5)
    for got, expected in zip([gradients[key] for key in ("x", "scale", "bias")], wanted, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(plain(gradients["x"]).sum((0, 1)), 0, atol=1e-4)


def test_order_shift_and_scale_of_the_batch():
    x, order = data(), np.random.default_rng(3).permutation(6)
    first, second, third = (made(momentum=0.0, epsilon=0.0) for _ in range(3))
    y = plain(first(x))
    np.testing.assert_allclose(plain(second(x[order])), y[order], atol=1e-5)
    np.testing.assert_allclose(plain(third(x * 4 + 8)), y, atol=1e-4)
    np.testing.assert_allclose(statistics(second), statistics(first), rtol=1e-5)
    mean, variance = statistics(first)
    np.testing.assert_allclose(statistics(third), [mean * 4 + 8, variance * 16], rtol=1e-5)


def test_a_weight_of_two_repeats():
    x, weight = data(), np.array([1, 2, 1, 1, 2, 1], "float32")
    layers = made(momentum=0.0), made(momentum=0.0)
    layers[0](x, sample_weight=weight)
    layers[1](np.repeat(x, weight.astype(int), axis=0))
    np.testing.assert_allclose(statistics(layers[0]), statistics(layers[1]), rtol=1e-5)


def test_a_second_call_compiles_nothing():
    traces = []

    def count(y):
        traces.append(y)
        return y

    layer = made(activation=count, renorm=True, renorm_clipping={"dmax": lambda updates: updates / 2})
    for seed in range(3):
        forward(layer, data(seed=seed))
    assert len(traces) == 1


# Life in nnx.


class Block(nnx.Module):
    def __init__(self, rngs, **arguments):
        self.dense = nnx.Linear(4, 4, rngs=rngs)
        self.norm = Ours(4, average="cumulative", rngs=rngs, **arguments)

    def __call__(self, x):
        return self.norm(self.dense(x))


def block(seed=0, **arguments):
    return Block(nnx.Rngs(seed), **arguments)


def test_gradients_are_of_parameters_only():
    by = nnx.eval_shape(nnx.grad(lambda module: module(data()).sum()), block())
    assert {path[-1] for path, _ in nnx.to_flat_state(by)} == {"kernel", "scale", "bias"}


@pytest.mark.parametrize("how", ["nnx.remat", "jax.checkpoint"])
def test_what_is_computed_twice_counts_once(how):
    module, x = block(), data((6, 4))

    @nnx.jit
    def remat(module):
        return nnx.grad(lambda module: (nnx.remat(Block.__call__)(module, x) ** 2).sum())(module)

    if how == "jax.checkpoint":
        graph, params, others = nnx.split(module, nnx.Param, ...)

        @jax.checkpoint
        def loss(params, others):
            whole = nnx.merge(graph, params, others)
            return (whole(x) ** 2).sum(), nnx.state(whole, nnx.BatchStat)

        _, new = jax.jit(jax.grad(loss, has_aux=True))(params, others)
        nnx.update(module, new)
    else:
        remat(module)
    assert module.norm.updates[...].tolist() == [1] * 4
    once = block()
    once(x)
    np.testing.assert_allclose(statistics(module.norm), statistics(once.norm), rtol=1e-5, atol=1e-6)


def test_vmap_over_inputs_when_serving():
    layer, x = started(), data((3, 6, 4))
    y = nnx.vmap(lambda layer, x: layer(x, True), in_axes=(None, 0))(layer, x)
    np.testing.assert_allclose(y, layer(x, True), atol=1e-6)


def test_an_ensemble_and_scan_over_layers():
    blocks = nnx.split_rngs(splits=3)(nnx.vmap(Block, in_axes=0, out_axes=0))(nnx.Rngs(0))
    x, one_by_one = data((6, 4)), []

    @nnx.jit
    @nnx.scan(in_axes=(0, nnx.Carry), out_axes=nnx.Carry)
    def through(module, x):
        return module(x)

    graph, state = nnx.split(blocks)
    y = through(blocks, x)
    wanted = x
    for place in range(3):
        one = nnx.merge(graph, jax.tree.map(lambda value, place=place: value[place], state))
        wanted = forward(one, wanted)
        one_by_one.append(np.stack(statistics(one.norm)))
    np.testing.assert_allclose(y, wanted, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(np.stack(statistics(blocks.norm), axis=1), one_by_one, rtol=1e-4, atol=1e-5)


ROUND_TRIPS = {
    "split and merge": lambda module: nnx.merge(*nnx.split(module), copy=True),
    "pure dictionary": lambda module: filled(block(1), nnx.to_pure_dict(nnx.state(module))),
    "clone": nnx.clone,
    "deepcopy": copy.deepcopy,
    "pickle": lambda module: pickle.loads(pickle.dumps(module)),
    "jax.tree": lambda module: jax.tree.map(lambda leaf: leaf, module),
}


def filled(module, pure):
    state = nnx.state(module)
    nnx.replace_by_pure_dict(state, pure)
    nnx.update(module, state)
    return module


@pytest.mark.parametrize("how", ROUND_TRIPS)
def test_round_trips(how):
    module, x = block(renorm=True, activation=jax.nn.relu), data((6, 4))
    module(x)
    if how == "pure dictionary":
        module = block()
        module(x)
    again = ROUND_TRIPS[how](module)
    before = values(module.norm)
    np.testing.assert_equal(values(again.norm), before)
    np.testing.assert_array_equal(again(x), module(x))
    again(x)
    assert (values(again.norm)["updates"] == 3).all() and (values(module.norm)["updates"] == 2).all()


# Devices.


def test_vmap_with_an_axis_name_is_synchronized():
    x, dy, mask = data((4, 3, 2)), data((4, 3, 2), seed=1), np.random.default_rng(0).random((4, 3)) < 0.7
    layer = started(2, axis_name="shard", momentum=0.0)
    whole = started(2, momentum=0.0)
    wanted, gradients = step(whole, x, dy, mask=mask)

    @nnx.jit
    def gradient(layer, x):
        def loss(layer, x):
            y = over_shards(layer, x, mask)
            return (y * dy).sum(), y

        return nnx.grad(loss, argnums=1, has_aux=True)(layer, x)

    by, y = gradient(layer, x)
    np.testing.assert_allclose(y, wanted, atol=1e-5)
    np.testing.assert_allclose(by, gradients["x"], atol=1e-5)
    np.testing.assert_allclose(statistics(layer), statistics(whole), rtol=1e-5)


DEVICES = """
    import json, sys
    import jax, numpy as np
    from flax import nnx
    from jax.sharding import PartitionSpec as P
    from evenkeel.flax import BatchNorm

    jax.config.update("jax_numpy_dtype_promotion", "strict")
    x = np.random.default_rng(0).normal(30, 2, (8, 3)).astype("float32")
    dy = np.random.default_rng(1).normal(0, 1, (8, 3)).astype("float32")
    mask = np.array([1, 1, 0, 0, 1, 0, 1, 1], bool)
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    share, all = P("data"), P()

    def step(layer, x, dy, mask):
        def loss(layer, x):
            y = layer(x, mask=mask)
            return (y * dy).sum(), y
        (by, dx), y = nnx.grad(loss, argnums=(0, 1), has_aux=True)(layer, x)
        return y, dx, by["scale"][...]

    def made(**arguments):
        return BatchNorm(3, momentum=0.0, rngs=nnx.Rngs(0), **arguments)

    def numbers(layer, *found):
        return [np.asarray(item).tolist() for item in (*found, layer.mean[...], layer.var[...])]

    def pure(layer):
        graph, state = nnx.split(layer)
        def run(state, *given):
            layer = nnx.merge(graph, state)
            return step(layer, *given), nnx.state(layer)
        specs = {"in_specs": (all, share, share, share), "out_specs": ((share, share, all), all)}
        found, new = jax.jit(jax.shard_map(run, mesh=mesh, **specs))(state, x, dy, mask)
        nnx.update(layer, new)
        return numbers(layer, *found)

    def of_nnx(layer):
        specs = {"in_specs": (all, share, share, share), "out_specs": (share, share, all)}
        return numbers(layer, *nnx.jit(nnx.shard_map(step, mesh=mesh, **specs))(layer, x, dy, mask))

    def in_groups(layer):
        parts = [part.reshape(4, 2, *part.shape[1:]) for part in (x, mask)]
        y = nnx.pmap(lambda layer, x, mask: layer(x, mask=mask), axis_name="data", in_axes=(None, 0, 0))(layer, *parts)
        return numbers(layer, y.reshape(8, 3))

    layer = made()
    print("results", json.dumps({
        "alone": numbers(layer, *step(layer, x, dy, mask)),
        "axis_name": pure(made(axis_name=["data"])),
        "synchronized": of_nnx(made(synchronized=True)),
        "groups": in_groups(made(axis_name="data", axis_index_groups=[[0, 1], [2, 3]])),
        "first half": numbers(layer, layer(x[:4], mask=mask[:4])),
        "second half": numbers(layer, layer(x[4:], mask=mask[4:])),
    }))
"""


@pytest.fixture(scope="module")
def devices():
    """What four devices found; in a process of its own, since JAX counts them once."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(DEVICES)],
        env={**environment, "XLA_FLAGS": "--xla_force_host_platform_device_count=4"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(next(line for line in done.stdout.splitlines() if line.startswith("results"))[7:])


@pytest.mark.xdist_group("flax devices")
@pytest.mark.parametrize("how", ["axis_name", "synchronized"])
def test_devices_find_what_one_finds(devices, how):
    for got, wanted in zip(devices[how], devices["alone"], strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.xdist_group("flax devices")
def test_groups_of_devices_find_what_each_half_finds(devices):
    halves = [devices[half][0] for half in ("first half", "second half")]
    np.testing.assert_allclose(devices["groups"][0], np.concatenate(halves), atol=1e-5)
    np.testing.assert_allclose(devices["groups"][1:], devices["first half"][1:], rtol=1e-5)


# Linen.


def test_the_module_for_linen_in_the_documentation_has_flax_s_numbers():
    page = Path(__file__).parents[2] / "docs" / "differences" / "flax.md"
    names = {}
    exec(re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)[-1], names)
    module, theirs = names["BatchNorm"](), made(Theirs)
    collections = module.init(jax.random.key(0), data(), True)
    for train in (True, False):
        y, new = module.apply(collections, data(), train, mutable="batch_stats")
        collections = {**collections, **new}
        np.testing.assert_allclose(y, theirs(data(), not train), atol=1e-5)
    kept = [collections["batch_stats"][name] for name in ("mean", "var")]
    np.testing.assert_allclose(kept, statistics(theirs), rtol=1e-5)


# Errors say what arrived.

WRONG = {
    "momentum": ({"momentum": 1.5}, ArgumentError, r"momentum=1.5 is outside \[0, 1\]"),
    "epsilon": ({"epsilon": -1}, ArgumentError, "epsilon=-1 is outside"),
    "axis": ({"axis": 1.5}, AxisError, "axis=1.5 is not an integer"),
    "num_features": ({"features": 0}, ArgumentError, "num_features=0 is not a positive integer"),
    "dtype": ({"dtype": "complex64"}, ArgumentError, "dtype='complex64' is not a real floating type"),
    "no dtype": ({"dtype": "no"}, ArgumentError, "dtype='no' is not a real floating type"),
    "param_dtype": ({"param_dtype": "int32"}, ArgumentError, "param_dtype='int32' is not a real floating type"),
    "average": ({"average": "median"}, ArgumentError, "average='median' is unknown"),
    "activation": ({"activation": "gelu"}, ArgumentError, "activation='gelu' is unknown"),
    "no function": ({"activation": 3}, ArgumentError, "activation=3 is not a function"),
    "frozen": ({"frozen": "al"}, ArgumentError, "frozen='al' is unknown; give False, True or 'all'"),
    "renorm_clipping": ({"renorm_clipping": {"rmin": 2, "rmax": 1}}, RenormLimitError, "rmin=2 and rmax=1"),
    "renorm_momentum": ({"renorm": True, "renorm_momentum": 2}, ArgumentError, "renorm_momentum=2 is outside"),
    "virtual_batch_size": ({"virtual_batch_size": 0}, ArgumentError, "virtual_batch_size=0 is not"),
    "rows": ({"virtual_batch_size": 2, "axis": 0}, ArgumentError, "axis=0 has axis 0, which virtual_batch_size splits"),
    "whole and parts": ({"virtual_batch_size": 2, "axis_name": "data"}, ArgumentError, "leave one of them out"),
    "groups": ({"axis_index_groups": [[0]]}, ArgumentError, r"axis_index_groups=\[\[0\]\] are positions"),
}


@pytest.mark.parametrize("name", WRONG)
def test_arguments_that_cannot_be_honoured(name):
    arguments, error, message = WRONG[name]
    with pytest.raises(error, match=message):
        made(**arguments)


CALLS = {
    "features": (data((6, 3)), {}, ArgumentError, r"shape \(6, 3\), with 3 features along axis -1; give 4"),
    "complex": (data(dtype="complex64"), {}, UnknownTensorError, "type complex64 arrived; give real numbers"),
    "residual": (data(), {"residual": data((5, 4))}, ArgumentError, r"residual has shape \(5, 4\)"),
}


@pytest.mark.parametrize("name", CALLS)
def test_inputs_that_cannot_be_used(name):
    x, call, error, message = CALLS[name]
    with pytest.raises(error, match=message):
        made(dtype=jnp.float32)(x, **call)


def test_an_axis_that_the_input_has_not():
    with pytest.raises(AxisError, match="axis=3 is out of range for an input of 3 dimensions"):
        made(axis=3)(data())


def test_frozen_set_later_is_checked():
    layer = made()
    with pytest.raises(ArgumentError, match="frozen='any' is unknown"):
        layer.frozen = "any"
    assert layer.frozen is False


# The tools know it.


class Network(nnx.Module):
    def __init__(self, **arguments):
        self.first, self.second = made(**arguments), made(Theirs)

    def __call__(self, x, weight=None):
        return self.second(self.first(x, sample_weight=weight))


@pytest.mark.parametrize("method", ["pooled", "sequential"])
def test_recalibrate(method):
    network, x = Network(renorm=True, bessel_correction=True, average="cumulative"), data((20, 4))
    report = ek.recalibrate(network, x, batch_size=8, method=method)
    assert report.unreached == []
    mean, variance, count = oracle.moments(x)
    np.testing.assert_allclose(statistics(network.first), [mean, variance * count / (count - 1)], rtol=1e-5)
    np.testing.assert_allclose(network.first.renorm_mean[...], mean, rtol=1e-5)
    assert network.first.updates[...].tolist() == [3] * 4


def test_recalibrate_with_weights():
    network, x, weight = Network(), data((20, 4)), np.linspace(0, 2, 20).astype("float32")
    ek.recalibrate(network, {"x": x, "weight": weight}, batch_size=8)
    np.testing.assert_allclose(statistics(network.first), oracle.moments(x, weights=weight[:, None])[:2], rtol=1e-5)


@pytest.mark.parametrize("included", [False, True])
def test_recalibrate_leaves_what_is_frozen(included):
    network, x = Network(frozen=True), data((20, 4))
    ek.recalibrate(network, x, include_frozen=included)
    assert (statistics(network.first)[0] != 0).all() == included
    assert (statistics(network.second)[0] != 0).all()


def test_diagnose_sees_its_settings():
    network = Network(frozen="all", bessel_correction=True, average="cumulative", renorm=True)
    from evenkeel.doctor import subjects
    from evenkeel.doctor.evidence import Normalizer
    from evenkeel.doctor.options import Options

    ours, theirs = (item for item in subjects.of(network).evidence(network, Options()) if isinstance(item, Normalizer))
    assert (ours.frozen, ours.trainable, ours.moves, ours.bessel_correction) == ("all", False, False, True)
    assert (ours.average, ours.updates, sorted(ours.others)) == (
        "cumulative",
        0,
        ["moving_stddev", "renorm_mean", "renorm_stddev"],
    )
    assert (theirs.frozen, theirs.moves, theirs.updates, theirs.others) == (None, True, None, {})
