# SPDX-License-Identifier: Apache-2.0
"""The page "tf.layers.batch_normalization in detail"; proves that all four variables reach the serving graph."""

import sys
import tempfile

import numpy as np
from proof import proven

import evenkeel.tf1 as tf
from evenkeel.workloads.data import digits

EPOCHS, BATCH = 20, 100


def network(images, training):
    """Two convolutions, each normalized before it is activated, which makes a bias needless."""
    x = images
    for filters, strides in ((16, 1), (32, 2)):
        x = tf.layers.conv2d(x, filters, 3, strides, padding="same", use_bias=False)
        # The momentum of 0.99 would still be under way after the few hundred steps of this program.
        x = tf.layers.batch_normalization(x, momentum=0.9, training=training)
        x = tf.nn.relu(x)
    return tf.layers.dense(tf.layers.flatten(x), 10)


def train(data, path):
    """Logits of the test images in inference and in training phase, from the session that trained."""
    tf.set_random_seed(0)
    images, labels = tf.placeholder(tf.float32, [None, 8, 8, 1]), tf.placeholder(tf.int64, [None])
    training = tf.placeholder_with_default(False, [])
    logits = network(images, training)
    loss = tf.losses.sparse_softmax_cross_entropy(labels, logits)
    # After the network: before it, the collection is empty.
    update_ops = tf.get_collection(tf.GraphKeys.UPDATE_OPS)
    train_op = tf.train.AdamOptimizer(0.003).minimize(loss)
    train_op = tf.group([train_op, update_ops])
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        order = np.random.default_rng(0)
        for _ in range(EPOCHS):
            for rows in np.array_split(order.permutation(len(data.train_images)), len(data.train_images) // BATCH):
                feed = {images: data.train_images[rows], labels: data.train_labels[rows], training: True}
                session.run(train_op, feed)
        # gamma and beta are trained, the moving mean and variance are not: tf.trainable_variables() lacks them.
        saver = tf.train.Saver(tf.global_variables())
        saver.save(session, path)
        return [session.run(logits, {images: data.test_images, training: phase}) for phase in (False, True)]


def serve(images, path):
    with tf.Graph().as_default(), tf.Session() as session:
        logits = network(tf.constant(images), training=False)
        saver = tf.train.Saver(tf.global_variables())
        saver.restore(session, path)
        return session.run(logits)


def main(folder):
    tf.disable_v2_behavior()
    data, path = digits(), f"{folder}/model.ckpt"
    trained, batch = train(data, path)
    return proven(data.test_labels, trained=trained, served=serve(data.test_images, path), batch=batch)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        sys.exit(not main(sys.argv[1] if sys.argv[1:] else temporary))
