# SPDX-License-Identifier: Apache-2.0
"""What recalibration needs to know of a model, whoever made it, and who tells it of which."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from evenkeel.errors import ArgumentError
from evenkeel.functional.moments import Moments, bessel
from evenkeel.functional.moving import State, deviation_of
from evenkeel.surgery.recalibrate.feeding import Batches
from evenkeel.surgery.recalibrate.pool import Pool

FOREIGN = (
    "a {kind} cannot be recalibrated; give a Keras model, a torch.nn.Module, a flax.nnx.Module or a session of "
    "TensorFlow 1"
)


@dataclass(frozen=True, eq=False)
class Normalizer:
    """A layer that keeps statistics.

    name: in the model.
    epsilon: added to the variance.
    sample: its variance is the sample's (divided by n - 1), not the population's.
    read, write: its statistics, in NumPy; what it does not keep is None.
    left: why its statistics are to stay; None where they are to be estimated anew.
    one_pass: its library computes the variance of a batch as mean of squares minus square of the mean.
    """

    name: str
    epsilon: float
    sample: bool
    read: Callable[[], State]
    write: Callable[[State], None]
    left: str | None = None
    one_pass: bool = False

    def renewed(self, old: State, pool: Pool, *, sample: bool) -> State:
        """The statistics of the pool, and the old ones in a channel of which fewer than two values were seen."""
        shape = old.moving_mean.shape
        mean, variance, count = (np.reshape(value, shape) for value in pool.moments)
        known = count > 1
        if sample:
            variance = variance * bessel(np, count)
        deviation = deviation_of(np.where(known, variance, 1.0), self.epsilon)
        counted = None if old.updates is None else np.maximum(old.updates, pool.calls - np.reshape(pool.spoiled, shape))
        new = State(mean, variance, deviation, mean, deviation, counted)
        return State(
            *(
                None if before is None else np.where(known, after, before).astype(before.dtype)
                for before, after in zip(old, new, strict=True)
            )
        )


@dataclass(frozen=True, eq=False)
class Call:
    """One call of a normalizer, while it lasts.

    inputs: what goes in, a tensor of its library; None where a session would have to run for it.
    axis: of the channels; several in a list.
    measure: the moments of it in NumPy, in float64.
    glance: the same, in float32 where that is wide enough for the input; as fast as the layer itself.
    masked: a mask or weights came with it.
    """

    inputs: Any
    axis: Any
    measure: Callable[[], Moments]
    glance: Callable[[], Moments]
    masked: bool = False


Seen = Callable[[Normalizer, Call], State | None]
"""Told of every call of a normalizer; answers with the statistics that it normalizes with, None for those it has."""


class Subject(Protocol):
    """A model to be recalibrated.

    normalizers: all that it has.
    call: runs it on a batch in inference mode, and gives its outputs; None where it needs more than that.
    class_axis: of the outputs, where they have one value a class.
    """

    normalizers: list[Normalizer]
    class_axis: int

    @property
    def call(self) -> Callable[[Any], Any] | None: ...

    def running(self, seen: Seen) -> AbstractContextManager[Callable[[Any], Any]]:
        """Within it, the same as `call`, and `seen` is told; outside, all is as before, but for what `seen` answered.

        That of a session gives no outputs.
        """


def of(
    model: Any, source: Batches, *, phase: Any = None, feed: Any = None, training: bool = True, include_frozen: bool
) -> Subject:
    """A model as recalibration sees it; arguments as in `recalibrate`.

    Args:
        training: of a session, that each layer normalizes with its batch.

    Raises:
        ArgumentError: there is nothing that can be recalibrated, or an argument that cannot be honoured.
        InputError: a session whose graph does not train.
    """
    keras, torch, tensorflow, nnx = (sys.modules.get(name) for name in ("keras", "torch", "tensorflow", "flax.nnx"))
    if tensorflow is not None and isinstance(
        model, tensorflow.compat.v1.Session | tensorflow.compat.v1.InteractiveSession
    ):
        from evenkeel.surgery.recalibrate.tf1 import TF1Session

        return TF1Session(model, source, phase=phase, feed=feed, training=training)
    if phase is not None or feed is not None:
        raise ArgumentError(
            f"phase and feed are for sessions of TensorFlow 1; leave them out for a {type(model).__name__}"
        )
    # With torch as its backend, a Keras layer is a torch module too.
    if keras is not None and isinstance(model, keras.layers.Layer):
        from evenkeel.surgery.recalibrate.keras import KerasModel

        return KerasModel(model, source, include_frozen=include_frozen)
    if torch is not None and isinstance(model, torch.nn.Module):
        from evenkeel.surgery.recalibrate.torch import TorchModule

        return TorchModule(model, include_frozen=include_frozen)
    if nnx is not None and isinstance(model, nnx.Module):
        from evenkeel.surgery.recalibrate.flax import FlaxModule

        return FlaxModule(model, include_frozen=include_frozen)
    raise ArgumentError(FOREIGN.format(kind=type(model).__name__))
