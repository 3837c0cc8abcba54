# SPDX-License-Identifier: Apache-2.0
"""How a network with `tf.layers.batch_normalization` learns."""

from __future__ import annotations

from typing import Any

import evenkeel.tf1 as tf
from evenkeel.workloads.sessions import InSession

__all__ = ["Network"]


class Network(InSession):
    """A `Trainer` with `tf.layers`."""

    def normalized(self, x: Any, training: Any, momentum: float) -> Any:
        return tf.layers.batch_normalization(x, momentum=momentum, training=training)
