# SPDX-License-Identifier: Apache-2.0
"""A report as a JSON document; docs/doctor-report.md has its schema."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from evenkeel.doctor import rules
from evenkeel.doctor.evidence import Phases
from evenkeel.doctor.finding import SEVERITIES, Finding
from evenkeel.doctor.report.layers import Layer, layers

if TYPE_CHECKING:
    from evenkeel.doctor.report import Report

SCHEMA = 1


def document(report: Report) -> dict[str, Any]:
    """Plain dictionaries and lists, numbers that are finite, and None."""
    counts = {severity: sum(item.severity == severity for item in report.findings) for severity in SEVERITIES}
    found: dict[str, Any] = _plain(
        {
            "schema": SCHEMA,
            "subject": report.subject,
            "kind": report.kind,
            "healthy": report.healthy,
            "counts": counts,
            "normalizers": list(report.normalizers),
            "findings": [_finding(item) for item in report.findings],
            "unseen": [dataclasses.asdict(item) for item in report.unseen],
            "layers": None if report.observed is None else [_layer(item) for item in layers(report.observed)],
            "phases": None if report.phases is None else _phases(report.phases),
        }
    )
    return found


def _finding(finding: Finding) -> dict[str, Any]:
    title = rules.rule(finding.rule).title
    return {"rule": finding.rule, "title": title} | {
        name: getattr(finding, name) for name in ("severity", "where", "line", "column", "seen", "why", "remedy")
    }


def _layer(layer: Layer) -> dict[str, Any]:
    seen = layer.seen
    return {
        "name": layer.name,
        "channels": layer.batch_mean.size,
        "values": np.max(seen.moments.count, initial=0),
        "calls": max(len(seen.calls), 1),
        "batches": list(seen.values),
        "spoiled": seen.spoiled,
        "dtype": seen.dtype,
        "masked": seen.masked,
        "padding": seen.padding,
        "epsilon": seen.normalizer.epsilon,
        "moving_mean": layer.moving_mean,
        "moving_variance": layer.moving_variance,
        "batch_mean": layer.batch_mean,
        "batch_variance": layer.batch_variance,
        "divergence": layer.divergence,
    }


def _phases(phases: Phases) -> dict[str, Any]:
    return {
        "rows": phases.rows,
        "inference": phases.inference._asdict(),
        "training": phases.training._asdict(),
        "pooled": None if phases.pooled is None else phases.pooled._asdict(),
        "swapped": [{"name": name} | score._asdict() for name, score in phases.swapped.items()],
    }


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
