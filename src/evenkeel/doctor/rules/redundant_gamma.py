# SPDX-License-Identifier: Apache-2.0
"""Gamma before a linear layer is redundant.

What it looks for
    A normalizer with gamma, after which a linear layer comes: at once, or after homogeneous activations such as ReLU,
    pooling and changes of shape, with no way in or out between.
Why it matters
    The weights of the linear layer can scale every channel just as well. Gamma costs a parameter a channel, which is
    little, and some training recipes rely on it.
What to do
    Nothing, or `scale=False`, as `tf.contrib.layers.batch_norm` has it by default.
"""

from __future__ import annotations

from collections.abc import Iterator

from evenkeel.doctor.evidence import Neighbour, Place, Structure
from evenkeel.doctor.finding import Finding

ID = "EK502"
SEVERITY = "note"
RELU, SIGMOID = Neighbour("relu", "activation", homogeneous=True), Neighbour("sigmoid", "activation", homogeneous=False)
POOL, LINEAR = Neighbour("pool", "pool"), Neighbour("conv", "linear", bias=True)
SICK = [
    Structure((Place("bn", after=(LINEAR,)),)),
    Structure((Place("bn", after=(RELU, POOL, Neighbour("flatten", "shape"), LINEAR)),)),
]
HEALTHY = [
    Structure((Place("bn", after=(SIGMOID, LINEAR)),)),
    Structure((Place("bn", after=(RELU, LINEAR), scale=False),)),
    Structure((Place("bn", after=(Neighbour("add", "junction"), RELU, LINEAR)),)),
    Structure((Place("bn", after=(RELU, POOL)),)),
    Structure((Place("bn", before=(LINEAR,)),)),
]


def check(structure: Structure) -> Iterator[Finding]:
    found = [(place.name, layer.name) for place in structure.places if place.scale and (layer := _after(place))]
    if found:
        where, nearest = found[0]
        seen = f"gamma before {nearest}" + (f"; so it is at {len(found)} normalizers" if found[1:] else "")
        yield Finding(ID, where, seen, "scale=False, if parameters are to be saved")


def _after(place: Place) -> Neighbour | None:
    """The linear layer that a scale goes through to."""
    for neighbour in place.after:
        if neighbour.kind == "linear":
            return neighbour
        if neighbour.kind not in ("shape", "pool") and not neighbour.homogeneous:
            return None
    return None
