# SPDX-License-Identifier: Apache-2.0
"""Averaged weights with statistics that are not theirs.

What it looks for
    `torch.optim.swa_utils.AveragedModel` of a model with batch normalization that is evaluated or saved, without
    `update_bn` and without `use_buffers=True`.
Why it matters
    The weights are averaged and the running statistics are not: they stay as they were when the average was made, or
    belong to no weights at all.
What to do
    `torch.optim.swa_utils.update_bn(loader, averaged)` before it is evaluated or saved, or
    `evenkeel.recalibrate(averaged, data)`.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from evenkeel.doctor import programs
from evenkeel.doctor.evidence import Source
from evenkeel.doctor.finding import Finding
from evenkeel.doctor.programs import Program

ID = "EK611"
SEVERITY = "error"

_PROGRAM = """
import torch
from torch.optim.swa_utils import AveragedModel
model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))
averaged = AveragedModel(model{})
for x in loader:
    step(model, x)
    averaged.update_parameters(model)
{}
"""
SICK = [
    Source.of(_PROGRAM.format("", "averaged.eval()\nprint(averaged(test))")),
    Source.of(_PROGRAM.format("", "torch.save(averaged.module.state_dict(), 'model.pt')")),
]
HEALTHY = [
    Source.of(_PROGRAM.format("", "torch.optim.swa_utils.update_bn(loader, averaged)\nprint(averaged(test))")),
    Source.of(_PROGRAM.format(", use_buffers=True", "print(averaged(test))")),
    Source.of(_PROGRAM.format("", "print(averaged(test))").replace("BatchNorm1d", "LayerNorm")),
    # Handed on; whoever gets it may update it.
    Source.of(_PROGRAM.format("", "finish(averaged)")),
    Source.of(_PROGRAM.format("", "evenkeel.recalibrate(averaged, data)\naveraged(test)")),
]

_REPAIRS = {"update_bn", "recalibrate", "reset_running_stats", "buffers", "named_buffers", "running_mean", "copy_"}


def check(source: Source) -> Iterator[Finding]:
    program = programs.of(source)
    if program.words & _REPAIRS:
        return
    for call in program.calls_to("torch.optim.swa_utils.AveragedModel"):
        if not call.args or program.has_spread(call) or not program.models(call.args[0], "torch"):
            continue
        buffers = program.argument(call, "use_buffers", 4)
        if (buffers is None or program.constants(buffers) == {False}) and (use := _used(program, call)):
            yield program.finding(
                ID, call, f"averaged, and used in line {use} without update_bn", "update_bn(loader, averaged) before it"
            )


def _used(program: Program, made: ast.Call) -> int | None:
    """Line where the averaged model predicts, is put into evaluation mode, or is saved."""
    for call in program.calls:
        function = call.func
        saves = isinstance(function, ast.Attribute) and function.attr in ("eval", "state_dict")
        model = function.value if saves and isinstance(function, ast.Attribute) else function
        if isinstance(model, ast.Attribute) and model.attr == "module":
            model = model.value
        if made in program.values(model):
            return call.lineno
    return None
