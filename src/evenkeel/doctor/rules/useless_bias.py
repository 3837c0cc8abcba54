# SPDX-License-Identifier: Apache-2.0
"""A bias before batch normalization is useless.

What it looks for
    A convolution or dense layer with a bias, directly before a normalizer or with nothing but changes of shape between.
Why it matters
    The mean of the batch takes the bias away again, so it costs memory and time and learns nothing. Its gradient is
    zero but for rounding.
What to do
    `use_bias=False`, or in torch `bias=False`; beta does what the bias was to do. In a trained model leave it:
    `evenkeel.fold(model)` takes both away.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from evenkeel.doctor.evidence import Neighbour, Place, Structure
from evenkeel.doctor.finding import Finding

ID = "EK501"
SEVERITY = "note"
CONVOLUTION = Neighbour("conv", "linear", bias=True)
SICK = [
    Structure((Place("bn", before=(CONVOLUTION,)),)),
    Structure((Place("bn", before=(Neighbour("flatten", "shape"), CONVOLUTION)),)),
]
HEALTHY = [
    Structure((Place("bn", before=(Neighbour("conv", "linear", bias=False),)),)),
    Structure((Place("bn", before=(Neighbour("relu", "activation", homogeneous=True), CONVOLUTION)),)),
    Structure((Place("bn", after=(CONVOLUTION,)),)),
    Structure((Place("bn"),)),
]


def check(structure: Structure) -> Iterator[Finding]:
    found = [(place.name, layer.name) for place in structure.places if (layer := _before(place)) and layer.bias]
    if found:
        where, nearest = found[0]
        seen = f"{nearest} before it has a bias" + (f"; so it is at {len(found)} normalizers" if found[1:] else "")
        yield Finding(ID, where, seen, "use_bias=False in the layer before (torch: bias=False)")


def _before(place: Place) -> Neighbour | None:
    """The nearest that does more than change the shape, if it is linear."""
    nearest = next(itertools.dropwhile(lambda neighbour: neighbour.kind == "shape", place.before), None)
    return nearest if nearest and nearest.kind == "linear" else None
