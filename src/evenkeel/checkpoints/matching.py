# SPDX-License-Identifier: Apache-2.0
"""Which layer of one checkpoint is which of another."""

from __future__ import annotations

import functools
import re
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping
from typing import NamedTuple

import numpy as np

from evenkeel.checkpoints.contents import Checkpoint, Variable
from evenkeel.checkpoints.meaning import Layer, Translation, common_shape, layers, layout, relaid
from evenkeel.checkpoints.names import FOUR
from evenkeel.errors import InputError

WRITTEN = {"gamma": 1, "beta": 0}
"""Role that a layer may do without -> what stands for it."""


def matched(source: Checkpoint, target: Checkpoint) -> tuple[Translation, list[str]]:
    """The values of `source` in the place of those of `target`: with its names, order, shapes and types.

    Layers go together as wholes, where their variables fit, by the first of these that says so:

    1. the name;
    2. the name but for capitals and signs;
    3. the name but for numbers that a library gave, by their order: `conv2d_3`, `conv2d_4` are `conv2d`, `conv2d_1`;
    4. the order: all kernels and normalizers that are left have the same shapes one after the other, and neither file
       is sorted by name;
    5. the shapes, where no other layer that is left has them.

    Gamma and beta that `source` has not are 1 and 0; counters that it has not keep the values of `target`.

    Returns:
        The result with the names that its variables had, and what is to be said about it.

    Raises:
        InputError: variables of `target` have no partner.

    Example:
        >>> fc, head = {"fc/kernel": Variable.of(np.ones((2, 3)))}, {"head.weight": Variable.of(np.zeros((3, 2)))}
        >>> result, _ = matched(Checkpoint("a", "memory", "tensorflow", fc), Checkpoint("b", "memory", "torch", head))
        >>> result.origins, result.checkpoint.variables["head.weight"].shape
        ({'head.weight': 'fc/kernel'}, (3, 2))
    """
    ours, theirs = _Side.of(source), _Side.of(target)
    our_layers, their_layers = dict(ours.left), dict(theirs.left)
    partners: dict[int, int] = {}
    notes = []
    for how, keys in KEYS.items():
        found = {
            their: our
            for our, their in _pairs(keys(ours, theirs), keys(theirs, ours))
            if _obstacle(source, ours.left[our], target, theirs.left[their]) is None
        }
        for there, here in found.items():
            del theirs.left[there], ours.left[here]
        partners |= found
        if found:
            notes.append(f"{len(found)} {'layer' if len(found) == 1 else 'layers'} matched by {how}")
    lost = {
        i: layer for i, layer in theirs.left.items() if not all(_counts(target, part) for part in layer.parts.values())
    }
    if lost:
        raise InputError(_without_partner(theirs._replace(left=lost), ours, list(our_layers.values())))
    variables = dict(target.variables)
    origins: dict[str, str | None] = dict.fromkeys(variables)
    for index, their in their_layers.items():
        our = our_layers[partners[index]] if index in partners else None
        for role, name in their.parts.items():
            if our and role in our.parts:
                origins[name] = our.parts[role]
                variables[name] = _carried(source, our, target, their, role)
            elif our and role in WRITTEN:
                variables[name] = _constant(variables[name], WRITTEN[role])
                notes.append(f"{'/'.join(our.path)}: no {role} in the source, {WRITTEN[role]} written")
            elif role != "count":
                notes.append(f"{name}: not in the source, the target's own value stays")
    result = Checkpoint(source.path, source.format, target.convention, variables, target.facts, target.model)
    return Translation(result, origins), notes


class _Side(NamedTuple):
    """A checkpoint and those of its layers that have no partner yet, by their number."""

    checkpoint: Checkpoint
    left: dict[int, Layer]

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> _Side:
        return cls(checkpoint, dict(enumerate(layers(checkpoint))))


# Keys: layers of two sides that share one go together, if no other layer of their side has it too.


def _names(side: _Side, other: _Side) -> dict[int, Hashable]:
    return {index: (*_group(layer), *layer.path) for index, layer in _counted_alike(side, other).items()}


def _words(side: _Side, other: _Side) -> dict[int, Hashable]:
    return {
        index: (*_group(layer), "".join(_plain(part) for part in layer.path))
        for index, layer in _counted_alike(side, other).items()
    }


def _counted_alike(side: _Side, other: _Side) -> dict[int, Layer]:
    """Without those whose numbers overlap only: `bn`, `bn_1` are not `bn_1`, `bn_2` of a model that counts further."""
    ours, theirs = _families(side), _families(other)
    alike = {key for key in ours if key not in theirs or ours[key] <= theirs[key] or ours[key] >= theirs[key]}
    return {index: layer for index, layer in side.left.items() if alike.issuperset(_family_keys(layer.path))}


def _numbers(side: _Side, other: _Side) -> dict[int, Hashable]:
    """Paths with the rank of each number in the place of it, and how many numbers there are."""
    families = {key: sorted(numbers) for key, numbers in _families(side).items()}

    def rank(key: tuple[int, str], part: str) -> tuple[str, int, int]:
        return key[1], bisect_left(families[key], _split(part)[1]), len(families[key])

    return {
        index: (*_group(layer), *map(rank, _family_keys(layer.path), layer.path)) for index, layer in side.left.items()
    }


def _places(side: _Side, other: _Side) -> dict[int, Hashable]:
    """How many layers come before, where that says something."""
    signatures = _signatures(side, other)
    if list(signatures.values()) != list(_signatures(other, side).values()):
        return {}
    if _is_sorted(side.checkpoint) or _is_sorted(other.checkpoint):
        return {}
    return {index: place for place, index in enumerate(signatures)}


def _signatures(side: _Side, other: _Side) -> dict[int, Hashable]:
    """Shapes, of layers of which more is known than that."""
    return {index: _signature(layer, side.checkpoint) for index, layer in side.left.items() if layer.kind != "other"}


def _signature(layer: Layer, checkpoint: Checkpoint) -> Hashable:
    variables = checkpoint.variables
    if layer.kind == "normalizer":
        return next(variables[name].size for role, name in layer.parts.items() if role in FOUR)
    return frozenset(
        (role, common_shape(variables[name].shape, layout(layer, role), checkpoint.convention))
        for role, name in layer.parts.items()
    )


def _group(layer: Layer) -> tuple[Hashable, ...]:
    """What only goes together with its like."""
    return (layer.kind == "normalizer", *(layer.parts if layer.kind == "other" else ()))


@functools.lru_cache(2**16)
def _split(part: str) -> tuple[str, int]:
    """A part of a path without its number, and the number; -1 is none."""
    base = part.rstrip("0123456789")
    digits = part[len(base) :]
    return (base.rstrip("_"), int(digits)) if 0 < len(digits) < 10 else (part, -1)


@functools.lru_cache(2**16)
def _plain(part: str) -> str:
    """Without capitals and signs."""
    return re.sub(r"[\W_]", "", part.casefold())


def _families(side: _Side) -> Mapping[tuple[int, str], set[int]]:
    """Names that differ by a number alone -> the numbers."""
    result = defaultdict(set)
    for layer in side.left.values():
        for key, part in zip(_family_keys(layer.path), layer.path, strict=True):
            result[key].add(_split(part)[1])
    return result


@functools.lru_cache(2**16)
def _family_keys(path: tuple[str, ...]) -> list[tuple[int, str]]:
    """For each part of a path what comes before, as a hash, and the part without its number."""
    keys, before = [], 0
    for part in path:
        keys.append((before, _plain(_split(part)[0])))
        before = hash((before, part))
    return keys


def _is_sorted(checkpoint: Checkpoint) -> bool:
    """Whether the order of the variables is that of their names, so says nothing; some formats put types together."""
    by_type = defaultdict(list)
    for name, variable in checkpoint.variables.items():
        by_type[variable.dtype].append(name)
    return all(names == sorted(names) for names in by_type.values())


KEYS = {"name": _names, "name but for signs": _words, "number": _numbers, "order": _places, "shape": _signatures}


def _pairs(ours: Mapping[int, Hashable], theirs: Mapping[int, Hashable]) -> list[tuple[int, int]]:
    here, there = _unique(ours), _unique(theirs)
    return [(here[key], there[key]) for key in here.keys() & there.keys()]


def _unique(keys: Mapping[int, Hashable]) -> dict[Hashable, int]:
    counts = Counter(keys.values())
    return {key: index for index, key in keys.items() if counts[key] == 1}


# What fits.


def _obstacle(source: Checkpoint, our: Layer, target: Checkpoint, their: Layer) -> str | None:
    """Why the values of one layer cannot be those of another."""
    for role, name in their.parts.items():
        optional = _counts(target, name) or (their.kind == "normalizer" and role in WRITTEN)
        if role not in our.parts and not optional:
            return f"has no {role}"
        if role in our.parts:
            try:
                _carried(source, our, target, their, role)
            except InputError as error:
                return str(error)
    extra = our.parts.keys() - their.parts.keys()
    if extra and their.kind != "normalizer":
        return f"has {', '.join(sorted(extra))} too"
    return None


def _carried(source: Checkpoint, our: Layer, target: Checkpoint, their: Layer, role: str) -> Variable:
    """A variable of our layer as a part of theirs."""
    variable, wanted = source.variables[our.parts[role]], target.variables[their.parts[role]]
    if (variable.dtype.kind in "iub") != (wanted.dtype.kind in "iub"):
        raise InputError(f"{variable.where} is {variable.dtype}, which cannot become {wanted.dtype}")
    kinds = [layout(our, role), layout(their, role)]
    if role == "kernel" and "embedding" in (our.kind, their.kind):  # of a torch weight it is guessed
        kinds = [layout(their if source.convention == "torch" else our, role)] * 2
    before, after = zip(kinds, (source.convention, target.convention), strict=True)
    return relaid(variable, before, after, wanted.shape, wanted.dtype)


def _counts(checkpoint: Checkpoint, name: str) -> bool:
    """Whether a variable is a counter, or a state that counts as one."""
    return checkpoint.variables[name].dtype.kind in "iub"


def _constant(variable: Variable, value: float) -> Variable:
    """Everywhere `value`, in the place of a variable."""
    return Variable(
        variable.shape, variable.dtype, variable.where, lambda: np.full(variable.shape, value, variable.dtype)
    )


def _without_partner(theirs: _Side, ours: _Side, everything: list[Layer]) -> str:
    """Which layers of the target are left, and what the layer of the same name, if any, has instead."""
    named = {layer.path: layer for layer in everything}
    lines = []
    for layer in theirs.left.values():
        path = "/".join(layer.path)
        shapes = ", ".join(f"{role} {theirs.checkpoint.variables[name].shape}" for role, name in layer.parts.items())
        same = named.get(layer.path)
        reason = _obstacle(ours.checkpoint, same, theirs.checkpoint, layer) if same else None
        lines.append(f"{path} ({shapes})" + (f": that of the source {reason}" if reason else ""))
    left = ", ".join("/".join(layer.path) for layer in ours.left.values() if layer.kind != "other") or "none"
    return (
        f"{theirs.checkpoint.path} has layers without a partner in {ours.checkpoint.path}: {'; '.join(lines)}; layers "
        f"left there: {left}; say which is which with rules old=new for the names of {ours.checkpoint.path}"
    )
