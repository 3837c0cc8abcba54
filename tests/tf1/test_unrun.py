# SPDX-License-Identifier: Apache-2.0
"""Which normalizers were trained without their updates: only those, and all of them."""

import numpy as np
import pytest
import tensorflow as tf

import evenkeel.tf1 as tf1
from evenkeel.tf1 import unrun
from evenkeel.tf1.keras.normalization import called_in

v1 = tf.compat.v1
X = np.ones([4, 3], "float32")


def fully(x, scope, phase):
    return tf1.contrib.layers.batch_norm(x, is_training=phase, scope=scope)


def layers(x, scope, phase):
    return tf1.layers.batch_normalization(x, training=phase, name=scope)


def keras(x, scope, phase):
    return tf1.keras.layers.BatchNormalization(name=scope)(x, training=phase)


@pytest.fixture
def built(session, request):
    """Two normalizers in a row, and what trains them without and with their updates."""
    x = v1.placeholder(tf.float32, [None, 3], "x")
    normalization, phase = request.param
    if phase == "fed":
        phase = v1.placeholder_with_default(True, [])
    y = normalization(normalization(x, "one", phase), "net_two", phase)
    optimizer = v1.train.GradientDescentOptimizer(0.1)
    loss = tf.reduce_sum(y**2)
    updates = v1.get_collection(v1.GraphKeys.UPDATE_OPS)
    updates += [update for layer in called_in(session.graph) for update in layer.updates]
    with tf.control_dependencies(updates):
        both = optimizer.minimize(loss)
    return {"loss": loss, "train": optimizer.minimize(loss), "both": both, "updates": updates, "x": x}


def never_updated(session, built, *fetches):
    with unrun.watched() as graphs:
        session.run(v1.global_variables_initializer())
        for fetch in fetches:
            session.run(fetch, {built["x"]: X})
    return sorted(name for seen in graphs for name in seen.never_updated())


RUNS = {
    "nothing trained": (["loss"], []),
    "trained": (["train"], ["net_two", "one"]),
    "trained, with the updates": (["both"], []),
    "one after the other": (["train", "updates"], []),
}
FORMS = [(normalization, phase) for normalization in (fully, layers, keras) for phase in (True, "fed")]
forms = pytest.mark.parametrize("built", FORMS, indirect=True, ids=lambda form: f"{form[0].__name__}, {form[1]}")


@forms
@pytest.mark.parametrize(("names", "wanted"), RUNS.values(), ids=RUNS)
def test_who_is_named(session, built, names, wanted):
    assert never_updated(session, built, *(built[name] for name in names)) == wanted


@forms
def test_one_of_two(session, built):
    first = [update for update in built["updates"] if update.name.startswith("one/")]
    assert len(first) == 2
    assert never_updated(session, built, [built["train"], first]) == ["net_two"]


NESTED = {
    "a dict": lambda both: {"a": [both], 3: (both,)},
    "a name": lambda both: both.name,
    "a sparse tensor beside it": lambda both: [both, tf.SparseTensor([[0]], [1.0], [1])],
}


@forms
def test_a_normalizer_that_saw_no_batch_is_not_named(session, built, request):
    """A second model, loaded to compare with."""
    normalization, _ = request.node.callspec.params["built"]
    normalization(v1.placeholder(tf.float32, [None, 3]), "other", True)
    assert never_updated(session, built, built["train"]) == ["net_two", "one"]


@pytest.mark.parametrize("built", [(layers, True)], indirect=True)
@pytest.mark.parametrize("nest", NESTED.values(), ids=NESTED)
def test_fetches_of_all_kinds(session, built, nest):
    assert never_updated(session, built, built["train"], nest(built["both"])) == []


@pytest.mark.parametrize("built", [(layers, True)], indirect=True)
def test_monitored_sessions_are_seen(session, built):
    with unrun.watched() as graphs, v1.train.MonitoredSession() as monitored:
        monitored.run(built["train"], {built["x"]: X})
    assert [seen.never_updated() for seen in graphs] == [["one", "net_two"]]


def test_sessions_are_as_before():
    with unrun.watched():
        assert "run" in vars(v1.Session)
    assert "run" not in vars(v1.Session) and "run" not in vars(v1.InteractiveSession)
