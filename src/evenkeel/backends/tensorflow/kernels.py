# SPDX-License-Identifier: Apache-2.0
"""Which fused operations of TensorFlow normalize a batch on the CPU, and when their numbers can be trusted.

Two things are wrong with the training operation, and both are met here:

- XLA expands it to mean-of-squares minus square-of-mean, which is NaN at mean 1e4, spread 1. See `_outside_xla`.
- It adds one number after the other in float32: at mean 1e4, spread 1, 100 000 values `y` is off by 0.1. See
  `_trusted`.

In either case the plain formula serves instead: right everywhere, and slower outside XLA.

Second derivatives and forward mode are right, for the operation has a gradient of its gradient; that one is a composite
and slow. Forward over reverse mode through `training` in a tf.function is not possible: TensorFlow raises at the cond.
"""

from __future__ import annotations

import math

import numpy as np
import tensorflow as tf

from evenkeel.backends.contract import Formula, Normalized, Request

v1 = tf.compat.v1

__all__ = ["inference", "supports", "training"]


def supports(request: Request) -> str | None:
    """None, or the reason why the fused operations cannot serve."""
    if request.dtype not in ("bfloat16", "float16", "float32"):
        return f"the fused operation has no {request.dtype} version"
    if len(request.shape) < 2:
        return f"the fused operation needs rank 2 or more, not {len(request.shape)}"
    if request.axis != len(request.shape) - 1:
        return f"on the CPU the fused operation wants the channels last, not at axis {request.axis}"
    if not request.shape[request.axis]:
        return f"the number of channels must be known and positive, not {request.shape[request.axis]}"
    if request.residual or request.memory:
        return "they add no residual, and keep what they keep"
    if request.activation not in (None, "relu"):
        return f"there is no gradient written out for activation {request.activation!r}"
    if tf.config.get_visible_devices("GPU"):
        # On a GPU the operation hands its gradient an inverse deviation, where the CPU's hands a variance.
        return "the fused path is written for the CPU, and this process has a GPU"
    return None


def training(x, gamma, beta, *, axis: int, epsilon: float, activation: str | None, formula: Formula) -> Normalized:
    """Normalize `x` with its own mean and variance.

    Args:
        x: float16, bfloat16 or float32, shape `(..., channels)`.
        gamma, beta: float32, shape `(channels,)`.
        axis: of the channels, the last one.
        epsilon: added to the variance, so in squared units of the data.
        activation: None or `"relu"`.
        formula: the same step without activation, where the operation's numbers cannot be trusted.

    Returns:
        `Normalized`. Gradients flow through `y` alone, not through the mean and the variance.
    """
    assert axis == x.shape.rank - 1
    x, gamma, beta = map(tf.convert_to_tensor, (x, gamma, beta))
    if tf.executing_eagerly():
        y, mean, variance = _fused(x, gamma, beta, [], [], epsilon, is_training=True)
        # In NumPy, where it costs less than five eager operations.
        if _trusted(mean.numpy(), variance.numpy(), np.float32(math.prod(x.shape[:-1]))).all():
            # The operation's own gradient is that of y alone.
            return Normalized(_activate(y, activation), mean, variance)

    def forward(x, gamma, beta):
        if tf.executing_eagerly():
            y, mean, variance = formula(x, gamma, beta)
        else:
            y, mean, variance = _fused_where_trusted(x, gamma, beta, epsilon, formula)
        return _activate(y, activation), mean, variance

    if v1.executing_eagerly_outside_functions():

        @tf.custom_gradient
        def normalize(x, gamma, beta):
            y, mean, variance = forward(x, gamma, beta)
            features = y if activation == "relu" else None
            return (y, mean, variance), lambda dy, *_: _pulled_back(dy, features, x, gamma, mean, variance, epsilon)

        y, mean, variance = normalize(x, gamma, beta)
    elif v1.get_default_graph().building_function:
        # To save a model, TensorFlow traces each registered gradient by itself, without an operation to ask.
        y, mean, variance = formula(x, gamma, beta)
        y = _activate(y, activation)
    else:
        # In a graph of TensorFlow 1, tf.custom_gradient looks for variables that the result depends on, and refuses
        # theirs. So what the gradient wants goes through one operation, whose gradient is registered below.
        with v1.get_default_graph().gradient_override_map({"IdentityN": _GRADIENT}):
            y, mean, variance, *_ = tf.raw_ops.IdentityN(
                input=[*forward(x, gamma, beta), x, gamma, beta, epsilon, activation == "relu"]
            )
    return Normalized(y, tf.stop_gradient(mean), tf.stop_gradient(variance))


def inference(x, gamma, beta, mean, variance, *, axis: int, epsilon: float, activation: str | None):
    """Normalize `x` with the mean and the variance given. Gradients flow to all five tensors.

    Shapes, types and options are those of `training`; `mean` and `variance` are float32, shape `(channels,)`.
    """
    assert axis == x.shape.rank - 1
    x, gamma, beta, mean, variance = map(tf.convert_to_tensor, (x, gamma, beta, mean, variance))
    # The operation has no derivative for its mean and variance. A factor of 1 and a term of 0 carry them to gamma
    # and beta, for which it has; so every order of derivative is right, forward and reverse.
    fixed_mean, fixed_variance = tf.stop_gradient(mean), tf.stop_gradient(variance)
    inverse = tf.math.rsqrt(variance + epsilon)
    scale = gamma * (inverse / tf.stop_gradient(inverse))
    offset = beta - (mean - fixed_mean) * (gamma * inverse)
    return _activate(_fused(x, scale, offset, fixed_mean, fixed_variance, epsilon, is_training=False)[0], activation)


_GRADIENT = "EvenkeelBatchNormalization"


@tf.RegisterGradient(_GRADIENT)
def _backward(operation, dy, *_):
    y, mean, variance, x, gamma, _, epsilon, relu = operation.outputs
    epsilon, relu = (tf.get_static_value(value) for value in operation.inputs[6:])
    return None, None, None, *_pulled_back(dy, y if relu else None, x, gamma, mean, variance, epsilon), None, None


def _pulled_back(dy, features, x, gamma, mean, variance, epsilon):
    dy.set_shape(x.shape)  # What was handed to tf.gradients may have none.
    if features is not None:
        dy = tf.raw_ops.ReluGrad(gradients=dy, features=features)
    dx, dgamma, dbeta, _, _ = tf.raw_ops.FusedBatchNormGradV3(
        y_backprop=_images(dy),
        x=_images(x),
        scale=gamma,
        reserve_space_1=mean,
        reserve_space_2=variance,
        reserve_space_3=tf.zeros([0]),
        epsilon=float(epsilon),
    )
    return _like(dx, x), dgamma, dbeta


def _fused_where_trusted(x, gamma, beta, epsilon, formula):
    """`y`, mean and population variance, decided when the graph runs. XLA drops the fused operation as unused."""
    # With auto-clustering, XLA must not take the operation while TensorFlow answers the question.
    with tf.xla.experimental.jit_scope(compile_ops=False):
        fused = _fused(x, gamma, beta, [], [], epsilon, is_training=True)
    _, mean, variance = fused
    count = tf.cast(tf.size(x) // x.shape.as_list()[-1], tf.float32)
    good = tf.logical_and(_outside_xla(), tf.reduce_all(_trusted(mean, variance, count)))
    return tf.cond(good, lambda: fused, lambda: tuple(formula(x, gamma, beta)))


def _outside_xla():
    """True when TensorFlow runs the graph, False when XLA compiled it; both may share one trace.

    A shift by more than the width of the type is clamped by TensorFlow and gives 0 in XLA. Its size is the length of a
    list, because nothing folds a list before XLA sees it, and XLA folds it to a constant: the other branch vanishes.
    Were the two ever to agree on 0, the answer would be False, which is slow and right.
    """
    scalar = tf.constant([], tf.int32)
    forty = tf.raw_ops.TensorListReserve(element_shape=scalar, num_elements=40, element_dtype=tf.int32)
    shifted = tf.bitwise.left_shift(1, tf.raw_ops.TensorListLength(input_handle=forty))
    return tf.not_equal(shifted, 0)


def _trusted(mean, variance, count):
    """Whether the rounding of one sum after the other is small beside what a batch of `count` values can know.

    Once the last place of the sum is larger than the spread of the values, all rounding goes to one side; and with
    many equal values, as after relu, it does so from the start: the variance is then wrong by 3e-9 * count. By channel;
    False of a NaN; for NumPy and TensorFlow alike.
    """
    return ((mean**2 + variance) * (count * 2.0**-23) ** 2 <= variance) & (count <= 2.0**17)


def _fused(x, gamma, beta, mean, variance, epsilon, *, is_training):
    y, _, _, mean, variance, _ = tf.raw_ops.FusedBatchNormV3(
        x=_images(x),
        scale=gamma,
        offset=beta,
        mean=mean,
        variance=variance,
        epsilon=epsilon,
        is_training=is_training,
        name="fused",
    )
    return _like(y, x), mean, variance


def _activate(y, activation):
    return tf.nn.relu(y) if activation == "relu" else y


def _images(x):
    """`x` as the rank-4 tensor on which the operation is quickest."""
    if x.dtype == tf.float16:
        # The float16 version converts number by number: 1.5 times the time of converting all of it first.
        x = tf.cast(x, tf.float32)
    # As a list: under TensorFlow 1's rules a shape has other entries than integers.
    sizes = x.shape.as_list()
    channels = sizes[-1]
    if x.dtype == tf.float32 and channels >= 64:
        # One row per image, up to 1.3 times quicker; with few channels or in bfloat16 it is the slower one.
        return tf.reshape(x, [-1, 1, 1, channels])
    if x.shape.is_fully_defined():
        return tf.reshape(x, [sizes[0], 1, math.prod(sizes[1:-1]), channels])
    shape = tf.shape(x)
    return tf.reshape(x, [shape[0], 1, tf.reduce_prod(shape[1:-1]), channels])


def _like(tensor, x):
    if x.shape.is_fully_defined():
        return tf.cast(tf.reshape(tensor, x.shape), x.dtype)
    return tf.ensure_shape(tf.cast(tf.reshape(tensor, tf.shape(x)), x.dtype), x.shape)
