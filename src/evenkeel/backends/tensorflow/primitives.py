# SPDX-License-Identifier: Apache-2.0
"""The primitives in TensorFlow."""

from __future__ import annotations

import functools

import tensorflow as tf

NAME = "tensorflow"
WIDEST = "float64"

broadcast_to = tf.broadcast_to
concat = functools.partial(tf.concat, axis=0)
cast = tf.cast
expm1 = tf.math.expm1
is_finite = tf.math.is_finite
largest = tf.reduce_max
maximum = tf.maximum
minimum = tf.minimum
relu = tf.nn.relu
reshape = tf.reshape
rsqrt = tf.math.rsqrt
sqrt = tf.sqrt
stop_gradient = tf.stop_gradient
where = tf.where


def convert(value, dtype=None, like=None):
    return tf.convert_to_tensor(value, dtype=dtype)


def dtype(x):
    return x.dtype.base_dtype.name


def device(x):
    return ""


def shape(x):
    return tuple(x.shape.as_list())


def size(x, axis):
    """An integer where it is known while tracing, a scalar tensor where it is not."""
    known = x.shape.as_list()[axis]
    return tf.shape(x)[axis] if known is None else known


def sum(x, axes):
    return tf.reduce_sum(x, axis=axes, keepdims=True)


def pad_rows(x, count):
    return tf.pad(x, [[0, count]] + [[0, 0]] * (x.shape.rank - 1))


def cond(condition, when_true, when_false):
    return tf.cond(condition, when_true, when_false)


def recomputing():
    return False


def all_reduce(group=None):
    """The sum over the replicas of this step, or None where there is one replica; tf.distribute has no groups."""
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return None
    return lambda x: context.all_reduce(tf.distribute.ReduceOp.SUM, x)
