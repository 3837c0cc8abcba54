# SPDX-License-Identifier: Apache-2.0
"""Batch normalization as a module of Flax nnx."""

from evenkeel.layers.flax import BatchNorm

__all__ = ["BatchNorm"]
