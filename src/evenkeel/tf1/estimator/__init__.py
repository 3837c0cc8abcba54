# SPDX-License-Identifier: Apache-2.0
"""`tf.estimator` as TensorFlow 1.15 had it: a model function, a directory, and train, evaluate, predict, export."""

from __future__ import annotations

from typing import NoReturn

import tensorflow as tf

from evenkeel.tf1.estimator import experimental, export, inputs
from evenkeel.tf1.estimator.config import RunConfig
from evenkeel.tf1.estimator.estimator import Estimator
from evenkeel.tf1.estimator.exporters import BestExporter, Exporter, FinalExporter, LatestExporter
from evenkeel.tf1.estimator.spec import EstimatorSpec, ModeKeys
from evenkeel.tf1.estimator.training import EvalSpec, TrainSpec, train_and_evaluate
from evenkeel.tf1.estimator.updates import UpdatesNotRunWarning
from evenkeel.tf1.estimator.warm_start import VocabInfo, WarmStartSettings

CheckpointSaverHook = tf.compat.v1.train.CheckpointSaverHook
CheckpointSaverListener = tf.compat.v1.train.CheckpointSaverListener
FeedFnHook = tf.compat.v1.train.FeedFnHook
FinalOpsHook = tf.compat.v1.train.FinalOpsHook
GlobalStepWaiterHook = tf.compat.v1.train.GlobalStepWaiterHook
LoggingTensorHook = tf.compat.v1.train.LoggingTensorHook
NanLossDuringTrainingError = tf.compat.v1.train.NanLossDuringTrainingError
NanTensorHook = tf.compat.v1.train.NanTensorHook
ProfilerHook = tf.compat.v1.train.ProfilerHook
SecondOrStepTimer = tf.compat.v1.train.SecondOrStepTimer
SessionRunArgs = tf.compat.v1.train.SessionRunArgs
SessionRunContext = tf.compat.v1.train.SessionRunContext
SessionRunHook = tf.compat.v1.train.SessionRunHook
SessionRunValues = tf.compat.v1.train.SessionRunValues
StepCounterHook = tf.compat.v1.train.StepCounterHook
StopAtStepHook = tf.compat.v1.train.StopAtStepHook
SummarySaverHook = tf.compat.v1.train.SummarySaverHook

__all__ = [
    "BestExporter",
    "CheckpointSaverHook",
    "CheckpointSaverListener",
    "Estimator",
    "EstimatorSpec",
    "EvalSpec",
    "Exporter",
    "FeedFnHook",
    "FinalExporter",
    "FinalOpsHook",
    "GlobalStepWaiterHook",
    "LatestExporter",
    "LoggingTensorHook",
    "ModeKeys",
    "NanLossDuringTrainingError",
    "NanTensorHook",
    "ProfilerHook",
    "RunConfig",
    "SecondOrStepTimer",
    "SessionRunArgs",
    "SessionRunContext",
    "SessionRunHook",
    "SessionRunValues",
    "StepCounterHook",
    "StopAtStepHook",
    "SummarySaverHook",
    "TrainSpec",
    "UpdatesNotRunWarning",
    "VocabInfo",
    "WarmStartSettings",
    "experimental",
    "export",
    "inputs",
    "train_and_evaluate",
]

_CANNED = ("Baseline", "BoostedTrees", "DNN", "Linear")


def __getattr__(name: str) -> NoReturn:
    missing = f"module {__name__!r} has no attribute {name!r}"
    if name.startswith(_CANNED):
        missing += (
            ": canned estimators are left out; write the model as a model_fn and give it to tf.estimator.Estimator"
        )
    elif name.lower().startswith("tpu"):
        missing += ": TPUs are left out; use tf.estimator.Estimator and tf.estimator.RunConfig"
    elif not name.startswith("_"):
        missing += "; docs/differences/estimator.md lists what is here"
    raise AttributeError(missing)
