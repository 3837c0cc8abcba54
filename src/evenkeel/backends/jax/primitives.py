# SPDX-License-Identifier: Apache-2.0
"""The primitives in JAX."""

from __future__ import annotations

import jax
import jax.numpy as jnp

NAME = "jax"
WIDEST = "float32"  # unless the whole process is told otherwise

broadcast_to = jnp.broadcast_to
concat = jnp.concatenate
cond = jax.lax.cond
expm1 = jnp.expm1
is_finite = jnp.isfinite
largest = jnp.max
maximum = jnp.maximum
minimum = jnp.minimum
relu = jax.nn.relu
reshape = jnp.reshape
rsqrt = jax.lax.rsqrt
sqrt = jnp.sqrt
stop_gradient = jax.lax.stop_gradient
where = jnp.where


def convert(value, dtype=None, like=None):
    return jnp.asarray(value, dtype=dtype)


def cast(x, dtype):
    return jnp.asarray(x).astype(dtype)


def dtype(x):
    return x.dtype.name


def device(x):
    return ""


def shape(x):
    return x.shape


def size(x, axis):
    return x.shape[axis]


def sum(x, axes):
    return jnp.sum(x, axis=axes, keepdims=True)


def pad_rows(x, count):
    return jnp.pad(x, [(0, count)] + [(0, 0)] * (x.ndim - 1))


def recomputing():
    return False


def all_reduce(group=None):
    """The sum over the devices along the mesh axes of `group`, or along all that this function is mapped over.

    None outside `jax.shard_map` and without a group: under `jax.jit` an array is the whole of its shards. A group may
    also be that sum itself, as a function.
    """
    if callable(group):
        return group
    axes = group or tuple(jax.sharding.get_abstract_mesh().manual_axes)
    return (lambda x: jax.lax.psum(x, axes)) if axes else None
