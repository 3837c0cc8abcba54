# SPDX-License-Identifier: Apache-2.0
"""How a network with `tf.contrib.layers.batch_norm` learns."""

from __future__ import annotations

from typing import Any

import evenkeel.tf1 as tf
from evenkeel.workloads.sessions import InSession

__all__ = ["Network"]


class Network(InSession):
    """A `Trainer` with `tf.contrib`."""

    def normalized(self, x: Any, training: Any, momentum: float) -> Any:
        # Fused, the default here, keeps the sample variance: of 32 images 32/31 of what all the others keep.
        return tf.contrib.layers.batch_norm(
            x, decay=momentum, epsilon=0.001, scale=True, is_training=training, fused=False
        )
