# SPDX-License-Identifier: Apache-2.0
"""How arrays in memory become batches."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from evenkeel.errors import ArgumentError

v1 = tf.compat.v1

__all__ = ["numpy_input_fn"]


def numpy_input_fn(
    x: Any,
    y: Any = None,
    batch_size: int = 128,
    num_epochs: int | None = 1,
    shuffle: bool | None = None,
    queue_capacity: int = 1000,
    num_threads: int = 1,
) -> Callable[[], Any]:
    """An input function over arrays, through a queue; the graph does not hold the data.

    Batches cross the ends of epochs, and only the last one may be smaller.

    Args:
        x: array, or dict of arrays, whose first dimension is the examples.
        y: array, or dict of arrays, of labels; without it the input function returns features alone.
        batch_size: examples a batch.
        num_epochs: times through the data; None never ends.
        shuffle: True or False, and not left out. True draws from the next `queue_capacity` examples.
        queue_capacity: examples that wait.
        num_threads: that fill the queue; with one, the order of the examples is known.

    Raises:
        ValueError: `shuffle` not said; no data; lengths that differ; a label named as a feature.
        TypeError: `x` is neither an array nor a dict.

    Example:
        >>> import numpy as np
        >>> input_fn = numpy_input_fn({"x": np.arange(5.0)}, np.arange(5), batch_size=2, shuffle=False)
        >>> with tf.Graph().as_default():
        ...     features, labels = input_fn()
        ...     with v1.train.MonitoredSession() as session:
        ...         session.run(labels)
        array([0, 1])
    """
    if not isinstance(shuffle, bool):
        raise ArgumentError(
            "shuffle must be provided and explicitly set as boolean (it is recommended to set it as True for "
            f"training); got {shuffle}"
        )
    features = _arrays("x", x)
    labels = {} if y is None else _arrays("y", y)
    if isinstance(y, Mapping) and (both := sorted(features.keys() & labels.keys())):
        raise ArgumentError(f"{len(both)} duplicate keys are found in both x and y: {both}; rename them in one")
    columns = [*features.values(), *labels.values()]
    if len({len(column) for column in columns}) > 1:
        shapes = {name: column.shape for name, column in [*features.items(), *labels.items()]}
        raise ArgumentError(
            "Length of tensors in x and y is mismatched. All elements in x and y must have the same length. Shapes: "
            f"{shapes}"
        )

    def input_fn() -> Any:
        batch = _dequeue(columns, batch_size, num_epochs, shuffle, queue_capacity, num_threads)
        here = dict(zip(features, batch, strict=False))
        result = here if isinstance(x, Mapping) else here["x"]
        if y is None:
            return result
        targets = dict(zip(labels, batch[len(features) :], strict=True))
        return result, (targets if isinstance(y, Mapping) else targets["y"])

    return input_fn


def _arrays(name: str, data: Any) -> dict[str, np.ndarray]:
    if isinstance(data, Mapping):
        if not data:
            raise ArgumentError(f"{name} cannot be empty dict; give name -> array")
        return {key: np.asarray(data[key]) for key in sorted(data)}
    if not isinstance(data, np.ndarray):
        raise TypeError(f"{name} must be a dict or array; got {type(data).__name__}")
    return {name: data}


def _dequeue(
    columns: list[np.ndarray],
    batch_size: int,
    num_epochs: int | None,
    shuffle: bool,
    capacity: int,
    num_threads: int,
) -> list[Any]:
    """The tensors of one batch, from a queue that a QueueRunner fills."""
    types = [tf.as_dtype(column.dtype) for column in columns]
    shapes = [column.shape[1:] for column in columns]
    if shuffle:
        queue = v1.RandomShuffleQueue(capacity, capacity // 4, types, shapes, seed=v1.get_seed(None)[0])
    else:
        queue = v1.FIFOQueue(capacity, types, shapes)
    chunks = _chunks(len(columns[0]), min(batch_size, capacity), num_epochs)
    lock = threading.Lock()

    def take() -> list[np.ndarray]:
        # A StopIteration from here is tf.errors.OutOfRangeError there.
        with lock:
            rows = next(chunks)
        return [column[rows] for column in columns]

    chunk = v1.py_func(take, [], types)
    for tensor, shape in zip(chunk, shapes, strict=True):
        tensor.set_shape([None, *shape])
    v1.train.add_queue_runner(v1.train.QueueRunner(queue, [queue.enqueue_many(chunk)] * num_threads))
    batch = queue.dequeue_many(batch_size) if num_epochs is None else queue.dequeue_up_to(batch_size)
    return batch if isinstance(batch, list) else [batch]


def _chunks(count: int, size: int, epochs: int | None) -> Iterator[slice]:
    epoch = 0
    while epochs is None or epoch < epochs:
        yield from (slice(start, start + size) for start in range(0, count, size))
        epoch += 1
