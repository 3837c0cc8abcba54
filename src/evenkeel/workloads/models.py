# SPDX-License-Identifier: Apache-2.0
"""Which networks are trained and timed."""

from __future__ import annotations

import random
from collections.abc import Callable

import keras

__all__ = ["InTrainingPhase", "Normalization", "convnet", "mlp", "resnet", "seed_weights"]

Normalization = Callable[..., keras.Layer]
"""Called with `activation="relu"` or `activation=None`; gives a new layer that normalizes and then activates.

`evenkeel.BatchNormalization` is one, and so is `functools.partial(evenkeel.BatchNormalization, momentum=0.9)`.
"""


def seed_weights(seed: int) -> None:
    """Make Keras draw the same first weights from here on.

    `keras.utils.set_random_seed` does so too, and imports TensorFlow wherever it is installed: five seconds.
    """
    random.seed(seed)


def mlp(shape: tuple[int, int, int], classes: int, normalization: Normalization) -> keras.Model:
    """Two hidden layers of 100 units, each dense, normalized, ReLU: the network of the old batch norm examples.

    Args:
        shape: of one image, `(height, width, channels)`.
        classes: how many logits come out.
        normalization: makes the batch norm layers.

    Returns:
        A model from images `(batch, height, width, channels)` to logits `(batch, classes)`.
    """
    images = keras.Input(shape)
    x = keras.layers.Flatten()(images)
    for _ in range(2):
        # No bias here or below: the normalization that follows takes any constant away.
        x = keras.layers.Dense(100, use_bias=False)(x)
        x = normalization(activation="relu")(x)
    return keras.Model(images, keras.layers.Dense(classes)(x), name="mlp")


def convnet(shape: tuple[int, int, int], classes: int, normalization: Normalization) -> keras.Model:
    """Three convolutions, each normalized, ReLU; arguments and result as for `mlp`."""
    images = keras.Input(shape)
    x = _convolution(images, 16, normalization)
    x = _convolution(x, 32, normalization, strides=2)
    x = _convolution(x, 64, normalization, strides=2)
    return _classifier(images, x, classes, "convnet")


def resnet(shape: tuple[int, int, int], classes: int, normalization: Normalization) -> keras.Model:
    """A residual network of three blocks, of 16, 32 and 64 channels; arguments and result as for `mlp`.

    References:
        He, Zhang, Ren and Sun 2016, Deep Residual Learning for Image Recognition, section 4.2.
    """
    images = keras.Input(shape)
    x = _convolution(images, 16, normalization)
    x = _residual(x, 16, normalization)
    x = _residual(x, 32, normalization, strides=2)
    x = _residual(x, 64, normalization, strides=2)
    return _classifier(images, x, classes, "resnet")


class InTrainingPhase(keras.Model):
    """A model as it is while it learns, to `evaluate`: each batch is normalized with its own statistics.

    The moving statistics stay as they are: the new ones are dropped.
    """

    def __init__(self, model: keras.Model) -> None:
        super().__init__()
        self.model = model

    def call(self, images: keras.KerasTensor) -> keras.KerasTensor:
        weights = self.model.trainable_variables, self.model.non_trainable_variables
        logits, _ = self.model.stateless_call(*weights, images, training=True)
        return logits


def _convolution(x, channels, normalization, *, size=3, strides=1, activation="relu"):
    x = keras.layers.Conv2D(channels, size, strides=strides, padding="same", use_bias=False)(x)
    return normalization(activation=activation)(x)


def _residual(x, channels, normalization, *, strides=1):
    """Convolution, batch norm, ReLU, convolution, batch norm; add what came in; ReLU."""
    shortcut = x
    if strides != 1 or x.shape[-1] != channels:
        shortcut = _convolution(x, channels, normalization, size=1, strides=strides, activation=None)
    x = _convolution(x, channels, normalization, strides=strides)
    x = _convolution(x, channels, normalization, activation=None)
    return keras.layers.ReLU()(keras.layers.Add()([x, shortcut]))


def _classifier(images, x, classes, name):
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(images, keras.layers.Dense(classes)(x), name=name)
