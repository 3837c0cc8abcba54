# SPDX-License-Identifier: Apache-2.0
"""Batch normalization of the old API in the graphs people build: branches, loops, devices, getters, phases, errors."""

import numpy as np
import pytest
import tensorflow as tf

import evenkeel.tf1 as tf1
from evenkeel.errors import ArgumentError

v1 = tf.compat.v1
X = np.random.default_rng(0).normal(3, 2, (8, 3)).astype("float32")

FUNCTIONS = {
    "layers": lambda x, training=True, **options: tf1.layers.batch_normalization(x, training=training, **options),
    "contrib": lambda x, training=True, **options: tf1.contrib.layers.batch_norm(x, is_training=training, **options),
    "none": lambda x, training=True, **options: tf1.contrib.layers.batch_norm(
        x, is_training=training, updates_collections=None, **options
    ),
}


@pytest.fixture(params=FUNCTIONS)
def normalize(request):
    return FUNCTIONS[request.param]


@pytest.fixture(params=["old", "new"])
def control_flow(request, graph):
    """Both kinds of control flow that TensorFlow has had."""
    if request.param == "new":
        v1.enable_control_flow_v2()
    return request.param


def moving_mean():
    (variable,) = (variable for variable in v1.global_variables() if variable.op.name.endswith("moving_mean"))
    return variable


def test_a_tower_in_a_branch_is_updated_when_the_branch_runs(normalize, control_flow, session):
    branch = v1.placeholder(tf.bool, [])
    with v1.variable_scope("", reuse=v1.AUTO_REUSE, use_resource=control_flow == "new"):
        y = v1.cond(branch, lambda: normalize(tf.constant(X)), lambda: tf.constant(X))
    session.run(v1.global_variables_initializer())
    before = session.run(moving_mean())
    session.run(y, {branch: False})
    np.testing.assert_array_equal(session.run(moving_mean()), before)
    np.testing.assert_allclose(session.run(y, {branch: True}).mean(0), 0, atol=1e-5)
    assert (session.run(moving_mean()) != before).all()
    assert not v1.get_collection(v1.GraphKeys.UPDATE_OPS)


def test_a_layer_in_a_branch_that_is_not_trained_keeps_its_statistics(control_flow, session):
    with v1.variable_scope("", use_resource=control_flow == "new"):
        y = v1.cond(
            v1.placeholder_with_default(True, []),
            lambda: tf1.layers.batch_normalization(tf.constant(X), training=True, trainable=False),
            lambda: tf.constant(X),
        )
    session.run(v1.global_variables_initializer())
    np.testing.assert_allclose(session.run(y).mean(0), 0, atol=1e-5)
    np.testing.assert_array_equal(session.run(moving_mean()), 0)


@pytest.mark.parametrize("loop", ["while_loop", "map_fn", "scan"])
def test_a_layer_in_a_loop_is_updated_every_time_round(normalize, control_flow, loop, session):
    def body(_, x):
        return normalize(x)

    with v1.variable_scope("net", reuse=v1.AUTO_REUSE, use_resource=control_flow == "new"):
        normalize(tf.constant(X), training=False)  # makes the variables outside of the loop
        v1.get_collection_ref(v1.GraphKeys.UPDATE_OPS).clear()
    with v1.variable_scope("net", reuse=True, use_resource=control_flow == "new"):
        data = tf.constant(np.stack([X, X + 1, X + 2]))
        y = {
            "while_loop": lambda: v1.while_loop(
                lambda i, x: i < 3,
                lambda i, x: (i + 1, tf.ensure_shape(body(x, data[i]), X.shape)),
                [0, tf.constant(X)],
            )[1],
            "map_fn": lambda: v1.map_fn(lambda x: normalize(x), data),
            "scan": lambda: v1.scan(body, data),
        }[loop]()
    assert not v1.get_collection(v1.GraphKeys.UPDATE_OPS)
    session.run(v1.global_variables_initializer())
    session.run(y)
    decay = 0.99 if moving_mean().op.name.startswith("net/batch_normalization") else 0.999
    steps = (1, 2) if loop == "scan" else (0, 1, 2)  # scan begins with the first
    # Rounds may overlap, so which of them sees the average before another moved it is open.
    expected = (1 - decay) * sum((X + step).mean(0) for step in steps)
    np.testing.assert_allclose(session.run(moving_mean()), expected, rtol=0.02)


def test_towers_on_several_devices_share_variables(session):
    losses = []
    for number in range(2):
        with v1.device(f"/cpu:{number}"), v1.name_scope(f"tower_{number}"):
            with v1.variable_scope("net", reuse=number > 0):
                y = tf1.layers.batch_normalization(tf.constant(X + number), training=True, momentum=0.5, name="bn")
            losses.append(tf.reduce_sum(y * y))
    assert [variable.op.name for variable in v1.global_variables()] == [
        f"net/bn/{name}" for name in ("gamma", "beta", "moving_mean", "moving_variance")
    ]
    first = v1.get_collection(v1.GraphKeys.UPDATE_OPS, "tower_0")
    assert len(first) == 2 and len(v1.get_collection(v1.GraphKeys.UPDATE_OPS)) == 4
    gradients = tf.gradients(losses, v1.trainable_variables())
    with v1.Session(config=v1.ConfigProto(device_count={"CPU": 2})) as devices:
        devices.run(v1.global_variables_initializer())
        devices.run([*losses, *gradients, *first])
        np.testing.assert_allclose(devices.run(moving_mean()), 0.5 * X.mean(0), rtol=1e-5)


def test_a_template_shares_its_variables(graph):
    net = v1.make_template("net", lambda x: tf1.layers.batch_normalization(x, training=True))
    net(tf.constant(X)), net(tf.constant(X))
    assert len(v1.global_variables()) == 4


def test_a_partitioner_splits_gamma_and_beta_only(graph):
    with v1.variable_scope("net", partitioner=v1.fixed_size_partitioner(2)):
        tf1.layers.batch_normalization(tf.constant(np.tile(X, 2)), training=True)
    assert [variable.op.name.removeprefix("net/batch_normalization/") for variable in v1.global_variables()] == [
        "gamma/part_0",
        "gamma/part_1",
        "beta/part_0",
        "beta/part_1",
        "moving_mean",
        "moving_variance",
    ]


def test_a_custom_getter_sees_every_variable(normalize, graph):
    seen = []

    def getter(getter, name, *args, **kwargs):
        seen.append(name.rsplit("/", 1)[-1])
        return getter(name, *args, **kwargs)

    with v1.variable_scope("net", custom_getter=getter):
        normalize(tf.constant(X))
    assert {"beta", "moving_mean", "moving_variance"} <= set(seen)


def test_a_getter_that_takes_gamma_away_from_training(graph):
    def frozen(getter, *args, **kwargs):
        return getter(*args, **{**kwargs, "trainable": False})

    with v1.variable_scope("net", custom_getter=frozen):
        layer = tf1.layers.BatchNormalization()
        layer(tf.constant(X), training=True)
    assert not layer.trainable_variables and len(layer.non_trainable_variables) == 4


def test_a_regularizer_of_the_scope_reaches_the_moving_statistics(graph):
    with v1.variable_scope("net", regularizer=lambda weights: tf.reduce_sum(weights**2)):
        tf1.layers.batch_normalization(tf.constant(X))
    assert len(v1.get_collection(v1.GraphKeys.REGULARIZATION_LOSSES)) == 4


@pytest.mark.parametrize("training", [0, 1, 1.0, np.True_, True])
def test_a_phase_that_is_known(training, graph):
    tf1.layers.batch_normalization(tf.constant(X), training=training)
    assert len(v1.get_collection(v1.GraphKeys.UPDATE_OPS)) == 2 * bool(training)


@pytest.mark.parametrize("training", ["yes", b"yes"])
def test_a_phase_that_is_a_string(training, graph):
    with pytest.raises(TypeError, match="yes"):
        tf1.layers.batch_normalization(tf.constant(X), training=training)


def test_a_phase_of_integers(normalize, graph):
    with pytest.raises(TypeError, match="int32"):
        normalize(tf.constant(X), training=v1.placeholder(tf.int32, []))


def test_no_phase_at_all_is_a_placeholder(session):
    y = tf1.layers.batch_normalization(tf.constant(X), training=None)
    session.run(v1.global_variables_initializer())
    np.testing.assert_allclose(session.run(y), X / np.sqrt(1.001), rtol=1e-5)
    np.testing.assert_allclose(session.run(y, {"keras_learning_phase:0": True}).mean(0), 0, atol=1e-5)


# From runs of tf_slim 1.1.0 and of tf_keras 2.21's tf.layers, which name their conds as 1.15 did.
@pytest.mark.parametrize(
    ("function", "options", "names"),
    [
        ("contrib", {"fused": False, "zero_debias_moving_mean": True, "scope": "bn"}, ["cond/Merge", "cond/Merge_1"]),
        ("contrib", {"batch_weights": np.ones(8, "f4"), "scope": "bn"}, ["cond/Merge", "cond/Merge_1"]),
        ("contrib", {"scope": "bn"}, ["cond_1/Merge", "cond_1/Merge_1"]),
        ("layers", {"name": "bn"}, ["cond_2/Merge", "cond_3/Merge"]),
        ("layers", {"name": "bn", "renorm": True}, ["cond_6/Merge", "cond_7/Merge"]),
        ("layers", {"name": "bn", "adjustment": lambda _: (1.0, 0.0)}, ["cond_4/Merge", "cond_5/Merge"]),
        (
            "layers",
            {"name": "bn", "adjustment": lambda _: (1.0, 0.0), "renorm": True},
            ["cond_8/Merge", "cond_9/Merge"],
        ),
    ],
)
def test_names_of_updates_where_the_phase_is_a_tensor(function, options, names, graph):
    FUNCTIONS[function](tf.constant(X), training=v1.placeholder(tf.bool, []), **options)
    updates = v1.get_collection(v1.GraphKeys.UPDATE_OPS)
    assert [update.name.removesuffix(":0").removesuffix(":1") for update in updates] == [f"bn/{name}" for name in names]


def test_updates_for_one_of_two_inputs(graph):
    layer = tf1.layers.BatchNormalization()
    first, second = v1.placeholder(tf.float32, [None, 3]), v1.placeholder(tf.float32, [None, 3])
    layer(first, training=True), layer(second, training=True)
    assert layer.get_updates_for(first) == layer.updates[:2]
    assert layer.get_updates_for(None) == []


def test_a_state_that_is_infinite_already_takes_a_new_value(session):
    y = tf1.contrib.layers.batch_norm(tf.constant(X), decay=1.0, zero_debias_moving_mean=True, updates_collections=None)
    session.run(v1.global_variables_initializer())
    session.run(y), session.run(y)
    (biased,) = (variable for variable in v1.global_variables() if variable.op.name.endswith("biased"))
    np.testing.assert_array_equal(session.run(biased), 0)


def test_names_count_as_in_1_15(graph):
    first, second = tf1.layers.BatchNormalization(), tf1.layers.BatchNormalization(name="x")
    third = tf1.layers.BatchNormalization(name="x")
    for layer in (first, second, third):
        layer(tf.constant(X))
    assert [first.name, second.name, third.name] == ["batch_normalization_1", "x", "x"]
    assert [first.scope_name, second.scope_name, third.scope_name] == ["batch_normalization", "x", "x_1"]


def test_a_scope_name_before_the_first_call(graph):
    with pytest.raises(ValueError, match="has not been used yet"):
        tf1.layers.BatchNormalization().scope_name  # noqa: B018


def test_another_rank_or_size_in_a_later_call(graph):
    layer = tf1.layers.BatchNormalization()
    layer(tf.constant(X))
    with pytest.raises(ValueError, match="ndim=2, found ndim=3"):
        layer(tf.zeros([2, 2, 3]))
    with pytest.raises(ValueError, match="value 3 but received input with shape"):
        layer(tf.zeros([2, 4]))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"axis": "1"}, TypeError, "str"),
        ({"axis": (0, 1)}, TypeError, "tuple"),
        ({"virtual_batch_size": 0}, ValueError, "not 0"),
        ({"virtual_batch_size": 2, "axis": [0]}, ValueError, "include 0"),
        ({"virtual_batch_size": 2, "adjustment": len}, ValueError, "adjustment"),
        ({"momentumm": 1}, TypeError, "momentumm"),
    ],
)
def test_arguments_that_cannot_be(options, error, message, graph):
    with pytest.raises(error, match=message):
        tf1.layers.BatchNormalization(**options)(tf.constant(X))


def test_integers_cannot_be_normalized(normalize, graph):
    with pytest.raises(TypeError):
        normalize(tf.constant([[1, 2], [3, 4]]))


def test_renorm_in_float64(graph):
    with pytest.raises(TypeError, match="float64"):
        tf1.layers.batch_normalization(tf.constant(X.astype("float64")), renorm=True, training=True)


def test_eagerly_the_error_names_what_to_use():
    with pytest.raises(ArgumentError, match=r"evenkeel\.BatchNormalization"):
        tf1.layers.batch_normalization(X)


def test_inside_a_tf_function_too():
    with pytest.raises(ArgumentError, match=r"evenkeel\.BatchNormalization"):
        tf.function(lambda x: tf1.layers.batch_normalization(x), autograph=False)(X)


@pytest.mark.parametrize("training", [True, False])
def test_channels_first_on_the_cpu(training, session):
    images = np.random.default_rng(1).normal(size=(2, 3, 4, 5)).astype("float32")
    first = tf1.layers.batch_normalization(tf.constant(images), axis=1, training=training)
    last = tf1.layers.batch_normalization(tf.constant(images.transpose(0, 2, 3, 1)), training=training)
    session.run(v1.global_variables_initializer())
    first, last = session.run([first, last])
    np.testing.assert_allclose(first.transpose(0, 2, 3, 1), last, atol=1e-6)


def test_a_batch_that_is_not_finite_leaves_the_state(normalize, session):
    x = v1.placeholder(tf.float32, [None, 3])
    y = normalize(x)
    session.run(v1.global_variables_initializer())
    before = session.run(v1.global_variables())
    session.run([y, *v1.get_collection(v1.GraphKeys.UPDATE_OPS)], {x: np.full((4, 3), np.nan)})
    for old, new in zip(before, session.run(v1.global_variables()), strict=True):
        np.testing.assert_array_equal(new, old)


def test_statistics_far_from_zero(normalize, session):
    data = (np.random.default_rng(2).normal(size=(100_000, 2)) + 1e4).astype("float32")
    y = normalize(tf.constant(data), **({"epsilon": 0.0}))
    session.run(v1.global_variables_initializer())
    result = session.run(y)
    assert abs(result.mean()) < 0.02 and abs(result.std() - 1) < 0.02


def test_a_variance_that_float16_cannot_hold_is_not_kept(session):
    data = np.random.default_rng(0).normal(0, 400, (64, 3)).astype("float16")
    y = tf1.contrib.layers.batch_norm(tf.constant(data), updates_collections=None, fused=False)
    session.run(v1.global_variables_initializer())
    assert abs(session.run(y).std() - 1) < 0.01
    for name in ("moving_mean", "moving_variance"):
        assert np.isfinite(session.run(f"BatchNorm/{name}:0")).all()


@pytest.mark.parametrize(
    ("shape", "options", "name"),
    [
        ((2, 4, 4, 3), {"training": True}, "bn/FusedBatchNormV3"),
        ((None, 4, 4, 3), {"training": True}, "bn/FusedBatchNormV3"),
        ((None, 4, 4, 3), {"training": False}, "bn/FusedBatchNormV3"),
        ((None, 4, 4, 3), {"training": True, "fused": False}, "bn/batchnorm/add_1"),
        ((None, 3), {"training": False}, "bn/batchnorm/add_1"),
    ],
)
def test_the_output_has_the_name_it_had(shape, options, name, graph):
    y = tf1.layers.batch_normalization(v1.placeholder(tf.float32, shape), name="bn", **options)
    assert (y.name, y.shape.as_list()) == (f"{name}:0", list(shape))


def test_a_keras_regularizer(session):
    tf1.layers.dense(tf.constant(X), 2, kernel_regularizer=tf.keras.regularizers.l2(0.5), name="fc")
    session.run(v1.global_variables_initializer())
    (loss,), kernel = session.run([v1.get_collection(v1.GraphKeys.REGULARIZATION_LOSSES), "fc/kernel:0"])
    np.testing.assert_allclose(loss, 0.5 * np.square(kernel).sum(), rtol=1e-5)


@pytest.mark.parametrize(
    "made",
    [lambda: tf1.layers.Dense(3), lambda: tf1.layers.BatchNormalization(), lambda: tf1.layers.Conv1D(2, 1)],
    ids=["dense", "batch_normalization", "conv1d"],
)
def test_build_and_then_call(made, graph):
    layer = made()
    shape = [None, 4, 3] if isinstance(layer, tf1.layers.Conv1D) else [None, 3]
    layer.build(shape)
    before = len(v1.global_variables())
    layer(v1.placeholder(tf.float32, shape))
    assert len(v1.global_variables()) == before == len(layer.variables)


def test_a_layer_of_layers_has_all_of_theirs(graph):
    class Block(tf1.layers.Layer):
        def __init__(self):
            super().__init__(name="block")
            self.dense = tf1.layers.Dense(3, kernel_regularizer=tf.nn.l2_loss)
            self.norms = [tf1.layers.BatchNormalization()]
            self.input_spec = [tf1.layers.InputSpec(ndim=2)]

        def build(self, input_shape):
            self.shift = self.add_weight("shift", [3], initializer="zeros")
            self.factor = v1.get_variable("factor", [], trainable=False)
            super().build(input_shape)

        def call(self, inputs):
            return self.norms[0](self.dense(inputs), training=True) * self.factor + self.shift

    block = Block()
    block(tf.constant(X))
    assert len(block.trainable_variables) == 5 and len(block.non_trainable_variables) == 3
    assert len(block.updates) == 2 and len(block.losses) == 1
    assert len(v1.get_collection(v1.GraphKeys.UPDATE_OPS)) == 2


def test_the_version_is_that_of_tensorflow():
    assert tf1.__version__ == tf.__version__
