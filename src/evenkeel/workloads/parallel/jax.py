# SPDX-License-Identifier: Apache-2.0
"""One of the processes of `jax.distributed`, each with all its devices in one mesh."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

import jax
import keras
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from evenkeel.workloads.parallel.sharing import Sharing, losses, right
from evenkeel.workloads.training import JOINING, WAITING, Place, Settings

__all__ = ["Network", "gathered", "join", "lost"]

OWN_FAULTS = ("RESOURCE_EXHAUSTED", "INVALID_ARGUMENT")


def join() -> Place:
    # JAX reads JAX_COORDINATOR_ADDRESS by itself, and the other two only where a cluster manager has them.
    count, rank = (os.environ.get(name) for name in ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID"))
    jax.distributed.initialize(
        num_processes=None if count is None else int(count),
        process_id=None if rank is None else int(rank),
        initialization_timeout=JOINING,
        heartbeat_timeout_seconds=WAITING,
        shutdown_timeout_seconds=JOINING,
    )
    multihost_utils.sync_global_devices("joined")
    return Place(jax.process_index(), jax.process_count())


def gathered(value: int) -> list[int]:
    return multihost_utils.process_allgather(np.uint32(value)).tolist()


def lost(error: BaseException) -> bool:
    return isinstance(error, jax.errors.JaxRuntimeError) and not str(error).startswith(OWN_FAULTS)


class Network(Sharing):
    """A `Trainer` that computes with arrays spread over the mesh; what a device needs of others, XLA sends."""

    def __init__(self, settings: Settings, shape: tuple[int, ...]) -> None:
        mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))
        self._rows, self._same = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
        super().__init__(settings, shape)

    def epoch(self, images: np.ndarray, labels: np.ndarray, *, after_step: Callable[[], None]) -> None:
        self._state = self._everywhere()
        super().epoch(images, labels, after_step=after_step)
        for variables, values in zip(self._variables(), self._state, strict=True):
            for variable, value in zip(variables, values, strict=True):
                variable.assign(np.asarray(value.addressable_data(0)))

    def evaluate(self, images: np.ndarray, labels: np.ndarray, *, training: bool) -> tuple[float, float]:
        self._state = self._everywhere()
        return super().evaluate(images, labels, training=training)

    def _prepare(self) -> None:
        super()._prepare()
        self._next = jax.jit(functools.partial(_next, self.model), static_argnames="count", out_shardings=self._same)
        self._sums = jax.jit(
            functools.partial(_sums, self.model), static_argnames=("count", "training"), out_shardings=self._same
        )

    def _learn(self, images: np.ndarray, labels: np.ndarray) -> None:
        self._state = self._next(self._state, *map(self._spread, (images, labels)), count=len(labels))

    def _measure(self, images: np.ndarray, labels: np.ndarray, training: bool) -> Any:
        batch = map(self._spread, (images, labels))
        return self._sums(self._state, *batch, count=len(labels), training=training)

    def _variables(self) -> tuple[list[Any], ...]:
        model = self.model
        return model.trainable_variables, model.non_trainable_variables, model.optimizer.variables

    def _everywhere(self) -> Any:
        """The values of the variables as arrays of the mesh, the same on every device."""
        return [[self._array(np.asarray(variable.value), self._same) for variable in v] for v in self._variables()]

    def _spread(self, batch: np.ndarray) -> jax.Array:
        """`batch` over the devices, with as many rows of zeros after it as make all shares as large."""
        more = -len(batch) % self._rows.num_devices
        return self._array(np.pad(batch, [(0, more)] + [(0, 0)] * (batch.ndim - 1)), self._rows)

    def _array(self, value: np.ndarray, sharding: NamedSharding) -> jax.Array:
        return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])


def _next(model: keras.Model, state: Any, images: jax.Array, labels: jax.Array, count: int) -> Any:
    """The values of all variables after a step with the first `count` images."""
    trained, kept, optimizer = state

    def loss(trained: Any) -> Any:
        # Cut here, where an array is the whole of its shards: none of what follows knows of the rows of zeros.
        logits, new = model.stateless_call(trained, kept, images[:count], training=True)
        return losses(logits, labels[:count]).sum() / count, new

    (_, kept), gradients = jax.value_and_grad(loss, has_aux=True)(trained)
    trained, optimizer = model.optimizer.stateless_apply(optimizer, gradients, trained)
    return [trained, kept, optimizer]


def _sums(model: keras.Model, state: Any, images: jax.Array, labels: jax.Array, count: int, training: bool) -> Any:
    trained, kept, _ = state
    logits, _ = model.stateless_call(trained, kept, images[:count], training=training)
    return losses(logits, labels[:count]).sum(), right(logits, labels[:count]).sum()
