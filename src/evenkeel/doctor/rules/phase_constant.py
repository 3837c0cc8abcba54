# SPDX-License-Identifier: Apache-2.0
"""A program in which batch normalization has the same phase always.

What it looks for
    Batch normalization of tf.layers, tf.contrib, Keras or Flax that is told it is training (or is by default, as in
    tf.contrib) in every model of a program that also evaluates, predicts or exports; and tf.layers and tf.contrib
    without training phase in a program that trains.
Why it matters
    With training always, predictions depend on the other rows of their batch; with inference always, nothing is
    normalized and the statistics stay at 0 and 1.
What to do
    Give it a phase: a placeholder that is fed, `mode == tf.estimator.ModeKeys.TRAIN`, or an argument of the function
    that builds the model, which is called once for each phase.
"""

from __future__ import annotations

import ast
import itertools
from collections.abc import Iterator

from evenkeel.doctor import programs
from evenkeel.doctor.evidence import Source
from evenkeel.doctor.finding import Finding
from evenkeel.doctor.programs import PHASES, Normalization, Program

ID = "EK603"
SEVERITY = "error"

_ESTIMATOR = """
import tensorflow as tf
def model_fn(features, labels, mode):
    y = tf.layers.batch_normalization(features["x"], training={})
    loss = tf.nn.l2_loss(y)
    with tf.control_dependencies(tf.get_collection(tf.GraphKeys.UPDATE_OPS)):
        train = tf.train.AdamOptimizer().minimize(loss, tf.train.get_global_step())
    return tf.estimator.EstimatorSpec(mode, predictions=y, loss=loss, train_op=train)
estimator = tf.estimator.Estimator(model_fn)
estimator.train(train_input)
estimator.evaluate(test_input)
"""
_MNIST = """
import tensorflow as tf
def network(x, phase=True):
    return tf.contrib.layers.batch_norm(tf.contrib.layers.fully_connected(x, 10), {})
logits = network(x)
with tf.control_dependencies(tf.get_collection(tf.GraphKeys.UPDATE_OPS)):
    train = tf.train.AdamOptimizer().minimize(loss)
with tf.Session() as sess:
    sess.run(train, feed_dict={{x: mnist.train.images}})
    {}
"""
_PLAIN = """
import tensorflow as tf
y = tf.layers.batch_normalization(tf.layers.dense(x, 3){})
with tf.control_dependencies(tf.get_collection(tf.GraphKeys.UPDATE_OPS)):
    train = tf.train.GradientDescentOptimizer(0.1).minimize(tf.nn.l2_loss(y))
{}
"""
_KERAS = """
import keras
inputs = keras.Input((4,))
model = keras.Model(inputs, keras.layers.BatchNormalization()(keras.layers.Dense(3)(inputs){}))
model.compile("adam", "mse")
model.fit(x, y)
model.predict(x)
"""
SICK = [
    Source.of(_ESTIMATOR.format("True")),
    Source.of(_MNIST.format("scale=True", "print(sess.run(accuracy, feed_dict={x: mnist.test.images}))")),
    Source.of(_MNIST.format("is_training=phase", "print(sess.run(accuracy, feed_dict={x: mnist.test.images}))")),
    Source.of(_PLAIN.format("", "")),
    Source.of(_PLAIN.format(", training=False", "")),
    Source.of(_KERAS.format(", training=True")),
]
HEALTHY = [
    Source.of(_ESTIMATOR.format("mode == tf.estimator.ModeKeys.TRAIN")),
    # It trains and goes on training; others evaluate.
    Source.of(_MNIST.format("scale=True", "tf.train.Saver().restore(sess, 'checkpoint')")),
    Source.of(
        _MNIST.format("is_training=phase", "test = network(x, phase=False); sess.run(test, {x: mnist.test.images})")
    ),
    Source.of(_PLAIN.format(", training=phase", "")),
    # A pretrained backbone that is frozen on purpose.
    Source.of(_PLAIN.format(", training=False", "tf.train.init_from_checkpoint('backbone', {'/': '/'})")),
    Source.of(_KERAS.format("")),
]

_INFERS = {"evaluate", "predict", "train_and_evaluate", "export_savedmodel", "export_saved_model", "simple_save"}
_INFERS |= {"convert_variables_to_constants", "add_meta_graph_and_variables", "predict_generator", "from_saved_model"}
_RESTORES = {"init_from_checkpoint", "assign_from_checkpoint", "assign_from_checkpoint_fn", "WarmStartSettings"}
_LOADS = {"restore", "load_weights", "load_model", "warm_start_from"}


def check(source: Source) -> Iterator[Finding]:
    program = programs.of(source)
    for families in (("layers", "slim"), ("keras",), ("flax",)):
        items = [item for item in program.normalizations if item.family in families]
        phases = set(itertools.chain.from_iterable(map(program.phase, items)))
        if phases == {True} and (evidence := _evaluates(program)):
            yield program.finding(
                ID,
                _place(items[0]),
                f"always in training, also in {evidence}",
                f"give it the phase: {PHASES.get(items[0].family, ('training',))[0]}=...",
            )
        elif phases == {False} and families == ("layers", "slim"):
            yield from _never_trains(program, items)


def _place(item: Normalization) -> ast.expr:
    """The argument that says so, or the call that leaves it out."""
    return item.arguments.get(PHASES.get(item.family, ("training",))[0], [item.call])[0]


def _evaluates(program: Program) -> str:
    """What shows that the program does more than train: a name of it, with its line."""
    for call in program.calls:
        name = programs.last(call.func)
        if name in _INFERS and not isinstance(call.func, ast.Name):
            return f"`{name}` of line {call.lineno}"
        if any(keyword.arg == "validation_data" for keyword in call.keywords):
            return f"the validation of line {call.lineno}"
        if name in ("run", "eval") and isinstance(call.func, ast.Attribute):
            for word in itertools.chain.from_iterable(
                map(programs.names_in, call.args + [item.value for item in call.keywords])
            ):
                if programs.is_evaluation(word):
                    return f"the run with `{word}` of line {call.lineno}"
        if name == "restore" and not program.methods("minimize", "apply_gradients"):
            return f"`restore` of line {call.lineno}"
    return ""


def _never_trains(program: Program, items: list[Normalization]) -> Iterator[Finding]:
    steps = program.methods("minimize", "apply_gradients")
    frozen = any(program.constants(value) == {False} for item in items for value in item.arguments.get("trainable", []))
    given = [item for item in items if program.phases(item)[0]]
    if not steps or frozen or program.words & (_RESTORES | _LOADS if given else _RESTORES):
        return
    seen = "training=False" if given else "no training="
    yield program.finding(
        ID,
        _place(items[0]),
        f"{seen} in a program that trains it (line {steps[0].lineno})",
        "give it the phase: training=phase, is_training=phase for tf.contrib",
    )
