# SPDX-License-Identifier: Apache-2.0
"""ResNet-50 v2, as people built it with slim's arg scopes, trains; its variables have the names of TensorFlow 1.15."""

import numpy as np
import tensorflow as tf

import evenkeel.tf1 as tf1

v1 = tf.compat.v1
slim = tf1.contrib.slim

BLOCKS = (("block1", 64, 3, 2), ("block2", 128, 4, 2), ("block3", 256, 6, 2), ("block4", 512, 3, 1))


def arg_scope(weight_decay=1e-4):
    batch_norm = {"decay": 0.997, "epsilon": 1e-5, "scale": True}
    with (
        slim.arg_scope(
            [slim.conv2d],
            weights_regularizer=slim.l2_regularizer(weight_decay),
            weights_initializer=slim.variance_scaling_initializer(),
            activation_fn=tf.nn.relu,
            normalizer_fn=slim.batch_norm,
            normalizer_params=batch_norm,
        ),
        slim.arg_scope([slim.batch_norm], **batch_norm),
        slim.arg_scope([slim.max_pool2d], padding="SAME") as scope,
    ):
        return scope


@slim.add_arg_scope
def bottleneck(inputs, depth, stride, outputs_collections=None, scope=None):
    with v1.variable_scope(scope, "bottleneck_v2", [inputs]) as sc:
        preact = slim.batch_norm(inputs, activation_fn=tf.nn.relu, scope="preact")
        if slim.utils.last_dimension(inputs.get_shape(), min_rank=4) == 4 * depth:
            shortcut = inputs if stride == 1 else slim.max_pool2d(inputs, [1, 1], stride=stride, scope="shortcut")
        else:
            shortcut = slim.conv2d(
                preact, 4 * depth, [1, 1], stride=stride, normalizer_fn=None, activation_fn=None, scope="shortcut"
            )
        residual = slim.conv2d(preact, depth, [1, 1], scope="conv1")
        residual = slim.conv2d(residual, depth, [3, 3], stride=stride, scope="conv2")
        residual = slim.conv2d(residual, 4 * depth, [1, 1], normalizer_fn=None, activation_fn=None, scope="conv3")
        return slim.utils.collect_named_outputs(outputs_collections, sc.name, shortcut + residual)


def resnet_v2_50(images, classes, is_training):
    with v1.variable_scope("resnet_v2_50", values=[images]) as sc:
        ends = sc.original_name_scope + "_end_points"
        with (
            slim.arg_scope([slim.conv2d, bottleneck], outputs_collections=ends),
            slim.arg_scope([slim.batch_norm], is_training=is_training),
        ):
            with slim.arg_scope([slim.conv2d], activation_fn=None, normalizer_fn=None):
                net = slim.conv2d(images, 64, [7, 7], stride=2, scope="conv1")
            net = slim.max_pool2d(net, [3, 3], stride=2, scope="pool1")
            for name, depth, units, stride in BLOCKS:
                with v1.variable_scope(name, values=[net]):
                    for unit in range(units):
                        with v1.variable_scope(f"unit_{unit + 1}", values=[net]):
                            net = bottleneck(net, depth, stride if unit == units - 1 else 1)
            net = slim.batch_norm(net, activation_fn=tf.nn.relu, scope="postnorm")
            net = tf.reduce_mean(net, [1, 2], keepdims=True)
            net = slim.conv2d(net, classes, [1, 1], activation_fn=None, normalizer_fn=None, scope="logits")
            return tf.squeeze(net, [1, 2]), slim.utils.convert_collection_to_dict(ends)


def names_of_1_15():
    """In the order in which they were made there."""

    def convolution(scope, normalized):
        yield f"{scope}/weights"
        yield from (f"{scope}/BatchNorm/{name}" for name in core) if normalized else [f"{scope}/biases"]

    core = ("gamma", "beta", "moving_mean", "moving_variance")
    yield from convolution("resnet_v2_50/conv1", False)
    for block, _, units, _ in BLOCKS:
        for unit in range(1, units + 1):
            scope = f"resnet_v2_50/{block}/unit_{unit}/bottleneck_v2"
            yield from (f"{scope}/preact/{name}" for name in core)
            if unit == 1:
                yield from convolution(f"{scope}/shortcut", False)
            yield from convolution(f"{scope}/conv1", True)
            yield from convolution(f"{scope}/conv2", True)
            yield from convolution(f"{scope}/conv3", False)
    yield from (f"resnet_v2_50/postnorm/{name}" for name in core)
    yield from convolution("resnet_v2_50/logits", False)


def test_it_trains_and_has_the_names(graph):
    v1.set_random_seed(0)
    images = v1.placeholder(tf.float32, [None, 224, 224, 3])
    labels = tf.constant([3, 7])
    with slim.arg_scope(arg_scope()):
        logits, ends = resnet_v2_50(images, 10, is_training=True)
    assert [variable.op.name for variable in v1.global_variables()] == list(names_of_1_15())
    assert len(v1.model_variables()) == len(v1.global_variables()) == 272
    assert "resnet_v2_50/block4/unit_3/bottleneck_v2" in ends
    # 16 units with 3 normalizers each, one after the last.
    assert len(v1.get_collection(v1.GraphKeys.UPDATE_OPS)) == 2 * (16 * 3 + 1)
    slim.losses.sparse_softmax_cross_entropy(logits, labels)
    optimizer = tf1.train.GradientDescentOptimizer(0.001)
    train_op = slim.learning.create_train_op(slim.losses.get_total_loss(), optimizer)
    data = np.random.default_rng(0).normal(size=(2, 224, 224, 3)).astype("float32")
    with v1.Session(graph=graph) as session:
        session.run(v1.global_variables_initializer())
        first = session.run("resnet_v2_50/postnorm/moving_mean:0")
        losses = [session.run(train_op, {images: data}) for _ in range(2)]
        assert np.isfinite(losses).all() and losses[1] < losses[0]
        assert (session.run("resnet_v2_50/postnorm/moving_mean:0") != first).any()
