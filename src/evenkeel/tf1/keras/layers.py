# SPDX-License-Identifier: Apache-2.0
"""`tf.keras.layers`: tf_keras's own, but for batch normalization."""

from __future__ import annotations

from evenkeel.tf1.keras.normalization import BatchNormalization
from evenkeel.tf1.passing import passing

__getattr__, __dir__ = passing(__name__, "tf_keras.api._v1.keras.layers")

__all__ = ["BatchNormalization"]
