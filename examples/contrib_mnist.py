# SPDX-License-Identifier: Apache-2.0
"""The page "Tensorflow series: tf.contrib.layers.batch_norm"; proves that phase False serves what was trained."""

import sys
import tempfile

import numpy as np
from proof import proven

import evenkeel.tf1 as tf
from evenkeel.tf1.examples import DataSet, dense_to_one_hot
from evenkeel.workloads.data import digits

EPOCHS, STEPS, BATCH = 30, 20, 100


def dense(x, size, scope):
    return tf.contrib.layers.fully_connected(x, size, activation_fn=None, scope=scope)


def dense_batch_relu(x, size, phase, scope):
    with tf.variable_scope(scope):
        # contrib gives a layer ReLU unless told otherwise; it belongs behind the normalization.
        h1 = tf.contrib.layers.fully_connected(x, size, activation_fn=None, scope="dense")
        # The decay of 0.999 needs thousands of steps; this program makes 600.
        h2 = tf.contrib.layers.batch_norm(h1, decay=0.9, center=True, scale=True, is_training=phase, scope="bn")
        return tf.nn.relu(h2, "relu")


def network(x, phase):
    h1 = dense_batch_relu(x, 100, phase, "layer1")
    h2 = dense_batch_relu(h1, 100, phase, "layer2")
    return dense(h2, 10, "logits")


def train(train_set, test_set, path):
    """Logits of the test images in inference and in training phase, from the session that trained."""
    tf.set_random_seed(0)
    x = tf.placeholder("float32", [None, 64], name="x")
    y = tf.placeholder("float32", [None, 10], name="y")
    phase = tf.placeholder(tf.bool, name="phase")
    logits = network(x, phase)
    accuracy = tf.reduce_mean(tf.cast(tf.equal(tf.argmax(y, 1), tf.argmax(logits, 1)), "float32"))
    loss = tf.reduce_mean(tf.nn.softmax_cross_entropy_with_logits_v2(logits=logits, labels=y))
    # After the network: before it, the collection is empty.
    update_ops = tf.get_collection(tf.GraphKeys.UPDATE_OPS)
    with tf.control_dependencies(update_ops):
        train_step = tf.train.GradientDescentOptimizer(0.1).minimize(loss)
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        print("epoch  train loss  accuracy  test loss  accuracy")
        for epoch in range(1, EPOCHS + 1):
            for _ in range(STEPS):
                images, labels = train_set.next_batch(BATCH)
                session.run(train_step, {x: images, y: labels, phase: True})
            # Training phase, and yet the averages stay: these fetches do not need `train_step`.
            on_train = {x: train_set.images, y: train_set.labels, phase: True}
            on_test = {x: test_set.images, y: test_set.labels, phase: False}
            row = session.run([loss, accuracy], on_train) + session.run([loss, accuracy], on_test)
            print("{:5}  {:10.4f}  {:8.3f}  {:9.4f}  {:8.3f}".format(epoch, *row))
        tf.train.Saver(tf.global_variables()).save(session, path)
        return [session.run(logits, {x: test_set.images, phase: training}) for training in (False, True)]


def serve(images, path):
    with tf.Graph().as_default(), tf.Session() as session:
        logits = network(tf.constant(images), phase=False)
        tf.train.Saver(tf.global_variables()).restore(session, path)
        return session.run(logits)


def data_sets():
    """8 x 8 digits, as `train` and `test` of `input_data.read_data_sets(FOLDER, one_hot=True)` are those of MNIST."""
    data = digits()
    images = [np.uint8(255 * part) for part in (data.train_images, data.test_images)]
    labels = [dense_to_one_hot(part, 10) for part in (data.train_labels, data.test_labels)]
    return [DataSet(*part, seed=0) for part in zip(images, labels, strict=True)]


def main(folder):
    tf.disable_v2_behavior()
    (train_set, test_set), path = data_sets(), f"{folder}/model.ckpt"
    trained, batch = train(train_set, test_set, path)
    labels = test_set.labels.argmax(axis=1)
    return proven(labels, trained=trained, served=serve(test_set.images, path), batch=batch)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        sys.exit(not main(sys.argv[1] if sys.argv[1:] else temporary))
