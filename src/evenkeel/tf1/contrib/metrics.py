# SPDX-License-Identifier: Apache-2.0
"""`tf.contrib.metrics`: those of `tf.metrics`, predictions first, and called `streaming_...`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from evenkeel.tf1.contrib.paths import register

v1 = tf.compat.v1


def _predictions_first(name: str) -> Callable[..., Any]:
    """`tf.metrics.<name>(labels, predictions, ...)` with predictions first."""
    metric = getattr(v1.metrics, name)

    def streaming(predictions: Any, labels: Any, *args: Any, **kwargs: Any) -> Any:
        return metric(labels, predictions, *args, **kwargs)

    signature = inspect.signature(metric)
    labels, predictions, *rest = signature.parameters.values()
    streaming.__signature__ = signature.replace(parameters=[predictions, labels, *rest])  # type: ignore[attr-defined]
    streaming.__name__ = streaming.__qualname__ = f"streaming_{name}"
    streaming.__doc__ = f"""`tf.metrics.{name}`, predictions first.

    Returns:
        The value so far, and the operation that adds a batch to it.
    """
    return streaming


streaming_mean = v1.metrics.mean
streaming_mean_tensor = v1.metrics.mean_tensor
streaming_percentage_less = v1.metrics.percentage_below

streaming_accuracy = _predictions_first("accuracy")
streaming_auc = _predictions_first("auc")
streaming_false_negatives = _predictions_first("false_negatives")
streaming_false_negatives_at_thresholds = _predictions_first("false_negatives_at_thresholds")
streaming_false_positives = _predictions_first("false_positives")
streaming_false_positives_at_thresholds = _predictions_first("false_positives_at_thresholds")
streaming_mean_absolute_error = _predictions_first("mean_absolute_error")
streaming_mean_cosine_distance = _predictions_first("mean_cosine_distance")
streaming_mean_iou = _predictions_first("mean_iou")
streaming_mean_relative_error = _predictions_first("mean_relative_error")
streaming_mean_squared_error = _predictions_first("mean_squared_error")
streaming_precision = _predictions_first("precision")
streaming_precision_at_thresholds = _predictions_first("precision_at_thresholds")
streaming_recall = _predictions_first("recall")
streaming_sparse_recall_at_k = _predictions_first("recall_at_k")
streaming_recall_at_thresholds = _predictions_first("recall_at_thresholds")
streaming_root_mean_squared_error = _predictions_first("root_mean_squared_error")
streaming_sensitivity_at_specificity = _predictions_first("sensitivity_at_specificity")
streaming_sparse_average_precision_at_k = _predictions_first("sparse_average_precision_at_k")
streaming_sparse_precision_at_k = _predictions_first("sparse_precision_at_k")
streaming_specificity_at_sensitivity = _predictions_first("specificity_at_sensitivity")
streaming_true_negatives = _predictions_first("true_negatives")
streaming_true_negatives_at_thresholds = _predictions_first("true_negatives_at_thresholds")
streaming_true_positives = _predictions_first("true_positives")
streaming_true_positives_at_thresholds = _predictions_first("true_positives_at_thresholds")


def streaming_recall_at_k(
    predictions: Any,
    labels: Any,
    k: int,
    weights: Any = None,
    metrics_collections: Any = None,
    updates_collections: Any = None,
    name: str | None = None,
) -> Any:
    """Share of examples whose label is among the `k` largest predictions.

    Args:
        predictions: shape `(batch, classes)`.
        labels: integer, shape `(batch,)`.
        weights: how much each example counts.

    Returns:
        The value so far, and the operation that adds a batch to it.
    """
    found = tf.cast(tf.math.in_top_k(targets=labels, predictions=predictions, k=k), tf.float32)
    return streaming_mean(found, weights, metrics_collections, updates_collections, name or f"recall_at_{k}")


def streaming_covariance(
    predictions: Any,
    labels: Any,
    weights: Any = None,
    metrics_collections: Any = None,
    updates_collections: Any = None,
    name: str | None = None,
) -> Any:
    """Sample covariance (n - 1) of two tensors of one shape; NaN of fewer than two values.

    Args:
        weights: how often each value counts; broadcasts to the shape.

    Returns:
        The value so far, and the operation that adds a batch to it.

    References:
        Chan, Golub and LeVeque 1979, Updating formulae and a pairwise algorithm for computing sample variances.
    """
    with v1.variable_scope(name, "covariance", [predictions, labels]):
        predictions, labels = (tf.cast(value, tf.float32) for value in (predictions, labels))
        weights = tf.broadcast_to(tf.cast(1.0 if weights is None else weights, tf.float32), tf.shape(predictions))
        kept = [_metric_variable(each) for each in ("count", "mean_prediction", "mean_label", "comoment")]
        count, mean_prediction, mean_label, comoment = (tf.identity(variable) for variable in kept)
        added = tf.reduce_sum(weights)
        means = [tf.math.divide_no_nan(tf.reduce_sum(weights * it), added) for it in (predictions, labels)]
        within = tf.reduce_sum(weights * (predictions - means[0]) * (labels - means[1]))
        away = means[0] - mean_prediction, means[1] - mean_label
        share = tf.math.divide_no_nan(added, count + added)
        new = [
            count + added,
            mean_prediction + away[0] * share,
            mean_label + away[1] * share,
            comoment + within + away[0] * away[1] * count * share,
        ]
        with tf.control_dependencies(new):
            assigned = [v1.assign(variable, value) for variable, value in zip(kept, new, strict=True)]
        value = _covariance(comoment, count, "covariance")
        with tf.control_dependencies(assigned):
            update = _covariance(new[3], new[0], "update_op")
        v1.add_to_collections(metrics_collections or [], value)
        v1.add_to_collections(updates_collections or [], update)
        return value, update


def streaming_pearson_correlation(
    predictions: Any,
    labels: Any,
    weights: Any = None,
    metrics_collections: Any = None,
    updates_collections: Any = None,
    name: str | None = None,
) -> Any:
    """Pearson's correlation of two tensors of one shape; arguments and result as `streaming_covariance`."""
    with v1.variable_scope(name, "pearson_r", [predictions, labels]):
        both, first, second = (
            streaming_covariance(left, right, weights, name=each)
            for left, right, each in (
                (predictions, labels, "covariance"),
                (predictions, predictions, "variance_predictions"),
                (labels, labels, "variance_labels"),
            )
        )
        value, update = (
            tf.truediv(both[number], tf.sqrt(first[number]) * tf.sqrt(second[number]), name=each)
            for number, each in enumerate(("pearson_r", "update_op"))
        )
        v1.add_to_collections(metrics_collections or [], value)
        v1.add_to_collections(updates_collections or [], update)
        return value, update


def _metric_variable(name: str) -> Any:
    collections = [v1.GraphKeys.LOCAL_VARIABLES, v1.GraphKeys.METRIC_VARIABLES]
    return v1.get_variable(name, [], initializer=v1.zeros_initializer(), trainable=False, collections=collections)


def _covariance(comoment: Any, count: Any, name: str) -> Any:
    return tf.where(count < 2, float("nan"), tf.math.divide_no_nan(comoment, count - 1), name=name)


def accuracy(predictions: Any, labels: Any, weights: Any = None, name: str | None = None) -> Any:
    """Share of predictions that equal their label, in this batch.

    Args:
        predictions, labels: of one shape and one type: integer, boolean or string.
        weights: how much each counts.

    Raises:
        ValueError: floating point numbers, or two types.
    """
    if labels.dtype != predictions.dtype or not (labels.dtype.is_integer or labels.dtype in (tf.bool, tf.string)):
        raise ValueError(
            f"predictions ({predictions.dtype}) and labels ({labels.dtype}) should have one type: integer, bool, string"
        )
    labels.shape.assert_is_compatible_with(predictions.shape)
    with v1.name_scope(name, "accuracy", [predictions, labels]):
        right = tf.cast(tf.equal(predictions, labels), tf.float32)
        if weights is None:
            return tf.reduce_mean(right)
        weights = tf.broadcast_to(tf.cast(weights, tf.float32), tf.shape(right))
        return tf.reduce_sum(right * weights) / tf.reduce_sum(weights)


def aggregate_metrics(*value_update_tuples: Any) -> tuple[list[Any], list[Any]]:
    """`(value, update)` pairs as a list of values and a list of updates.

    Raises:
        ValueError: nothing was given.

    Example:
        >>> aggregate_metrics(("value", "update"), ("other", "its update"))
        (['value', 'other'], ['update', 'its update'])
    """
    if not value_update_tuples:
        raise ValueError("Expected at least one value_tensor/update_op pair")
    values, updates = zip(*value_update_tuples, strict=True)
    return list(values), list(updates)


def aggregate_metric_map(names_to_tuples: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Name -> `(value, update)`, as name -> value and name -> update.

    Example:
        >>> aggregate_metric_map({"accuracy": ("value", "update")})
        ({'accuracy': 'value'}, {'accuracy': 'update'})
    """
    values = {name: value for name, (value, _) in names_to_tuples.items()}
    return values, {name: update for name, (_, update) in names_to_tuples.items()}


register(__name__, "python.metrics", classification="")
register(__name__, "python.ops", metric_ops="")

__all__ = [
    "accuracy",
    "aggregate_metric_map",
    "aggregate_metrics",
    "streaming_accuracy",
    "streaming_auc",
    "streaming_covariance",
    "streaming_false_negatives",
    "streaming_false_negatives_at_thresholds",
    "streaming_false_positives",
    "streaming_false_positives_at_thresholds",
    "streaming_mean",
    "streaming_mean_absolute_error",
    "streaming_mean_cosine_distance",
    "streaming_mean_iou",
    "streaming_mean_relative_error",
    "streaming_mean_squared_error",
    "streaming_mean_tensor",
    "streaming_pearson_correlation",
    "streaming_percentage_less",
    "streaming_precision",
    "streaming_precision_at_thresholds",
    "streaming_recall",
    "streaming_recall_at_k",
    "streaming_recall_at_thresholds",
    "streaming_root_mean_squared_error",
    "streaming_sensitivity_at_specificity",
    "streaming_sparse_average_precision_at_k",
    "streaming_sparse_precision_at_k",
    "streaming_sparse_recall_at_k",
    "streaming_specificity_at_sensitivity",
    "streaming_true_negatives",
    "streaming_true_negatives_at_thresholds",
    "streaming_true_positives",
    "streaming_true_positives_at_thresholds",
]
