# SPDX-License-Identifier: Apache-2.0
"""Keras models, recalibrated: against float64, on every backend, and what must not change."""

import numpy as np
import pytest

import oracle
import tolerances
from conftest import NAME

if NAME == "numpy":
    pytest.skip("Keras computes with a framework", allow_module_level=True)

import keras

from evenkeel import BatchNormalization
from evenkeel.errors import ArgumentError, InputError
from evenkeel.surgery.recalibrate import recalibrate

KINDS = {"keras": keras.layers.BatchNormalization, "evenkeel": BatchNormalization}
METHODS = ["pooled", "sequential"]
ROWS = 50


@pytest.fixture(autouse=True)
def _fresh_names_and_seed(backend):
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(0)


def numbers(*shape, mean=0.0, seed=0):
    return np.random.default_rng(seed).normal(mean, 2, shape).astype("float32")


def plain(value):
    return keras.ops.convert_to_numpy(value).astype("float64")


def statistics(layer):
    return plain(layer.moving_mean.value), plain(layer.moving_variance.value)


def everything(model):
    return [np.array(keras.ops.convert_to_numpy(variable.value)) for variable in model.variables]


def two_layers(kind=BatchNormalization, **options):
    return keras.Sequential(
        [
            keras.Input([4]),
            kind(**options, name="first"),
            keras.layers.Dropout(0.5),
            keras.layers.Dense(3, use_bias=False, name="dense"),
            kind(**options, name="second"),
        ]
    )


def check(layer, x, axis=-1, rounded=1, sample=False, weights=None):
    """`rounded`: how often the input was rounded to float32, where the sizes are those of the result."""
    mean, variance, count = oracle.moments(x, axis, weights)
    if sample:
        variance = variance * count / (count - 1)
    condition = max(map(tolerances.condition, mean, variance))
    found_mean, found_variance = statistics(layer)
    bound = rounded * tolerances.mean("float32", count.max(), condition)
    assert (np.abs(found_mean.ravel() - mean) <= bound * np.sqrt(variance)).all()
    bound = rounded * tolerances.variance("float32", count.max(), condition)
    assert (np.abs(found_variance.ravel() - variance) <= bound * variance).all()


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("offset", [0.0, 1e3])
@pytest.mark.parametrize("batch_size", [7, 16, ROWS, 64])
def test_pooled_is_the_statistics_of_all_values(kind, offset, batch_size):
    model, x = two_layers(kind), numbers(ROWS, 4, mean=offset)
    report = recalibrate(model, x, batch_size=batch_size)
    check(model.get_layer("first"), x)
    assert [item.values for item in report.renewed] == [ROWS, ROWS]
    assert report.renewed[0].calls == -(-ROWS // batch_size)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_pooled_shows_every_layer_the_statistics_of_the_batch(kind):
    model, x = two_layers(kind), numbers(ROWS, 4)
    recalibrate(model, x, batch_size=16)
    kernel = plain(model.get_layer("dense").kernel.value)
    normalized = [oracle.normalize(part, *oracle.moments(part)[:2]) for part in np.split(x, [16, 32, 48])]
    check(model.get_layer("second"), np.concatenate(normalized) @ kernel, rounded=4)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_sequential_shows_the_new_statistics(kind):
    model, x = two_layers(kind), numbers(ROWS, 4)
    recalibrate(model, x, batch_size=16, method="sequential")
    check(model.get_layer("first"), x)
    kernel = plain(model.get_layer("dense").kernel.value)
    normalized = oracle.normalize(x, *oracle.moments(x)[:2])
    check(model.get_layer("second"), normalized @ kernel, rounded=4)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_channels_first(kind, method):
    model = keras.Sequential([keras.Input([3, 5, 6]), kind(axis=1)])
    x = numbers(9, 3, 5, 6)
    recalibrate(model, x, batch_size=4, method=method)
    check(model.layers[0], x, axis=1)


def test_several_axes():
    model = keras.Sequential([keras.Input([3, 5]), BatchNormalization(axis=[1, 2])])
    x = numbers(9, 3, 5)
    recalibrate(model, x, batch_size=4)
    check(model.layers[0], x.reshape(9, 15))


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_masked_values_do_not_count(kind):
    model = keras.Sequential([keras.Input([6, 3]), keras.layers.Masking(), kind()])
    x = numbers(8, 6, 3)
    x[2, 3:] = x[5] = 0
    report = recalibrate(model, x, batch_size=3)
    check(model.layers[1], x, weights=(x != 0).any(-1, keepdims=True))
    assert report.renewed[0].values == 8 * 6 - 9


def test_weights_count():
    inputs = {"x": keras.Input([3], name="x"), "weight": keras.Input([], name="weight")}
    layer = BatchNormalization(bessel_correction=True)
    model = keras.Model(inputs, layer(inputs["x"], sample_weight=inputs["weight"]))
    x, weight = numbers(20, 3), np.tile([0.0, 1, 2, 3], 5).astype("float32")
    recalibrate(model, {"x": x, "weight": weight}, batch_size=6)
    check(layer, x, weights=weight[:, None], sample=True)


@pytest.mark.parametrize("method", METHODS)
def test_a_shared_layer_pools_all_its_calls(method):
    shared = BatchNormalization()
    left, right = keras.Input([3]), keras.Input([3])
    model = keras.Model([left, right], [shared(left), shared(right)])
    a, b = numbers(20, 3), numbers(20, 3, mean=5, seed=1)
    report = recalibrate(model, [a, b], batch_size=8, method=method)
    check(shared, np.concatenate([a, b]))
    assert report.renewed[0].calls == 6


class Block(keras.layers.Layer):
    def __init__(self):
        super().__init__(name="block")
        self.held = [{"inner": BatchNormalization(name="inner")}]

    def call(self, x):
        return self.held[0]["inner"](x)


@pytest.mark.parametrize("method", METHODS)
def test_nested_models_and_layers(method):
    inside = keras.Sequential([keras.Input([4]), keras.layers.BatchNormalization(name="deep")], name="inside")
    model = keras.Sequential([keras.Input([4]), inside, Block()])
    x = numbers(ROWS, 4)
    report = recalibrate(model, x, batch_size=16, method=method)
    assert [item.name.split("/")[-1] for item in report.renewed] == ["deep", "inner"]
    check(inside.layers[0], x)


def test_a_model_that_was_never_called_is_built():
    model = keras.Sequential([BatchNormalization()])
    x = numbers(20, 3)
    recalibrate(model, (batch for batch in np.split(x, 4)))
    check(model.layers[0], x)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_renorm_statistics_go_along(kind):
    model, x = keras.Sequential([keras.Input([4]), kind(renorm=True, epsilon=0.01)]), numbers(ROWS, 4)
    recalibrate(model, x, batch_size=16)
    layer = model.layers[0]
    check(layer, x)
    mean, variance, _ = oracle.moments(x)
    bound = 4 * tolerances.variance("float32", ROWS, 1)
    np.testing.assert_allclose(plain(layer.renorm_mean.value), mean, rtol=0, atol=bound * 2)
    for deviation in (layer.moving_stddev, layer.renorm_stddev):
        np.testing.assert_allclose(plain(deviation.value), np.sqrt(variance + 0.01), rtol=bound)


@pytest.mark.parametrize("before", [0, 100])
def test_a_counter_says_at_least_how_many_batches_were_taken_in(before):
    model = keras.Sequential([keras.Input([4]), BatchNormalization(average="cumulative")])
    model.layers[0].updates.assign(np.full(4, before, "int32"))
    recalibrate(model, numbers(ROWS, 4), batch_size=10)
    assert (plain(model.layers[0].updates.value) == max(before, 5)).all()


def test_the_sample_variance_where_the_layer_keeps_it():
    model, x = keras.Sequential([keras.Input([4]), BatchNormalization(bessel_correction=True)]), numbers(5, 4)
    recalibrate(model, x, batch_size=2)
    check(model.layers[0], x, sample=True)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_nothing_but_statistics_changes(kind, method):
    model = two_layers(kind)
    before = {variable.path: np.array(keras.ops.convert_to_numpy(variable.value)) for variable in model.variables}
    recalibrate(model, numbers(ROWS, 4, mean=3), batch_size=16, method=method)
    changed = {
        variable.path.split("/", 1)[-1]
        for variable in model.variables
        if (keras.ops.convert_to_numpy(variable.value) != before[variable.path]).any()
    }
    assert changed == {f"{layer}/moving_{part}" for layer in ("first", "second") for part in ("mean", "variance")}
    assert not any("call" in vars(layer) for layer in model.layers)


@pytest.mark.parametrize("method", METHODS)
def test_an_exception_leaves_all_as_it_was(method):
    model = two_layers()
    model.get_layer("second").moving_mean.assign([1.5, 2.5, 3.5])
    before = everything(model)

    def batches():
        yield numbers(8, 4, mean=5)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        recalibrate(model, batches, method=method)
    for old, new in zip(before, everything(model), strict=True):
        assert old.tobytes() == new.tobytes()
    assert not any("call" in vars(layer) for layer in model.layers)


def test_a_frozen_layer_stays():
    model = two_layers()
    model.get_layer("first").trainable = False
    model.get_layer("second").frozen = True
    before = everything(model)
    report = recalibrate(model, numbers(ROWS, 4, mean=3))
    assert all(map(np.array_equal, before, everything(model)))
    assert report.renewed == [] and list(report.left.values()) == ["frozen", "frozen"]


def test_frozen_layers_may_be_included():
    model, x = two_layers(), numbers(ROWS, 4, mean=3)
    model.trainable = False
    report = recalibrate(model, x, include_frozen=True)
    assert len(report.renewed) == 2 and report.left == {}
    check(model.get_layer("first"), x)


class Switch(keras.Model):
    def __init__(self):
        super().__init__()
        self.used, self.unused = BatchNormalization(name="used"), BatchNormalization(name="unused")
        self.unused.build((None, 4))

    def call(self, x):
        return self.used(x)


@pytest.mark.parametrize("method", METHODS)
def test_a_layer_that_no_data_reached_keeps_its_statistics(method):
    model = Switch()
    model.unused.moving_mean.assign(np.arange(4))
    report = recalibrate(model, numbers(ROWS, 4), method=method)
    assert [name.split("/")[-1] for name in report.unreached] == ["unused"]
    assert statistics(model.unused)[0].tolist() == [0, 1, 2, 3]
    assert "unused: kept its statistics, for no data reached it" in str(report)


@pytest.mark.parametrize("method", METHODS)
def test_a_channel_that_is_not_finite_is_left_out_of_that_batch(method):
    model, x = two_layers(), numbers(ROWS, 4)
    model.pop()
    spoiled = x.copy()
    spoiled[20, 1], spoiled[45, 3] = np.nan, np.inf
    report = recalibrate(model, spoiled, batch_size=10, method=method)
    counted = np.ones_like(x)
    counted[20:30, 1] = counted[40:50, 3] = 0
    mean, variance, _ = oracle.moments(x, weights=counted)
    np.testing.assert_allclose(statistics(model.layers[0]), (mean, variance), rtol=1e-5, atol=1e-5)
    assert report.renewed[0].spoiled == {1: 1, 3: 1}
    assert "not finite, and left out, in channels 1, 3" in str(report)


def test_a_channel_without_two_values_keeps_its_statistics():
    model, x = two_layers(), numbers(ROWS, 4)
    model.pop()
    x[:, 2] = np.nan
    report = recalibrate(model, x)
    assert report.renewed[0].kept == [2]
    mean, variance = statistics(model.layers[0])
    assert (mean[2], variance[2]) == (0, 1) and (mean[:2] != 0).all()


def classifier(gamma=1.0):
    """Right where the first input is positive, when normalized with statistics of the data."""
    model = keras.Sequential([keras.Input([2]), keras.layers.BatchNormalization(scale=False)])
    return model


@pytest.fixture
def labelled():
    """Two numbers on different scales; the label is which one is larger for its scale."""
    x = numbers(200, 2) * np.array([1, 100], "float32") + np.array([3, -500], "float32")
    return x, oracle.normalize(x, *oracle.moments(x)[:2]).argmax(-1)


def test_the_accuracy_is_told(labelled):
    model = keras.Sequential([keras.Input([2]), keras.layers.BatchNormalization(scale=False)])
    report = recalibrate(model, labelled, keep_if_better=labelled)
    assert (report.measure, report.kept) == ("accuracy", "new") and report.before < 0.7 and report.after == 1.0
    assert "accuracy: " in str(report) and str(report).endswith("1 after; kept the new ones")


def test_better_statistics_are_kept(labelled):
    model = keras.Sequential([keras.Input([2]), keras.layers.BatchNormalization(scale=False)])
    recalibrate(model, labelled)
    before = everything(model)
    report = recalibrate(model, labelled[0][:4], keep_if_better=labelled)
    assert report.kept == "old" and report.before == 1.0 > report.after
    assert all(map(np.array_equal, before, everything(model)))


def test_the_loss_decides_without_labels():
    model, x = two_layers(keras.layers.BatchNormalization), numbers(ROWS, 4, mean=9)
    model.compile(loss="mse")
    report = recalibrate(model, x, keep_if_better=(x, np.zeros((ROWS, 3), "float32")))
    assert (report.measure, report.kept) == ("loss", "new") and report.after < report.before


def test_a_function_decides():
    scores = iter([2.0, 1.0])
    model = two_layers()
    before = everything(model)
    report = recalibrate(model, numbers(ROWS, 4), keep_if_better=lambda: next(scores))
    assert report[-4:] == ("score", 2.0, 1.0, "old")
    assert all(map(np.array_equal, before, everything(model)))


def test_no_score_is_worse_than_any():
    scores = iter([np.nan, -3.0])
    assert recalibrate(two_layers(), numbers(ROWS, 4), keep_if_better=lambda: next(scores)).kept == "new"


def test_what_cannot_be_compared_is_said_before_anything_happens():
    model = two_layers()
    before = everything(model)
    with pytest.raises(ArgumentError, match=r"cannot compare a Sequential by targets of float32 \(50, 3\)"):
        recalibrate(model, numbers(ROWS, 4), keep_if_better=(numbers(ROWS, 4), np.zeros((ROWS, 3), "float32")))
    assert all(map(np.array_equal, before, everything(model)))


def test_data_for_one_pass_does_not_do_for_several():
    model = two_layers()
    before = everything(model)
    with pytest.raises(ArgumentError, match="data is a list_iterator, which can be gone through once"):
        recalibrate(model, iter([numbers(ROWS, 4)]), method="sequential")
    assert all(map(np.array_equal, before, everything(model)))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"method": "both"}, "method='both' is unknown"),
        ({"batch_size": 0}, "batch_size=0 is not a positive integer"),
        ({"steps": 1.5}, "steps=1.5 is not a positive integer"),
        ({"phase": True}, "phase and feed are for sessions of TensorFlow 1; leave them out for a Sequential"),
    ],
)
def test_arguments_are_checked(arguments, said):
    with pytest.raises(ArgumentError, match=said):
        recalibrate(two_layers(), numbers(8, 4), **arguments)


def test_no_batch_is_an_error():
    with pytest.raises(InputError, match="no data reached a normalizer"):
        recalibrate(two_layers(), [])


def test_a_model_without_normalizers_is_an_error():
    model = keras.Sequential([keras.Input([4]), keras.layers.Dense(2)])
    with pytest.raises(InputError, match="the Sequential has no batch normalization"):
        recalibrate(model, numbers(8, 4))


def test_another_object_is_an_error():
    with pytest.raises(ArgumentError, match="a dict cannot be recalibrated"):
        recalibrate({}, numbers(8, 4))


def test_a_layer_inside_a_compiled_function_is_an_error(backend):
    if NAME == "torch":
        pytest.skip("torch.compile keeps hooks and values")

    class Compiled(keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.inner = BatchNormalization(name="inner")
            self.inner.build((None, 4))

        def call(self, x):
            return backend.compile(self.inner, {"tensorflow": "graph", "jax": "jit"}[NAME])(x)

    with pytest.raises(InputError, match="inner is called inside a compiled or mapped function"):
        recalibrate(keras.Sequential([keras.Input([4]), Compiled()]), numbers(8, 4))


@pytest.mark.parametrize("progress", [True, lambda batches: (batch for batch in batches)], ids=["bar", "function"])
def test_progress(progress, capsys):
    model, x = two_layers(), numbers(ROWS, 4)
    recalibrate(model, x, progress=progress)
    check(model.get_layer("first"), x)
    assert capsys.readouterr().out == ""
