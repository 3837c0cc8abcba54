# SPDX-License-Identifier: Apache-2.0
"""The activation stands on the other side of a few normalizers than of most.

What it looks for
    Normalizers right after an activation in a model where four times as many, and at least four, come before theirs;
    or the other way round.
Why it matters
    Both orders work, but one that changes within a model is more often a slip than a choice. The statistics after a
    ReLU are those of numbers that are not negative.
What to do
    See whether it is meant.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from evenkeel.doctor.evidence import Neighbour, Place, Structure
from evenkeel.doctor.finding import Finding

ID = "EK503"
SEVERITY = "note"
MAJORITY, TIMES = 4, 4
LINEAR, RELU = Neighbour("conv", "linear", bias=False), Neighbour("relu", "activation", homogeneous=True)
USUAL = [Place(f"bn{number}", (LINEAR,), (RELU, LINEAR)) for number in range(4)]
OTHER = Place("odd", (RELU, LINEAR), (LINEAR,))
SICK = [
    Structure((*USUAL, OTHER)),
    Structure((*(Place(f"bn{number}", (RELU, LINEAR), (LINEAR,)) for number in range(4)), USUAL[0])),
    Structure((*(Place(f"bn{number}", (LINEAR,), activation=True) for number in range(4)), OTHER)),
]
HEALTHY = [
    Structure((*USUAL[:3], OTHER)),
    Structure((*USUAL, OTHER, OTHER)),
    Structure((*USUAL, Place("linear", (LINEAR,), (Neighbour("add", "junction"), LINEAR)))),
    Structure((*USUAL, Place("between", (RELU, LINEAR), (RELU, LINEAR)))),
    Structure((*USUAL, Place("next", (LINEAR, RELU), (LINEAR,)))),
]


def check(structure: Structure) -> Iterator[Finding]:
    sides: dict[str, list[str]] = {"before": [], "after": []}
    for place in structure.places:
        before, after = _activates(place.before), place.activation or _activates(place.after)
        if before != after:
            sides["before" if before else "after"].append(place.name)
    few, many = sorted(sides, key=lambda side: len(sides[side]))
    if len(sides[many]) >= max(MAJORITY, TIMES * len(sides[few])):
        for name in sides[few]:
            seen = f"its activation comes {few} it; that of {len(sides[many])} others comes {many}"
            yield Finding(ID, name, seen, "see whether it is meant")


def _activates(neighbours: Sequence[Neighbour]) -> bool:
    """Whether an activation comes before anything else that computes."""
    for neighbour in neighbours:
        if neighbour.kind in ("linear", "normalizer", "other"):
            return False
        if neighbour.kind == "activation":
            return True
    return False
