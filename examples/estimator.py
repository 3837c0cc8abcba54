# SPDX-License-Identifier: Apache-2.0
"""The page "The right way to use batch_normalization"; proves that a warm start brings the moving statistics."""

import sys
import tempfile

import numpy as np
from proof import proven

import evenkeel.tf1 as tf
from evenkeel.workloads.data import digits

BATCH = 100


def network(images, training):
    """Two convolutions, each normalized before it is activated, which makes a bias needless."""
    x = images
    for filters, strides in ((16, 1), (32, 2)):
        x = tf.layers.conv2d(x, filters, 3, strides, padding="same", use_bias=False)
        # The momentum of 0.99 would still be under way after the few hundred steps of this program.
        x = tf.layers.batch_normalization(x, momentum=0.9, training=training)
        x = tf.nn.relu(x)
    return tf.layers.dense(tf.layers.flatten(x), 10)


def get_assignment_map_from_checkpoint(tvars, init_checkpoint):
    """Name in the checkpoint -> variable, for what both have."""
    name_to_variable = {variable.op.name: variable for variable in tvars}
    stored = [name for name, _ in tf.train.list_variables(init_checkpoint)]
    return {name: name_to_variable[name] for name in stored if name in name_to_variable}


def model_fn(features, labels, mode, params):
    logits = network(features["inputs"], training=mode == tf.estimator.ModeKeys.TRAIN)
    # These are initial values. A checkpoint in model_dir is restored over them by the Estimator, in every mode.
    if params["init_checkpoint"]:
        # Not tf.trainable_variables(): the moving statistics are not among them. The global step is taken over too, so
        # training goes by `steps`; `max_steps` would count what the first model did.
        tvars = tf.global_variables()
        assignment_map = get_assignment_map_from_checkpoint(tvars, params["init_checkpoint"])
        tf.train.init_from_checkpoint(params["init_checkpoint"], assignment_map)
    if mode == tf.estimator.ModeKeys.PREDICT:  # without labels, so before the loss
        return tf.estimator.EstimatorSpec(mode, predictions={"logits": logits})
    loss = tf.losses.sparse_softmax_cross_entropy(labels, logits)
    if mode == tf.estimator.ModeKeys.TRAIN:
        update_ops = tf.get_collection(tf.GraphKeys.UPDATE_OPS)
        train_op = tf.train.AdamOptimizer(params["lr"]).minimize(loss, tf.train.get_global_step())
        train_op = tf.group([train_op, update_ops])
        return tf.estimator.EstimatorSpec(mode, loss=loss, train_op=train_op)
    metrics = {"accuracy": tf.metrics.accuracy(labels, tf.argmax(logits, axis=1))}
    return tf.estimator.EstimatorSpec(mode, loss=loss, eval_metric_ops=metrics)


def model_fn_build(model_dir, init_checkpoint=None, lr=0.003):
    config = tf.estimator.RunConfig(tf_random_seed=0)
    params = {"lr": lr, "init_checkpoint": init_checkpoint}
    return tf.estimator.Estimator(model_fn, model_dir=model_dir, config=config, params=params)


def predicted(estimator, images):
    input_fn = tf.estimator.inputs.numpy_input_fn({"inputs": images}, shuffle=False)
    return np.array([prediction["logits"] for prediction in estimator.predict(input_fn)])


def training_phase(images, checkpoint):
    """The checkpoint in a session of our own: it is one like any other."""
    with tf.Graph().as_default(), tf.Session() as session:
        logits = network(tf.constant(images), training=True)
        tf.train.Saver(tf.global_variables()).restore(session, checkpoint)
        return session.run(logits)


def main(folder):
    tf.disable_v2_behavior()
    data, inputs = digits(), tf.estimator.inputs
    examples = {"inputs": data.train_images}, data.train_labels
    train_input = inputs.numpy_input_fn(*examples, BATCH, num_epochs=10, shuffle=True)
    test_input = inputs.numpy_input_fn({"inputs": data.test_images}, data.test_labels, shuffle=False)

    first = model_fn_build(f"{folder}/first").train(train_input)
    second = model_fn_build(f"{folder}/second", first.latest_checkpoint(), lr=0.001).train(train_input)
    for name, estimator in (("first", first), ("second", second)):
        print(name, estimator.evaluate(test_input))

    # Nothing is trained here and its folder is empty: all it knows comes from the warm start.
    served = model_fn_build(f"{folder}/served", second.latest_checkpoint())
    return proven(
        data.test_labels,
        trained=predicted(second, data.test_images),
        served=predicted(served, data.test_images),
        batch=training_phase(data.test_images, second.latest_checkpoint()),
    )


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        sys.exit(not main(sys.argv[1] if sys.argv[1:] else temporary))
