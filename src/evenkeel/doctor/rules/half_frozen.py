# SPDX-License-Identifier: Apache-2.0
"""Gamma and beta are frozen, and training moves the statistics.

What it looks for
    A normalizer whose gamma and beta do not learn, and whose moving statistics follow the data: in torch
    `requires_grad=False` with the module in training mode.
Why it matters
    A layer that was to stay as it is follows the new data, and its outputs change though no weight of it does
    (pytorch/pytorch#66073). What comes after it was trained for the old statistics.
What to do
    `evenkeel.freeze(model, affine=True)` keeps all of it, whatever `train()` is called on; so does `eval()` of the
    module, until the next `train()` of a parent.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from evenkeel.doctor.evidence import Normalizer
from evenkeel.doctor.finding import Finding

ID = "EK205"
SEVERITY = "warning"
SICK = [Normalizer("bn", gamma=np.ones(2), beta=np.zeros(2), trainable=False, moves=True)]
HEALTHY = [
    Normalizer("bn", gamma=np.ones(2), trainable=False, moves=False),
    Normalizer("bn", gamma=np.ones(2), trainable=True, moves=True),
    Normalizer("bn", gamma=np.ones(2), trainable=True, moves=False, frozen=True),
    Normalizer("bn", gamma=np.ones(2), trainable=False, moves=None),
    Normalizer("bn", trainable=None, moves=True),
]


def check(normalizer: Normalizer) -> Iterator[Finding]:
    if normalizer.trainable is False and normalizer.moves:
        yield Finding(
            ID,
            normalizer.name,
            "gamma and beta do not learn, the moving statistics do",
            "evenkeel.freeze(model, affine=True)",
        )
