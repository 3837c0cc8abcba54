# SPDX-License-Identifier: Apache-2.0
"""What is wrong with the normalization of a model, a checkpoint, a graph or a program."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from evenkeel import arguments
from evenkeel.doctor import subjects
from evenkeel.doctor.finding import Finding
from evenkeel.doctor.options import Options
from evenkeel.doctor.report import Report, examined

__all__ = ["Finding", "Report", "diagnose"]


def diagnose(
    subject: Any,
    data: Any = None,
    *,
    batch_size: int = 32,
    steps: int | None = None,
    batches_per_step: int = 1,
    optimizer: Any = None,
    train_op: Any = None,
    phase: Any = None,
    feed: Callable[[Any], Any] | None = None,
    backend: str = "tensorflow",
    progress: bool = False,
) -> Report:
    """Looks for what is known to go wrong with batch normalization; changes nothing and runs nothing it was not given.

    Args:
        subject: the path of a checkpoint (of any format that `read_checkpoint` reads), of a whole Keras model, of a
            graph of TensorFlow 1 (`.meta`, a SavedModel, a frozen `.pb`) or of a Python program (which is read, never
            run); a pair of checkpoints `(before, after)`; a Keras model, a `torch.nn.Module`, a `flax.nnx.Module`; a
            `tf.Graph`, a `tf.compat.v1.Session` or a train operation.
        data: to run the model on; as `evenkeel.recalibrate` takes it, and `(x, y)` with class labels is compared by
            accuracy too. Without data nothing is run.
        batch_size: rows of a batch, where data is arrays; that of the training is best.
        steps: how many steps the optimizer has done, or is planned to do.
        batches_per_step: how many batches each of these steps sees, where gradients are accumulated.
        optimizer: of a torch module; that of a compiled Keras model is found.
        train_op: of a graph, where it is not found.
        phase, feed: of a session, as `evenkeel.recalibrate` takes them.
        backend: what Keras computes with, where a file is loaded and Keras is not yet.
        progress: draw a bar.

    Returns:
        `Report`; print it. Its `findings` come the gravest first, causes before consequences.

    Raises:
        ArgumentError: nothing that can be looked at, or an argument that cannot be honoured.
        InputError: a file or data that cannot be used.

    Example:
        >>> import torch
        >>> report = diagnose(torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8, momentum=0.99)))
        >>> [(finding.rule, finding.where) for finding in report.errors]
        [('EK101', '1'), ('EK202', '1')]
    """
    options = Options(
        data,
        arguments.positive_integer("batch_size", batch_size),
        None if steps is None else arguments.positive_integer("steps", steps),
        arguments.positive_integer("batches_per_step", batches_per_step),
        optimizer,
        train_op,
        phase,
        feed,
        arguments.choice("backend", backend, ["tensorflow", "jax", "torch"]),
        progress,
    )
    who = subjects.of(subject)
    return examined(subject, who.KIND, who.evidence(subject, options))
