# SPDX-License-Identifier: Apache-2.0
"""A value is NaN or infinite.

What it looks for
    NaN or infinity in gamma, in beta, in the moving statistics, or in what else a normalizer keeps.
Why it matters
    The channel comes out as NaN or as a constant, and a moving average that took in one such batch never recovers. A
    loss scaler that skips the step does not take the statistics back (pytorch/pytorch#88474, pytorch/pytorch#90342).
What to do
    Statistics: `evenkeel.recalibrate(model, data)`, and train with `evenkeel.BatchNormalization`, which leaves such
    batches out. Gamma and beta: go back to an earlier checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from evenkeel.checkpoints.flags import numbers
from evenkeel.doctor.evidence import Normalizer
from evenkeel.doctor.finding import Finding

ID = "EK103"
SEVERITY = "error"
EXPLAINS = ("EK401", "EK403")
SICK = [
    Normalizer("bn", np.zeros(3), np.array([1.0, np.nan, 2.0])),
    Normalizer("bn", np.array([0.1, np.inf, 0.2]), np.array([1.0, np.nan, 2.0])),
    Normalizer("bn", gamma=np.array([np.nan, 1.0], "float16")),
    Normalizer("bn", others={"renorm_mean": np.array([-np.inf, 0.0])}),
]
HEALTHY = [
    Normalizer("bn", np.zeros(3), np.array([1e30, 0.0, 2.0]), np.ones(3), np.zeros(3)),
    Normalizer("bn", np.array([65504.0], "float16"), np.array([6e-8], "float16")),
    Normalizer("bn"),
]


def check(normalizer: Normalizer) -> Iterator[Finding]:
    for part, values in _parts(normalizer).items():
        wide = numbers(values)
        counts = {"NaN": np.isnan(wide).sum(), "infinity": np.isinf(wide).sum()}
        if any(counts.values()):
            found = " and ".join(f"{word} in {count}" for word, count in counts.items() if count)
            yield Finding(
                ID,
                normalizer.name,
                f"{found} of {wide.size} channels of {part}",
                "go back to an earlier checkpoint"
                if part.removesuffix("_average") in ("gamma", "beta")
                else "evenkeel.recalibrate(model, data)",
            )


def _parts(normalizer: Normalizer) -> Mapping[str, np.ndarray]:
    four = {name: getattr(normalizer, name) for name in ("moving_mean", "moving_variance", "gamma", "beta")}
    return {name: values for name, values in {**four, **normalizer.others}.items() if values is not None}
