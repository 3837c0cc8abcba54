# SPDX-License-Identifier: Apache-2.0
"""What an input function gives: features, labels, and a hook that starts its data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import tensorflow as tf

from evenkeel.errors import ArgumentError
from evenkeel.tf1.estimator.arguments import accepted

v1 = tf.compat.v1


class Batch(NamedTuple):
    """What a model function is called with, and the hooks that its data need."""

    features: Any
    labels: Any
    hooks: tuple[Any, ...]


class _StartIterator(tf.compat.v1.train.SessionRunHook):
    def __init__(self, iterator: Any) -> None:
        # Asked for now: when the session is made, the graph is closed.
        self._initializer = iterator.initializer

    def after_create_session(self, session: Any, coord: Any) -> None:
        session.run(self._initializer)


def call(input_fn: Callable[..., Any], offered: Mapping[str, Any]) -> Batch:
    """Call `input_fn`, on the CPU, with what it takes of `mode`, `params` and `config`.

    It returns features, or features and labels, or a `tf.data.Dataset` of either.

    Raises:
        ValueError: a tuple of another length, or nothing.

    Example:
        >>> with tf.Graph().as_default():
        ...     batch = call(lambda: tf.data.Dataset.from_tensors(({"x": [1.0]}, [2])), {})
        ...     batch.features["x"].shape, batch.labels.dtype.name, len(batch.hooks)
        (TensorShape([1]), 'int32', 1)
    """
    with v1.device("/cpu:0"):
        result = input_fn(**accepted(input_fn, offered))
        hooks: tuple[Any, ...] = ()
        if isinstance(result, v1.data.Dataset | tf.data.Dataset):
            iterator = v1.data.make_initializable_iterator(result)
            result, hooks = iterator.get_next(), (_StartIterator(iterator),)
    if result is None:
        raise ArgumentError("input_fn returned None; return features, (features, labels) or a tf.data.Dataset of them")
    if not isinstance(result, list | tuple):
        return Batch(result, None, hooks)
    if len(result) != 2:
        raise ArgumentError(f"input_fn should return (features, labels) as a len 2 tuple; it has {len(result)} parts")
    return Batch(result[0], result[1], hooks)


def ends(batch: Batch) -> bool:
    """Whether something in the graph can say that the data are over."""
    return bool(batch.hooks or v1.get_collection(v1.GraphKeys.QUEUE_RUNNERS))
