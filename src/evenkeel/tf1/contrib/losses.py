# SPDX-License-Identifier: Apache-2.0
"""`tf.contrib.losses`: those of `tf.losses`, predictions first, as older programs have them."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from evenkeel.tf1.contrib.framework.scopes import add_arg_scope
from evenkeel.tf1.contrib.paths import register

v1 = tf.compat.v1


@add_arg_scope
def absolute_difference(predictions: Any, labels: Any = None, weights: Any = 1.0, scope: str | None = None) -> Any:
    """Mean of `weights * abs(predictions - labels)` over what has a weight other than 0; collected in LOSSES.

    Args:
        predictions, labels: of one shape.
        weights: a number, or of a shape that broadcasts to that of the predictions.

    Raises:
        ValueError: no predictions or no labels.

    Example:
        >>> with tf.Graph().as_default(), v1.Session():
        ...     float(absolute_difference([1.0, 4.0], [1.0, 2.0]).eval())
        1.0
    """
    _given(predictions=predictions, labels=labels)
    return v1.losses.absolute_difference(labels, predictions, weights, scope)


@add_arg_scope
def add_loss(loss: Any, loss_collection: str | None = v1.GraphKeys.LOSSES) -> None:
    """Puts a loss into a collection; None for none."""
    v1.losses.add_loss(loss, loss_collection)


def compute_weighted_loss(losses: Any, weights: Any = 1.0, scope: str | None = None) -> Any:
    """Mean of `weights * losses` over what has a weight other than 0; collected in LOSSES."""
    return v1.losses.compute_weighted_loss(losses, weights, scope)


@add_arg_scope
def cosine_distance(
    predictions: Any,
    labels: Any = None,
    axis: int | None = None,
    weights: Any = 1.0,
    scope: str | None = None,
    dim: int | None = None,
) -> Any:
    """`1 - sum(predictions * labels)` along `axis`, of vectors of length 1.

    Raises:
        ValueError: no predictions, no labels, no axis, or both `axis` and its old name `dim`.
    """
    _given(predictions=predictions, labels=labels)
    if (axis is None) == (dim is None):
        raise ValueError(f"You must specify 'axis', once; got axis={axis}, dim={dim}")
    return v1.losses.cosine_distance(labels, predictions, dim if axis is None else axis, weights, scope)


def get_losses(scope: str | None = None, loss_collection: str = v1.GraphKeys.LOSSES) -> list[Any]:
    """The losses of a collection whose name begins with `scope`."""
    return v1.losses.get_losses(scope, loss_collection)


def get_regularization_losses(scope: str | None = None) -> list[Any]:
    """The losses of REGULARIZATION_LOSSES whose name begins with `scope`."""
    return v1.losses.get_regularization_losses(scope)


def get_total_loss(add_regularization_losses: bool = True, name: str = "total_loss") -> Any:
    """The sum of LOSSES, and of REGULARIZATION_LOSSES."""
    return v1.losses.get_total_loss(add_regularization_losses, name)


@add_arg_scope
def hinge_loss(logits: Any, labels: Any = None, scope: str | None = None) -> Any:
    """`relu(1 - (2 labels - 1) logits)`, of the shape of the logits: neither summed nor collected.

    Raises:
        ValueError: the shapes differ.
    """
    _given(logits=logits, labels=labels)
    with v1.name_scope(scope, "hinge_loss", [logits, labels]):
        logits, labels = tf.convert_to_tensor(logits), tf.cast(labels, tf.float32)
        logits.shape.assert_is_compatible_with(labels.shape)
        return tf.nn.relu(1.0 - (2.0 * labels - 1.0) * logits)


@add_arg_scope
def log_loss(
    predictions: Any, labels: Any = None, weights: Any = 1.0, epsilon: float = 1e-7, scope: str | None = None
) -> Any:
    """`-labels * log(predictions + epsilon) - (1 - labels) * log(1 - predictions + epsilon)`, as a weighted mean."""
    _given(predictions=predictions, labels=labels)
    return v1.losses.log_loss(labels, predictions, weights, epsilon, scope)


@add_arg_scope
def mean_pairwise_squared_error(
    predictions: Any, labels: Any = None, weights: Any = 1.0, scope: str | None = None
) -> Any:
    """Squared error of the differences between the values of an example, as a weighted mean."""
    _given(predictions=predictions, labels=labels)
    return v1.losses.mean_pairwise_squared_error(labels, predictions, weights, scope)


@add_arg_scope
def mean_squared_error(predictions: Any, labels: Any = None, weights: Any = 1.0, scope: str | None = None) -> Any:
    """`(predictions - labels) ** 2`, as a weighted mean."""
    _given(predictions=predictions, labels=labels)
    return v1.losses.mean_squared_error(labels, predictions, weights, scope)


@add_arg_scope
def sigmoid_cross_entropy(
    logits: Any, multi_class_labels: Any, weights: Any = 1.0, label_smoothing: float = 0, scope: str | None = None
) -> Any:
    """Cross entropy of labels that may each be 0 or 1, as a weighted mean."""
    return v1.losses.sigmoid_cross_entropy(multi_class_labels, logits, weights, label_smoothing, scope)


@add_arg_scope
def softmax_cross_entropy(
    logits: Any, onehot_labels: Any, weights: Any = 1.0, label_smoothing: float = 0, scope: str | None = None
) -> Any:
    """Cross entropy of labels of which one is 1, as a weighted mean. No gradient flows into the labels."""
    labels = tf.stop_gradient(tf.convert_to_tensor(onehot_labels))
    return v1.losses.softmax_cross_entropy(labels, logits, weights, label_smoothing, scope)


@add_arg_scope
def sparse_softmax_cross_entropy(logits: Any, labels: Any, weights: Any = 1.0, scope: str | None = None) -> Any:
    """Cross entropy of labels that are the number of a class, as a weighted mean.

    Args:
        labels: shape `(batch,)` or `(batch, 1)`.
    """
    return v1.losses.sparse_softmax_cross_entropy(labels, logits, weights, scope)


def _given(**arguments: Any) -> None:
    for name, value in arguments.items():
        if value is None:
            raise ValueError(f"{name} cannot be None.")


register(__name__, "python.losses", loss_ops="")

__all__ = [
    "absolute_difference",
    "add_loss",
    "compute_weighted_loss",
    "cosine_distance",
    "get_losses",
    "get_regularization_losses",
    "get_total_loss",
    "hinge_loss",
    "log_loss",
    "mean_pairwise_squared_error",
    "mean_squared_error",
    "sigmoid_cross_entropy",
    "softmax_cross_entropy",
    "sparse_softmax_cross_entropy",
]
