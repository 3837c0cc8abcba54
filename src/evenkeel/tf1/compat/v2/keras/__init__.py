# SPDX-License-Identifier: Apache-2.0
"""`tf.compat.v2.keras`: Keras 2 as TensorFlow 2 had it, from the package tf_keras, with 1.15's normalization."""

from __future__ import annotations

from evenkeel.tf1.passing import passing

__getattr__, __dir__ = passing(__name__, "tf_keras", modules=("layers",))
