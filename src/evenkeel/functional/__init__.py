# SPDX-License-Identifier: Apache-2.0
"""The mathematics of batch normalization: pure functions, on tensors of any library."""

from evenkeel.functional import batch_norm, choice, modes, moments, moving, normalize, renorm

__all__ = ["batch_norm", "choice", "modes", "moments", "moving", "normalize", "renorm"]
