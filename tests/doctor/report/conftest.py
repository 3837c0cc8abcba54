# SPDX-License-Identifier: Apache-2.0
"""A report of a sick model, with data."""

import numpy as np
import pytest

from evenkeel import Moments
from evenkeel.doctor.evidence import Normalizer, Observed, Phases, Score, Seen, Unseen
from evenkeel.doctor.report import examined

HOSTILE = "bn\x1b[2J\x07<script>alert(1)</script>&amp;\"'\n$x$"


def observed(names, sick=(), channels=5):
    """What normalizers saw; the moving statistics of the sick ones are far away, or no statistics."""
    rng = np.random.default_rng(0)
    mean, variance = rng.normal(0, 1, channels), rng.uniform(0.5, 2, channels)
    seen = []
    for name in names:
        kept = (np.zeros(channels), np.ones(channels)) if name in sick else (mean, variance)
        seen.append(
            Seen(Normalizer(name, *kept, epsilon=1e-3), Moments(mean, variance, np.float64(64)), values=(32, 32))
        )
    return Observed(tuple(seen))


def curve(names, **scores):
    """Outputs that become right at the last of the names."""
    right = Score(1.0, **{name: high for name, (_, high) in scores.items()})
    wrong = Score(0.0, **{name: low for name, (low, _) in scores.items()})
    return Phases(wrong, right, {name: right if name == names[-1] else wrong for name in names}, 64)


@pytest.fixture(scope="session")
def sick():
    """Ten normalizers; three of them never updated."""
    names = [f"bn{number}" for number in range(9)] + [HOSTILE]
    saw = observed(names, sick=("bn3", "bn4", HOSTILE))
    phases = curve(names, accuracy=(0.25, 1.0))
    unseen = Unseen("the structure", "the model is a subclass", "give a functional model")
    return examined("model.keras", "Keras model", [*(item.normalizer for item in saw.seen), saw, phases, unseen])
