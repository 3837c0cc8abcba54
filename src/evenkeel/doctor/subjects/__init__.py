# SPDX-License-Identifier: Apache-2.0
"""What can be looked at: a file of this folder for each kind.

It has `KIND`, in words; `recognises(subject)`, which loads no library that is not loaded; and `evidence(subject,
options)`, a generator of evidence, in the order in which a reader would want to be told.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any, Protocol

from evenkeel.doctor.evidence import Evidence
from evenkeel.doctor.options import Options
from evenkeel.errors import ArgumentError

# The first that recognises a subject looks at it.
NAMES = ("pair", "source", "graph", "keras_file", "checkpoint", "keras", "torch", "flax")
FOREIGN = (
    "a {kind} cannot be looked at; give the path of a checkpoint, a model, a graph or a Python program, a pair of "
    "checkpoints, a Keras model, a torch.nn.Module, a flax.nnx.Module, or a graph, session or train operation of "
    "TensorFlow 1"
)


class Subject(Protocol):
    """What a file of this folder offers."""

    KIND: str

    def recognises(self, subject: Any) -> bool: ...

    def evidence(self, subject: Any, options: Options) -> Iterator[Evidence]: ...


def of(subject: Any) -> Subject:
    """Who looks at it.

    Raises:
        ArgumentError: nobody.
    """
    for name in NAMES:
        module: Any = importlib.import_module(f"{__name__}.{name}")
        if module.recognises(subject):
            return module
    raise ArgumentError(FOREIGN.format(kind=type(subject).__name__))
