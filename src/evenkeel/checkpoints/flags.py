# SPDX-License-Identifier: Apache-2.0
"""What is odd about the values of a normalizer."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np

Values = Mapping[str, np.ndarray]
"""Part of a normalizer, such as `mean` or `count` -> its values."""


def find(values: Values, *, missing: Collection[str] = (), epsilon: float | None = None) -> list[str]:
    """What is odd, a sentence each; empty where nothing is.

    Args:
        values: any of `gamma`, `beta`, `mean`, `variance`, and what else the normalizer keeps; of any shape.
        missing: parts that it must have and the file has not.
        epsilon: what it adds to the variance, where that is known.

    Example:
        >>> find({"mean": np.zeros(3), "variance": np.ones(3)})
        ['mean all 0, variance all 1: never updated']
        >>> find({"gamma": np.array([1.0, np.nan])}, missing=["mean", "variance"])
        ['mean and variance missing: saved with trainable variables only, or a layer normalization',
         'NaN in 1 of 2 channels (gamma)']
    """
    unreadable = [role for role, array in values.items() if not are_numbers(array.dtype)]
    wide = {role: numbers(array) for role, array in values.items() if role not in unreadable}
    return [
        *_missing(missing, values),
        *(f"{role} is of type {values[role].dtype}, not numbers" for role in unreadable),
        *_not_finite(wide),
        *_statistics(wide, epsilon),
        *_gamma(wide),
        *_narrow(values, wide),
        *_averages(values),
    ]


def numbers(array: np.ndarray) -> np.ndarray:
    """In float64, whatever their type was.

    Example:
        >>> numbers(np.array([1, 2], "float16"))
        array([1., 2.])
    """
    with np.errstate(over="ignore", invalid="ignore"):  # a signalling NaN, or a float128 beyond float64
        return array.astype(np.float64)


def are_numbers(dtype: np.dtype[Any]) -> bool:
    """Whether these are real numbers, bfloat16 and its kin of `ml_dtypes` included.

    Example:
        >>> are_numbers(np.dtype("float16")), are_numbers(np.dtype("complex64")), are_numbers(np.dtype("U5"))
        (True, False, False)
    """
    return np.can_cast(dtype, np.float64, "same_kind")


def never_updated(mean: np.ndarray, variance: np.ndarray) -> bool:
    """Whether the statistics are exactly what every library starts with.

    Example:
        >>> never_updated(np.zeros(2), np.ones(2)), never_updated(np.zeros(2), np.array([1.0, 0.999]))
        (True, False)
    """
    return bool(mean.size and (mean == 0).all() and (variance == 1).all())


def look_shuffled(mean: np.ndarray, variance: np.ndarray) -> bool:
    """Whether they look like gamma and beta: four arrays of one shape, loaded in another library's order.

    Example:
        >>> look_shuffled(np.array([0.9, 1.1]), np.array([-0.2, 0.1]))
        True
        >>> look_shuffled(np.array([0.9, 1.0, -1.1]), np.array([-0.2, 0.1, 0.3]))
        False
    """
    if not mean.size or not (mean > 0).all() or not (variance < 0).any():
        return False
    return bool(0.2 <= np.median(mean) <= 5)


def _missing(missing: Collection[str], values: Values) -> Iterator[str]:
    reason = ""
    if "batch_mean" in values:
        reason = ": there is only that of the last batch"
    elif {"mean", "variance"} <= set(missing):
        reason = ": saved with trainable variables only, or a layer normalization"
    if missing:
        yield f"{' and '.join(missing)} missing{reason}"


def _not_finite(wide: Values) -> Iterator[str]:
    for role, array in wide.items():
        yield from _share("NaN in", np.isnan(array), f" channels ({role})")
        yield from _share("infinity in", np.isinf(array), f" channels ({role})")


def _statistics(wide: Values, epsilon: float | None) -> Iterator[str]:
    variance = wide.get("variance")
    if variance is None:
        return
    yield from _share("negative variance in", variance < 0)
    yield from _share("variance 0 in", variance == 0)
    if epsilon is not None:
        yield from _share(f"variance below epsilon ({epsilon:g}) in", (variance > 0) & (variance < epsilon))
    mean = wide.get("mean")
    if mean is None:
        return
    if look_shuffled(mean, variance):
        yield "mean all positive and about 1, negative variance: gamma and beta in their place, order of weights?"
    if never_updated(mean, variance):
        yield "mean all 0, variance all 1: never updated"
    elif "count" in wide and mean.size and not wide["count"].any():
        yield "count 0, but mean or variance moved: momentum=None would start anew"


def _gamma(wide: Values) -> Iterator[str]:
    gamma = wide.get("gamma")
    if gamma is not None and gamma.size and not gamma.any():
        yield "gamma all 0: only beta comes out"


def _narrow(values: Values, wide: Values) -> Iterator[str]:
    widths = {role: 8 * values[role].dtype.itemsize for role in ("mean", "variance") if role in wide}
    if widths and min(widths.values()) < 32:
        yield f"{min(widths.values())}-bit statistics ({' and '.join(r for r, bits in widths.items() if bits < 32)})"


def _averages(values: Values) -> Iterator[str]:
    roles = [role.removesuffix("_average") for role in values if role.endswith("_average")]
    if roles:
        yield f"moving averages (EMA shadows) of {', '.join(roles)} present"


def _share(words: str, odd: np.ndarray, of: str = "") -> Iterator[str]:
    if odd.any():
        yield f"{words} {np.count_nonzero(odd)} of {odd.size}{of}"
