# SPDX-License-Identifier: Apache-2.0
"""One normalizer is called at several places.

What it looks for
    A normalizer that is called at more than one place of the model, itself or with the model it is part of.
Why it matters
    Every call moves the same statistics, so inference uses a mixture that fits none of the places if their inputs
    differ. Updates also come several times a step.
What to do
    A normalizer for each place, where the inputs differ; kernels may still be shared. With data, EK408 tells whether
    they do: `evenkeel doctor MODEL --data DATA`.
"""

from __future__ import annotations

from collections.abc import Iterator

from evenkeel.doctor.evidence import Place, Structure
from evenkeel.doctor.finding import Finding

ID = "EK505"
SEVERITY = "note"
SICK = [Structure((Place("bn", calls=2),))]
HEALTHY = [Structure((Place("one"), Place("other")))]


def check(structure: Structure) -> Iterator[Finding]:
    for place in structure.places:
        if place.calls > 1:
            yield Finding(ID, place.name, f"called at {place.calls} places", "a normalizer for each place")
