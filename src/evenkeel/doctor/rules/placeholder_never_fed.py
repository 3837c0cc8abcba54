# SPDX-License-Identifier: Apache-2.0
"""A placeholder for the phase that nobody feeds.

What it looks for
    A boolean `tf.placeholder` that decides on the phase of batch normalization and is a key of no `feed_dict` of the
    program, neither as a variable nor by its name.
Why it matters
    Every run that needs the normalization fails with "You must feed a value for placeholder tensor". Where none is
    needed, the normalization is not in the model that runs.
What to do
    Feed it, `{phase: True}` in training and `{phase: False}` elsewhere, or give it a default:
    `tf.placeholder_with_default(False, [], name="phase")`.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from evenkeel.doctor import programs
from evenkeel.doctor.evidence import Source
from evenkeel.doctor.finding import Finding
from evenkeel.doctor.programs import Program

ID = "EK604"
SEVERITY = "error"

_PROGRAM = """
import tensorflow as tf
x = tf.placeholder(tf.float32, [None, 4])
phase = {}
def network(x, train):
    return tf.layers.batch_normalization(tf.layers.dense(x, 3), training=train)
y = network(x, phase)
with tf.control_dependencies(tf.get_collection(tf.GraphKeys.UPDATE_OPS)):
    train = tf.train.AdamOptimizer().minimize(tf.nn.l2_loss(y))
with tf.Session() as sess:
    {}
"""
_CLASS = """
import tensorflow as tf
class Network:
    def __init__(self):
        self.x = tf.placeholder(tf.float32, [None, 4])
        self.is_training = tf.placeholder(tf.bool, name="is_training")
        self.y = tf.contrib.layers.batch_norm(self.x, is_training=self.is_training)
        self.train_op = tf.contrib.training.create_train_op(tf.nn.l2_loss(self.y), tf.train.AdamOptimizer())
network = Network()
with tf.Session() as sess:
    {}
"""
SICK = [
    Source.of(_PROGRAM.format("tf.placeholder(tf.bool, name='phase')", "sess.run(train, feed_dict={x: batch})")),
    Source.of(_PROGRAM.format("tf.placeholder(tf.bool)", "feed = {x: batch}\n    sess.run(train, feed_dict=feed)")),
    Source.of(_CLASS.format("sess.run(network.train_op, {network.x: batch})")),
]
HEALTHY = [
    Source.of(_PROGRAM.format("tf.placeholder(tf.bool)", "sess.run(train, feed_dict={x: batch, phase: True})")),
    Source.of(_PROGRAM.format("tf.placeholder(tf.bool)", "feed = {x: batch}; feed[phase] = 1; sess.run(y, feed)")),
    Source.of(_PROGRAM.format("tf.placeholder(tf.bool, name='phase')", "sess.run(train, {x: batch, 'phase:0': 1})")),
    Source.of(_PROGRAM.format("tf.placeholder_with_default(False, [])", "sess.run(train, feed_dict={x: batch})")),
    Source.of(_PROGRAM.format("tf.placeholder(tf.bool)", "sess.run(train, dict(zip([x, phase], [batch, True])))")),
    Source.of(_CLASS.format("sess.run(network.train_op, {network.x: batch, network.is_training: True})")),
]

_LIBRARIES = ("tensorflow.", "slim.", "keras.", "tflearn.")


def check(source: Source) -> Iterator[Finding]:
    program = programs.of(source)
    if not program.methods("run") or program.words & {"locals", "globals", "vars", "exec"}:
        return
    for call in program.calls_to("tensorflow.placeholder"):
        kind = program.argument(call, "dtype", 0)
        if kind is None or not (program.names(kind) & {"tensorflow.bool"} or program.constants(kind) == {"bool"}):
            continue
        if _decides(program, call) and not _by_name(program, call) and not _escapes(program, call):
            yield program.finding(
                ID, call, "no feed has this placeholder for the phase", "sess.run(train_op, {x: batch, phase: True})"
            )


def _decides(program: Program, placeholder: ast.Call) -> bool:
    given = [value for item in program.normalizations for value in program.phases(item)[0]]
    return any(placeholder in program.values(value) for value in given)


def _by_name(program: Program, placeholder: ast.Call) -> bool:
    name = program.argument(placeholder, "name", 2)
    found = program.constants(name) if name is not None else set()
    return any(not isinstance(item, str) or f"{item}:0" in word for item in found for word in program.words)


def _escapes(program: Program, placeholder: ast.Call) -> bool:
    """It goes where it may be fed: into a dictionary, a list, out of a function, to somebody unknown."""
    target: ast.expr
    match next(program.above(placeholder), None):
        case ast.Assign(targets=[ast.Name() | ast.Attribute() as target]):
            pass
        case ast.Tuple() as display if isinstance(assignment := next(program.above(display), None), ast.Assign):
            (targets, *more) = assignment.targets
            if more or not isinstance(targets, ast.Tuple) or len(targets.elts) != len(display.elts):
                return True
            target = targets.elts[display.elts.index(placeholder)]
        case _:
            return True
    owner = program.around(placeholder, ast.ClassDef)
    if isinstance(target, ast.Attribute) and (owner is None or not _made(program, owner)):
        return True  # who makes it may feed it, elsewhere
    attribute = target.attr if isinstance(target, ast.Attribute) else None
    for node in program.nodes:
        if isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Load):
            same = isinstance(node, ast.Attribute) and node.attr == attribute
            if (same or placeholder in program.values(node)) and not _stays(program, node):
                return True
    return False


def _made(program: Program, owner: ast.AST) -> bool:
    return any(owner in program.classes(call.func) for call in program.calls)


def _stays(program: Program, node: ast.expr) -> bool:
    """Wherever it goes from here, `Program.values` finds it again, or nobody can feed it there."""
    above = next(program.above(node), None)
    if isinstance(above, ast.keyword):
        above = next(program.above(above), None)
    match above:
        case ast.Compare() | ast.BoolOp() | ast.UnaryOp() | ast.If() | ast.IfExp() | ast.Expr():
            return True
        case ast.Assign(targets=[ast.Name()]):
            return True
        case ast.Call() if any(name.startswith(_LIBRARIES) for name in program.names(above.func)):
            return True
        case ast.Call() if node is not above.func:
            functions = program.defined(above.func)
            return bool(functions) and all(program.received(above, node, item) for item in functions)
    return False
