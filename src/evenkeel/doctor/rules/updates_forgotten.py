# SPDX-License-Identifier: Apache-2.0
"""A program that trains, and never runs the updates of its moving statistics.

What it looks for
    A program for TensorFlow 1 with batch normalization in training (tf.layers, tf.contrib, slim; layers of Keras in a
    session) and an optimizer, in which nobody runs the operations of tf.GraphKeys.UPDATE_OPS (of Keras:
    `model.updates`): they are not mentioned, or fetched and not used.
Why it matters
    The moving statistics stay at 0 and 1, so inference does not normalize at all, though training looks healthy. It is
    the mistake of most programs of that time (tensorflow#1122, tensorflow#11965).
What to do
    Build the train operation below `with tf.control_dependencies(tf.get_collection(tf.GraphKeys.UPDATE_OPS)):`, after
    the network. A layer of tf.contrib may also be given `updates_collections=None`. With Keras the operations are
    `model.updates`. What was trained already is repaired by `evenkeel recalibrate`.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from evenkeel.doctor import programs
from evenkeel.doctor.evidence import Source
from evenkeel.doctor.finding import Finding
from evenkeel.doctor.programs import Normalization, Program

ID = "EK601"
SEVERITY = "error"

_BUILD = """
import tensorflow as tf
x, phase = tf.placeholder(tf.float32, [None, 4]), tf.placeholder(tf.bool)
y = tf.layers.batch_normalization(tf.layers.dense(x, 3), training=phase)
loss = tf.reduce_mean(y ** 2)
"""
_RUN = """
with tf.Session() as sess:
    sess.run(tf.global_variables_initializer())
    sess.run(train, {x: [[1.0, 2.0, 3.0, 4.0]], phase: True})
"""
_KERAS = """
import tensorflow as tf
model = tf.keras.Sequential([tf.keras.layers.Dense(3, input_shape=(4,)), tf.keras.layers.BatchNormalization()])
loss = tf.reduce_mean(model.output ** 2)
{}
with tf.Session() as sess:
    sess.run(train, {{model.input: [[1.0, 2.0, 3.0, 4.0]], tf.keras.backend.learning_phase(): 1}})
"""
SICK = [
    Source.of(_BUILD + "train = tf.train.AdamOptimizer(0.01).minimize(loss)" + _RUN),
    Source.of(
        _BUILD + "updates = tf.get_collection(tf.GraphKeys.UPDATE_OPS)\n"
        "train = tf.train.AdamOptimizer(0.01).minimize(loss)" + _RUN
    ),
    Source.of(
        "import tensorflow as tf\nimport tf_slim as slim\n"
        "def network(x):\n"
        "    with slim.arg_scope([slim.conv2d], normalizer_fn=slim.batch_norm, normalizer_params={'decay': 0.9}):\n"
        "        return slim.conv2d(x, 8, 3)\n"
        "optimizer = tf.compat.v1.train.MomentumOptimizer(0.1, 0.9)\n"
        "train = optimizer.apply_gradients(optimizer.compute_gradients(tf.nn.l2_loss(network(x))))\n"
    ),
    Source.of(
        _BUILD + "updates = tf.get_collection(tf.GraphKeys.UPDATE_OPS)\n"
        "train = tf.train.AdamOptimizer(0.01).minimize(loss)\nall_updates = tf.group(*updates)" + _RUN
    ),
    Source.of(_KERAS.format("train = tf.train.AdamOptimizer().minimize(loss)")),
    Source.of(
        _KERAS.format(
            "with tf.control_dependencies(tf.get_collection(tf.GraphKeys.UPDATE_OPS)):\n"
            "    train = tf.train.AdamOptimizer().minimize(loss)"
        )
    ),
    Source.of(
        "import tensorflow as tf\nslim = tf.contrib.slim\n"
        "parameters = {'is_training': True, 'updates_collections': tf.GraphKeys.UPDATE_OPS}\n"
        "y = slim.fully_connected(x, 3, normalizer_fn=slim.batch_norm, normalizer_params=parameters)\n"
        "train = tf.train.AdamOptimizer().minimize(tf.nn.l2_loss(y))\n"
    ),
]
HEALTHY = [
    Source.of(
        _BUILD + "updates = tf.group(*tf.get_collection(tf.GraphKeys.UPDATE_OPS))\n"
        "train = tf.group(tf.train.AdamOptimizer(0.01).minimize(loss), updates)" + _RUN
    ),
    Source.of(
        _BUILD + "with tf.control_dependencies(tf.get_collection(tf.GraphKeys.UPDATE_OPS)):\n"
        "    train = tf.train.AdamOptimizer(0.01).minimize(loss)" + _RUN
    ),
    Source.of(
        _BUILD + "train = tf.train.AdamOptimizer(0.01).minimize(loss)\n"
        "train = tf.group([train, tf.get_collection('update_ops')])" + _RUN
    ),
    Source.of(
        "import tensorflow as tf\nslim = tf.contrib.slim\n"
        "y = slim.batch_norm(slim.fully_connected(x, 3), is_training=True)\n"
        "optimizer = tf.train.AdamOptimizer()\n"
        "train = slim.learning.create_train_op(tf.nn.l2_loss(y), optimizer)\nother = optimizer.minimize(loss)\n"
    ),
    Source.of(
        "import tensorflow as tf\n"
        "parameters = dict(updates_collections=None, is_training=True)\n"
        "y = tf.contrib.layers.fully_connected(x, 3, normalizer_fn=tf.contrib.layers.batch_norm,\n"
        "                                      normalizer_params=parameters)\n"
        "train = tf.train.AdamOptimizer().minimize(tf.nn.l2_loss(y))\n"
    ),
    Source.of(
        _KERAS.format(
            "with tf.control_dependencies(model.updates):\n    train = tf.train.AdamOptimizer().minimize(loss)"
        )
    ),
    # The backbone is frozen on purpose.
    Source.of(
        "import tensorflow as tf\n"
        "y = tf.layers.dense(tf.layers.batch_normalization(x, training=False), 3)\n"
        "tf.train.init_from_checkpoint('backbone', {'/': '/'})\n"
        "train = tf.train.AdamOptimizer().minimize(tf.nn.l2_loss(y))\n"
    ),
]

# Whoever uses one of these runs the updates, or needs not.
_RUNNERS = {"create_train_op", "optimize_loss", "run_update_ops", "create_estimator_spec", "get_updates_for"}
_EAGER = {"GradientTape", "enable_eager_execution", "enable_v2_behavior"}
_SESSIONS = [f"tensorflow.{name}" for name in ("Session", "InteractiveSession", "estimator.EstimatorSpec")]
_SESSIONS += ["tensorflow.train.MonitoredTrainingSession", "tensorflow.train.Supervisor", "keras.backend.get_session"]


def check(source: Source) -> Iterator[Finding]:
    program = programs.of(source)
    steps = program.methods("minimize", "apply_gradients")
    if not steps or program.words & (_RUNNERS | _EAGER):
        return
    collected = [item for item in program.normalizations if _collects(program, item)]
    of_keras = [item for item in program.normalizations if item.family == "keras"]
    if collected and not any(_runs(program, mention) for mention in _mentions(program)):
        yield program.finding(
            ID,
            steps[0],
            f"trains without the updates of the batch normalization of line {collected[0].call.lineno}",
            "with tf.control_dependencies(tf.get_collection(tf.GraphKeys.UPDATE_OPS)): optimizer.minimize(loss)",
        )
    elif of_keras and not collected and _in_session(program):
        yield program.finding(
            ID,
            steps[0],
            f"trains in a session without model.updates, for the batch normalization of line {of_keras[0].call.lineno}",
            "with tf.control_dependencies(model.updates): train = optimizer.minimize(loss)",
        )


def _collects(program: Program, item: Normalization) -> bool:
    """Its updates go to UPDATE_OPS, and training would make some."""
    if item.family not in ("layers", "slim") or (item.open and item.family == "slim"):
        return False
    collections = item.arguments.get("updates_collections", [])
    return program.phase(item) != {False} and all(_names_collection(program, value) for value in collections)


def _names_collection(program: Program, node: ast.AST) -> bool:
    if isinstance(node, ast.Name | ast.Attribute) and "tensorflow.GraphKeys.UPDATE_OPS" in program.names(node):
        return True
    return isinstance(node, ast.Constant) and node.value == "update_ops"


def _mentions(program: Program) -> Iterator[ast.AST]:
    """Where the collection is named, but for what is put into it."""
    for node in program.nodes:
        above = next(program.above(node), None)
        if isinstance(above, ast.keyword) and above.arg == "updates_collections":
            continue
        if isinstance(above, ast.Dict) and any(
            value is node and isinstance(key, ast.Constant) and key.value == "updates_collections"
            for key, value in zip(above.keys, above.values, strict=True)
        ):
            continue
        if isinstance(above, ast.Call) and programs.last(above.func) == "add_to_collection":
            continue
        # GraphKeys may come from elsewhere: whoever names it so is believed.
        if _names_collection(program, node) or (isinstance(node, ast.Attribute) and node.attr == "UPDATE_OPS"):
            yield node


def _runs(program: Program, mention: ast.AST) -> bool:
    """It is fetched and used; or used in a way that cannot be followed."""
    fetch = next(program.above(mention), None)
    if not isinstance(fetch, ast.Call) or programs.last(fetch.func) != "get_collection":
        return True
    match next(program.above(fetch), None):
        case ast.Expr():
            return False
        case ast.Assign(targets=[ast.Name(id=name)]):
            used = [node for node in program.nodes if isinstance(node, ast.Name) and node.id == name]
            return any(isinstance(node.ctx, ast.Load) and _acts(program, node) for node in used)
    return _acts(program, fetch)


def _acts(program: Program, operations: ast.AST) -> bool:
    """It is no group left alone, and no `with tf.control_dependencies(operations):` below which nothing is made."""
    above = [*program.above(operations), None, None, None, None]
    if isinstance(above[0], ast.Starred):
        del above[0]
    call, item, block, *_ = above
    if isinstance(call, ast.Call) and programs.last(call.func) == "group" and isinstance(item, ast.Assign):
        names = {target.id for target in item.targets if isinstance(target, ast.Name)}
        loads = (node for node in program.nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load))
        return len(names) < len(item.targets) or any(node.id in names for node in loads)
    if isinstance(call, ast.Call) and isinstance(item, ast.withitem) and isinstance(block, ast.With):
        return any(isinstance(node, ast.Call | ast.BinOp) for node in programs.inside(block.body))
    return True


def _in_session(program: Program) -> bool:
    if program.words & {"updates", "fit", "fit_generator", "train_on_batch", "model_to_estimator"}:
        return False
    phase = "learning_phase" in program.words or any(
        keyword.arg == "training" and program.constants(keyword.value) != {False}
        for call in program.calls
        for keyword in call.keywords
    )
    return phase and bool(program.calls_to(*_SESSIONS))
