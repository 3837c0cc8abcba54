# SPDX-License-Identifier: Apache-2.0
"""`tf.layers`, `tf.contrib.layers` and slim, step by step, against what TensorFlow 1.15 wrote down."""

import numpy as np
import pytest
import tensorflow as tf

import evenkeel.tf1 as tf1
from tf1 import goldens

v1 = tf.compat.v1

APIS = ("tf.layers.batch_normalization", "tf.contrib.layers.batch_norm", "tf.contrib.slim.batch_norm")
CASES = [case for api in APIS for case in goldens.cases("layer_steps", api)]

# Where this library does on purpose what 1.15 does not; docs/differences has the same list.
NOT_FINITE = "1.15 lets one NaN or infinity into the moving statistics, for ever"
EMPTY = "1.15 turns the moving statistics into NaN"
ONE_VALUE = "one value a channel says nothing about spread: the moving statistics normalize it, and stay as they are"
DIFFERENT = {
    "layers_nan_r2": NOT_FINITE,
    "layers_inf_r2": NOT_FINITE,
    "layers_empty_batch_r2": EMPTY,
    "layers_empty_batch_r4_fused": EMPTY,
    "layers_batch1_r2": ONE_VALUE,
    "layers_batch1_spatial1_r4_fused": ONE_VALUE,
    "layers_vbs1_r2": ONE_VALUE,
    "contrib_batch1_r2_fused": ONE_VALUE,
    "contrib_weights_all_zero_r2": "1.15 divides by a sum of weights that is zero; no weight is no batch here",
    "layers_large_mean_1e6_r4_fused": "1.15's own variance is wrong by 4 % there",
}


class Program:
    """The graph of a case: one tower for training, one for inference, or one tower with a fed phase."""

    def __init__(self, case, graph):
        self.case, self.graph, self.arrays, self.feeds = case, graph, goldens.arrays(case), {}
        self.kwargs = goldens.decoded(case["kwargs"], self.arrays, self.feeds)
        first = self.arrays["x_0"]
        dtype = tf.as_dtype(case["dtype"])
        shape = case.get("placeholder_shape") or [None, *first.shape[1:]]
        self.x = v1.placeholder(dtype, first.shape if case.get("static") else shape, "x")
        self.dy = v1.placeholder(dtype, None, "dy")
        self.phase = {
            "placeholder": lambda: v1.placeholder(tf.bool, [], "phase"),
            "variable": lambda: v1.Variable(True, trainable=False, name="phase", collections=["phases"]),
            "const_tensor": lambda: tf.constant(True),
        }.get(case["training"], lambda: case["training"])()
        self.fed = case["training"] in ("placeholder", "variable")
        self.y = self.call(self.phase, reuse=None)
        self.updates = goldens.update_ops(graph)
        update_collections = {v1.GraphKeys.UPDATE_OPS, *case.get("update_collections", [])}
        self.run_updates = [item for key in sorted(update_collections) for item in v1.get_collection(key)]
        variables = {variable.op.name: variable for variable in v1.global_variables()}
        self.parameters = {
            f"d{name}": variable
            for variable in v1.trainable_variables()
            if (name := variable.op.name.rsplit("/", 1)[-1]) in ("gamma", "beta")
        }
        sources = {"dx": self.x, **self.parameters}
        gradients = tf.gradients(self.y, list(sources.values()), grad_ys=self.dy)
        self.gradients = dict(zip(sources, gradients, strict=True))
        self.description = goldens.described(graph)
        self.losses = v1.get_collection(v1.GraphKeys.REGULARIZATION_LOSSES)
        self.variables = variables
        self.y_infer = self.y if self.fed else self.call(False, reuse=True)
        self.updates_with_inference_tower = len(v1.get_collection(v1.GraphKeys.UPDATE_OPS))

    def call(self, training, reuse):
        case, kwargs = self.case, dict(self.kwargs)
        scope = None if case.get("naming") == "unnamed" else "bn"
        contrib = "layers.batch_normalization" not in case["api"]
        if contrib:
            function = tf1.contrib.layers.batch_norm if "layers" in case["api"] else tf1.contrib.slim.batch_norm
            named = {"scope": scope if scope or reuse is None else "BatchNorm", "reuse": reuse, "is_training": training}
        else:
            function = tf1.layers.batch_normalization
            named = {"name": scope, "reuse": reuse, "training": training}
        outer = case.get("scope")
        with v1.variable_scope(outer or v1.get_variable_scope(), reuse=reuse, use_resource=case.get("use_resource")):
            if case.get("via") == "class":
                if reuse is None:
                    self.layer = tf1.layers.BatchNormalization(name=scope, **kwargs)
                return self.layer(self.x, training=training)
            if case.get("via") == "arg_scope":
                with tf1.contrib.slim.arg_scope([function], **kwargs, is_training=training):
                    return function(self.x, scope=scope, reuse=reuse)
            return function(self.x, **kwargs, **named)

    def start(self, session):
        session.run([v1.global_variables_initializer(), v1.variables_initializer(v1.get_collection("phases"))])
        initial = session.run(self.variables)
        for name in goldens.starting_with("initial/", self.arrays):
            goldens.check(self.case, initial[name], f"initial/{name}")
        for name, value in goldens.starting_with("state_init/", self.arrays).items():
            self.variables[name].load(value, session)

    def step(self, session, number):
        feed = {self.x: self.arrays[f"x_{number}"], **goldens.fed(self.feeds, self.arrays, number)}
        feed[self.dy] = self.arrays["dy" if "dy" in self.arrays else f"dy_{number}"]
        self.feed_phase(session, feed, self.fed and self.case["training_seq"][number])
        gradients = {name: value for name, value in self.gradients.items() if value is not None}
        y, gradients, _ = session.run([self.y, gradients, self.run_updates], feed)
        return y, gradients

    def infer(self, session):
        feed = {self.x: self.arrays["x_test"]}
        if any(f"{name}_test" in self.arrays for name in self.feeds):
            feed |= goldens.fed(self.feeds, self.arrays, "test")
        self.feed_phase(session, feed, False)
        return session.run(self.y_infer, feed)

    def feed_phase(self, session, feed, value):
        if self.case["training"] == "placeholder":
            feed[self.phase] = value
        if self.case["training"] == "variable":
            self.phase.load(value, session)


@pytest.fixture(scope="module", params=CASES, ids=goldens.name)
def program(request, fresh_graph):
    with fresh_graph() as graph:
        yield Program(request.param, graph)


def test_graph(program):
    """Names, order, shapes, types, collections, losses and updates, without running anything."""
    meta = program.case["meta"]
    assert program.description == goldens.recorded(program.case)
    assert program.updates == meta["update_ops"]
    assert program.updates_with_inference_tower == meta["update_ops_count_after_eval_tower"]
    assert len(program.losses) == meta["regularization_losses_count"]
    nones = sorted(name for name, value in program.gradients.items() if value is None)
    assert nones == sorted(meta["none_gradients"])


def protected(case, value, name):
    """Where the numbers are others on purpose: whatever came in, the state and the inference are finite."""
    assert not name.startswith(("state_", "y_infer")) or np.isfinite(value).all(), f"{case['id']}: {name} is {value}"


def test_numbers(program):
    case = program.case
    check = protected if case["id"] in DIFFERENT else goldens.check
    config = v1.ConfigProto(intra_op_parallelism_threads=1)
    with v1.Session(graph=program.graph, config=config) as session:
        program.start(session)
        losses = session.run(program.losses)
        np.testing.assert_allclose(losses, case["meta"]["regularization_losses"], rtol=1e-6)
        for number in range(case["n_steps"]):
            y, gradients = program.step(session, number)
            check(case, y, f"y_train_{number}")
            for name, value in gradients.items():
                check(case, value, f"{name}_{number}")
            for name, value in session.run(program.variables).items():
                check(case, value, f"state_{number}/{name}")
        check(case, program.infer(session), "y_infer")


def test_there_are_cases():
    assert len(CASES) > 250
    assert {case["id"] for case in CASES} >= set(DIFFERENT)
