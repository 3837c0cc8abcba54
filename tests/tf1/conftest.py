# SPDX-License-Identifier: Apache-2.0
"""TensorFlow as `tf.disable_v2_behavior()` leaves it, for one test; the process has TensorFlow 2 again afterwards."""

import contextlib
import os

import pytest

SWITCHES = ("control_flow_v2", "resource_variables", "tensor_equality", "v2_tensorshape")


def pytest_collection_modifyitems(items):
    if os.environ.get("KERAS_BACKEND") != "tensorflow":
        for item in items:
            if "tests/tf1" in item.path.as_posix():
                item.add_marker(pytest.mark.skip(reason="tf1 is TensorFlow's"))


@contextlib.contextmanager
def _fresh_graph():
    import tensorflow as tf

    for switch in SWITCHES:
        getattr(tf.compat.v1, f"disable_{switch}")()
    try:
        with tf.Graph().as_default() as graph:
            yield graph
    finally:
        for switch in SWITCHES:
            getattr(tf.compat.v1, f"enable_{switch}")()


@pytest.fixture(scope="session")
def fresh_graph():
    """`with fresh_graph() as graph:` is what `graph` gives a test, for as long as a fixture wants it."""
    return _fresh_graph


@pytest.fixture
def graph():
    """A fresh graph under TensorFlow 1's rules: reference variables, `Dimension`s, old control flow."""
    with _fresh_graph() as graph:
        yield graph


@pytest.fixture
def session(graph):
    """A session of `graph`, on one thread."""
    import tensorflow as tf

    config = tf.compat.v1.ConfigProto(intra_op_parallelism_threads=1)
    with tf.compat.v1.Session(graph=graph, config=config) as session:
        yield session
