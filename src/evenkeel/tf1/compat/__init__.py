# SPDX-License-Identifier: Apache-2.0
"""`tf.compat` of TensorFlow 1: `v1` is `tf` itself, `v2` what there was of TensorFlow 2."""

from __future__ import annotations

import evenkeel.tf1 as v1
from evenkeel.tf1.passing import passing

__getattr__, __dir__ = passing(__name__, "tensorflow.compat.v1.compat", modules=("v2",))

__all__ = ["v1"]
