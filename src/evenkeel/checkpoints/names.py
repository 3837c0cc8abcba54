# SPDX-License-Identifier: Apache-2.0
"""Which variables of a checkpoint are the parts of a normalizer, by their names."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

FOUR = ("gamma", "beta", "mean", "variance")


class Found(NamedTuple):
    """A normalizer, as names.

    scope: what its variables' names begin with; of Flax without `params` and `batch_stats`.
    dialect: whose names these are.
    roles: of `FOUR` and what else it keeps -> the variable's name.
    missing: of `FOUR` those that it must have: mean and variance, since a layer may do without gamma and beta.
    """

    scope: str
    dialect: str
    roles: Mapping[str, str]
    missing: tuple[str, ...]


AVERAGES = {"ExponentialMovingAverage": "average", "EMA": "average", "biased": "biased", "local_step": "local_step"}
"""Last part of what TensorFlow keeps for an average of a variable -> what that is, after the role of the variable."""


class _Row(NamedTuple):
    """How one family of libraries calls the parts of a normalizer.

    dialect: its name; that of TensorFlow's family is settled afterwards.
    roles: last part of a name -> role.
    signs: any of these sets of last parts is this family's, and a normalizer's.
    affine: last parts of scale and offset; alone, they are anybody's.
    """

    dialect: str
    roles: Mapping[str, str]
    signs: tuple[frozenset[str], ...]
    affine: tuple[str, str] = ("gamma", "beta")


def _row(dialect: str, roles: Mapping[str, str], *signs: str, affine: tuple[str, str] = ("gamma", "beta")) -> _Row:
    parts = {**dict(zip(affine, ("gamma", "beta"), strict=True)), **roles}
    averages = {f"{leaf}/{tail}": f"{role}_{what}" for leaf, role in parts.items() for tail, what in AVERAGES.items()}
    return _Row(dialect, {**averages, **parts}, tuple(frozenset(sign.split()) for sign in signs), affine)


KEPT = {name: name for name in ("moving_stddev", "renorm_mean", "renorm_stddev", "updates")}
"""What batch renormalization and averages that count keep, called alike by all that have it -> role."""
_WEIGHTS = {name: name for name in ("renorm_mean_weight", "renorm_stddev_weight")}
_BATCH = {"mean": "batch_mean", "variance": "batch_variance"}

ROWS = (
    _row(
        "tf",
        {"moving_mean": "mean", "moving_variance": "variance", **KEPT, **_WEIGHTS},
        "moving_mean",
        "moving_variance",
    ),
    _row("tensorpack", {"mean/EMA": "mean", "variance/EMA": "variance", **_BATCH}, "mean/EMA", "variance/EMA"),
    _row(
        "helper",
        {"mean/ExponentialMovingAverage": "mean", "variance/ExponentialMovingAverage": "variance", **_BATCH},
        "mean/ExponentialMovingAverage",
        "variance/ExponentialMovingAverage",
        "mean variance beta",
    ),
    _row("keras", {"running_mean": "mean", "running_std": "variance"}, "running_std", "running_mean gamma"),
    _row(
        "torch",
        {"running_mean": "mean", "running_var": "variance", "num_batches_tracked": "count", **KEPT},
        "running_mean",
        "running_var",
        affine=("weight", "bias"),
    ),
    _row(
        "flax",
        {"mean": "mean", "var": "variance", **KEPT},
        "mean var",
        "mean scale",
        "var scale",
        affine=("scale", "bias"),
    ),
)
"""In the order in which they are tried. Keras 1 called its variance `running_std`."""
LEAVES = frozenset().union(*(row.roles for row in ROWS)) | {"is_training"}
OBJECT, SLOT = "/.ATTRIBUTES/VARIABLE_VALUE", "/.OPTIMIZER_SLOT/"
"""What object checkpoints of TensorFlow 2 put at the end of a name, and into names of an optimizer's variables."""

COLLECTIONS = ("params", "batch_stats")
KERAS_1 = re.compile(r"(.+)_(gamma|beta|running_mean|running_std)", re.DOTALL)
OURS = re.compile(r"batch_?norm|sync_?bn|(?<![a-z])bn(?![a-z])", re.IGNORECASE)
OTHERS = re.compile(r"(layer|group|instance|rms|spectral|weight|filter)_?norm|(?<![a-z])[lg]n(?![a-z])", re.IGNORECASE)
NUMBER = re.compile(r"_\d+$")
PREFIXES = 16
"""How many scopes round the one of a variable are looked through, for what is kept of it."""


def find(shapes: Mapping[str, tuple[int, ...]], kinds: Mapping[str, str | None]) -> list[Found]:
    """The normalizers, in the order in which their first variable comes.

    A scope with moving statistics is a normalizer. One with a scale and an offset alone is one where `kinds` says so,
    or its name; `gamma` together with `beta` also where neither says that it is a layer normalization or the like.

    The parts of a normalizer are of one size, and counters are single numbers. One of another size is no part: the
    size of most of `FOUR` counts, and of the mean, then of the variance, where they are at odds.

    Averages of parts have roles such as `gamma_average`; variables of optimizers have none.

    Args:
        shapes: name of a variable -> its shape.
        kinds: scope -> name of the class of the layer, where the file says so; with its module, such as
            `keras.layers.BatchNormalization`, for a layer of Keras 3.

    Example:
        >>> shapes = {"bn/beta": (3,), "bn/beta/Adam": (3,), "bn/moving_mean": (3,), "fc/kernel": (3, 2)}
        >>> find(shapes, {})
        [Found(scope='bn', dialect='tf.layers', roles={'beta': 'bn/beta', 'mean': 'bn/moving_mean'},
               missing=('variance',))]
    """
    scopes = _scopes(shapes)
    told = _told(shapes, scopes)
    found = []
    for scope, leaves in scopes.items():
        if _refused(scope, kinds.get(scope)):
            continue
        if reading := _reading(scope, leaves, shapes, kinds, scopes):
            row, parts = reading
            roles = {row.roles[leaf]: name for leaf, name in parts.items()}
            missing = tuple(role for role in ("mean", "variance") if role not in roles)
            found.append(Found(scope, _dialect(row, scope, parts, kinds, told), roles, missing))
    return found


def averages(names: Collection[str]) -> dict[str, str]:
    """Name of a variable -> name of its moving average, an EMA shadow of TensorFlow.

    Example:
        >>> averages(["net/w", "net/net/w/ExponentialMovingAverage", "b", "b/Adam"])
        {'net/w': 'net/net/w/ExponentialMovingAverage'}
    """
    found: dict[str, str] = {}
    for name in names:
        owner, _, tail = name.rpartition("/")
        if AVERAGES.get(NUMBER.sub("", tail)) == "average":
            averaged = next((inner for inner in _inner(owner) if inner in names), None)
            if averaged is not None:
                found.setdefault(averaged, name)
    return found


def _reading(
    scope: str,
    leaves: Mapping[str, str],
    shapes: Mapping[str, tuple[int, ...]],
    kinds: Mapping[str, str | None],
    scopes: Mapping[str, Mapping[str, str]],
) -> tuple[_Row, dict[str, str]] | None:
    """Whose names these are, and the parts with their names; None for what is no normalizer."""
    for row in ROWS:
        if _signed(row, leaves) and _signed(row, parts := _fitting(row, leaves, shapes)):
            return row, parts
    for row in ROWS:
        if not leaves.keys().isdisjoint(row.affine):
            parts = _fitting(row, leaves, shapes)
            if _affine(row, scope, parts, shapes, kinds, scopes):
                return row, parts
    return None


def _signed(row: _Row, leaves: Mapping[str, str]) -> bool:
    return any(sign <= leaves.keys() for sign in row.signs)


def _scopes(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, dict[str, str]]:
    """Scope -> last parts of names that some library uses -> the names."""
    flax = any(name.startswith(("batch_stats/", "batch_stats.")) for name in shapes)
    scopes: dict[str, dict[str, str]] = {}
    averages = []
    for name in shapes:
        scope, leaf = _split(name, flax)
        tail = NUMBER.sub("", leaf)
        if leaf in LEAVES:
            scopes.setdefault(scope, {}).setdefault(leaf, name)
        elif tail in AVERAGES:
            scope, _, leaf = scope.rpartition("/")
            averages.append((scope, f"{leaf}/{tail}", name))
    for scope, leaf, name in averages:
        owner = next((inner for inner in _inner(scope) if inner in scopes), scope)
        scopes.setdefault(owner, {}).setdefault(leaf, name)
    return scopes


def _split(name: str, flax: bool) -> tuple[str, str]:
    """Scope and last part, without what a library puts round them."""
    if SLOT in name:
        return name, ""
    if name.endswith(OBJECT):
        name = name.removesuffix(OBJECT)
    separator = "/" if "/" in name else "."
    scope, _, leaf = name.rpartition(separator)
    if leaf == "value":  # of Flax's nnx
        scope, _, leaf = scope.rpartition(separator)
    if flax and scope.split(separator, 1)[0] in COLLECTIONS:
        scope = scope.partition(separator)[2]
    if old := KERAS_1.fullmatch(leaf):
        layer, leaf = old.groups()
        if scope.rpartition(separator)[2] != layer:
            scope = f"{scope}{separator}{layer}" if scope else layer
    return scope, leaf


def _inner(scope: str) -> Iterable[str]:
    """A scope, and what is left of it without the first, second, ... of its parts.

    TensorFlow puts what it keeps for `net/bn/mean` below `net/net/bn/mean` where it does so inside of `net`.
    """
    for _ in range(PREFIXES):
        yield scope
        _, slash, scope = scope.partition("/")
        if not slash:
            return


def _fitting(row: _Row, leaves: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, str]:
    """The last parts that have roles, with their names, if they are of the size of the rest."""
    parts = {leaf: name for leaf, name in leaves.items() if leaf in row.roles}
    sizes = {leaf: math.prod(shapes[name]) for leaf, name in parts.items()}
    by_role = {row.roles[leaf]: leaf for leaf in parts}
    four = [sizes[by_role[role]] for role in ("mean", "variance", "gamma", "beta") if role in by_role]
    size = Counter(four).most_common(1)[0][0] if four else 1
    return {
        leaf: name
        for leaf, name in parts.items()
        if sizes[leaf] == size or (not shapes[name] and row.roles[leaf] not in FOUR)
    }


def _is_ours(kind: str | None) -> bool:
    return kind is not None and "batchnorm" in kind.replace("_", "").lower()


def _refused(scope: str, kind: str | None) -> bool:
    """Whether the class says that this is none, or the name of the scope itself."""
    if kind is not None:
        return not _is_ours(kind)
    last = re.split(r"[/.]", scope[-200:])[-1]
    return bool(OTHERS.search(last)) and not OURS.search(last)


def _affine(
    row: _Row,
    scope: str,
    parts: Mapping[str, str],
    shapes: Mapping[str, tuple[int, ...]],
    kinds: Mapping[str, str | None],
    scopes: Mapping[str, Mapping[str, str]],
) -> bool:
    """Whether a scale and an offset, or one of them, are what is left of a normalizer."""
    present = [leaf for leaf in row.affine if leaf in parts]
    anybodys = row.dialect != "tf" and row.affine[0] not in present  # a bias has every layer
    if not present or anybodys or any(len(shapes[parts[leaf]]) != 1 for leaf in present):
        return False
    last = re.split(r"[/.]", scope[-200:])[-1]
    if _is_ours(kinds.get(scope)) or OURS.search(last):
        said = True
    else:
        said = row.dialect == "tf" and len(present) == 2 and not OTHERS.search(scope)
    # An optimizer of Keras keeps what belongs to `bn/gamma` in `Adam/m/bn/gamma`.
    return said and not any("moving_mean" in scopes.get(inner, {}) for inner in _inner(scope))


class _Told(NamedTuple):
    """What the file as a whole says of whose names these are.

    object_based: written by TensorFlow 2 by objects, so by Keras.
    tflearn: scopes with tflearn's switch; there is one in a file.
    contrib: kernels are called as in `tf.contrib.layers`.
    in_order: names are not just sorted, so that their order says something.
    """

    object_based: bool
    tflearn: frozenset[str]
    contrib: bool
    in_order: bool


def _told(shapes: Mapping[str, tuple[int, ...]], scopes: Mapping[str, Mapping[str, str]]) -> _Told:
    names = list(shapes)
    return _Told(
        object_based=any(name.endswith(OBJECT) for name in names),
        tflearn=frozenset(scope for scope, leaves in scopes.items() if "is_training" in leaves),
        contrib=any(name.endswith("/weights") for name in names)
        and not any(name.endswith("/kernel") for name in names),
        in_order=names != sorted(names),
    )


def _dialect(row: _Row, scope: str, parts: Mapping[str, str], kinds: Mapping[str, str | None], told: _Told) -> str:
    """Of TensorFlow's family by the class, the default name of the scope, then what the file as a whole says.

    In a sorted file beta comes before gamma in every dialect; else only where `tf.contrib.layers` made them, which by
    default makes no gamma.
    """
    if row.dialect != "tf":
        return row.dialect
    if kind := kinds.get(scope):
        return "keras" if kind.startswith(("keras.", "evenkeel")) else "tf.keras"
    if told.object_based:
        return "tf.keras"
    last = NUMBER.sub("", scope.rpartition("/")[2])
    if scope in told.tflearn or (told.tflearn and last == "BatchNormalization"):
        return "tflearn"
    if last == "batch_normalization":
        return "tf.layers"
    order = list(parts)
    beta_first = "gamma" not in order or ("beta" in order and order.index("beta") < order.index("gamma"))
    if last == "BatchNorm" or told.contrib or (told.in_order and beta_first):
        return "tf.contrib.layers"
    return "tf.layers"
