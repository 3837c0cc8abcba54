# SPDX-License-Identifier: Apache-2.0
"""A torch program that evaluates a model in training mode.

What it looks for
    A torch model with batch normalization that is called below `torch.no_grad()`, or in a function that is called
    evaluate, test or predict, or that is traced for export, in a program that never calls `eval()`.
Why it matters
    In training mode every prediction depends on the other rows of its batch, and evaluating moves the running
    statistics: test data gets into the model.
What to do
    `model.eval()` before evaluation and export, `model.train()` before training goes on.
"""

from __future__ import annotations

import ast
import itertools
from collections.abc import Iterator

from evenkeel.doctor import programs
from evenkeel.doctor.evidence import Source
from evenkeel.doctor.finding import Finding, Severity
from evenkeel.doctor.programs import Program, With

ID = "EK606"
SEVERITY = "error"

_PROGRAM = """
import torch
from torch import nn
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.bn = nn.Linear(4, 3), nn.BatchNorm1d(3)
    def forward(self, x):
        return self.bn(self.linear(x))
net = Net().to("cpu")
optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
for epoch in range(3):
    for x, y in train_loader:
        loss = nn.functional.mse_loss(net(x), y)
        loss.backward()
        optimizer.step()
{}
"""
SICK = [
    Source.of(_PROGRAM.format("with torch.no_grad():\n    for x, y in test_loader:\n        print(net(x))")),
    Source.of(
        _PROGRAM.format(
            "@torch.inference_mode()\ndef accuracy(model, loader):\n    return [model(x) for x in loader]\n"
            "accuracy(net, loader)"
        )
    ),
    Source.of(
        _PROGRAM.format("def validate(model, loader):\n    return [model(x) for x in loader]\nvalidate(net, loader)")
    ),
    Source.of(_PROGRAM.format("torch.onnx.export(net, torch.zeros(2, 4), 'net.onnx')")),
    Source.of(_PROGRAM.format("torch.jit.trace(net, torch.zeros(2, 4)).save('net.pt')")),
]
HEALTHY = [
    Source.of(_PROGRAM.format("net.eval()\nwith torch.no_grad():\n    for x in test_loader:\n        print(net(x))")),
    Source.of(_PROGRAM.format("net.train(False)\ntorch.jit.trace(net, torch.zeros(2, 4)).save('net.pt')")),
    Source.of(_PROGRAM.format("with torch.no_grad():\n    for x in test_loader:\n        print(net(x))").replace(
        "BatchNorm1d", "LayerNorm"
    )),
    # A teacher, which shall use its batch too.
    Source.of(
        _PROGRAM.format("")
        .replace("train_loader", "batches")
        .replace("        loss =", "        with torch.no_grad():\n            target = teacher(x)\n        loss =")
        .replace("optimizer =", "teacher = Net()\noptimizer =")
    ),
    # Nothing is predicted: weights are changed, and statistics are gathered once more.
    Source.of(_PROGRAM.format("with torch.no_grad():\n    for p in net.parameters():\n        p.mul_(0.5)")),
    Source.of(_PROGRAM.format("with torch.no_grad():\n    for x, _ in train_loader:\n        net(x)")),
    # Statistics of the batch in every phase, on purpose.
    Source.of(_PROGRAM.format("with torch.no_grad():\n    net(test)").replace(
        "BatchNorm1d(3)", "BatchNorm1d(3, track_running_stats=False)"
    )),
]  # fmt: skip

# These call eval() themselves.
_TRAINERS = {"pytorch_lightning", "lightning", "ignite", "fastai", "skorch", "catalyst", "transformers", "composer"}
_QUIET = {"torch.no_grad", "torch.inference_mode", "torch.autograd.no_grad", "torch.autograd.inference_mode"}
# The old exporter to ONNX calls eval() itself, the one of today does not.
_EXPORTS: dict[str, Severity] = {
    "torch.jit.trace": "error",
    "torch.export.export": "error",
    "torch.onnx.export": "warning",
}


def check(source: Source) -> Iterator[Finding]:
    program = programs.of(source)
    if not program.has("torch") or program.modules & _TRAINERS or _has_eval(program):
        return
    for call in program.calls:
        exporters = program.names(call.func) & _EXPORTS.keys()
        if exporters and call.args and program.models(call.args[0], "torch"):
            name = min(exporters)
            yield program.finding(
                ID, call, f"{name} of a model in training mode", "model.eval() before it", _EXPORTS[name]
            )
            return
        if (place := _evaluation(program, call)) and program.models(call.func, "torch"):
            seen = f"{programs.written(call.func)}(...) {place}, and nothing calls eval()"
            yield program.finding(ID, call, seen, "model.eval() before it")
            return


def _has_eval(program: Program) -> bool:
    modes = any(call.args or call.keywords for call in program.methods("train"))
    return modes or any(isinstance(node, ast.Attribute) and node.attr == "eval" for node in program.nodes)


def _evaluation(program: Program, call: ast.Call) -> str:
    """Where a call predicts, in words; empty where it may belong to training."""
    loop = program.around(call, ast.For, ast.comprehension, ast.While)
    if isinstance(loop, ast.For) and any("train" in name.lower() for name in programs.names_in(loop.iter)):
        return ""
    about_test = any(programs.is_evaluation(name) for item in call.args for name in programs.names_in(item))
    for above in itertools.takewhile(lambda node: not isinstance(node, ast.ClassDef), program.above(call)):
        if isinstance(above, With) and any(_is_quiet(program, item.context_expr) for item in above.items):
            # Below no_grad in the innermost loop with backward: a teacher, a target, on purpose in training mode.
            return "below no_grad" if about_test or not _trains(program, above) else ""
        if isinstance(above, ast.FunctionDef):
            if _has_backward(above):
                return ""
            if any(_is_quiet(program, item) for item in above.decorator_list):
                return f"in `{above.name}` without gradients"
            if programs.is_evaluation(above.name) and not above.name.startswith("test_"):
                return f"in `{above.name}`"
    return ""


def _is_quiet(program: Program, expression: ast.expr) -> bool:
    return bool(program.names(expression.func if isinstance(expression, ast.Call) else expression) & _QUIET)


def _has_backward(node: ast.AST) -> bool:
    return any(isinstance(item, ast.Attribute) and item.attr == "backward" for item in ast.walk(node))


def _trains(program: Program, block: ast.AST) -> bool:
    """Its innermost loop is that of the training steps."""
    loop = program.around(block, ast.For, ast.While)
    steps = [item for item in ast.walk(loop) if isinstance(item, ast.Call)] if loop is not None else []
    return any(
        programs.last(item.func) == "backward" and program.around(item, ast.For, ast.While) is loop for item in steps
    )
