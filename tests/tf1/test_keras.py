# SPDX-License-Identifier: Apache-2.0
"""`tf.keras` of TensorFlow 1: the layer step by step against 1.15, models, sessions, files."""

import json
import sys

import numpy as np
import pytest
import tensorflow as tf

import evenkeel.tf1 as tf1
from evenkeel.tf1 import steps
from tf1 import goldens

from conftest import GOLDENS

v1 = tf.compat.v1

pytestmark = [
    pytest.mark.filterwarnings("ignore:`Model.state_updates` will be removed:UserWarning"),  # tf_keras, of its own call
    pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file:UserWarning"),
]

APIS = {
    "tf.keras.layers.BatchNormalization": lambda: tf1.keras,
    "tf.compat.v2.keras.layers.BatchNormalization": lambda: tf1.compat.v2.keras,
}
CASES = [case for api in APIS for case in goldens.cases("layer_steps", api)]
EAGER = [case for case in CASES if case.get("mode") == "eager_v2"]
GRAPH = [case for case in CASES if case not in EAGER]
ONE_VALUE = ("keras_batch1_r2", "kerasv2eager_batch1_r4")  # the moving statistics normalize one value a channel


def make(case, arrays):
    """The layer of a case; what it is fed goes to nobody, for Keras was fed nothing."""
    kwargs = goldens.decoded(case["kwargs"], arrays, {})
    name = None if case.get("naming") == "unnamed" else "bn"
    return APIS[case["api"]]().layers.BatchNormalization(name=name, **kwargs)


def names(variables):
    return [variable.op.name for variable in variables]


class Program:
    """The graph of a case: the layer called for training, and for inference where the phase is not fed."""

    def __init__(self, case):
        self.case, self.arrays = case, goldens.arrays(case)
        dtype = tf.as_dtype(case["dtype"])
        self.x = v1.placeholder(dtype, [None, *self.arrays["x_0"].shape[1:]], "x")
        self.dy = v1.placeholder(dtype, None, "dy")
        self.layer = make(case, self.arrays)
        self.fed = case["training"] == "learning_phase"
        self.y = self.layer(self.x) if self.fed else self.layer(self.x, training=case["training"])
        if case.get("set_trainable") == "false_after_call":
            self.layer.trainable = False
        self.updates = self.layer.updates
        parameters = {"dgamma": self.layer.gamma, "dbeta": self.layer.beta}
        sources = {"dx": self.x, **{name: value for name, value in parameters.items() if value is not None}}
        gradients = tf.gradients(self.y, list(sources.values()), grad_ys=self.dy)
        self.gradients = {name: value for name, value in zip(sources, gradients, strict=True) if value is not None}
        self.y_infer = self.y if self.fed else self.layer(self.x, training=False)
        self.variables = {variable.op.name: variable for variable in v1.global_variables()}

    def feed(self, name, training):
        phase = {tf1.keras.backend.learning_phase(): training} if self.fed else {}
        return {self.x: self.arrays[name], **phase}


@pytest.mark.parametrize("case", GRAPH, ids=goldens.name)
def test_graph(case, graph):
    program, meta = Program(case), case["meta"]
    layer = program.layer
    assert len(program.updates) == meta["layer_updates_count"]
    assert len(layer.get_updates_for(program.x)) == meta["layer_updates_for_inputs_count"]
    assert len(layer.get_updates_for(None)) == meta["layer_updates_unconditional_count"]
    assert names(layer.weights) == meta["layer_weights"]
    assert names(layer.trainable_weights) == meta["layer_trainable_weights"]
    assert names(layer.non_trainable_weights) == meta["layer_non_trainable_weights"]
    described = goldens.described(graph)
    described["collections"] = {
        name: [key for key in keys if not key.startswith("_")] for name, keys in described["collections"].items()
    }
    assert described == goldens.recorded(case)
    assert goldens.update_ops(graph) == []


def plain(config):
    """What JSON makes of a configuration, but for what is a function here, and the clipping that was not recorded."""
    kept = {key: value for key, value in config.items() if not key.endswith(("izer", "constraint", "clipping"))}
    return json.loads(json.dumps(kept, default=dict))


@pytest.mark.parametrize("case", [case for case in GRAPH if "layer_config" in case["meta"]], ids=goldens.name)
@pytest.mark.filterwarnings("ignore:.*:UserWarning")  # an adjustment, or a function of the test, is not written down
def test_configuration(case, graph):
    assert plain(Program(case).layer.get_config()) == plain(case["meta"]["layer_config"])


@pytest.mark.parametrize("case", [case for case in GRAPH if case["id"] not in ONE_VALUE], ids=goldens.name)
def test_numbers(case, session):
    program = Program(case)
    session.run(v1.global_variables_initializer())
    for name in goldens.starting_with("initial/", program.arrays):
        goldens.check(case, session.run(program.variables[name]), f"initial/{name}")
    for name, value in goldens.starting_with("state_init/", program.arrays).items():
        program.variables[name].load(value, session)
    np.testing.assert_allclose(session.run(program.layer.losses), case["meta"]["regularization_losses"], rtol=1e-6)
    for number in range(case["n_steps"]):
        feed = program.feed(f"x_{number}", program.fed and case["training_seq"][number])
        y, gradients, _ = session.run(
            [program.y, program.gradients, program.updates], {**feed, program.dy: program.arrays["dy"]}
        )
        goldens.check(case, y, f"y_train_{number}")
        for name, value in gradients.items():
            goldens.check(case, value, f"{name}_{number}")
        for name, value in session.run(program.variables).items():
            goldens.check(case, value, f"state_{number}/{name}")
    goldens.check(case, session.run(program.y_infer, program.feed("x_test", False)), "y_infer")


@pytest.mark.parametrize("case", [case for case in EAGER if case["id"] not in ONE_VALUE], ids=goldens.name)
def test_eager_numbers(case):
    arrays = goldens.arrays(case)
    layer = make(case, arrays)
    layer.build(arrays["x_0"].shape)
    variables = {f"bn/{variable.name.split('/')[-1].removesuffix(':0')}": variable for variable in layer.weights}
    assert list(variables) == case["meta"]["layer_weights"]
    assert bool(layer.fused) == case["meta"]["layer_fused_attribute"]
    for name, value in goldens.starting_with("state_init/", arrays).items():
        variables[name].assign(value)
    kwargs = {} if case["training"] is None else {"training": case["training"]}
    for number in range(case["n_steps"]):
        x = tf.constant(arrays[f"x_{number}"])
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, **kwargs)
            total = tf.reduce_sum(y * arrays["dy"])
        parameters = {"dgamma": layer.gamma, "dbeta": layer.beta}
        sources = {"dx": x, **{name: value for name, value in parameters.items() if value is not None}}
        goldens.check(case, y, f"y_train_{number}")
        for name, value in tape.gradient(total, sources).items():
            goldens.check(case, value, f"{name}_{number}")
        for name, variable in variables.items():
            goldens.check(case, variable, f"state_{number}/{name}")
    goldens.check(case, layer(tf.constant(arrays["x_test"]), training=False), "y_infer")


def test_one_value_a_channel_leaves_the_statistics_alone(session):
    layer = tf1.keras.layers.BatchNormalization(momentum=0.5)
    layer(tf.constant([[5.0]]), training=True)
    session.run(v1.global_variables_initializer())
    session.run(layer.updates)
    assert session.run([layer.moving_mean, layer.moving_variance]) == [[0.0], [1.0]]


def test_there_are_cases():
    assert len(GRAPH) > 30 and len(EAGER) > 10


# What 1.15 saved

D1 = GOLDENS / "checkpoints" / "d1_keras_mlp"
META = json.loads((D1 / "meta.json").read_text())


def built():
    """The network of 1.15, from its source."""
    world = {"tf": tf1}
    exec(META["source"], world)
    return world["keras_dense"](META["params"], (64,))


def with_weights(model, name):
    model.load_weights(str(D1 / name))
    return model


LOADINGS = {
    "model.h5": lambda: tf1.keras.models.load_model(str(D1 / "model.h5")),
    "weights.h5": lambda: with_weights(built(), "weights.h5"),
    "tf_weights": lambda: with_weights(built(), "tf_weights"),
    "model.json": lambda: with_weights(tf1.keras.models.model_from_json((D1 / "model.json").read_text()), "weights.h5"),
}


@pytest.fixture(scope="module")
def d1():
    with np.load(D1 / "io.npz") as file:
        return dict(file)


@pytest.fixture(params=LOADINGS)
def loaded(request, session):
    return LOADINGS[request.param]()


def close(got, expected):
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_what_1_15_saved_has_its_weights(loaded, d1):
    assert names(loaded.weights) == META["variables"]
    for weight, value in zip(loaded.weights, loaded.get_weights(), strict=True):
        np.testing.assert_array_equal(value, d1[f"vars/{weight.op.name}"])


def test_what_1_15_saved_has_our_layers(loaded):
    for name in META["batch_norm_layers"]:
        assert type(loaded.get_layer(name)) is tf1.keras.layers.BatchNormalization


@pytest.mark.parametrize(("phase", "expected"), [(0, "y_infer"), (1, "y_batch_statistics")])
def test_what_1_15_saved_gives_its_outputs(loaded, d1, phase, expected):
    run = tf1.keras.backend.function([loaded.input, tf1.keras.backend.learning_phase()], [loaded.output])
    close(run([d1["x"], phase])[0], d1[expected])


@pytest.mark.parametrize("layer", META["layer_weights"])
def test_what_1_15_saved_gives_its_inner_outputs(loaded, d1, layer):
    model = tf1.keras.Model(loaded.input, loaded.get_layer(layer).output)
    close(model.predict(d1["x"]), d1[f"layer_output/{layer}"])


def test_what_1_15_compiled_is_compiled(session, d1):
    model = LOADINGS["model.h5"]()
    measured = dict(zip(model.metrics_names, model.evaluate(d1["x"], d1["labels"], verbose=0), strict=True))
    close(measured["loss"], META["evaluate"]["loss"])
    before = model.get_layer("bn_1").get_weights()[2]
    model.train_on_batch(d1["x"], d1["labels"])
    assert (model.get_layer("bn_1").get_weights()[2] != before).all()


# Programs


def data(rows=16):
    random = np.random.RandomState(3)
    return random.normal(3.0, 2.0, [rows, 3]).astype("float32"), random.normal(size=[rows, 1]).astype("float32")


def small(**kwargs):
    """Normalize, then add up what comes out."""
    layers = tf1.keras.layers
    options = {"momentum": 0.5, "name": "bn", **kwargs}
    return tf1.keras.Sequential(
        [
            layers.BatchNormalization(input_shape=(3,), **options),
            layers.Dense(1, kernel_initializer="ones", name="out"),
        ]
    )


def longhand(x, target, steps, rate):
    """The weights of `small` after steps of gradient descent, and its outputs for `x`."""
    x, target = x.astype("float64"), target.astype("float64")
    gamma, beta, mean, variance, kernel, bias = np.ones(3), np.zeros(3), np.zeros(3), np.ones(3), np.ones((3, 1)), 0.0
    normalized = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-3)
    for _ in range(steps):
        y = normalized * gamma + beta
        error = 2 * (y @ kernel + bias - target) / len(x)
        back = error @ kernel.T
        kernel, bias = kernel - rate * y.T @ error, bias - rate * error.sum()
        gamma, beta = gamma - rate * (back * normalized).sum(0), beta - rate * back.sum(0)
        mean, variance = (mean + x.mean(0)) / 2, (variance + x.var(0)) / 2
    y = (x - mean) / np.sqrt(variance + 1e-3) * gamma + beta
    return [gamma, beta, mean, variance, kernel, np.array([bias])], y @ kernel + bias


def by_fit(optimizer):
    def train(model, x, target, steps):
        model.compile(optimizer(), "mse")
        model.fit(x, target, batch_size=len(x), epochs=steps, verbose=0)

    return train


def by_session(model, x, target, steps):
    """As in the fourth seed: an optimizer of TensorFlow, and the updates before it."""
    session, wanted = tf1.keras.backend.get_session(), v1.placeholder(tf.float32, [None, 1])
    loss = v1.losses.mean_squared_error(wanted, model.output)
    with tf.control_dependencies(model.updates):
        step = v1.train.GradientDescentOptimizer(0.01).minimize(loss)
    session.run(v1.global_variables_initializer())
    for _ in range(steps):
        session.run(step, {model.input: x, wanted: target, tf1.keras.backend.learning_phase(): 1})


def by_function(model, x, target, steps):
    """Keras's optimizers and functions, without compiling."""
    backend, wanted = tf1.keras.backend, v1.placeholder(tf.float32, [None, 1])
    loss = tf.reduce_mean(tf.square(wanted - model.output))
    updates = tf1.keras.optimizers.SGD(0.01).get_updates(loss=loss, params=model.trainable_weights)
    run = backend.function([model.input, wanted, backend.learning_phase()], [loss], updates=model.updates + updates)
    for _ in range(steps):
        run([x, target, 1])


ROADS = {
    "its name": by_fit(lambda: "sgd"),
    "an optimizer of Keras": by_fit(lambda: tf1.keras.optimizers.SGD(0.01)),
    "an optimizer of TensorFlow": by_fit(lambda: v1.train.GradientDescentOptimizer(0.01)),
    "a session": by_session,
    "K.function": by_function,
}


@pytest.mark.parametrize("road", ROADS)
def test_training_longhand(road, session):
    x, target = data()
    model = small()
    ROADS[road](model, x, target, steps=4)
    weights, outputs = longhand(x, target, 4, 0.01)
    for got, expected in zip(model.get_weights(), weights, strict=True):
        close(got, expected)
    close(model.predict(x), outputs)
    assert v1.get_collection(v1.GraphKeys.UPDATE_OPS) == []


@pytest.mark.parametrize("road", ["its name", "a session"])
def test_training_longhand_under_new_control_flow(road, session):
    """A layer of Keras hands out the values of its branches for the gradient: what predicted before can be trained."""
    v1.enable_control_flow_v2()
    x, target = data()
    model = small()
    model.predict(x)
    ROADS[road](model, x, target, steps=2)
    for got, expected in zip(model.get_weights(), longhand(x, target, 2, 0.01)[0], strict=True):
        close(got, expected)


PHASES = {
    "tf.layers": lambda x, phase: tf1.layers.batch_normalization(x, training=phase),
    "tf.contrib.layers": lambda x, phase: tf1.contrib.layers.batch_norm(x, is_training=phase, scale=True),
    "in place": lambda x, phase: tf1.contrib.layers.batch_norm(
        x, is_training=phase, scale=True, updates_collections=None
    ),
    "tf.compat.v2.keras": lambda x, phase: tf1.compat.v2.keras.layers.BatchNormalization()(x, training=phase),
    "a branch": lambda x, phase: v1.cond(
        phase, lambda: tf1.layers.batch_normalization(x, training=True), lambda: tf.identity(x)
    ),
}


@pytest.mark.parametrize("normalize", PHASES.values(), ids=PHASES)
def test_two_in_a_layer_of_keras_under_new_control_flow(normalize, session):
    """A layer of the program's own, which normalizes twice; against the same gradient under the old control flow."""

    class Twice(tf1.keras.layers.Layer):
        @tf.autograph.experimental.do_not_convert
        def call(self, inputs):
            return normalize(normalize(inputs, phase) * weights, phase)

    x, _ = data()
    phase, weights = v1.placeholder(tf.bool, []), tf.constant([1.0, -2.0, 3.0])
    gradients = []
    for scope, switch in {"old": v1.disable_control_flow_v2, "new": v1.enable_control_flow_v2}.items():
        switch()
        given = v1.placeholder(tf.float32, [None, 3])
        with v1.variable_scope(scope, use_resource=True):
            y = Twice()(given)
        (gradient,) = tf.gradients(tf.reduce_sum(y * y * y * weights), given)
        session.run(v1.global_variables_initializer())
        gradients.append([session.run(gradient, {given: x, phase: training}) for training in (True, False)])
    np.testing.assert_allclose(gradients[1], gradients[0], rtol=1e-4, atol=1e-4)


FROZEN = ("when made", "before the call")


@pytest.mark.parametrize(
    ("version", "frozen", "training", "statistics", "moved", "trained"),
    [
        *((api, "never", None, "batch", True, True) for api in APIS),
        *(("tf.keras.layers.BatchNormalization", when, None, "batch", False, False) for when in FROZEN),
        *(("tf.compat.v2.keras.layers.BatchNormalization", when, None, "moving", False, False) for when in FROZEN),
        *((api, "after the call", None, "batch", False, False) for api in APIS),
        ("tf.keras.layers.BatchNormalization", "when made", True, "batch", False, False),
        ("tf.compat.v2.keras.layers.BatchNormalization", "when made", True, "moving", False, False),
        *((api, "never", False, "moving", False, True) for api in APIS),
    ],
)
def test_one_train_on_batch(version, frozen, training, statistics, moved, trained, session):
    x, target = data()
    layers = tf1.keras.layers
    layer = APIS[version]().layers.BatchNormalization(momentum=0.5, trainable=frozen != "when made")
    layer.trainable = frozen not in FROZEN
    inputs = layers.Input((3,))
    y = layer(inputs) if training is None else layer(inputs, training=training)
    layer.trainable = frozen == "never"
    model = tf1.keras.Model(inputs, layers.Dense(1, kernel_initializer="ones")(y))
    model.compile("sgd", "mse")
    mean, variance = (x.mean(0), x.var(0)) if statistics == "batch" else (0.0, 1.0)
    loss = model.train_on_batch(x, target)
    close(loss, np.mean((((x - mean) / np.sqrt(variance + 1e-3)).sum(1, keepdims=True) - target) ** 2))
    gamma, _, moving_mean, _ = layer.get_weights()
    close(moving_mean, x.mean(0) / 2 if moved else np.zeros(3))
    assert (gamma != 1.0).all() == trained


@pytest.mark.parametrize("phase", [0, 1])
@pytest.mark.filterwarnings("ignore:`tf.keras.backend.set_learning_phase`:UserWarning")
def test_a_phase_set_before_is_built_in(phase, session):
    x, _ = data()
    tf1.keras.backend.set_learning_phase(phase)
    model = small()
    assert len(model.updates) == 2 * phase
    mean, variance = (x.mean(0), x.var(0)) if phase else (0.0, 1.0)
    close(model.predict(x), ((x - mean) / np.sqrt(variance + 1e-3)).sum(1, keepdims=True))


@pytest.mark.filterwarnings("ignore:`tf.keras.backend.set_learning_phase`:UserWarning")
def test_a_phase_set_afterwards_changes_nothing(session):
    x, _ = data()
    model = small()
    tf1.keras.backend.set_learning_phase(1)
    close(model.predict(x), (x / np.sqrt(1 + 1e-3)).sum(1, keepdims=True))


def test_a_shared_layer_has_two_updates_a_call(session):
    first, second = tf1.keras.layers.Input((3,)), tf1.keras.layers.Input((3,))
    layer = tf1.keras.layers.BatchNormalization()
    model = tf1.keras.Model([first, second], tf1.keras.layers.Add()([layer(first), layer(second)]))
    assert [len(model.updates), len(layer.updates), len(layer.get_updates_for(first))] == [4, 4, 2]


def test_a_frozen_base_stays(session):
    x, target = data()
    base = small()
    inputs = tf1.keras.layers.Input((3,))
    model = tf1.keras.Model(inputs, tf1.keras.layers.Dense(1)(base(inputs)))
    model.compile("adam", "mse")
    model.train_on_batch(x, target)
    base.trainable = False
    model.compile("adam", "mse")
    before = base.get_weights()
    close(before[2], x.mean(0) / 2)
    model.train_on_batch(x, target)
    assert model.updates == []
    for value, kept in zip(base.get_weights(), before, strict=True):
        np.testing.assert_array_equal(value, kept)


SHAPES = {
    "branch": lambda layer, x: v1.cond(tf.constant(True), lambda: layer(x, training=True), lambda: x),
    "loop": lambda layer, x: tf.map_fn(lambda rows: layer(rows, training=True), x[tf.newaxis]),
    "function": lambda layer, x: tf.function(lambda rows: layer(rows, training=True))(x),
}


@pytest.mark.parametrize(("trainable", "share"), [(True, 0.5), (False, 0.0)])
@pytest.mark.parametrize("place", SHAPES)
def test_where_nobody_could_run_the_updates_the_output_does(place, trainable, share, session):
    x, _ = data()
    layer = tf1.keras.layers.BatchNormalization(momentum=0.5, trainable=trainable)
    layer.build(x.shape)
    y = SHAPES[place](layer, tf.constant(x))
    session.run(v1.global_variables_initializer())
    session.run(y)
    assert layer.updates == []
    close(session.run(layer.moving_mean), share * x.mean(0))


def test_autograph_leaves_us_alone(graph, monkeypatch):
    files = []
    phase = steps.phase
    monkeypatch.setattr(steps, "phase", lambda given: files.append(sys._getframe(1).f_code.co_filename) or phase(given))
    small()
    assert files == [sys.modules["evenkeel.tf1.keras.normalization"].__file__]


def bad(which):
    x, _ = data()
    if which == "not finite":
        x[0] = np.nan
    return {"not finite": x, "one row": x[:1], "empty": x[:0]}[which]


@pytest.mark.parametrize("which", ["not finite", "one row", "empty"])
def test_a_bad_batch_leaves_the_statistics_alone(which, session):
    backend = tf1.keras.backend
    model = small()
    before = model.get_weights()
    backend.function([model.input, backend.learning_phase()], [model.output], updates=model.updates)([bad(which), 1])
    for value, kept in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(value, kept)


def test_a_mask_passes_and_counts_for_nothing(session):
    x = np.arange(24, dtype="float32").reshape(4, 2, 3)
    x[:, 1] = 0.0
    inputs = tf1.keras.layers.Input((2, 3))
    layer = tf1.keras.layers.BatchNormalization(momentum=0.5)
    masked = tf1.keras.layers.Masking()(inputs)
    model = tf1.keras.Model(inputs, layer(masked))
    model.compile("sgd", "mse")
    model.train_on_batch(x, x)
    close(layer.get_weights()[2], x.mean((0, 1)) / 2)
    assert layer.output_mask is layer.input_mask is not None


def test_five_dimensions_keep_the_population_variance(session):
    x = np.random.RandomState(0).normal(size=[2, 2, 2, 2, 3]).astype("float32")
    layer = tf1.keras.layers.BatchNormalization(momentum=0.5)
    layer(tf.constant(x), training=True)
    session.run(v1.global_variables_initializer())
    session.run(layer.updates)
    close(session.run(layer.moving_variance), 0.5 + x.var((0, 1, 2, 3)) / 2)


# Files


def copied(how, model, folder):
    """The model again, by way of a file or of its configuration."""
    models, path = tf1.keras.models, str(folder / "model")
    if how == "model.h5":
        model.save(f"{path}.h5")
        return models.load_model(f"{path}.h5")
    other = models.clone_model(model) if how == "clone" else models.model_from_json(model.to_json())
    if how == "clone":
        other.set_weights(model.get_weights())
    else:
        model.save_weights(path + how)
        other.load_weights(path + how)
    return other


@pytest.mark.parametrize("kwargs", [{}, {"renorm": True}, {"virtual_batch_size": 8}], ids=str)
@pytest.mark.parametrize("how", ["model.h5", "clone", ".h5", ".ckpt"])
def test_a_copy_predicts_the_same(how, kwargs, session, tmp_path):
    x, target = data()
    model = small(**kwargs)
    model.compile("sgd", "mse")
    model.fit(x, target, verbose=0)
    other = copied(how, model, tmp_path)
    assert type(other.layers[0]) is tf1.keras.layers.BatchNormalization
    close(other.predict(x), model.predict(x))


def stored(name):
    layer = tf1.keras.layers.deserialize({"class_name": name, "config": {"axis": [1]}})
    return next(api for api in APIS if type(layer) is APIS[api]().layers.BatchNormalization)


@pytest.mark.parametrize(("name", "version"), [("", 0), ("V1", 0), ("V2", 1)])
def test_a_name_in_a_file(name, version, graph):
    assert stored(f"BatchNormalization{name}") == list(APIS)[version]


@pytest.mark.parametrize(("name", "version"), [("", 1), ("V1", 0), ("V2", 1)])
def test_a_name_in_a_file_in_tensorflow_2(name, version):
    assert stored(f"BatchNormalization{name}") == list(APIS)[version]


def test_a_saver_restores_the_weights(session, tmp_path):
    x, target = data()
    model = small()
    model.compile("sgd", "mse")
    model.fit(x, target, verbose=0)
    expected, saver = model.predict(x), tf1.train.Saver()
    path = saver.save(session, str(tmp_path / "model"))
    session.run(v1.global_variables_initializer())
    assert not np.allclose(model.predict(x), expected)
    saver.restore(session, path)
    close(model.predict(x), expected)
    assert ("bn/moving_mean", [3]) in v1.train.list_variables(path)


def frozen_graph(session, model, path):
    constants = v1.graph_util.convert_variables_to_constants(session, session.graph_def, [model.output.op.name])
    return lambda _: tf1.import_graph_def(constants, return_elements=[model.input.name, model.output.name])


def simply_saved(session, model, path):
    v1.saved_model.simple_save(session, path, {"x": model.input}, {"y": model.output})

    def read(other):
        signature = tf1.saved_model.load(other, ["serve"], path).signature_def["serving_default"]
        return signature.inputs["x"].name, signature.outputs["y"].name

    return read


def saved_by_keras(session, model, path):
    model.save(path, save_format="tf")

    def read(other):
        signature = tf1.saved_model.load(other, ["serve"], path).signature_def["serving_default"]
        (x,), (y,) = signature.inputs.values(), signature.outputs.values()
        return x.name, y.name

    return read


@pytest.mark.parametrize("written", [frozen_graph, simply_saved, saved_by_keras])
def test_what_was_trained_is_served(written, session, tmp_path):
    x, target = data()
    model = small()
    model.compile("sgd", "mse")
    model.fit(x, target, verbose=0)
    expected, read = model.predict(x), written(session, model, str(tmp_path / "served"))
    with tf.Graph().as_default(), v1.Session() as other:
        inputs, outputs = read(other)
        close(other.run(outputs, {inputs: x}), expected)


def test_in_an_estimator(tmp_path):
    x, target = data()

    def model_fn(features, labels, mode):
        training = mode == tf1.estimator.ModeKeys.TRAIN
        model = small()
        loss = v1.losses.mean_squared_error(labels, model(features, training=training))
        with tf.control_dependencies(model.get_updates_for(features) if training else []):
            step = v1.train.GradientDescentOptimizer(0.01).minimize(loss, tf1.train.get_global_step())
        return tf1.estimator.EstimatorSpec(mode, loss=loss, train_op=step)

    def input_fn():
        return tf.constant(x), tf.constant(target)

    trained = tf1.estimator.Estimator(model_fn, str(tmp_path))
    trained.train(input_fn, steps=4)
    weights, outputs = longhand(x, target, 4, 0.01)
    close(trained.get_variable_value("bn/moving_variance"), weights[3])
    close(trained.evaluate(input_fn, steps=1)["loss"], np.mean((outputs - target) ** 2))
