# SPDX-License-Identifier: Apache-2.0
"""Graphs of TensorFlow 1: programs that are healthy, and their twins with one known fault each."""

import contextlib
import sys

import numpy as np
import pytest

from conftest import GOLDENS, NAME

if NAME != "tensorflow":
    pytest.skip("of TensorFlow", allow_module_level=True)

import tensorflow as tf

import evenkeel
import evenkeel.tf1 as tf1
from evenkeel.doctor.evidence import Normalizer, Observed, Phase, Placeholder, Unseen, Updates
from evenkeel.doctor.options import Options
from evenkeel.doctor.rules import look
from evenkeel.doctor.subjects import graph
from evenkeel.errors import ArgumentError, InputError
from evenkeel.tf1 import tflearn
from evenkeel.tf1.estimator.updates import UpdatesNotRunWarning
from evenkeel.tf1.helper import BatchNormalizer

v1 = tf.compat.v1
SWITCHES = ("control_flow_v2", "resource_variables", "tensor_equality", "v2_tensorshape")
OLD, NEW = "TensorFlow 1", "TensorFlow 2"
CHECKPOINTS = GOLDENS / "checkpoints"
X = np.random.default_rng(0).normal(3.0, 2.0, (8, 4)).astype("float32")


@pytest.fixture
def rules(request):
    """Control flow and variables of TensorFlow 1, unless a test asks for those of TensorFlow 2."""
    old = getattr(request, "param", OLD) == OLD
    for switch in SWITCHES if old else ():
        getattr(v1, f"disable_{switch}")()
    try:
        with tf.Graph().as_default() as made:
            yield made
    finally:
        for switch in SWITCHES if old else ():
            getattr(v1, f"enable_{switch}")()


def examined(subject, **options):
    return list(graph.evidence(subject, Options(**options)))


def found(subject, **options):
    """ID, severity and place of all that this room's rules find."""
    findings = [finding for item in examined(subject, **options) for finding in look(item)]
    return [(finding.rule, finding.severity, finding.where) for finding in findings if finding.rule.startswith("EK3")]


def of_kind(kind, subject, **options):
    return [item for item in examined(subject, **options) if isinstance(item, kind)]


def x_and_labels():
    return v1.placeholder("float32", [None, 4], "x"), v1.placeholder("float32", [None, 3], "labels")


def phase_placeholder():
    return v1.placeholder("bool", [], "is_training")


def dense(x, name, units=3):
    return tf1.layers.dense(x, units, name=name)


def loss_of(y, labels):
    return tf.reduce_mean((y - labels) ** 2)


def minimized(loss, *, updates=True, name="train", **options):
    before = v1.get_collection(v1.GraphKeys.UPDATE_OPS) if updates is True else updates or []
    with tf.control_dependencies(list(before)):
        return v1.train.GradientDescentOptimizer(0.1, name=name).minimize(loss, **options)


# Programs. Each is a function of whether the fault is in it; the healthy twin has no finding.


def layers(training):
    def program(sick):
        x, labels = x_and_labels()
        y = tf1.layers.batch_normalization(dense(x, "a"), training=training(), name="bn")
        minimized(loss_of(dense(y, "b"), labels), updates=not sick)

    return program


def images(sick):
    x = v1.placeholder("float32", [None, 4, 4, 2], "x")
    y = tf1.layers.conv2d(x, 3, 3, use_bias=False)
    y = tf1.layers.batch_normalization(y, training=phase_placeholder(), fused=True, name="bn")
    minimized(tf.reduce_mean(y**2), updates=not sick)


def contrib(sick):
    """The updates go with the output; or they are collected, and nobody runs them."""
    x, labels = x_and_labels()
    collection = v1.GraphKeys.UPDATE_OPS if sick else None
    y = tf1.contrib.layers.batch_norm(dense(x, "a"), is_training=True, updates_collections=collection, scope="bn")
    minimized(loss_of(y, labels), updates=False)


def contrib_phase(sick):
    x, labels = x_and_labels()
    y = tf1.contrib.layers.batch_norm(dense(x, "a"), is_training=phase_placeholder(), scale=True, scope="bn")
    minimized(loss_of(y, labels), updates=not sick)


def slim(sick):
    x, labels = x_and_labels()
    y = tf1.contrib.slim.batch_norm(dense(x, "a"), is_training=True, scope="bn")
    optimizer = v1.train.GradientDescentOptimizer(0.1)
    updates = [] if sick else None
    tf1.contrib.slim.learning.create_train_op(loss_of(y, labels), optimizer, update_ops=updates)


def helper(sick):
    x, labels = x_and_labels()
    normalizer = BatchNormalizer(3, 0.001, v1.train.ExponentialMovingAverage(0.9), True)
    y = normalizer.normalize(dense(x, "a"))
    assigner = normalizer.get_assigner()
    minimized(loss_of(y, labels), updates=[] if sick else [assigner])


def averages(sick):
    """As in the answers of 2016: averages of the moments, chosen by the phase."""
    x, labels = x_and_labels()
    phase, x = phase_placeholder(), dense(x, "a")
    with v1.variable_scope("bn"):
        beta = v1.get_variable("beta", [3], initializer=v1.zeros_initializer())
        mean, variance = tf.nn.moments(x, [0], name="moments")
        average = v1.train.ExponentialMovingAverage(decay=0.5)

        def update():
            with tf.control_dependencies([average.apply([mean, variance])]):
                return tf.identity(mean), tf.identity(variance)

        if sick:
            average.apply([mean, variance])
        still = lambda: (average.average(mean), average.average(variance))  # noqa: E731
        now = (lambda: (tf.identity(mean), tf.identity(variance))) if sick else update
        used = v1.cond(phase, now, still)
        y = tf.nn.batch_normalization(x, *used, beta, None, 1e-3)
    minimized(loss_of(y, labels), updates=False)


def assigned(sick):
    """As in R2RT's tutorial: population statistics, assigned."""
    x, labels = x_and_labels()
    x = dense(x, "a")
    with v1.variable_scope("bn"):
        pop_mean = v1.get_variable("pop_mean", [3], initializer=v1.zeros_initializer(), trainable=False)
        pop_variance = v1.get_variable("pop_var", [3], initializer=v1.ones_initializer(), trainable=False)
        mean, variance = tf.nn.moments(x, [0])
        updates = [
            v1.assign(pop_mean, pop_mean * 0.9 + mean * 0.1),
            v1.assign(pop_variance, pop_variance * 0.9 + variance * 0.1),
        ]
        with tf.control_dependencies([] if sick else updates):
            y = (x - mean) / tf.sqrt(variance + 1e-5)
    minimized(loss_of(y, labels), updates=False)


def learn(sick):
    x, labels = x_and_labels()
    y = tflearn.batch_normalization(dense(x, "a"), scope="bn")
    minimized(loss_of(y, labels))


def towers(sick):
    """The updates of the first tower are enough."""
    x, labels = x_and_labels()
    losses = []
    for number in range(2):
        with v1.name_scope(f"tower_{number}"), v1.variable_scope("net", reuse=number > 0):
            y = tf1.layers.batch_normalization(dense(x, "a"), training=True, name="bn")
            losses.append(loss_of(y, labels))
            if number == 0:
                updates = v1.get_collection(v1.GraphKeys.UPDATE_OPS)
    minimized(losses[0] + losses[1], updates=[] if sick else updates)


def adversarial(sick):
    """Each of two networks trains with its own updates; or the generator with all."""
    z, real = v1.placeholder("float32", [None, 2], "z"), v1.placeholder("float32", [None, 4], "real")
    with v1.variable_scope("generator"):
        fake = dense(tf1.layers.batch_normalization(dense(z, "a"), training=True, name="bn"), "b", 4)

    def judged(x, reuse):
        with v1.variable_scope("discriminator", reuse=reuse):
            return dense(tf1.layers.batch_normalization(dense(x, "a"), training=True, name="bn"), "b", 1)

    on_real, on_fake = judged(real, False), judged(fake, True)
    for name, loss in (
        ("discriminator", tf.reduce_mean(on_fake - on_real)),
        ("generator", tf.reduce_mean(-on_fake)),
    ):
        scope = None if sick else name
        updates = v1.get_collection(v1.GraphKeys.UPDATE_OPS, scope=scope)
        variables = v1.get_collection(v1.GraphKeys.TRAINABLE_VARIABLES, scope=name)
        minimized(loss, updates=updates, name=f"train_{name}", var_list=variables)


def inference_in_training(sick):
    x, labels = x_and_labels()
    y = tf1.layers.batch_normalization(dense(x, "a"), training=not sick, name="bn")
    minimized(loss_of(y, labels))


def frozen_backbone(sick):
    """Gamma and beta of the backbone are frozen too; or they learn on."""
    x, labels = x_and_labels()
    y = tf1.layers.batch_normalization(dense(x, "a"), training=False, trainable=sick, name="bn")
    minimized(loss_of(dense(y, "b"), labels))


def nothing_before_is_trained(sick):
    """With the batch, and without updates; but only the head is trained."""
    x, labels = x_and_labels()
    y = tf1.layers.batch_normalization(dense(x, "a"), training=True, name="bn")
    y = dense(y, "head")
    trained = v1.get_collection(v1.GraphKeys.TRAINABLE_VARIABLES, scope=None if sick else "head")
    minimized(loss_of(y, labels), updates=False, var_list=trained)


def grouped(sick):
    """The train operation is a group, of which `minimize` is one part and the updates are the other."""
    x, labels = x_and_labels()
    y = tf1.layers.batch_normalization(dense(x, "a"), training=True, name="bn")
    step = minimized(loss_of(y, labels), updates=False)
    if not sick:
        tf.group(step, *v1.get_collection(v1.GraphKeys.UPDATE_OPS))


def evaluated_beside(sick):
    """The same variables a second time, for validation, with the moving statistics."""
    x, labels = x_and_labels()
    y = tf1.layers.batch_normalization(dense(x, "a"), training=True, name="bn")
    minimized(loss_of(y, labels), updates=not sick)
    with v1.variable_scope("", reuse=True):
        tf1.layers.batch_normalization(dense(x, "a"), training=False, name="bn")


def renormalized(sick):
    x, labels = x_and_labels()
    y = tf1.layers.batch_normalization(dense(x, "a"), training=phase_placeholder(), renorm=True, name="bn")
    minimized(loss_of(y, labels), updates=not sick)


def other_normalizations(sick):
    """A layer normalization has no moving statistics; the batch normalization behind it has."""
    x, labels = x_and_labels()
    x = tf1.contrib.layers.layer_norm(dense(x, "a"))
    y = tf1.layers.batch_normalization(x, training=True, name="bn")
    minimized(loss_of(y, labels), updates=not sick)


FORGOTTEN, FOREIGN, STILL = "EK301", "EK302", "EK304"
PROGRAMS = {
    "tf.layers, training=True": (layers(lambda: True), FORGOTTEN, "bn"),
    "tf.layers, a phase": (layers(phase_placeholder), FORGOTTEN, "bn"),
    "tf.layers, a phase with a default": (
        layers(lambda: v1.placeholder_with_default(False, [], "phase")),
        FORGOTTEN,
        "bn",
    ),
    "tf.layers, images": (images, FORGOTTEN, "bn"),
    "tf.contrib.layers": (contrib, FORGOTTEN, "bn"),
    "tf.contrib.layers, a phase": (contrib_phase, FORGOTTEN, "bn"),
    "slim": (slim, FORGOTTEN, "bn"),
    "a helper class": (helper, FORGOTTEN, "bn"),
    "averages of moments in a cond": (averages, FORGOTTEN, "bn"),
    "assigned averages": (assigned, FORGOTTEN, "bn"),
    "towers": (towers, FORGOTTEN, "net/bn"),
    "two networks": (adversarial, FOREIGN, "discriminator/bn"),
    "training=False": (inference_in_training, STILL, "bn"),
    "a frozen backbone": (frozen_backbone, STILL, "bn"),
    "only the head is trained": (nothing_before_is_trained, FORGOTTEN, "bn"),
    "a group": (grouped, FORGOTTEN, "bn"),
    "validation in the same graph": (evaluated_beside, FORGOTTEN, "bn"),
    "batch renormalization": (renormalized, FORGOTTEN, "bn"),
    "layer normalization beside": (other_normalizations, FORGOTTEN, "bn"),
}


# In TensorFlow 2 branches are functions.
IN_FUNCTIONS = [
    "tf.layers, a phase",
    "tf.layers, images",
    "averages of moments in a cond",
    "assigned averages",
    "a group",
]
CASES = [(name, OLD) for name in PROGRAMS] + [(name, NEW) for name in IN_FUNCTIONS]


@pytest.mark.parametrize(("name", "rules"), CASES, indirect=["rules"])
def test_a_sick_program(name, rules):
    program, rule, where = PROGRAMS[name]
    program(True)
    assert found(rules) == [(rule, "error", where)]


@pytest.mark.parametrize(("name", "rules"), [*CASES, ("tflearn", OLD)], indirect=["rules"])
def test_its_healthy_twin(name, rules):
    program = learn if name == "tflearn" else PROGRAMS[name][0]
    program(False)
    assert found(rules) == []
    assert of_kind(Updates, rules) or name == "a frozen backbone"


def test_values_momentum_and_epsilon_come_from_graph_and_session(rules):
    x, labels = x_and_labels()
    y = tf1.layers.batch_normalization(x, training=phase_placeholder(), momentum=0.9, epsilon=0.002, name="bn")
    train = minimized(loss_of(dense(y, "a"), labels))
    with v1.Session(graph=rules) as session:
        session.run(v1.global_variables_initializer())
        (before,) = of_kind(Normalizer, session)
        session.run(train, {"x:0": X, "labels:0": X[:, :3], "is_training:0": True})
        (after,) = of_kind(Normalizer, session, steps=7)
        np.testing.assert_array_equal(before.moving_mean, np.zeros(4))
        np.testing.assert_allclose(after.moving_mean, session.run(v1.global_variables()[2]))
    assert (after.name, after.momentum, after.epsilon, after.steps) == ("bn", 0.9, 0.002, 7)


def test_data_shows_what_the_normalizers_of_a_session_see(rules):
    x, labels = x_and_labels()
    phase = phase_placeholder()
    y = tf1.layers.batch_normalization(x, training=phase, name="bn")
    minimized(loss_of(dense(y, "a"), labels))
    with v1.Session(graph=rules) as session:
        session.run(v1.global_variables_initializer())
        feed = lambda batch: {x: batch, labels: batch[:, :3]}  # noqa: E731
        (observed,) = of_kind(Observed, session, data=X, batch_size=4, phase=phase, feed=feed)
    (layer,) = observed.seen
    np.testing.assert_allclose(layer.moments.mean, X.mean(0), rtol=1e-5)
    assert layer.normalizer.name == "bn" and layer.normalizer.epsilon == 0.001


def test_data_needs_a_session(rules):
    layers(phase_placeholder)(False)
    assert [item.why for item in of_kind(Unseen, rules, data=X)] == ["only a session runs a graph"]
    assert of_kind(Unseen, rules) == []


def test_a_session_without_values_is_a_graph(rules):
    layers(phase_placeholder)(False)
    with v1.Session(graph=rules) as session:
        (normalizer,) = of_kind(Normalizer, session)
    assert normalizer.name == "bn" and normalizer.moving_mean is None


def test_statistics_that_moved_were_updated_by_something(rules):
    x, labels = x_and_labels()
    y = tf1.layers.batch_normalization(x, training=True, name="bn")
    train = minimized(loss_of(dense(y, "a"), labels), updates=False)
    with v1.Session(graph=rules) as session:
        session.run(v1.global_variables_initializer())
        session.run([train, v1.get_collection(v1.GraphKeys.UPDATE_OPS)], {"x:0": X, "labels:0": X[:, :3]})
        assert found(session) == [("EK301", "warning", "bn")]
        together = [train, *v1.get_collection(v1.GraphKeys.UPDATE_OPS)]
        assert found(session, train_op=together) == []


def test_the_train_operation_may_be_the_subject(rules):
    x, labels = x_and_labels()
    y = tf1.layers.batch_normalization(dense(x, "a"), training=True, name="bn")
    train = minimized(loss_of(y, labels), updates=False)
    minimized(loss_of(y, labels), name="other")
    assert found(rules) == []  # the other runs the updates
    assert found(train) == [("EK301", "error", "bn")]


def test_gradients_without_a_train_operation_say_that_it_is_for_training(rules):
    x, labels = x_and_labels()
    y = tf1.layers.batch_normalization(dense(x, "a"), training=True, name="bn")
    tf.gradients(loss_of(y, labels), v1.trainable_variables())
    assert found(rules) == []
    assert [item.remedy for item in of_kind(Unseen, rules)] == ["give train_op="]


def test_a_train_operation_of_another_graph(rules):
    layers(lambda: True)(False)
    with pytest.raises(ArgumentError, match="train_op 'nowhere' is not in the graph"):
        examined(rules, train_op="nowhere")


def test_one_variable_is_left_out(rules):
    x, labels = x_and_labels()
    y = tf1.layers.batch_normalization(dense(x, "a"), training=True, name="bn")
    minimized(loss_of(y, labels), updates=v1.get_collection(v1.GraphKeys.UPDATE_OPS)[:1])
    (updates,) = of_kind(Updates, rules)
    assert updates.unreached == ("bn/moving_variance",)
    assert found(rules) == [("EK301", "error", "bn")]


def test_the_placeholder_of_the_phase(rules):
    layers(phase_placeholder)(False)
    (placeholder,) = of_kind(Placeholder, rules)
    assert placeholder.name == "is_training" and placeholder.fed is None and not placeholder.default
    (fed,) = of_kind(Placeholder, rules, phase=rules.get_tensor_by_name("is_training:0"))
    assert fed.fed is True and fed.normalizers == ("bn",)


@pytest.mark.parametrize("sick", [False, True])
def test_an_estimator(sick, tmp_path):
    def model_fn(features, labels, mode):
        training = mode == tf1.estimator.ModeKeys.TRAIN
        y = tf1.layers.batch_normalization(dense(features, "a"), training=training, name="bn")
        loss = loss_of(y, labels)
        before = [] if sick else v1.get_collection(v1.GraphKeys.UPDATE_OPS)
        with tf.control_dependencies(before):
            optimizer = v1.train.GradientDescentOptimizer(0.1)
            train = optimizer.minimize(loss, global_step=v1.train.get_global_step())
        return tf1.estimator.EstimatorSpec(mode, loss=loss, train_op=train)

    def rows():
        return tf.data.Dataset.from_tensors((X, X[:, :3])).repeat()

    estimator = tf1.estimator.Estimator(model_fn, str(tmp_path))
    with pytest.warns(UpdatesNotRunWarning) if sick else contextlib.nullcontext():
        estimator.train(rows, steps=2)
    assert found(tmp_path / "model.ckpt-2.meta") == ([("EK301", "error", "bn")] if sick else [])
    (normalizer,) = of_kind(Normalizer, tmp_path / "model.ckpt-2.meta")
    assert normalizer.moving_mean.any() != sick


@pytest.mark.parametrize("sick", [False, True])
def test_keras_of_tensorflow_1(sick, rules):
    with v1.Session(graph=rules).as_default() as session:
        keras = tf1.keras
        keras.backend.set_session(session)
        normalizer = keras.layers.BatchNormalization(name="bn")
        if sick:
            x = keras.Input((4,))
            y = normalizer(keras.layers.Dense(3)(x), training=True)
            minimized(tf.reduce_mean(y**2), updates=False)
        else:
            model = keras.Sequential([keras.layers.Dense(3, input_shape=(4,)), normalizer])
            model.compile("sgd", "mse")
            model.fit(X, X[:, :3], epochs=1, verbose=0)
        assert found(rules) == ([("EK301", "error", "bn")] if sick else [])


# Graphs for inference.


def saved(folder, session, inputs, outputs):
    v1.saved_model.simple_save(session, str(folder), inputs, outputs)
    return folder


def exported(folder, training, *, feeds=True, shape=(4,)):
    x = v1.placeholder("float32", [None, *shape], "x")
    phase = training() if callable(training) else training
    y = tf1.layers.batch_normalization(x, training=phase, name="bn")
    with v1.Session() as session:
        session.run(v1.global_variables_initializer())
        inputs = {"x": x, "phase": phase} if callable(training) and feeds else {"x": x}
        return saved(folder / "model", session, inputs, {"y": y})


def default(value):
    return lambda: v1.placeholder_with_default(value, [], "is_training")


EXPORTS = {
    "training=False": (False, True, []),
    "training=True": (True, True, [("EK303", "error", "bn")]),
    "a constant": (lambda: tf.constant(True), True, [("EK303", "error", "bn")]),
    "a phase that is fed": (phase_placeholder, True, []),
    "a phase that nothing feeds": (phase_placeholder, False, [("EK305", "error", "is_training")]),
    "a phase with a default": (default(False), False, []),
    "a phase with the wrong default": (default(True), False, [("EK303", "error", "bn")]),
    "a phase with the wrong default, fed": (default(True), True, []),
}


@pytest.mark.parametrize(("shape", "rules"), [((4,), OLD), ((4, 4, 2), NEW)], ids=str, indirect=["rules"])
@pytest.mark.parametrize("name", EXPORTS)
def test_a_saved_model(name, shape, rules, tmp_path):
    training, feeds, wanted = EXPORTS[name]
    assert found(exported(tmp_path, training, feeds=feeds, shape=shape)) == wanted


@pytest.mark.parametrize("training", [False, True])
def test_a_frozen_graph(training, rules, tmp_path):
    x = v1.placeholder("float32", [None, 4], "x")
    y = tf.identity(tf1.layers.batch_normalization(x, training=training, name="bn"), "y")
    with v1.Session() as session:
        session.run(v1.global_variables_initializer())
        session.run(v1.assign(v1.global_variables()[2], X[0]))
        frozen = v1.graph_util.convert_variables_to_constants(session, rules.as_graph_def(), [y.op.name])
    (tmp_path / "model.pb").write_bytes(frozen.SerializeToString())
    assert found(tmp_path / "model.pb") == ([("EK303", "error", "bn")] if training else [])
    if not training:
        (normalizer,) = of_kind(Normalizer, tmp_path / "model.pb")
        np.testing.assert_array_equal(normalizer.moving_mean, X[0])


@pytest.mark.parametrize("training", [False, True])
def test_a_model_that_tensorflow_2_saved(training, tmp_path):
    """Everything stands in functions, and the file has names of its own for the variables."""

    class Model(tf.Module):
        def __init__(self):
            super().__init__()
            self.moving_mean = tf.Variable(tf.zeros(4), name="bn/moving_mean")
            self.moving_variance = tf.Variable(tf.ones(4), name="bn/moving_variance")

        @tf.function(input_signature=[tf.TensorSpec([None, 4], name="x")])
        def __call__(self, x):
            mean, variance = tf.nn.moments(x, [0]) if training else (self.moving_mean, self.moving_variance)
            return tf.nn.batch_normalization(x, mean, variance, None, None, 1e-3)

    model = Model()
    model.moving_mean.assign(X[0])
    tf.saved_model.save(model, str(tmp_path), signatures=model.__call__)
    (normalizer,) = of_kind(Normalizer, tmp_path)
    np.testing.assert_array_equal(normalizer.moving_mean, X[0])
    phases = of_kind(Phase, tmp_path)
    assert [phase.batch for phase in phases] == ([True] if training else [])


# Files of TensorFlow 1.15.

HEALTHY = ["a1_contrib_mlp", "b1_layers_conv", "e1_slim_resnet_block", "g1_v1_format_mlp", "h1_trainable_only_mlp"]


@pytest.mark.parametrize("name", HEALTHY)
def test_a_graph_that_1_15_wrote(name):
    path = CHECKPOINTS / name / "model.ckpt-60.meta"
    assert graph.recognises(path) and found(path) == []
    updates, normalizers = of_kind(Updates, path), of_kind(Normalizer, path)
    assert {item.name for item in updates} == {item.name for item in normalizers}
    assert {item.momentum for item in normalizers} == {0.9}


def test_a_graph_that_1_15_wrote_without_running_updates():
    path = CHECKPOINTS / "i1_updates_never_run_mlp" / "model.ckpt-60.meta"
    assert found(path) == [("EK301", "error", "bn0"), ("EK301", "error", "bn1")]


def test_the_cause_comes_first():
    report = evenkeel.diagnose(CHECKPOINTS / "i1_updates_never_run_mlp" / "model.ckpt-60.meta")
    assert [(finding.rule, finding.where) for finding in report.errors[:2]] == [("EK301", "bn0"), ("EK301", "bn1")]
    assert {finding.rule for finding in report.errors} == {"EK301", "EK101"}


def test_an_estimator_of_1_15():
    assert found(CHECKPOINTS / "c1_estimator_mlp" / "model_dir" / "model.ckpt-100.meta") == []


def test_a_saved_model_of_1_15():
    path = CHECKPOINTS / "f1_saved_model_mlp" / "saved_model"
    assert graph.recognises(path) and graph.recognises(path / "saved_model.pb") and found(path) == []
    assert [item.moving_mean.any() for item in of_kind(Normalizer, path)] == [True, True]


# Files that are none.


@pytest.mark.parametrize("name", ["model.meta", "model.pb", "model.pbtxt"])
def test_a_file_that_is_no_graph(name, tmp_path):
    (tmp_path / name).write_bytes(b"\x0a\xff\xff\xff\xff not a graph")
    with pytest.raises(InputError, match=f"{name} cannot be read as a graph"):
        examined(tmp_path / name)


def test_a_file_without_operations(tmp_path):
    (tmp_path / "model.pb").write_bytes(b"")
    with pytest.raises(InputError, match="holds no graph"):
        examined(tmp_path / "model.pb")


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        examined(tmp_path / "model.meta")


def described(text):
    from google.protobuf import text_format

    return text_format.Parse(text, v1.GraphDef())


HOSTILE = {
    "an input that is not there": (
        'node { name: "a" op: "Identity" input: "b" }',
        "a takes b, which the graph does not have",
    ),
    "an operation without inputs": (
        'node { name: "a" op: "Switch" }',
        "a is a Switch with 0 inputs",
    ),
    "a function that calls itself": (
        'node { name: "a" op: "f" } library { function { signature { name: "f" } node_def { name: "b" op: "f" } } }',
        "functions call each other 31 deep",
    ),
    "functions that double": (
        'node { name: "a" op: "f0" } library {'
        + "".join(
            f'function {{ signature {{ name: "f{n}" }} node_def {{ name: "a" op: "f{n + 1}" }}'
            f' node_def {{ name: "b" op: "f{n + 1}" }} }}'
            for n in range(29)
        )
        + "}",
        "more than",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_crafted_file(name, tmp_path, monkeypatch):
    text, message = HOSTILE[name]
    monkeypatch.setattr("evenkeel.doctor.subjects.graph.nodes._MOST_NODES", 10_000)
    (tmp_path / "model.pb").write_bytes(described(text).SerializeToString())
    with pytest.raises(InputError, match=message):
        examined(tmp_path / "model.pb")


CHAIN = 5000
STRANGE = {
    "a circle": """node { name: "bn/moving_mean" op: "VariableV2" }
        node { name: "a" op: "Identity" input: "b" } node { name: "b" op: "Identity" input: "a" }
        node { name: "c" op: "AssignSub" input: "a" input: "b" }
        node { name: "d" op: "AssignSub" input: "bn/moving_mean" input: "b" }""",
    "a long chain of choices": """node { name: "x0" op: "Placeholder" } node { name: "c0" op: "Const" }
        node { name: "s" op: "Switch" input: "x0" input: "c5000" } node { name: "f" op: "FusedBatchNorm" input: "s"
        input: "x0" input: "x0" }"""
    + "".join(f'node {{ name: "c{n}" op: "LogicalNot" input: "c{n - 1}" }}' for n in range(1, CHAIN + 1)),
}


@pytest.mark.parametrize("name", STRANGE)
def test_a_strange_file_is_looked_at_to_its_end(name, tmp_path):
    (tmp_path / "model.pb").write_bytes(described(STRANGE[name]).SerializeToString())
    assert found(tmp_path / "model.pb") == []


def test_a_constant_of_a_size_that_nobody_has(tmp_path):
    text = """node { name: "bn/moving_mean" op: "Const" attr { key: "value" value { tensor {
        dtype: DT_FLOAT float_val: 1 tensor_shape { dim { size: 1000000000000 } } } } } }"""
    (tmp_path / "model.pb").write_bytes(described(text).SerializeToString())
    (normalizer,) = of_kind(Normalizer, tmp_path / "model.pb")
    assert normalizer.moving_mean is None


def test_what_is_recognised(rules, tmp_path):
    tensor = tf.zeros([])
    with v1.Session(graph=rules) as session:
        assert all(graph.recognises(item) for item in (rules, session, tensor, tensor.op, "model.meta", "model.pb"))
    assert not any(graph.recognises(item) for item in ("model.h5", tmp_path, 3, None, np.zeros(3), sys))


def test_a_tensor_of_tensorflow_2_is_none():
    assert not graph.recognises(tf.zeros([]))
