# SPDX-License-Identifier: Apache-2.0
"""What is usual, or meant so, is graver only where it does harm."""

import numpy as np
import pytest

from evenkeel.doctor.evidence import Decay, Normalizer, Observed, Phase, Seen
from evenkeel.doctor.rules import look
from evenkeel.functional.moments import Moments


def _seen(*means, shift=0.0, frozen=None):
    calls = tuple(Moments(np.full(3, mean), np.ones(3), np.full(3, 1000.0)) for mean in means)
    known = Normalizer("bn", calls[0].mean + shift, np.ones(3), epsilon=1e-3, frozen=frozen)
    return Observed((Seen(known, calls[0], calls),))


@pytest.mark.parametrize(
    ("rule", "evidence", "severity"),
    [
        pytest.param("EK204", Decay("SGD", 5e-4, ("gamma",)), "note", id="a usual decay"),
        pytest.param("EK204", Decay("AdamW", 0.01, ("gamma",)), "warning", id="a large decay"),
        pytest.param("EK401", _seen(0.0, shift=1.5), "error", id="far"),
        pytest.param("EK401", _seen(0.0, shift=1.5, frozen=True), "note", id="far and frozen"),
        pytest.param("EK401", _seen(0.0, shift=5.0, frozen=True), "warning", id="another scale and frozen"),
        pytest.param("EK408", _seen(0.0, 1.5), "warning", id="two calls"),
        pytest.param("EK408", _seen(0.0, 3.0), "error", id="two calls far apart"),
    ],
)
def test_severity(rule, evidence, severity):
    (found,) = (finding for finding in look(evidence) if finding.rule == rule)
    assert found.severity == severity


def test_a_torch_module_is_told_what_torch_has():
    (found,) = look(Phase("bn", "inference", True, "in training mode inside a module in eval mode"))
    assert found.remedy == "model.eval()"
