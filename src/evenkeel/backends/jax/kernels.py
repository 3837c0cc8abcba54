# SPDX-License-Identifier: Apache-2.0
"""How batch normalization is done fast in JAX.

The gradients of training are written by hand. The forward pass keeps its input and four vectors, and the backward pass
computes the rest again; a step reads or writes a tensor of the size of `x` ten times in all, thirteen with relu.

Gradients may be taken of gradients, and `jax.jit`, `jax.vmap`, `jax.checkpoint`, `jax.lax.scan` and `jax.shard_map`
(where the statistics are those of the shard) apply. Forward mode works on gradients, as in `jax.hessian`, and on
`inference`; `jax.jvp` and `jax.jacfwd` of `training` itself raise "can't apply forward-mode autodiff (jvp) to a
custom_vjp function". For those, switch the kernels off: the plain formula has no such limit.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from evenkeel.backends.contract import Formula, Normalized, Request

__all__ = ["inference", "supports", "training"]

_ACTIVATIONS = {None: lambda value: value, "relu": jax.nn.relu}
_DTYPES = ("bfloat16", "float16", "float32", "float64")


def supports(request: Request) -> str | None:
    """None when `training` or `inference` can serve the request, otherwise the reason why not."""
    if request.dtype not in _DTYPES:
        return f"the JAX kernels are for {', '.join(_DTYPES)}, not {request.dtype}"
    if request.residual or request.memory:
        return "they add no residual, and keep what they keep"
    if request.activation not in _ACTIVATIONS:
        return f"the JAX kernels can apply relu or nothing, not {request.activation}"
    if len(request.shape) < 2:
        return f"the JAX kernels need two dimensions or more, not shape {request.shape}"
    if request.training and 0 in request.shape:
        return f"shape {request.shape} has no values to take statistics of"
    return None


def training(
    x: jax.Array,
    gamma: jax.Array,
    beta: jax.Array,
    *,
    axis: int,
    epsilon: float,
    activation: str | None,
    formula: Formula,
) -> Normalized:
    """Normalize with the statistics of the batch.

    No gradient flows through the mean and the variance that are returned.

    Args:
        x: shape `(..., channels, ...)`, floating point.
        gamma: shape `(channels,)`, float32, or float64 for such an `x`.
        beta: like gamma.
        axis: of the channels, not negative.
        epsilon: added to the variance.
        activation: `"relu"`, or None.
        formula: not needed; the numbers here can always be trusted.

    Returns:
        `Normalized`, with the population variance.
    """
    y, mean, variance = _compiled(x, gamma, beta, axis, epsilon, activation)
    return Normalized(y, mean, variance)


@partial(jax.jit, static_argnames=("axis", "epsilon", "activation"))
def inference(
    x: jax.Array,
    gamma: jax.Array,
    beta: jax.Array,
    mean: jax.Array,
    variance: jax.Array,
    *,
    axis: int,
    epsilon: float,
    activation: str | None,
) -> jax.Array:
    """Normalize with given statistics, of shape `(channels,)`; otherwise like `training`."""
    value = _normalized(x, mean, lax.rsqrt(variance + epsilon) * gamma, beta, axis)
    return _ACTIVATIONS[activation](value).astype(x.dtype)


# Compiled for those who call it outside of `jax.jit`; inside, it makes no difference.
@partial(jax.jit, static_argnums=(3, 4, 5))
def _compiled(x, gamma, beta, axis, epsilon, activation):
    # In `jax.shard_map`, gamma and beta then vary over the devices as `x` does, and JAX adds their gradients over the
    # devices. It does not do so for a custom rule.
    _, gamma, beta = lax.optimization_barrier((lax.stop_gradient(x), gamma, beta))
    return _training(x, gamma, beta, axis, epsilon, activation)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def _training(x, gamma, beta, axis, epsilon, activation):
    return _forward(x, gamma, beta, axis, epsilon, activation)[0]


def _forward(x, gamma, beta, axis, epsilon, activation):
    count = x.size // x.shape[axis]
    mean = _total(_wide(x), axis) / count
    # Mean-of-squares minus square-of-mean would be no faster: on a CPU, XLA reads `x` again for every sum.
    variance = _total(jnp.square(_centred(*_apart(x, mean), axis)), axis) / count
    scale = lax.rsqrt(variance + epsilon)
    value = _normalized(*_apart(x, mean, scale * gamma, beta), axis)
    # Stopped here as well, for the outer of two nested derivatives, which looks inside.
    statistics = lax.stop_gradient((mean, variance))
    return (_ACTIVATIONS[activation](value).astype(x.dtype), *statistics), (x, mean, scale, gamma, beta)


def _backward(axis, epsilon, activation, saved, cotangents):
    x, mean, scale, gamma, beta = saved
    dy = cotangents[0]
    count = x.size // x.shape[axis]
    if activation == "relu":
        dy_, *inner = _apart(dy, x, mean, scale * gamma, beta)
        (dy,) = _apart(jnp.where(_normalized(*inner, axis) > 0, dy_, jnp.zeros_like(dy)))
    dbeta = _total(_wide(dy), axis)
    dy_, *inner = _apart(dy, x, mean)
    dgamma = _total(_wide(dy_) * _centred(*inner, axis), axis) * scale
    slope = scale * gamma
    dy_, x_, mean_, *vectors = _apart(dy, x, mean, slope, slope * scale * dgamma / count, slope * dbeta / count)
    slope, tilt, level = (_spread(vector, x, axis) for vector in vectors)
    dx = slope * _wide(dy_) - (tilt * _centred(x_, mean_, axis) + level)
    return dx.astype(x.dtype), dgamma, dbeta


_training.defvjp(_forward, _backward)


def _normalized(x, mean, slope, beta, axis):
    """The result before the activation, in the wide type."""
    # Not x * a + b: far from zero, the two terms are large and cancel.
    return _centred(x, mean, axis) * _spread(slope, x, axis) + _spread(beta, x, axis)


def _centred(x, mean, axis):
    return _wide(x) - _spread(mean, x, axis)


def _wide(x):
    return x.astype(jnp.float64 if x.dtype == jnp.float64 else jnp.float32)


def _total(value, axis):
    return jnp.sum(value, [other for other in range(value.ndim) if other != axis])


def _spread(vector, x, axis):
    return lax.expand_dims(vector, [other for other in range(x.ndim) if other != axis])


def _apart(*tensors):
    """The same values, as if XLA did not know what it has computed from them already.

    On a CPU, XLA writes out in full what two sums have in common, as `x - mean` or a float32 copy of `x`; reading `x`
    again is faster. (Measured with jaxlib 0.10.2: without this, a step takes 1.2 times as long in float32, and twice as
    long in bfloat16.) Two barriers round the same tensors count as one, so no two calls here have the same list.
    """
    return lax.platform_dependent(
        *tensors, cpu=lambda *same: tuple(lax.optimization_barrier(same)), default=lambda *same: same
    )
