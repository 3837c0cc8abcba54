# SPDX-License-Identifier: Apache-2.0
"""The layers of `tf.layers` round batch normalization: names, collections, reuse, shapes, numbers, errors."""

import inspect

import numpy as np
import pytest
import tensorflow as tf

from evenkeel.tf1 import layers
from evenkeel.tf1.layers import convolutional, core, pooling

v1 = tf.compat.v1

SPACE = (7, 6, 5)
CONVOLUTIONS = {
    "conv1d": 1,
    "conv2d": 2,
    "conv3d": 3,
    "separable_conv1d": 1,
    "separable_conv2d": 2,
    "conv2d_transpose": 2,
    "conv3d_transpose": 3,
}
POOLINGS = {f"{kind}_pooling{rank}d": rank for kind in ("max", "average") for rank in (1, 2, 3)}
WITH_VARIABLES = {**CONVOLUTIONS, "dense": 0}


def normal(shape, seed=0):
    return np.random.RandomState(seed).standard_normal(shape).astype("float32")


def images(rank, data_format="channels_last", channels=4):
    space = SPACE[:rank]
    return normal((2, *space, channels) if data_format == "channels_last" else (2, channels, *space))


def fixed(shape, dtype=None, partition_info=None):
    """An initializer: the same numbers for the same shape."""
    return tf.constant(normal([int(size) for size in shape], seed=1), dtype)


def squares(value):
    return tf.reduce_sum(tf.square(value))


def batch_of(array):
    """A placeholder for arrays of that shape, the batch unknown."""
    return v1.placeholder(array.dtype, [None, *array.shape[1:]])


def applied(family, inputs, **options):
    """A layer of that family on `inputs`, with 5 units or filters."""
    function = getattr(layers, family)
    return function(inputs, 5, **options) if family == "dense" else function(inputs, 5, 3, **options)


def initializers(name):
    kernels = ("depthwise", "pointwise") if name.startswith("separable") else ("kernel",)
    return {f"{kernel}_initializer": fixed for kernel in (*kernels, "bias")}


def result(session, y, feed=None):
    session.run(v1.global_variables_initializer())
    return session.run(y, feed)


def global_names():
    return [variable.op.name for variable in v1.global_variables()]


def trainable_names():
    return [variable.op.name for variable in v1.trainable_variables()]


# Names, creation order, collections.


@pytest.mark.parametrize(
    ("name", "kernels"),
    [
        (name, ["depthwise_kernel", "pointwise_kernel"] if name.startswith("separable") else ["kernel"])
        for name in WITH_VARIABLES
    ],
)
def test_names_in_the_order_of_creation(graph, name, kernels):
    y = applied(name, tf.constant(images(WITH_VARIABLES[name])))
    assert global_names() == trainable_names() == [f"{name}/{each}" for each in (*kernels, "bias")]
    assert y.name == f"{name}/BiasAdd:0" or name == "separable_conv1d"
    assert all(operation.name.startswith((f"{name}/", "Const")) for operation in graph.get_operations())


@pytest.mark.parametrize(
    ("name", "operation"),
    [
        ("dense", "MatMul"),
        ("conv2d", "Conv2D"),
        ("conv3d", "Conv3D"),
        ("conv2d_transpose", "conv2d_transpose"),
        ("conv3d_transpose", "conv3d_transpose"),
        ("separable_conv2d", "separable_conv2d"),
    ],
)
def test_operations_have_the_names_of_115(graph, name, operation):
    applied(name, tf.constant(images(WITH_VARIABLES[name])))
    assert graph.get_operation_by_name(f"{name}/{operation}")


@pytest.mark.parametrize("name", WITH_VARIABLES)
def test_variables_are_reference_variables(graph, name):
    applied(name, tf.constant(images(WITH_VARIABLES[name])))
    assert {variable.op.type for variable in v1.global_variables()} == {"VariableV2"}


@pytest.mark.parametrize("name", WITH_VARIABLES)
def test_without_bias(graph, name):
    applied(name, tf.constant(images(WITH_VARIABLES[name])), use_bias=False)
    assert not [variable for variable in global_names() if variable.endswith("bias")]


@pytest.mark.parametrize("name", WITH_VARIABLES)
def test_not_trainable(graph, name):
    applied(name, tf.constant(images(WITH_VARIABLES[name])), trainable=False)
    assert len(global_names()) >= 2 and trainable_names() == []


@pytest.mark.parametrize("name", WITH_VARIABLES)
def test_unnamed_layers_are_counted(graph, name):
    x = tf.constant(images(WITH_VARIABLES[name]))
    applied(name, x, use_bias=False)
    applied(name, x, use_bias=False)
    assert {variable.split("/")[0] for variable in global_names()} == {name, f"{name}_1"}


def test_scopes_go_before_the_names(graph):
    x = tf.constant(images(2))
    with v1.variable_scope("net"):
        layers.conv2d(x, 3, 3, name="first", use_bias=False)
        layers.conv2d(x, 3, 3, use_bias=False)
        with v1.variable_scope("block"):
            layers.conv2d(x, 3, 3, use_bias=False)
    assert global_names() == ["net/first/kernel", "net/conv2d/kernel", "net/block/conv2d/kernel"]


def test_name_of_an_object(graph):
    x = tf.ones([2, 3])
    first, second = layers.Dense(4, name="fc", use_bias=False), layers.Dense(4, name="fc", use_bias=False)
    first(x)
    second(x)
    assert (first.name, second.name) == ("fc", "fc")
    assert global_names() == ["fc/kernel", "fc_1/kernel"]


def test_object_called_twice_has_its_variables_once(graph):
    layer = layers.Conv2D(3, 3, kernel_regularizer=squares)
    x = tf.constant(images(2))
    layer(x)
    layer.apply(x)
    assert global_names() == ["conv2d/kernel", "conv2d/bias"]
    assert len(v1.losses.get_regularization_losses()) == 1
    assert [variable.op.name for variable in layer.trainable_variables] == global_names()


def test_positional_arguments_as_in_the_class(graph):
    y = layers.conv2d(tf.constant(images(2)), 3, (2, 2), (2, 1), "same", "channels_last", (1, 1), tf.nn.relu, False)
    assert y.shape.as_list() == [2, 4, 6, 3] and y.op.type == "Relu" and global_names() == ["conv2d/kernel"]


@pytest.mark.parametrize("name", [*WITH_VARIABLES, *POOLINGS])
def test_functions_show_their_signature(name):
    parameters = list(inspect.signature(getattr(layers, name)).parameters)
    assert parameters[0] == "inputs" and "options" not in parameters
    assert parameters[-2:] == (["name", "reuse"] if name in WITH_VARIABLES else ["data_format", "name"])
    assert getattr(layers, name).__name__ == name


@pytest.mark.parametrize(
    ("alias", "original"),
    [
        (core.FullyConnected, layers.Dense),
        (core.fully_connected, layers.dense),
        (convolutional.Convolution1D, layers.Conv1D),
        (convolutional.Convolution2D, layers.Conv2D),
        (convolutional.Convolution3D, layers.Conv3D),
        (convolutional.Deconv2D, layers.Conv2DTranspose),
        (convolutional.Deconvolution2D, layers.Conv2DTranspose),
        (convolutional.Convolution2DTranspose, layers.Conv2DTranspose),
        (convolutional.Deconvolution3D, layers.Conv3DTranspose),
        (convolutional.SeparableConvolution2D, layers.SeparableConv2D),
        (convolutional.convolution2d, layers.conv2d),
        (convolutional.deconv2d, layers.conv2d_transpose),
        (convolutional.separable_convolution2d, layers.separable_conv2d),
        (pooling.AvgPool2D, layers.AveragePooling2D),
        (pooling.MaxPool2D, layers.MaxPooling2D),
        (pooling.max_pool2d, layers.max_pooling2d),
        (pooling.avg_pool2d, layers.average_pooling2d),
    ],
)
def test_aliases(alias, original):
    assert alias is original


# Reuse.


@pytest.mark.parametrize("reuse", [True, v1.AUTO_REUSE])
@pytest.mark.parametrize("name", WITH_VARIABLES)
def test_reuse(session, name, reuse):
    x = tf.constant(images(WITH_VARIABLES[name]))
    first = applied(name, x, name="shared")
    before = global_names()
    second = applied(name, x, name="shared", reuse=reuse)
    assert global_names() == before
    np.testing.assert_array_equal(*result(session, [first, second]))


@pytest.mark.parametrize("name", WITH_VARIABLES)
def test_auto_reuse_makes_what_is_not_there(graph, name):
    applied(name, tf.constant(images(WITH_VARIABLES[name])), name="new", reuse=v1.AUTO_REUSE)
    assert global_names()[-1] == "new/bias"


@pytest.mark.parametrize("name", WITH_VARIABLES)
def test_reuse_of_what_is_not_there(graph, name):
    with pytest.raises(ValueError, match=r"Variable missing/.* does not exist"):
        applied(name, tf.constant(images(WITH_VARIABLES[name])), name="missing", reuse=True)


@pytest.mark.parametrize("name", WITH_VARIABLES)
def test_the_same_name_again(graph, name):
    x = tf.constant(images(WITH_VARIABLES[name]))
    applied(name, x, name="taken")
    with pytest.raises(ValueError, match=r"Variable taken/.* already exists"):
        applied(name, x, name="taken")


def test_reuse_by_the_scope(graph):
    x = tf.constant(images(2))
    with v1.variable_scope("net"):
        layers.conv2d(x, 3, 3)
        layers.conv2d(x, 3, 3)
    before = global_names()
    with v1.variable_scope("net", reuse=True):
        layers.conv2d(x, 3, 3)
        layers.conv2d(x, 3, 3)
    assert global_names() == before


def test_template(session):
    def network(x):
        return layers.dense(layers.dropout(layers.flatten(layers.conv2d(x, 3, 3))), 2)

    template = v1.make_template("net", network)
    x = tf.constant(images(2))
    first, second = template(x), template(x)
    assert global_names() == ["net/conv2d/kernel", "net/conv2d/bias", "net/dense/kernel", "net/dense/bias"]
    np.testing.assert_array_equal(*result(session, [first, second]))


def test_reuse_with_another_shape(graph):
    layers.dense(tf.ones([2, 3]), 4, name="fc")
    with pytest.raises(ValueError, match=r"fc/kernel.*\(3, 5\).*\(3, 4\)"):
        layers.dense(tf.ones([2, 3]), 5, name="fc", reuse=True)


# What the variable scope says.


@pytest.mark.parametrize("name", WITH_VARIABLES)
def test_partitioner(session, name):
    x = tf.constant(images(WITH_VARIABLES[name]))
    whole = applied(name, x, name="whole", **initializers(name))
    with v1.variable_scope("parts", partitioner=v1.fixed_size_partitioner(2, axis=0)):
        # Each part would start from the numbers for its own shape.
        parts = applied(name, x, name="parts")
    collected = [variable for variable in v1.global_variables() if variable.op.name.startswith("parts")]
    assert "parts/parts/bias/part_1" in [variable.op.name for variable in collected]
    assert result(session, parts).shape == session.run(whole).shape


def test_partitioned_dense_is_the_product_with_all_parts(session):
    x = normal([2, 6])
    with v1.variable_scope("net", partitioner=v1.fixed_size_partitioner(3, axis=0)):
        y = layers.dense(tf.constant(x), 4)
    y, *parts, bias = result(session, [y, *v1.global_variables()[:3], tf.concat(v1.global_variables()[3:], 0)])
    np.testing.assert_allclose(y, x @ np.concatenate(parts) + bias, rtol=1e-5, atol=1e-6)


def test_custom_getter_and_initializer_of_the_scope(session):
    asked = []

    def listening(getter, name, *args, **kwargs):
        asked.append(name)
        return getter(name, *args, **kwargs)

    with v1.variable_scope("net", custom_getter=listening, initializer=v1.constant_initializer(3.0)):
        y = layers.dense(tf.ones([1, 2]), 1)
    assert asked == ["net/dense/kernel", "net/dense/bias"]
    assert result(session, y) == [[6.0]]


def test_getter_may_return_a_tensor(session):
    def doubled(getter, name, *args, **kwargs):
        return 2.0 * getter(name, *args, **kwargs)

    with v1.variable_scope("net", custom_getter=doubled):
        y = layers.conv2d(tf.ones([1, 2, 2, 1]), 1, 2, kernel_initializer=v1.ones_initializer())
    assert result(session, y).item() == 8.0


def test_glorot_uniform_is_the_default(session):
    layers.dense(tf.ones([1, 200]), 100)
    kernel, bias = result(session, v1.global_variables())
    limit = np.sqrt(6 / 300)
    assert 0.98 * limit < np.abs(kernel).max() <= limit and not bias.any()


@pytest.mark.parametrize(
    ("name", "spread"),
    [("he_normal", np.sqrt(2 / 200)), ("random_normal", 0.05), ("zeros", 0.0), ("lecun_uniform", np.sqrt(1 / 200))],
)
def test_initializer_by_name(session, name, spread):
    layers.dense(tf.ones([1, 200]), 100, kernel_initializer=name)
    kernel, _ = result(session, v1.global_variables())
    assert kernel.std() == pytest.approx(spread, rel=0.05)


@pytest.mark.parametrize("name", WITH_VARIABLES)
def test_constraints_stay_on_the_variables(graph, name):
    kernels = {"depthwise": tf.abs, "pointwise": tf.square} if name.startswith("separable") else {"kernel": tf.abs}
    constraints = {**kernels, "bias": tf.nn.relu}
    options = {f"{variable}_constraint": constraint for variable, constraint in constraints.items()}
    applied(name, tf.constant(images(WITH_VARIABLES[name])), **options)
    assert [variable.constraint for variable in v1.global_variables()] == list(constraints.values())


# Losses.


@pytest.mark.parametrize("name", WITH_VARIABLES)
def test_regularizers_once(session, name):
    kernels = ("depthwise", "pointwise") if name.startswith("separable") else ("kernel",)
    regularizers = {f"{each}_regularizer": squares for each in (*kernels, "bias")}
    x = tf.constant(images(WITH_VARIABLES[name]))
    options = {**regularizers, **initializers(name), "name": "layer"}
    applied(name, x, **options)
    applied(name, x, **options, reuse=True)
    losses = v1.losses.get_regularization_losses()
    assert [loss.op.name.rsplit("/", 1)[0] for loss in losses] == [
        f"{variable}/Regularizer" for variable in global_names()
    ]
    values, variables = result(session, [losses, v1.global_variables()])
    np.testing.assert_allclose(values, [np.sum(variable**2) for variable in variables], rtol=1e-5)


@pytest.mark.parametrize("name", WITH_VARIABLES)
def test_activity_regularizer_is_a_mean_over_the_batch(session, name):
    x = tf.constant(images(WITH_VARIABLES[name]))
    y = applied(name, x, activity_regularizer=squares)
    (loss,) = v1.losses.get_regularization_losses()
    loss, y = result(session, [loss, y])
    assert loss == pytest.approx(np.sum(y**2) / len(y), rel=1e-5)


# Dense.


@pytest.mark.parametrize("shape", [(2, 3), (2, 4, 3), (2, 5, 4, 3)])
def test_dense_is_the_product_over_the_last_axis(session, shape):
    x = normal(shape)
    feed = batch_of(x)
    y = layers.dense(feed, 6, activation=tf.nn.relu, kernel_initializer=fixed, bias_initializer=fixed)
    assert y.shape.as_list() == [None, *shape[1:-1], 6]
    wanted = np.maximum(x @ normal([3, 6], seed=1) + normal([6], seed=1), 0)
    np.testing.assert_allclose(result(session, y, {feed: x}), wanted, rtol=1e-5, atol=1e-6)


def test_dense_knows_the_units_when_nothing_else_is_known(graph):
    assert layers.dense(v1.placeholder(tf.float32, [None, None, 3]), 6).shape.as_list() == [None, None, 6]


def test_dense_of_a_sparse_tensor(session):
    x = tf.sparse.from_dense(tf.constant([[0.0, 2.0], [1.0, 0.0]]))
    y = layers.dense(x, 1, kernel_initializer=v1.constant_initializer([3.0, 5.0]))
    np.testing.assert_array_equal(result(session, y), [[10.0], [3.0]])


def test_dense_refuses_integers(graph):
    with pytest.raises(TypeError, match="Unable to build `Dense` layer with non-floating point dtype int32"):
        layers.dense(tf.ones([2, 3], tf.int32), 4)


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_variables_have_the_type_of_the_input(graph, dtype):
    y = layers.dense(tf.ones([2, 3], dtype), 4)
    assert {y.dtype.name, *(variable.dtype.base_dtype.name for variable in v1.global_variables())} == {dtype}


@pytest.mark.parametrize(
    ("name", "wanted"),
    [("relu", [0.0, 2.0]), ("linear", [-1.0, 2.0]), ("hard_sigmoid", [0.3, 0.9]), ("exponential", np.exp([-1.0, 2.0]))],
)
def test_activation_by_name(session, name, wanted):
    layer = layers.Dense(2, activation=name, kernel_initializer=v1.initializers.identity())
    np.testing.assert_allclose(result(session, layer(tf.constant([[-1.0, 2.0]]))), [wanted], rtol=1e-6)


# Dropout and flatten.


@pytest.mark.parametrize("training", [False, 0, None])
def test_dropout_at_inference_changes_nothing(session, training):
    x = normal([4, 5])
    y = layers.dropout(tf.constant(x), 0.9, training=training)
    assert y.op.type == "Identity" or training is None
    np.testing.assert_array_equal(session.run(y), x)


@pytest.mark.parametrize("training", [True, 1])
def test_dropout_in_training_keeps_a_share(session, training):
    y = session.run(layers.dropout(tf.ones([100, 100]), 0.2, training=training, seed=1))
    np.testing.assert_allclose(np.unique(y), [0.0, 1.25])
    assert (y == 0).mean() == pytest.approx(0.2, abs=0.02)


def test_dropout_with_a_fed_phase(session):
    training = v1.placeholder(tf.bool, [])
    y = layers.dropout(tf.ones([50, 50]), 0.5, training=training, seed=1)
    assert y.op.name.startswith("dropout/")
    assert set(np.unique(session.run(y, {training: True}))) == {0.0, 2.0}
    assert set(np.unique(session.run(y, {training: False}))) == {1.0}


def test_dropout_under_new_control_flow(session):
    training = v1.placeholder(tf.bool, [])
    v1.enable_control_flow_v2()
    y = layers.dropout(tf.ones([50, 50]), 0.5, training=training, seed=1)
    assert session.run([tf.reduce_max(y)], {training: True}) == [2.0]
    assert session.run([tf.reduce_max(y)], {training: False}) == [1.0]


def test_dropout_gradient_passes_through_what_was_kept(session):
    x = tf.ones([20, 20])
    y = layers.dropout(x, 0.5, training=True)
    value, gradient = session.run([y, tf.gradients(y, x)[0]])
    np.testing.assert_array_equal(value, gradient)


def test_dropout_with_one_choice_for_a_whole_row(session):
    x = np.ones([30, 4, 5], "float32")
    feed = batch_of(x)
    y = layers.dropout(feed, 0.5, noise_shape=(None, 1, 5), training=True, seed=1)
    y = session.run(y, {feed: x})
    np.testing.assert_array_equal(y, np.broadcast_to(y[:, :1], y.shape))
    assert set(np.unique(y)) == {0.0, 2.0}


def test_dropout_with_a_seed_is_that_of_tf_nn(session):
    x = tf.ones([10, 10])
    v1.set_random_seed(7)
    ours = layers.dropout(x, 0.3, seed=11, training=True)
    theirs = v1.nn.dropout(x, rate=0.3, seed=11)
    np.testing.assert_array_equal(*session.run([ours, theirs]))


@pytest.mark.parametrize("rate", [1.0, -0.1])
def test_dropout_refuses_a_rate_outside(graph, rate):
    with pytest.raises(ValueError, match=rf"\[0, 1\).*{rate}"):
        layers.dropout(tf.ones([2]), rate, training=True)


@pytest.mark.parametrize(
    ("shape", "data_format", "static"),
    [
        ((2, 3, 4, 5), "channels_last", [None, 60]),
        ((2, 3, 4, 5), "channels_first", [None, 60]),
        ((2, 7), "channels_last", [None, 7]),
        ((2,), "channels_last", [None, 1]),
        ((2,), "channels_first", [None, 1]),
    ],
)
def test_flatten(session, shape, data_format, static):
    x = normal(shape)
    feed = batch_of(x)
    y = layers.flatten(feed, data_format=data_format)
    assert y.shape.as_list() == static
    wanted = np.moveaxis(x, 1, -1) if data_format == "channels_first" and x.ndim > 1 else x
    np.testing.assert_array_equal(session.run(y, {feed: x}), wanted.reshape(2, -1))


def test_flatten_where_sizes_are_unknown(session):
    x = normal([2, 3, 4])
    feed = v1.placeholder(tf.float32, [2, None, 4])
    y = layers.flatten(feed)
    assert y.shape.as_list() == [2, None]
    np.testing.assert_array_equal(session.run(y, {feed: x}), x.reshape(2, 12))


def test_flatten_an_empty_batch(session):
    feed = v1.placeholder(tf.float32, [None, 3, 4])
    assert session.run(layers.flatten(feed), {feed: np.zeros([0, 3, 4])}).shape == (0, 12)


# Convolutions.


def convolved(x, kernel, padding, strides, dilation):
    """A convolution in one dimension, longhand: `x` (batch, steps, channels), `kernel` (window, channels, filters)."""
    window = (len(kernel) - 1) * dilation + 1
    if padding == "same":
        total = max((-(-x.shape[1] // strides) - 1) * strides + window - x.shape[1], 0)
        x = np.pad(x, [(0, 0), (total // 2, total - total // 2), (0, 0)])
    if padding == "causal":
        x = np.pad(x, [(0, 0), (window - 1, 0), (0, 0)])
    starts = range(0, x.shape[1] - window + 1, strides)
    return np.stack([np.einsum("bwc,wcf->bf", x[:, at : at + window : dilation], kernel) for at in starts], 1)


@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
@pytest.mark.parametrize(("strides", "dilation"), [(1, 1), (2, 1), (1, 2), (1, 3)])
@pytest.mark.parametrize("padding", ["valid", "same", "causal"])
def test_conv1d_longhand(session, padding, strides, dilation, data_format):
    x = normal([2, 9, 4])
    last = data_format == "channels_last"
    feed = batch_of(x if last else np.moveaxis(x, -1, 1))
    y = layers.conv1d(feed, 5, 3, strides, padding, data_format, dilation, **initializers("conv1d"))
    wanted = convolved(x, normal([3, 4, 5], seed=1), padding, strides, dilation) + normal([5], seed=1)
    wanted = wanted if last else np.moveaxis(wanted, -1, 1)
    # TensorFlow does not tell the length behind a dilation of unknown padding.
    assert y.shape.as_list() in ([None, *wanted.shape[1:]], [None, None, 5], [None, 5, None])
    got = result(session, y, {feed: x if last else np.moveaxis(x, -1, 1)})
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)


CASES = [
    (name, padding, strides, dilation)
    for name in CONVOLUTIONS
    for padding in ("valid", "same")
    for strides, dilation in ((1, 1), (2, 1), (1, 2))
    if dilation == 1 or "transpose" not in name
]


@pytest.mark.parametrize(("name", "padding", "strides", "dilation"), CASES)
def test_channels_first_is_channels_last_transposed(session, name, padding, strides, dilation):
    rank = CONVOLUTIONS[name]
    x = images(rank)
    options = {"padding": padding, "strides": strides, "activation": tf.nn.tanh, **initializers(name)}
    if "transpose" not in name:
        options["dilation_rate"] = dilation
    last_in, first_in = tf.constant(x), tf.constant(np.moveaxis(x, -1, 1))
    last = applied(name, last_in, **options)
    first = applied(name, first_in, data_format="channels_first", **options)
    assert first.shape.as_list() == [last.shape.as_list()[axis] for axis in (0, -1, *range(1, rank + 1))]
    gradients = tf.gradients(last, last_in) + tf.gradients(first, first_in)
    last, first, last_gradient, first_gradient = result(session, [last, first, *gradients])
    np.testing.assert_allclose(np.moveaxis(first, 1, -1), last, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(np.moveaxis(first_gradient, 1, -1), last_gradient, rtol=1e-5, atol=1e-5)
    assert last_gradient.any()


@pytest.mark.parametrize("padding", ["VALID", "SAME"])
def test_conv2d_is_the_operation_of_that_name(session, padding):
    x = images(2)
    y = layers.conv2d(tf.constant(x), 5, (3, 2), (1, 2), padding, **initializers("conv2d"))
    raw = v1.nn.conv2d(x, normal([3, 2, 4, 5], seed=1), strides=[1, 1, 2, 1], padding=padding) + normal([5], seed=1)
    assert y.shape.as_list() == raw.shape.as_list()
    np.testing.assert_allclose(*result(session, [y, raw]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rate", [2, (1, 3)])
def test_a_dilated_convolution_is_one_with_holes_in_its_kernel(session, rate):
    x = images(2)
    y = layers.conv2d(tf.constant(x), 5, 2, dilation_rate=rate, use_bias=False, kernel_initializer=fixed)
    down, right = (rate, rate) if isinstance(rate, int) else rate
    kernel = np.zeros([down + 1, right + 1, 4, 5], "float32")
    kernel[::down, ::right] = normal([2, 2, 4, 5], seed=1)
    raw = v1.nn.conv2d(x, kernel, strides=[1] * 4, padding="VALID")
    np.testing.assert_allclose(*result(session, [y, raw]), rtol=1e-5, atol=1e-5)


def test_conv3d_is_the_operation_of_that_name(session):
    x = images(3)
    y = layers.conv3d(tf.constant(x), 5, 2, (1, 2, 1), "same", use_bias=False, kernel_initializer=fixed)
    raw = v1.nn.conv3d(x, normal([2, 2, 2, 4, 5], seed=1), strides=[1, 1, 2, 1, 1], padding="SAME")
    np.testing.assert_allclose(*result(session, [y, raw]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize(("strides", "dilation"), [(1, 1), (2, 1), (1, 2)])
@pytest.mark.parametrize("name", ["separable_conv1d", "separable_conv2d"])
def test_separable_is_one_channel_at_a_time_and_then_all(session, name, strides, dilation, padding):
    rank = CONVOLUTIONS[name]
    x = images(rank)
    options = {"strides": strides, "dilation_rate": dilation, "padding": padding, "depth_multiplier": 2}
    y = applied(name, tf.constant(x), **options, **initializers(name))
    depthwise = normal([*[3] * rank, 4, 2], seed=1)
    pointwise = normal([*[1] * rank, 8, 5], seed=1)
    kernel = np.einsum("...cm,cmf->...cf", depthwise, pointwise.reshape(4, 2, 5))
    wanted = tf.nn.convolution(x, kernel, [strides] * rank, padding.upper(), dilations=[dilation] * rank)
    shapes = [variable.shape.as_list() for variable in v1.global_variables()]
    assert shapes == [list(depthwise.shape), list(pointwise.shape), [5]]
    y, wanted = result(session, [y, wanted])
    np.testing.assert_allclose(y, wanted + normal([5], seed=1), rtol=1e-4, atol=1e-4)


def test_separable_causal_does_not_look_ahead(session):
    x = normal([1, 6, 2])
    later = x.copy()
    later[:, 4:] += 1
    feed = batch_of(x)
    y = layers.separable_conv1d(feed, 3, 3, padding="causal")
    before = result(session, y, {feed: x})
    assert before.shape == (1, 6, 3)
    np.testing.assert_array_equal(session.run(y, {feed: later})[:, :4], before[:, :4])


@pytest.mark.parametrize(
    ("padding", "strides", "window", "wanted"),
    [
        ("same", 1, 3, (7, 6, 5)),
        ("same", 2, 3, (14, 12, 10)),
        ("valid", 1, 3, (9, 8, 7)),
        ("valid", 2, 3, (15, 13, 11)),
        ("valid", 3, 2, (21, 18, 15)),
    ],
)
@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("name", ["conv2d_transpose", "conv3d_transpose"])
def test_transposed_shapes(session, name, known, padding, strides, window, wanted):
    rank = CONVOLUTIONS[name]
    x = images(rank)
    feed = v1.placeholder(tf.float32, [None, *(x.shape[1:-1] if known else [None] * rank), 4])
    y = getattr(layers, name)(feed, 5, window, strides, padding)
    assert y.shape.as_list() == [None, *(wanted[:rank] if known else [None] * rank), 5]
    assert result(session, y, {feed: x}).shape == (2, *wanted[:rank], 5)
    assert v1.global_variables()[0].shape.as_list() == [*[window] * rank, 5, 4]


@pytest.mark.parametrize("padding", ["same", "valid"])
def test_transposed_is_the_gradient_of_a_convolution(session, padding):
    kernel = normal([3, 3, 5, 4], seed=1)
    x = images(2)
    y = layers.conv2d_transpose(tf.constant(x), 5, 3, 2, padding, use_bias=False, kernel_initializer=fixed)
    images_in = tf.zeros(y.shape)
    forward = v1.nn.conv2d(images_in, kernel, strides=[1, 2, 2, 1], padding=padding.upper())
    np.testing.assert_allclose(*result(session, [y, tf.gradients(forward, images_in, x)[0]]), rtol=1e-5, atol=1e-6)


def test_activation_sees_the_layout_of_the_output(session):
    x = images(2, "channels_first")
    y = layers.conv2d(tf.constant(x), 3, 1, data_format="channels_first", activation=tf.nn.softmax)
    np.testing.assert_allclose(result(session, y).sum(axis=-1), 1.0, rtol=1e-5)


def test_no_example_in_the_batch(session):
    # Not of a convolution: with oneDNN, tf.nn.conv2d itself gives an empty batch the shape of its input.
    feed = v1.placeholder(tf.float32, [None, 7, 6, 4])
    y = layers.max_pooling2d(layers.dense(feed, 3), 2, 2)
    assert result(session, y, {feed: np.zeros([0, 7, 6, 4])}).shape == (0, 3, 3, 3)


def test_filters_from_arithmetic_with_floats(graph):
    assert layers.conv2d(tf.constant(images(2)), 0.5 * 16, 3).shape.as_list()[-1] == 8


# Pooling.


@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize("name", POOLINGS)
def test_pooling_is_the_operation_of_that_name(session, name, padding, data_format):
    rank = POOLINGS[name]
    x = images(rank)
    feed = batch_of(x if data_format == "channels_last" else np.moveaxis(x, -1, 1))
    y = getattr(layers, name)(feed, 3, 2, padding, data_format)
    lengths = [-(-size // 2) if padding == "same" else (size - 3) // 2 + 1 for size in x.shape[1:-1]]
    assert y.shape.as_list() == [None, *([*lengths, 4] if data_format == "channels_last" else [4, *lengths])]
    raw = tf.nn.pool(tf.constant(x), [3] * rank, "MAX" if "max" in name else "AVG", [2] * rank, padding.upper())
    got, wanted = session.run([y, raw], {feed: x if data_format == "channels_last" else np.moveaxis(x, -1, 1)})
    np.testing.assert_allclose(got if data_format == "channels_last" else np.moveaxis(got, 1, -1), wanted, rtol=1e-6)


@pytest.mark.parametrize("name", POOLINGS)
def test_poolings_leave_no_variables_and_count_their_names(graph, name):
    x = tf.constant(images(POOLINGS[name]))
    scopes = [getattr(layers, name)(x, 2, 2).op.name.split("/")[0] for _ in range(2)]
    assert scopes == [name, f"{name}_1"] and global_names() == []


def test_pool_size_may_be_a_shape(session):
    x = images(2)
    y = layers.average_pooling2d(tf.constant(x), tf.constant(x).shape[1:3], strides=1)
    np.testing.assert_allclose(session.run(y)[:, 0, 0], x.mean(axis=(1, 2)), rtol=1e-5, atol=1e-6)


# Errors.


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"kernel_size": (1, 2, 3)}, r"`kernel_size` argument must be a tuple of 2 integers. Received: \(1, 2, 3\)"),
        ({"kernel_size": None}, "`kernel_size` argument must be a tuple of 2 integers. Received: None"),
        ({"kernel_size": "3x3"}, "`kernel_size` argument must be a tuple of 2 integers. Received: 3x3"),
        ({"kernel_size": 3, "strides": (1,)}, "`strides` argument must be a tuple of 2"),
        ({"kernel_size": 3, "dilation_rate": (1, "a")}, "`dilation_rate` argument must be a tuple of 2"),
        ({"kernel_size": 3, "padding": "full"}, "padding='full'"),
        ({"kernel_size": 3, "padding": "causal"}, "padding='causal'"),
        ({"kernel_size": 3, "data_format": "NCHW"}, "data_format='NCHW' .* 'channels_first'"),
        ({"kernel_size": 3, "activation": "rellu"}, "activation='rellu'"),
        ({"kernel_size": 3, "kernel_initializer": "xavier"}, "initializer='xavier'"),
        ({"kernel_size": 3, "filters": 2.5}, "filters=2.5"),
        ({"kernel_size": 3, "strides": 2, "dilation_rate": 2}, "`?strides > 1`? not supported"),
    ],
)
def test_refused_arguments(graph, options, text):
    with pytest.raises(ValueError, match=text):
        layers.conv2d(tf.constant(images(2)), **{"filters": 3, **options})


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_unknown_channels(graph, name):
    feed = v1.placeholder(tf.float32, [2] * (CONVOLUTIONS[name] + 1) + [None])
    with pytest.raises(ValueError, match=r"channel dimension of the inputs should be defined. Found `None`"):
        applied(name, feed)


def test_unknown_last_dimension_of_dense(graph):
    with pytest.raises(ValueError, match=r"last dimension of the inputs to `Dense` should be defined. Found `None`"):
        layers.dense(v1.placeholder(tf.float32, [2, None]), 3)


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_another_number_of_dimensions(graph, name):
    wanted = CONVOLUTIONS[name] + 2
    with pytest.raises(ValueError, match=f"expected ndim={wanted}, found ndim={wanted - 1}"):
        applied(name, tf.ones([2] * (wanted - 1)))


@pytest.mark.parametrize("name", [*WITH_VARIABLES, "flatten"])
def test_unknown_number_of_dimensions(graph, name):
    feed = v1.placeholder(tf.float32)
    with pytest.raises(ValueError, match="rank is undefined"):
        layers.flatten(feed) if name == "flatten" else applied(name, feed)
    assert global_names() == []


@pytest.mark.parametrize("name", POOLINGS)
def test_another_number_of_dimensions_for_pooling(graph, name):
    wanted = POOLINGS[name] + 2
    with pytest.raises(ValueError, match=f"expected ndim={wanted}, found ndim={wanted + 1}"):
        getattr(layers, name)(tf.ones([2] * (wanted + 1)), 2, 2)


@pytest.mark.parametrize("layer", [lambda: layers.Dense(3), lambda: layers.Conv1D(3, 2)])
def test_other_channels_on_the_second_call(graph, layer):
    layer = layer()
    shape = [2, 5] if isinstance(layer, layers.Dense) else [2, 5, 5]
    layer(tf.ones(shape))
    with pytest.raises(ValueError, match=r"axis -1 .* value 5 but received .*4"):
        layer(tf.ones([*shape[:-1], 4]))


@pytest.mark.parametrize("name", POOLINGS)
def test_pooling_wants_strides(graph, name):
    with pytest.raises(ValueError, match="Argument `strides` must not be None"):
        getattr(layers, name)(tf.constant(images(POOLINGS[name])), 2, None)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda x: layers.conv2d(x, 3), "kernel_size"),
        (lambda x: layers.conv2d(x, 3, 3, colour="red"), "colour"),
        (lambda x: layers.dense(x, 3, units=3), "units"),
        (lambda x: layers.max_pooling2d(x, 2, 2, reuse=True), "reuse"),
    ],
)
def test_wrong_calls_are_type_errors(graph, call, text):
    with pytest.raises(TypeError, match=text):
        call(tf.constant(images(2)))


# A whole network.


def test_a_network_learns(session):
    v1.set_random_seed(0)
    x = normal([16, 8, 8, 1])
    labels = (x.mean(axis=(1, 2, 3)) > 0).astype("int32")
    y = layers.conv2d(tf.constant(x), 4, 3, padding="same", activation=tf.nn.relu)
    y = layers.max_pooling2d(y, 2, 2)
    y = layers.separable_conv2d(y, 4, 3, activation="relu")
    logits = layers.dense(layers.dropout(layers.flatten(y), 0.1, training=True), 2)
    loss = v1.losses.sparse_softmax_cross_entropy(labels, logits)
    step = v1.train.AdamOptimizer(0.02).minimize(loss)
    first = result(session, loss)
    for _ in range(40):
        session.run(step)
    assert session.run(loss) < 0.5 * first


def test_without_the_rules_of_tensorflow_1():
    with tf.Graph().as_default(), v1.Session() as session:
        y = layers.conv2d_transpose(v1.placeholder_with_default(images(2), [None, 7, 6, 4]), 3, 3)
        y = layers.dense(layers.flatten(layers.conv1d(y[:, 0], 3, 2)), 5)
        assert y.shape.as_list() == [None, 5]
        assert result(session, y).shape == (2, 5)
