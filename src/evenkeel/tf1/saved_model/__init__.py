# SPDX-License-Identifier: Apache-2.0
"""`tf.saved_model`: builder, simple_save and the rest are TensorFlow's; `load` also takes what TensorFlow 1 wrote."""

from __future__ import annotations

from evenkeel.tf1.passing import passing
from evenkeel.tf1.saved_model.loader import load

__getattr__, __dir__ = passing(__name__, "tensorflow.compat.v1.saved_model", modules=("loader",))

__all__ = ["load"]
