# SPDX-License-Identifier: Apache-2.0
"""Metrics over batches of uneven size, against NumPy on all of the data."""

import numpy as np
import pytest
import tensorflow as tf

import evenkeel.tf1 as tf1

v1 = tf.compat.v1
RANDOM = np.random.default_rng(0)
LEFT = RANDOM.normal(1000, 1, 11).astype("float32")
RIGHT = (0.5 * LEFT + RANDOM.normal(size=11)).astype("float32")
REPEATS = RANDOM.integers(0, 3, 11)


def over_batches(session, metric, feeds):
    """The value after all batches, which the last update gives too."""
    value, update = metric
    session.run(v1.local_variables_initializer())
    for feed in feeds:
        last = session.run(update, feed)
    np.testing.assert_array_equal(session.run(value, feeds[0]), last)
    return last


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("kind", ["covariance", "pearson_correlation"])
def test_of_two_tensors(session, kind, weighted):
    left, right, weights = (v1.placeholder(tf.float32, [None]) for _ in range(3))
    metric = getattr(tf1.contrib.metrics, f"streaming_{kind}")(left, right, weights if weighted else None)
    feeds = [{left: LEFT[a:b], right: RIGHT[a:b], weights: REPEATS[a:b]} for a, b in ((0, 3), (3, 4), (4, 11))]
    repeats = REPEATS if weighted else 1
    data = np.repeat(LEFT, repeats).astype("float64"), np.repeat(RIGHT, repeats).astype("float64")
    exact = np.cov(*data)[0, 1] if kind == "covariance" else np.corrcoef(*data)[0, 1]
    np.testing.assert_allclose(over_batches(session, metric, feeds), exact, rtol=1e-3)


def test_the_covariance_of_one_value_is_nan(session):
    _, update = tf1.contrib.metrics.streaming_covariance(tf.ones([1]), tf.ones([1]))
    session.run(v1.local_variables_initializer())
    assert np.isnan(session.run(update))


@pytest.mark.parametrize(("k", "share"), [(1, 0.5), (2, 0.75)])
def test_recall_at_k(session, k, share):
    scores = tf.constant([[3.0, 2.0, 1.0]] * 4)
    metric = tf1.contrib.metrics.streaming_recall_at_k(scores, tf.constant([0, 0, 1, 2]), k)
    assert over_batches(session, metric, [{}]) == share
