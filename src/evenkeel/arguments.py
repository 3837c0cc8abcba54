# SPDX-License-Identifier: Apache-2.0
"""Whether an argument can be honoured."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable
from typing import Any, SupportsIndex

from evenkeel.errors import ArgumentError, AxisError


def number(name: str, value: Any, *, low: float = -math.inf, high: float = math.inf) -> float:
    """`value` as a float between `low` and `high`, both included.

    Raises:
        ArgumentError: not a number, NaN, or outside.

    Example:
        >>> number("momentum", 0.9, low=0, high=1)
        0.9
        >>> number("momentum", 1.5, low=0, high=1)
        Traceback (most recent call last):
        evenkeel.errors.ArgumentError: momentum=1.5 is outside [0, 1]; give a number in that range
    """
    try:
        result = float(value)
    except (TypeError, ValueError):
        raise ArgumentError(f"{name}={value!r} is not a number; give one in [{low}, {high}]") from None
    if not low <= result <= high:
        raise ArgumentError(f"{name}={value!r} is outside [{low}, {high}]; give a number in that range")
    return result


def positive_integer(name: str, value: Any) -> int:
    """`value` as an integer of at least one.

    Example:
        >>> positive_integer("virtual_batch_size", 0)
        Traceback (most recent call last):
        evenkeel.errors.ArgumentError: virtual_batch_size=0 is not a positive integer; give 1, 2, ...
    """
    if isinstance(value, bool) or not hasattr(value, "__index__") or operator.index(value) < 1:
        raise ArgumentError(f"{name}={value!r} is not a positive integer; give 1, 2, ...")
    return operator.index(value)


def choice(name: str, value: Any, allowed: Iterable[str]) -> str:
    """`value` where it is one of `allowed`.

    Example:
        >>> choice("average", "median", ["exponential", "debiased"])
        Traceback (most recent call last):
        evenkeel.errors.ArgumentError: average='median' is unknown; give one of 'exponential', 'debiased'
    """
    if value not in (options := list(allowed)):
        raise ArgumentError(f"{name}={value!r} is unknown; give one of {', '.join(map(repr, options))}")
    return value


def axes(value: SupportsIndex | Iterable[SupportsIndex]) -> tuple[int, ...]:
    """The axes of the channels, as given, in a tuple.

    Raises:
        AxisError: not an integer or a list of integers, an empty list, or a repeated axis.

    Example:
        >>> axes(-1), axes([1, 2])
        ((-1,), (1, 2))
    """
    given = tuple(value) if isinstance(value, Iterable) else (value,)
    try:
        result = tuple(map(operator.index, given))
    except TypeError:
        result = (True,)
    if any(isinstance(item, bool) for item in (*given, *result)):
        raise AxisError(f"axis={value!r} is not an integer; give an integer or a list of integers")
    if not result:
        raise AxisError(f"axis={value!r} names no axis; give at least one")
    if len(set(result)) < len(result):
        raise AxisError(f"axis={value!r} names an axis twice; give each once")
    return result


def axes_within(value: tuple[int, ...], ndim: int) -> tuple[int, ...]:
    """`value` for an input of `ndim` dimensions: counted from the front, in ascending order.

    Example:
        >>> axes_within((-1, 1), 4)
        (1, 3)
        >>> axes_within((4,), 4)
        Traceback (most recent call last):
        evenkeel.errors.AxisError: axis=4 is out of range for an input of 4 dimensions; give -4 to 3
    """
    for axis in value:
        if not -ndim <= axis < ndim:
            raise AxisError(
                f"axis={axis} is out of range for an input of {ndim} dimensions; give {-ndim} to {ndim - 1}"
            )
    result = tuple(sorted(axis % ndim for axis in value))
    if len(set(result)) < len(result):
        raise AxisError(f"axis={list(value)} names an axis twice for an input of {ndim} dimensions; give each once")
    return result
