# SPDX-License-Identifier: Apache-2.0
"""The normalizers of a Keras model: Keras's own layer and ours, on any backend."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np

from evenkeel.errors import InputError
from evenkeel.functional.moments import Moments, moments
from evenkeel.functional.moving import State
from evenkeel.surgery.recalibrate.feeding import Batches, plain
from evenkeel.surgery.recalibrate.pool import glanced, measured
from evenkeel.surgery.recalibrate.subject import Call, Normalizer, Seen
from evenkeel.surgery.walk import keras_names, keras_normalizers

COMPILED = (
    "{name} is called inside a compiled or mapped function, where its input has no values; "
    "take tf.function, jit, RNN or TimeDistributed away from round it"
)


class KerasModel:
    """`call` of every normalizer is replaced on the instance while the model runs; the model is called eagerly."""

    class_axis = -1

    def __init__(self, model: Any, batches: Batches, *, include_frozen: bool) -> None:
        self._model = model
        if any(layer.moving_mean is None for layer in keras_normalizers(model)):
            self.call(batches.first())  # builds it
        layers = keras_normalizers(model)
        names = keras_names(layers)
        self._layers = {
            normalizer_of(layer, names[id(layer)], include_frozen=include_frozen): layer for layer in layers
        }
        self.normalizers = list(self._layers)

    def call(self, batch: Any) -> Any:
        with _no_gradients():
            return self._model(keras.tree.map_structure(_usable, batch), training=False)

    @contextlib.contextmanager
    def running(self, seen: Seen) -> Iterator[Callable[[Any], Any]]:
        watched = {normalizer: layer for normalizer, layer in self._layers.items() if normalizer.left is None}
        without_values: list[Normalizer] = []

        def run(batch: Any) -> Any:
            try:
                return self.call(batch)
            except Exception as error:
                # Raised where it was found, it would come out as one of the many kinds that frameworks make of errors.
                if without_values:
                    raise InputError(COMPILED.format(name=without_values[0].name)) from error
                raise

        try:
            for normalizer, layer in watched.items():
                layer.call = _watched(normalizer, layer, seen, without_values)
            yield run
        finally:
            for layer in watched.values():
                vars(layer).pop("call", None)


def _watched(normalizer: Normalizer, layer: Any, seen: Seen, without_values: list[Normalizer]) -> Callable[..., Any]:
    original = layer.call
    signature = inspect.signature(original)

    def call(*arguments: Any, **options: Any) -> Any:
        given = signature.bind(*arguments, **options).arguments
        inputs, mask = given["inputs"], given.get("mask")
        weights = {
            "mask": given.get("inputs_mask") if mask is None else mask,
            "sample_weight": given.get("sample_weight"),
        }

        def exact() -> Moments:
            if keras.backend.backend() == "jax":  # which has no float64
                return measured(inputs, axis=layer.axis, **weights)
            found = moments(keras.ops.cast(inputs, "float64"), axis=layer.axis, **weights)
            return Moments(*map(keras.ops.convert_to_numpy, found))

        def with_values(measure: Callable[[], Moments]) -> Moments:
            try:
                return measure()
            except Exception:
                without_values.append(normalizer)
                raise

        state = seen(
            normalizer,
            Call(
                inputs,
                layer.axis,
                functools.partial(with_values, exact),
                functools.partial(with_values, lambda: glanced(inputs, axis=layer.axis, **weights)),
                masked=any(weight is not None for weight in weights.values()),
            ),
        )
        if state is not None:
            normalizer.write(state)
        return original(*arguments, **options)

    return call


def normalizer_of(layer: Any, name: str, *, include_frozen: bool) -> Normalizer:
    """A layer of Keras, as recalibration sees it."""

    def variables() -> State:
        return State(*(getattr(layer, name, None) for name in State._fields))

    def read() -> State:
        return State(*(None if variable is None else np.array(_numpy(variable)) for variable in variables()))

    def write(state: State) -> None:
        for variable, value in zip(variables(), state, strict=True):
            if variable is not None:
                variable.assign(value)

    left = None
    if layer.moving_mean is None:
        left = "never called, so it has no weights"
    elif not include_frozen and (not layer.trainable or getattr(layer, "frozen", False)):
        left = "frozen"
    ours = hasattr(layer, "bessel_correction")
    return Normalizer(
        name,
        layer.epsilon,
        ours and layer.bessel_correction,
        read,
        write,
        left,
        one_pass=keras.backend.backend() == "torch" and not ours,
    )


def _numpy(variable: Any) -> np.ndarray:
    return keras.ops.convert_to_numpy(variable.value)


def _usable(value: Any) -> Any:
    return value if keras.ops.is_tensor(value) else plain(value)


def _no_gradients() -> contextlib.AbstractContextManager[Any]:
    if keras.backend.backend() != "torch":
        return contextlib.nullcontext()
    import torch

    return torch.no_grad()
