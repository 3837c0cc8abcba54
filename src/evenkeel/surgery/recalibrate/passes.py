# SPDX-License-Identifier: Apache-2.0
"""How often the data goes through the model, and which statistics its layers see meanwhile."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import numpy as np

from evenkeel.errors import InputError
from evenkeel.functional.moving import State
from evenkeel.surgery.recalibrate.pool import Pool, merged, nothing, packed, pool_of, unpacked
from evenkeel.surgery.recalibrate.processes import Gather
from evenkeel.surgery.recalibrate.subject import Call, Normalizer, Subject

Before = Mapping[Normalizer, State]
Rounds = Callable[[], Iterable[Any]]
"""Starts the batches of one more pass."""


def pooled(subject: Subject, rounds: Rounds, before: Before, gather: Gather) -> dict[Normalizer, Pool]:
    """One pass; every layer normalizes a batch with the batch's own statistics, as in training."""
    pools = _seen(subject, rounds, before, gather, wanted=before, show=True)
    for normalizer, old in before.items():
        # Those that were reached have what the last batch showed them.
        normalizer.write(_final(normalizer, old, pools[normalizer]) if normalizer in pools else old)
    return pools


def sequential(subject: Subject, rounds: Rounds, before: Before, gather: Gather) -> dict[Normalizer, Pool]:
    """One pass to learn the order, and one a layer; each sees what comes out of the new statistics before it."""
    pools: dict[Normalizer, Pool] = {}
    for normalizer in _seen(subject, rounds, before, gather, wanted=(), show=False):
        found = _seen(subject, rounds, before, gather, wanted=(normalizer,), show=False)
        pools[normalizer] = found[normalizer]
        normalizer.write(_final(normalizer, before[normalizer], pools[normalizer]))
    return pools


METHODS = {"pooled": pooled, "sequential": sequential}


def _final(normalizer: Normalizer, old: State, pool: Pool) -> State:
    return normalizer.renewed(old, pool, sample=normalizer.sample)


def _seen(
    subject: Subject, rounds: Rounds, before: Before, gather: Gather, *, wanted: Collection[Normalizer], show: bool
) -> dict[Normalizer, Pool]:
    """What one pass in all processes says of the wanted normalizers; the others that were called have empty pools.

    In the order of their first call.
    """
    pools: dict[Normalizer, Pool] = {}
    shapes = _shapes(before)

    def seen(normalizer: Normalizer, call: Call) -> State | None:
        pools.setdefault(normalizer, nothing(shapes[normalizer]))
        if normalizer not in wanted:
            return None
        batch = pool_of(call.measure())
        if batch.spoiled.shape != shapes[normalizer]:
            raise InputError(
                f"{normalizer.name} keeps statistics of shape {shapes[normalizer]}, and its input has those of shape "
                f"{batch.spoiled.shape}; give data that fits the model"
            )
        pools[normalizer] = merged(pools[normalizer], batch)
        return normalizer.renewed(before[normalizer], batch, sample=False) if show else None

    with subject.running(seen) as run:
        for batch in rounds():
            run(batch)
    return _together(pools, before, gather)


def _together(pools: dict[Normalizer, Pool], before: Before, gather: Gather) -> dict[Normalizer, Pool]:
    """The pools of all processes, merged in the order of the processes, so that all find the same bits."""
    places = {normalizer: place for place, normalizer in enumerate(pools)}
    shapes = _shapes(before)
    rows = [
        packed(pools.get(normalizer, nothing(shape)), places.get(normalizer, math.inf))
        for normalizer, shape in shapes.items()
    ]
    ends = np.cumsum([row.size for row in rows])[:-1]
    shares = [np.split(vector, ends) for vector in gather(np.concatenate(rows))]
    found = []
    for normalizer, *parts in zip(shapes, *shares, strict=True):
        unpacked_parts = [unpacked(row, shapes[normalizer]) for row in parts]
        place = min(float(more[0]) for _, more in unpacked_parts)
        if place < math.inf:
            found.append((place, normalizer, merged(*(pool for pool, _ in unpacked_parts))))
    return {normalizer: pool for _, normalizer, pool in sorted(found, key=lambda item: item[0])}


def _shapes(before: Before) -> dict[Normalizer, tuple[int, ...]]:
    return {normalizer: old.moving_mean.shape for normalizer, old in before.items()}
