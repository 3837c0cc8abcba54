# SPDX-License-Identifier: Apache-2.0
"""`tf.contrib.training`: training operations, evaluation, hyperparameters."""

from __future__ import annotations

from evenkeel.tf1.contrib.paths import register
from evenkeel.tf1.contrib.training.evaluation import (
    StopAfterNEvalsHook,
    SummaryAtEndHook,
    checkpoints_iterator,
    evaluate_once,
    evaluate_repeatedly,
    get_or_create_eval_step,
    wait_for_new_checkpoint,
)
from evenkeel.tf1.contrib.training.gradients import (
    add_gradients_summaries,
    clip_gradient_norms,
    clip_gradient_norms_fn,
    create_train_op,
    multiply_gradients,
)
from evenkeel.tf1.contrib.training.hparams import HParams
from evenkeel.tf1.contrib.training.loop import train

register(__name__, "python.training", evaluation="", hparam="", training="")

__all__ = [
    "HParams",
    "StopAfterNEvalsHook",
    "SummaryAtEndHook",
    "add_gradients_summaries",
    "checkpoints_iterator",
    "clip_gradient_norms",
    "clip_gradient_norms_fn",
    "create_train_op",
    "evaluate_once",
    "evaluate_repeatedly",
    "get_or_create_eval_step",
    "multiply_gradients",
    "train",
    "wait_for_new_checkpoint",
]
