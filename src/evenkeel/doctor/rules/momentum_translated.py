# SPDX-License-Identifier: Apache-2.0
"""The number of the momentum was copied from a library that means the opposite by it.

What it looks for
    A pair of one library whose momentum is the share that is kept and one whose momentum is the share that is
    replaced, with the same number in both.
Why it matters
    Training goes on with statistics that follow the last batches alone, or hardly move: 0.99 of Keras is 0.01 of
    torch. Nothing shows it before somebody fine-tunes (huggingface/transformers#19454).
What to do
    `nn.BatchNorm2d(n, momentum=1 - momentum)` for the momentum of Keras or the decay of TensorFlow, and the other way
    round.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from evenkeel.dialects import DIALECTS
from evenkeel.doctor.evidence import Normalizer, Pair
from evenkeel.doctor.finding import Finding

ID = "EK155"
SEVERITY = "error"
EXPLAINS = ("EK202",)
SICK = [
    Pair(Normalizer("bn", library="keras", momentum=0.99), Normalizer("bn", library="torch", momentum=0.01)),
    Pair(Normalizer("bn", library="torch", momentum=0.9), Normalizer("bn", library="tf.layers", momentum=1 - 0.9)),
]
HEALTHY = [
    Pair(Normalizer("bn", library="keras", momentum=0.99), Normalizer("bn", library="torch", momentum=0.99)),
    Pair(Normalizer("bn", library="keras", momentum=0.99), Normalizer("bn", library="torch", momentum=0.9)),
    Pair(Normalizer("bn", library="keras", momentum=0.5), Normalizer("bn", library="torch", momentum=0.5)),
    Pair(Normalizer("bn", library="keras", momentum=0.99), Normalizer("bn", library="flax", momentum=0.01)),
    Pair(Normalizer("bn", library="keras", momentum=0.99), Normalizer("bn", library="torch")),
    Pair(Normalizer("bn", momentum=0.99), Normalizer("bn", library="torch", momentum=0.01)),
]


def check(pair: Pair) -> Iterator[Finding]:
    before, after = pair.before, pair.after
    if before.library is None or after.library is None or before.momentum is None or after.momentum is None:
        return
    opposite = DIALECTS[before.library].kept != DIALECTS[after.library].kept
    copied = math.isclose(before.momentum, 1 - after.momentum, abs_tol=1e-6)
    if opposite and copied and not math.isclose(before.momentum, 0.5, abs_tol=1e-6):
        number = before.momentum if DIALECTS[before.library].kept else 1 - before.momentum
        yield Finding(
            ID,
            after.name,
            f"momentum {number:.6g} in {before.library} and in {after.library}: "
            f"{before.momentum:.6g} of the old was kept, and {after.momentum:.6g} is",
            f"give the layer momentum={1 - number:.6g}",
        )
