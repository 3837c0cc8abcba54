# SPDX-License-Identifier: Apache-2.0
"""Graphs of TensorFlow 1."""

from evenkeel.doctor.subjects.graph.subject import KIND, evidence, recognises

__all__ = ["KIND", "evidence", "recognises"]
