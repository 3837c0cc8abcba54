# SPDX-License-Identifier: Apache-2.0
"""`tf.keras` of TensorFlow 1: Keras 2 in graphs and sessions, from the package tf_keras, with 1.15's normalization.

Everything but `layers.BatchNormalization` is tf_keras's own. Keras 3 is not imported, and goes on beside it.

Example:
    >>> import evenkeel.tf1 as tf
    >>> with tf.Graph().as_default():
    ...     model = tf.keras.Sequential([tf.keras.layers.BatchNormalization(input_shape=(3,))])
    ...     [weight.name for weight in model.weights], len(model.updates)
    (['batch_normalization/gamma:0', 'batch_normalization/beta:0', 'batch_normalization/moving_mean:0',
      'batch_normalization/moving_variance:0'], 2)
"""

from __future__ import annotations

from evenkeel.errors import MissingLibraryError
from evenkeel.tf1.passing import passing

try:
    # The very modules to which TensorFlow sends `tf.compat.v1.keras`; by that name they can be had only when Keras 3 is
    # switched off for the whole process.
    import tf_keras.api._v1.keras
except ModuleNotFoundError as error:
    if error.name != "tf_keras":
        raise
    raise MissingLibraryError(
        "tf.keras of TensorFlow 1 needs tf_keras, which is not installed; pip install tf_keras, or beside "
        "tensorflow-cpu: pip install --no-deps tf_keras"
    ) from None

__getattr__, __dir__ = passing(__name__, "tf_keras.api._v1.keras", modules=("layers",))

__version__ = tf_keras.__version__
