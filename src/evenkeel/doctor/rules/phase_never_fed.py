# SPDX-License-Identifier: Apache-2.0
"""Nothing feeds the placeholder that decides on the phase.

What it looks for
    A placeholder without default on which the phase of a normalizer depends, and a signature, or a feed that was
    given, that does not have it.
Why it matters
    Every run ends in "You must feed a value for placeholder tensor 'is_training'", and who serves the model has no
    name to feed it by.
What to do
    Give it a default, `tf.placeholder_with_default(False, [], "is_training")`, or export a graph that was built with
    `training=False`.
"""

from __future__ import annotations

from collections.abc import Iterator

from evenkeel.doctor.evidence import Placeholder
from evenkeel.doctor.finding import Finding

ID = "EK305"
SEVERITY = "error"
SICK = [Placeholder("is_training", default=False, fed=False, normalizers=("bn1", "bn2"))]
HEALTHY = [
    Placeholder("is_training", default=True, fed=False),
    Placeholder("is_training", default=False, fed=True),
    Placeholder("is_training", default=False, fed=None),
]


def check(placeholder: Placeholder) -> Iterator[Finding]:
    if not placeholder.default and placeholder.fed is False:
        of = f", the phase of {', '.join(placeholder.normalizers[:3])}" if placeholder.normalizers else ""
        more = f" and {len(placeholder.normalizers) - 3} more" if len(placeholder.normalizers) > 3 else ""
        yield Finding(
            ID,
            placeholder.name,
            f"placeholder {placeholder.name!r} has no default and nothing feeds it{of}{more}",
            f'tf.placeholder_with_default(False, [], "{placeholder.name}")',
        )
