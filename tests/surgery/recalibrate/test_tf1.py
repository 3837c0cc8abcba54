# SPDX-License-Identifier: Apache-2.0
"""Sessions of TensorFlow 1, recalibrated: graphs that 1.15 wrote, and graphs of evenkeel.tf1."""

import json

import numpy as np
import pytest

import oracle
from conftest import GOLDENS, NAME

if NAME != "tensorflow":
    pytest.skip("of TensorFlow", allow_module_level=True)

import tensorflow as tf

import evenkeel.tf1 as tf1
from evenkeel.errors import ArgumentError, InputError
from evenkeel.surgery.recalibrate import recalibrate

v1 = tf.compat.v1
METHODS = ["pooled", "sequential"]
SWITCHES = ("control_flow_v2", "resource_variables", "tensor_equality", "v2_tensorshape")


@pytest.fixture
def session(request):
    """Under TensorFlow 1's rules; reference variables, unless a test asks for resource variables."""
    for switch in SWITCHES:
        getattr(v1, f"disable_{switch}")()
    if getattr(request, "param", None) == "resource variables":
        v1.enable_resource_variables()
    try:
        with tf.Graph().as_default() as graph, v1.Session(graph=graph) as session:
            v1.set_random_seed(0)
            yield session
    finally:
        for switch in SWITCHES:
            getattr(v1, f"enable_{switch}")()


def golden(name):
    folder = GOLDENS / "checkpoints" / name
    with np.load(folder / "io.npz") as arrays:
        return folder, json.loads((folder / "meta.json").read_text()), dict(arrays)


DESTROYED = ["h1_trainable_only_mlp", "i1_updates_never_run_mlp"]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", DESTROYED)
def test_destroyed_statistics_come_back(name, method, session):
    folder, meta, arrays = golden(name)
    prefix, graph = str(folder / meta["checkpoint_prefix"]), session.graph
    saver = tf1.train.import_meta_graph(f"{prefix}.meta")
    session.run(v1.global_variables_initializer())  # and what is not in the file keeps its start
    saver.restore(session, prefix)
    x, phase, logits = (graph.get_tensor_by_name(meta["tensors"][key]) for key in ("input", "is_training", "logits"))

    def accuracy():
        return (session.run(logits, {x: arrays["x"], phase: False}).argmax(-1) == arrays["labels"]).mean()

    report = recalibrate(
        session,
        (arrays["x_calibration"], arrays["labels_calibration"]),
        feed=lambda batch: {x: batch},
        phase=phase,
        method=method,
        keep_if_better=accuracy,
    )
    key = next(key for key in meta["accuracy"] if key in ("y_infer", "y_infer_initial_statistics"))
    assert report.before == pytest.approx(meta["accuracy"][key]) and report.before < 0.9
    assert report.after >= 0.95 and report.kept == "new"
    assert [item.values for item in report.renewed] == [136, 136]


def test_what_is_found_is_what_was_trained(session):
    folder, meta, arrays = golden("h1_trainable_only_mlp")
    prefix, graph = str(folder / meta["checkpoint_prefix"]), session.graph
    saver = tf1.train.import_meta_graph(f"{prefix}.meta")
    session.run(v1.global_variables_initializer())
    saver.restore(session, prefix)
    x, phase, logits = (graph.get_tensor_by_name(meta["tensors"][key]) for key in ("input", "is_training", "logits"))
    recalibrate(session, arrays["x_calibration"], feed=lambda batch: {x: batch}, phase=phase, batch_size=34)
    found = session.run(logits, {x: arrays["x"], phase: False})
    wanted = arrays["y_infer_true_statistics"]  # of moving averages of the training data
    assert np.abs(found - wanted).max() < 0.25 * np.ptp(wanted)
    assert (found.argmax(-1) == wanted.argmax(-1)).all()


def dense(x):
    return v1.matmul(x, v1.get_variable("kernel", initializer=np.linspace(-1, 1, 12).reshape(4, 3).astype("float32")))


def layers(x, phase):
    return tf1.layers.batch_normalization(x, training=phase)


def not_fused(x, phase):
    return tf1.layers.batch_normalization(x, training=phase, fused=False)


def contrib(x, phase):
    return tf1.contrib.layers.batch_norm(x, is_training=phase)


def contrib_in_place(x, phase):
    return tf1.contrib.layers.batch_norm(x, is_training=phase, updates_collections=None)


def contrib_debiased(x, phase):
    return tf1.contrib.layers.batch_norm(x, is_training=phase, zero_debias_moving_mean=True)


def slim(x, phase):
    return tf1.contrib.slim.batch_norm(x, is_training=phase, decay=0.9, fused=False)


def keras_layer(x, phase):
    return tf1.keras.layers.BatchNormalization()(x, training=phase)


def reused(x, phase):
    with v1.variable_scope("shared"):
        tf1.layers.batch_normalization(x, training=phase, name="bn")
        return tf1.layers.batch_normalization(x, training=False, name="bn", reuse=True)


FUSED = {"layers", "contrib", "contrib_in_place", "contrib_debiased", "keras_layer"}  # for images: keeps the sample's
FUNCTIONS = [layers, not_fused, contrib, contrib_in_place, contrib_debiased, slim, keras_layer, reused]
SHAPES = {"rows-sequential": ([4], "sequential"), "images-pooled": ([5, 6, 4], "pooled")}


def built(normalize, shape, phase):
    x = v1.placeholder(tf.float32, [None, *shape])
    hidden = tf.nn.relu(normalize(x, phase))
    if normalize is not reused:
        normalize(hidden[..., :3], phase)
    return x


def moving(session):
    values = {variable.op.name: session.run(variable) for variable in v1.global_variables()}
    return {name: value for name, value in values.items() if name.endswith(("moving_mean", "moving_variance"))}


@pytest.mark.parametrize(("shape", "method"), SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("normalize", FUNCTIONS, ids=lambda function: function.__name__)
def test_graphs_of_ours(normalize, shape, method, session):
    phase = v1.placeholder_with_default(False, [])
    x = built(normalize, shape, phase)
    session.run(v1.global_variables_initializer())
    others = {variable.op.name: session.run(variable) for variable in v1.global_variables()}
    session.graph.finalize()
    data = np.random.default_rng(0).normal(3, 2, (20, *shape)).astype("float32")
    report = recalibrate(session, data, feed=lambda batch: {x: batch}, phase=phase, batch_size=8, method=method)
    found = moving(session)
    assert len(report.renewed) == len(found) / 2 and report.left == {}
    mean, variance, count = oracle.moments(data)
    sample = variance * count / (count - 1)
    fused = normalize.__name__ in (*FUSED, "reused") and len(shape) == 3
    fused = fused or normalize in (contrib, contrib_in_place, contrib_debiased)  # of rows too
    first = [value for name, value in found.items()][:2]
    np.testing.assert_allclose(first[0], mean, rtol=1e-6)
    np.testing.assert_allclose(first[1], sample if fused else variance, rtol=1e-6)
    after = {variable.op.name: session.run(variable) for variable in v1.global_variables()}
    assert [name for name in after if (after[name] != others[name]).any()] == list(found)


@pytest.mark.parametrize("session", ["reference variables", "resource variables"], indirect=True)
@pytest.mark.parametrize("method", METHODS)
def test_the_second_normalizer_sees_what_the_method_says(method, session):
    phase = v1.placeholder(tf.bool, [])
    x = v1.placeholder(tf.float32, [None, 4])
    layers(dense(layers(x, phase)), phase)
    session.run(v1.global_variables_initializer())
    data = np.random.default_rng(0).normal(3, 2, (20, 4)).astype("float32")
    recalibrate(session, data, feed=lambda batch: {x: batch}, phase=phase, batch_size=8, method=method)
    parts = [data] if method == "sequential" else np.split(data, [8, 16])
    normalized = [oracle.normalize(part, *oracle.moments(part)[:2]) for part in parts]
    mean, variance, _ = oracle.moments(np.concatenate(normalized) @ np.linspace(-1, 1, 12).reshape(4, 3))
    found = list(moving(session).values())[2:]
    np.testing.assert_allclose(found, [mean, variance], rtol=1e-5, atol=1e-5)


def test_a_graph_built_for_training_needs_no_phase(session):
    x = v1.placeholder(tf.float32, [None, 4])
    layers(x, True)
    session.run(v1.global_variables_initializer())
    data = np.random.default_rng(0).normal(3, 2, (20, 4)).astype("float32")
    recalibrate(session, [{"Placeholder:0": part} for part in np.split(data, [8, 16])])
    np.testing.assert_allclose(list(moving(session).values()), oracle.moments(data)[:2], rtol=1e-6)


def test_a_dictionary_of_phases(session):
    phase, keep = v1.placeholder(tf.bool, []), v1.placeholder(tf.float32, [])
    x = v1.placeholder(tf.float32, [None, 4])
    layers(x * keep, phase)
    session.run(v1.global_variables_initializer())
    data = np.random.default_rng(0).normal(3, 2, (20, 4)).astype("float32")
    phases = {phase: True, keep: 2.0}
    recalibrate(session, data, feed=lambda batch: {x: batch}, phase=phases, method="sequential")
    np.testing.assert_allclose(list(moving(session).values()), oracle.moments(2 * data)[:2], rtol=1e-6)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("session", ["reference variables", "resource variables"], indirect=True)
@pytest.mark.parametrize("normalize", [layers, contrib_in_place], ids=lambda function: function.__name__)
def test_an_exception_leaves_all_as_it_was(normalize, method, session):
    phase = v1.placeholder_with_default(False, [])
    x = built(normalize, [4], phase)
    session.run(v1.global_variables_initializer())
    before = session.run(v1.global_variables())

    def batches():
        yield np.ones([8, 4]) * np.arange(8)[:, None]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        recalibrate(session, batches, feed=lambda batch: {x: batch}, phase=phase, method=method)
    assert all(map(np.array_equal, before, session.run(v1.global_variables())))


def weighted(x):
    return tf1.contrib.layers.batch_norm(x, is_training=True, batch_weights=tf.linspace(0.0, 1.0, tf.shape(x)[0]))


def renorm(x):
    return tf1.layers.batch_normalization(x, training=True, renorm=True)


@pytest.mark.parametrize(
    ("normalize", "said"), [(weighted, "no tensor before its update"), (renorm, "batch renormalization")]
)
def test_what_cannot_be_recalibrated_keeps_its_statistics(normalize, said, session):
    x = v1.placeholder(tf.float32, [None, 4])
    normalize(x)
    session.run(v1.global_variables_initializer())
    before = moving(session)
    data = np.random.default_rng(0).normal(3, 2, (20, 4)).astype("float32")
    report = recalibrate(session, data, feed=lambda batch: {x: batch})
    (reason,) = report.left.values()
    assert reason.startswith(said) and report.renewed == []
    assert all(np.array_equal(before[name], value) for name, value in moving(session).items())


@pytest.mark.parametrize(
    ("training", "options", "error", "said"),
    [
        (False, {}, InputError, "the graph has no operation that updates a moving_mean"),
        (True, {"method": "sequential"}, ArgumentError, 'method="sequential" needs the graph in inference; give phase'),
        (True, {}, ArgumentError, "feed is missing, and a batch is a ndarray"),
        (True, {"keep_if_better": (np.zeros((2, 4)), [0, 1])}, ArgumentError, "feed is missing|cannot compare"),
    ],
)
def test_what_is_missing_is_said(training, options, error, said, session):
    layers(v1.placeholder(tf.float32, [None, 4]), training)
    session.run(v1.global_variables_initializer())
    with pytest.raises(error, match=said):
        recalibrate(session, np.zeros((8, 4)), **options)


def test_what_is_not_seen_to_be_updated_is_listed(session):
    x, phase = v1.placeholder("float32", [None, 4]), v1.placeholder("bool", [])
    tf1.layers.batch_normalization(tf1.layers.batch_normalization(x, training=phase, name="a"), name="b")
    session.run(v1.global_variables_initializer())
    data = np.random.default_rng(0).normal(size=(20, 4))
    report = recalibrate(session, data, feed=lambda batch: {x: batch}, phase=phase)
    assert [item.name for item in report.renewed] == ["a"]
    assert list(report.left) == ["b"] and "no operation that updates it" in report.left["b"]


@pytest.mark.parametrize("method", METHODS)
def test_branches_of_tensorflow_2(method, session):
    v1.enable_control_flow_v2()
    x, phase = v1.placeholder("float32", [None, 6, 6, 3]), v1.placeholder("bool", [])
    tf1.layers.batch_normalization(x, training=phase)
    session.run(v1.global_variables_initializer())
    data = np.random.default_rng(0).normal(2, 3, (20, 6, 6, 3))
    recalibrate(session, data, feed=lambda batch: {x: batch}, phase=phase, method=method, batch_size=8)
    (mean,) = (variable for variable in v1.global_variables() if variable.op.name.endswith("moving_mean"))
    np.testing.assert_allclose(session.run(mean), data.mean((0, 1, 2)), rtol=1e-5)
