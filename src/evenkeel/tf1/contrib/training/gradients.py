# SPDX-License-Identifier: Apache-2.0
"""How a loss becomes a training operation: `create_train_op`, and what is done to gradients on the way."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tensorflow as tf

v1 = tf.compat.v1

# The default for global_step; None means that none is incremented.
USE_GLOBAL_STEP = 0

Pairs = list[tuple[Any, Any]]


def create_train_op(
    total_loss: Any,
    optimizer: Any,
    global_step: Any = USE_GLOBAL_STEP,
    update_ops: Sequence[Any] | None = None,
    variables_to_train: Sequence[Any] | None = None,
    transform_grads_fn: Callable[[Pairs], Pairs] | None = None,
    summarize_gradients: bool = False,
    gate_gradients: int = v1.train.Optimizer.GATE_OP,
    aggregation_method: Any = None,
    colocate_gradients_with_ops: bool = False,
    check_numerics: bool = True,
) -> Any:
    """The loss, as a tensor that takes a training step when it is evaluated; UPDATE_OPS run before.

    Args:
        total_loss: scalar tensor.
        optimizer: of `tf.train`.
        global_step: variable that counts the steps; that of the graph, made where there is none, by default; None for
            none.
        update_ops: run before the loss; those of the collection UPDATE_OPS by default. With a list that lacks some of
            them there is a warning, and those are not run.
        variables_to_train: the trainable ones by default.
        transform_grads_fn: of `(gradient, variable)` pairs, gives such pairs.
        summarize_gradients: makes a histogram and a norm of each gradient.
        gate_gradients, aggregation_method, colocate_gradients_with_ops: of `compute_gradients`.
        check_numerics: a loss that is infinite or NaN is an InvalidArgumentError.

    Raises:
        AssertionError: no variables to train, or one that is not trainable.

    Example:
        >>> with tf.Graph().as_default(), v1.Session() as session:
        ...     w = v1.get_variable("w", initializer=4.0)
        ...     train = create_train_op(w * w, v1.train.GradientDescentOptimizer(0.25))
        ...     session.run(v1.global_variables_initializer())
        ...     float(session.run(train)), float(session.run(w)), int(session.run(v1.train.get_global_step()))
        (16.0, 2.0, 1)
    """
    if global_step is USE_GLOBAL_STEP:
        global_step = v1.train.get_or_create_global_step()
    collected = list(dict.fromkeys(v1.get_collection(v1.GraphKeys.UPDATE_OPS)))
    updates = collected if update_ops is None else list(dict.fromkeys(update_ops))
    if not set(map(id, collected)) <= set(map(id, updates)):
        v1.logging.warning("update_ops in create_train_op does not contain all the update_ops in GraphKeys.UPDATE_OPS")
    if updates:
        with tf.control_dependencies(updates):
            barrier = tf.no_op(name="update_barrier")
        with tf.control_dependencies([barrier]):
            total_loss = tf.identity(total_loss)
    trainable = v1.trainable_variables()
    variables = trainable if variables_to_train is None else list(variables_to_train)
    assert variables, "no variables to train; there are no trainable ones, or variables_to_train is empty"
    known = set(map(id, trainable))
    for variable in variables:
        assert id(variable) in known or variable.trainable, f"{variable.name} is not trainable"
    pairs = optimizer.compute_gradients(
        total_loss,
        variables,
        gate_gradients=gate_gradients,
        aggregation_method=aggregation_method,
        colocate_gradients_with_ops=colocate_gradients_with_ops,
    )
    if transform_grads_fn is not None:
        pairs = transform_grads_fn(pairs)
    if summarize_gradients:
        with v1.name_scope("summarize_grads"):
            add_gradients_summaries(pairs)
    step = optimizer.apply_gradients(pairs, global_step=global_step)
    with v1.name_scope("train_op"):
        if check_numerics:
            total_loss = tf.debugging.check_numerics(total_loss, "LossTensor is inf or nan")
        with tf.control_dependencies([step]):
            train = tf.identity(total_loss)
    v1.add_to_collection(v1.GraphKeys.TRAIN_OP, train)
    return train


def add_gradients_summaries(grads_and_vars: Pairs) -> list[Any]:
    """A histogram and the norm of each gradient, as summaries."""
    summaries = []
    for gradient, variable in grads_and_vars:
        if gradient is None:
            v1.logging.info("Var %s has no gradient", variable.op.name)
            continue
        values = _values(gradient)
        summaries.append(v1.summary.histogram(variable.op.name + "_gradient", values))
        summaries.append(v1.summary.scalar(variable.op.name + "_gradient_norm", tf.linalg.global_norm([values])))
    return summaries


def clip_gradient_norms(gradients_to_variables: Pairs, max_norm: float) -> Pairs:
    """Each gradient by itself, scaled down to a norm of at most `max_norm`."""
    return [
        (None if gradient is None else _mapped(lambda values: tf.clip_by_norm(values, max_norm), gradient), variable)
        for gradient, variable in gradients_to_variables
    ]


def clip_gradient_norms_fn(max_norm: float) -> Callable[[Pairs], Pairs]:
    """`clip_gradient_norms`, as a `transform_grads_fn`."""
    return lambda pairs: clip_gradient_norms(pairs, max_norm)


def multiply_gradients(grads_and_vars: Pairs, gradient_multipliers: Mapping[Any, Any]) -> Pairs:
    """Gradients, times a factor for some variables.

    Args:
        gradient_multipliers: variable, or its name -> factor.

    Raises:
        ValueError: pairs that are not a list, factors that are not a dict, an empty dict, or a factor for a variable
            without a gradient.
    """
    if not isinstance(grads_and_vars, list):
        raise ValueError(f"`grads_and_vars` must be a list; got {type(grads_and_vars).__name__}")
    if not isinstance(gradient_multipliers, Mapping) or not gradient_multipliers:
        raise ValueError(f"`gradient_multipliers` must be a dict, and not empty; got {gradient_multipliers!r}")
    # Reference variables and strings are keys in programs; names serve for both.
    factors = {key if isinstance(key, str) else key.op.name: value for key, value in gradient_multipliers.items()}

    def multiplied(gradient: Any, name: str) -> Any:
        if name not in factors:
            return gradient
        if gradient is None:
            raise ValueError(f"Requested multiple of `None` gradient of {name}; take it out of gradient_multipliers")
        return _mapped(lambda values: values * tf.cast(factors[name], values.dtype), gradient)

    return [(multiplied(gradient, variable.op.name), variable) for gradient, variable in grads_and_vars]


def _values(gradient: Any) -> Any:
    return gradient.values if isinstance(gradient, tf.IndexedSlices) else gradient


def _mapped(function: Callable[[Any], Any], gradient: Any) -> Any:
    """A gradient, which may be sparse, with `function` of its values."""
    if isinstance(gradient, tf.IndexedSlices):
        return tf.IndexedSlices(function(gradient.values), gradient.indices, gradient.dense_shape)
    return function(gradient)
