# SPDX-License-Identifier: Apache-2.0
"""A placeholder for the phase that nobody feeds, or that is False in every run.

What it looks for
    A boolean `tf.placeholder` that decides on the phase of batch normalization and is a key of no `feed_dict` of the
    program, neither as a variable nor by its name. In a program that trains, also one that every feed says is False,
    and one whose default is False and that nobody feeds.
Why it matters
    A run fails with "You must feed a value for placeholder tensor", or the model trains in its inference phase, with
    moving statistics that never move.
What to do
    Feed it, `{phase: True}` in training and `{phase: False}` elsewhere, or give it a default:
    `tf.placeholder_with_default(False, [], name="phase")`.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator

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
    Source.of(_PROGRAM.format("tf.placeholder(tf.bool)", "sess.run(train, {x: batch, phase: False})")),
    Source.of(_PROGRAM.format("tf.placeholder_with_default(False, [])", "sess.run(train, feed_dict={x: batch})")),
]
HEALTHY = [
    # It does not train.
    Source.of(
        _PROGRAM.format("tf.placeholder(tf.bool)", "sess.run(y, {x: batch, phase: False})").replace(
            "tf.train.AdamOptimizer().minimize(tf.nn.l2_loss(y))", "tf.identity(y)"
        )
    ),
    Source.of(_PROGRAM.format("tf.placeholder(tf.bool)", "for p in (0, 1): sess.run(train, {x: batch, phase: p})")),
    Source.of(_PROGRAM.format("tf.placeholder_with_default(False, [])", "sess.run(train, {x: batch, phase: True})")),
    Source.of(_PROGRAM.format("tf.placeholder_with_default(True, [])", "sess.run(train, feed_dict={x: batch})")),
    Source.of(_PROGRAM.format("tf.placeholder(tf.bool)", "sess.run(train, feed_dict={x: batch, phase: True})")),
    Source.of(_PROGRAM.format("tf.placeholder(tf.bool)", "feed = {x: batch}; feed[phase] = 1; sess.run(y, feed)")),
    Source.of(_PROGRAM.format("tf.placeholder(tf.bool, name='phase')", "sess.run(train, {x: batch, 'phase:0': 1})")),
    Source.of(_PROGRAM.format("tf.placeholder(tf.bool)", "sess.run(train, dict(zip([x, phase], [batch, True])))")),
    Source.of(_CLASS.format("sess.run(network.train_op, {network.x: batch, network.is_training: True})")),
]

_LIBRARIES = ("tensorflow.", "slim.", "keras.", "tflearn.")


def check(source: Source) -> Iterator[Finding]:
    program = programs.of(source)
    if not program.methods("run") or program.words & {"locals", "globals", "vars", "exec"}:
        return
    trains = bool(program.methods("minimize", "apply_gradients") or program.words & {"create_train_op"})
    for call in program.calls_to("tensorflow.placeholder"):
        kind = program.argument(call, "dtype", 0)
        if kind is None or not (program.names(kind) & {"tensorflow.bool"} or program.constants(kind) == {"bool"}):
            continue
        if not _escapes(program, call, _stays):
            yield from _found(program, call, "no feed has this placeholder for the phase")
        elif trains and not _escapes(program, call, _stays_or_is_false):
            yield from _found(program, call, "every feed says that this placeholder for the phase is False")
    for call in program.calls_to("tensorflow.placeholder_with_default") if trains else ():
        default = program.argument(call, "input", 0)
        if default is not None and program.constants(default) == {False} and not _escapes(program, call, _stays):
            yield from _found(program, call, "False by default, and no feed has this placeholder for the phase")


def _found(program: Program, call: ast.Call, seen: str) -> Iterator[Finding]:
    if _decides(program, call) and not _by_name(program, call):
        yield program.finding(ID, call, seen, "sess.run(train_op, {x: batch, phase: True})")


def _decides(program: Program, placeholder: ast.Call) -> bool:
    given = [value for item in program.normalizations for value in program.phases(item)[0]]
    return any(placeholder in program.values(value) for value in given)


def _by_name(program: Program, placeholder: ast.Call) -> bool:
    name = program.argument(placeholder, "name", 2)
    found = program.constants(name) if name is not None else set()
    return any(not isinstance(item, str) or f"{item}:0" in word for item in found for word in program.words)


def _escapes(program: Program, placeholder: ast.Call, stays: Callable[[Program, ast.expr], bool]) -> bool:
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
            if (same or placeholder in program.values(node)) and not stays(program, node):
                return True
    return False


def _made(program: Program, owner: ast.AST) -> bool:
    return any(owner in program.classes(call.func) for call in program.calls)


def _stays_or_is_false(program: Program, node: ast.expr) -> bool:
    above = next(program.above(node), None)
    if isinstance(above, ast.Dict) and node in above.keys:
        value = above.values[above.keys.index(node)]
        return isinstance(value, ast.Constant) and not value.value
    return _stays(program, node)


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
