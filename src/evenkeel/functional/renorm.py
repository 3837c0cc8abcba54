# SPDX-License-Identifier: Apache-2.0
"""How far renorm corrects the batch's statistics towards the moving ones."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Real
from typing import Any, NamedTuple

from evenkeel import arguments
from evenkeel.backends.contract import Tensor
from evenkeel.errors import ArgumentError, RenormLimitError

Limit = float | Tensor | Callable[[Tensor], Tensor] | None
"""A number, a scalar tensor, or a function of the number of updates so far, which is a scalar integer tensor."""


class Limits(NamedTuple):
    """Bounds of the correction; None is no bound.

    rmin, rmax: of the ratio of batch to moving standard deviation.
    dmax: of the distance of the means, in moving standard deviations.
    """

    rmin: Limit = None
    rmax: Limit = None
    dmax: Limit = None

    @classmethod
    def of(cls, given: dict[str, Limit] | None) -> Limits:
        """The limits from a dictionary, as `renorm_clipping` of TensorFlow and Keras has them.

        Raises:
            RenormLimitError: an unknown key, `rmin > rmax`, or a limit that is negative.

        Example:
            >>> Limits.of({"rmax": 3.0, "dmax": 5.0})
            Limits(rmin=None, rmax=3.0, dmax=5.0)
        """
        given = given or {}
        if unknown := set(given) - set(cls._fields):
            raise RenormLimitError(f"renorm limits have unknown keys {sorted(unknown)}; give some of {cls._fields}")
        limits = cls(**given)
        numbers = {}
        for name, value in limits._asdict().items():
            if isinstance(value, Real | str):
                try:
                    numbers[name] = arguments.number(name, value, low=0)
                except ArgumentError as error:
                    raise RenormLimitError(f"renorm limits: {error}") from None
        if {"rmin", "rmax"} <= set(numbers) and numbers["rmin"] > numbers["rmax"]:
            raise RenormLimitError(
                f"renorm limits leave nothing between rmin={limits.rmin} and rmax={limits.rmax}; give rmin <= rmax"
            )
        return limits

    @property
    def scheduled(self) -> bool:
        return any(map(callable, self))


class Renorm(NamedTuple):
    """Batch renormalization: its limits, and the share of the old renorm statistics that is kept."""

    limits: Limits = Limits()
    momentum: float = 0.99


def corrections(
    backend: Any,
    mean: Tensor,
    stddev: Tensor,
    renorm_mean: Tensor,
    renorm_stddev: Tensor,
    *,
    limits: Limits,
    updates: Tensor | None,
    epsilon: float,
) -> tuple[Tensor, Tensor]:
    """r and d, with which `r * (x - mean) / stddev + d` is on the scale of the moving statistics.

    No gradient flows through them. `stddev` is `sqrt(variance + epsilon)`.

    References:
        Ioffe 2017, Batch Renormalization, algorithm 1; TensorFlow 1.15 keeps the moving deviation above sqrt(epsilon).
    """
    rmin, rmax, dmax = (
        limit if limit is None else backend.cast(_now(backend, limit, updates, mean), backend.dtype(mean))
        for limit in limits
    )
    divisor = backend.maximum(renorm_stddev, epsilon**0.5)
    r, d = stddev / divisor, (mean - renorm_mean) / divisor
    if rmin is not None:
        r = backend.maximum(r, rmin)
    if rmax is not None:
        r = backend.minimum(r, rmax)
    if dmax is not None:
        d = backend.maximum(backend.minimum(d, dmax), -dmax)
    return backend.stop_gradient(r), backend.stop_gradient(d)


def _now(backend: Any, limit: Limit, updates: Tensor | None, like: Tensor) -> Tensor:
    # Channels differ in their updates only where a bad batch left some out; the schedule is that of the others.
    value = limit(backend.largest(updates)) if callable(limit) else limit
    return backend.convert(value, like=like)


def composed(
    r: Tensor | None, d: Tensor | None, gamma: Tensor | None, beta: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """`(x * r + d) * gamma + beta` as one scale and one offset; None is 1 and 0, r and d are given together."""
    if r is None or d is None:
        return gamma, beta
    offset = d if gamma is None else d * gamma
    return r if gamma is None else r * gamma, offset if beta is None else offset + beta
