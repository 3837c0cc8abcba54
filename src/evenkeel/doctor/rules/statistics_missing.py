# SPDX-License-Identifier: Apache-2.0
"""Moving statistics are not in the file.

What it looks for
    A normalizer without its moving mean or its moving variance, or with those of the last batch alone.
Why it matters
    A model that loads the file keeps the starting values 0 and 1 at inference. Such files come from a saver of
    trainable variables, or of `named_parameters()`: moving statistics are neither (tensorflow/skflow#117,
    tflearn/tflearn#153).
What to do
    Save all variables: `tf.compat.v1.train.Saver(tf.compat.v1.global_variables())`, `model.state_dict()`,
    `model.save(...)`. If that is too late, load the file and call `evenkeel.recalibrate(model, data)`.
"""

from __future__ import annotations

from collections.abc import Iterator

from evenkeel.doctor.evidence import Normalizer
from evenkeel.doctor.finding import Finding

ID = "EK102"
SEVERITY = "error"
EXPLAINS = ("EK401", "EK403")
SICK = [
    Normalizer("bn", missing=("mean", "variance")),
    Normalizer("bn", missing=("variance",)),
]
HEALTHY = [Normalizer("bn")]


def check(normalizer: Normalizer) -> Iterator[Finding]:
    if normalizer.missing:
        last = "; only that of the last batch is there" if "batch_mean" in normalizer.others else ""
        yield Finding(
            ID,
            normalizer.name,
            f"{' and '.join(normalizer.missing)} missing{last}",
            "save all variables, not only trainable ones; or load it and evenkeel.recalibrate(model, data)",
        )
