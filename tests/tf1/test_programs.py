# SPDX-License-Identifier: Apache-2.0
"""Whole programs of TensorFlow 1.15, from their source: shared towers, thirty training steps, errors, checkpoints."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf

import evenkeel.tf1 as tf1
from tf1 import goldens

from conftest import GOLDENS

v1 = tf.compat.v1

CHECKPOINTS = ["a1_contrib_mlp", "b1_layers_conv", "e1_slim_resnet_block", "g1_v1_format_mlp", "h1_trainable_only_mlp"]
CHECKPOINTS += ["i1_updates_never_run_mlp"]
OPTIMIZERS = {
    None: tf1.train.GradientDescentOptimizer,
    "momentum": lambda rate: tf1.train.MomentumOptimizer(rate, 0.9),
    "adam": tf1.train.AdamOptimizer,
}


def ours(kind):
    """Cases that can be built; the schedule of some was not written down."""
    cases = goldens.cases(kind)
    return [case for case in cases if case.get("params", {}).get("bn", {}).get("renorm_clipping") != "schedule"]


def function(source, name=None):
    """The function a source defines, in the world of a program of that time."""
    world = {
        "tf": tf1,
        "V1": tf1,
        "layers": tf1.layers,
        "contrib": tf1.contrib.layers,
        "slim": tf1.contrib.slim,
        "ConvolutionalBatchNormalizer": tf1.ConvolutionalBatchNormalizer,
        "np": np,
    }
    before = set(world)
    exec(source, world)
    return world[name or next(key for key in world if key not in before and key != "__builtins__")]


def load(session, prefix, arrays):
    for variable in v1.global_variables():
        if f"{prefix}{variable.op.name}" in arrays:
            variable.load(arrays[f"{prefix}{variable.op.name}"], session)


def check_state(case, session, prefix):
    state = goldens.starting_with(prefix, goldens.arrays(case))
    variables = {variable.op.name: variable for variable in v1.global_variables()}
    assert set(state) <= set(variables)
    for name in state:
        goldens.check(case, session.run(variables[name]), f"{prefix}{name}")


@pytest.mark.parametrize("case", ours("towers"), ids=goldens.name)
def test_towers(case, session):
    arrays, meta = goldens.arrays(case), case["meta"]
    inputs = {
        key[:-2]: v1.placeholder(value.dtype, [None, *value.shape[1:]], key[:-2])
        for key, value in arrays.items()
        if key.startswith("x_") and key.endswith("_0")
    }
    if "phase_sequence" in meta:
        inputs["phase"] = v1.placeholder(tf.bool, [], "phase")
    built = function(case["source"])(inputs)
    described = goldens.described(session.graph)
    assert {key: described[key] for key in goldens.recorded(case)} == goldens.recorded(case)
    assert goldens.update_ops(session.graph) == meta["update_ops"]
    assert built.get("info", {}) == meta.get("info", {})
    session.run(v1.global_variables_initializer())
    load(session, "state_init/", arrays)
    for step in range(case["n_steps"]):
        feed = {inputs[name]: arrays[f"{name}_{step}"] for name in inputs if name != "phase"}
        if "phase" in inputs:
            feed[inputs["phase"]] = meta["phase_sequence"][step]
        for names in meta["steps"]:
            got = session.run([built["fetch"][name] for name in names], feed)
            for name, value in zip(names, got, strict=True):
                if f"out_{name}_{step}" in arrays:
                    goldens.check(case, value, f"out_{name}_{step}")
        check_state(case, session, f"state_{step}/")


class Trainer(SimpleNamespace):
    """`T` of the sources."""

    def bn_kwargs(self, params):
        kwargs = dict(params.get("bn", {}))
        if "gamma_constraint" in kwargs:
            kwargs["gamma_constraint"] = tf.nn.relu
        if "gamma_initializer" in kwargs:
            kwargs["gamma_initializer"] = v1.constant_initializer(kwargs["gamma_initializer"])
        return kwargs

    def finish(self, net, slim_train_op=False, updates=lambda: v1.get_collection(v1.GraphKeys.UPDATE_OPS)):
        phases = {
            "placeholder": lambda: v1.placeholder(tf.bool, [], "phase"),
            "learning_phase": lambda: tf1.keras.backend.learning_phase(),
        }
        phase = phases.get(self.params.get("phase"), lambda: None)()
        logits = net(self.x, True if phase is None else phase)
        loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels=self.labels, logits=logits))
        self.loss = tf.add_n([loss, *v1.get_collection(v1.GraphKeys.REGULARIZATION_LOSSES)])
        optimizer = OPTIMIZERS[self.params.get("optimizer")](self.params["lr"])
        if slim_train_op:
            self.train_op = tf1.contrib.slim.learning.create_train_op(self.loss, optimizer)
        else:
            with tf.control_dependencies(updates()):
                self.train_op = optimizer.minimize(self.loss, global_step=tf1.train.get_or_create_global_step())
        self.phase = phase
        self.logits = net(self.x, False, True) if phase is None else logits

    def step(self, session, x, labels):
        if self.keras_model:
            return self.keras_model.train_on_batch(x, labels)
        loss, _ = session.run([self.loss, self.train_op], self.fed(x, True) | {self.labels: labels})
        session.run(self.after_step)
        return loss

    def infer(self, session, x):
        return self.keras_model.predict(x) if self.keras_model else session.run(self.logits, self.fed(x, False))

    def fed(self, x, training):
        return {self.x: x} if self.phase is None else {self.x: x, self.phase: training}


@pytest.mark.parametrize("case", ours("train"), ids=goldens.name)
@pytest.mark.filterwarnings("ignore:`Model.state_updates`")  # tf_keras, of its own call
def test_training(case, session):
    arrays, meta = goldens.arrays(case), case["meta"]
    x = v1.placeholder(tf.float32, [None, *arrays["data_x"].shape[1:]], "x")
    labels = v1.placeholder(tf.int64, [None], "labels")
    trainer = Trainer(x=x, labels=labels, params=case["params"], after_step=[], phase=None, keras_model=None)
    function(case["source"])(trainer, case["params"])
    assert goldens.update_ops(session.graph) == meta["update_ops"]
    session.run(v1.global_variables_initializer())
    load(session, "state_init/", arrays)
    losses = []
    for step, index in enumerate(arrays["batch_index"]):
        losses.append(trainer.step(session, arrays["data_x"][index], arrays["data_labels"][index]))
        if step in meta["states_kept_after_steps"]:
            check_state(case, session, f"state_{step}/")
    goldens.check(case, np.array(losses), "losses")
    goldens.check(case, trainer.infer(session, arrays["x_test"]), "y_infer")


BUILDS_HERE = {"error_layers_fused_nchw_cpu": "axis=1 works on the CPU"}


@pytest.mark.parametrize("case", [case for case in ours("error") if case["id"] not in BUILDS_HERE], ids=goldens.name)
def test_errors(case, session):
    def run(fetch, feed):
        session.run(v1.global_variables_initializer())
        return session.run(fetch, feed)

    with pytest.raises(Exception) as caught:  # noqa: PT011 - the type is compared by name
        exec(case["source"], {"tf": tf1, "np": np, "run": run})
    assert case["meta"]["error_type"] in {kind.__name__ for kind in type(caught.value).__mro__}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_checkpoints_of_1_15_restore(name, session):
    folder = GOLDENS / "checkpoints" / name
    meta = json.loads((folder / "meta.json").read_text())
    with np.load(folder / "io.npz") as file:
        arrays = dict(file)
    x = v1.placeholder(tf.float32, [None, *arrays["x"].shape[1:]], "x")
    training = v1.placeholder_with_default(False, [], "is_training")
    logits = function(meta["net_source"])(x, training, meta["params"])
    assert goldens.update_ops(session.graph) == meta["graph"]["update_ops"]
    variables = [variable for variable in v1.global_variables() if variable.op.name in meta["saved_variables"]]
    session.run(v1.global_variables_initializer())
    v1.train.Saver(variables).restore(session, str(folder / meta["checkpoint_prefix"]))
    expected = arrays["y_infer_initial_statistics" if name.startswith("h1") else "y_infer"]
    np.testing.assert_allclose(session.run(logits, {x: arrays["x"]}), expected, rtol=1e-4, atol=1e-5)
    batch = session.run(logits, {x: arrays["x"], training: True})
    np.testing.assert_allclose(batch, arrays["y_batch_statistics"], rtol=1e-4, atol=1e-5)
