# SPDX-License-Identifier: Apache-2.0
"""Keras models, trained, each broken in one way: the first error names the cause, and the healthy twin has none."""

import numpy as np
import pytest

from conftest import NAME

if NAME == "numpy":
    pytest.skip("Keras computes with a framework", allow_module_level=True)

import keras

import evenkeel as ek

ROWS, FEATURES, CLASSES = 512, 12, 4
KINDS = {"keras": keras.layers.BatchNormalization, "evenkeel": ek.BatchNormalization}


@pytest.fixture(autouse=True)
def _fresh_names_and_seed():
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(0)


@pytest.fixture(params=KINDS)
def kind(request):
    return KINDS[request.param]


def data(rows=ROWS):
    """Classes that a small network learns at once."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, CLASSES, rows)
    centres = np.random.default_rng(1).normal(0, 2, (CLASSES, FEATURES))
    return (centres[labels] + generator.normal(size=(rows, FEATURES)) + 1).astype("float32"), labels


def network(kind, phase=None, **options):
    """Two blocks; `phase` is what the second normalizer is called with."""
    fixed = {} if phase is None else {"training": phase}
    inputs = keras.Input([FEATURES])
    x = keras.layers.Dense(16, use_bias=False)(inputs)
    x = keras.layers.ReLU()(kind(**{"momentum": 0.9, "name": "first", **options})(x))
    x = keras.layers.Dense(16, use_bias=False)(x)
    x = keras.layers.ReLU()(kind(**{"momentum": 0.9, "name": "second", **options})(x, **fixed))
    return keras.Model(inputs, keras.layers.Dense(CLASSES)(x))


def trained(model, x=None, epochs=5, optimizer="adam"):
    images, labels = data()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss)
    model.fit(images if x is None else x, labels, batch_size=32, epochs=epochs, verbose=0)
    return model


def never_updated(kind):
    """A loop of one's own that drops what the layers return beside their output."""
    model = trained(network(kind))
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.moving_mean.assign(np.zeros(16))
            layer.moving_variance.assign(np.ones(16))
    return model, data(), "EK101"


def momentum_too_slow(kind):
    return trained(network(kind, momentum=0.999)), data(), "EK201"


def momentum_of_torch(kind):
    return trained(network(kind, momentum=0.01)), data(), "EK202"


def training_phase_in_the_call(kind):
    return trained(network(kind, phase=True)), data(), "EK303"


def other_preprocessing(kind):
    """Trained on pixels from 0 to 255, served from 0 to 1."""
    model = trained(network(kind), 100 * data()[0])
    return model, data(), "EK401"


def poisoned(kind):
    """The state that one NaN leaves behind in a layer without a guard, as mixed precision makes it."""
    model = trained(network(kind))
    broken = model.get_layer("second").moving_variance
    broken.assign(np.where(np.arange(16) == 3, np.nan, keras.ops.convert_to_numpy(broken.value)))
    return model, data(), "EK103"


def weights_of_another_order(kind):
    """[gamma, beta, mean, variance] into a layer that has [mean, variance, gamma, beta]: Keras 0 against Keras 1."""
    model = trained(network(kind))
    layer = model.get_layer("second")
    gamma, beta, mean, variance = layer.get_weights()[:4]
    layer.set_weights([mean, variance, gamma, beta, *layer.get_weights()[4:]])
    return model, data(), "EK106"


def broken_input(kind):
    images, labels = data()
    images[7, 2] = np.nan
    return trained(network(kind)), (images, labels), "EK409"


SICK = [
    never_updated,
    momentum_too_slow,
    momentum_of_torch,
    training_phase_in_the_call,
    other_preprocessing,
    poisoned,
    weights_of_another_order,
    broken_input,
]


@pytest.mark.parametrize("patient", SICK, ids=lambda patient: patient.__name__)
def test_the_first_error_names_the_cause(patient, kind):
    model, examples, cause = patient(kind)
    report = ek.diagnose(model, examples)
    assert report.errors and report.errors[0].rule == cause, str(report)


def one_row(kind):
    """A last batch of one row: nothing to be normalized with."""
    model = trained(network(kind))
    images, labels = data(ROWS + 1)
    return model, (images, labels)


def test_a_batch_of_one_is_found(kind):
    model, examples = one_row(kind)
    found = ek.diagnose(model, examples).findings
    assert "EK405" in [finding.rule for finding in found]


HEALTHY = {
    "plain": {},
    "ours, debiased": {"average": "debiased", "momentum": 0.99},
    "ours, cumulative": {"average": "cumulative"},
}


@pytest.mark.parametrize("options", HEALTHY)
def test_the_healthy_twin_has_no_error_and_no_warning(options, kind):
    if HEALTHY[options] and kind is not ek.BatchNormalization:
        pytest.skip("Keras's layer has no such argument")
    report = ek.diagnose(trained(network(kind, **HEALTHY[options])), data())
    assert not report.errors + report.warnings, str(report)


def test_the_same_network_without_normalizers_is_not_sick():
    model = keras.Sequential([keras.Input([FEATURES]), keras.layers.Dense(CLASSES)])
    report = ek.diagnose(trained(model), data())
    assert not report.errors + report.warnings and "no batch normalization" in str(report).lower(), str(report)


def images(rows=128):
    generator = np.random.default_rng(0)
    labels = generator.integers(0, CLASSES, rows)
    shown = generator.normal(size=(rows, 8, 8, 1)) + np.arange(rows)[:, None, None, None] % 2
    shown[:, 2:4, 2:4, 0] += 4 * (labels[:, None, None] - 1.5)
    return shown.astype("float32"), labels


def residual(kind):
    def block(x):
        y = keras.layers.ReLU()(kind(momentum=0.9)(keras.layers.Conv2D(8, 3, padding="same", use_bias=False)(x)))
        y = kind(momentum=0.9)(keras.layers.Conv2D(8, 3, padding="same", use_bias=False)(y))
        return keras.layers.ReLU()(keras.layers.Add()([x, y]))

    inputs = keras.Input([8, 8, 1])
    x = keras.layers.Conv2D(8, 3, padding="same")(inputs)
    x = keras.layers.GlobalAveragePooling2D()(block(block(x)))
    return keras.Model(inputs, keras.layers.Dense(CLASSES)(x))


def test_a_healthy_residual_network_has_no_error_and_no_warning(kind):
    shown, labels = images()
    model = residual(kind)
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(shown, labels, batch_size=16, epochs=8, verbose=0)
    report = ek.diagnose(model, (shown, labels))
    assert not report.errors + report.warnings, str(report)


def test_one_bad_layer_in_a_residual_network_is_named(kind):
    shown, labels = images()
    model = residual(kind)
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(shown, labels, batch_size=16, epochs=8, verbose=0)
    third = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)][2]
    third.moving_mean.assign(third.moving_mean + 10 * keras.ops.sqrt(third.moving_variance))
    report = ek.diagnose(model, (shown, labels))
    assert (report.errors[0].rule, report.errors[0].where) == ("EK401", third.path), str(report)
