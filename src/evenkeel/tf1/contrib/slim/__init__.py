# SPDX-License-Identifier: Apache-2.0
"""`tf.contrib.slim`: layers, `arg_scope` and variables in one namespace, with training and evaluation."""

from __future__ import annotations

from evenkeel.tf1.contrib import framework, layers, losses, metrics
from evenkeel.tf1.contrib.framework import *  # noqa: F403
from evenkeel.tf1.contrib.layers import *  # noqa: F403
from evenkeel.tf1.contrib.layers import initializers, normalization, optimizers, regularizers
from evenkeel.tf1.contrib.paths import missing, register
from evenkeel.tf1.contrib.slim import evaluation, learning, model_analyzer, queues, summaries

__all__ = [
    *framework.__all__,
    *layers.__all__,
    "evaluation",
    "initializers",
    "learning",
    "losses",
    "metrics",
    "model_analyzer",
    "normalization",
    "optimizers",
    "queues",
    "regularizers",
    "summaries",
]

register(
    __name__,
    "python.slim",
    evaluation="evaluation",
    learning="learning",
    model_analyzer="model_analyzer",
    queues="queues",
    summaries="summaries",
)

__getattr__ = missing(
    __name__,
    {
        "data": "tf.data",
        "dataset": "tf.data.Dataset",
        "dataset_data_provider": "tf.data.Dataset",
        "nets": "the networks of the repository tensorflow/models, research/slim/nets",
        "parallel_reader": "tf.data.TFRecordDataset",
        "prefetch_queue": "tf.data.Dataset.prefetch",
        "tfexample_decoder": "tf.io.parse_single_example",
    },
)
