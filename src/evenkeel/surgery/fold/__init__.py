# SPDX-License-Identifier: Apache-2.0
"""Batch normalization at inference, done by the layer beside it."""

from __future__ import annotations

import importlib
import sys
from typing import Any

from evenkeel.errors import UnknownTensorError
from evenkeel.surgery.fold.proof import outputs, prove
from evenkeel.surgery.fold.report import Change, Difference, Folded, FoldReport, Left

__all__ = ["Change", "Difference", "FoldReport", "Folded", "Left", "fold"]

RUNS = 5


def fold(model: Any, data: Any = None) -> tuple[Any, FoldReport]:
    """A copy of `model`, for inference, whose normalizers are folded into the layers beside them, and a report.

    A normalizer goes into the convolution or dense layer before it, or into the one after it where that is exact. It
    stays, with a reason in the report, where something stands between, where others use the result too, where layers
    are shared, or where its statistics are not fixed. Names stay; what is left of a folded normalizer does nothing.

    The outputs of both models are compared on random data and on yours, in the type of the model and in float64.

    Args:
        model: a Keras model, functional or Sequential, with models in it or not; or a `torch.nn.Module` that
            `torch.fx` can trace. It is not changed.
        data: a batch as `model(data)` takes it; a tuple of several for a torch module with several arguments. A torch
            module needs it; for Keras random data is made from the shapes of the inputs.

    Raises:
        UnequalError: the outputs differ by more than rounding explains.
        InputError: a model whose graph is not known, or data that it does not take.

    Example:
        >>> import keras
        >>> dense, bn = keras.layers.Dense(3, name="dense"), keras.layers.BatchNormalization(name="bn")
        >>> folded, report = fold(keras.Sequential([keras.Input((4,)), dense, bn]))
        >>> report.folded, report.left
        ([Folded(normalizer='bn', into='dense', side='before')], [])
    """
    library = _library(model)
    library.check(model, data)
    samples = {} if data is None else {"given": data}
    samples["random"] = library.random_data(model, data)
    given = {name: outputs(library, model, x, name) for name, x in samples.items()}
    x = next(iter(samples.values()))
    folded, plan = library.folded(model, x)
    differences = prove(library, model, folded, samples, given, plan.condition)
    return folded, FoldReport(
        folded=plan.folded,
        left=plan.left,
        differences=differences,
        parameters=Change(library.parameters(model), library.parameters(folded)),
        multiply_adds=Change(library.multiply_adds(model, x), library.multiply_adds(folded, x)),
        seconds=Change(library.seconds(model, x, RUNS), library.seconds(folded, x, RUNS)),
    )


def _library(model: Any) -> Any:
    # With Keras on torch a Keras model is a torch module too, so Keras is asked first; and only libraries that are
    # loaded are asked, for no other can have made the model.
    for name, kind in (("keras", "Model"), ("torch", "nn.Module")):
        owner: Any = sys.modules.get(name)
        for part in kind.split("."):
            owner = getattr(owner, part, None)
        if owner is not None and isinstance(model, owner):
            return importlib.import_module(f"{__name__}.{name}")
    raise UnknownTensorError(f"model is a {type(model).__name__}; give a keras.Model or a torch.nn.Module")
