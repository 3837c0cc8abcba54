# SPDX-License-Identifier: Apache-2.0
"""What data shows of models: sick ones and their healthy twins, on every framework; and nothing of them changes."""

import importlib.util

import numpy as np
import pytest

import oracle
from conftest import NAME

if NAME == "numpy":
    pytest.skip("models are of a framework", allow_module_level=True)

import keras

from evenkeel import BatchNormalization
from evenkeel.doctor import diagnose, observing, rules
from evenkeel.doctor.evidence import Batching, Observed, Phases, Rows, Score, Unseen
from evenkeel.doctor.evidence import Normalizer as Known
from evenkeel.doctor.options import Options
from evenkeel.errors import InputError
from evenkeel.surgery.recalibrate import recalibrate

KINDS = {"keras": keras.layers.BatchNormalization, "evenkeel": BatchNormalization}
ROWS = 80

on_torch = pytest.mark.skipif(NAME != "torch", reason="of torch")
on_tensorflow = pytest.mark.skipif(NAME != "tensorflow", reason="of TensorFlow")
with_flax = pytest.mark.skipif(NAME != "jax" or importlib.util.find_spec("flax") is None, reason="of JAX, with Flax")


@pytest.fixture(autouse=True)
def _fresh_names_and_seed(backend):
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(0)


def numbers(*shape, mean=0.0, seed=0):
    return np.random.default_rng(seed).normal(mean, 2, shape).astype("float32")


X = numbers(ROWS, 4)


def layered(kind=BatchNormalization):
    """Three normalizers; the statistics are right."""
    model = keras.Sequential([keras.Input([4])])
    for name in ("first", "second", "third"):
        model.add(keras.layers.Dense(6, name=f"dense_{name}"))
        model.add(kind(name=name))
        model.add(keras.layers.Activation("relu"))
    model.add(keras.layers.Dense(3))
    recalibrate(model, X, batch_size=16)
    return model


def without_statistics(model, name="second"):
    """The same model, one of whose layers has statistics that no data ever reached."""
    layer = model.get_layer(name)
    layer.moving_mean.assign(np.full(6, 5.0))
    layer.moving_variance.assign(np.full(6, 100.0))
    return model


def looked(model, data, normalizers=None, **options):
    """Each kind of evidence -> the last of it; and what the rules find."""
    found = list(observing.evidence(model, Options(data, **options), normalizers or {}))
    return {type(item): item for item in found}, [finding for item in found for finding in rules.look(item)]


def ids(findings):
    return [(finding.rule, finding.severity) for finding in findings]


def output(model, x):
    return keras.ops.convert_to_numpy(model(x, training=False))


def everything(model):
    return [np.array(keras.ops.convert_to_numpy(variable.value)) for variable in model.variables]


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_what_a_normalizer_sees_is_all_values(kind):
    model, x = keras.Sequential([keras.Input([5, 4]), kind()]), numbers(ROWS, 5, 4, mean=100.0)
    seen = looked(model, x, batch_size=32)[0][Observed].seen[0]
    mean, variance, _ = oracle.moments(x)
    np.testing.assert_allclose(seen.moments.mean, mean, rtol=1e-6)
    np.testing.assert_allclose(seen.moments.variance, variance, rtol=1e-4)
    assert seen.values == (160, 160, 80) and seen.dtype == "float32" and not seen.masked and not seen.spoiled


def test_the_normalizers_of_a_subject_are_taken_by_name_in_the_order_of_the_calls():
    model = layered()
    known = {layer.path: Known(layer.path, momentum=0.5) for layer in reversed(model.layers)}
    seen = looked(model, X, known)[0][Observed].seen
    assert [item.normalizer.name.rpartition("/")[2] for item in seen] == ["first", "second", "third"]
    assert all(item.normalizer is known[item.normalizer.name] for item in seen)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_a_healthy_model_has_no_finding(kind):
    evidence, findings = looked(layered(kind), X, batch_size=16)
    assert findings == []
    assert evidence[Phases].pooled.gap < evidence[Phases].training.gap < 0.7
    assert Unseen not in evidence


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_the_layer_to_blame_is_named(kind):
    evidence, findings = looked(without_statistics(layered(kind)), X, batch_size=16)
    assert [(item.rule, item.where.rpartition("/")[2]) for item in findings] == [
        ("EK401", "second"),
        ("EK403", "second"),
    ]
    assert list(evidence[Phases].swapped.values())[-1] == evidence[Phases].training


@pytest.mark.parametrize("trainable", [True, False], ids=["trainable", "frozen"])
@pytest.mark.parametrize("sick", [True, False], ids=["sick", "healthy"])
def test_accuracy_and_loss_against_labels(sick, trainable):
    model = layered()
    labels = output(model, X).argmax(-1)
    model = without_statistics(model) if sick else model
    model.trainable = trainable
    evidence, findings = looked(model, (X, labels), batch_size=40)
    phases = evidence[Phases]
    right = output(model, X).argmax(-1) == labels
    assert phases.rows == ROWS and phases.inference.accuracy == right.mean()
    assert phases.pooled.accuracy > 0.9 and np.isfinite(phases.inference.loss)
    assert ("EK403" in [item.rule for item in findings]) == sick


def test_an_npz_has_labels(tmp_path):
    model = layered()
    np.savez(tmp_path / "data.npz", x=X, y=output(model, X).argmax(-1))
    assert looked(model, tmp_path / "data.npz")[0][Phases].inference.accuracy == 1.0


@pytest.mark.parametrize("data", [X, lambda: iter([X])], ids=["array", "function"])
def test_nothing_changes(data):
    model = layered()
    before = everything(model)
    looked(model, data)
    assert all(map(np.array_equal, before, everything(model)))
    assert not any("call" in vars(layer) for layer in model.layers)


def test_an_exception_leaves_all_as_it_was():
    def broken():
        yield X[:16]
        raise ZeroDivisionError

    model = layered()
    before = everything(model)
    with pytest.raises(ZeroDivisionError):
        looked(model, broken)
    assert all(map(np.array_equal, before, everything(model)))


def test_no_batch_is_an_error():
    with pytest.raises(InputError, match="no batch"):
        looked(layered(), [])


@pytest.mark.parametrize("training", [True, None], ids=["sick", "healthy"])
def test_rows_that_depend_on_each_other(training):
    class Inner(keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.inner = BatchNormalization()
            self.inner.build((None, 4))

        def call(self, x):
            return self.inner(x, training=training)

        def compute_output_shape(self, shape):
            return shape

    model = keras.Sequential([keras.Input([4]), Inner()])
    recalibrate(model, X)
    before = everything(model)
    evidence, findings = looked(model, X)
    assert all(map(np.array_equal, before, everything(model)))
    assert ids(findings) == ([("EK402", "error")] if training else [])
    assert (evidence[Rows].change > 0.01) == bool(training)


@pytest.mark.parametrize(("rows", "found"), [(65, [("EK405", "warning")]), (66, [])], ids=["sick", "healthy"])
def test_a_last_batch_of_one(rows, found):
    model, x = keras.Sequential([keras.Input([4]), BatchNormalization()]), numbers(rows, 4)
    recalibrate(model, x)
    evidence, findings = looked(model, x)
    assert ids(findings) == found
    assert evidence[Batching].rows == rows and evidence[Batching].batch_size == 32


@pytest.mark.parametrize("mask", [False, True], ids=["sick", "healthy"])
def test_padding(mask):
    x = numbers(16, 8, 3)
    x[np.arange(8) >= np.random.default_rng(0).integers(2, 8, (16, 1))] = 0
    middle = [keras.layers.Masking()] if mask else []
    model = keras.Sequential([keras.Input([8, 3]), *middle, BatchNormalization()])
    recalibrate(model, x)
    evidence, findings = looked(model, x)
    assert ids(findings) == ([] if mask else [("EK406", "warning")])
    padding = evidence[Observed].seen[0].padding
    assert padding is None if mask else padding == (x == 0).all(-1).mean()


def test_values_that_repeat_by_chance_are_no_padding():
    x = np.random.default_rng(0).integers(0, 2, (64, 12, 1)).astype("float32")
    model = keras.Sequential([keras.Input([12, 1]), BatchNormalization()])
    recalibrate(model, x)
    assert looked(model, x)[1] == []


@pytest.mark.parametrize("scale", [10.0, 1.0], ids=["sick", "healthy"])
def test_one_normalizer_of_two_distributions(scale):
    inputs, shared = keras.Input([4]), BatchNormalization()
    model = keras.Model(inputs, keras.layers.add([shared(inputs), shared(inputs * scale)]))
    recalibrate(model, X)
    evidence, findings = looked(model, X)
    assert ("EK408" in [item.rule for item in findings]) == (scale == 10)
    one, other = evidence[Observed].seen[0].calls
    np.testing.assert_allclose(other.variance, scale**2 * one.variance, rtol=1e-4)


def test_a_batch_that_is_not_finite():
    model, x = layered(), X.copy()
    x[3, 2] = np.nan
    evidence, findings = looked(model, x, batch_size=16)
    assert ids(findings)[0] == ("EK409", "error") and "1 of 5" in findings[0].seen
    assert evidence[Observed].seen[0].spoiled == 1


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_far_from_zero_is_an_error_where_the_variance_has_no_digits_left(kind):
    model, x = keras.Sequential([keras.Input([4]), kind()]), numbers(64, 4, mean=30000.0)
    recalibrate(model, x)
    expected = "error" if NAME == "torch" and kind is not BatchNormalization else "warning"
    assert ids(looked(model, x)[1]) == [("EK407", expected)]


@pytest.mark.parametrize(("size", "severity"), [(1, "error"), (4, "warning")])
def test_too_few_values(size, severity):
    found = [item for item in looked(layered(), X[:12], batch_size=size)[1] if item.rule == "EK404"]
    assert ids(found) == [("EK404", severity)] and f"{size} value" in found[0].seen and "3 normalizers" in found[0].seen


def test_a_layer_inside_a_compiled_function_is_said_to_be_unseen(backend):
    if NAME == "torch":
        pytest.skip("torch.compile keeps hooks and values")

    class Compiled(keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.inner = BatchNormalization(name="inner")
            self.inner.build((None, 4))

        def call(self, x):
            return backend.compile(self.inner, {"tensorflow": "graph", "jax": "jit"}[NAME])(x)

    outer = BatchNormalization(name="outer")
    evidence, _ = looked(keras.Sequential([keras.Input([4]), outer, Compiled()]), X)
    assert [item.normalizer.name for item in evidence[Observed].seen] == [outer.path]
    assert "inner" in evidence[Unseen].what


def test_a_curve_finds_the_steepest_place_of_many_with_few_scores():
    asked = []

    def score(swapped):
        asked.append(swapped)
        return Score(0.1 * swapped + (7.0 if swapped > 37 else 0.0))

    found = observing._curve(53, score, {0: Score(0.0)})
    assert {0, 37, 38, 53} <= set(found) and len(asked) <= 8 and list(found) == sorted(found)


def test_outputs_that_are_probabilities_logits_and_one_of_two_classes_score_alike():
    logits = np.random.default_rng(0).normal(size=(20, 2))
    labels = np.arange(20) % 2
    chances = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    scores = [
        observing._score([given], [given], [labels], -1)
        for given in (logits, chances, chances[:, 1:], logits[:, 1:] - logits[:, :1])
    ]
    assert {score.accuracy for score in scores} == {(logits.argmax(-1) == labels).mean()}
    np.testing.assert_allclose([score.loss for score in scores], -np.log(chances[np.arange(20), labels]).mean())


@pytest.mark.parametrize("labels", [None, np.arange(20) % 3, np.ones(20), np.ones((20, 4), int)])
def test_what_is_no_class_label_gives_no_accuracy(labels):
    given = np.random.default_rng(0).normal(size=(20, 2))
    assert observing._score([given], [given], [labels], -1) == Score(0.0)


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


def torch_network(torch, **options):
    nn = torch.nn
    module = nn.Sequential(
        nn.Linear(4, 6), nn.BatchNorm1d(6, **options), nn.ReLU(), nn.Linear(6, 6), nn.BatchNorm1d(6, **options)
    )
    if options.get("track_running_stats", True):
        recalibrate(module, X, batch_size=16)
    return module


@on_torch
@pytest.mark.parametrize("sick", [True, False], ids=["sick", "healthy"])
def test_a_torch_module(torch, sick):
    module = torch_network(torch).train()
    labels = module.eval()(torch.tensor(X)).detach().numpy().argmax(1)
    module.train()
    module[1].eval()
    if sick:
        module[4].running_mean += 20 * torch.arange(6)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    random = torch.get_rng_state()
    pairs = torch.utils.data.TensorDataset(torch.tensor(X), torch.tensor(labels))
    evidence, findings = looked(module, torch.utils.data.DataLoader(pairs, batch_size=16, shuffle=True))
    assert [(item.rule, item.where) for item in findings] == ([("EK401", "4"), ("EK403", "4")] if sick else [])
    assert evidence[Phases].pooled.accuracy > 0.9
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert torch.equal(random, torch.get_rng_state())
    assert module.training and module[4].training and not module[1].training


@on_torch
@pytest.mark.parametrize("drop_last", [False, True], ids=["sick", "healthy"])
def test_torch_raises_at_a_last_batch_of_one(torch, drop_last):
    loader = torch.utils.data.DataLoader(torch.tensor(X[:65]), batch_size=16, drop_last=drop_last)
    known = {name: Known(name, library="torch", raises=True) for name in ("1", "4")}
    assert ids(looked(torch_network(torch), loader, known)[1]) == ([] if drop_last else [("EK405", "error")])


@on_torch
def test_a_torch_module_without_statistics_lets_rows_depend(torch):
    evidence, findings = looked(torch_network(torch, track_running_stats=False), X)
    assert ids(findings) == [("EK402", "error")] and Phases not in evidence


@with_flax
@pytest.mark.parametrize("sick", [True, False], ids=["sick", "healthy"])
def test_a_flax_module(sick):
    from flax import nnx

    class Network(nnx.Module):
        def __init__(self):
            rngs = nnx.Rngs(0)
            self.dense, self.bn = nnx.Linear(4, 3, rngs=rngs), nnx.BatchNorm(3, rngs=rngs)

        def __call__(self, x):
            return self.bn(self.dense(x))

    network = Network()
    recalibrate(network, X)
    if sick:
        network.bn.mean[...] = np.full(3, 50.0, "float32")
    before = np.array([network.bn.mean[...], network.bn.var[...]])
    evidence, findings = looked(network, X)
    assert [(item.rule, item.where) for item in findings] == ([("EK401", "bn"), ("EK403", "bn")] if sick else [])
    assert evidence[Observed].seen[0].one_pass
    assert np.array_equal(before, [network.bn.mean[...], network.bn.var[...]]) and not network.bn.use_running_average


@on_tensorflow
@pytest.mark.parametrize("sick", [True, False], ids=["sick", "healthy"])
def test_a_session(sick):
    import tensorflow as tf

    import evenkeel.tf1 as tf1

    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        x = v1.placeholder("float32", [None, 4])
        tf1.layers.batch_normalization(x, training=True, name="bn")
        session.run(v1.global_variables_initializer())
        if not sick:
            recalibrate(session, X, feed=lambda batch: {x: batch})
        before = session.run(v1.global_variables())
        known = {"bn": Known("bn", *session.run(v1.global_variables()[2:]), epsilon=1e-3)}
        evidence, findings = looked(session, X, known, feed=lambda batch: {x: batch})
        assert all(map(np.array_equal, before, session.run(v1.global_variables())))
    assert ids(findings) == ([("EK401", "error")] if sick else [])
    assert evidence[Observed].seen[0].values == (32, 32, 16) and "outputs" in evidence[Unseen].what


@pytest.mark.parametrize("labels", [np.zeros(64, "float32"), np.full(64, 9), np.eye(2)[np.zeros(64, int)]])
def test_labels_of_another_kind_are_not_passed_over(labels):
    model = keras.Sequential([keras.Input([3]), keras.layers.BatchNormalization(), keras.layers.Dense(2)])
    found = diagnose(model, (np.random.default_rng(0).normal(size=(64, 3)).astype("float32"), labels))
    assert "accuracy and loss" in [item.what for item in found.unseen]


def test_an_iterator_of_one_batch_builds_the_model_and_is_looked_at():
    model = keras.Sequential([keras.layers.BatchNormalization(), keras.layers.Dense(2)])
    found = diagnose(model, iter([np.random.default_rng(0).normal(size=(32, 3)).astype("float32")]))
    assert found.observed.seen[0].moments.count[0] == 32


def test_layers_of_one_name_are_told_apart():
    def tower(shift):
        inputs = keras.Input([3])
        part = keras.Model(inputs, keras.layers.BatchNormalization(name="bn")(inputs))
        part.layers[1].moving_mean.assign([shift] * 3)
        return part

    inputs = keras.Input([3])
    model = keras.Model(inputs, [tower(0.0)(inputs), tower(50.0)(inputs)])
    found = diagnose(model, np.random.default_rng(0).normal(size=(64, 3)).astype("float32"))
    names = [finding.where for finding in found.errors if finding.rule == "EK401"]
    assert len(found.normalizers) == len(found.observed.seen) == 2 and len(names) == 1


def test_a_layer_behind_a_frozen_one_sees_what_it_sees_in_training():
    first, second = (BatchNormalization(name=name) for name in ("first", "second"))
    model = keras.Sequential([keras.Input([3]), first, keras.layers.Rescaling(2.0), second])
    first.moving_mean.assign([5.0] * 3)
    second.moving_mean.assign([-10.0] * 3)
    second.moving_variance.assign([4.0] * 3)
    first.frozen = True
    x = np.random.default_rng(0).normal(size=(256, 3)).astype("float32")
    assert "second" not in [finding.where for finding in diagnose(model, x).findings if finding.rule == "EK401"]
