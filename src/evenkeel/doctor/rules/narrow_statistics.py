# SPDX-License-Identifier: Apache-2.0
"""Moving statistics are kept in 16 bits or fewer.

What it looks for
    A moving mean or variance of float16, bfloat16 or less: a note in a file for inference, a warning where training
    moves it.
Why it matters
    A moving average stops short of the data where its steps are below half the distance to the next number. In
    bfloat16, with momentum 0.999, a variance was measured to stay at 2.0 where the data had 3.6. Casting a whole
    model takes the statistics along (pytorch/pytorch#146114).
What to do
    Keep the statistics in float32 whatever the rest is in: `module.float()` for the normalizers,
    `evenkeel.BatchNormalization` by itself. Then `evenkeel.recalibrate(model, data)`.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from evenkeel.checkpoints.flags import numbers
from evenkeel.doctor.evidence import Normalizer
from evenkeel.doctor.finding import Finding

ID = "EK107"
SEVERITY = "note"
SICK = [
    Normalizer("bn", np.array([0.1, 3.5], "float16"), np.array([1.0, 2.0], "float16")),
    Normalizer("bn", np.array([0.1, 3.5]), np.array([1.0, 2.0], "float16"), momentum=0.999, moves=True),
    Normalizer("bn", np.zeros(2, "float16"), np.array([65504.0, np.inf], "float16"), momentum=1.0),
]
HEALTHY = [
    Normalizer("bn", np.array([0.1, 3.5], "float32"), np.array([1.0, 2.0], "float32"), np.ones(2, "float16")),
    Normalizer("bn", np.array([0.1, 3.5]), np.array([1.0, 2.0])),
    Normalizer("bn"),
]


def check(normalizer: Normalizer) -> Iterator[Finding]:
    parts = {"mean": normalizer.moving_mean, "variance": normalizer.moving_variance}
    narrow = {part: values for part, values in parts.items() if values is not None and values.dtype.itemsize < 4}
    if narrow:
        yield Finding(
            ID,
            normalizer.name,
            "; ".join(_seen(part, values, normalizer.momentum) for part, values in narrow.items()),
            "keep the statistics in float32, then evenkeel.recalibrate(model, data)",
            "warning" if normalizer.moves else None,
        )


def _seen(part: str, values: np.ndarray, momentum: float | None) -> str:
    """The largest value, the distance to the next one, and what of a batch that makes unseen."""
    finite = values[np.isfinite(numbers(values))]
    if not finite.any():
        return f"{part} of {values.dtype}"
    largest = np.abs(finite).max()
    step = float(largest) - float(np.nextafter(largest, np.zeros_like(largest)))
    text = f"{part} of {values.dtype}: {float(largest):.3g} changes by {step / 2:.2g} or not at all"
    if momentum is None or momentum >= 1:
        return text
    return f"{text}, so with momentum {momentum:g} a batch within {step / 2 / (1 - momentum):.2g} of it is not noticed"
