# SPDX-License-Identifier: Apache-2.0
"""What an evaluation measures, and where its results are written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from evenkeel.errors import ArgumentError
from evenkeel.tf1.contrib.training.evaluation import get_or_create_eval_step
from evenkeel.tf1.estimator.spec import EstimatorSpec

v1 = tf.compat.v1

_RESERVED = (
    "Metric with name `{name}` is not allowed, because Estimator already defines a default metric with the same name."
)


def metrics_of(spec: EstimatorSpec) -> tuple[dict[str, Any], Any]:
    """Values of all metrics, with `loss` and `global_step`, and one operation that updates them.

    Raises:
        ValueError: the model has a metric of one of these two names.
    """
    for name in ("loss", v1.GraphKeys.GLOBAL_STEP):
        if name in spec.eval_metric_ops:
            raise ArgumentError(_RESERVED.format(name=name))
    pairs = dict(sorted({**spec.eval_metric_ops, "loss": v1.metrics.mean(spec.loss)}.items()))
    values = {name: value for name, (value, _) in pairs.items()}
    values[v1.GraphKeys.GLOBAL_STEP] = v1.train.get_global_step()
    return values, tf.group(*(update for _, update in pairs.values()))


def with_local_variables(scaffold: Any) -> Any:
    """A scaffold that initializes local variables its own way knows neither those of the metrics nor the counter."""
    if scaffold.local_init_op is None:
        return scaffold
    get_or_create_eval_step()
    both = tf.group(scaffold.local_init_op, v1.train.Scaffold.default_local_init_op())
    return v1.train.Scaffold(local_init_op=both, copy_from_scaffold=scaffold)


def write(directory: str, results: Mapping[str, Any], checkpoint: str | None) -> None:
    """Write results of a checkpoint, as events that TensorBoard shows."""
    step = int(results[v1.GraphKeys.GLOBAL_STEP])
    v1.logging.info("Saving dict for global step %d: %s", step, results)
    writer = v1.summary.FileWriterCache.get(directory)
    summary = v1.Summary()
    for name, value in results.items():
        if name == v1.GraphKeys.GLOBAL_STEP:
            continue
        if isinstance(value, bytes):
            summary.value.extend(v1.Summary.FromString(value).value)
        elif np.ndim(value) == 0 and np.issubdtype(np.asarray(value).dtype, np.number):
            summary.value.add(tag=name, simple_value=float(value))
        elif np.issubdtype(np.asarray(value).dtype, np.number):
            summary.value.add(tag=name, tensor=tf.make_tensor_proto(value))
        else:
            v1.logging.warning("Skipping summary for %s, must be a number, an array or a serialized Summary.", name)
    writer.add_summary(summary, step)
    if checkpoint:
        path = v1.Summary()
        path.value.add(tag="checkpoint_path", tensor=tf.make_tensor_proto(checkpoint, tf.string, [1]))
        path.value[0].metadata.plugin_data.plugin_name = "text"
        writer.add_summary(path, step)
    writer.flush()
