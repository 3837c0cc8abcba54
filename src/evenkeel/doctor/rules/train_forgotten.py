# SPDX-License-Identifier: Apache-2.0
"""A torch program that goes on training in evaluation mode.

What it looks for
    `model.eval()` inside the loop that trains the model, itself or in a function called from it, and no `train()` in
    that loop.
Why it matters
    From the first evaluation on, the model trains with running statistics that no longer follow the data.
What to do
    `model.train()` at the start of each epoch, not once before the loop.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from evenkeel.doctor import programs
from evenkeel.doctor.evidence import Source
from evenkeel.doctor.finding import Finding
from evenkeel.doctor.programs import Loop, Program

ID = "EK607"
SEVERITY = "error"

_PROGRAM = """
import torch, torchvision
model = torchvision.models.resnet18()
teacher = torchvision.models.resnet50()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
def evaluate(net):
    net.eval()
    with torch.no_grad():
        return [net(x) for x in test]
def train_step(net, x):
    loss = net(x).sum()
    loss.backward()
    optimizer.step()
model.train()
for epoch in range(9):
    {}
    for x in train:
        train_step(model, x)
    {}
"""
SICK = [
    Source.of(_PROGRAM.format("pass", "evaluate(model)")),
    Source.of(_PROGRAM.format("pass", "model.eval(); torch.save(model.state_dict(), 'model.pt')")),
    Source.of(_PROGRAM.format("model.train()", "pass").replace("step(model, x)", "step(model, x); evaluate(model)")),
]
HEALTHY = [
    Source.of(_PROGRAM.format("model.train()", "evaluate(model)")),
    Source.of(_PROGRAM.format("pass", "evaluate(model); model.train()")),
    Source.of(_PROGRAM.format("pass", "evaluate(teacher)")),
    # After the loop.
    Source.of(_PROGRAM.format("model.train()", "pass") + "\nevaluate(model)"),
    # Trained on frozen statistics, on purpose.
    Source.of(_PROGRAM.format("model.eval()", "pass")),
    Source.of(_PROGRAM.format("was = model.training", "evaluate(model); model.train(was)")),
]


def check(source: Source) -> Iterator[Finding]:
    program = programs.of(source)
    if not program.has("torch"):
        return
    trained = set(_trained(program))
    found: dict[ast.Call, ast.For | ast.AsyncFor | ast.While] = {}
    for loop in program.nodes:
        if isinstance(loop, Loop):
            nodes = program.reached(loop)
            steps, evals = _methods(nodes, "backward"), _evals(program, nodes, trained)
            if steps and evals and not _returns(program, nodes):
                found |= {call: loop for call in evals if _evaluates(program, call, steps)}
    for call, loop in sorted(found.items(), key=lambda item: item[0].lineno):
        yield program.finding(
            ID,
            call,
            f"eval() in the training loop of line {loop.lineno}, and no train() in it",
            "model.train() at the start of each epoch",
        )


def _trained(program: Program) -> Iterator[ast.Call]:
    """What makes the models whose parameters an optimizer of torch has."""
    for call in program.calls:
        if any(name.startswith("torch.optim.") for name in program.names(call.func)):
            values = [end for item in call.args[:1] for end in program.values(item)]
            for inner in _methods(programs.inside(values), "parameters"):
                yield from program.models(programs.receiver(inner), "torch")


def _methods(nodes: list[ast.AST] | set[ast.AST], name: str) -> list[ast.Call]:
    calls = (node for node in nodes if isinstance(node, ast.Call))
    return [call for call in calls if isinstance(call.func, ast.Attribute) and call.func.attr == name]


def _evals(program: Program, nodes: list[ast.AST], trained: set[ast.Call]) -> list[ast.Call]:
    calls = [call for call in _methods(nodes, "eval") if not call.args and not call.keywords]
    return [call for call in calls if trained.intersection(program.models(programs.receiver(call), "torch"))]


def _returns(program: Program, nodes: list[ast.AST]) -> bool:
    """Somebody goes back to training mode."""
    stored = (node for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store))
    return bool(_methods(nodes, "train")) or any(node.attr == "training" for node in stored)


def _evaluates(program: Program, call: ast.Call, steps: list[ast.Call]) -> bool:
    """It begins an evaluation; to train on frozen statistics, people call eval() before the steps."""
    function = program.function(call)
    beside = [step for step in steps if program.function(step) is function]
    if isinstance(function, ast.FunctionDef) and not beside:
        return programs.is_evaluation(function.name) or any(
            programs.last(node) in ("no_grad", "inference_mode") for node in ast.walk(function)
        )
    loop = program.around(call, ast.For, ast.While)
    inner = [node for node in ast.walk(loop) if isinstance(node, ast.Call)] if loop is not None else []
    if beside:
        return call.lineno > min(step.lineno for step in beside)
    # The steps are in a function that the loop calls.
    reaching = [item for item in inner if _methods(program.reached(item), "backward")]
    return any(item.lineno < call.lineno for item in reaching)
