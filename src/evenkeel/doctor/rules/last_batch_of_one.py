# SPDX-License-Identifier: Apache-2.0
"""The last batch has one row, and a normalizer then one value a channel.

What it looks for
    Data whose rows, cut into batches, leave a last one of a single row, and normalizers with one value a row, such as
    those after a flatten or a dense layer.
Why it matters
    torch ends the training there with an error, at the end of an epoch. Elsewhere nothing but beta comes out of the
    layer for that row, and its variance of 0 goes into the moving variance; evenkeel's layers leave such a batch out.
What to do
    `drop_last=True` in a DataLoader, `drop_remainder=True` in tf.data, or another batch size.
"""

from __future__ import annotations

from collections.abc import Iterator

from evenkeel.doctor.evidence import Batching
from evenkeel.doctor.finding import Finding

ID = "EK405"
SEVERITY = "warning"
SICK = [Batching(33, 32, False, ("bn",), False), Batching(65, 32, False, ("bn", "other"), True)]
HEALTHY = [
    Batching(33, 32, True, ("bn",), True),
    Batching(33, 32, False, (), True),
    Batching(64, 32, False, ("bn",), True),
    Batching(34, 32, False, ("bn",), True),
    Batching(5, 1, False, ("bn",), True),
]


def check(batching: Batching) -> Iterator[Finding]:
    rest = batching.rows % batching.batch_size
    if batching.flat and rest == 1 and not batching.drop_last:
        yield Finding(
            ID,
            batching.flat[0],
            f"{batching.rows} rows in batches of {batching.batch_size} leave a last one of 1 row",
            "drop_last=True (tf.data: drop_remainder=True), or another batch size",
            "error" if batching.raises else "warning",
        )
