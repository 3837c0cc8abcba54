# SPDX-License-Identifier: Apache-2.0
"""A torch model that is frozen by its gradients alone.

What it looks for
    `requires_grad = False` for all parameters of a torch model, or a part of one, with batch normalization, `train()`
    called on the model, and no `eval()` for the frozen part.
Why it matters
    Running statistics are no parameters: every `train()` lets them go on moving, so the frozen part changes all the
    same (pytorch#86590).
What to do
    After each `model.train()`: `model.backbone.eval()`, or `eval()` for each batch normalization in it; or
    `evenkeel.freeze(model.backbone)`, which lasts.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from evenkeel.doctor import programs
from evenkeel.doctor.evidence import Source
from evenkeel.doctor.finding import Finding
from evenkeel.doctor.programs import Function, Program

ID = "EK610"
SEVERITY = "warning"

_PROGRAM = """
import torch
from torchvision import models
model = models.resnet18(weights="DEFAULT")
for parameter in model.parameters():
    parameter.requires_grad = False
model.fc = torch.nn.Linear(512, 10)
for epoch in range(9):
    model.train()
    {}
    train()
    model.eval()
    test()
"""
_PART = """
import torch, torchvision
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = torchvision.models.resnet18()
        self.backbone.requires_grad_(False)
    {}
net = Net()
net.train()
"""
SICK = [
    Source.of(_PROGRAM.format("pass")),
    Source.of(_PROGRAM.format("pass").replace("models.resnet18", "models.vgg11_bn")),
    Source.of(_PART.format("def forward(self, x): return self.backbone(x)")),
]
HEALTHY = [
    Source.of(_PROGRAM.format("for m in model.modules():\n        if isinstance(m, torch.nn.BatchNorm2d): m.eval()")),
    Source.of(_PROGRAM.format("model.layer1.eval()")),
    Source.of(_PROGRAM.format("pass").replace("resnet18", "vgg11")),
    Source.of(_PROGRAM.format("pass").replace("model.train()", "pass")),
    # Only some of the parameters, and a discriminator that rests while the generator learns.
    Source.of(_PROGRAM.format("pass").replace("parameter.req", "if parameter.ndim > 1: parameter.req")),
    Source.of(_PROGRAM.format("for parameter in model.parameters():\n        parameter.requires_grad = True")),
    Source.of(
        _PART.format("def train(self, mode=True):\n        super().train(mode)\n        self.backbone.train(False)")
    ),
]


def check(source: Source) -> Iterator[Finding]:
    program = programs.of(source)
    if not program.has("torch") or "freeze" in {name.rpartition(".")[2] for name in _evenkeel(program)}:
        return
    trains = [call for call in program.methods("train") if not call.args]
    if not trains or any(_is_method(program, node, "train") for node in program.nodes):
        return
    trained = [programs.receiver(call) for call in trains]
    evaluated = [programs.receiver(call) for call in program.methods("eval")]
    if not all(_among(program, model, trained) for model in evaluated) or _partly(program):
        return
    thawed = {programs.written(model) for _, model, value in _settings(program) if value is not False}
    for node, model, value in _settings(program):
        name = programs.written(model)
        whole = _among(program, model, trained) or any(_holds(program, other, model) for other in trained)
        if value is False and name not in thawed and whole and program.models(model, "torch"):
            yield program.finding(
                ID,
                node,
                f"{name} is frozen by its gradients, and train() of line {trains[0].lineno} lets its statistics move",
                f"{name}.eval() after every train(), or evenkeel.freeze({name})",
            )


def _evenkeel(program: Program) -> Iterator[str]:
    for call in program.calls:
        yield from (name for name in program.names(call.func) if name.startswith("evenkeel."))


def _is_method(program: Program, node: ast.AST, name: str) -> bool:
    return (
        isinstance(node, Function) and node.name == name and isinstance(next(program.above(node), None), ast.ClassDef)
    )


def _among(program: Program, model: ast.expr, others: list[ast.expr]) -> bool:
    """It is one of these, by its name or by the call that made it."""
    made = set(program.models(model, "torch"))
    return any(
        programs.written(model) == programs.written(other) != "" or made.intersection(program.models(other, "torch"))
        for other in others
    )


def _partly(program: Program) -> bool:
    """Something is put into evaluation mode by `train(False)`."""
    return any(call.args or call.keywords for call in program.methods("train"))


def _settings(program: Program) -> Iterator[tuple[ast.expr | ast.stmt, ast.expr, object]]:
    """Where all parameters of a model are told whether they need gradients: place, model, and what they are told."""
    for call in program.methods("requires_grad_"):
        given = program.argument(call, "requires_grad", 0)
        (value, *more) = program.constants(given) if given is not None else {True}
        yield call, programs.receiver(call), value if not more else None
    for loop in program.nodes:
        match loop:
            case ast.For(
                target=ast.Name(id=name),
                iter=ast.Call(func=ast.Attribute(value=model, attr="parameters")),
                body=[ast.Assign(targets=[ast.Attribute(value=ast.Name(id=other), attr="requires_grad")], value=value)],
            ) if name == other:
                constants = program.constants(value)
                yield loop, model, constants.pop() if len(constants) == 1 else None


def _holds(program: Program, model: ast.expr, part: ast.expr) -> bool:
    """A model has the part: `model.backbone` of `model`, `self.backbone` of its class."""
    whole = programs.written(model)
    owner = program.around(part, ast.ClassDef)
    if whole and programs.written(part).startswith(f"{whole}."):
        return True
    made = [end for end in program.values(model) if isinstance(end, ast.Call)]
    return programs.written(part).startswith("self.") and any(owner in program.classes(call.func) for call in made)
