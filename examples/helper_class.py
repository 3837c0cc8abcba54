# SPDX-License-Identifier: Apache-2.0
"""The page "How could I use Batch Normalization in TensorFlow?"; proves that its averages reach a new graph."""

import sys
import tempfile

import numpy as np
from proof import proven

import evenkeel.tf1 as tf
from evenkeel.workloads.data import digits

EPOCHS, BATCH = 20, 100


class Network:
    """Two convolutions, each normalized; the variables are made once, the operations for either phase."""

    def __init__(self):
        # A decay of 0.99 would still be under way after the few hundred steps of this program.
        ewma = tf.train.ExponentialMovingAverage(decay=0.9)
        self.kernels = [tf.get_variable("kernel_1", [3, 3, 1, 16]), tf.get_variable("kernel_2", [3, 3, 16, 32])]
        self.normalizers = [tf.ConvolutionalBatchNormalizer(depth, 0.001, ewma, True) for depth in (16, 32)]
        self.weights = tf.get_variable("weights", [4 * 4 * 32, 10])

    def logits(self, images, train):
        x = images
        for kernel, strides, bn in zip(self.kernels, (1, 2), self.normalizers, strict=True):
            x = tf.nn.relu(bn.normalize(tf.nn.conv2d(x, kernel, strides, "SAME"), train=train))
        return tf.matmul(tf.reshape(x, [-1, 4 * 4 * 32]), self.weights)

    def update_assignments(self):
        return tf.group(*[bn.get_assigner() for bn in self.normalizers])


def train(data, path):
    """Logits of the test images in inference and in training phase, from the session that trained."""
    tf.set_random_seed(0)
    images, labels = tf.placeholder(tf.float32, [None, 8, 8, 1]), tf.placeholder(tf.int64, [None])
    network = Network()
    batch_logits = network.logits(images, train=True)
    loss = tf.losses.sparse_softmax_cross_entropy(labels, batch_logits)
    optimizer = tf.train.AdamOptimizer(0.003).minimize(loss)
    # The assigners are made in here. Made outside, a group in here waits for the optimizer, but they do not.
    with tf.control_dependencies([optimizer]):
        optimizer = network.update_assignments()
    # After the assigners, which make the averages that this one reads.
    logits = network.logits(images, train=False)
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        order = np.random.default_rng(0)
        for _ in range(EPOCHS):
            for rows in np.array_split(order.permutation(len(data.train_images)), len(data.train_images) // BATCH):
                session.run(optimizer, {images: data.train_images[rows], labels: data.train_labels[rows]})
        # The averages are global variables too. `ewma.variables_to_restore()` would put them where the class keeps the
        # last batch, which is not where it reads.
        tf.train.Saver(tf.global_variables()).save(session, path)
        return session.run([logits, batch_logits], {images: data.test_images})


def serve(images, path):
    with tf.Graph().as_default(), tf.Session() as session:
        network = Network()
        network.update_assignments()  # makes the averages; nobody runs it
        logits = network.logits(tf.constant(images), train=False)
        tf.train.Saver(tf.global_variables()).restore(session, path)
        return session.run(logits)


def main(folder):
    tf.disable_v2_behavior()
    data, path = digits(), f"{folder}/model.ckpt"
    trained, batch = train(data, path)
    return proven(data.test_labels, trained=trained, served=serve(data.test_images, path), batch=batch)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        sys.exit(not main(sys.argv[1] if sys.argv[1:] else temporary))
