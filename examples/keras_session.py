# SPDX-License-Identifier: Apache-2.0
"""The page "BatchNormalization in Keras"; proves that `model.updates` moved what the file carries."""

import sys
import tempfile

import numpy as np
from proof import proven

import evenkeel.tf1 as tf
from evenkeel.workloads.data import digits

EPOCHS, BATCH = 20, 100


def network():
    layers, model = tf.keras.layers, tf.keras.Sequential([tf.keras.layers.Flatten(input_shape=(8, 8, 1))])
    for _ in range(2):
        model.add(layers.Dense(100, use_bias=False))
        # The momentum of 0.99 would still be under way after the few hundred steps of this program.
        model.add(layers.BatchNormalization(momentum=0.9))
        model.add(layers.Activation("relu"))
    model.add(layers.Dense(10))
    return model


def train(data, path):
    """Logits of the test images in inference and in training phase, from the session that trained."""
    tf.set_random_seed(0)
    learning_phase = tf.keras.backend.learning_phase()
    model = network()
    tf_batch_data, tf_batch_labels, logits = model.input, tf.placeholder(tf.int64, [None]), model.output
    loss = tf.losses.sparse_softmax_cross_entropy(tf_batch_labels, logits)
    # Not tf.GraphKeys.UPDATE_OPS: Keras leaves it empty. Had the model been called on another tensor than its input,
    # `model.updates` would want both fed; then it is `model.get_updates_for(tensor)`.
    update_ops = model.updates
    with tf.control_dependencies(update_ops):
        train_step = tf.train.AdamOptimizer(0.003).minimize(loss)
    with tf.Session() as tf_sess:
        tf.keras.backend.set_session(tf_sess)  # or Keras reads and saves the weights of a session of its own
        tf_sess.run(tf.global_variables_initializer())
        order = np.random.default_rng(0)
        for _ in range(EPOCHS):
            for rows in np.array_split(order.permutation(len(data.train_images)), len(data.train_images) // BATCH):
                batch = {tf_batch_data: data.train_images[rows], tf_batch_labels: data.train_labels[rows]}
                tf_sess.run([loss, train_step], {**batch, learning_phase: 1})
        model.save_weights(path)  # of each normalizer: gamma, beta, mean, and the variance, not its root
        return [tf_sess.run(logits, {tf_batch_data: data.test_images, learning_phase: phase}) for phase in (0, 1)]


def serve(images, path):
    with tf.Graph().as_default(), tf.Session() as tf_sess:
        tf.keras.backend.set_session(tf_sess)
        model = network()
        model.load_weights(path)
        return tf_sess.run(model.output, {model.input: images, tf.keras.backend.learning_phase(): 0})


def main(folder):
    tf.disable_v2_behavior()
    data, path = digits(), f"{folder}/model.h5"
    trained, batch = train(data, path)
    return proven(data.test_labels, trained=trained, served=serve(data.test_images, path), batch=batch)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        sys.exit(not main(sys.argv[1] if sys.argv[1:] else temporary))
