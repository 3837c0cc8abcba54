# SPDX-License-Identifier: Apache-2.0
"""NormalizationHook: real monitored sessions and estimators of TensorFlow 1."""

import csv

import numpy as np
import pytest

from conftest import NAME

if NAME != "tensorflow":
    pytest.skip("of TensorFlow", allow_module_level=True)

import tensorflow as tf

from evenkeel import NormalizationHook
from evenkeel.doctor.monitor.session import Period
from evenkeel.doctor.monitor.speaking import NormalizationWarning
from evenkeel.errors import ArgumentError, InputError
from evenkeel.tf1 import contrib, layers
from evenkeel.tf1 import estimator as tfe

v1 = tf.compat.v1
SWITCHES = ("control_flow_v2", "resource_variables", "tensor_equality", "v2_tensorshape")
X = np.random.default_rng(0).normal(3, 2, (32, 4)).astype("float32")
Y = X[:, :1]


@pytest.fixture(params=["tf1", "tf2"])
def graph(request):
    """Under TensorFlow 1's rules, and with TensorFlow 2's variables and branches."""
    for switch in SWITCHES if request.param == "tf1" else ():
        getattr(v1, f"disable_{switch}")()
    try:
        with tf.Graph().as_default() as graph:
            yield graph
    finally:
        for switch in SWITCHES if request.param == "tf1" else ():
            getattr(v1, f"enable_{switch}")()


def plain(x, phase, **options):
    return layers.batch_normalization(x, training=True, momentum=0.5, name="bn", **options)


def phased(x, phase):
    return layers.batch_normalization(x, training=phase, momentum=0.5, name="bn")


def slim(x, phase):
    return contrib.layers.batch_norm(x, is_training=True, decay=0.5, scope="bn")


def built(normalizer, *, updates=True):
    """Placeholders of data and phase, and a train operation."""
    v1.set_random_seed(0)
    x, y = v1.placeholder(tf.float32, [None, 4], name="x"), v1.placeholder(tf.float32, [None, 1])
    phase = v1.placeholder_with_default(False, [], name="phase")
    loss = tf.reduce_mean(tf.square(layers.dense(normalizer(x, phase), 1, name="out") - y), name="loss")
    step = v1.train.get_or_create_global_step()
    with tf.control_dependencies(v1.get_collection("update_ops") if updates else []):
        train = v1.train.GradientDescentOptimizer(0.01).minimize(loss, step, name="train")
    return train, lambda rows: {x: X[rows], y: Y[rows], phase: True}


def trained(hook, train, feed, steps=6, batch=8, **options):
    starts = [step * batch % len(X) for step in range(steps)]
    with v1.train.MonitoredTrainingSession(hooks=[hook], **options) as session:
        for start in starts:
            session.run(train, feed(slice(start, start + batch)))


def told(train, feed, every_steps=3, steps=6):
    found = []
    hook = NormalizationHook(every_steps, on_finding=found.append)
    trained(hook, train, feed, steps)
    return hook, [(finding.rule, finding.where) for finding in found]


@pytest.mark.parametrize("normalizer", [plain, phased, slim])
def test_a_healthy_training_is_silent(normalizer, graph):
    hook, found = told(*built(normalizer))
    assert found == []
    assert [row[:5] for row in hook.history] == [(3, "bn", 3, 4, 0), (6, "bn", 3, 4, 0)]


@pytest.mark.parametrize("normalizer", [plain, phased, slim])
def test_updates_that_do_not_run_are_an_error_after_the_first_period(normalizer, graph):
    hook, found = told(*built(normalizer, updates=False), steps=3)
    assert ("EK101", "bn") in found
    assert [(row.moved, row.moved_kl, row.moved_shift) for row in hook.history] == [(0, 0.0, 0.0)]


def test_inference_on_purpose_is_not_a_forgotten_update(graph):
    assert told(*built(lambda x, _: layers.batch_normalization(x, training=False, name="bn")))[1] == []


def test_a_trained_normalizer_that_stops_is_named(graph):
    train, feed = built(lambda x, phase: plain(x, phase, moving_mean_initializer=v1.ones_initializer()), updates=False)
    assert told(train, feed)[1] == [("EK152", "bn")]


def test_statistics_that_are_not_finite_are_an_error(graph):
    train, feed = built(
        lambda x, phase: plain(x, phase, moving_variance_initializer=v1.constant_initializer(np.inf), fused=False)
    )
    hook, found = told(train, feed)
    assert ("EK103", "bn") in found and hook.history[0].not_finite == 4


def test_the_statistics_of_the_batch(graph):
    hook, _ = told(*built(plain), every_steps=1, steps=1)
    (row,) = hook.history
    mean, variance = X[:8].mean(0) / 2, (X[:8].var(0) + 1) / 2  # of momentum 0.5
    assert row.batch_shift == pytest.approx(np.max(np.abs(X[:8].mean(0) - mean) / X[:8].std(0)), rel=1e-4)
    assert row.moved_shift == pytest.approx(np.max(np.abs(mean) / np.sqrt(variance)), rel=1e-4)
    assert row.moved_kl > 0 and row.batch_kl > 0


def test_a_run_that_does_not_train_is_no_step_and_needs_no_more(graph):
    train, feed = built(plain)
    hook = NormalizationHook(1)
    with v1.train.MonitoredTrainingSession(hooks=[hook]) as session:
        for _ in range(3):
            session.run("global_step:0")  # x is not fed
            session.run("loss:0", feed(slice(8)))
        assert hook.history == []
        session.run({"nested": [train]}, feed(slice(8)))
    assert [(row.step, row.steps) for row in hook.history] == [(1, 1)]


def test_a_step_of_another_optimizer_fetches_nothing_of_this_batch(graph):
    train, feed = built(plain)
    other = v1.get_variable("other", initializer=1.0)
    step = v1.train.GradientDescentOptimizer(0.1).minimize(other**2, var_list=[other])
    hook = NormalizationHook(1)
    with v1.train.MonitoredTrainingSession(hooks=[hook]) as session:
        session.run(train, feed(slice(8)))
        session.run([step])  # x is not fed
        session.run(train, feed(slice(8)))
    assert [np.isnan(row.batch_kl) for row in hook.history] == [False, True, False]


def test_what_is_left_at_the_end_has_a_row(graph):
    hook, _ = told(*built(plain), every_steps=4, steps=6)
    assert [(row.step, row.steps, np.isnan(row.batch_kl)) for row in hook.history] == [(4, 4, False), (6, 2, True)]


def test_the_graph_and_the_training_are_what_they_were(graph):
    train, feed = built(phased)
    watched = {}
    for hooks in [[], [NormalizationHook(2)]]:
        with v1.train.MonitoredTrainingSession(hooks=hooks) as session:
            operations = len(graph.get_operations())
            for start in range(0, 32, 8):
                session.run(train, feed(slice(start, start + 8)))
            assert len(graph.get_operations()) == operations
            variables = v1.global_variables()
            watched[len(hooks)] = session.run(variables)
    assert len(watched[0]) == len(watched[1]) and all(map(np.array_equal, watched[0], watched[1]))


def test_a_finding_is_a_warning_once(graph):
    train, feed = built(plain, updates=False)
    with pytest.warns(NormalizationWarning) as caught:
        trained(NormalizationHook(2), train, feed)
    texts = [str(item.message) for item in caught if item.category is NormalizationWarning]
    assert len([text for text in texts if text.startswith("EK101 error: bn: mean all 0")]) == 1
    assert len(texts) == len(set(texts))


def test_training_goes_on_from_a_checkpoint_and_the_file_too(graph, tmp_path):
    train, feed = built(plain)
    path, folder = tmp_path / "bn.csv", str(tmp_path / "model")
    trained(NormalizationHook(3, csv=path), train, feed, checkpoint_dir=folder, save_checkpoint_steps=3)
    with pytest.raises(InputError, match="is there already"):
        NormalizationHook(3, csv=path)
    trained(NormalizationHook(3, csv=path, append=True), train, feed, checkpoint_dir=folder, save_checkpoint_steps=3)
    with path.open(newline="") as file:
        header, *lines = csv.reader(file)
    assert header == list(Period._fields)
    assert [(line[0], line[1], line[3]) for line in lines] == [(str(step), "bn", "4") for step in (3, 6, 9, 12)]
    assert float(lines[2][6]) < float(lines[0][6])  # it began where the other ended


def test_tensorboard_reads_it_back(graph, tmp_path):
    train, feed = built(plain)
    hook = NormalizationHook(3, log_dir=tmp_path)
    trained(hook, train, feed)
    (path,) = tmp_path.iterdir()
    found = {}
    for record in v1.io.tf_record_iterator(str(path)):
        event = v1.Event.FromString(record)
        found.update({(event.step, value.tag): value.simple_value for value in event.summary.value})
    assert len(found) == 2 * (len(Period._fields) - 2)
    assert all(found[row.step, "bn/moved_kl"] == pytest.approx(row.moved_kl) for row in hook.history)


@pytest.mark.parametrize("updates", [True, False])
def test_an_estimator(updates, graph, tmp_path):
    def model_fn(features, labels, mode):
        hidden = layers.batch_normalization(features["x"], momentum=0.5, training=True, name="bn")
        loss = tf.reduce_mean(tf.square(layers.dense(hidden, 1) - labels))
        with tf.control_dependencies(v1.get_collection("update_ops") if updates else []):
            train = v1.train.GradientDescentOptimizer(0.01).minimize(loss, v1.train.get_global_step())
        return tfe.EstimatorSpec(mode, loss=loss, train_op=train)

    found = []
    hook = NormalizationHook(2, on_finding=found.append)
    rows = tfe.inputs.numpy_input_fn({"x": X}, Y, 8, None, shuffle=False)
    model = tfe.Estimator(model_fn, str(tmp_path / "model"))
    if updates:
        model.train(rows, hooks=[hook], steps=4)
    else:
        with pytest.warns(UserWarning, match="never run|update"):
            model.train(rows, hooks=[hook], steps=4)
    assert [(row.step, row.moved) for row in hook.history] == [(2, 4 * updates), (4, 4 * updates)]
    assert ("EK101" in {finding.rule for finding in found}) is not updates


def test_a_graph_without_normalizers_is_refused(graph):
    with pytest.raises(InputError, match="no moving_mean"):
        told(*built(lambda x, _: x))


def test_arguments_are_checked():
    with pytest.raises(ArgumentError, match="every_steps"):
        NormalizationHook(0)
