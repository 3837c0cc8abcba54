# SPDX-License-Identifier: Apache-2.0
"""At inference, what comes out for a row depends on the other rows of its batch.

What it looks for
    The outputs of some rows of a small batch, in inference mode, before and after the other rows were replaced; a
    change that is larger than rounding.
Why it matters
    The same input gets another answer in other company, so single requests and large batches disagree. Most often a
    normalizer still uses the statistics of its batch, as one in training mode does.
What to do
    Call the model with `training=False`; in torch give the normalizers running statistics
    (`track_running_stats=True`); look for `training=True` in the model's own code.
"""

from __future__ import annotations

from collections.abc import Iterator

from evenkeel.doctor.evidence import Rows
from evenkeel.doctor.finding import Finding

ID = "EK402"
SEVERITY = "error"
SICK = [Rows(change=0.8, rounding=1e-5), Rows(change=1e-3, rounding=1e-5)]
HEALTHY = [Rows(change=0.0, rounding=0.0), Rows(change=1e-6, rounding=1e-5), Rows(change=0.3, rounding=0.5)]


def check(rows: Rows) -> Iterator[Finding]:
    if rows.change > rows.rounding:
        yield Finding(
            ID,
            "outputs at inference",
            f"changed by {rows.change:.2g} standard deviations with the other rows; rounding explains "
            f"{rows.rounding:.1g}",
            "call it with training=False; look for training=True inside, or track_running_stats=False",
        )
