# SPDX-License-Identifier: Apache-2.0
"""How a forward pass in training mode leaves the statistics of a model as they were."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from evenkeel.errors import ArgumentError
from evenkeel.surgery.walk import keras_normalizers, torch_normalizers


@contextlib.contextmanager
def no_update(model: Any) -> Iterator[None]:
    """Whatever passes run within, afterwards every statistic and counter is what it was before, bit for bit.

    For passes beside the step: a gradient penalty, the second pass of SAM, a learning-rate finder, a recomputed
    forward. They normalize as they would without it; also within functions that are being compiled, and where they
    raise.

    Args:
        model: a Keras model or layer, with our layer or Keras's, or a `torch.nn.Module`.

    Raises:
        ArgumentError: a layer that is not built, so has no statistics to keep.

    Example:
        >>> import evenkeel, keras
        >>> layer = evenkeel.BatchNormalization()
        >>> layer.build((None, 1))
        >>> with no_update(layer):
        ...     y = layer(np.array([[1.0], [3.0]], "float32"), training=True)
        >>> keras.ops.convert_to_numpy(layer.moving_mean.value)
        array([0.], dtype=float32)
    """
    restorers = [
        *(restore for layer in keras_normalizers(model) for restore in _of_layer(layer)),
        *(restore for module in torch_normalizers(model) for restore in _of_module(module)),
    ]
    try:
        yield
    finally:
        for restore in restorers:
            restore()


def _of_layer(layer: Any) -> list[Callable[[], object]]:
    import keras

    if not layer.built:
        raise ArgumentError(f"{layer.name} is not built and has no statistics yet; build the model, or call it, before")

    def restorer(variable: Any) -> Callable[[], object]:
        # A copy: JAX's training steps give the memory of their state away.
        before = keras.ops.copy(variable.value)
        if keras.config.backend() == "torch":
            return lambda: _put_back(variable.value, before)
        return lambda: variable.assign(before)

    return [restorer(weight) for weight in layer.weights if weight is not layer.gamma and weight is not layer.beta]


def _of_module(module: Any) -> list[Callable[[], object]]:
    def restorer(name: str, before: Any) -> Callable[[], object]:
        return lambda: _put_back(getattr(module, name), before)

    return [restorer(name, value.detach().clone()) for name, value in module.named_buffers(recurse=False)]


def _put_back(tensor: Any, before: Any) -> None:
    # Not tensor.copy_, which autograd takes for a change of what a backward pass still needs.
    tensor.data.copy_(before)
