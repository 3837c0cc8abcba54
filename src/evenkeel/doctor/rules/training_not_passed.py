# SPDX-License-Identifier: Apache-2.0
"""A training loop that calls a Keras model in inference.

What it looks for
    A Keras model with batch normalization that is trained by hand and called without `training=True`: below a
    `tf.GradientTape` whose gradients are taken for its weights, in a loop of PyTorch with `backward`, or as
    `stateless_call` in a function that JAX differentiates; and a `stateless_call` whose new statistics are dropped.
Why it matters
    Keras takes the moving statistics unless told otherwise, so they are used and never updated, at 0 and 1. With the
    backend torch, `model.train()` does not change that.
What to do
    `model(x, training=True)` in the training step; `y, non_trainable = model.stateless_call(..., training=True)`, and
    hand `non_trainable` on to the next step.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator

from evenkeel.doctor import programs
from evenkeel.doctor.evidence import Source
from evenkeel.doctor.finding import Finding
from evenkeel.doctor.programs import Function, Program, With

ID = "EK605"
SEVERITY = "error"

_TAPE = """
import tensorflow as tf
def make_model():
    inputs = tf.keras.Input((4,))
    x = tf.keras.layers.Dense(3)(inputs)
    return tf.keras.Model(inputs, tf.keras.layers.BatchNormalization()(x))
model, teacher = make_model(), make_model()
optimizer = tf.keras.optimizers.Adam()
@tf.function
def step(x, y):
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean((model({}) - teacher(x)) ** 2)
    optimizer.apply_gradients(zip(tape.gradient(loss, model.trainable_variables), model.trainable_variables))
"""
_CUSTOM = """
import keras, tensorflow as tf
class Custom(keras.Model):
    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            loss = self.compute_loss(y=y, y_pred=self({}))
        self.optimizer.apply(tape.gradient(loss, self.trainable_weights), self.trainable_weights)
        return {{"loss": loss}}
inputs = keras.Input((4,))
model = Custom(inputs, keras.layers.BatchNormalization()(keras.layers.Dense(3)(inputs)))
"""
_JAX = """
import jax, keras
model = keras.Sequential([keras.layers.Dense(3), keras.layers.BatchNormalization()])
def compute(trainable, non_trainable, x, y):
    {}
    return loss(y, predicted), {}
gradient = jax.value_and_grad(compute, has_aux=True)
def evaluate(trainable, non_trainable, x):
    return model.stateless_call(trainable, non_trainable, x)[0]
"""
_TORCH = """
import os
os.environ["KERAS_BACKEND"] = "torch"
import keras, torch
model = keras.Sequential([keras.layers.Dense(3), keras.layers.BatchNormalization()])
for x, y in loader:
    loss = loss_fn(model({}), y)
    loss.backward()
    optimizer.step()
with torch.no_grad():
    model(test)
"""
SICK = [
    Source.of(_TAPE.format("x")),
    Source.of(_TAPE.format("x, training=False")),
    Source.of(_CUSTOM.format("x")),
    Source.of(_JAX.format("predicted, new = model.stateless_call(trainable, non_trainable, x)", "new")),
    Source.of(_JAX.format("predicted, _ = model.stateless_call(trainable, non_trainable, x, training=True)", "None")),
    Source.of(_TORCH.format("x")),
]
HEALTHY = [
    Source.of(_TAPE.format("x, training=True")),
    # The gradient for the input, of a model that is not trained here.
    Source.of(_TAPE.format("x").replace("model.trainable_variables", "x")),
    Source.of(_CUSTOM.format("x, training=True")),
    Source.of(_JAX.format("predicted, new = model.stateless_call(trainable, non_trainable, x, training=True)", "new")),
    Source.of(_TORCH.format("x, training=True")),
    # It trains unless told otherwise.
    Source.of(
        "import tensorflow as tf\nclass Net(tf.keras.Model):\n"
        "    def __init__(self):\n        super().__init__()\n        self.bn = tf.keras.layers.BatchNormalization()\n"
        "    def call(self, x, training=True):\n        return self.bn(x, training=training)\n"
        "model, optimizer = Net(), tf.keras.optimizers.SGD()\n"
        "with tf.GradientTape() as tape:\n    loss = tf.nn.l2_loss(model(x))\n"
        "optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)\n"
    ),
    # It rests while another is trained.
    Source.of(
        _TAPE.format("x, training=True")
        + "    with tf.GradientTape() as tape:\n        loss = model(teacher(x, training=True))\n"
        "    optimizer.apply(tape.gradient(loss, teacher.trainable_variables), teacher.trainable_variables)\n"
    ),
    # A pretrained part that is frozen on purpose.
    Source.of(
        _TAPE.format("x")
        .replace("tf.keras.layers.Dense(3)(inputs)", "tf.keras.applications.ResNet50()(inputs, training=False)")
        .replace("BatchNormalization", "Dense")
    ),
    # No batch normalization, so the phase does not matter.
    Source.of(_TAPE.format("x").replace("BatchNormalization", "LayerNormalization")),
]

_REMEDY = "model(x, training=True)"
# With these, training=False may be meant: statistics of the pretraining are kept.
_PRETRAINED = {"applications", "load_model", "load_weights", "restore", "from_preset"}
_TRAINED = {"trainable_variables", "trainable_weights", "variables", "weights"}


def check(source: Source) -> Iterator[Finding]:
    program = programs.of(source)
    if program.words & {"set_learning_phase", "learning_phase"}:
        return
    yield from _tapes(program)
    yield from _stateless(program)
    yield from _loops(program)


def _tapes(program: Program) -> Iterator[Finding]:
    blocks = {node: _tape_names(program, node) for node in program.nodes if isinstance(node, With)}
    gradients: dict[ast.AST, list[ast.Call]] = {}
    ends: dict[str, int] = {}
    for block in sorted(filter(blocks.get, blocks), key=lambda block: block.lineno, reverse=True):
        # Up to where a tape of the same name begins, its gradients are those of this one.
        end = min(ends.get(name, sys.maxsize) for name in blocks[block])
        ends |= dict.fromkeys(blocks[block], block.lineno)
        function = program.function(block)
        if function not in gradients:
            gradients[function] = _below(function, "gradient", "minimize")
        own = [call for call in gradients[function] if block.lineno < call.lineno < end]
        trained = [model for call in own for model in _weights(program, call)]
        for call in sorted(_calls(block), key=lambda call: (call.lineno, call.col_offset)):
            if _infers(program, call) and any(_same(program, call.func, model) for model in trained):
                yield program.finding(ID, call, f"{_shown(call)} in a training step", _REMEDY)


def _tape_names(program: Program, block: ast.With | ast.AsyncWith) -> set[str]:
    return {
        programs.written(item.optional_vars)
        for item in block.items
        if item.optional_vars is not None and _is_tape(program, item)
    }


def _is_tape(program: Program, item: ast.withitem) -> bool:
    call = item.context_expr
    return isinstance(call, ast.Call) and "tensorflow.GradientTape" in program.names(call.func)


def _calls(node: ast.AST) -> list[ast.Call]:
    return [item for item in ast.walk(node) if isinstance(item, ast.Call)]


def _below(node: ast.AST, *methods: str) -> list[ast.Call]:
    return [call for call in _calls(node) if isinstance(call.func, ast.Attribute) and call.func.attr in methods]


def _weights(program: Program, gradient: ast.Call) -> Iterator[ast.expr]:
    """The models whose weights a call is given."""
    for argument in [*gradient.args[1:], *(keyword.value for keyword in gradient.keywords)]:
        for value in program.values(argument):
            if isinstance(value, ast.Attribute) and value.attr in _TRAINED:
                yield value.value


def _same(program: Program, one: ast.expr, other: ast.expr) -> bool:
    if programs.written(one) and programs.written(one) == programs.written(other):
        return True
    return not set(program.models(one, "keras")).isdisjoint(program.models(other, "keras"))


def _infers(program: Program, call: ast.Call) -> bool:
    """It calls a Keras model with batch normalization, and does not say that it trains."""
    if program.has_spread(call) or isinstance(call.func, ast.Call):
        return False
    phase = program.argument(call, "training", 1)
    if phase is not None and (program.constants(phase) != {False} or program.words & _PRETRAINED):
        return False
    made = _instances(program, call) or program.models(call.func, "keras")
    return bool(made) and not _has_frozen_part(program) and not any(_trains_itself(program, item) for item in made)


def _has_frozen_part(program: Program) -> bool:
    """A pretrained model is called with training=False inside a model: its phase is that, whatever the outer one's."""
    return any(
        program.constants(keyword.value) == {False} and any(map(program.is_ready, program.models(call.func, "keras")))
        for call in program.calls
        for keyword in call.keywords
        if keyword.arg == "training"
    )


def _instances(program: Program, call: ast.Call) -> list[ast.Call]:
    """What makes the objects that `self` is, in a method."""
    owner = program.around(call, ast.ClassDef)
    if not (isinstance(call.func, ast.Name) and call.func.id == "self" and isinstance(owner, ast.ClassDef)):
        return []
    made = [item for item in program.calls if owner in program.classes(item.func)]
    return [item for item in made if program.models(item, "keras")]


def _trains_itself(program: Program, made: ast.Call) -> bool:
    """The class of the model has a phase of its own: a default, or one that it gives its layers."""
    for owner in program.classes(made.func):
        for item in owner.body:
            if isinstance(item, Function) and item.name in ("call", "__call__"):
                names = [parameter.arg for parameter in (*item.args.args, *item.args.kwonlyargs)]
                defaults = [*item.args.defaults, *filter(None, item.args.kw_defaults)]
                if "training" in names and any(True in program.constants(value) for value in defaults):
                    return True
                given = [keyword for call in _calls(item) for keyword in call.keywords if keyword.arg == "training"]
                if any(program.constants(keyword.value) == {True} for keyword in given):
                    return True
    return False


def _shown(call: ast.Call) -> str:
    phase = "training=False" if any(keyword.arg == "training" for keyword in call.keywords) else "no training=True"
    return f"{programs.written(call.func) or 'the model'} has {phase}"


def _stateless(program: Program) -> Iterator[Finding]:
    derived = {item for call in program.calls_to("jax.grad", "jax.value_and_grad") for item in call.args[:1]}
    inside = set(program.reached(*derived)) if derived else set()
    for call in program.methods("stateless_call"):
        if call not in inside or program.has_spread(call):
            continue
        if not program.models(programs.receiver(call), "keras"):
            continue
        phase = program.argument(call, "training")
        if phase is None or program.constants(phase) == {False}:
            yield program.finding(
                ID, call, "stateless_call without training=True, in a function that is differentiated",
                "y, non_trainable = model.stateless_call(trainable, non_trainable, x, training=True)",
            )  # fmt: skip
        elif _drops(program, call):
            yield program.finding(
                ID, call, "the new statistics that stateless_call returns are dropped",
                "y, non_trainable = model.stateless_call(...), and return non_trainable too",
            )  # fmt: skip


def _drops(program: Program, call: ast.Call) -> bool:
    match next(program.above(call), None):
        case ast.Subscript(slice=ast.Constant(value=0)):
            return True
        case ast.Assign(targets=[ast.Tuple(elts=[_, ast.Name(id=name)])]):
            function = program.function(call)
            used = [node for node in ast.walk(function) if isinstance(node, ast.Name) and node.id == name]
            return not any(isinstance(node.ctx, ast.Load) for node in used)
    return False


def _loops(program: Program) -> Iterator[Finding]:
    if "torch" not in program.modules:
        return
    for call in program.calls:
        around = program.around(call, ast.For, ast.While)
        function = program.function(call)
        if around is None or not _below(around, "backward") or program.around(call, ast.With) is not None:
            continue
        if _infers(program, call) and not any(_trains(program, item, call) for item in _calls(function)):
            yield program.finding(ID, call, f"{_shown(call)} in a training step of PyTorch", _REMEDY)


def _trains(program: Program, other: ast.Call, call: ast.Call) -> bool:
    """The same model is told elsewhere that it trains."""
    return programs.written(other.func) == programs.written(call.func) and any(
        keyword.arg == "training" and program.constants(keyword.value) != {False} for keyword in other.keywords
    ) and other is not call  # fmt: skip
