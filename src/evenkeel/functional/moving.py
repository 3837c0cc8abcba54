# SPDX-License-Identifier: Apache-2.0
"""How a batch enters the moving statistics."""

from __future__ import annotations

from typing import Any, NamedTuple

from evenkeel import backends
from evenkeel.backends.contract import Tensor

AVERAGES = ("exponential", "debiased", "cumulative")


class State(NamedTuple):
    """What a normalizer remembers between batches; every entry has shape `(channels,)`.

    moving_mean, moving_variance: used at inference.
    moving_stddev, renorm_mean, renorm_stddev: with renorm only; deviations are `sqrt(variance + epsilon)`.
    updates: how many batches each channel took in; with an average or a schedule that counts only.
    """

    moving_mean: Tensor
    moving_variance: Tensor
    moving_stddev: Tensor | None = None
    renorm_mean: Tensor | None = None
    renorm_stddev: Tensor | None = None
    updates: Tensor | None = None


def counts_updates(average: str) -> bool:
    """Whether this average needs `State.updates`."""
    return average != "exponential"


def kept_share(backend: Any, average: str, momentum: float, updates: Tensor | None, like: Tensor) -> Tensor | float:
    """The share of the old average that stays when the next batch comes in.

    * exponential: `momentum`, always.
    * debiased: `1 - (1 - momentum) / (1 - momentum**t)` at update t, so the start value leaves no trace.
    * cumulative: `1 - 1/t`: every batch counts the same.

    Example:
        >>> kept_share(backends.primitives("numpy"), "cumulative", 0.9, np.array([0, 3]), np.zeros(2))
        array([0.  , 0.75])
    """
    if average == "exponential":
        return momentum
    before = backend.cast(updates, backend.dtype(like))
    if average == "cumulative" or momentum == 1:  # the limit of the debiased weight for momentum to 1
        return before / (before + 1)
    return momentum * (1 - momentum**before) / (1 - momentum ** (before + 1))


def moved(backend: Any, old: Tensor, new: Tensor, kept: Tensor | float, accepted: Tensor) -> Tensor:
    """`kept * old + (1 - kept) * new` where the batch was accepted, `old` elsewhere."""
    # What is not kept may be anything: 0 times infinity would be NaN.
    mixed = new if isinstance(kept, float) and kept == 0 else old * kept + new * (1 - kept)
    return backend.where(accepted, mixed, old)


def deviation_of(variance: Tensor, epsilon: float) -> Tensor:
    """The deviation of renorm that goes with a variance, `sqrt(variance + epsilon)`.

    Example:
        >>> deviation_of(np.array([3.0]), 1.0)
        array([2.])
    """
    return backends.of(variance).sqrt(variance + epsilon)


def variance_of(backend: Any, deviation: Tensor, epsilon: float) -> Tensor:
    """The other way round."""
    # Rounding may bring the difference below zero.
    return backend.relu(deviation * deviation - epsilon)


def updated(
    backend: Any,
    state: State,
    *,
    mean: Tensor,
    variance: Tensor,
    usable: Tensor,
    momentum: float,
    average: str,
    renorm_momentum: float,
    epsilon: float,
) -> State:
    """The state after one batch; `variance` is the one to be kept, divided as the caller wants it.

    A channel whose mean or variance is not finite keeps all that it had: one NaN would stay for ever, since
    every later average contains it. So does a channel that is not `usable`.
    """
    # In the type of the state, where float16 may overflow though the batch's own statistics did not.
    dtype = backend.dtype(state.moving_mean)
    mean, variance = (backend.cast(backend.stop_gradient(value), dtype) for value in (mean, variance))
    accepted = usable & backend.is_finite(mean) & backend.is_finite(variance)
    kept = kept_share(backend, average, momentum, state.updates, state.moving_mean)
    new = {"moving_mean": moved(backend, state.moving_mean, mean, kept, accepted)}
    if state.renorm_mean is None:
        new["moving_variance"] = moved(backend, state.moving_variance, variance, kept, accepted)
    else:
        stddev = deviation_of(variance, epsilon)
        new["renorm_mean"] = moved(backend, state.renorm_mean, mean, renorm_momentum, accepted)
        new["renorm_stddev"] = moved(backend, state.renorm_stddev, stddev, renorm_momentum, accepted)
        new["moving_stddev"] = deviation = moved(backend, state.moving_stddev, stddev, kept, accepted)
        new["moving_variance"] = backend.where(
            accepted, variance_of(backend, deviation, epsilon), state.moving_variance
        )
    if state.updates is not None:
        new["updates"] = state.updates + backend.cast(accepted, backend.dtype(state.updates))
    return state._replace(**new)
