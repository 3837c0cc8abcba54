# SPDX-License-Identifier: Apache-2.0
"""Where `tf.nn` computes another number than TensorFlow 1.15 did, and 1.15's number.

All else of `tf.nn` is TensorFlow's own; `moments`, `batch_normalization` and the rest have kept their numbers.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from evenkeel.tf1.passing import passing
from evenkeel.tf1.steps import fused_epsilon

v1 = tf.compat.v1

WITH_MEAN = "Both 'mean' and 'variance' must be None if is_training is True."

__getattr__, __dir__ = passing(__name__, "tensorflow.compat.v1.nn")


def weighted_moments(
    x: Any,
    axes: Any,
    frequency_weights: Any,
    name: str | None = None,
    keep_dims: bool | None = None,
    keepdims: bool | None = None,
) -> tuple[Any, Any]:
    """Mean and population variance, where each value counts as often as its weight says.

    A total weight of zero gives NaN, as in 1.15; TensorFlow 2 says 0.

    Args:
        x: floating point; float16 is summed in float32.
        axes: to take the moments over.
        frequency_weights: shape that broadcasts to that of `x`; cast to its type.
        keep_dims: keep the axes, with size 1.
        keepdims: the same; only one may be given.

    Returns:
        Mean and variance, in the type of `x`; the variance is divided by the sum of the weights.

    Raises:
        ValueError: both `keep_dims` and `keepdims` are given, or the weights do not broadcast.

    Example:
        >>> with tf.Graph().as_default(), v1.Session() as session:
        ...     mean, variance = session.run(weighted_moments([[1.0], [3.0], [9.0]], [0], [[1], [1], [0]]))
        >>> mean.tolist(), variance.tolist()
        ([2.0], [1.0])
    """
    x = tf.convert_to_tensor(x)
    # Cast before the sum: a float16 sum overflows at 65504.
    weights = tf.cast(frequency_weights, tf.float32 if x.dtype == tf.float16 else x.dtype)
    total = tf.reduce_sum(tf.broadcast_to(weights, tf.shape(x)), axes, keepdims=True)
    # 1, or NaN of a total of zero; on the way in it reaches the gradients, which TensorFlow 2 makes 0 too.
    known = tf.stop_gradient(tf.cast(tf.truediv(total, total), x.dtype))
    mean, variance = v1.nn.weighted_moments(x * known, axes, frequency_weights, name, keep_dims, keepdims)
    known = tf.reshape(known, tf.shape(mean))
    return mean * known, variance * known


def fused_batch_norm(
    x: Any,
    scale: Any,
    offset: Any,
    mean: Any = None,
    variance: Any = None,
    epsilon: float = 0.001,
    data_format: str = "NHWC",
    is_training: bool = True,
    name: str | None = None,
) -> tuple[Any, Any, Any]:
    """Batch normalization in one operation; epsilon is at least 1.001e-5, as in 1.15.

    Gradients with respect to the second and the third output are ignored.

    Args:
        x: shape `(batch, height, width, channels)`, or as `data_format` says; float32, float16 or bfloat16.
        scale: shape `(channels,)`, float32.
        offset: shape `(channels,)`, float32.
        mean: shape `(channels,)`, float32; in inference only.
        variance: shape `(channels,)`, float32; in inference only.
        epsilon: added to the variance.
        data_format: `"NHWC"` or `"NCHW"`; of rank 5, `"NDHWC"` or `"NCDHW"`.
        is_training: normalize with the statistics of the batch.

    Returns:
        `x` normalized; mean; variance. In training these two are the batch's, the variance divided by `n - 1` (by 1
        when there is one value); in inference they are those given, where 1.15 left memory as it found it.

    Raises:
        ValueError: statistics are given in training, or missing in inference.

    Example:
        >>> with tf.Graph().as_default(), v1.Session() as session:
        ...     x = tf.constant([1.0, 3.0], shape=[2, 1, 1, 1])
        ...     _, mean, variance = session.run(fused_batch_norm(x, [1.0], [0.0]))
        >>> mean.tolist(), variance.tolist()
        ([2.0], [2.0])
    """
    if is_training and (mean is not None or variance is not None):
        raise ValueError(WITH_MEAN)
    y, batch_mean, batch_variance = v1.nn.fused_batch_norm(
        x, scale, offset, mean, variance, fused_epsilon(epsilon), data_format, is_training, name
    )
    if is_training:
        return y, batch_mean, batch_variance
    # Not the operation's own: of constants, TensorFlow 2.21 folds it to one output and then misses the others.
    mean, variance = (tf.convert_to_tensor(given, batch_mean.dtype) for given in (mean, variance))
    return y, tf.stop_gradient(mean), tf.stop_gradient(variance)
