# SPDX-License-Identifier: Apache-2.0
"""A training step of a layer, on any framework: what comes out, its gradients, and what the layer became."""

from typing import NamedTuple

import numpy as np
import pytest

from conftest import NAME


class Step(NamedTuple):
    """y; gradients: of the input, then of the trainable weights in their order; loss: what regularizers add."""

    y: np.ndarray
    gradients: list
    loss: float


@pytest.fixture(autouse=True)
def _fresh_names_and_seed():
    if NAME != "numpy":
        import keras

        keras.utils.clear_session(free_memory=False)
        keras.utils.set_random_seed(0)


@pytest.fixture
def step(backend):
    """`step(layer, x, dy, **call)`: forward and backward of `sum(dy * y)` plus the losses of the layer."""
    return {"tensorflow": lambda: _tensorflow, "jax": _jax, "torch": lambda: _torch}[backend.name]()


def _plain(value):
    import keras

    return keras.ops.convert_to_numpy(value).astype("float64")


def _tensorflow(layer, x, dy, **call):
    import tensorflow as tf

    x = tf.convert_to_tensor(x)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = layer(x, training=True, **call)
        added = sum(layer.losses, tf.zeros([]))
        loss = tf.reduce_sum(tf.cast(y, dy.dtype) * dy) + tf.cast(added, dy.dtype)
    gradients = tape.gradient(loss, [x, *layer.trainable_variables])
    return Step(_plain(y), list(map(_plain, gradients)), float(added))


def _jax():
    import jax

    def loss(x, trainable, others, dy, call, layer):
        y, others, losses = layer.stateless_call(trainable, others, x, training=True, return_losses=True, **call)
        added = sum(losses, jax.numpy.zeros([]))
        return (y.astype(dy.dtype) * dy).sum() + added.astype(dy.dtype), (y, others, added)

    gradient = jax.jit(jax.grad(loss, (0, 1), has_aux=True), static_argnums=5)

    def step(layer, x, dy, **call):
        trainable, others = ([v.value for v in vs] for vs in (layer.trainable_variables, layer.non_trainable_variables))
        (dx, dweights), (y, others, added) = gradient(jax.numpy.asarray(x), trainable, others, dy, call, layer)
        for variable, value in zip(layer.non_trainable_variables, others, strict=True):
            variable.assign(value)
        return Step(_plain(y), list(map(_plain, [dx, *dweights])), float(added))

    return step


def _torch(layer, x, dy, **call):
    import keras
    import torch

    x = keras.ops.convert_to_tensor(x).clone().requires_grad_()
    y = layer(x, training=True, **call)
    added = sum(layer.losses, torch.zeros([]))
    loss = (y.to(torch.float64) * torch.as_tensor(dy).to(torch.float64)).sum() + added
    gradients = torch.autograd.grad(loss, [x, *(v.value for v in layer.trainable_variables)])
    return Step(_plain(y.detach()), list(map(_plain, gradients)), float(added.detach()))
