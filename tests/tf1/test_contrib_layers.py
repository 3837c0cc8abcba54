# SPDX-License-Identifier: Apache-2.0
"""`tf.contrib.layers`: names, collections and numbers of 1.15."""

import functools

import numpy as np
import pytest
import tensorflow

from evenkeel.tf1.contrib import layers
from evenkeel.tf1.contrib.framework import arg_scope

v1 = tensorflow.compat.v1

ONES = v1.ones_initializer()
IMAGES = np.random.default_rng(0).normal(size=(2, 5, 6, 3)).astype("float32")
VOLUMES = np.random.default_rng(1).normal(size=(2, 3, 4, 5, 2)).astype("float32")
ROWS = np.random.default_rng(2).normal(size=(4, 3)).astype("float32")
STEPS = np.random.default_rng(3).normal(size=(2, 7, 3)).astype("float32")


def names(key=v1.GraphKeys.GLOBAL_VARIABLES):
    return [element.op.name for element in v1.get_collection(key)]


def values(session, tensor):
    session.run(v1.global_variables_initializer())
    return session.run(tensor)


# Names, shapes and collections

WEIGHTED = {
    "fully_connected": (lambda x, **kw: layers.fully_connected(x, 4, **kw), ROWS, [4, 4], ["weights", "biases"]),
    "conv1d": (lambda x, **kw: layers.conv1d(x, 4, 3, **kw), STEPS, [2, 7, 4], ["weights", "biases"]),
    "conv2d": (lambda x, **kw: layers.conv2d(x, 4, [3, 2], **kw), IMAGES, [2, 5, 6, 4], ["weights", "biases"]),
    "conv3d": (lambda x, **kw: layers.conv3d(x, 4, 2, stride=2, **kw), VOLUMES, [2, 2, 2, 3, 4], ["weights", "biases"]),
    "convolution": (lambda x, **kw: layers.convolution(x, 4, 3, **kw), STEPS, [2, 7, 4], ["weights", "biases"]),
    "conv2d_transpose": (
        lambda x, **kw: layers.conv2d_transpose(x, 4, 3, stride=2, **kw),
        IMAGES,
        [2, 10, 12, 4],
        ["weights", "biases"],
    ),
    "conv3d_transpose": (
        lambda x, **kw: layers.conv3d_transpose(x, 4, 2, stride=2, **kw),
        VOLUMES,
        [2, 6, 8, 10, 4],
        ["weights", "biases"],
    ),
    "conv2d_in_plane": (
        lambda x, **kw: layers.conv2d_in_plane(x, 3, **kw),
        IMAGES,
        [2, 5, 6, 3],
        ["weights", "biases"],
    ),
    "separable_conv2d": (
        lambda x, **kw: layers.separable_conv2d(x, 4, 3, depth_multiplier=2, **kw),
        IMAGES,
        [2, 5, 6, 4],
        ["depthwise_weights", "pointwise_weights", "biases"],
    ),
    "depthwise alone": (
        lambda x, **kw: layers.separable_conv2d(x, None, 3, depth_multiplier=2, **kw),
        IMAGES,
        [2, 5, 6, 6],
        ["depthwise_weights", "biases"],
    ),
}
SCOPES = {
    "fully_connected": "fully_connected",
    "conv1d": "Conv",
    "conv2d": "Conv",
    "conv3d": "Conv",
    "convolution": "Conv",
    "conv2d_transpose": "Conv2d_transpose",
    "conv3d_transpose": "Conv3d_transpose",
    "conv2d_in_plane": "ConvInPlane",
    "separable_conv2d": "SeparableConv2d",
    "depthwise alone": "SeparableConv2d",
}


@pytest.fixture(params=WEIGHTED)
def weighted(request):
    """A layer with weights: its function, an input, the shape of the output, its variables and its default scope."""
    return (*WEIGHTED[request.param], SCOPES[request.param])


def test_names_come_in_order_and_under_the_default_scope(graph, weighted):
    layer, x, shape, variables, scope = weighted
    y = layer(tensorflow.constant(x))
    layer(tensorflow.constant(x))
    assert y.op.name == f"{scope}/Relu" and y.shape.as_list() == shape
    assert names() == [f"{each}/{name}" for each in (scope, f"{scope}_1") for name in variables]


def test_variables_are_the_models_and_trained(graph, weighted):
    layer, x, _, variables, _ = weighted
    layer(tensorflow.constant(x), scope="s")
    everywhere = [f"s/{name}" for name in variables]
    assert names() == names("model_variables") == names("trainable_variables") == everywhere


def test_variables_may_stay_untrained(graph, weighted):
    layer, x, _, variables, _ = weighted
    layer(tensorflow.constant(x), trainable=False)
    assert names("trainable_variables") == [] and len(names("model_variables")) == len(variables)


def test_a_scope_is_reused(graph, weighted):
    layer, x, _, variables, _ = weighted
    first = layer(tensorflow.constant(x), scope="s")
    again = layer(tensorflow.constant(x), scope="s", reuse=True)
    assert first.op.name == "s/Relu" and again.op.name == "s_1/Relu" and len(names()) == len(variables)


def test_reuse_wants_a_scope(graph, weighted):
    layer, x, *_ = weighted
    with pytest.raises(ValueError, match="reuse"):
        layer(tensorflow.constant(x), reuse=True)


def test_a_normalizer_takes_the_place_of_the_biases(graph, weighted):
    layer, x, _, variables, _ = weighted
    layer(tensorflow.constant(x), scope="s", normalizer_fn=layers.batch_norm, biases_initializer=ONES)
    weights = [f"s/{name}" for name in variables if name != "biases"]
    assert names() == [*weights, *(f"s/BatchNorm/{name}" for name in ("beta", "moving_mean", "moving_variance"))]


def test_no_biases(graph, weighted):
    layer, x, _, variables, _ = weighted
    layer(tensorflow.constant(x), scope="s", biases_initializer=None, activation_fn=None)
    assert names() == [f"s/{name}" for name in variables if name != "biases"]


def test_collections_for_each_kind_of_variable(graph, weighted):
    layer, x, _, variables, _ = weighted
    layer(tensorflow.constant(x), scope="s", variables_collections={"weights": ["w"], "biases": ["b"]})
    assert (names("w"), names("b")) == ([f"s/{name}" for name in variables[:-1]], ["s/biases"])


def test_collections_for_all_variables(graph, weighted):
    layer, x, _, variables, _ = weighted
    layer(tensorflow.constant(x), scope="s", variables_collections=["all"])
    assert names("all") == [f"s/{name}" for name in variables]


def test_the_output_is_collected_under_its_scope(graph, weighted):
    layer, x, *_ = weighted
    with v1.variable_scope("net"):
        y = layer(tensorflow.constant(x), scope="s", outputs_collections="ends")
    assert layers.utils.convert_collection_to_dict("ends") == {"net/s": y}


@pytest.mark.parametrize(
    ("layer", "x", "losses"),
    [
        (layers.fully_connected, ROWS, ["s/kernel/Regularizer/l2_regularizer", "s/bias/Regularizer/l1_regularizer"]),
        (
            functools.partial(layers.conv2d, kernel_size=3),
            IMAGES,
            ["s/kernel/Regularizer/l2_regularizer", "s/bias/Regularizer/l1_regularizer"],
        ),
    ],
)
def test_losses_keep_the_names_of_the_core_layers(graph, session, layer, x, losses):
    x = tensorflow.constant(x)
    options = {
        "weights_initializer": ONES,
        "biases_initializer": ONES,
        "weights_regularizer": layers.l2_regularizer(0.5),
        "biases_regularizer": layers.l1_regularizer(0.25),
        "scope": "s",
    }
    layer(x, num_outputs=4, **options)
    layer(x, num_outputs=4, reuse=True, **options)
    assert names(v1.GraphKeys.REGULARIZATION_LOSSES) == losses
    weights = v1.global_variables()[0].shape.num_elements()
    assert values(session, v1.losses.get_regularization_losses()) == [0.25 * weights, 1.0]


def test_a_partitioned_layer_has_parts_in_its_collections(graph):
    with v1.variable_scope("net", partitioner=v1.fixed_size_partitioner(3)):
        layers.fully_connected(tensorflow.constant(ROWS), 4, scope="fc", variables_collections=["all"])
    assert names("all") == [f"net/fc/{name}/part_{part}" for name in ("weights", "biases") for part in range(3)]


def test_defaults_come_from_a_scope(graph):
    with arg_scope([layers.conv2d, layers.fully_connected], activation_fn=None, biases_initializer=None):
        y = layers.conv2d(tensorflow.constant(IMAGES), 4, 3)
        layers.fully_connected(layers.flatten(y), 2)
    assert y.op.name.startswith("Conv/Conv") and names() == ["Conv/weights", "fully_connected/weights"]


def test_a_scope_of_one_dimension_is_not_one_of_another(graph):
    with arg_scope([layers.convolution, layers.conv1d], biases_initializer=None):
        layers.conv2d(tensorflow.constant(IMAGES), 4, 3)
    assert names() == ["Conv/weights", "Conv/biases"]


def test_short_and_long_names_share_a_scope(graph):
    with arg_scope([layers.convolution2d], biases_initializer=None):
        layers.conv2d(tensorflow.constant(IMAGES), 4, 3)
    assert names() == ["Conv/weights"]


def test_normalizer_params_win_over_a_scope(graph):
    told = []

    def normalizer(x, first=1, second=2):
        told.append((first, second))
        return x

    with arg_scope([layers.fully_connected], normalizer_fn=normalizer, normalizer_params={"first": 10}):
        layers.fully_connected(tensorflow.constant(ROWS), 4, trainable=False)
    assert told == [(10, 2)]


def test_shortcuts_are_fully_connected_with_an_activation(graph):
    x = tensorflow.constant(ROWS)
    kinds = [f(x, 4).op.type for f in (layers.linear, layers.relu, layers.relu6, layers.elu)]
    assert kinds == ["BiasAdd", "Relu", "Relu6", "Elu"]


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda x: layers.fully_connected(x, 4.0), "num_outputs type"),
        (lambda x: layers.conv2d(x, 4, 3, data_format="NHCW"), "Invalid data_format: 'NHCW'"),
        (lambda x: layers.conv1d(x, 4, 3), "input with rank 3, got 4"),
        (lambda x: layers.convolution(x[0, 0], 4, 3), "rank 2"),
        (lambda x: layers.conv2d_transpose(x, 4, 3, data_format="NWC"), "NCHW or NHWC. Got 'NWC'"),
        (lambda x: layers.separable_conv2d(x, 4, 3, data_format=None), "NCHW or NHWC. Got None"),
        (lambda x: layers.max_pool2d(x, 2, data_format="nhwc"), "NCHW or NHWC. Got 'nhwc'"),
        (lambda x: layers.avg_pool3d(x, 2, data_format="NHWC"), "NCDHW or NDHWC"),
        (lambda x: layers.bias_add(x[0], data_format="NCHW"), "only supports 4D Tensor; got 3"),
        (lambda x: layers.pool(x[0, 0], 2, "MAX"), ">= 3; got 2"),
        (lambda x: layers.unit_norm(x, -1), "got -1 for rank 4"),
        (lambda x: layers.layer_norm(x, begin_norm_axis=4), r"begin_norm_axis \(4\)"),
        (lambda x: layers.instance_norm(x, data_format="NCDHW"), "NCHW or NHWC"),
        (lambda x: layers.group_norm(x, groups=2), "groups 2 for 3 channels"),
        (lambda x: layers.group_norm(x, groups=3, reduction_axes=[-1]), "must all differ"),
        (lambda x: layers.maxout(x, 2), r"features\(3\) is not a multiple of num_units\(2\)"),
        (lambda x: layers.stack(x, layers.conv2d, 3), "stack_args .* got 3"),
    ],
)
def test_what_cannot_be(graph, call, text):
    with pytest.raises(ValueError, match=text):
        call(v1.placeholder(tensorflow.float32, [None, 5, 6, 3]))


def test_an_unknown_argument_is_a_type_error(graph):
    with pytest.raises(TypeError, match="kernel"):
        layers.conv2d(tensorflow.constant(IMAGES), 4, 3, kernel=3)


# Numbers


def test_fully_connected_is_a_product(graph, session):
    y = layers.fully_connected(tensorflow.constant(STEPS), 4, weights_initializer=ONES, biases_initializer=ONES)
    expected = np.maximum(STEPS.sum(-1, keepdims=True) + 1, 0).repeat(4, -1)
    np.testing.assert_allclose(values(session, y), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"stride": 2}, {"rate": 2}, {"padding": "VALID"}], ids=str)
def test_conv2d_is_the_convolution(graph, session, options):
    kernel = np.random.default_rng(4).normal(size=(3, 2, 3, 4)).astype("float32")
    x = tensorflow.constant(IMAGES)
    y = layers.conv2d(x, 4, [3, 2], weights_initializer=v1.constant_initializer(kernel), activation_fn=None, **options)
    expected = tensorflow.nn.conv2d(
        x, kernel, options.get("stride", 1), options.get("padding", "SAME"), dilations=options.get("rate", 1)
    )
    np.testing.assert_allclose(*values(session, [y, expected]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "layer",
    [
        functools.partial(layers.conv2d, num_outputs=4, kernel_size=3),
        functools.partial(layers.conv2d_transpose, num_outputs=4, kernel_size=3, stride=2),
        functools.partial(layers.separable_conv2d, num_outputs=4, kernel_size=3),
        functools.partial(layers.max_pool2d, kernel_size=2),
        functools.partial(layers.avg_pool2d, kernel_size=2),
        functools.partial(layers.instance_norm),
        functools.partial(layers.bias_add, initializer=ONES),
    ],
    ids=lambda layer: layer.func.__name__,
)
def test_channels_first_is_a_transpose(graph, session, layer):
    if layer.func in (layers.conv2d, layers.conv2d_transpose, layers.separable_conv2d):
        layer = functools.partial(layer, weights_initializer=v1.constant_initializer(0.5))
    x = tensorflow.constant(IMAGES)
    last = layer(x)
    first = layer(tensorflow.transpose(x, [0, 3, 1, 2]), data_format="NCHW")
    last, first = values(session, [last, first])
    np.testing.assert_allclose(first.transpose(0, 2, 3, 1), last, rtol=1e-5, atol=1e-6)


def test_depthwise_alone_is_the_first_half_of_a_separable_convolution(graph, session):
    x = tensorflow.constant(IMAGES)
    options = {"weights_initializer": v1.constant_initializer(0.5), "activation_fn": None}
    both = layers.separable_conv2d(x, 1, 3, pointwise_initializer=ONES, **options)
    half = layers.separable_conv2d(x, None, 3, **options)
    both, half = values(session, [both, half])
    np.testing.assert_allclose(both[..., 0], half.sum(-1), rtol=1e-5, atol=1e-5)


def test_in_plane_is_one_kernel_for_all_channels(graph, session):
    y = layers.conv2d_in_plane(
        tensorflow.constant(IMAGES), [1, 2], padding="VALID", weights_initializer=ONES, activation_fn=None
    )
    np.testing.assert_allclose(values(session, y), IMAGES[:, :, 1:] + IMAGES[:, :, :-1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("layer", "x", "name", "shape"),
    [
        (layers.max_pool2d, IMAGES, "MaxPool2D/MaxPool", [2, 2, 3, 3]),
        (layers.avg_pool2d, IMAGES, "AvgPool2D/AvgPool", [2, 2, 3, 3]),
        (layers.max_pool3d, VOLUMES, "MaxPool3D/MaxPool3D", [2, 1, 2, 2, 2]),
        (layers.avg_pool3d, VOLUMES, "AvgPool3D/AvgPool3D", [2, 1, 2, 2, 2]),
    ],
)
def test_pooling_halves(graph, layer, x, name, shape):
    with v1.name_scope("net"):
        y = layer(tensorflow.constant(x), 2, outputs_collections=["ends"])
    assert (y.op.name, y.shape.as_list()) == (f"net/{name}", shape)
    assert list(layers.utils.convert_collection_to_dict("ends")) == [f"net/{name.split('/')[0]}"]


def test_pool_is_the_same(graph, session):
    x = tensorflow.constant(IMAGES)
    expected, y = layers.max_pool2d(x, 2), layers.pool(x, 2, "MAX", stride=2)
    np.testing.assert_array_equal(*session.run([expected, y]))
    assert y.op.name.startswith("max_pool")


def test_flatten_keeps_the_batch(graph):
    y = layers.flatten(v1.placeholder(tensorflow.float32, [None, 2, 3]), outputs_collections="ends", scope="flat")
    assert y.shape.as_list() == [None, 6] and y.op.name.startswith("flat/") and y.aliases == ["flat"]


def test_dropout_keeps_a_share_in_training_only(graph, session):
    training = v1.placeholder(tensorflow.bool, [])
    y = layers.dropout(tensorflow.ones([1000]), keep_prob=0.25, is_training=training, seed=1)
    assert session.run(y, {training: False}).tolist() == [1.0] * 1000
    dropped = session.run(y, {training: True})
    assert set(dropped.tolist()) == {0.0, 4.0} and 200 < (dropped > 0).sum() < 300


def test_bias_add(graph, session):
    y = layers.bias_add(tensorflow.constant(ROWS), activation_fn=tensorflow.nn.relu, initializer=ONES)
    np.testing.assert_allclose(values(session, y), np.maximum(ROWS + 1, 0), rtol=1e-6)
    assert names() == ["BiasAdd/biases"]


def test_one_hot_encoding(graph, session):
    y = layers.one_hot_encoding(tensorflow.constant([2, 0]), 3, on_value=2.0)
    assert session.run(y).tolist() == [[0, 0, 2], [2, 0, 0]] and y.op.name == "OneHotEncoding/one_hot"


def test_softmax_is_over_the_last_axis(graph, session):
    y = layers.softmax(tensorflow.constant(STEPS))
    assert y.op.name == "softmax/Reshape_1"
    np.testing.assert_allclose(*session.run([y, tensorflow.nn.softmax(STEPS)]), rtol=1e-6)


def test_unit_norm(graph, session):
    y = layers.unit_norm(tensorflow.constant(STEPS), 1, epsilon=0.0)
    np.testing.assert_allclose((session.run(y) ** 2).sum(1), np.ones((2, 3)), rtol=1e-5)


@pytest.mark.parametrize("size", [5, None])
def test_maxout_takes_the_largest_of_a_group(graph, session, size):
    x = v1.placeholder(tensorflow.float32, [None, size, 4])
    y = layers.maxout(x, 2)
    assert y.shape.as_list() == [None, size, 2]
    data = np.arange(40.0).reshape(2, 5, 4)
    assert session.run(y, {x: data})[0, 0].tolist() == [1, 3]


@pytest.mark.parametrize(
    ("layer", "axes", "epsilon", "shape"),
    [
        (layers.layer_norm, (1, 2, 3), 1e-12, [3]),
        (functools.partial(layers.layer_norm, begin_norm_axis=-1), (3,), 1e-12, [3]),
        (layers.instance_norm, (1, 2), 1e-6, [3]),
        (functools.partial(layers.group_norm, groups=3), (1, 2), 1e-6, [3]),
        (functools.partial(layers.group_norm, groups=1, mean_close_to_zero=True), (1, 2, 3), 1e-6, [3]),
    ],
)
def test_standardization(graph, session, layer, axes, epsilon, shape):
    y = layer(tensorflow.constant(IMAGES), scope="s")
    wide = IMAGES.astype("float64")
    expected = (wide - wide.mean(axes, keepdims=True)) / np.sqrt(wide.var(axes, keepdims=True) + epsilon)
    np.testing.assert_allclose(values(session, y), expected, rtol=1e-4, atol=1e-5)
    assert names("model_variables") == ["s/beta", "s/gamma"] and v1.global_variables()[0].shape.as_list() == shape


@pytest.mark.parametrize("groups", [2, 4])
def test_groups_of_channels_in_front(graph, session, groups):
    x = np.random.default_rng(5).normal(size=(2, 4, 5, 6)).astype("float32")
    first = layers.group_norm(
        tensorflow.constant(x),
        groups,
        channels_axis=1,
        reduction_axes=(2, 3),
        scope="s",
        param_initializers={"beta": ONES},
    )
    last = layers.group_norm(tensorflow.constant(x.transpose(0, 2, 3, 1)), groups, scope="s", reuse=True)
    first, last = values(session, [first, last])
    np.testing.assert_allclose(first.transpose(0, 2, 3, 1), last, rtol=1e-5, atol=1e-5)


# Several in a row


def test_repeat_numbers_its_scopes(graph):
    layers.repeat(tensorflow.constant(IMAGES), 2, layers.conv2d, 4, [3, 3], scope="conv1", biases_initializer=None)
    layers.repeat(tensorflow.constant(IMAGES), 2, layers.conv2d, 4, [3, 3], biases_initializer=None)
    assert names() == [
        "conv1/conv1_1/weights",
        "conv1/conv1_2/weights",
        "Repeat/convolution2d_1/weights",
        "Repeat/convolution2d_2/weights",
    ]


def test_stack_gives_each_its_arguments(graph):
    y = layers.stack(tensorflow.constant(IMAGES), layers.conv2d, [(4, 3), (5, [1, 1])], scope="s")
    assert y.shape.as_list()[-1] == 5
    assert names() == ["s/s_1/weights", "s/s_1/biases", "s/s_2/weights", "s/s_2/biases"]


def test_a_partial_function_is_called_by_its_own_name(graph):
    layers.stack(tensorflow.constant(ROWS), layers.linear, [4, 5])
    assert names()[0] == "Stack/fully_connected_1/weights"


# Initializers and regularizers


@pytest.mark.parametrize("shape", [[], [40], [40, 50], [3, 3, 40, 50]], ids=str)
@pytest.mark.parametrize("mode", ["FAN_IN", "FAN_OUT", "FAN_AVG"])
@pytest.mark.parametrize("uniform", [True, False])
def test_the_variance_is_scaled(graph, session, shape, mode, uniform):
    field = int(np.prod(shape[:-2]))
    fan_in, fan_out = (field * (shape[-2:] or [1])[0], field * (shape[-1:] or [1])[0])
    n = {"FAN_IN": fan_in, "FAN_OUT": fan_out, "FAN_AVG": (fan_in + fan_out) / 2}[mode]
    drawn = session.run(layers.variance_scaling_initializer(2.0, mode, uniform, seed=1)(shape))
    assert drawn.shape == tuple(shape) and drawn.dtype == "float32"
    assert np.abs(drawn).max() <= (np.sqrt(6.0 / n) if uniform else 2 * np.sqrt(2.6 / n)) * (1 + 1e-6)
    assert drawn.size < 1000 or 0.85 < drawn.var() * n / 2 < 1.15


def test_xavier_is_uniform_with_the_mean_of_both_fans(graph, session):
    drawn = session.run(layers.xavier_initializer(seed=1)([300, 500]))
    assert np.abs(drawn).max() <= np.sqrt(3 / 400) and 0.95 < drawn.var() * 400 < 1.05


def test_the_default_weights_are_xaviers(graph, session):
    v1.set_random_seed(1)
    layers.fully_connected(tensorflow.ones([1, 300]), 500)
    drawn = values(session, v1.global_variables()[0])
    assert np.abs(drawn).max() <= np.sqrt(3 / 400) and 0.95 < drawn.var() * 400 < 1.05


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: layers.variance_scaling_initializer(mode="FAN"), "Unknown mode FAN"),
        (lambda: layers.xavier_initializer(dtype=tensorflow.int32), "int32"),
        (lambda: layers.xavier_initializer()([2], dtype=tensorflow.int32), "int32"),
    ],
)
def test_initializers_that_cannot_be(graph, make, text):
    with pytest.raises(TypeError, match=text):
        make()


@pytest.mark.parametrize(
    ("regularizer", "name", "penalty"),
    [
        (layers.l1_regularizer(0.5), "l1_regularizer", 3.5),
        (layers.l2_regularizer(0.5), "l2_regularizer", 6.25),
        (layers.l1_l2_regularizer(0.5, 0.5), "l1_l2_regularizer", 9.75),
        (layers.l1_l2_regularizer(0.0, 0.5), "l1_l2_regularizer", 6.25),
        (layers.l1_l2_regularizer(0.5, 0.0, "mine"), "mine", 3.5),
        (layers.sum_regularizer([layers.l1_regularizer(1.0), None]), "sum_regularizer", 7.0),
    ],
)
def test_what_weights_cost(graph, session, regularizer, name, penalty):
    cost = regularizer(tensorflow.constant([-3.0, 4.0]))
    assert (cost.op.name, session.run(cost)) == (name, penalty)


def test_a_regularizer_may_cost_nothing(graph):
    assert layers.l1_regularizer(0.0)(tensorflow.ones([2])) is None
    assert layers.l2_regularizer(0.0)(tensorflow.ones([2])) is None
    assert layers.sum_regularizer([None]) is None
    assert layers.sum_regularizer([layers.l1_regularizer(0.0)])(tensorflow.ones([2])) is None


@pytest.mark.parametrize("make", [layers.l1_regularizer, layers.l2_regularizer, layers.l1_l2_regularizer])
@pytest.mark.parametrize(("scale", "text"), [(1, "cannot be an integer: 1"), (-0.5, "less than 0 .*-0.5")])
def test_scales_that_cannot_be(make, scale, text):
    with pytest.raises(ValueError, match=text):
        make(scale)


def test_regularization_of_collected_weights(graph, session):
    layers.fully_connected(
        tensorflow.constant(ROWS), 2, weights_initializer=ONES, variables_collections={"weights": ["weights"]}
    )
    penalty = layers.apply_regularization(layers.l1_regularizer(0.5))
    assert values(session, penalty) == 3.0 and v1.losses.get_regularization_losses() == [penalty]


def test_regularization_of_nothing(graph):
    with pytest.raises(ValueError, match="No weights to regularize"):
        layers.apply_regularization(layers.l1_regularizer(0.5))


def test_a_penalty_is_a_scalar(graph):
    with pytest.raises(ValueError, match="rank 1"):
        layers.apply_regularization(lambda weights: weights, [tensorflow.ones([2])])


# Utilities


@pytest.mark.parametrize(
    ("call", "result"),
    [
        (lambda u: u.n_positive_integers(3, 2), (2, 2, 2)),
        (lambda u: u.two_element_tuple([1, 2]), (1, 2)),
        (lambda u: u.two_element_tuple(tensorflow.TensorShape([1, 2])), (1, 2)),
        (lambda u: u.first_dimension(tensorflow.TensorShape([4, None])), 4),
        (lambda u: u.channel_dimension(tensorflow.TensorShape([4, 3, 2]), "channels_first"), 3),
        (lambda u: u.channel_dimension(tensorflow.TensorShape([4, 3, 2]), "channels_last"), 2),
        (lambda u: u.smart_cond(False, lambda: 1, lambda: 2), 2),
        (lambda u: u.smart_cond(1, lambda: 1, lambda: 2), 1),
        (lambda u: u.static_cond(True, lambda: 1, lambda: 2), 1),
        (lambda u: u.get_variable_collections({"weights": ["w"]}, "biases"), None),
    ],
)
def test_utilities(call, result):
    assert call(layers.utils) == result


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda u: u.two_element_tuple([1, 2, 3]), ValueError, r"\[1, 2, 3\] was given where 2"),
        (lambda u: u.two_element_tuple(0), ValueError, "0 was given"),
        (lambda u: u.two_element_tuple("ab"), ValueError, "'ab' was given"),
        (lambda u: u.last_dimension(tensorflow.TensorShape([None])), ValueError, "last dimension .* is None"),
        (lambda u: u.last_dimension(tensorflow.TensorShape([3]), min_rank=2), ValueError, "at least 2 not: 1"),
        (lambda u: u.last_dimension(tensorflow.TensorShape(None)), ValueError, "rank is unknown"),
        (lambda u: u.smart_cond(True, 1, lambda: 2), TypeError, "1 must be callable"),
    ],
)
def test_utilities_refuse(call, error, text):
    with pytest.raises(error, match=text):
        call(layers.utils)


def test_a_condition_that_is_known_leaves_no_cond(graph, session):
    layers.utils.smart_cond(tensorflow.constant(True), lambda: tensorflow.constant(1), lambda: tensorflow.constant(2))
    assert not [op for op in graph.get_operations() if "cond" in op.name.lower()]


def test_a_condition_that_is_fed(graph, session):
    flag = v1.placeholder(tensorflow.bool, [])
    y = layers.utils.smart_cond(flag, lambda: tensorflow.constant(1), lambda: tensorflow.constant(2))
    assert (session.run(y, {flag: True}), session.run(y, {flag: False})) == (1, 2)


def test_aliases_of_a_tensor(graph):
    x = layers.utils.append_tensor_alias(layers.utils.append_tensor_alias(tensorflow.ones([1]), "a/"), "b")
    assert layers.utils.gather_tensors_aliases([x, tensorflow.ones([1], name="c")]) == ["a", "b", "c"]


def test_a_collection_can_be_cleared(graph):
    layers.utils.collect_named_outputs(["ends", "more"], "a", tensorflow.ones([1]))
    assert list(layers.utils.convert_collection_to_dict("ends", clear_collection=True)) == ["a"]
    assert v1.get_collection("ends") == [] and len(v1.get_collection("more")) == 1


# Summaries and optimize_loss


def tags(session, summaries):
    found = v1.summary.Summary.FromString(values(session, v1.summary.merge(summaries)))
    return [value.tag for value in found.value]


def test_summaries_of_variables_and_activations(graph, session):
    y = layers.fully_connected(tensorflow.constant(ROWS), 2, scope="fc", outputs_collections="activations")
    layers.summarize_variables("fc/w")
    layers.summarize_activations()
    layers.summarize_tensor(tensorflow.reduce_sum(y, name="total"))
    assert layers.summarize_tensor(tensorflow.constant("text")) is None
    expected = ["fc/weights_summary", "fc/Relu/zeros", "fc/Relu/activation", "total_summary"]
    assert tags(session, v1.get_collection("summaries")) == expected


def loss_of(optimizer="SGD", rate=0.25, **options):
    variable = v1.get_variable("w", initializer=4.0)
    return variable, layers.optimize_loss(
        variable * variable, v1.train.create_global_step(), rate, optimizer, **options
    )


@pytest.mark.parametrize(
    ("options", "after"),
    [
        ({}, 2.0),
        ({"clip_gradients": 4.0}, 3.0),
        ({"clip_gradients": lambda pairs: [(2 * gradient, variable) for gradient, variable in pairs]}, 0.0),
        ({"gradient_multipliers": {"w": 0.5}}, 3.0),
        ({"learning_rate_decay_fn": lambda rate, step: rate / 2}, 3.0),
        ({"optimizer": v1.train.GradientDescentOptimizer}, 2.0),
        ({"optimizer": v1.train.GradientDescentOptimizer(0.125), "rate": None}, 3.0),
        ({"optimizer": lambda: v1.train.GradientDescentOptimizer(0.125), "rate": None}, 3.0),
        ({"summaries": layers.OPTIMIZER_SUMMARIES}, 2.0),
    ],
)
def test_optimize_loss_takes_a_step(graph, session, options, after):
    variable, train = loss_of(**options)
    values(session, train)
    assert session.run([variable, v1.train.get_global_step()]) == [after, 1]


def test_optimize_loss_runs_updates_first(graph, session):
    counter = v1.get_variable("counter", initializer=0.0, trainable=False)
    v1.add_to_collection("update_ops", counter.assign_add(1.0))
    values(session, loss_of()[1])
    assert session.run(counter) == 1.0


def test_what_optimize_loss_writes_down(graph, session):
    loss_of()
    expected = ["learning_rate_1", "global_norm/gradient_norm", "loss", "global_norm/clipped_gradient_norm"]
    assert tags(session, v1.get_collection("summaries")) == [f"OptimizeLoss/{tag}" for tag in expected]
    assert "OptimizeLoss/learning_rate" in names()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"optimizer": "sgd"}, "one of .*SGD.* you provided sgd"),
        ({"optimizer": 3}, "Unrecognized optimizer.* Got 3"),
        ({"rate": 1}, "Got 1 of type"),
        ({"rate": -0.5}, "Invalid learning_rate -0.5"),
        ({"rate": None}, "Learning rate must not be None"),
        ({"summaries": ["all"]}, "you provided all"),
    ],
)
def test_what_optimize_loss_refuses(graph, options, text):
    with pytest.raises(ValueError, match=text):
        loss_of(**options)
