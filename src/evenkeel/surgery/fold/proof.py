# SPDX-License-Identifier: Apache-2.0
"""Whether a folded model computes what the given one does, but for rounding."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from evenkeel.errors import InputError, UnequalError
from evenkeel.surgery.fold.report import Difference

# Folding rounds in other places, and fewer: on the networks of the tests the difference is at most a tenth of the
# bound with this factor, where a wrong offset of one channel is thousands of times the bound in float64.
SLACK = 16

ROUNDOFF = {"float64": 2.0**-53, "float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}

NARROW_INSIDE = "float64 with float32 inside"


def prove(
    library: Any,
    model: Any,
    folded: Any,
    data: Mapping[str, Any],
    given: Mapping[str, list[np.ndarray]],
    condition: float,
) -> list[Difference]:
    """The differences in the type of the model and in float64; each within its bound.

    Where the library computes some operation in float32 whatever the type, the bound of float64 is that of float32.

    The bound is what rounding does to the given model in its own type, compared with float64, in units of the type's
    roundoff, times the condition of the folded normalizers, and `SLACK`. A model in float64 is compared in float32.

    Args:
        library: the module that knows the model, `fold.keras` or `fold.torch`.
        model, folded: before and after.
        data: name -> what the models take.
        given: name -> what `model` gives for it.
        condition: the largest of the folded normalizers.

    Raises:
        UnequalError: a difference is above its bound.
        InputError: the model cannot run in float64 here, as convolutions with channels first in TensorFlow on a CPU.
    """
    dtype = library.dtype(model)
    narrow, narrow_dtype = (model, dtype) if dtype != "float64" else (library.copied(model, "float32"), "float32")
    with library.wide():
        exact = library.copied(model, "float64")
        exact_folded = library.folded(exact, next(iter(data.values())))[0]
    result = []
    for name, x in data.items():
        before = given[name]
        after = library.outputs(folded, x)
        with library.wide():
            exact_before = outputs(library, exact, x, f"{name} (in float64)")
            exact_after = library.outputs(exact_folded, x)
        rounded = before if narrow is model else library.outputs(narrow, x)
        size = max((np.abs(y).max(initial=0) for y in exact_before), default=0.0)
        growth = _largest(exact_before, rounded) / ROUNDOFF[narrow_dtype] + size
        pairs = {dtype: (before, after), "float64": (exact_before, exact_after)}
        for kind, (one, other) in pairs.items():
            bound = SLACK * condition * growth * ROUNDOFF[kind]
            largest = _largest(one, other)
            if kind == "float64" and largest > bound and _narrow_inside(library, exact, x):
                kind, bound = NARROW_INSIDE, bound / ROUNDOFF["float64"] * ROUNDOFF["float32"]
            result.append(Difference(name, kind, largest, bound))
    for item in result:
        if not item.largest <= item.bound:
            raise UnequalError(
                f"the folded model differs by {item.largest:.3g} in {item.dtype} on {item.data} data, where rounding "
                f"may make {item.bound:.3g}; nothing was kept. Does the model draw random numbers at inference, "
                "or do hooks change what layers give?"
            )
    return result


def _narrow_inside(library: Any, exact: Any, x: Any) -> bool:
    with library.wide():
        return library.narrow_inside(exact, x)


def outputs(library: Any, model: Any, x: Any, name: str) -> list[np.ndarray]:
    """What the model gives for `x`, the data called `name`, in float64.

    Raises:
        InputError: the model does not take the data, or what it gives is not finite.
    """
    try:
        result = library.outputs(model, x)
    except Exception as error:
        raise InputError(
            f"the model does not take the {name} data: {error}; give data of the shapes it wants"
        ) from error
    if not all(np.isfinite(y).all() for y in result):
        raise InputError(f"the model gives values that are not finite on {name} data, so nothing can be shown on them")
    return result


def _largest(ones: list[np.ndarray], others: list[np.ndarray]) -> float:
    return max(
        (float(np.abs(one - other).max(initial=0)) for one, other in zip(ones, others, strict=True)), default=0.0
    )
