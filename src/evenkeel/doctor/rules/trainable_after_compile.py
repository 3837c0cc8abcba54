# SPDX-License-Identifier: Apache-2.0
"""A Keras model whose layers are frozen or thawed after `compile`.

What it looks for
    `trainable` set between `compile` and `fit` of a Keras model with batch normalization, with no `compile` after it.
Why it matters
    Whether it counts depends on the backend: on TensorFlow the statistics go on moving, on torch they freeze at once,
    on JAX the next `fit` raises an error.
What to do
    Call `model.compile(...)` once more after `trainable` was set, before `fit`.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from evenkeel.doctor import programs
from evenkeel.doctor.evidence import Source
from evenkeel.doctor.finding import Finding
from evenkeel.doctor.programs import Program

ID = "EK609"
SEVERITY = "warning"

_PROGRAM = """
import keras
base = keras.applications.ResNet50(include_top=False, pooling="avg")
base.trainable = False
model = keras.Sequential([base, keras.layers.Dense(10)])
model.compile("adam", "mse")
model.fit(x, y)
{}
model.fit(x, y)
"""
SICK = [
    Source.of(_PROGRAM.format("base.trainable = True")),
    Source.of(_PROGRAM.format("for layer in base.layers[:-4]:\n    layer.trainable = False")),
    Source.of(_PROGRAM.format("model.get_layer('bn').trainable = False")),
]
HEALTHY = [
    Source.of(_PROGRAM.format("base.trainable = True\nmodel.compile('sgd', 'mse')")),
    Source.of(_PROGRAM.format("prepare(model)")),
    Source.of(_PROGRAM.format("base.trainable = True\ncompiled(model)")),
    # Another model, and no batch normalization.
    Source.of(_PROGRAM.format("other = keras.Sequential()\nother.trainable = False")),
    Source.of(_PROGRAM.format("base.trainable = True").replace("ResNet50", "VGG16")),
]


def check(source: Source) -> Iterator[Finding]:
    program = programs.of(source)
    if not program.has("keras"):
        return
    for node in program.nodes:
        if not isinstance(node, ast.Assign):
            continue
        for target in node.targets:
            if isinstance(target, ast.Attribute) and target.attr == "trainable":
                yield from _looked(program, node, target)


def _looked(program: Program, node: ast.Assign, target: ast.Attribute) -> Iterator[Finding]:
    function = program.function(node)
    calls = [call for call in program.calls if program.function(call) is function]
    for compiled in calls:
        model = _receiver(compiled, "compile")
        if not model or compiled.lineno > node.lineno or not _belongs(program, target.value, model, compiled):
            continue
        if not program.models(programs.receiver(compiled), "keras"):
            continue
        later = [call for call in calls if call.lineno > node.lineno]
        fits = [call for call in later if _receiver(call, "fit") == model]
        again = [call for call in later if _receiver(call, "compile") == model or _handed(call, model)]
        same = [call for call in calls if _receiver(call, "compile") == model and call.lineno < node.lineno]
        if fits and compiled is same[-1] and not any(call.lineno <= fits[0].lineno for call in again):
            yield program.finding(
                ID,
                node,
                f"trainable set after compile (line {compiled.lineno}), before fit (line {fits[0].lineno})",
                f"{model}.compile(...) after it",
            )


def _receiver(call: ast.Call, method: str) -> str:
    """The object of a method, as it is written."""
    matches = isinstance(call.func, ast.Attribute) and call.func.attr == method
    return programs.written(programs.receiver(call)) if matches else ""


def _handed(call: ast.Call, model: str) -> bool:
    """Somebody is given the model, and may compile it."""
    return any(programs.written(item) == model for item in [*call.args, *(item.value for item in call.keywords)])


def _belongs(program: Program, owner: ast.expr, model: str, compiled: ast.Call) -> bool:
    """What is set is the model, a layer of it, or something it was made of."""
    root = _root(owner)
    if isinstance(root, ast.Name):
        loop = program.around(owner, ast.For)
        while isinstance(loop, ast.For) and not (isinstance(loop.target, ast.Name) and loop.target.id == root.id):
            loop = program.around(loop, ast.For)
        root = _root(loop.iter) if isinstance(loop, ast.For) else root
    name = programs.written(root)
    if name == model:
        return True
    made = program.models(programs.receiver(compiled), "keras")
    return any(isinstance(part, ast.Name) and part.id == name for item in made for part in program.made_of(item))


def _root(node: ast.AST) -> ast.AST:
    """Of `model.get_layer("x")`, `model.layers[3:]`: the model."""
    while True:
        match node:
            case ast.Subscript(value=value) | ast.Call(func=ast.Attribute(value=value)):
                node = value
            case ast.Attribute(value=value, attr="layers"):
                node = value
            case ast.Call(func=ast.Name(id="reversed" | "enumerate" | "list"), args=[value, *_]):
                node = value
            case _:
                return node
