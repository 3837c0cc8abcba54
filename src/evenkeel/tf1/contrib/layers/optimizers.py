# SPDX-License-Identifier: Apache-2.0
"""How a loss becomes a training operation: `optimize_loss`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tensorflow as tf

v1 = tf.compat.v1

OPTIMIZER_CLS_NAMES: dict[str, Callable[..., Any]] = {
    "Adagrad": v1.train.AdagradOptimizer,
    "Adam": v1.train.AdamOptimizer,
    "Ftrl": v1.train.FtrlOptimizer,
    "Momentum": lambda learning_rate: v1.train.MomentumOptimizer(learning_rate, momentum=0.9),
    "RMSProp": v1.train.RMSPropOptimizer,
    "SGD": v1.train.GradientDescentOptimizer,
}
OPTIMIZER_SUMMARIES = ["learning_rate", "loss", "gradients", "gradient_norm", "global_gradient_norm"]


def optimize_loss(
    loss: Any,
    global_step: Any,
    learning_rate: Any,
    optimizer: Any,
    gradient_noise_scale: float | None = None,
    gradient_multipliers: Mapping[Any, Any] | None = None,
    clip_gradients: Any = None,
    learning_rate_decay_fn: Callable[[Any, Any], Any] | None = None,
    update_ops: Sequence[Any] | None = None,
    variables: Sequence[Any] | None = None,
    name: str | None = None,
    summaries: Sequence[str] | None = None,
    colocate_gradients_with_ops: bool = False,
    increment_global_step: bool = True,
) -> Any:
    """The loss, as a tensor that takes a training step when it is evaluated; UPDATE_OPS run before.

    Args:
        loss: scalar tensor.
        global_step: scalar integer variable; that of the graph for None.
        learning_rate: number or scalar tensor; None leaves it to the optimizer.
        optimizer: a name such as `"SGD"`, a class, an instance, or a function (of the learning rate, where there is
            one) that makes an instance.
        gradient_noise_scale: standard deviation of normal noise on the gradients.
        gradient_multipliers: variable, or its name -> factor of its gradient.
        clip_gradients: largest norm of all gradients together, or a function of `(gradient, variable)` pairs.
        learning_rate_decay_fn: of learning rate and global step, gives the learning rate.
        update_ops: run before the loss; those of the collection UPDATE_OPS by default.
        variables: to train; the trainable ones by default.
        name: of the variable scope; `OptimizeLoss`, made unique, by default.
        summaries: of `OPTIMIZER_SUMMARIES`; `"loss"`, `"learning_rate"` and `"global_gradient_norm"` by default.

    Raises:
        ValueError: an unknown or wrong optimizer, a learning rate or a global step that is not a scalar, no gradient.

    Example:
        >>> with tf.Graph().as_default(), v1.Session() as session:
        ...     w = v1.get_variable("w", initializer=4.0)
        ...     train = optimize_loss(w * w, v1.train.create_global_step(), 0.25, "SGD")
        ...     session.run(v1.global_variables_initializer())
        ...     float(session.run(train)), float(session.run(w))
        (16.0, 2.0)
    """
    loss = tf.convert_to_tensor(loss)
    if loss.shape.rank not in (0, None):
        raise ValueError(f"loss must be a scalar; got shape {loss.shape}")
    global_step = v1.train.get_global_step() if global_step is None else global_step
    if global_step is not None:
        v1.train.assert_global_step(global_step)
    with v1.variable_scope(name, "OptimizeLoss", [loss, global_step]):
        updates = list(dict.fromkeys(v1.get_collection(v1.GraphKeys.UPDATE_OPS) if update_ops is None else update_ops))
        if updates:
            with tf.control_dependencies(updates):
                loss = tf.identity(loss)
        chosen = _summaries(summaries)
        rate = _learning_rate(learning_rate, learning_rate_decay_fn, global_step)
        if rate is not None and "learning_rate" in chosen:
            v1.summary.scalar("learning_rate", rate)
        made = _optimizer(optimizer, rate)
        variables = v1.trainable_variables() if variables is None else variables
        pairs = made.compute_gradients(loss, variables, colocate_gradients_with_ops=colocate_gradients_with_ops)
        if gradient_noise_scale is not None:
            pairs = [(_noisy(gradient, gradient_noise_scale), variable) for gradient, variable in pairs]
        if gradient_multipliers is not None:
            pairs = _multiplied(pairs, gradient_multipliers)
        if "global_gradient_norm" in chosen:
            v1.summary.scalar("global_norm/gradient_norm", tf.linalg.global_norm([pair[0] for pair in pairs]))
        if callable(clip_gradients):
            pairs = clip_gradients(pairs)
        elif clip_gradients is not None:
            clipped, _ = tf.clip_by_global_norm([pair[0] for pair in pairs], clip_gradients)
            pairs = list(zip(clipped, [pair[1] for pair in pairs], strict=True))
        if "loss" in chosen:
            v1.summary.scalar("loss", loss)
        _summarize_gradients(pairs, chosen)
        step = made.apply_gradients(pairs, global_step=global_step if increment_global_step else None, name="train")
        with tf.control_dependencies([step]):
            return tf.identity(loss)


def _summaries(summaries: Sequence[str] | None) -> Sequence[str]:
    chosen = ["loss", "learning_rate", "global_gradient_norm"] if summaries is None else summaries
    for summary in chosen:
        if summary not in OPTIMIZER_SUMMARIES:
            raise ValueError(f"Summaries should be one of [{', '.join(OPTIMIZER_SUMMARIES)}], you provided {summary}.")
    return chosen


def _learning_rate(given: Any, decay: Callable[[Any, Any], Any] | None, global_step: Any) -> Any:
    if given is None:
        return None
    if tf.is_tensor(given) and given.shape.rank == 0:
        rate = given
    elif isinstance(given, float):
        if given < 0.0:
            raise ValueError(f"Invalid learning_rate {given}; give 0.0 or more")
        rate = v1.get_variable("learning_rate", [], trainable=False, initializer=v1.constant_initializer(given))
    else:
        raise ValueError(f"Learning rate should be 0d Tensor or float. Got {given} of type {type(given)}")
    if decay is None:
        return rate
    if global_step is None:
        raise ValueError("global_step is required for learning_rate_decay_fn.")
    return decay(rate, global_step)


def _optimizer(given: Any, rate: Any) -> Any:
    if isinstance(given, str):
        if given not in OPTIMIZER_CLS_NAMES:
            names = ", ".join(OPTIMIZER_CLS_NAMES)
            raise ValueError(f"Optimizer name should be one of [{names}], you provided {given}.")
        given = OPTIMIZER_CLS_NAMES[given]
        if rate is None:
            raise ValueError("Learning rate must not be None if optimizer is a name.")
    if isinstance(given, v1.train.Optimizer):
        return given
    if not callable(given):
        raise ValueError(f"Unrecognized optimizer: should be string, subclass, instance or function. Got {given}.")
    made = given() if rate is None else given(rate)
    if not isinstance(made, v1.train.Optimizer):
        raise ValueError(f"Unrecognized optimizer: function should return subclass of Optimizer. Got {made}.")
    return made


def _noisy(gradient: Any, scale: float) -> Any:
    if gradient is None:
        return None
    values = gradient.values if isinstance(gradient, tf.IndexedSlices) else gradient
    noisy = values + v1.truncated_normal(tf.shape(values)) * scale
    if isinstance(gradient, tf.IndexedSlices):
        return tf.IndexedSlices(noisy, gradient.indices, gradient.dense_shape)
    return noisy


def _multiplied(pairs: Any, factors: Mapping[Any, Any]) -> list[Any]:
    by_name = {key if isinstance(key, str) else key.op.name: factor for key, factor in factors.items()}

    def multiplied(gradient: Any, variable: Any) -> Any:
        factor = by_name.get(variable.op.name, by_name.get(variable.name))
        if gradient is None or factor is None:
            return gradient
        factor = tf.cast(factor, gradient.dtype)
        if isinstance(gradient, tf.IndexedSlices):
            return tf.IndexedSlices(gradient.values * factor, gradient.indices, gradient.dense_shape)
        return gradient * factor

    return [(multiplied(gradient, variable), variable) for gradient, variable in pairs]


def _summarize_gradients(pairs: Any, chosen: Sequence[str]) -> None:
    for gradient, variable in pairs:
        if gradient is None:
            continue
        values = gradient.values if isinstance(gradient, tf.IndexedSlices) else gradient
        if "gradients" in chosen:
            v1.summary.histogram(f"gradients/{variable.op.name}", values)
        if "gradient_norm" in chosen:
            v1.summary.scalar(f"gradient_norm/{variable.op.name}", tf.linalg.global_norm([values]))
    if "global_gradient_norm" in chosen:
        v1.summary.scalar("global_norm/clipped_gradient_norm", tf.linalg.global_norm([pair[0] for pair in pairs]))
