# SPDX-License-Identifier: Apache-2.0
"""`tf.compat.v2`: TensorFlow 2, with the Keras of its time."""

from __future__ import annotations

from evenkeel.tf1.passing import passing

__getattr__, __dir__ = passing(__name__, "tensorflow", modules=("keras",))
