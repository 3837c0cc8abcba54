# SPDX-License-Identifier: Apache-2.0
"""Keras models: what they say of their normalizers, on every backend; and healthy ones, of which nothing is said."""

import numpy as np
import pytest

from conftest import NAME

if NAME == "numpy":
    pytest.skip("Keras computes with a framework", allow_module_level=True)

import keras

import evenkeel as ek
from evenkeel.doctor import subjects
from evenkeel.doctor.evidence import Decay, Normalizer, Observed, Phase, Structure, Unseen
from evenkeel.doctor.options import Options

KINDS = {"keras": keras.layers.BatchNormalization, "evenkeel": ek.BatchNormalization}
LAYERS = keras.layers


@pytest.fixture(autouse=True)
def _fresh_names_and_seed(backend):
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(0)


@pytest.fixture(params=KINDS)
def kind(request):
    return KINDS[request.param]


def numbers(*shape):
    return np.random.default_rng(0).normal(1, 2, shape).astype("float32")


def evidence(model, wanted, **options):
    return [item for item in subjects.of(model).evidence(model, Options(**options)) if isinstance(item, wanted)]


def normalizer(model, **options):
    (found,) = evidence(model, Normalizer, **options)
    return found


def chain(*layers, size=4):
    return keras.Sequential([keras.Input([size]), *layers])


def trained(model, optimizer="sgd", epochs=1):
    x = numbers(32, *model.input_shape[1:])
    model.compile(optimizer, "mse", run_eagerly=True)
    model.fit(x, np.zeros((32, *model.output_shape[1:])), batch_size=8, epochs=epochs, verbose=0)
    return model


# Values and settings.


def test_values_are_those_of_the_layer(kind):
    layer = kind(name="bn", momentum=0.8, epsilon=0.01, scale=False)
    model = chain(layer)
    layer.set_weights(list(np.arange(12.0).reshape(3, 4) + 1))
    found = normalizer(model)
    assert found.name == layer.path == "sequential/bn" and found.gamma is None
    np.testing.assert_array_equal([found.beta, found.moving_mean, found.moving_variance], layer.get_weights())
    assert (found.momentum, found.epsilon, found.average, found.library) == (0.8, 0.01, "exponential", "keras")
    layer.set_weights([np.zeros(4)] * 3)
    assert found.beta.all() and found.moving_mean.all()


SETTINGS = {
    "plain": ({}, {"frozen": False, "moves": True, "trainable": True, "bessel_correction": False, "updates": None}),
    "not trainable": ({"trainable": False}, {"frozen": "all", "moves": False, "trainable": False}),
    "frozen": ({"frozen": True}, {"frozen": True, "moves": False, "trainable": True}),
    "frozen in all": ({"frozen": "all"}, {"frozen": "all", "moves": False, "trainable": False}),
    "debiased": ({"average": "debiased"}, {"average": "debiased", "updates": 0}),
    "sample variance": ({"bessel_correction": True}, {"bessel_correction": True}),
    "without both": ({"scale": False, "center": False}, {"trainable": None, "gamma": None, "beta": None}),
}


@pytest.mark.parametrize("settings", SETTINGS)
def test_settings_of_our_layer(settings):
    given, expected = SETTINGS[settings]
    found = normalizer(chain(ek.BatchNormalization(**given)))
    assert {name: getattr(found, name) for name in expected} == expected


def test_a_frozen_layer_of_keras():
    model = chain(keras.layers.BatchNormalization())
    model.trainable = False
    found = normalizer(model)
    assert (found.frozen, found.moves, found.trainable) == ("all", False, False)


def test_renorm_keeps_more():
    found = normalizer(chain(ek.BatchNormalization(renorm=True)))
    assert list(found.others) == ["moving_stddev", "renorm_mean", "renorm_stddev"]


STEPS = {"not compiled": (0, {}, None), "compiled": (1, {}, 0), "trained": (2, {}, 4), "told": (2, {"steps": 9}, 9)}


@pytest.mark.parametrize("state", STEPS)
def test_steps_are_those_of_the_optimizer(state):
    stage, options, expected = STEPS[state]
    model = chain(ek.BatchNormalization(average="cumulative"))
    if stage == 1:
        model.compile("sgd", "mse")
    if stage == 2:
        trained(model)
    found = normalizer(model, **options)
    assert found.steps == expected
    assert found.updates == (4 if stage == 2 else 0)


def test_a_model_that_took_no_step_yet_is_not_sick(kind):
    model = chain(kind())
    assert [finding.severity for finding in ek.diagnose(model).findings] == ["error"]
    model.compile("sgd", "mse")
    assert [finding.severity for finding in ek.diagnose(model).findings] == ["note"]


def test_too_few_steps_are_found(kind):
    report = ek.diagnose(trained(chain(kind(momentum=0.99))))
    assert [(finding.rule, finding.severity) for finding in report.findings] == [("EK201", "error")]


# Structure.

CHAINS = {
    "linear": (lambda: [LAYERS.Dense(3)], "linear", ""),
    "built-in activation": (lambda: [LAYERS.Dense(3, activation="relu")], "activation linear", ""),
    "activation": (lambda: [LAYERS.Dense(3), LAYERS.Activation("gelu")], "activation linear", ""),
    "named linear": (lambda: [LAYERS.Dense(3), LAYERS.Activation("linear")], "linear", ""),
    "dropout": (lambda: [LAYERS.Dense(3), LAYERS.ReLU(), LAYERS.Dropout(0.5)], "dropout activation linear", ""),
    "dropout of nothing": (lambda: [LAYERS.Dense(3), LAYERS.Dropout(0.0)], "linear", ""),
    "shape": (lambda: [LAYERS.Dense(3), LAYERS.Reshape([3, 1])], "shape linear", ""),
    "no further than linear": (lambda: [LAYERS.Dropout(0.5), LAYERS.Dense(3)], "linear", ""),
    "after": (lambda: [None, LAYERS.ReLU(), LAYERS.Dropout(0.5), LAYERS.Dense(2)], "", "activation dropout linear"),
    "normalizer after": (lambda: [None, LAYERS.LayerNormalization(), LAYERS.Dense(2)], "", "normalizer"),
    "unknown": (lambda: [LAYERS.Dense(3), LAYERS.GaussianNoise(0.1), None, LAYERS.UnitNormalization()], "other",
                "normalizer"),
}  # fmt: skip


@pytest.mark.parametrize("layers", CHAINS)
def test_neighbours_in_a_chain(layers, kind):
    make, before, after = CHAINS[layers]
    items = make()
    items = [kind() if item is None else item for item in (items if None in items else [*items, None])]
    (structure,) = evidence(chain(*items), Structure)
    (place,) = structure.places
    assert [" ".join(item.kind for item in side) for side in (place.before, place.after)] == [before, after]


HOMOGENEOUS = {
    "relu": (lambda: LAYERS.ReLU(), True),
    "leaky": (lambda: LAYERS.LeakyReLU(), True),
    "by name": (lambda: LAYERS.Activation("relu"), True),
    "with a limit": (lambda: LAYERS.ReLU(6.0), False),
    "with a threshold": (lambda: LAYERS.ReLU(threshold=0.5), False),
    "sigmoid": (lambda: LAYERS.Activation("sigmoid"), False),
}


@pytest.mark.parametrize("activation", HOMOGENEOUS)
def test_which_activations_let_a_scale_through(activation, kind):
    make, expected = HOMOGENEOUS[activation]
    (structure,) = evidence(chain(kind(), make()), Structure)
    assert structure.places[0].after[0].homogeneous is expected


def test_the_activation_of_our_layer_comes_after_it():
    (structure,) = evidence(chain(ek.BatchNormalization(activation="relu"), LAYERS.Dense(2)), Structure)
    (place,) = structure.places
    assert place.activation and [item.kind for item in place.after] == ["activation", "linear"]


def residual(kind, momentum=0.9):
    inputs = keras.Input([6, 6, 2])
    x = LAYERS.Conv2D(3, 3, padding="same", use_bias=False, name="stem")(inputs)
    y = LAYERS.ReLU()(kind(momentum=momentum, name="first")(x))
    y = LAYERS.Conv2D(3, 3, padding="same", use_bias=False)(y)
    y = kind(momentum=momentum, name="second")(y)
    y = keras.ops.relu(LAYERS.Add()([x, y]))
    y = kind(momentum=momentum, name="third")(y)
    return keras.Model(inputs, LAYERS.Dense(2)(LAYERS.GlobalAveragePooling2D()(y)))


def test_neighbours_in_a_graph(kind):
    (structure,) = evidence(residual(kind), Structure)
    kinds = {place.name: [[item.kind for item in side] for side in (place.before, place.after)]
             for place in structure.places}  # fmt: skip
    assert kinds == {
        "first": [[], ["activation", "linear"]],  # what it reads is read elsewhere too
        "second": [["linear"], ["junction", "activation", "normalizer"]],
        "third": [["activation", "junction"], ["pool", "linear"]],
    }


def twice(kind):
    """One normalizer with the model that contains it, and one with two inputs."""
    inner, shared = chain(LAYERS.Dense(4), kind(name="inner")), kind(name="shared")
    inputs = keras.Input([4])
    first, second = inner(shared(inputs)), inner(shared(LAYERS.Dense(4)(inputs)))
    return keras.Model(inputs, [first, second, kind(name="one")(inputs)])


def test_calls_are_counted_over_models(kind):
    (structure,) = evidence(twice(kind), Structure)
    assert {place.name: place.calls for place in structure.places} == {"shared": 2, "sequential/inner": 2, "one": 1}


class Subclassed(keras.Model):
    def __init__(self, kind, width):
        super().__init__()
        self.parts = [LAYERS.Dense(width), kind(momentum=0.5, name="hidden")]
        self.head = keras.Sequential([LAYERS.Dense(3), LAYERS.Dropout(0.5), kind(momentum=0.5, name="seen")])

    def call(self, x, training=None):
        for part in self.parts:
            x = part(x, training=training)
        return self.head(x, training=training)


def test_what_a_subclassed_model_hides_is_said(kind):
    model = Subclassed(kind, 4)
    model(numbers(2, 3))
    (structure,) = evidence(model, Structure)
    assert [place.name for place in structure.places] == ["subclassed/sequential/seen"]
    assert "subclassed/hidden" in evidence(model, Unseen)[0].what


def test_a_wrapper_hides_its_layer(kind):
    inputs = keras.Input([5, 4])
    model = keras.Model(inputs, LAYERS.TimeDistributed(kind(name="bn"))(inputs))
    assert "time_distributed/bn" in evidence(model, Unseen)[0].what and len(evidence(model, Normalizer)) == 1


def test_a_model_without_weights_says_so(kind):
    model = Subclassed(kind, 4)
    assert normalizers_without_values(model) == 2 and "no weights" in evidence(model, Unseen)[0].why


def test_data_builds_a_model(kind):
    model = Subclassed(kind, 4)
    assert normalizers_without_values(model, data=numbers(8, 3)) == 0
    assert len(evidence(model, Observed, data=numbers(8, 3))[0].seen) == 2


def normalizers_without_values(model, **options):
    return sum(found.moving_mean is None for found in evidence(model, Normalizer, **options))


def test_without_normalizers_there_is_nothing():
    model = chain(LAYERS.Dense(2))
    assert list(subjects.of(model).evidence(model, Options(data=numbers(4, 4)))) == []


def test_without_data_that_is_said(kind):
    assert "no data was given" in [item.why for item in evidence(chain(kind()), Unseen)]


# Phases.


def phases(make, kind, **options):
    inputs, layer = keras.Input([4]), kind(name="bn", **options)
    return keras.Model(inputs, make(layer)(inputs))


PHASES = {
    "none": (lambda layer: layer, {}, []),
    "training": (lambda layer: lambda x: layer(x, training=True), {}, [("bn", True)]),
    "inference": (lambda layer: lambda x: layer(x, training=False), {}, []),
    "of a model": (lambda layer: lambda x: chain(layer)(x, training=True), {}, [("sequential/bn", True)]),
    "not trainable": (lambda layer: lambda x: layer(x, training=True), {"trainable": False}, [("bn", False)]),
}


@pytest.mark.parametrize("phase", PHASES)
def test_a_phase_in_the_call(phase, kind):
    make, options, expected = PHASES[phase]
    found = evidence(phases(make, kind, **options), Phase)
    assert [(item.name, item.batch) for item in found] == expected
    assert all(item.model == "inference" and "training=True" in item.because for item in found)


@pytest.mark.parametrize(("told", "batch"), [({}, True), ({"training": False}, False), ({"training": True}, True)])
def test_keras_heeds_a_phase_in_the_call_only_where_none_is_given(told, batch, kind):
    """What `because` says of `predict`, which calls with training=False."""
    model = phases(PHASES["training"][0], kind)
    y = keras.ops.convert_to_numpy(model(numbers(64, 4), **told))
    assert bool(abs(y.mean()) < 1e-3) is batch


# Weight decay.

DECAYS = {
    "all": ("AdamW", {}, ["first/gamma", "first/beta", "second/beta"]),
    "of SGD": ("SGD", {}, ["first/gamma", "first/beta", "second/beta"]),
    "not by name": ("AdamW", {"var_names": ["gamma"]}, ["first/beta", "second/beta"]),
    "none": ("AdamW", {"var_list": True}, []),
}


@pytest.mark.parametrize("decay", DECAYS)
def test_what_an_optimizer_decays(decay):
    name, without, expected = DECAYS[decay]
    ours = ek.BatchNormalization(name="second", scale=False)
    model = chain(keras.layers.BatchNormalization(name="first"), LAYERS.Dense(4), ours)
    optimizer = getattr(keras.optimizers, name)(weight_decay=0.01)
    if without:
        optimizer.exclude_from_weight_decay(
            **{key: ek.decay_exclusions(model) if value is True else value for key, value in without.items()}
        )
    trained(model, optimizer)
    before = state(model, optimizer)
    (found,) = evidence(model, Decay)
    assert (found.value, [item.removeprefix("sequential/") for item in found.decayed]) == (0.01, expected)
    np.testing.assert_equal(state(model, optimizer), before)


def state(model, optimizer):
    variables = [*model.variables, *optimizer.variables]
    return [np.array(keras.ops.convert_to_numpy(item)) for item in variables] + [optimizer.weight_decay]


def test_an_optimizer_that_took_no_step_cannot_tell(kind):
    model = chain(kind())
    model.compile(keras.optimizers.AdamW(), "mse")
    assert next(item.what for item in evidence(model, Unseen)) == "which weights AdamW decays by 0.004"


def test_no_weight_decay_is_nothing(kind):
    assert evidence(trained(chain(kind()), "adam"), Decay) == []


def test_a_regularizer_of_gamma_is_weight_decay(kind):
    model = chain(kind(name="bn", gamma_regularizer=keras.regularizers.L2(0.02), beta_regularizer="l1"))
    (found,) = evidence(model, Decay)
    assert (found.value, found.decayed) == (pytest.approx(0.02), ("sequential/bn/gamma",))


# Healthy.


def settled(model, *shape):
    """Its statistics have followed the data."""
    for _ in range(12):
        model(numbers(16, *shape), training=True)
    return model


def nested(kind):
    inner = chain(LAYERS.Dense(4, use_bias=False), kind(momentum=0.5), LAYERS.ReLU(), LAYERS.Dropout(0.2))
    inputs = keras.Input([4])
    return keras.Model(inputs, LAYERS.Dense(2)(inner(inputs)))


def wrapped(kind):
    inputs = keras.Input([5, 4])
    return keras.Model(inputs, LAYERS.TimeDistributed(kind(momentum=0.5))(inputs))


def dropout_behind(kind):
    first, second = kind(momentum=0.5), kind(momentum=0.5)
    return chain(LAYERS.Dense(4), first, LAYERS.ReLU(), LAYERS.Dropout(0.5), LAYERS.Dense(4), second)


HEALTHY = {
    "residual": (lambda kind: residual(kind, 0.5), (6, 6, 2)),
    "nested": (nested, (4,)),
    "wrapped": (wrapped, (5, 4)),
    "shared": (lambda kind: twice(lambda **options: kind(momentum=0.5, **options)), (4,)),
    "dropout behind": (dropout_behind, (4,)),
}


@pytest.mark.parametrize("model", HEALTHY)
def test_of_a_healthy_model_nothing_above_a_note_is_said(model, kind):
    make, shape = HEALTHY[model]
    report = ek.diagnose(settled(make(kind), *shape))
    assert not report.errors + report.warnings, str(report)


@pytest.mark.skipif(NAME != "tensorflow", reason="the same on all, and slow to build")
def test_a_large_network_of_keras_is_only_untrained():
    model = keras.applications.MobileNetV2(weights=None, input_shape=(32, 32, 3), alpha=0.35)
    report = ek.diagnose(model)
    assert {finding.rule for finding in report.errors + report.warnings} == {"EK101"}
    assert len(report.errors) == len(report.normalizers) == 52
