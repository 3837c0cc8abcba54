# SPDX-License-Identifier: Apache-2.0
"""What a Flax nnx module says of its normalizers."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

from evenkeel.doctor.evidence import Evidence, Normalizer, Unseen
from evenkeel.doctor.options import Options

KIND = "Flax module"
NO_DATA = Unseen("the statistics of batches", "no data was given", "evenkeel.diagnose(module, data)")
NO_STRUCTURE = Unseen(
    "how the layers follow each other",
    "a Flax module is a program, and has no graph",
    "see that no dropout stands before a normalizer, and no bias",
)


def recognises(subject: Any) -> bool:
    module = getattr(sys.modules.get("flax.nnx"), "Module", None)
    return module is not None and isinstance(subject, module)


def evidence(subject: Any, options: Options) -> Iterator[Evidence]:
    from flax import nnx

    found = [("/".join(map(str, path)), node) for path, node in nnx.iter_graph(subject)]
    normalizers = {name: _normalizer(name, node, options) for name, node in found if isinstance(node, nnx.BatchNorm)}
    if not normalizers:
        return
    yield from normalizers.values()
    yield NO_STRUCTURE
    if options.data is None:
        yield NO_DATA
    else:
        from evenkeel.doctor import observing

        yield from observing.evidence(subject, options, normalizers)


def _normalizer(name: str, layer: Any, options: Options) -> Normalizer:
    # What only ours has.
    frozen, updates = getattr(layer, "frozen", None), _values(getattr(layer, "updates", None))
    others = {
        field: _values(getattr(layer, field, None)) for field in ("moving_stddev", "renorm_mean", "renorm_stddev")
    }
    return Normalizer(
        name or type(layer).__name__,
        _values(layer.mean),
        _values(layer.var),
        _values(layer.scale),
        _values(layer.bias),
        others={field: value for field, value in others.items() if value is not None},
        library="flax",
        momentum=layer.momentum,
        epsilon=layer.epsilon,
        average=getattr(layer, "average", "exponential"),
        bessel_correction=getattr(layer, "bessel_correction", False),
        frozen=frozen,
        trainable=False if frozen == "all" else None,
        # A module that was told to serve may be on its way to train.
        moves=False if frozen else None if layer.use_running_average else True,
        updates=None if updates is None else int(updates.max()),
        steps=options.steps,
        batches_per_step=options.batches_per_step,
    )


def _values(variable: Any) -> np.ndarray | None:
    """A copy, or it would change with the variable."""
    return None if variable is None else np.array(variable[...])
