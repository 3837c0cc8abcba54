# SPDX-License-Identifier: Apache-2.0
"""How a network with `tf.layers` learns in a `tf.estimator.Estimator`."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import evenkeel.tf1 as tf
from evenkeel.errors import ArgumentError
from evenkeel.workloads.sessions import Measured, first_kernels, mlp, train_op
from evenkeel.workloads.training import Settings, unreadable

__all__ = ["Network"]


class Network:
    """A `Trainer` that keeps a model directory of its own, and saves a copy of it."""

    def __init__(self, settings: Settings, shape: tuple[int, ...]) -> None:
        self._settings = settings
        self._kernels = first_kernels(settings, shape)
        self._folder = tempfile.TemporaryDirectory()
        self._in_training_phase = self._estimator(measured_in_training_phase=True)
        self._network = self._estimator(measured_in_training_phase=False)

    def epoch(self, images: np.ndarray, labels: np.ndarray, *, after_step: Callable[[], None]) -> None:
        try:
            self._network.train(self._input_fn(images, labels), hooks=[_AfterStep(after_step)])
        except tf.estimator.NanLossDuringTrainingError as error:
            rate = self._settings.learning_rate
            raise ArgumentError(
                f"--learning-rate {rate} led to a loss that is no number; give a smaller one"
            ) from error

    def evaluate(self, images: np.ndarray, labels: np.ndarray, *, training: bool) -> tuple[float, float]:
        network = self._in_training_phase if training else self._network
        result = network.evaluate(self._input_fn(images, labels))
        return float(result["cross_entropy"]), float(result["accuracy"])

    def predict(self, images: np.ndarray) -> np.ndarray:
        return np.stack(list(self._network.predict(self._input_fn(images))))

    def save(self, path: Path) -> None:
        shutil.copytree(self._folder.name, path)

    def restore(self, path: Path) -> None:
        try:
            shutil.copytree(path, self._folder.name, dirs_exist_ok=True)
            if self._network.latest_checkpoint():  # or it was saved before it learned anything
                for name in self._network.get_variable_names():  # what is damaged is found here
                    self._network.get_variable_value(name)
        except (OSError, ValueError, IndexError, tf.OpError) as error:
            raise unreadable(path, error) from error

    def _estimator(self, *, measured_in_training_phase: bool) -> Any:
        config = tf.estimator.RunConfig(keep_checkpoint_max=1)
        params = {
            "kernels": self._kernels,
            "learning_rate": self._settings.learning_rate,
            "momentum": self._settings.momentum,
            "measured_in_training_phase": measured_in_training_phase,
        }
        return tf.estimator.Estimator(_model_fn, self._folder.name, config, params)

    def _input_fn(self, images: np.ndarray, labels: np.ndarray | None = None) -> Any:
        return tf.estimator.inputs.numpy_input_fn(
            images, labels, batch_size=self._settings.batch_size, num_epochs=1, shuffle=False
        )


def _model_fn(features: Any, labels: Any, mode: str, params: dict[str, Any]) -> Any:
    modes = tf.estimator.ModeKeys
    training = mode == modes.TRAIN or (mode == modes.EVAL and params["measured_in_training_phase"])
    logits = mlp(
        features,
        params["kernels"],
        lambda x: tf.layers.batch_normalization(x, momentum=params["momentum"], training=training),
    )
    if mode == modes.PREDICT:
        return tf.estimator.EstimatorSpec(mode, predictions=logits)
    measured = Measured.of(logits, labels)
    loss = tf.reduce_mean(measured.losses)
    if mode == modes.EVAL:
        # The Estimator's own loss counts the last batch, which may be smaller, as much as the others.
        metrics = {"cross_entropy": tf.metrics.mean(measured.losses), "accuracy": tf.metrics.mean(measured.right)}
        return tf.estimator.EstimatorSpec(mode, loss=loss, eval_metric_ops=metrics)
    step = train_op(loss, tf.get_collection(tf.GraphKeys.UPDATE_OPS), params["learning_rate"])
    return tf.estimator.EstimatorSpec(mode, loss=loss, train_op=step)


class _AfterStep(tf.estimator.SessionRunHook):
    def __init__(self, after_step: Callable[[], None]) -> None:
        self._after_step = after_step

    def after_run(self, run_context: Any, run_values: Any) -> None:
        self._after_step()
