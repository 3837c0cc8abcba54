# SPDX-License-Identifier: Apache-2.0
"""What Keras's own layer does, ours does: output, gradients, state, files. Differences are listed with the reason."""

import contextlib

import numpy as np
import pytest

import evenkeel as ek

import hard_data
import oracle
import tolerances
from conftest import NAME

if NAME == "numpy":
    pytest.skip("Keras layers need tensorflow, jax or torch", allow_module_level=True)
keras = pytest.importorskip("keras")

# Workaround: `Variable.numpy()` of Keras 3.15.1 under NumPy 2, off TensorFlow.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

Theirs = keras.layers.BatchNormalization
Ours = ek.BatchNormalization


def normal(seed):
    return keras.initializers.RandomNormal(1.0, 0.5, seed=seed)


def positive(seed):
    return keras.initializers.RandomUniform(0.5, 2.0, seed=seed)


ARGUMENTS = {
    "defaults": {},
    "axis 1": {"axis": 1},
    "axis 2": {"axis": 2},
    "axis -2": {"axis": -2},
    "axis -3": {"axis": -3},
    "axis 0": {"axis": 0},
    "momentum 0": {"momentum": 0.0},
    "momentum 0.5": {"momentum": 0.5},
    "momentum 1": {"momentum": 1.0},
    "epsilon 0": {"epsilon": 0.0},
    "epsilon 0.5": {"epsilon": 0.5},
    "no center": {"center": False},
    "no scale": {"scale": False},
    "neither": {"center": False, "scale": False},
    "beta_initializer": {"beta_initializer": normal(1)},
    "gamma_initializer": {"gamma_initializer": normal(2)},
    "moving_mean_initializer": {"moving_mean_initializer": normal(3)},
    "moving_variance_initializer": {"moving_variance_initializer": positive(4)},
    "beta_regularizer": {"beta_regularizer": "l2", "beta_initializer": normal(1)},
    "gamma_regularizer": {"gamma_regularizer": keras.regularizers.L1(0.1)},
    "beta_constraint": {"beta_constraint": "non_neg"},
    "gamma_constraint": {"gamma_constraint": keras.constraints.MaxNorm(0.5)},
    "renorm": {"renorm": True},
    "renorm from elsewhere": {
        "renorm": True,
        "moving_mean_initializer": normal(3),
        "moving_variance_initializer": positive(4),
    },
    "renorm_clipping": {"renorm": True, "renorm_clipping": {"rmin": 0.9, "rmax": 1.1, "dmax": 0.2}},
    "renorm_clipping in part": {"renorm": True, "renorm_clipping": {"rmax": 1.2}, "axis": 1},
    "renorm_momentum": {"renorm": True, "renorm_momentum": 0.3, "momentum": 0.6},
    "renorm, no center, no scale": {"renorm": True, "center": False, "scale": False},
    "not trainable": {"trainable": False},
}
SHAPES = {"rank 2": (24, 4), "rank 3": (6, 5, 4), "rank 4": (4, 3, 5, 4), "rank 5": (3, 2, 3, 4, 4)}
DTYPES = ["mixed_float16", "mixed_bfloat16", "float64", "float16", "bfloat16"]
STEPS = 3


def data(shape, seed=0, dtype="float32"):
    return np.random.default_rng(seed).normal(1, 2, shape).astype(dtype)


def plain(tensor):
    return keras.ops.convert_to_numpy(tensor).astype("float64")


def values(layer):
    return list(map(plain, layer.variables))


def weights(model):
    return list(map(plain, model.weights))


def pair(shape, **arguments):
    """Keras's layer and ours, built for the same input with the same weights."""
    layers = Theirs(**arguments, name="bn"), Ours(**arguments, name="bn")
    for layer in layers:
        layer.build(shape)
    return layers


def bounds(dtype, count, theirs):
    """How far two right results may be apart: twice the error of one. Of y, of a gradient, of a moving statistic."""
    condition = tolerances.condition(1, 2)
    y = 2 * tolerances.output(dtype, count, condition, np.abs(theirs.y).max() + 1)
    largest = max((np.abs(gradient).max(initial=0) for gradient in theirs.gradients), default=0) + 1
    state = tolerances.mean(dtype, count, condition) + tolerances.variance(dtype, count, condition)
    return y, 2 * tolerances.gradient(dtype, count, condition, largest), 2 * state


def check(theirs, ours, expected, got, dtype, count, stored):
    y, gradient, state = bounds(dtype, count, expected)
    assert got.y.shape == expected.y.shape
    assert np.abs(got.y - expected.y).max() <= y
    np.testing.assert_allclose(got.loss, expected.loss, rtol=1e-6)
    for ours_by, theirs_by in zip(got.gradients, expected.gradients, strict=True):
        assert np.abs(ours_by - theirs_by).max() <= gradient
    for now, wanted in zip(values(ours), values(theirs), strict=True):
        # Keras rounds its moving statistics to the type it stores them in, at every step.
        assert np.abs(now - wanted).max() <= (state + 2 * STEPS * stored) * (np.abs(wanted).max() + 1)


def check_steps(step, shape, dtype="float32", call=None, count=None, **arguments):
    """Some steps of training and one of inference, side by side."""
    theirs, ours = pair(shape, **arguments)
    wide = "float64" if dtype == "float64" else "float32"
    stored = tolerances.UNIT_ROUNDOFF[theirs.variable_dtype] if theirs.variable_dtype != wide else 0
    count = count or np.prod(shape) // shape[arguments.get("axis", -1)]
    compute = theirs.compute_dtype
    for seed in range(STEPS):
        x, dy = data(shape, seed, wide), data(shape, seed + 50, wide)
        expected, got = (step(layer, x, dy, **(call or {})) for layer in (theirs, ours))
        check(theirs, ours, expected, got, compute, count, stored)
    before = values(ours)
    x = data(shape, 9, wide)
    expected, got = (plain(layer(x)) for layer in (theirs, ours))
    _, _, state = bounds(compute, count, step_of_nothing(expected))
    unit = tolerances.UNIT_ROUNDOFF[compute] + stored * STEPS
    assert np.abs(got - expected).max() <= (state + 4 * unit) * (np.abs(expected).max() + 1) * 4
    np.testing.assert_equal(values(ours), before)


def step_of_nothing(y):
    return type("Step", (), {"y": y, "gradients": []})


@pytest.mark.parametrize("name", ARGUMENTS)
def test_every_argument(backend, step, name):
    check_steps(step, (6, 5, 4, 3), **ARGUMENTS[name])


@pytest.mark.parametrize("renorm", [False, True])
@pytest.mark.parametrize("axis", [-1, 1])
@pytest.mark.parametrize("rank", SHAPES)
def test_every_rank(backend, step, rank, axis, renorm):
    check_steps(step, SHAPES[rank], axis=axis, renorm=renorm)


@pytest.mark.parametrize("renorm", [False, True])
@pytest.mark.parametrize(
    ("rank", "dtype"), [*((rank, "bool") for rank in SHAPES), ("rank 3", "float32"), ("rank 3", "int32")]
)
def test_masks_of_keras(backend, step, rank, dtype, renorm):
    shape = SHAPES[rank]
    mask = np.random.default_rng(7).random(shape[:-1]) < 0.7
    call = {"mask": backend.array(mask.astype(dtype))}
    check_steps(step, shape, call=call, count=int(mask.sum()), renorm=renorm)


def test_the_comparison_notices_a_mask_left_out(backend, step):
    mask = np.random.default_rng(7).random((6, 5)) < 0.7
    theirs, ours = pair((6, 5, 4))
    x, dy = data((6, 5, 4)), data((6, 5, 4), 50)
    expected, got = step(theirs, x, dy, mask=backend.array(mask)), step(ours, x, dy)
    with pytest.raises(AssertionError):
        check(theirs, ours, expected, got, "float32", 20, 0)


@pytest.mark.parametrize("arguments", [{}, {"renorm": True}, {"axis": 1}], ids=["plain", "renorm", "axis 1"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_policy(backend, step, dtype, arguments):
    with backend.double() if dtype == "float64" else contextlib.nullcontext():
        check_steps(step, (16, 5, 4), dtype=dtype, **arguments)


@pytest.mark.parametrize("dtype", ["float32", *DTYPES])
@pytest.mark.parametrize("training", [True, False])
def test_dtype_of_output_and_weights(backend, dtype, training):
    with backend.double() if dtype == "float64" else contextlib.nullcontext():
        theirs, ours = pair((8, 3), dtype=dtype)
        x = data((8, 3))
        assert ours(x, training=training).dtype == theirs(x, training=training).dtype
        expected = [keras.backend.standardize_dtype(variable.dtype) for variable in theirs.variables]
        if dtype in ("float16", "bfloat16"):
            expected[2:] = ["float32", "float32"]  # the difference that is wanted
        assert [keras.backend.standardize_dtype(variable.dtype) for variable in ours.variables] == expected


@pytest.mark.parametrize("dtype", ["int32", "uint8", "bool"])
@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
@pytest.mark.parametrize("training", [True, False])
def test_inputs_that_are_not_floats(backend, dtype, policy, training):
    x = np.random.default_rng(0).integers(0, 2 if dtype == "bool" else 100, (32, 3)).astype(dtype)
    theirs, ours = pair((32, 3), dtype=policy)
    expected, got = (layer(x, training=training) for layer in (theirs, ours))
    assert got.dtype == expected.dtype
    unit = max(1e-5, tolerances.UNIT_ROUNDOFF[ours.compute_dtype])
    np.testing.assert_allclose(plain(got), plain(expected), rtol=2 * unit, atol=2 * unit)


@pytest.mark.parametrize("training", [None, False, True, 0, 1, np.bool_(True), np.bool_(False)])
@pytest.mark.parametrize("trainable", [True, False])
def test_phases(backend, training, trainable):
    theirs, ours = pair((8, 3), trainable=trainable, momentum=0.5)
    x = data((8, 3))
    expected, got = (keras.ops.convert_to_numpy(layer(x, training=training)) for layer in (theirs, ours))
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(np.stack(values(ours)), np.stack(values(theirs)), rtol=1e-5, atol=1e-6)


# Where Keras is wrong, so that ours must differ. A line leaves this list when Keras repairs what it says.

ALL = ("tensorflow", "jax", "torch")
KERAS_IS_WRONG = {
    "far from zero: mean of squares minus square of the mean": (("torch",), hard_data.FINITE["far from zero"].x, {}),
    "one NaN stays in the moving statistics": (ALL, hard_data.NON_FINITE["one NaN"], {}),
    "one infinity stays in the moving statistics": (ALL, hard_data.NON_FINITE["one infinity"], {}),
    "an empty batch makes them NaN": (ALL, *hard_data.USELESS["empty batch"]),
    "one value a channel: 0 out, variance pulled to 0": (ALL, *hard_data.USELESS["one value a channel"]),
    "all masked: pulled to 0": (ALL, *hard_data.USELESS["all masked"]),
}


@pytest.mark.parametrize("reason", [r for r, (backends, _, _) in KERAS_IS_WRONG.items() if NAME in backends])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of NumPy, where Keras overflows
def test_keras_is_still_wrong(backend, reason):
    _, x, mask = KERAS_IS_WRONG[reason]
    mask = backend.array(mask) if isinstance(mask, np.ndarray) else None
    theirs, ours = pair(x.shape, momentum=0.0)
    for layer in (theirs, ours):
        layer(x, training=True, mask=mask)
    mean, variance, count = oracle.moments(x, weights=None if mask is None else 0)
    usable = np.isfinite(x.reshape(-1, 3)).all(0) & (count > 1)
    wanted = np.where(usable, mean, 0), np.where(usable, variance, 1)
    close = [np.allclose(values(layer)[2:], wanted, rtol=1e-4, atol=1e-4, equal_nan=False) for layer in (theirs, ours)]
    assert close == [False, True]


def test_keras_cannot_mask_a_single_channel_but_ours_can(backend):
    x, mask = data((6, 5, 1)), np.arange(5) < 3
    mask = np.broadcast_to(mask, (6, 5)).copy()
    theirs, ours = pair(x.shape, momentum=0.0)
    ours(x, training=True, mask=backend.array(mask))
    mean, variance, _ = oracle.moments(x, weights=mask[..., None])
    np.testing.assert_allclose(values(ours)[2:], [mean, variance], rtol=1e-5)
    with contextlib.nullcontext() if NAME == "tensorflow" else pytest.raises((IndexError, ValueError)):
        theirs(x, training=True, mask=backend.array(mask))


# Names, configurations, files.


@pytest.mark.parametrize("name", ARGUMENTS)
def test_weights_have_keras_names_order_and_start(name):
    theirs, ours = pair((6, 5, 4, 3), **ARGUMENTS[name])
    for kind in ("weights", "trainable_weights", "non_trainable_weights"):
        assert [v.path for v in getattr(ours, kind)] == [v.path for v in getattr(theirs, kind)]
    np.testing.assert_equal(values(ours), values(theirs))
    assert ours.count_params() == theirs.count_params()


@pytest.mark.parametrize("name", ARGUMENTS)
def test_configuration_is_keras_s_and_more(name):
    theirs, ours = pair((6, 5, 4, 3), **ARGUMENTS[name])
    ours, theirs = ours.get_config(), theirs.get_config()
    shared = {key: value for key, value in ours.items() if key in theirs}
    assert shared == theirs


@pytest.mark.parametrize("name", ARGUMENTS)
def test_configuration_of_keras_makes_the_same_layer(name):
    theirs = Theirs(**ARGUMENTS[name])
    ours = Ours.from_config(theirs.get_config())
    assert ours.get_config() == Ours(**ARGUMENTS[name], name=theirs.name).get_config()


@pytest.mark.parametrize("name", ARGUMENTS)
def test_configuration_describes_the_layer(name):
    layer = Ours(**ARGUMENTS[name])
    before = layer.get_config()
    layer.build((6, 5, 4, 3))
    assert layer.get_config() == before
    assert Ours.from_config(before).get_config() == before


@pytest.mark.parametrize("renorm", [False, True])
def test_weights_are_interchangeable(renorm):
    theirs, ours = pair((8, 3), renorm=renorm)
    theirs.set_weights([np.full(3, i + 2, "float32") for i in range(len(theirs.weights))])
    ours.set_weights(theirs.get_weights())
    np.testing.assert_equal(values(ours), values(theirs))
    ours.set_weights([2 * value for value in ours.get_weights()])
    theirs.set_weights(ours.get_weights())
    np.testing.assert_equal(values(theirs), values(ours))


def network(Layer, **arguments):  # noqa: N803
    return keras.Sequential(
        [
            keras.Input((5,)),
            keras.layers.Dense(6, kernel_initializer=keras.initializers.GlorotUniform(seed=1)),
            Layer(**arguments),
            keras.layers.ReLU(),
            keras.layers.Dense(2, kernel_initializer=keras.initializers.GlorotUniform(seed=2)),
        ]
    )


def targets(x):
    return (x[:, :2] ** 2).astype("float32")


def train(model, epochs=2):
    x = data((32, 5), 3)
    model.compile(keras.optimizers.SGD(0.05), "mse")
    model.fit(x, targets(x), batch_size=8, epochs=epochs, shuffle=False, verbose=0)
    return x


@pytest.mark.parametrize("renorm", [False, True])
def test_weights_files_are_interchangeable(tmp_path, renorm):
    theirs, ours = network(Theirs, renorm=renorm), network(Ours, renorm=renorm)
    x = train(theirs, epochs=1)
    theirs.save_weights(tmp_path / "theirs.weights.h5")
    ours.load_weights(tmp_path / "theirs.weights.h5")
    np.testing.assert_equal(weights(ours), weights(theirs))
    np.testing.assert_allclose(ours.predict(x, verbose=0), theirs.predict(x, verbose=0), rtol=1e-5, atol=1e-6)
    for variable in ours.layers[1].variables:
        variable.assign(variable + 1)
    ours.save_weights(tmp_path / "ours.weights.h5")
    theirs = network(Theirs, renorm=renorm)
    theirs.load_weights(tmp_path / "ours.weights.h5")
    np.testing.assert_equal(values(theirs.layers[1]), values(ours.layers[1]))


FITTED = {
    "plain": {},
    "renorm": {"renorm": True, "renorm_clipping": {"rmax": 3.0, "dmax": 2.0}},
    "regularized": {"gamma_regularizer": "l2", "beta_regularizer": "l1"},
    "constrained": {"gamma_constraint": keras.constraints.MaxNorm(0.5), "beta_constraint": "non_neg"},
    "not trainable": {"trainable": False},
}


@pytest.mark.parametrize("name", FITTED)
def test_fit_arrives_where_keras_does(name):
    theirs, ours = network(Theirs, **FITTED[name]), network(Ours, **FITTED[name])
    x = train(theirs)
    train(ours)
    for now, wanted in zip(values(ours.layers[1]), values(theirs.layers[1]), strict=True):
        np.testing.assert_allclose(now, wanted, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(ours.predict(x, verbose=0), theirs.predict(x, verbose=0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        ours.evaluate(x, targets(x), verbose=0), theirs.evaluate(x, targets(x), verbose=0), rtol=1e-4
    )


def test_constraints_hold_after_fit():
    model = network(Ours, **FITTED["constrained"])
    train(model, epochs=1)
    gamma, beta = values(model.layers[1])[:2]
    assert np.linalg.norm(gamma) <= 0.5 + 1e-6 and (beta >= 0).all()


def test_without_constraints_they_do_not():
    model = network(Ours)
    train(model, epochs=1)
    gamma, beta = values(model.layers[1])[:2]
    assert np.linalg.norm(gamma) > 0.5 and (beta < 0).any()


@keras.saving.register_keras_serializable(package="tests")
class Subclassed(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.first, self.second = Ours(momentum=0.9), Ours(renorm=True, momentum=0.8)
        self.dense = keras.layers.Dense(2)

    def call(self, x, training=None):
        return self.dense(self.second(self.first(x, training=training), training=training))


def functional():
    inputs = keras.Input((5,))
    y = Ours(activation="relu")(keras.layers.Dense(6)(inputs))
    return keras.Model(inputs, keras.layers.Dense(2)(Ours(axis=[1])(y)))


def nested():
    inputs = keras.Input((5,))
    return keras.Model(inputs, keras.layers.Dense(2)(network(Ours, average="debiased")(inputs)))


def shared():
    inputs = keras.Input((5,))
    layer = Ours()
    dense = keras.layers.Dense(2)
    return keras.Model(inputs, dense(layer(inputs)) + dense(layer(2 * inputs)))


MODELS = {
    "sequential": lambda: network(Ours),
    "functional": functional,
    "subclassed": Subclassed,
    "nested": nested,
    "shared": shared,
}


@pytest.mark.parametrize("name", MODELS)
def test_keras_files_round_trip(tmp_path, name):
    model = MODELS[name]()
    x = train(model, epochs=1)
    before = model.predict(x, verbose=0)
    model.save(tmp_path / "model.keras")
    keras.utils.clear_session(free_memory=False)
    again = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(again.predict(x, verbose=0), before)
    np.testing.assert_equal(weights(again), weights(model))
    assert type(again) is type(model)
    again.fit(x, targets(x), verbose=0)


@pytest.mark.parametrize("name", ["sequential", "functional", "nested", "shared"])
def test_clone_model(name):
    model = MODELS[name]()
    clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    x = data((8, 5))
    np.testing.assert_array_equal(clone.predict(x, verbose=0), model.predict(x, verbose=0))
    assert [type(layer) for layer in clone.layers] == [type(layer) for layer in model.layers]


def test_clone_model_puts_ours_in_the_place_of_keras_s():
    model = network(Theirs, epsilon=0.01)
    x = train(model, epochs=1)

    def swap(layer):
        return (Ours if type(layer) is Theirs else type(layer)).from_config(layer.get_config())

    clone = keras.models.clone_model(model, clone_function=swap)
    clone.set_weights(model.get_weights())
    assert type(clone.layers[1]) is Ours
    np.testing.assert_allclose(clone.predict(x, verbose=0), model.predict(x, verbose=0), rtol=1e-5, atol=1e-6)


def test_ours_is_one_of_keras_s():
    assert isinstance(Ours(), Theirs)
    assert not isinstance(Theirs(), Ours)
