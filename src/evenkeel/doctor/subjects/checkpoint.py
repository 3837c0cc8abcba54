# SPDX-License-Identifier: Apache-2.0
"""What a checkpoint says of each normalizer, and what of that the rules can use."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from evenkeel import checkpoints
from evenkeel.checkpoints import Checkpoint, flags, keras_model
from evenkeel.dialects import DIALECTS
from evenkeel.doctor.evidence import Evidence, Normalizer, Unseen
from evenkeel.doctor.options import Options

KIND = "checkpoint"
COUNTERS = ("count", "updates", "mean_local_step", "variance_local_step")
"""What a normalizer keeps -> how many batches it took in, in that library."""
KERAS_3 = "keras"


def recognises(subject: Any) -> bool:
    return isinstance(subject, str | os.PathLike | Checkpoint)


def evidence(subject: Any, options: Options) -> Iterator[Evidence]:
    checkpoint = read(subject)
    yield from normalizers(checkpoint, options)
    yield from unseen(checkpoint, options)


def read(subject: Any) -> Checkpoint:
    """A checkpoint, or what lies at a path.

    Raises:
        InputError: nothing lies there that can be read.
    """
    return subject if isinstance(subject, Checkpoint) else checkpoints.read_checkpoint(subject)


def unseen(checkpoint: Checkpoint, options: Options) -> Iterator[Unseen]:
    """What a checkpoint alone cannot show."""
    if not checkpoint.normalizers:
        yield Unseen(
            "normalizers",
            f"none was found among the {len(checkpoint.variables)} variables of {checkpoint.path}",
            f"evenkeel inspect {checkpoint.path} --variables",
        )
    if options.data is not None:
        yield Unseen(
            "the model on the data",
            f"{checkpoint.path} holds weights, and no model to run",
            "load it into its model, then evenkeel.diagnose(model, data)",
        )


def normalizers(checkpoint: Checkpoint, options: Options, names: Iterable[str] | None = None) -> Iterator[Normalizer]:
    """Each normalizer, in the order of the file, or those of these names; its values are read when it is asked for.

    Raises:
        InputError: values cannot be read.
    """
    steps = _steps(checkpoint) if options.steps is None else options.steps
    layers = keras_model.layers(checkpoint.model)
    by_name = {found.name: found for found in checkpoint.normalizers}
    for found in by_name.values() if names is None else map(by_name.__getitem__, names):
        settings = layers[found.name].settings if found.name in layers else {}
        yield _normalizer(found, settings, steps, options.batches_per_step)


def _normalizer(
    found: checkpoints.Normalizer, settings: Mapping[str, Any], steps: int | None, batches_per_step: int
) -> Normalizer:
    four = {role: getattr(found, role) for role in ("mean", "variance", "gamma", "beta")}
    parts = {role: part for role, part in {**four, **found.others}.items() if part is not None}
    values = {role: part.read().reshape(-1) for role, part in parts.items() if flags.are_numbers(part.dtype)}
    mean, variance, gamma, beta = (values.pop(role, None) for role in four)
    trainable = settings.get("trainable")
    # Of TensorFlow 1, `trainable=False` does not freeze the statistics, and a file of tf.keras may be of either.
    frozen = "all" if trainable is False and found.dialect == KERAS_3 else found.facts.frozen
    return Normalizer(
        found.name,
        mean,
        variance,
        gamma,
        beta,
        values,
        found.missing,
        found.dialect if found.dialect in DIALECTS else None,
        found.facts.momentum,
        found.facts.epsilon,
        settings.get("average", "exponential"),
        found.facts.bessel_correction,
        frozen,
        trainable,
        updates=_updates(values, mean, variance),
        steps=steps,
        batches_per_step=batches_per_step,
    )


def _updates(values: Mapping[str, np.ndarray], mean: np.ndarray | None, variance: np.ndarray | None) -> int | None:
    """How many batches were counted; None where no batch was, though the statistics moved: a converted file."""
    counted = [flags.numbers(values[role]).max() for role in COUNTERS if role in values and values[role].size]
    if not counted or not np.isfinite(counted).all():
        return None
    started = mean is None or variance is None or flags.never_updated(mean, variance)
    return int(max(counted)) if max(counted) or started else None


def _steps(checkpoint: Checkpoint) -> int | None:
    for name, variable in checkpoint.variables.items():
        whole = variable.size == 1 and np.issubdtype(variable.dtype, np.integer)
        if whole and name.split("/.ATTRIBUTES")[0].rpartition("/")[2] == "global_step":
            return int(variable.read().item())
    return None
