# SPDX-License-Identifier: Apache-2.0
"""What is left of a normalizer of evenkeel.torch that was folded."""

from __future__ import annotations

from typing import Any

import torch


class Rest(torch.nn.Module):
    """Adds the residual, and applies the activation; called as the normalizer was.

    Args:
        activation: a module or a function, or None.
    """

    def __init__(self, activation: Any) -> None:
        super().__init__()
        self.activation = activation

    def forward(
        self, input: torch.Tensor, residual: torch.Tensor | None = None, *, mask: Any = None, sample_weight: Any = None
    ) -> torch.Tensor:
        y = input if residual is None else input + residual
        return y if self.activation is None else self.activation(y)
