# SPDX-License-Identifier: Apache-2.0
"""Which layers stand round a normalizer, in a graph of calls of any library."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping
from typing import NamedTuple

from evenkeel.doctor.evidence import Neighbour, Place

HOMOGENEOUS = ("relu", "leakyrelu", "prelu", "rrelu")
ACTIVATIONS = (
    *("relu6", "elu", "selu", "celu", "crelu", "gelu", "silu", "swish", "mish", "glu", "sigmoid", "logsigmoid", "tanh"),
    *("softplus", "softsign", "softmax", "logsoftmax", "exponential", "threshold", "hardsigmoid", "hardswish"),
    *("hardsilu", "hardtanh", "hardshrink", "softshrink", "tanhshrink", "squareplus", "sparseplus", "sparsemax"),
)
SHAPES = ("flatten", "reshape", "permute", "transpose", "squeeze", "unsqueeze", "unflatten", "view", "repeatvector")
ENDS = ("linear", "normalizer", "other")


class Call(NamedTuple):
    """One call in a graph.

    inputs: keys of the calls whose results it takes.
    steps: what it does, in that order; nothing where it gives back what it got.
    normalizer: the place of a normalizer, still without neighbours.
    """

    inputs: tuple[Hashable, ...]
    steps: tuple[Neighbour, ...] = ()
    normalizer: Place | None = None


def neighbour(name: str, kind: str) -> Neighbour:
    """A layer or function of this name, by what its kind is called in any library.

    Example:
        >>> neighbour("a", "LeakyReLU").homogeneous, neighbour("b", "hard_swish").homogeneous
        (True, False)
        >>> [neighbour("c", kind).kind for kind in ("MaxPool2d", "SpatialDropout1D", "Permute", "LayerNorm", "Lambda")]
        ['pool', 'dropout', 'shape', 'normalizer', 'other']
    """
    word = kind.replace("_", "").lower()
    if word in HOMOGENEOUS or word in ACTIVATIONS:
        return Neighbour(name, "activation", homogeneous=word in HOMOGENEOUS)
    for part, found in (("dropout", "dropout"), ("pool", "pool"), ("norm", "normalizer")):
        if part in word:
            return Neighbour(name, found)
    return Neighbour(name, "shape" if word in SHAPES else "other")


def places(calls: Mapping[Hashable, Call], outputs: Iterable[Hashable]) -> Iterator[Place]:
    """Where the normalizers of one graph stand.

    Args:
        calls: by key.
        outputs: keys of the calls whose results leave the graph.

    Example:
        >>> relu, conv = neighbour("relu", "ReLU"), Neighbour("conv", "linear", bias=True)
        >>> calls = {"x": Call(()), 1: Call(("x",), (conv,)), 2: Call((1,), (), Place("bn")), 3: Call((2,), (relu,))}
        >>> place, = places(calls, [3])
        >>> [layer.name for layer in place.before], [layer.name for layer in place.after]
        (['conv'], ['relu'])
    """
    users = defaultdict(list)
    uses = Counter(outputs)
    for key, call in calls.items():
        uses.update(call.inputs)
        for source in call.inputs:
            users[source].append(key)
    for key, call in calls.items():
        if call.normalizer and call.normalizer.calls == 1:
            before, after = tuple(_before(calls, uses, key)), (*call.steps[1:], *_after(calls, uses, users, key))
            yield call.normalizer._replace(before=before, after=after)
        elif call.normalizer:
            yield call.normalizer


def _before(calls: Mapping[Hashable, Call], uses: Mapping[Hashable, int], key: Hashable) -> Iterator[Neighbour]:
    while len(calls[key].inputs) == 1:
        (key,) = calls[key].inputs
        if uses[key] != 1:
            return
        for step in reversed(calls[key].steps):
            yield step
            if step.kind in (*ENDS, "junction"):
                return


def _after(
    calls: Mapping[Hashable, Call],
    uses: Mapping[Hashable, int],
    users: Mapping[Hashable, list[Hashable]],
    key: Hashable,
) -> Iterator[Neighbour]:
    while uses[key] == 1 and users[key]:
        (key,) = users[key]
        for step in calls[key].steps:
            yield step
            if step.kind in ENDS:
                return
