# SPDX-License-Identifier: Apache-2.0
"""NormalizationMonitor in real trainings, on every backend: the sick are named, the healthy are not, none changes."""

import csv

import numpy as np
import pytest

from conftest import NAME

if NAME == "numpy":
    pytest.skip("Keras trains with a framework", allow_module_level=True)

import keras

import evenkeel
from evenkeel import BatchNormalization, NormalizationMonitor
from evenkeel.doctor.monitor.keras import Epoch
from evenkeel.doctor.monitor.speaking import NormalizationWarning
from evenkeel.errors import ArgumentError, InputError

ROWS, BATCH = 24, 4
X = np.random.default_rng(0).normal(3, 2, (ROWS, 4)).astype("float32")
Y = X[:, :1] - X[:, 1:2]


@pytest.fixture(autouse=True)
def _fresh_names_and_seed(backend):
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(0)


class WithoutUpdates(keras.layers.Layer):
    """What people write who take `training=False` for the way to save time."""

    def __init__(self, inner):
        super().__init__(name="block")
        self.inner = inner

    def build(self, input_shape):
        self.inner.build(input_shape)

    def call(self, inputs):
        return self.inner(inputs, training=False)


def network(first=keras.layers.BatchNormalization, execution=1, momentum=0.5, wrapper=lambda layer: layer):
    """Keras's layer, or another, and ours."""
    keras.utils.set_random_seed(1)
    x = keras.Input([4])
    hidden = first(momentum=momentum, name="first")(x)
    hidden = keras.layers.Dropout(0.2)(keras.layers.Dense(3, activation="tanh", name="dense")(hidden))
    hidden = wrapper(BatchNormalization(momentum=momentum, name="second"))(hidden)
    model = keras.Model(x, keras.layers.Dense(1, name="out")(hidden))
    return compiled(model, execution)


def compiled(model, execution=1):
    model.compile(keras.optimizers.SGD(0.01), "mse", steps_per_execution=execution)
    return model


def fit(model, *monitors, x=X, epochs=2, **options):
    keras.utils.set_random_seed(2)  # on torch, dropout draws from the one generator of all
    model.fit(x, Y, batch_size=BATCH, epochs=epochs, shuffle=False, verbose=0, callbacks=list(monitors), **options)


def said(model, *, x=X, epochs=2, **options):
    """Rules and layers, in the order in which they were said."""
    found = []
    fit(model, NormalizationMonitor(on_finding=found.append, **options), x=x, epochs=epochs)
    return [(finding.rule, finding.where) for finding in found]


def everything(model):
    return [np.array(keras.ops.convert_to_numpy(item.value)) for item in [*model.variables, *model.optimizer.variables]]


@pytest.mark.parametrize("options", [{}, {"data": X, "batch_size": BATCH}], ids=["without data", "with data"])
def test_training_is_the_same_to_the_bit(options):
    alone, watched = network(), network()
    fit(alone)
    fit(watched, NormalizationMonitor(**options))
    assert len(everything(alone)) == len(everything(watched))
    assert all(map(np.array_equal, everything(alone), everything(watched)))


def test_a_healthy_training_is_silent():
    assert said(network(), data=X, batch_size=BATCH) == []


@pytest.mark.parametrize(("execution", "rows", "batches"), [(1, ROWS, 6), (2, ROWS, 6), (4, ROWS - 2, 6)])
def test_updates_are_counted(execution, rows, batches):
    if NAME == "torch" and execution > 1:
        pytest.skip("Keras has no steps_per_execution on torch")
    monitor = NormalizationMonitor()
    model = network(execution=execution)
    model.fit(X[:rows], Y[:rows], batch_size=BATCH, epochs=2, verbose=0, callbacks=[monitor])
    assert [(row.epoch, row.normalizer, row.batches, row.updates, row.skipped) for row in monitor.history] == [
        (epoch, name, batches, batches, 0) for epoch in (0, 1) for name in ("first", "second")
    ]


def test_what_moved_and_how_far_the_data_are():
    model, monitor = network(), NormalizationMonitor(X, batch_size=ROWS)
    fit(model, monitor, epochs=1)
    row, layer = monitor.history[0], model.get_layer("first")
    mean, variance = (
        keras.ops.convert_to_numpy(getattr(layer, f"moving_{part}").value) for part in ("mean", "variance")
    )
    assert row.moved_shift == pytest.approx(np.max(np.abs(mean) / np.sqrt(variance + layer.epsilon)), rel=1e-5)
    assert row.batch_shift == pytest.approx(
        np.max(np.abs(mean - X.mean(0)) / np.sqrt(X.var(0) + layer.epsilon)), rel=1e-4
    )
    assert row.moved_kl > 10 * row.batch_kl > 0


def test_without_data_nothing_is_said_of_it():
    monitor = NormalizationMonitor()
    fit(network(), monitor)
    assert all(np.isnan([row.batch_kl, row.batch_shift]).all() for row in monitor.history)
    assert not any(np.isnan([row.moved_kl, row.moved_shift]).any() for row in monitor.history)


def one_layer(kind):
    layer = kind(momentum=0.5, center=False, scale=False, name="bn")
    return compiled(keras.Sequential([keras.Input([4]), layer, keras.layers.Dense(1, name="out")]))


def spoiled(*rows, column=slice(None)):
    x = X.copy()
    x[list(rows), column] = np.nan
    return x


def test_a_batch_that_is_not_finite_was_skipped():
    monitor = NormalizationMonitor(on_finding=[].append)
    fit(one_layer(BatchNormalization), monitor, x=spoiled(5, 9, column=2), epochs=1)
    assert [(row.batches, row.updates, row.skipped, row.not_finite) for row in monitor.history] == [(6, 6, 2, 0)]


def test_a_batch_without_a_finite_channel_is_no_update():
    monitor = NormalizationMonitor(on_finding=[].append)
    fit(one_layer(BatchNormalization), monitor, x=spoiled(5), epochs=1)
    assert [(row.batches, row.updates, row.skipped) for row in monitor.history] == [(6, 5, 1)]


def test_keras_lets_a_nan_in():
    monitor = NormalizationMonitor(on_finding=[].append)
    fit(one_layer(keras.layers.BatchNormalization), monitor, x=spoiled(5, column=[0, 2]), epochs=1)
    assert monitor.history[0].not_finite == 2


def test_statistics_that_are_not_finite_are_an_error():
    assert ("EK103", "sequential/bn") in said(one_layer(keras.layers.BatchNormalization), x=spoiled(5, column=1))


def test_updates_that_did_not_happen_are_an_error_after_the_first_epoch():
    rules = said(network(wrapper=WithoutUpdates), epochs=1)
    assert ("EK101", "block/second") in rules and not any(where == "first" for _, where in rules)


def test_a_trained_model_whose_updates_do_not_happen_is_named_too():
    model = network(wrapper=WithoutUpdates)
    model.get_layer("block").inner.moving_mean.assign([1.0, 2.0, 3.0])
    assert said(model, epochs=1) == [("EK152", "block/second")]


def frozen(model):
    evenkeel.freeze(model)


def frozen_in_all(model):
    evenkeel.freeze(model, affine=True)


def not_trainable(model):
    for name in ("first", "second"):
        model.get_layer(name).trainable = False


@pytest.mark.parametrize("freeze", [frozen, frozen_in_all, not_trainable])
def test_frozen_layers_are_not_forgotten_ones(freeze):
    model = network(BatchNormalization)
    freeze(model)
    assert said(compiled(model)) == []


def test_a_momentum_of_one_is_not_a_forgotten_update():
    assert {rule for rule, _ in said(network(momentum=1.0))} == {"EK202"}


def test_a_momentum_too_slow_for_the_steps_planned_is_said_in_the_first_epoch():
    found = []

    class Stop(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.stop_training = True

    fit(network(momentum=0.99), NormalizationMonitor(on_finding=found.append), Stop(), epochs=2)
    assert [(finding.rule, finding.seen.split(" with ")[0]) for finding in found] == [
        ("EK201", "89% of the start is left after 12 batches")
    ] * 2


def test_a_finding_is_a_warning_once():
    model = network(wrapper=WithoutUpdates)
    with pytest.warns(NormalizationWarning) as caught:
        fit(model, NormalizationMonitor(), epochs=3)
    texts = [str(item.message) for item in caught if item.category is NormalizationWarning]
    assert len(texts) == len(set(texts))
    (text,) = [text for text in texts if "EK101" in text]
    assert "error: block/second: mean all 0, variance all 1" in text and "recalibrate" in text


def test_a_warning_may_end_the_training():
    model, monitor = network(wrapper=WithoutUpdates), NormalizationMonitor()
    with pytest.raises(NormalizationWarning, match="EK152 error"):  # pytest makes errors of warnings
        fit(model, monitor)
    assert len(monitor.history) == 2  # an epoch of two layers


def test_every_second_epoch():
    monitor = NormalizationMonitor(every=2)
    fit(network(), monitor, epochs=3)
    assert [(row.epoch, row.updates) for row in monitor.history] == [(1, 6), (1, 6)]


def test_the_file_has_the_history(tmp_path):
    path = tmp_path / "bn.csv"
    monitor = NormalizationMonitor(csv=path)
    fit(network(), monitor)
    with path.open(newline="") as file:
        header, *lines = csv.reader(file)
    assert header == list(Epoch._fields)
    assert [line[:6] for line in lines] == [list(map(str, row[:6])) for row in monitor.history]
    assert [float(line[6]) for line in lines] == pytest.approx([row.moved_kl for row in monitor.history], rel=1e-5)
    assert {tuple(line[8:]) for line in lines} == {("", "")}


def test_a_file_goes_on_when_asked(tmp_path):
    path = tmp_path / "bn.csv"
    fit(network(), NormalizationMonitor(csv=path))
    before = path.read_text()
    with pytest.raises(InputError, match=r"bn\.csv is there already; give append=True"):
        NormalizationMonitor(csv=path)
    fit(network(), NormalizationMonitor(csv=path, append=True), initial_epoch=2, epochs=3)
    assert path.read_text().startswith(before)
    assert [line.split(",")[0] for line in path.read_text().splitlines()] == ["epoch", *"001122"]


@pytest.mark.skipif(NAME != "tensorflow", reason="TensorFlow reads them")
def test_tensorboard_reads_it_back(tmp_path):
    import tensorflow as tf

    monitor = NormalizationMonitor(X, log_dir=tmp_path, batch_size=BATCH)
    fit(network(), monitor)
    (path,) = tmp_path.iterdir()
    found = {}
    for record in tf.data.TFRecordDataset(str(path)):
        event = tf.compat.v1.Event.FromString(record.numpy())
        found.update({(event.step, value.tag): value.simple_value for value in event.summary.value})
    assert len(found) == len(monitor.history) * (len(Epoch._fields) - 2)
    for row in monitor.history:
        assert found[row.epoch, f"{row.normalizer}/batch_kl"] == pytest.approx(row.batch_kl, rel=1e-5)


def test_a_model_without_normalizers_is_refused():
    model = compiled(keras.Sequential([keras.Input([4]), keras.layers.Dense(1)]))
    with pytest.raises(InputError, match="no batch normalization"):
        fit(model, NormalizationMonitor())


@pytest.mark.parametrize("options", [{"every": 0}, {"batch_size": 0}, {"steps": 0}, {"data": 3}])
def test_arguments_are_checked(options):
    with pytest.raises(ArgumentError):
        NormalizationMonitor(**options)
