# SPDX-License-Identifier: Apache-2.0
"""How a network with `ConvolutionalBatchNormalizer`, the helper class of before `tf.layers`, learns."""

from __future__ import annotations

from typing import Any

import evenkeel.tf1 as tf
from evenkeel.workloads.sessions import InSession

__all__ = ["Network"]


class Network(InSession):
    """A `Trainer` whose moving statistics are averages that `tf.train.ExponentialMovingAverage` keeps.

    They also average a batch of one image, whose variance is zero; in all other APIs such a batch leaves them alone.
    """

    def normalized(self, x: Any, training: Any, momentum: float) -> Any:
        channels = x.shape.as_list()[-1]
        averages = tf.train.ExponentialMovingAverage(decay=momentum)
        normalizer = tf.ConvolutionalBatchNormalizer(channels, 0.001, averages, scale_after_norm=True)
        normalizer.get_assigner()  # makes the averages, which a phase that is a tensor asks for
        y = normalizer.normalize(tf.reshape(x, [-1, 1, 1, channels]), training)
        # This one, made afterwards, averages what the batch of the same run says.
        tf.add_to_collection(tf.GraphKeys.UPDATE_OPS, normalizer.get_assigner())
        return tf.reshape(y, [-1, channels])
