# SPDX-License-Identifier: Apache-2.0
"""How a step of `functional` becomes operations of a graph: the phase as a tensor, the new state as updates."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import tensorflow as tf

from evenkeel.functional.batch_norm import Parameters, inference_step, training_step
from evenkeel.functional.choice import without_kernels
from evenkeel.functional.moving import State

v1 = tf.compat.v1

_learning_phases: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()


def phase(training: Any) -> Any:
    """Whether a step is a training step: True or False where that is known when the graph is built, else a tensor.

    Args:
        training: a bool or a number, a bool tensor or variable; None is a placeholder `keras_learning_phase`, one a
            graph, which is False unless fed.

    Raises:
        TypeError: a tensor that is not bool, or something else.

    Example:
        >>> with tf.Graph().as_default():
        ...     phase(1), phase(tf.constant(False)), phase(tf.compat.v1.placeholder(tf.bool)).dtype.name
        (True, False, 'bool')
    """
    if training is None:
        graph = v1.get_default_graph()
        if graph not in _learning_phases:
            with graph.as_default(), tf.init_scope(), v1.name_scope(None):
                _learning_phases[graph] = v1.placeholder_with_default(False, [], "keras_learning_phase")
        return _learning_phases[graph]
    if isinstance(training, str | bytes):
        raise TypeError(f"training={training!r} is not a bool; give True, False or a bool tensor")
    if not isinstance(training, tf.Tensor | tf.Variable):
        return bool(training)
    if training.dtype.base_dtype != tf.bool:
        raise TypeError(f"training is a tensor of {training.dtype.name}; give a bool tensor, or tf.cast it to tf.bool")
    if isinstance(training, tf.Tensor) and (known := tf.get_static_value(training)) is not None:
        return bool(known)
    return tf.convert_to_tensor(training)


def step(
    x: Any,
    params: Parameters,
    state: State,
    training: Any,
    *,
    axis: Any,
    epsilon: float,
    cond: str | None = None,
    **options: Any,
) -> tuple[Any, State | None]:
    """`y`, and what the batch says of each entry of the state; None where it says nothing, as in inference.

    An entry is the old one where a batch is not to be trusted. The moving averages towards it are for
    `train.assign_moving_average`: in one operation with one look at the variable, so that towers, and rounds of a loop,
    may come together.

    Args:
        training: from `phase`.
        cond: name of the `tf.cond` over it.
    """
    shared = {"axis": axis, "epsilon": epsilon}
    if training is False:
        return inference_step(x, params, state, **shared)[0], None
    options["momentum"] = 0.0

    def trained() -> tuple[Any, State]:
        # Workaround: in a branch of TensorFlow 2's control flow, a kernel is but a second cond round the formula, and
        # the gradient of a cond in a cond, in a layer of Keras, may sum bools in 2.21: "unsupported dtype 10".
        in_branch = v1.get_default_graph().building_function and not v1.executing_eagerly_outside_functions()
        with without_kernels() if in_branch else nullcontext():
            return training_step(x, params, state, **shared, **options)

    if training is True:
        return trained()
    kept = [name for name, value in state._asdict().items() if value is not None]

    def flat(result: tuple[Any, State]) -> tuple[Any, ...]:
        y, new = result
        return y, *(tf.identity(getattr(new, name)) for name in kept)

    y, *new = v1.cond(
        training,
        lambda: flat(trained()),
        lambda: flat(inference_step(x, params, state, **shared)),
        name=cond,
    )
    return y, State(**dict(zip(kept, new, strict=True)))


def fused_epsilon(epsilon: float) -> float:
    """What TensorFlow 1 raised a smaller epsilon to in its fused operation, for the sake of cuDNN."""
    return max(epsilon, 1.001e-5)


def strided_groups(x: Any, rows: int, *, back: bool = False) -> Any:
    """Rows reordered so that TensorFlow's virtual batches, every n-th row, lie side by side; or back.

    Raises:
        InvalidArgumentError: when the graph runs, `rows` does not divide the batch.

    Example:
        >>> with tf.compat.v1.Session(graph=tf.Graph()) as session, session.graph.as_default():
        ...     x = tf.reshape(tf.range(6), [6, 1])
        ...     session.run([strided_groups(x, 2), strided_groups(strided_groups(x, 2), 2, back=True)])[0].ravel()
        array([0, 3, 1, 4, 2, 5], dtype=int32)
    """
    shape = tf.shape(x)
    split = [[-1, rows] if back else [rows, -1], shape[1:]]
    grouped = tf.reshape(x, tf.concat(split, 0))
    swapped = tf.transpose(grouped, [1, 0, *range(2, x.shape.rank + 1)])
    return tf.ensure_shape(tf.reshape(swapped, shape), x.shape)


@contextmanager
def unpartitioned(scope: Any) -> Iterator[None]:
    """Variables made inside are whole, whatever the partitioner of the scope: moving averages are."""
    partitioner = scope.partitioner
    scope.set_partitioner(None)
    try:
        yield
    finally:
        scope.set_partitioner(partitioner)


def output_name(fused: bool, training: Any) -> str | None:
    """What 1.15 called the operation of the output, for who asks a graph for it; None where it had no such name."""
    if fused:
        return "FusedBatchNormV3" if isinstance(training, bool) else None
    return "batchnorm/add_1"


def check_type(x: Any) -> None:
    """
    Raises:
        TypeError: the input is not floating point.
    """
    if not x.dtype.is_floating:
        raise TypeError(f"inputs of {x.dtype.name} cannot be normalized; tf.cast them to a floating point type")


def check_fused_type(dtype: Any, remedy: str) -> None:
    """
    Raises:
        TypeError: float64, of which 1.15's fused operation knew nothing.
    """
    if tf.as_dtype(dtype) == tf.float64:
        raise TypeError(
            "Value passed to parameter 'x' has DataType float64 not in list of allowed values: float16, bfloat16, "
            f"float32; {remedy}"
        )
