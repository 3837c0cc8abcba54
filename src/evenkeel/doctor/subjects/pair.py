# SPDX-License-Identifier: Apache-2.0
"""What became of each normalizer between two checkpoints: by a training, or by a conversion."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np

from evenkeel.checkpoints import Checkpoint, flags, names
from evenkeel.checkpoints.matching import matched
from evenkeel.checkpoints.meaning import layers
from evenkeel.doctor.evidence import Evidence, Pair, Unseen, differ
from evenkeel.doctor.options import Options
from evenkeel.doctor.subjects import checkpoint as single
from evenkeel.errors import InputError

KIND = "pair of checkpoints"
LISTED = 5
"""So many names stand for all in a sentence."""


def recognises(subject: Any) -> bool:
    return isinstance(subject, tuple | list) and len(subject) == 2 and all(map(single.recognises, subject))


def evidence(subject: Any, options: Options) -> Iterator[Evidence]:
    before, after = map(single.read, subject)
    partners = _partners(before, after)
    trained = _trained(before, after)
    old = single.normalizers(before, options, partners.values())
    silent: dict[str, float] = {}
    for normalizer in single.normalizers(after, options):
        yield normalizer
        if normalizer.name in partners:
            pair = Pair(next(old), normalizer, trained)
            silent |= _silent(pair, before.path, after.path)
            yield pair
    yield from single.unseen(after, options)
    for path, epsilon in silent.items():
        yield Unseen(
            "whether epsilon is the same", f"{path} does not say what it is", f"see that its model has {epsilon:g}"
        )
    yield from _by_place(partners)
    yield from _alone(after, before, partners.keys())
    yield from _alone(before, after, set(partners.values()))


def _partners(before: Checkpoint, after: Checkpoint) -> dict[str, str]:
    """Name of a normalizer after -> its name before, in the order of the file after."""
    owners = _owners(before), _owners(after)
    try:
        origins = matched(_reduced(before, owners[0]), _reduced(after, owners[1]))[0].origins
    except InputError:  # some have no partner, so what is like what cannot be told; the same name is left
        return _namesakes(before, after, owners)
    found = {owners[1][name]: owners[0][origin] for name, origin in origins.items() if origin is not None}
    return {normalizer.name: found[normalizer.name] for normalizer in after.normalizers if normalizer.name in found}


def _owners(checkpoint: Checkpoint) -> dict[str, str]:
    """Name of each gamma, beta, mean and variance -> name of its normalizer."""
    shapes = {name: variable.shape for name, variable in checkpoint.variables.items()}
    kinds = {name: facts.kind for name, facts in checkpoint.facts.items()}
    return {
        name: found.scope
        for found in names.find(shapes, kinds)
        for role, name in found.roles.items()
        if role in names.FOUR
    }


def _reduced(checkpoint: Checkpoint, owners: Mapping[str, str]) -> Checkpoint:
    """The same with these variables alone."""
    variables = {name: checkpoint.variables[name] for name in owners}
    return Checkpoint(checkpoint.path, checkpoint.format, checkpoint.convention, variables, checkpoint.facts)


def _namesakes(
    before: Checkpoint, after: Checkpoint, owners: tuple[Mapping[str, str], Mapping[str, str]]
) -> dict[str, str]:
    """Those whose path is the same and that have as many channels."""

    def places(checkpoint: Checkpoint, owners: Mapping[str, str]) -> dict[Any, str]:
        channels = {normalizer.name: normalizer.channels for normalizer in checkpoint.normalizers}
        return {
            (layer.path, channels[owners[name]]): owners[name]
            for layer in layers(checkpoint)
            if layer.kind == "normalizer"
            for name in layer.parts.values()
            if name in owners
        }

    ours, theirs = places(before, owners[0]), places(after, owners[1])
    found = {theirs[place]: ours[place] for place in theirs if place in ours}
    return {normalizer.name: found[normalizer.name] for normalizer in after.normalizers if normalizer.name in found}


def _trained(before: Checkpoint, after: Checkpoint) -> bool | None:
    """Whether kernels, biases and the like changed, as far as both have them under one name; None where they do not."""
    weights = [
        name
        for layer in layers(after)
        if layer.kind not in ("normalizer", "other")
        for name in layer.parts.values()
        if _comparable(before, after, name)
    ]
    if not weights:
        return None
    return any(differ(before.variables[name].read(), after.variables[name].read()) for name in weights)


def _comparable(before: Checkpoint, after: Checkpoint, name: str) -> bool:
    old, new = before.variables.get(name), after.variables[name]
    return old is not None and old.shape == new.shape and all(_floating(part.dtype) for part in (old, new))


def _floating(dtype: np.dtype[Any]) -> bool:
    return flags.are_numbers(dtype) and dtype.kind not in "iub"


def _silent(pair: Pair, before: str, after: str) -> dict[str, float]:
    """Which of the two does not say what epsilon is -> what the other says."""
    old, new = pair.before.epsilon, pair.after.epsilon
    if old is not None and new is None:
        return {after: old}
    return {before: new} if old is None and new is not None else {}


def _by_place(partners: Mapping[str, str]) -> Iterator[Unseen]:
    others = [f"{old} as {new}" for new, old in partners.items() if old.replace("/", ".") != new.replace("/", ".")]
    if others:
        more = f" and {len(others) - LISTED} more" if len(others) > LISTED else ""
        yield Unseen(
            "whether normalizers of other names are the same ones",
            f"{', '.join(others[:LISTED])}{more}: taken by their order and shapes",
            "see that they are, or rename them with evenkeel convert --map OLD=NEW",
        )


def _alone(checkpoint: Checkpoint, other: Checkpoint, paired: Collection[str]) -> Iterator[Unseen]:
    alone = [normalizer.name for normalizer in checkpoint.normalizers if normalizer.name not in paired]
    if alone and other.normalizers:
        more = f" and {len(alone) - LISTED} more" if len(alone) > LISTED else ""
        yield Unseen(
            f"what became of {', '.join(alone[:LISTED])}{more}",
            f"{checkpoint.path} has them, and {other.path} has none of which it is sure that they are the same",
            f"evenkeel convert {checkpoint.path} RENAMED --map OLD=NEW, and compare that",
        )
