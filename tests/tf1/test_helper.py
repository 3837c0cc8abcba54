# SPDX-License-Identifier: Apache-2.0
"""The helper classes of early programs, against what they did in 1.15, and where those left the order open."""

import numpy as np
import pytest
import tensorflow as tf

import evenkeel.tf1 as ek
from evenkeel.tf1.helper import BatchNormalizer, ConvolutionalBatchNormalizer
from tf1 import goldens

v1 = tf.compat.v1

API = "ConvolutionalBatchNormalizer"
STEPS = goldens.cases("layer_steps", API)
TOWERS = goldens.cases("towers", API)
TRAININGS = goldens.cases("train", API)


class Built:
    """A case of `layer_steps`: its training tower, its update operations, its inference tower."""

    def __init__(self, case):
        self.case, self.arrays, given = case, goldens.arrays(case), dict(case["kwargs"])
        decay, layers = given.pop("decay"), 2 if given.pop("two", False) else 1
        self.num_updates = None
        if given.pop("num_updates", False):
            self.num_updates = v1.get_variable("num_updates", [], initializer=v1.zeros_initializer(), trainable=False)
        # The assigner runs together with the step, or after it; then it is made first, as in the old programs.
        self.together = case["training"] and bool(case.get("single_run") or case.get("use_resource"))
        self.x = v1.placeholder("float32", [None, *case["input_shape"][1:]], "x")
        self.dy = v1.placeholder("float32", name="dy")
        ewma = ek.train.ExponentialMovingAverage(decay, self.num_updates)
        with v1.variable_scope(v1.get_variable_scope(), use_resource=case.get("use_resource")):
            self.y, self.layers, self.updates = self.x, [], []
            for number in range(layers):
                layer = ek.ConvolutionalBatchNormalizer(ewma_trainer=ewma, **given)
                if not self.together:
                    self.updates.append(layer.get_assigner())
                self.y = layer.normalize(between(self.y, number), train=case["training"])
                if self.together:
                    self.updates.append(layer.get_assigner())
                self.layers.append(layer)
        self.y_infer = self.x
        for number, layer in enumerate(self.layers):
            self.y_infer = layer.normalize(between(self.y_infer, number), train=False)
        inputs = {"dx": self.x, "dgamma": self.layers[0].gamma, "dbeta": self.layers[0].beta}
        self.gradients = dict(zip(inputs, tf.gradients(self.y, [*inputs.values()], self.dy), strict=True))

    def step(self, session, number):
        """Fetched values of one step, by the names of the recorded arrays without the number."""
        fetches = {name: value for name, value in self.gradients.items() if value is not None}
        feed = {self.x: self.arrays[f"x_{number}"], self.dy: self.arrays["dy"]}
        fetched, _ = session.run([{"y_train": self.y, **fetches}, self.updates if self.together else []], feed)
        if self.case["training"] and not self.together:
            session.run(self.updates)
        if self.num_updates is not None:
            session.run(v1.assign_add(self.num_updates, 1.0))
        return fetched


def between(y, number):
    """What the second of two layers gets."""
    return tf.nn.relu(y) * 2 if number else y


def assert_arrays(case, arrays, prefix, session):
    """All variables, against the arrays `prefix...`."""
    variables = {variable.op.name: variable for variable in v1.global_variables()}
    assert set(goldens.starting_with(prefix, arrays)) == set(variables)
    for name, value in session.run(variables).items():
        goldens.check(case, value, prefix + name)


def start(arrays, session):
    """Initial values, then those the case starts from."""
    session.run(v1.global_variables_initializer())
    for variable in v1.global_variables():
        initializer = variable.initializer
        session.run(initializer, {initializer.inputs[1]: arrays[f"state_init/{variable.op.name}"]})


@pytest.mark.parametrize("case", STEPS, ids=goldens.name)
def test_steps_are_those_of_1_15(case, session):
    built = Built(case)
    session.run(v1.global_variables_initializer())
    assert_arrays(case, built.arrays, "initial/", session)
    start(built.arrays, session)
    for number in range(case["n_steps"]):
        for name, value in built.step(session, number).items():
            goldens.check(case, value, f"{name}_{number}")
        assert_arrays(case, built.arrays, f"state_{number}/", session)
    goldens.check(case, session.run(built.y_infer, {built.x: built.arrays["x_test"]}), "y_infer")


@pytest.mark.parametrize("case", STEPS, ids=goldens.name)
def test_names_are_those_of_1_15(case, graph):
    built = Built(case)
    assert goldens.described(graph) == goldens.recorded(case)
    missing = sorted(name for name, value in built.gradients.items() if value is None)
    assert missing == case["meta"]["none_gradients"]
    assert goldens.update_ops(graph) == case["meta"]["update_ops"]


@pytest.mark.parametrize("case", TOWERS, ids=goldens.name)
def test_towers_are_those_of_1_15(case, session):
    arrays = goldens.arrays(case)
    program = {"V1": ek, "tf": ek, "ConvolutionalBatchNormalizer": ConvolutionalBatchNormalizer}
    exec(case["source"], program)
    feeds = {}
    for name in case["meta"]["input_arrays"]:
        goldens.decoded({"$feed": name.rsplit("_", 1)[0]}, arrays, feeds)
    tower = program[case["program"]](feeds)
    assert goldens.described(session.graph) == goldens.recorded(case)
    start(arrays, session)
    for step in range(case["n_steps"]):
        for names in tower["steps"]:
            fetched = session.run({name: tower["fetch"][name] for name in names}, goldens.fed(feeds, arrays, step))
            for name in {f"out_{name}_{step}" for name in names} & set(arrays):
                goldens.check(case, fetched[name.split("_")[1]], name)
        assert_arrays(case, arrays, f"state_{step}/", session)


class Trainer:
    """What the source of a `train` case is given as `T`: takes the network, and trains it."""

    def __init__(self, case, arrays):
        self.case, self.arrays, self.after_step = case, arrays, []
        self.x = v1.placeholder("float32", [None, *arrays["data_x"].shape[1:]])
        self.labels = v1.placeholder("int32", [None])

    def finish(self, net):
        logits = net(self.x, True)
        self.loss = v1.losses.sparse_softmax_cross_entropy(self.labels, logits)
        self.y_infer = net(self.x, False, reuse=True)
        optimizer = ek.train.GradientDescentOptimizer(self.case["params"]["lr"])
        self.train = optimizer.minimize(self.loss, v1.train.create_global_step())

    def step(self, session, number):
        batch = self.arrays["batch_index"][number]
        feed = {self.x: self.arrays["data_x"][batch], self.labels: self.arrays["data_labels"][batch]}
        loss, _ = session.run([self.loss, self.train], feed)
        session.run(self.after_step)
        return loss


@pytest.mark.parametrize("case", TRAININGS, ids=goldens.name)
def test_trainings_are_those_of_1_15(case, session):
    arrays = goldens.arrays(case)
    program = {"V1": ek, "tf": ek, "layers": ek.layers, "ConvolutionalBatchNormalizer": ConvolutionalBatchNormalizer}
    exec(case["source"], program)
    trainer = Trainer(case, arrays)
    program[case["program"]](trainer, case["params"])
    assert goldens.described(session.graph) == goldens.recorded(case)
    start(arrays, session)
    losses = []
    for step in range(case["n_steps"]):
        losses.append(trainer.step(session, step))
        if step in case["meta"]["states_kept_after_steps"]:
            assert_arrays(case, arrays, f"state_{step}/", session)
    goldens.check(case, losses, "losses")
    goldens.check(case, session.run(trainer.y_infer, {trainer.x: arrays["x_test"]}), "y_infer")


# What 1.15's programs left to chance.

BATCHES = np.random.default_rng(0).normal(5.0, 2.0, (20, 6, 3)).astype("float32")


@pytest.mark.parametrize("resource", [False, True], ids=["reference", "resource"])
@pytest.mark.parametrize("train", [True, "tensor"])
@pytest.mark.parametrize("control_flow", ["v1", "v2"])
def test_the_assigner_averages_the_batch_of_its_own_run(resource, train, control_flow, session):
    if control_flow == "v2":
        v1.enable_control_flow_v2()  # the fixture leaves it so
    x = v1.placeholder("float32", [None, 3])
    with v1.variable_scope("net", use_resource=resource):
        bn = BatchNormalizer(3, 1e-3, ek.train.ExponentialMovingAverage(0.0), True)
        if train == "tensor":
            bn.get_assigner()
            train = v1.placeholder_with_default(True, [])
        y = bn.normalize(x, train)
        update = bn.get_assigner()
    session.run(v1.global_variables_initializer())
    average = bn.ewma_trainer.average(bn.mean)
    for batch in BATCHES:
        session.run([update, y], {x: batch})
        np.testing.assert_allclose(session.run(average), batch.mean(0), rtol=1e-6)


def test_an_assigner_made_before_averages_the_batch_before(session):
    x = v1.placeholder("float32", [None, 3])
    bn = BatchNormalizer(3, 1e-3, ek.train.ExponentialMovingAverage(0.0), True)
    update = bn.get_assigner()
    y = bn.normalize(x)
    session.run(v1.global_variables_initializer())
    before = np.zeros(3)
    for batch in BATCHES:
        session.run([y, update], {x: batch})
        np.testing.assert_allclose(session.run(bn.ewma_trainer.average(bn.mean)), before, rtol=1e-6)
        before = batch.mean(0)


def test_a_bool_tensor_switches(session):
    x, train = v1.placeholder("float32", [None, 3]), v1.placeholder("bool", [])
    bn = BatchNormalizer(3, 0.0, ek.train.ExponentialMovingAverage(0.5), True)
    bn.get_assigner()
    y = bn.normalize(x, train)
    session.run(v1.global_variables_initializer())
    batch = BATCHES[0]
    np.testing.assert_allclose(session.run(y, {x: batch, train: False}), batch, rtol=1e-6)
    assert session.run(bn.mean).tolist() == [0.0] * 3
    wanted = (batch - batch.mean(0)) / batch.std(0)
    np.testing.assert_allclose(session.run(y, {x: batch, train: True}), wanted, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(session.run(bn.mean), batch.mean(0), rtol=1e-6)


@pytest.mark.parametrize("control_flow", ["v1", "v2"])
def test_it_may_be_in_a_branch_of_the_programs_own(control_flow, session):
    if control_flow == "v2":
        v1.enable_control_flow_v2()  # the fixture leaves it so
    x, train = v1.placeholder("float32", [None, 3]), v1.placeholder("bool", [])
    bn = BatchNormalizer(3, 0.0, ek.train.ExponentialMovingAverage(0.0), True)
    bn.get_assigner()
    y = v1.cond(train, lambda: bn.normalize(x), lambda: bn.normalize(x, False))
    update = bn.get_assigner()
    session.run(v1.global_variables_initializer())
    feed = {x: BATCHES[0], train: True}
    np.testing.assert_allclose(session.run(y, feed).mean(0), 0.0, atol=1e-6)
    session.run(update, feed)
    np.testing.assert_allclose(session.run(bn.ewma_trainer.average(bn.mean)), BATCHES[0].mean(0), rtol=1e-6)


@pytest.mark.parametrize("train", [True, False])
def test_a_bool_variable_switches(train, session):
    bn = BatchNormalizer(3, 0.0, ek.train.ExponentialMovingAverage(0.5), True)
    bn.get_assigner()
    y = bn.normalize(tf.constant(BATCHES[0]), v1.get_variable("train", initializer=train, trainable=False))
    session.run(v1.global_variables_initializer())
    assert np.allclose(session.run(y).mean(0), 0.0, atol=1e-6) == train


def test_a_constant_tensor_is_a_bool(session):
    bn = BatchNormalizer(3, 0.0, ek.train.ExponentialMovingAverage(0.5), True)
    y = bn.normalize(tf.constant(BATCHES[0]), tf.constant(True))
    assert not [operation for operation in session.graph.get_operations() if "Switch" in operation.type]
    session.run(v1.global_variables_initializer())
    np.testing.assert_allclose(session.run(y).mean(0), 0.0, atol=1e-6)


@pytest.mark.parametrize(
    "shape", [(8, 3), (4, 5, 3), (2, 4, 5, 3), (2, 3, 4, 2, 3)], ids=lambda shape: f"rank {len(shape)}"
)
def test_any_rank_keeps_the_last_axis(shape, session):
    x = np.random.default_rng(0).normal(4.0, 3.0, shape).astype("float32")
    bn = BatchNormalizer(3, 0.0, ek.train.ExponentialMovingAverage(0.5), True)
    y = bn.normalize(tf.constant(x))
    session.run(v1.global_variables_initializer())
    axes = tuple(range(len(shape) - 1))
    np.testing.assert_allclose(session.run(y), (x - x.mean(axes)) / x.std(axes), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("train", [False, None], ids=["inference", "tensor"])
def test_inference_without_averages_says_so(train, graph):
    bn = BatchNormalizer(3, 1e-3, ek.train.ExponentialMovingAverage(0.5), True)
    with pytest.raises(ValueError, match=r"'bn'.*get_assigner\(\) before"):
        bn.normalize(tf.ones([8, 3]), v1.placeholder("bool", []) if train is None else train)


@pytest.mark.parametrize(("shape", "seen"), [([8, 3], r"\(8, 3\)"), ([8, 2, 3], r"\(8, 2, 3\)"), (None, "<unknown>")])
def test_images_have_rank_four(shape, seen, graph):
    bn = ConvolutionalBatchNormalizer(3, 1e-3, ek.train.ExponentialMovingAverage(0.5), True)
    with pytest.raises(ValueError, match=f"rank 4, not shape {seen}"):
        bn.normalize(v1.placeholder("float32", shape))


def test_a_vector_has_no_batch(graph):
    bn = BatchNormalizer(3, 1e-3, ek.train.ExponentialMovingAverage(0.5), True)
    with pytest.raises(ValueError, match=r"rank 2 or more, not shape \(3,\)"):
        bn.normalize(tf.ones([3]))
