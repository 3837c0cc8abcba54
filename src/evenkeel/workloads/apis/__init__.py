# SPDX-License-Identifier: Apache-2.0
"""One training in each API, ours and those of TensorFlow 1: a module each, with a `Network` that is a `Trainer`.

Those of TensorFlow 1 are for a process of their own: they leave `tf.disable_v2_behavior()` behind.
"""
