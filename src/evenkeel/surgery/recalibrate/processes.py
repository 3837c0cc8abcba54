# SPDX-License-Identifier: Apache-2.0
"""How the processes that recalibrate one model together hear of each other's numbers."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

import numpy as np

Gather = Callable[[np.ndarray], Sequence[np.ndarray]]
"""Of a row of float64, the rows of all processes, in the same order in every process."""


def gatherer() -> Gather:
    """Of the group of processes that this one has joined: torch.distributed, jax.distributed or `tf.distribute`.

    Of `tf.distribute` it is the strategy in whose scope the call is. A process that joined none is alone.
    """
    torch, jax, tensorflow = (sys.modules.get(name) for name in ("torch", "jax", "tensorflow"))
    if torch is not None and torch.distributed.is_available() and torch.distributed.is_initialized():
        return _of_torch
    if jax is not None and jax.distributed.is_initialized():
        return _of_jax
    if tensorflow is not None and tensorflow.distribute.has_strategy():
        return _of_tensorflow
    return _alone


def _alone(row: np.ndarray) -> Sequence[np.ndarray]:
    return [row]


def _of_torch(row: np.ndarray) -> Sequence[np.ndarray]:
    import torch

    rows: list[np.ndarray] = [row] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(rows, row)
    return rows


def _of_jax(row: np.ndarray) -> Sequence[np.ndarray]:
    from jax.experimental import multihost_utils

    # As integers: JAX would round float64 to float32.
    words = np.ascontiguousarray(row).view(np.uint32)
    rows = np.asarray(multihost_utils.process_allgather(words)).reshape(-1, words.size)
    return [np.ascontiguousarray(words).view(np.float64) for words in rows]


def _of_tensorflow(row: np.ndarray) -> Sequence[np.ndarray]:
    import tensorflow as tf

    strategy = tf.distribute.get_strategy()

    def gathered() -> tf.Tensor:
        return tf.distribute.get_replica_context().all_gather(tf.constant(row[None]), axis=0)

    # Every replica of a process has the row of its process.
    replicas = strategy.experimental_local_results(strategy.run(tf.function(gathered)))
    return list(replicas[0].numpy()[:: len(replicas)])
