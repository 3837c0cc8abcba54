# SPDX-License-Identifier: Apache-2.0
"""`tf.compat.v2.keras.layers`: tf_keras's own, but for batch normalization."""

from __future__ import annotations

from evenkeel.tf1.keras.normalization import BatchNormalizationV2 as BatchNormalization
from evenkeel.tf1.passing import passing

__getattr__, __dir__ = passing(__name__, "tf_keras.layers")

__all__ = ["BatchNormalization"]
