# SPDX-License-Identifier: Apache-2.0
"""What large weights cost."""

from __future__ import annotations

import numbers
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import tensorflow as tf

v1 = tf.compat.v1

Regularizer = Callable[[Any], Any]


def l1_regularizer(scale: float, scope: str | None = None) -> Regularizer:
    """`scale * sum(abs(weights))`.

    Args:
        scale: a float of at least 0; 0.0 switches the regularizer off: it returns None then.

    Raises:
        ValueError: an integer, or less than 0.
    """
    return _scaled(scale, scope, "l1_regularizer", lambda weights: tf.reduce_sum(tf.abs(weights)))


def l2_regularizer(scale: float, scope: str | None = None) -> Regularizer:
    """`scale * sum(weights ** 2) / 2`; `scale` as for `l1_regularizer`.

    Example:
        >>> with tf.Graph().as_default(), v1.Session() as session:
        ...     float(session.run(l2_regularizer(0.1)(tf.constant([2.0, 4.0]))))
        1.0
    """
    return _scaled(scale, scope, "l2_regularizer", tf.nn.l2_loss)


def l1_l2_regularizer(scale_l1: float = 1.0, scale_l2: float = 1.0, scope: str | None = None) -> Regularizer:
    """The sum of `l1_regularizer(scale_l1)` and `l2_regularizer(scale_l2)`."""
    _check("scale_l1", scale_l1)
    _check("scale_l2", scale_l2)
    scope = scope or "l1_l2_regularizer"
    if scale_l1 == 0.0:
        return l2_regularizer(scale_l2, scope)
    if scale_l2 == 0.0:
        return l1_regularizer(scale_l1, scope)
    return _sum([l1_regularizer(scale_l1), l2_regularizer(scale_l2)], scope)


def sum_regularizer(regularizer_list: Iterable[Regularizer | None], scope: str | None = None) -> Regularizer | None:
    """The sum of several; None stands for no regularizer, and is returned if there is no other."""
    given = [regularizer for regularizer in regularizer_list if regularizer is not None]
    return _sum(given, scope) if given else None


def apply_regularization(regularizer: Regularizer, weights_list: Sequence[Any] | None = None) -> Any:
    """The sum of the penalties of some weights; it also goes to REGULARIZATION_LOSSES.

    Args:
        weights_list: tensors; those of the collection WEIGHTS by default.

    Raises:
        ValueError: no weights, or a penalty that is not a scalar.
    """
    weights_list = weights_list or v1.get_collection(v1.GraphKeys.WEIGHTS)
    if not weights_list:
        raise ValueError("No weights to regularize; weights_list and the collection WEIGHTS are empty")
    with v1.name_scope("get_regularization_penalty", values=weights_list) as scope:
        penalties = [regularizer(weights) for weights in weights_list]
        penalties = [tf.constant(0.0) if penalty is None else penalty for penalty in penalties]
        for penalty in penalties:
            if penalty.shape.rank != 0:
                raise ValueError(
                    f"regularizer must return a scalar Tensor instead of a Tensor with rank {penalty.shape.rank}"
                )
        total = tf.add_n(penalties, name=scope)
        v1.add_to_collection(v1.GraphKeys.REGULARIZATION_LOSSES, total)
        return total


def _check(name: str, scale: Any) -> None:
    if isinstance(scale, numbers.Integral):
        raise ValueError(f"{name} cannot be an integer: {scale}; write {float(scale)}")
    if isinstance(scale, numbers.Real) and scale < 0.0:
        raise ValueError(f"Setting a scale less than 0 on a regularizer: {name}={scale}; give 0.0 or more")


def _scaled(scale: Any, scope: str | None, default: str, norm: Callable[[Any], Any]) -> Regularizer:
    _check("scale", scale)
    if isinstance(scale, numbers.Real) and scale == 0.0:
        v1.logging.info("Scale of 0 disables regularizer.")
        return lambda weights: None

    def regularizer(weights: Any, name: str | None = None) -> Any:
        with v1.name_scope(scope, default, [weights]) as name:
            factor = tf.convert_to_tensor(scale, dtype=weights.dtype.base_dtype, name="scale")
            return tf.multiply(factor, norm(weights), name=name)

    return regularizer


def _sum(regularizers: Iterable[Regularizer], scope: str | None) -> Regularizer:
    def regularizer(weights: Any) -> Any:
        with v1.name_scope(scope, "sum_regularizer", [weights]) as name:
            penalties = [penalty for each in regularizers if (penalty := each(weights)) is not None]
            return tf.add_n(penalties, name=name) if penalties else None

    return regularizer
