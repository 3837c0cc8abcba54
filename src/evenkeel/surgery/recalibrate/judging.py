# SPDX-License-Identifier: Apache-2.0
"""How good a model is, before and after."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

from evenkeel.errors import ArgumentError
from evenkeel.surgery.recalibrate.feeding import plain, rows_of, sliced

UNKNOWN = (
    "keep_if_better cannot compare a {kind} by {what}; give class labels, integers of shape (rows,), "
    "or a function without arguments that returns a number, the larger the better"
)

MISMATCH = "x of keep_if_better has {rows} rows, and y has {labels}; give a label for each row"


class Judge(NamedTuple):
    """measure: name of the number; `score` finds it; `sign` is 1 where larger is better, -1 where smaller is."""

    measure: str
    score: Callable[[], float]
    sign: int = 1

    def prefers_new(self, before: float, after: float) -> bool:
        """No number is worse than any, and equal is good enough."""
        return not math.isnan(after) and (math.isnan(before) or self.sign * after >= self.sign * before)


def judge(
    model: Any, keep_if_better: Any, batch_size: int, call: Callable[[Any], Any] | None, class_axis: int
) -> Judge:
    """
    Args:
        model: a Keras model, a torch module, a session.
        keep_if_better: a function without arguments, or `(x, y)`.
        batch_size: rows of a batch.
        call: runs the model in inference mode on a batch; None where it needs more than that.
        class_axis: of the output, where it has one value a class.

    Raises:
        ArgumentError: the two cannot be compared.
    """
    if callable(keep_if_better):
        return Judge("score", lambda: float(keep_if_better()))
    if not isinstance(keep_if_better, tuple) or len(keep_if_better) != 2:
        raise ArgumentError(UNKNOWN.format(kind=type(model).__name__, what=f"a {type(keep_if_better).__name__}"))
    x, y = keep_if_better
    labels = plain(y)
    if call is not None and labels.ndim == 1 and labels.dtype.kind in "iu" and len(labels):
        if rows_of(x) != {len(labels)}:
            raise ArgumentError(MISMATCH.format(rows=sorted(rows_of(x)), labels=len(labels)))
        starts = range(0, len(labels), batch_size)

        def accuracy() -> float:
            right = 0
            for rows in (slice(start, start + batch_size) for start in starts):
                output = plain(call(sliced(x, rows)))
                if output.ndim != 2 or output.shape[class_axis] < 2:
                    raise ArgumentError(UNKNOWN.format(kind=type(model).__name__, what=f"outputs of {output.shape}"))
                right += int((output.argmax(class_axis) == labels[rows]).sum())
            return right / len(labels)

        return Judge("accuracy", accuracy)
    keras = sys.modules.get("keras")
    if keras is not None and isinstance(model, keras.Model) and model.compiled:

        def loss() -> float:
            return float(model.evaluate(x, y, batch_size=batch_size, verbose=0, return_dict=True)["loss"])

        return Judge("loss", loss, sign=-1)
    raise ArgumentError(UNKNOWN.format(kind=type(model).__name__, what=f"targets of {labels.dtype} {labels.shape}"))
