# SPDX-License-Identifier: Apache-2.0
"""How findings are said while a model trains: each once."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Iterable

from evenkeel.checkpoints.flags import never_updated
from evenkeel.doctor.evidence import Evidence, Normalizer
from evenkeel.doctor.finding import Finding
from evenkeel.doctor.report import examined

Listener = Callable[[Finding], object]


class NormalizationWarning(UserWarning):
    """Something is wrong with the normalization of the model that is training, or may be.

    `warnings.simplefilter("error", NormalizationWarning)` ends the training at the first.
    """


class Speaker:
    """Says errors and warnings, causes first; what it has said of a layer by a rule it does not say again."""

    def __init__(self, on_finding: Listener | None) -> None:
        self._on_finding = on_finding
        self._said: set[tuple[str, str]] = set()

    def say(self, model: object, evidence: Iterable[Evidence]) -> None:
        report = examined(model, "model in training", evidence)
        for finding in (*report.errors, *report.warnings):
            key = finding.rule, finding.where
            if key in self._said:
                continue
            self._said.add(key)
            if self._on_finding is None:
                warnings.warn(str(finding), NormalizationWarning, stacklevel=2)
            else:
                self._on_finding(finding)


def excused(normalizer: Normalizer) -> Normalizer:
    """The same without its statistics where they are at their start on purpose: the rules would call that forgotten."""
    mean, variance = normalizer.moving_mean, normalizer.moving_variance
    stays = normalizer.moves is False or (normalizer.momentum == 1 and normalizer.average == "exponential")
    if stays and mean is not None and variance is not None and never_updated(mean, variance):
        return dataclasses.replace(normalizer, moving_mean=None, moving_variance=None)
    return normalizer
