# SPDX-License-Identifier: Apache-2.0
"""Dropout stands right before batch normalization.

What it looks for
    A dropout between a normalizer and the last linear layer or normalizer before it.
Why it matters
    Dropout makes the variance larger in training than at inference, so the moving variance is wrong for inference. The
    loss of accuracy is known as variance shift (Li et al. 2018).
What to do
    Move the dropout behind the normalizer, best behind the last one of the model; or `evenkeel.recalibrate(model,
    data)`, which runs the model without dropout.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from evenkeel.doctor.evidence import Neighbour, Place, Structure
from evenkeel.doctor.finding import Finding

ID = "EK504"
SEVERITY = "warning"
DROPOUT, LINEAR = Neighbour("dropout", "dropout"), Neighbour("dense", "linear", bias=True)
RELU = Neighbour("relu", "activation", homogeneous=True)
SICK = [
    Structure((Place("bn", before=(DROPOUT, LINEAR)),)),
    Structure((Place("bn", before=(Neighbour("flatten", "shape"), DROPOUT, RELU, LINEAR)),)),
    Structure((Place("bn", before=(DROPOUT, Neighbour("add", "junction"))),)),
]
HEALTHY = [
    Structure((Place("bn", before=(LINEAR, DROPOUT)),)),
    Structure((Place("bn", before=(RELU, Neighbour("last", "normalizer"), DROPOUT)),)),
    Structure((Place("bn", after=(RELU, DROPOUT, LINEAR)),)),
    Structure((Place("bn"),)),
]


def check(structure: Structure) -> Iterator[Finding]:
    for place in structure.places:
        near = itertools.takewhile(lambda neighbour: neighbour.kind not in ("linear", "normalizer"), place.before)
        for neighbour in near:
            if neighbour.kind == "dropout":
                seen = f"its input comes from the dropout {neighbour.name}"
                yield Finding(ID, place.name, seen, "move the dropout behind it, or evenkeel.recalibrate(model, data)")
                break
