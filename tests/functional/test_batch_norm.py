# SPDX-License-Identifier: Apache-2.0
import ml_dtypes
import numpy as np
import pytest

import evenkeel as ek
from evenkeel import backends
from evenkeel.errors import ArgumentError, AxisError
from evenkeel.functional.renorm import Limits, Renorm

import hard_data
import oracle
import tolerances
from conftest import BACKENDS

EPSILON = 1e-3


def start(backend, channels, dtype="float32", **more):
    """Statistics that no batch would have by chance."""
    mean, variance = np.linspace(-1, 2, channels), np.linspace(0.5, 3, channels)
    state = {"moving_mean": mean, "moving_variance": variance, **more}
    return ek.State(**{name: backend.array(np.asarray(value, dtype)) for name, value in state.items()})


def parameters(backend, channels, dtype="float32"):
    gamma, beta = np.linspace(0.5, 2, channels), np.linspace(-1, 1, channels)
    return ek.Parameters(*(backend.array(value.astype(dtype)) for value in (gamma, beta)))


def check_output(backend, y, x, axis, mean, variance, params, count, activation=None):
    gamma, beta = (backend.numpy(value).astype("float64") for value in params)
    expected = oracle.normalize(x, mean, variance, gamma, beta, EPSILON, axis)
    expected = np.maximum(expected, 0) if activation else expected
    got = np.moveaxis(backend.numpy(y).astype("float64"), axis, -1).reshape(-1, len(mean))
    expected = np.moveaxis(expected, axis, -1).reshape(-1, len(mean))
    for channel in range(len(mean)):
        # epsilon bounds the spread from below
        condition = tolerances.condition(mean[channel], variance[channel] + EPSILON)
        largest = np.abs(expected[:, channel]).max() + 1
        error = tolerances.output(x.dtype.name, count, condition, largest) * max(1, gamma[channel])
        assert np.abs(got[:, channel] - expected[:, channel]).max() <= error


def check_state(backend, old, new, x, mean, variance, count, momentum):
    for channel, (m, v) in enumerate(zip(mean, variance, strict=True)):
        condition = tolerances.condition(m, v + 1e-30)
        tiny = 8 * tolerances.UNIT_ROUNDOFF["float32"]
        for name, batch, error in (
            ("moving_mean", m, tolerances.mean(x.dtype.name, count, condition) * np.sqrt(v)),
            ("moving_variance", v, tolerances.variance(x.dtype.name, count, condition) * v),
        ):
            expected = oracle.moved(backend.numpy(getattr(old, name))[channel], batch, momentum)
            bound = error + tiny * (abs(expected) + abs(m)) + (16 * 2.0**-24 * m) ** 2 * (v == 0)
            assert abs(backend.numpy(getattr(new, name))[channel] - expected) <= bound


@pytest.mark.parametrize("activation", [None, "relu"])
@pytest.mark.parametrize("name", hard_data.FINITE)
def test_training_step(backend, path, name, activation):
    x, axis = hard_data.FINITE[name]
    mean, variance, total = oracle.moments(x, axis)
    params, state = parameters(backend, len(mean)), start(backend, len(mean))
    y, new = ek.batch_norm(
        backend.array(x), params, state, training=True, axis=axis, epsilon=EPSILON, momentum=0.9, activation=activation
    )
    check_output(backend, y, x, axis, mean, variance, params, total[0], activation)
    check_state(backend, state, new, x, mean, variance, total[0], 0.9)


@pytest.mark.parametrize("name", hard_data.FINITE)
def test_stored_variance_is_the_one_asked_for(backend, path, name):
    x, axis = hard_data.FINITE[name]
    mean, variance, total = oracle.moments(x, axis)
    for bessel, factor in ((False, 1), (True, total[0] / (total[0] - 1))):
        _, new = ek.batch_norm(
            backend.array(x),
            parameters(backend, len(mean)),
            start(backend, len(mean)),
            training=True,
            axis=axis,
            momentum=0.0,
            bessel_correction=bessel,
        )
        for channel, (m, v) in enumerate(zip(mean, variance, strict=True)):
            got = backend.numpy(new.moving_variance)[channel]
            bound = tolerances.variance(x.dtype.name, total[0], tolerances.condition(m, v) if v else 1) * v
            assert abs(got - v * factor) <= bound * factor + (16 * 2.0**-24 * m) ** 2 * (v == 0) + 1.2e-38


@pytest.mark.parametrize("name", hard_data.FINITE)
def test_inference_step(backend, path, name):
    x, axis = hard_data.FINITE[name]
    channels = x.shape[axis]
    params, state = parameters(backend, channels), start(backend, channels)
    y, new = ek.batch_norm(backend.array(x), params, state, training=False, axis=axis, epsilon=EPSILON)
    mean, variance = (backend.numpy(value).astype("float64") for value in state[:2])
    gamma, beta = (backend.numpy(value).astype("float64") for value in params)
    expected = oracle.normalize(x, mean, variance, gamma, beta, EPSILON, axis)
    unit = max(tolerances.UNIT_ROUNDOFF[x.dtype.name], 8 * tolerances.UNIT_ROUNDOFF["float32"])
    np.testing.assert_allclose(backend.numpy(y).astype("float64"), expected, rtol=2 * unit, atol=2 * unit)
    assert new is state


@pytest.mark.parametrize("name", hard_data.FINITE)
def test_result_has_the_type_of_the_input(backend, path, name):
    x, axis = hard_data.FINITE[name]
    array = backend.array(x)
    for training in (True, False):
        y, new = ek.batch_norm(
            array, parameters(backend, x.shape[axis]), start(backend, x.shape[axis]), training=training, axis=axis
        )
        assert y.dtype == array.dtype and y.shape == array.shape
        assert backend.numpy(new.moving_variance).dtype == np.float32


def test_integers_are_computed_in_float32(backend, path):
    x = np.arange(12).reshape(6, 2)
    y, _ = ek.batch_norm(backend.array(x), parameters(backend, 2), start(backend, 2), training=True)
    assert backend.numpy(y).dtype == np.float32


@pytest.mark.parametrize("activation", [None, "relu"])
@pytest.mark.parametrize(
    "name",
    [
        "plain",
        "dense",
        "volume",
        "far from zero",
        "bfloat16",
        "channels first",
        "axis in the middle",
        "not contiguous",
        "two values a channel",
    ],
)
def test_gradients(differentiable, path, name, activation):
    backend = differentiable
    x, axis = hard_data.FINITE[name]
    mean, variance, total = oracle.moments(x, axis)
    params, state = parameters(backend, len(mean)), start(backend, len(mean))
    gamma, beta = (backend.numpy(value).astype("float64") for value in params)
    dy = np.random.default_rng(9).normal(size=x.shape).astype(x.dtype)

    def loss(x, gamma, beta):
        y, _ = ek.batch_norm(
            x, ek.Parameters(gamma, beta), state, training=True, axis=axis, epsilon=EPSILON, activation=activation
        )
        return backend.sum(backend.float32(y) * backend.float32(backend.array(dy)))

    got = [backend.numpy(value).astype("float64") for value in backend.gradients(loss, backend.array(x), *params)]
    counted = dy.astype("float64")
    if activation:
        y = oracle.normalize(x, mean, variance, gamma, beta, EPSILON, axis)
        counted = counted * (y > 0)
    expected = oracle.gradients(x, counted, gamma, EPSILON, axis)
    condition = max(tolerances.condition(m, v) for m, v in zip(mean, variance, strict=True))
    inverse = (gamma / np.sqrt(variance + EPSILON)).max()
    for value, wanted, scale in zip(got, expected, (inverse, total[0] ** 0.5, total[0] ** 0.5), strict=True):
        bound = tolerances.gradient(x.dtype.name, total[0], condition, 4 * scale)
        close = np.abs(value - wanted) <= bound
        if activation:  # a value whose sign rounding decides may have the other slope
            y = oracle.normalize(x, mean, variance, gamma, beta, EPSILON, axis)
            undecided = np.abs(y) < 4 * tolerances.output(x.dtype.name, total[0], condition)
            close = close | undecided if close.shape == undecided.shape else close | undecided.any()
        assert close.all()


ACTIVATED = {
    None: lambda z: (z, np.ones_like(z)),
    "relu": lambda z: (np.maximum(z, 0), np.where(z > 0, 1.0, 0.0)),
    "leaky_relu": lambda z: (np.where(z > 0, z, 0.01 * z), np.where(z > 0, 1, 0.01)),
    "elu": lambda z: (np.where(z > 0, z, np.expm1(np.minimum(z, 0))), np.where(z > 0, 1, np.exp(np.minimum(z, 0)))),
}
"""Of each activation: its value, and its slope."""


def beside(x):
    """What is added to it."""
    return np.random.default_rng(14).normal(-1, 1, x.shape).astype(x.dtype)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("activation", ACTIVATED)
@pytest.mark.parametrize(("name", "residual"), [("dense", True), ("channels first", False), ("bfloat16", True)])
def test_residual_and_activation(backend, path, name, residual, activation, training):
    x, axis = hard_data.FINITE[name]
    params, state = parameters(backend, x.shape[axis]), start(backend, x.shape[axis])
    mean, variance = oracle.moments(x, axis)[:2] if training else map(backend.numpy, state[:2])
    options = {"axis": axis, "activation": activation}
    if residual:
        options["residual"] = backend.array(beside(x))
    y, _ = ek.batch_norm(backend.array(x), params, state, training=training, **options)
    gamma, beta = map(backend.numpy, params)
    z = oracle.normalize(x, mean, variance, gamma, beta, EPSILON, axis)
    expected, _ = ACTIVATED[activation](z + beside(x).astype("float64") if residual else z)
    assert y.dtype == backend.array(x).dtype
    unit = tolerances.UNIT_ROUNDOFF[x.dtype.name] if name == "bfloat16" else 1e-5
    np.testing.assert_allclose(backend.numpy(y).astype("float64"), expected, rtol=4 * unit, atol=16 * unit)


@pytest.mark.parametrize("activation", ACTIVATED)
@pytest.mark.parametrize("training", [True, False])
def test_gradients_of_residual_and_activation(differentiable, path, training, activation):
    backend = differentiable
    with backend.double():
        x = hard_data.FINITE["sequence"].x.astype("float64")
        dy, added = np.random.default_rng(15).normal(size=x.shape), beside(x)
        params, state = parameters(backend, 3, "float64"), start(backend, 3, "float64")

        def loss(x, gamma, beta, residual):
            y, _ = ek.batch_norm(
                x, ek.Parameters(gamma, beta), state, training=training, activation=activation, residual=residual
            )
            return backend.sum(y * backend.array(dy))

        got = backend.gradients(loss, backend.array(x), *params, backend.array(added))
        gamma, beta, *statistics = map(backend.numpy, (*params, *state[:2]))
        mean, variance = oracle.moments(x)[:2] if training else statistics
        _, slope = ACTIVATED[activation](oracle.normalize(x, mean, variance, gamma, beta) + added)
        if training:
            expected = oracle.gradients(x, dy * slope, gamma)
        else:
            x_hat, scale = oracle.normalize(x, mean, variance), gamma / np.sqrt(variance + EPSILON)
            expected = dy * slope * scale, (dy * slope * x_hat).sum((0, 1)), (dy * slope).sum((0, 1))
        for value, wanted in zip(got, (*expected, dy * slope), strict=True):
            np.testing.assert_allclose(backend.numpy(value), wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("activation", ["leaky_relu", "elu"])
def test_an_activation_far_below_zero_has_a_finite_gradient(differentiable, path, activation):
    """exp of what lies far above zero must not be asked for: infinity times 0 is NaN."""
    backend = differentiable
    x = np.array([[-1.0], [1.0]] * 4, "float32")
    gamma = backend.array(np.array([1e4], "float32"))

    def loss(x):
        y, _ = ek.batch_norm(x, ek.Parameters(gamma), start(backend, 1), training=True, activation=activation)
        return backend.sum(y)

    (dx,) = backend.gradients(loss, backend.array(x))
    assert np.isfinite(backend.numpy(dx)).all()


def test_residual_beside_a_mask_and_virtual_batches(backend, path):
    x = hard_data.FINITE["sequence"].x
    added, mask = beside(x), np.arange(9) < 5
    for options in ({"mask": backend.array(mask[None])}, {"virtual_batch_size": 3}):
        y, _ = ek.batch_norm(
            backend.array(x),
            ek.Parameters(),
            start(backend, 3),
            training=True,
            residual=backend.array(added),
            activation="relu",
            **options,
        )
        alone, _ = ek.batch_norm(backend.array(x), ek.Parameters(), start(backend, 3), training=True, **options)
        np.testing.assert_allclose(backend.numpy(y), np.maximum(backend.numpy(alone) + added, 0), atol=1e-5)


@pytest.mark.parametrize("name", ["empty batch", "one value a channel", "all masked"])
def test_residual_of_a_useless_batch(backend, path, name):
    x, mask = hard_data.USELESS[name]
    state, added = start(backend, 3), beside(x)
    y, _ = ek.batch_norm(
        backend.array(x),
        ek.Parameters(),
        state,
        training=True,
        mask=None if mask is None else backend.array(mask),
        residual=backend.array(added),
        activation="elu",
    )
    mean, variance = map(backend.numpy, state[:2])
    expected, _ = ACTIVATED["elu"](oracle.normalize(x, mean, variance) + added)
    np.testing.assert_allclose(backend.numpy(y), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(64, 1), (7,), (1, 64, 7)])
def test_residual_of_another_shape(backend, shape):
    x = hard_data.FINITE["dense"].x
    for training in (True, False):
        with pytest.raises(ArgumentError, match=rf"residual has shape \({', '.join(map(str, shape))}.*\(64, 7\)"):
            ek.batch_norm(
                backend.array(x),
                ek.Parameters(),
                start(backend, 7),
                training=training,
                residual=backend.array(np.ones(shape, "float32")),
            )


@pytest.mark.parametrize("memory", ["recompute", "inplace"])
def test_less_memory_is_had_or_refused(backend, memory):
    """The same numbers, where the library's kernel can; elsewhere the reason. It says nothing about inference."""
    x, options = backend.array(hard_data.FINITE["dense"].x), {"activation": "leaky_relu"}
    arguments = x, parameters(backend, 7), start(backend, 7)
    if backend.name == "torch":
        (y, new), (expected, kept) = (
            ek.batch_norm(*arguments, training=True, memory=m, **options) for m in (memory, None)
        )
        np.testing.assert_array_equal(backend.numpy(y), backend.numpy(expected))
        np.testing.assert_array_equal(backend.numpy(new.moving_mean), backend.numpy(kept.moving_mean))
    else:
        with pytest.raises(ArgumentError, match=f"memory='{memory}' cannot be had here: .{{10}}"):
            ek.batch_norm(*arguments, training=True, memory=memory, **options)
    y, expected = (ek.batch_norm(*arguments, training=False, memory=m, **options)[0] for m in (memory, None))
    np.testing.assert_array_equal(backend.numpy(y), backend.numpy(expected))


@pytest.mark.parametrize(
    "option", [{"mask": np.arange(64) > 2}, {"virtual_batch_size": 8}, {"renorm": Renorm(Limits())}]
)
def test_less_memory_is_refused_beside_what_the_kernel_lacks(backend, option):
    option = {name: backend.array(value) if name == "mask" else value for name, value in option.items()}
    state = start(backend, 7, **{name: np.ones(7) for name in ("moving_stddev", "renorm_mean", "renorm_stddev")})
    with pytest.raises(ArgumentError, match="memory='recompute' cannot be had here"):
        ek.batch_norm(
            backend.array(hard_data.FINITE["dense"].x),
            ek.Parameters(),
            state,
            training=True,
            memory="recompute",
            **option,
        )


def test_gradients_sum_to_zero_over_the_batch(differentiable, path):
    backend = differentiable
    x = hard_data.FINITE["plain"].x
    dy = backend.array(np.random.default_rng(3).normal(size=x.shape).astype("float32"))

    def loss(x):
        y, _ = ek.batch_norm(x, parameters(backend, 4), start(backend, 4), training=True)
        return backend.sum(y * dy)

    (dx,) = backend.gradients(loss, backend.array(x))
    assert np.abs(backend.numpy(dx).sum((0, 1, 2))).max() < 1e-4


OPTIONS = {
    "plain": {},
    "mask": {"mask": np.arange(6) != 2},
    "sample weight": {"sample_weight": np.linspace(0, 2, 6)},
    "virtual batches": {"virtual_batch_size": 4},
    "several axes": {"axis": [1, 2]},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_gradients_match_finite_differences(differentiable, path, name):
    backend = differentiable
    with backend.double():
        rng = np.random.default_rng(4)
        x = rng.normal(1, 2, (6, 4, 3))
        shape = (1, 4, 3) if name == "several axes" else (3,)
        options = {key: backend.array(v) if isinstance(v, np.ndarray) else v for key, v in OPTIONS[name].items()}
        state = ek.State(*(backend.array(np.full(shape, 1.5)) for _ in range(2)))
        dy, gamma, beta = rng.normal(size=x.shape), rng.normal(size=shape), rng.normal(size=shape)

        def loss(x, gamma, beta):
            y, _ = ek.batch_norm(x, ek.Parameters(gamma, beta), state, training=True, **options)
            return backend.sum(y * backend.array(dy))

        def value(*arrays):
            return float(backend.numpy(loss(*map(backend.array, arrays))))

        got = backend.gradients(loss, *map(backend.array, (x, gamma, beta)))
        for index, array in enumerate((x, gamma, beta)):
            for place in [(0,) * array.ndim, tuple(size - 1 for size in array.shape)]:
                step = np.zeros_like(array)
                step[place] = 1e-5
                arrays = [x, gamma, beta]
                ends = [value(*[*arrays[:index], array + sign * step, *arrays[index + 1 :]]) for sign in (1, -1)]
                assert abs((ends[0] - ends[1]) / 2e-5 - backend.numpy(got[index])[place]) < 1e-6


@pytest.mark.parametrize("name", hard_data.USELESS)
def test_a_useless_batch_is_normalized_with_the_moving_statistics(backend, path, name):
    x, mask = hard_data.USELESS[name]
    state = start(backend, 3, updates=np.zeros(3))
    params = parameters(backend, 3)
    mask = None if mask is None else backend.array(mask)
    y, new = ek.batch_norm(backend.array(x), params, state, training=True, mask=mask, average="debiased")
    mean, variance, gamma, beta = (backend.numpy(value) for value in (*state[:2], *params))
    np.testing.assert_allclose(backend.numpy(y), oracle.normalize(x, mean, variance, gamma, beta), rtol=1e-5, atol=1e-6)
    for old, now in zip(state, new, strict=True):
        assert old is now is None or np.array_equal(backend.numpy(old), backend.numpy(now))


@pytest.mark.parametrize("average", ["exponential", "debiased", "cumulative"])
@pytest.mark.parametrize("name", hard_data.NON_FINITE)
def test_a_bad_channel_keeps_its_state(backend, path, name, average):
    state = start(backend, 3, updates=np.full(3, 5))
    with np.errstate(invalid="ignore"):
        _, new = ek.batch_norm(
            backend.array(hard_data.NON_FINITE[name]), parameters(backend, 3), state, training=True, average=average
        )
    for old, now in zip(state[:2] + state[-1:], new[:2] + new[-1:], strict=True):
        old, now = backend.numpy(old), backend.numpy(now)
        assert old[1] == now[1]
        assert (old[[0, 2]] != now[[0, 2]]).all()


def test_masked_nan_reaches_neither_output_nor_gradient(differentiable, path):
    backend = differentiable
    x = hard_data.non_finite(np.nan)
    mask = np.isfinite(x).all(-1)

    def loss(x, gamma):
        y, _ = ek.batch_norm(x, ek.Parameters(gamma), start(backend, 3), training=True, mask=backend.array(mask))
        return backend.sum(y * y * y)

    dx, dgamma = backend.gradients(loss, backend.array(x), backend.array(np.ones(3, "float32")))
    assert np.isfinite(backend.numpy(dx)).all() and np.isfinite(backend.numpy(dgamma)).all()


def test_masked_values_are_normalized_and_do_not_count(backend, path):
    x = hard_data.FINITE["sequence"].x
    mask = np.arange(9) < 5
    mean, variance, _ = oracle.moments(x, weights=mask[:, None])
    y, new = ek.batch_norm(
        backend.array(x),
        ek.Parameters(),
        start(backend, 3),
        training=True,
        mask=backend.array(mask[None]),
        momentum=0.0,
    )
    np.testing.assert_allclose(backend.numpy(y), oracle.normalize(x, mean, variance), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(backend.numpy(new.moving_variance), variance, rtol=1e-5)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 8, 100])
def test_virtual_batches(backend, path, size):
    x = np.random.default_rng(6).normal(3, 2, (8, 5, 2)).astype("float32")
    y, new = ek.batch_norm(
        backend.array(x), ek.Parameters(), start(backend, 2), training=True, virtual_batch_size=size, momentum=0.0
    )
    parts = [x[i : i + size] for i in range(0, 8, size)]
    moments = [oracle.moments(part) for part in parts]
    expected = np.concatenate([oracle.normalize(part, m, v) for part, (m, v, _) in zip(parts, moments, strict=True)])
    np.testing.assert_allclose(backend.numpy(y), expected, atol=1e-5)
    counts = [len(part) for part in parts]
    kept = np.average([v for _, v, _ in moments], axis=0, weights=counts)
    np.testing.assert_allclose(backend.numpy(new.moving_variance), kept, rtol=1e-5)
    np.testing.assert_allclose(backend.numpy(new.moving_mean), x.mean((0, 1)), rtol=1e-5)


def test_a_virtual_batch_of_one_value_uses_the_moving_statistics(backend, path):
    x = np.random.default_rng(7).normal(3, 2, (5, 2)).astype("float32")
    state = start(backend, 2)
    y, new = ek.batch_norm(backend.array(x), ek.Parameters(), state, training=True, virtual_batch_size=2, momentum=0.0)
    mean, variance = map(backend.numpy, state[:2])
    np.testing.assert_allclose(backend.numpy(y)[4:], oracle.normalize(x[4:], mean, variance), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(backend.numpy(new.moving_mean), x[:4].mean(0), rtol=1e-5)


def test_virtual_batches_with_a_mask(backend, path):
    x = np.random.default_rng(8).normal(3, 2, (7, 3, 2)).astype("float32")
    mask = np.random.default_rng(9).random((7, 3)) > 0.2
    mask[6] = True
    y, _ = ek.batch_norm(
        backend.array(x),
        ek.Parameters(),
        start(backend, 2),
        training=True,
        virtual_batch_size=3,
        mask=backend.array(mask),
    )
    parts = [(x[i : i + 3], mask[i : i + 3, :, None]) for i in range(0, 7, 3)]
    expected = [oracle.normalize(part, *oracle.moments(part, weights=weights)[:2]) for part, weights in parts]
    np.testing.assert_allclose(backend.numpy(y), np.concatenate(expected), atol=1e-5)


RENORM = {
    "moving_stddev": np.linspace(1, 2, 3),
    "renorm_mean": np.linspace(0, 2, 3),
    "renorm_stddev": np.linspace(0.5, 2, 3),
}


@pytest.mark.parametrize("limits", [{}, {"rmax": 1.5, "dmax": 0.5}, {"rmin": 0.9, "rmax": 1.1, "dmax": 0.0}])
def test_renorm(backend, path, limits):
    x = np.random.default_rng(8).normal([1, 2, 3], 2, (32, 3)).astype("float32")
    mean, variance, _ = oracle.moments(x)
    state, params = start(backend, 3, **RENORM), parameters(backend, 3)
    y, new = ek.batch_norm(
        backend.array(x), params, state, training=True, momentum=0.9, renorm=Renorm(Limits.of(limits), momentum=0.8)
    )
    r, d = oracle.renorm_corrections(mean, variance, RENORM["renorm_mean"], RENORM["renorm_stddev"], limits)
    gamma, beta = map(backend.numpy, params)
    expected = (oracle.normalize(x, mean, variance) * r + d) * gamma + beta
    np.testing.assert_allclose(backend.numpy(y), expected, rtol=1e-4, atol=1e-5)
    deviation = np.sqrt(variance + EPSILON)
    stddev = oracle.moved(RENORM["moving_stddev"], deviation, 0.9)
    wanted = {
        "moving_mean": oracle.moved(backend.numpy(state.moving_mean), mean, 0.9),
        "moving_stddev": stddev,
        "moving_variance": stddev**2 - EPSILON,
        "renorm_mean": oracle.moved(RENORM["renorm_mean"], mean, 0.8),
        "renorm_stddev": oracle.moved(RENORM["renorm_stddev"], deviation, 0.8),
    }
    for name, value in wanted.items():
        np.testing.assert_allclose(backend.numpy(getattr(new, name)), value, rtol=1e-5, err_msg=name)


def test_renorm_gradient_holds_the_corrections(differentiable, path):
    backend = differentiable
    x = np.random.default_rng(8).normal([1, 2, 3], 2, (32, 3)).astype("float32")
    dy = np.random.default_rng(9).normal(size=x.shape).astype("float32")
    mean, variance, _ = oracle.moments(x)
    r, d = oracle.renorm_corrections(mean, variance, RENORM["renorm_mean"], RENORM["renorm_stddev"], {"rmax": 1.2})

    def loss(x, gamma):
        y, _ = ek.batch_norm(
            x, ek.Parameters(gamma), start(backend, 3, **RENORM), training=True, renorm=Renorm(Limits(rmax=1.2))
        )
        return backend.sum(y * backend.array(dy))

    gamma = np.array([0.5, 1, 2], "float32")
    dx, dgamma = backend.gradients(loss, backend.array(x), backend.array(gamma))
    plain_dx, plain_dgamma, sum_dy = oracle.gradients(x, dy, gamma * r)
    np.testing.assert_allclose(backend.numpy(dx), plain_dx, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(backend.numpy(dgamma), plain_dgamma * r + sum_dy * d, rtol=1e-4, atol=1e-4)


def test_renorm_without_correction_is_plain(backend, path):
    x = hard_data.FINITE["dense"].x
    state = start(backend, 7, moving_stddev=np.ones(7), renorm_mean=np.ones(7), renorm_stddev=np.ones(7))
    held = Renorm(Limits(rmin=1.0, rmax=1.0, dmax=0.0))
    y, _ = ek.batch_norm(backend.array(x), ek.Parameters(), state, training=True, renorm=held)
    plain, _ = ek.batch_norm(backend.array(x), ek.Parameters(), state._replace(renorm_mean=None), training=True)
    np.testing.assert_allclose(backend.numpy(y), backend.numpy(plain), rtol=1e-5, atol=1e-6)


def test_renorm_limits_follow_a_schedule(backend, path):
    x = np.random.default_rng(8).normal(5, 2, (32, 3)).astype("float32")
    state = start(backend, 3, **RENORM)._replace(updates=backend.array(np.array([0, 10, 10], "int32")))
    schedule = Renorm(Limits(rmax=1.0, rmin=1.0, dmax=lambda updates: backend.float32(updates) * 0.1))
    y, new = ek.batch_norm(backend.array(x), ek.Parameters(), state, training=True, renorm=schedule)
    np.testing.assert_allclose(backend.numpy(y).mean(0), [1, 1, 1], atol=1e-5)
    assert backend.numpy(new.updates).tolist() == [1, 11, 11]


@pytest.mark.parametrize(
    ("average", "weight"),
    [
        ("exponential", lambda t: 0.1),
        ("debiased", lambda t: 0.1 / (1 - 0.9**t)),
        ("cumulative", lambda t: 1 / t),
    ],
)
def test_averages(backend, path, average, weight):
    rng = np.random.default_rng(10)
    state = start(backend, 2, updates=np.zeros(2))
    expected = backend.numpy(state.moving_variance).astype("float64")
    for step in range(1, 6):
        x = rng.normal(3, step, (20, 2)).astype("float32")
        _, state = ek.batch_norm(backend.array(x), ek.Parameters(), state, training=True, momentum=0.9, average=average)
        expected = oracle.moved(expected, x.astype("float64").var(0), 1 - weight(step))
    np.testing.assert_allclose(backend.numpy(state.moving_variance), expected, rtol=1e-5)
    assert backend.numpy(state.updates).tolist() == [5, 5]


@pytest.mark.parametrize("average", ["debiased", "cumulative"])
@pytest.mark.parametrize("momentum", [0.0, 0.99, 1.0])
def test_the_start_value_leaves_no_trace(backend, path, average, momentum):
    x = hard_data.FINITE["dense"].x
    _, state = ek.batch_norm(
        backend.array(x),
        ek.Parameters(),
        start(backend, 7, updates=np.zeros(7)),
        training=True,
        momentum=momentum,
        average=average,
    )
    np.testing.assert_allclose(backend.numpy(state.moving_mean), x.mean(0), rtol=1e-5)


def test_adjustment(backend, path):
    x = hard_data.FINITE["plain"].x
    scale = np.linspace(0.5, 1.5, 16, dtype="float32").reshape(16, 1, 1, 1)
    params = parameters(backend, 4)
    y, new = ek.batch_norm(
        backend.array(x),
        params,
        start(backend, 4),
        training=True,
        momentum=0.0,
        adjustment=lambda shape: (backend.array(scale), backend.array(np.float32(2))),
    )
    mean, variance, _ = oracle.moments(x)
    gamma, beta = map(backend.numpy, params)
    expected = (oracle.normalize(x, mean, variance) * scale + 2) * gamma + beta
    np.testing.assert_allclose(backend.numpy(y), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(backend.numpy(new.moving_variance), variance, rtol=1e-5)


@pytest.mark.parametrize("epsilon", [0.0, 1e-12, 1e-6, 1.0])
def test_epsilon_is_the_one_given(backend, path, epsilon):
    x = np.random.default_rng(11).normal(0, 1e-3, (64, 3)).astype("float32")
    mean, variance, _ = oracle.moments(x)
    for training in (True, False):
        state = ek.State(*(backend.array(value.astype("float32")) for value in (mean, variance)))
        y, _ = ek.batch_norm(backend.array(x), ek.Parameters(), state, training=training, epsilon=epsilon)
        np.testing.assert_allclose(
            backend.numpy(y), oracle.normalize(x, mean, variance, epsilon=epsilon), rtol=1e-3, atol=1e-4
        )


@pytest.mark.parametrize("compiler", ["graph", "xla", "jit", "compile"])
@pytest.mark.parametrize(
    "name",
    ["plain", "dense", "volume", "far from zero", "far below zero", "float16", "bfloat16", "two values a channel"],
)
def test_compiled(backend, path, name, compiler):
    if compiler not in backend.compilers:
        pytest.skip(f"{backend.name} has no {compiler}")
    x, axis = hard_data.FINITE[name]
    mean, variance, total = oracle.moments(x, axis)
    params, state = parameters(backend, len(mean)), start(backend, len(mean))

    def step(x, params, state):
        y, new = ek.batch_norm(x, params, state, training=True, axis=axis, momentum=0.0)
        served, _ = ek.batch_norm(x, params, new, training=False, axis=axis)
        return y, new[:2], served

    y, new, served = backend.compile(step, compiler)(backend.array(x), params, state)
    check_output(backend, y, x, axis, mean, variance, params, total[0])
    check_output(backend, served, x, axis, mean, variance, params, total[0])
    check_state(backend, state, ek.State(*new), x, mean, variance, total[0], 0.0)


@pytest.mark.parametrize("rows", [0, 1, 2, 7])
def test_a_number_of_rows_known_only_when_the_graph_runs(backend, path, rows):
    if backend.name != "tensorflow":
        pytest.skip(f"{backend.name} knows its shapes while it traces")
    tf = backend.tf
    state, x = start(backend, 3), np.random.default_rng(12).normal(5, 2, (rows, 3)).astype("float32")
    graph = tf.function(
        lambda x: ek.batch_norm(x, ek.Parameters(), state, training=True, momentum=0.0),
        input_signature=[tf.TensorSpec([None, 3])],
    )
    y, new = graph(x)
    usable = rows > 1
    mean, variance, _ = oracle.moments(x) if usable else (*map(backend.numpy, state[:2]), None)
    np.testing.assert_allclose(y, oracle.normalize(x, mean, variance), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(new.moving_variance, variance, rtol=1e-5)


@pytest.mark.parametrize("given", [{}, {"gamma": 2.0}, {"beta": 2.0}], ids=["neither", "no beta", "no gamma"])
def test_gradients_without_gamma_or_beta(differentiable, path, given):
    backend = differentiable
    x = hard_data.FINITE["dense"].x
    dy = np.random.default_rng(13).normal(size=x.shape).astype("float32")
    params = {name: backend.array(np.full(7, value, "float32")) for name, value in given.items()}

    def loss(x):
        y, _ = ek.batch_norm(x, ek.Parameters(**params), start(backend, 7), training=True)
        return backend.sum(y * backend.array(dy))

    (dx,) = backend.gradients(loss, backend.array(x))
    expected, _, _ = oracle.gradients(x, dy, np.full(7, given.get("gamma", 1.0)))
    np.testing.assert_allclose(backend.numpy(dx), expected, rtol=1e-4, atol=1e-5)


def test_wrong_axis(backend):
    with pytest.raises(AxisError, match="axis=2 is out of range for an input of 2 dimensions"):
        ek.batch_norm(
            backend.array(np.ones((4, 3), "float32")), ek.Parameters(), start(backend, 3), training=True, axis=2
        )


def test_unknown_activation(backend):
    with pytest.raises(ArgumentError, match="activation='gelu'"):
        ek.batch_norm(
            backend.array(np.ones((4, 3), "float32")),
            ek.Parameters(),
            start(backend, 3),
            training=True,
            activation="gelu",
        )


def test_virtual_batches_cannot_split_channels(backend):
    with pytest.raises(ArgumentError, match="axis 0"):
        ek.batch_norm(
            backend.array(np.ones((4, 3), "float32")),
            ek.Parameters(),
            start(backend, 4),
            training=True,
            axis=0,
            virtual_batch_size=2,
        )


def test_every_backend_is_listed():
    assert set(BACKENDS) == set(ek.backends.NAMES)


def test_bfloat16_is_a_type_of_its_own():
    assert hard_data.FINITE["bfloat16"].x.dtype == ml_dtypes.bfloat16


def test_elu_has_one_slope_at_zero(backend):
    if not backend.differentiates:
        pytest.skip(f"{backend.name} has no gradients")

    def total(beta):
        state = ek.State(backend.array(np.zeros(1, "float32")), backend.array(np.ones(1, "float32")))
        x = backend.array(np.ones((4, 1), "float32"))
        primitives = backends.of(x)
        y, _ = ek.batch_norm(x, ek.Parameters(beta=beta), state, training=True, activation="elu")
        return primitives.reshape(primitives.sum(y, [0, 1]), [])

    (gradient,) = backend.gradients(total, backend.array(np.zeros(1, "float32")))
    assert backend.numpy(gradient).tolist() == [4.0]
