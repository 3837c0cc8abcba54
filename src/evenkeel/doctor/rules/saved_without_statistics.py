# SPDX-License-Identifier: Apache-2.0
"""A program that saves a model without its moving statistics.

What it looks for
    `tf.train.Saver(tf.trainable_variables())` that saves, and `torch.save` of `named_parameters()` alone, in a program
    with batch normalization.
Why it matters
    Moving statistics are not trainable, so they are not in the file, and whoever restores it infers with 0 and 1. So
    models were published (skflow#117, tflearn#153, tensorflow#9676).
What to do
    `tf.train.Saver(tf.global_variables())`, or `tf.train.Saver()`; `torch.save(model.state_dict(), path)`. The
    statistics of a file without them come back with `evenkeel recalibrate`.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from evenkeel.doctor import programs
from evenkeel.doctor.evidence import Source
from evenkeel.doctor.finding import Finding
from evenkeel.doctor.programs import Program

ID = "EK602"
SEVERITY = "error"

_TF = """
import tensorflow as tf
y = tf.layers.batch_normalization(x, training=phase)
{}
with tf.Session() as sess:
    {}
"""
_TORCH = """
import torch
model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))
{}
"""
SICK = [
    Source.of(_TF.format("saver = tf.train.Saver(tf.trainable_variables())", "saver.save(sess, 'model')")),
    Source.of(
        _TF.format(
            "kept = [v for v in tf.trainable_variables() if 'Adam' not in v.name]\n"
            "saver = tf.train.Saver(max_to_keep=3, var_list=kept)",
            "saver.save(sess, 'model')",
        )
    ),
    Source.of(_TORCH.format("torch.save(dict(model.named_parameters()), 'model.pt')")),
    Source.of(
        _TORCH.format("weights = {name: p.data for name, p in model.named_parameters()}\ntorch.save(weights, 'm.pt')")
    ),
]
HEALTHY = [
    Source.of(_TF.format("saver = tf.train.Saver(tf.global_variables())", "saver.save(sess, 'model')")),
    Source.of(_TF.format("saver = tf.train.Saver(max_to_keep=3)", "saver.save(sess, 'model')")),
    Source.of(
        _TF.format(
            "kept = tf.trainable_variables()\nkept += [v for v in tf.global_variables() if 'moving_' in v.name]\n"
            "saver = tf.train.Saver(kept)",
            "saver.save(sess, 'model')",
        )
    ),
    # It loads what another model was pretrained with; another saver saves.
    Source.of(
        _TF.format(
            "pretrained, saver = tf.train.Saver(tf.trainable_variables()), tf.train.Saver()",
            "pretrained.restore(sess, 'old'); saver.save(sess, 'model')",
        )
    ),
    Source.of(_TORCH.format("torch.save(model.state_dict(), 'model.pt')")),
    # A small part that was tuned, beside the model.
    Source.of(_TORCH.format("torch.save({n: p for n, p in model.named_parameters() if 'lora' in n}, 'tuned.pt')")),
]

_TRAINABLE = {"tensorflow.trainable_variables", "slim.get_trainable_variables"}


def check(source: Source) -> Iterator[Finding]:
    program = programs.of(source)
    if program.has("layers", "slim", "tflearn", "keras", "nn"):
        for call in program.calls_to("tensorflow.train.Saver"):
            variables = program.argument(call, "var_list", 0)
            if variables is not None and _only_trainable(program, variables) and _saves(program, call):
                yield program.finding(
                    ID, call, "saves tf.trainable_variables(), which has no moving statistics", "tf.train.Saver()"
                )
    if program.has("torch") and not program.words & {"state_dict", "named_buffers", "buffers"}:
        for call in program.calls_to("torch.save"):
            if call.args and any(_only_parameters(program, value) for value in program.values(call.args[0])):
                yield program.finding(
                    ID, call, "saves parameters, not running statistics", "torch.save(model.state_dict(), path)"
                )


def _only_trainable(program: Program, variables: ast.expr) -> bool:
    return all(_is_trainable(program, value) for value in program.values(variables))


def _is_trainable(program: Program, value: ast.expr) -> bool:
    match value:
        case ast.Call():
            if program.names(value.func) & _TRAINABLE:
                return True
            return "tensorflow.get_collection" in program.names(value.func) and any(
                programs.last(item) == "TRAINABLE_VARIABLES" for item in value.args[:1]
            )
        case ast.ListComp(elt=ast.Name(id=name), generators=[ast.comprehension(target=ast.Name(id=target)) as part]):
            ends = program.values(part.iter)
            return name == target and all(isinstance(end, ast.Call) and _is_trainable(program, end) for end in ends)
    return False


def _saves(program: Program, saver: ast.Call) -> bool:
    return any(saver in program.values(programs.receiver(call)) for call in program.methods("save")) or any(
        saver in program.values(keyword.value)
        for call in program.calls
        for keyword in call.keywords
        if keyword.arg == "saver"
    )


def _only_parameters(program: Program, value: ast.expr) -> bool:
    """`dict(model.named_parameters())`, or a comprehension over these that leaves none out."""
    match value:
        case ast.DictComp(generators=[ast.comprehension(iter=inner, ifs=[])]):
            return _are_parameters(program, inner)
        case ast.ListComp(generators=[ast.comprehension(iter=inner, ifs=[])]):
            return _are_parameters(program, inner)
        case ast.Call(func=ast.Name(id="dict" | "list" | "OrderedDict"), args=[inner]):
            return _are_parameters(program, inner)
    return _are_parameters(program, value)


def _are_parameters(program: Program, value: ast.expr) -> bool:
    match value:
        case ast.Call(func=ast.Attribute(value=model, attr="named_parameters" | "parameters")):
            return bool(program.models(model, "torch"))
    return False
