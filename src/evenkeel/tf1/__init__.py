# SPDX-License-Identifier: Apache-2.0
"""TensorFlow 1 as it was: `import evenkeel.tf1 as tf`.

All of `tensorflow.compat.v1` is here, and in its old place what TensorFlow has taken out or changed: `tf.layers`,
`tf.contrib`, `tf.estimator`, the 1.15 numbers of `tf.nn` and of the moving averages. Graphs and sessions, so call
`tf.disable_v2_behavior()` first, as ever. `tf.keras` is Keras 2, imported when it is asked for.

Example:
    >>> import evenkeel.tf1 as tf
    >>> with tf.Graph().as_default():
    ...     y = tf.layers.batch_normalization(tf.ones([8, 3]), training=True)
    ...     [variable.op.name for variable in tf.global_variables()]
    ['batch_normalization/gamma', 'batch_normalization/beta', 'batch_normalization/moving_mean',
     'batch_normalization/moving_variance']
"""

from __future__ import annotations

# Registers the gradient of our operations, which a graph that was read from a file may hold.
from evenkeel.backends.tensorflow import kernels as _kernels  # noqa: F401
from evenkeel.tf1.passing import passing

_ATTRIBUTES = {
    "BatchNormalizer": "helper",
    "ConvolutionalBatchNormalizer": "helper",
    "import_graph_def": "saving",
}
_MODULES = ("compat", "contrib", "estimator", "keras", "layers", "nn", "saved_model", "tflearn", "train")

__getattr__, __dir__ = passing(__name__, "tensorflow.compat.v1", modules=_MODULES, attributes=_ATTRIBUTES)
