# SPDX-License-Identifier: Apache-2.0
"""Which normalizers of a network fold into the layer before or after them, and why the others do not."""

from __future__ import annotations

import collections
from collections.abc import Hashable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from evenkeel.functional.normalize import scale_and_offset
from evenkeel.surgery.fold import algebra
from evenkeel.surgery.fold.report import Folded, Left


class Normalizer(NamedTuple):
    """What batch normalization does at inference: `x * scale + offset`.

    axis: of the channels, counted from the front.
    scale, offset: float64, shape `(channels,)`.
    condition: by how much more a rounding of `x` weighs than one of the result, in the worst channel.
    activation: what the result goes through; empty for nothing.
    """

    axis: int
    scale: np.ndarray
    offset: np.ndarray
    condition: float
    activation: str = ""

    @classmethod
    def of(
        cls, axis: int, mean: Any, variance: Any, gamma: Any, beta: Any, epsilon: float, activation: str = ""
    ) -> Normalizer:
        """From the moving statistics and the weights; None for gamma or beta is 1 or 0."""
        mean, variance, gamma, beta = (
            None if value is None else np.asarray(value, "float64") for value in (mean, variance, gamma, beta)
        )
        with np.errstate(all="ignore"):  # What is not finite is refused.
            scale, offset = scale_and_offset(mean, variance, gamma, beta, epsilon=epsilon)
            condition = float(np.sqrt(1 + (mean**2 / (variance + epsilon)).max(initial=0)))
        return cls(axis, scale, offset, condition, activation)


class Call(NamedTuple):
    """One call of a layer.

    name, kind: of the layer, as the report has them.
    inputs: keys of the calls whose results it takes.
    part: what it does; `"passes"` for a layer whose result is its input, `"other"` for what is none of these.
    activation: what the result of a linear layer goes through; empty for nothing.
    refusal: why it cannot be changed, as the end of a sentence about it; empty if it can.
    """

    name: str
    kind: str
    inputs: tuple[Hashable, ...]
    part: Normalizer | algebra.Linear | str = "other"
    activation: str = ""
    refusal: str = ""

    def __str__(self) -> str:
        return f"{self.name} ({self.kind})"


class Plan(NamedTuple):
    """folded, left: for the report; linears: key -> what that layer becomes; gone: keys of folded normalizers."""

    folded: list[Folded]
    left: list[Left]
    linears: dict[Any, algebra.Linear]
    gone: list[Any]
    condition: float


def plan(calls: Mapping[Hashable, Call], outputs: Iterable[Hashable]) -> Plan:
    """Fold what can be folded: into the layer before a normalizer if there is one, else into the one after it.

    Args:
        calls: of one network, each after those whose results it takes.
        outputs: keys of the calls whose results leave the network.
    """
    calls = dict(calls)
    users: dict[Hashable, list[Hashable]] = collections.defaultdict(list)
    for key, call in calls.items():
        for source in call.inputs:
            users[source].append(key)
    for key in outputs:
        users[key].append(None)

    result = Plan([], [], {}, [], 1.0)
    condition = 1.0
    why: dict[Hashable, list[str]] = {}
    normalizers = [key for key, call in calls.items() if isinstance(call.part, Normalizer)]
    # Downwards and then upwards, so that of a chain of normalizers each finds the next one gone.
    for order, side in ((normalizers, "before"), (normalizers[::-1], "after")):
        for key in order:
            call = calls[key]
            if not isinstance(normalizer := call.part, Normalizer):
                continue
            target, reason = None, _refusal(call)
            if not reason:
                target, reason = (_above if side == "before" else _below)(calls, users, key)
            if target is None:
                why.setdefault(key, []).append(reason)
                continue
            linear = calls[target].part
            assert isinstance(linear, algebra.Linear)
            change = algebra.after if side == "before" else algebra.before
            changed = change(linear, normalizer.axis, normalizer.scale, normalizer.offset)
            calls[target] = calls[target]._replace(part=changed)
            left_over = normalizer.activation and f"{normalizer.activation} of {call.kind}"
            calls[key] = call._replace(part="other" if left_over else "passes", kind=left_over or call.kind)
            why.pop(key, None)
            result.linears[target] = changed
            result.gone.append(key)
            result.folded.append(Folded(call.name, calls[target].name, side))
            condition = max(condition, normalizer.condition)
    left = (Left(calls[key].name, "; ".join(dict.fromkeys(why[key]))) for key in normalizers if key in why)
    return result._replace(left=list(dict.fromkeys(left)), condition=condition)


def _refusal(call: Call) -> str:
    normalizer = call.part
    assert isinstance(normalizer, Normalizer)
    if call.refusal:
        return f"it {call.refusal}"
    if not np.isfinite([normalizer.scale, normalizer.offset]).all():
        return "its scale or offset is not finite"
    return ""


def _above(
    calls: Mapping[Hashable, Call], users: Mapping[Hashable, list[Hashable]], key: Hashable
) -> tuple[Hashable | None, str]:
    """The layer whose result a normalizer takes, or why there is none to fold into."""
    normalizer, source = calls[key].part, key
    while source == key or calls[source].part == "passes":
        source, *_ = calls[source].inputs  # whatever else a normalizer takes is added afterwards
        if len(users[source]) > 1:
            return None, f"the result of {calls[source]} before it is used elsewhere too"
    call = calls[source]
    if not isinstance(call.part, algebra.Linear):
        return None, f"before it stands {call}"
    if call.refusal:
        return None, f"{call} before it {call.refusal}"
    if call.activation:
        return None, f"{call} before it ends in {call.activation}"
    return _same_channels(source, call, normalizer, call.part.writes, "before")


def _below(
    calls: Mapping[Hashable, Call], users: Mapping[Hashable, list[Hashable]], key: Hashable
) -> tuple[Hashable | None, str]:
    """The layer that takes the result of a normalizer, or why there is none to fold into."""
    normalizer, user = calls[key].part, key
    assert isinstance(normalizer, Normalizer)
    if normalizer.activation:
        return None, f"it ends in {normalizer.activation}"
    while user == key or calls[user].part == "passes":
        if len(users[user]) > 1:
            return None, "its result is used in several places"
        if users[user] in ([], [None]):
            return None, "after it stands nothing"
        (user,) = users[user]
    call = calls[user]
    if not isinstance(call.part, algebra.Linear):
        return None, f"after it stands {call}"
    if call.refusal:
        return None, f"{call} after it {call.refusal}"
    if call.part.pads and normalizer.offset.any():
        return None, f"{call} after it pads, and its offset is not 0"
    return _same_channels(user, call, normalizer, call.part.reads, "after")


def _same_channels(
    key: Hashable, call: Call, normalizer: Any, axes: Mapping[int, str], side: str
) -> tuple[Hashable | None, str]:
    if normalizer.axis not in axes:
        return None, f"its axis {normalizer.axis} is not that of the channels of {call} {side} it"
    return key, ""
