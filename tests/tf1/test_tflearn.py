# SPDX-License-Identifier: Apache-2.0
"""`tflearn.batch_normalization`: numbers by longhand, names and collections by the notes on the real one."""

import numpy as np
import pytest
import tensorflow as tf

from evenkeel.tf1 import tflearn

v1 = tf.compat.v1

X = np.random.default_rng(0).normal(3.0, 2.0, (4, 5, 2)).astype("float32")


def names(collection):
    return [item.op.name for item in v1.get_collection(collection)]


def normalized(x, mean, variance, epsilon=1e-5):
    return (x - mean) / np.sqrt(variance + epsilon)


@pytest.fixture
def layer(session):
    """Placeholder and output, with a scale of one, initialized."""
    x = v1.placeholder("float32", [None, *X.shape[1:]])
    y = tflearn.batch_normalization(x, stddev=0.0)
    session.run(v1.global_variables_initializer())
    return x, y


def moving(session):
    return session.run(v1.global_variables()[2:4])


def test_it_starts_in_inference(layer, session):
    x, y = layer
    np.testing.assert_allclose(session.run(y, {x: X}), normalized(X, 0.0, 1.0), rtol=1e-5)
    mean, variance = moving(session)
    assert mean.tolist() == [0.0, 0.0] and variance.tolist() == [1.0, 1.0]


def test_training_takes_the_batch_and_moves(layer, session):
    x, y = layer
    tflearn.is_training(True)
    mean, variance = X.mean((0, 1)), X.var((0, 1))
    np.testing.assert_allclose(session.run(y, {x: X}), normalized(X, mean, variance), rtol=1e-4, atol=1e-5)
    for got, wanted in zip(moving(session), (0.1 * mean, 0.9 + 0.1 * variance), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-5)


def test_it_goes_back_to_inference(layer, session):
    x, y = layer
    tflearn.is_training(True, session)
    session.run(y, {x: X})
    tflearn.is_training(False, session)
    kept = moving(session)
    np.testing.assert_allclose(session.run(y, {x: X}), normalized(X, *kept), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(kept, moving(session))


def test_switching_adds_nothing_to_the_graph(layer, session):
    session.graph.finalize()
    tflearn.is_training(True)
    assert session.run(tflearn.get_training_mode())


def test_names_and_collections(graph):
    y = tflearn.batch_normalization(tf.constant(X))
    variables = [f"BatchNormalization/{name}" for name in ("beta", "gamma", "moving_mean", "moving_variance")]
    variables.append("BatchNormalization/is_training")
    assert names(v1.GraphKeys.GLOBAL_VARIABLES) == variables
    assert names(v1.GraphKeys.MODEL_VARIABLES) == variables
    assert names(v1.GraphKeys.TRAINABLE_VARIABLES) == variables[:2]
    assert names("layer_variables/BatchNormalization") == variables[:2]
    assert v1.get_collection("layer_tensor/BatchNormalization") == [y]
    assert names("restore_variables") == names(v1.GraphKeys.UPDATE_OPS) == []
    assert (y.scope.name, y.beta.op.name, y.gamma.op.name) == ("BatchNormalization", *variables[:2])
    assert y.shape.as_list() == list(X.shape)


def test_the_second_has_a_number_and_the_same_switch(graph):
    for _ in range(2):
        tflearn.batch_normalization(tf.constant(X), name="Norm")
    made = names(v1.GraphKeys.GLOBAL_VARIABLES)
    assert made[4:6] == ["Norm/is_training", "Norm_1/beta"] and len(made) == 9


def test_what_is_not_restored_is_in_restore_variables(graph):
    tflearn.batch_normalization(tf.constant(X), restore=False, trainable=False)
    assert names("restore_variables") == names(v1.GraphKeys.GLOBAL_VARIABLES)[:4]
    assert not names(v1.GraphKeys.TRAINABLE_VARIABLES)


def test_reuse_shares_the_variables(graph):
    tflearn.batch_normalization(tf.constant(X), scope="shared")
    made = names(v1.GraphKeys.GLOBAL_VARIABLES)
    y = tflearn.batch_normalization(tf.constant(X), scope="shared", reuse=True)
    assert names(v1.GraphKeys.GLOBAL_VARIABLES) == made and y.beta.op.name == "shared/beta"


def test_reuse_needs_a_scope(graph):
    with pytest.raises(ValueError, match="reuse"):
        tflearn.batch_normalization(tf.constant(X), reuse=True)


def test_float16_is_refused(graph):
    with pytest.raises(TypeError):
        tflearn.batch_normalization(tf.constant(X, "float16"))


def test_scale_starts_near_gamma_and_offset_at_beta(session):
    v1.set_random_seed(0)
    y = tflearn.batch_normalization(tf.zeros([1, 10_000]), beta=0.5, gamma=2.0, stddev=0.1)
    session.run(v1.global_variables_initializer())
    beta, gamma = session.run([y.beta, y.gamma])
    assert set(beta) == {0.5}
    assert gamma.mean() == pytest.approx(2.0, abs=0.01) and gamma.std() == pytest.approx(0.1, rel=0.1)


def test_a_switch_needs_a_session(graph):
    with pytest.raises(ValueError, match="give session="):
        tflearn.is_training(True)
