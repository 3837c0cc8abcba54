# SPDX-License-Identifier: Apache-2.0
"""What recalibration did."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from evenkeel.functional.moving import State
from evenkeel.surgery.recalibrate.pool import Pool


class Renewed(NamedTuple):
    """A normalizer that the data reached.

    calls: how often; more than there were batches where the layer is shared.
    values: how many values its statistics are of; the largest over the channels, weights added up.
    shift: how far the mean moved, in new standard deviations; the largest over the channels.
    factor: how much larger or smaller the variance became; the largest over the channels, at least 1.
    spoiled: channel -> in how many calls it was not finite, and was left out.
    kept: channels that kept their statistics, for fewer than two finite values were seen.
    """

    name: str
    calls: int
    values: float
    shift: float
    factor: float
    spoiled: dict[int, int]
    kept: list[int]


class RecalibrationReport(NamedTuple):
    """What became of each normalizer; as text, a line each.

    method: "pooled" or "sequential".
    renewed: those that were reached, in the order of their first call.
    unreached: names of those that no batch came to; they have kept their statistics.
    left: name -> why the statistics were to stay.
    measure: what `before` and `after` are: "accuracy", "loss" or "score"; None where nothing was to be compared.
    before, after: of the model with the old and with the new statistics.
    kept: which statistics the model has now: "new", or "old" where they are the better.
    """

    method: str
    renewed: list[Renewed]
    unreached: list[str]
    left: dict[str, str]
    measure: str | None = None
    before: float | None = None
    after: float | None = None
    kept: str = "new"

    def __str__(self) -> str:
        lines = [
            f"{item.name}: {item.values:,.0f} values, mean moved by up to {item.shift:.3g} standard deviations, "
            f"variance by a factor of up to {item.factor:.3g}{_oddities(item)}"
            for item in self.renewed
        ]
        lines += [f"{name}: kept its statistics, for no data reached it" for name in self.unreached]
        lines += [f"{name}: kept its statistics: {reason}" for name, reason in self.left.items()]
        if self.measure:
            lines.append(f"{self.measure}: {self.before:.4g} before, {self.after:.4g} after; kept the {self.kept} ones")
        return "\n".join(lines)


def renewed(name: str, pool: Pool, old: State, new: State) -> Renewed:
    """What changed in one normalizer."""
    known = pool.moments.count > 1
    with np.errstate(all="ignore"):  # statistics that were destroyed may be anything
        shift = np.abs(new.moving_mean - old.moving_mean) / np.sqrt(new.moving_variance)
        factor = np.exp(np.abs(np.log(new.moving_variance) - np.log(old.moving_variance)))
    spoiled = pool.spoiled.ravel()
    return Renewed(
        name,
        pool.calls,
        float(pool.moments.count.max(initial=0)),
        _largest(shift.ravel()[known.ravel()]),
        max(_largest(factor.ravel()[known.ravel()]), 1.0),
        {int(channel): int(spoiled[channel]) for channel in np.flatnonzero(spoiled)},
        np.flatnonzero(~known).tolist(),
    )


def _largest(values: np.ndarray) -> float:
    """NaN, of what was not finite before or did not vary, is as large as can be."""
    return float(np.nan_to_num(values, nan=np.inf, posinf=np.inf).max(initial=0))


def _oddities(item: Renewed) -> str:
    said = f"; not finite, and left out, in {_channels(item.spoiled)}" if item.spoiled else ""
    return said + (f"; as it was in {_channels(item.kept)}, which had fewer than two values" if item.kept else "")


def _channels(channels: dict[int, int] | list[int]) -> str:
    shown = [str(channel) for channel in channels][:8]
    more = len(channels) - len(shown)
    return f"channel{'s' if len(channels) > 1 else ''} {', '.join(shown)}{f' and {more} more' if more else ''}"
