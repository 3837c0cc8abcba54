# SPDX-License-Identifier: Apache-2.0
"""Weight decay pulls at gamma and beta.

What it looks for
    An optimizer with weight decay that has scales or offsets of normalizers among what it decays; or a regularizer of
    them. Up to 5e-4, as many recipes have it for all parameters, it is a note.
Why it matters
    Decay of gamma and beta pulls the outputs of every channel towards zero, and is no regularization of the weights
    before them. Training recipes of residual networks leave them out.
What to do
    `evenkeel.decay_exclusions(model)` has what to leave out: for Keras
    `optimizer.exclude_from_weight_decay(var_list=evenkeel.decay_exclusions(model))` before the training starts, for
    torch the groups of the optimizer.
"""

from __future__ import annotations

from collections.abc import Iterator

from evenkeel.doctor.evidence import Decay
from evenkeel.doctor.finding import Finding

ID = "EK204"
SEVERITY = "warning"
SMALL = 5e-4  # what the usual recipes have for all parameters alike
SICK = [Decay("AdamW", 0.004, ("bn/gamma", "bn/beta")), Decay("SGD", 5e-4, ("bn/gamma", "bn/beta"))]
HEALTHY = [
    Decay("AdamW", 0.004, ()),
    Decay("AdamW", 0.0, ("bn/gamma",)),
]


def check(decay: Decay) -> Iterator[Finding]:
    if decay.decayed and decay.value:
        yield Finding(
            ID,
            decay.decayed[0],
            f"{decay.optimizer} decays {len(decay.decayed)} of the gammas and betas by {decay.value:g}",
            "leave evenkeel.decay_exclusions(model) out of weight decay",
            "warning" if decay.value > SMALL else "note",
        )
