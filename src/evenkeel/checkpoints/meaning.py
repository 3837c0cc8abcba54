# SPDX-License-Identifier: Apache-2.0
"""What a variable is, whatever its library calls it and however it lays it out."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np

from evenkeel.checkpoints import names
from evenkeel.checkpoints.contents import Checkpoint, Convention, Variable
from evenkeel.errors import InputError

Kind = Literal[
    "normalizer", "scale", "dense", "convolution", "transposed", "depthwise", "separable", "embedding", "other"
]

ROLES = {
    **dict.fromkeys(("kernel", "weights", "weight", "W", "w"), "kernel"),
    **dict.fromkeys(("bias", "biases", "b"), "bias"),
    **dict.fromkeys(("depthwise_kernel", "depthwise_weights"), "depthwise_kernel"),
    **dict.fromkeys(("pointwise_kernel", "pointwise_weights"), "pointwise_kernel"),
    **dict.fromkeys(("embeddings", "embedding"), "embedding"),
    **dict.fromkeys(("gamma", "scale"), "gamma"),
    "beta": "beta",
}
"""What the last part of a name says, in any convention."""

ORDER = ("kernel", "depthwise_kernel", "pointwise_kernel", "bias", *names.FOUR, "count")
"""In which a layer stores its variables; what else it has comes last."""

_TENSORFLOW = {"mean": "moving_mean", "variance": "moving_variance"}
WORDS: Mapping[Convention, Mapping[str, str]] = {
    "tensorflow": _TENSORFLOW,
    "keras": _TENSORFLOW,
    "torch": {
        "gamma": "weight",
        "beta": "bias",
        "mean": "running_mean",
        "variance": "running_var",
        "count": "num_batches_tracked",
        "kernel": "weight",
        "depthwise_kernel": "weight",
        "pointwise_kernel": "weight",
    },
    "flax": {
        "gamma": "scale",
        "beta": "bias",
        "variance": "var",
        "depthwise_kernel": "kernel",
        "pointwise_kernel": "kernel",
    },
}
"""Convention -> role -> word, where it is not the role's own."""

HALVES = {"depthwise_kernel": "depthwise", "pointwise_kernel": "pointwise", "bias": "pointwise"}
"""A separable convolution is two modules elsewhere: role -> module."""

KERNELS = ("dense", "convolution", "transposed", "depthwise")
COLLECTIONS = ("params", "batch_stats")
OBJECT_BASED = "/.ATTRIBUTES/VARIABLE_VALUE"
NAMED_TRANSPOSED = re.compile(r"transpose|deconv", re.IGNORECASE)
NAMED_DEPTHWISE = re.compile(r"depthwise|(^|[^a-z])dw([^a-z]|$)", re.IGNORECASE)
NAMED_EMBEDDING = re.compile(r"emb(ed(ding)?s?)?(_?\d+)?$", re.IGNORECASE)


class Layer(NamedTuple):
    """Variables that belong together.

    path: of scopes or modules.
    kind: "scale" has gamma and beta, and no statistics; "other" is one variable of which nothing is known.
    parts: role -> name of the variable, in the order of the file. A role is one of `ORDER`; what is none of them is the
        rest of the name.
    """

    path: tuple[str, ...]
    kind: Kind
    parts: Mapping[str, str]


class Translation(NamedTuple):
    """A checkpoint, and what each of its variables was called before; None is what was not there."""

    checkpoint: Checkpoint
    origins: Mapping[str, str | None]


def layers(checkpoint: Checkpoint) -> list[Layer]:
    """All variables, as layers, in the order of the file. Each variable is in one layer.

    A kernel is a depthwise, transposed or ordinary convolution by the word for it (`depthwise_kernel`), otherwise by
    the path (`Conv2d_transpose_1`, `block.depthwise`); a torch `weight` of two dimensions is an embedding by the path.

    Example:
        >>> values = {"a.dw.weight": np.zeros((8, 1, 3, 3)), "a.dw.bias": np.zeros(8)}
        >>> variables = {name: Variable.of(value) for name, value in values.items()}
        >>> layers(Checkpoint("example", "memory", "torch", variables))
        [Layer(path=('a', 'dw'), kind='depthwise', parts={'kernel': 'a.dw.weight', 'bias': 'a.dw.bias'})]
    """
    convention = checkpoint.convention
    shapes = {name: variable.shape for name, variable in checkpoint.variables.items()}
    kinds = {name: facts.kind for name, facts in checkpoint.facts.items()}
    places = {}
    for found in names.find(shapes, kinds):
        path = _path(found.scope, convention)
        for role, name in found.roles.items():
            places[name] = path, role if role in ORDER else "/".join(_path(name, convention)[len(path) :])
    groups: dict[tuple[tuple[str, ...], bool], dict[str, str]] = {}
    for name in shapes:
        *start, leaf = _path(name, convention)
        if start and leaf not in ROLES and leaf.startswith(f"{start[-1]}_"):  # dense_1/dense_1_W, of Keras 1
            leaf = leaf.removeprefix(f"{start[-1]}_")
        path, role = places.get(name, (tuple(start), ROLES.get(leaf, leaf)))
        parts = groups.setdefault((path, name in places), {})
        parts[next(key for key in (role, leaf, name) if key not in parts)] = name
    result = []
    for (path, normalizer), parts in groups.items():
        result += [Layer(path, "normalizer", parts)] if normalizer else _layers(path, parts, shapes, convention)
    return result


def translated(checkpoint: Checkpoint, convention: Convention) -> Checkpoint:
    """The same variables under the names of another convention, laid out as it lays them out.

    Values are transposed when they are read. What has no word in that convention keeps its own. Between TensorFlow and
    Keras only moving statistics change names, where a library has others for them.

    Raises:
        InputError: two variables would get one name.

    Example:
        >>> values = {"a/kernel": np.zeros((2, 3)), "bn/beta": np.zeros(3), "bn/moving_mean": np.zeros(3),
        ...           "bn/moving_variance": np.ones(3)}
        >>> variables = {name: Variable.of(value) for name, value in values.items()}
        >>> result = translated(Checkpoint("example", "memory", "tensorflow", variables), "torch")
        >>> list(result.variables)
        ['a.weight', 'bn.bias', 'bn.running_mean', 'bn.running_var', 'bn.num_batches_tracked']
        >>> result.variables["a.weight"].shape
        (3, 2)
    """
    return translation(checkpoint, convention).checkpoint


def translation(checkpoint: Checkpoint, convention: Convention) -> Translation:
    """`translated`, and where its variables come from."""
    source = checkpoint.convention
    if source == convention:
        return Translation(checkpoint, {name: name for name in checkpoint.variables})
    variables: dict[str, Variable] = {}
    origins: dict[str, str | None] = {}
    for layer in layers(checkpoint):
        roles = dict.fromkeys([role for role in ORDER if role in layer.parts] + list(layer.parts))
        if layer.kind == "normalizer" and convention != "torch":
            roles.pop("count", None)
        elif layer.kind == "normalizer" and "mean" in roles:
            roles["count"] = None
        for role in roles:
            old = layer.parts.get(role)
            new = _name(layer, role, source, convention)
            if new in variables:
                raise InputError(
                    f"{checkpoint.path}: {origins[new]} and {old} would both be called {new}; rename one of them"
                )
            origins[new] = old
            if old is None:
                variables[new] = Variable.of(np.zeros((), "int64"), f"{checkpoint.path}, which has no {new}")
            else:
                kind = layout(layer, role)
                variables[new] = relaid(checkpoint.variables[old], (kind, source), (kind, convention))
    # What its class is called, and which variance is kept, the file of another library cannot say.
    facts = {
        _joined(_path(scope, source), convention): fact._replace(kind=None, bessel_correction=None)
        for scope, fact in checkpoint.facts.items()
    }
    return Translation(Checkpoint(checkpoint.path, checkpoint.format, convention, variables, facts), origins)


def layout(layer: Layer, role: str) -> str:
    """How the values of a part are laid out, as the kind of layer whose kernel lies like that; "" has one way only."""
    if layer.kind == "separable":
        return {"depthwise_kernel": "depthwise", "pointwise_kernel": "convolution"}.get(role, "")
    return layer.kind if role == "kernel" and layer.kind in KERNELS else ""


def common_shape(shape: tuple[int, ...], layout: str, convention: Convention) -> tuple[int, ...]:
    """What the shapes of a part have in common in all conventions.

    Example:
        >>> common_shape((8, 4, 1, 1), "convolution", "torch"), common_shape((4, 8), "dense", "flax")
        ((4, 8), (4, 8))
    """
    values = np.broadcast_to(np.False_, shape)
    if not layout:
        return _without_ones(shape)
    shape = _neutral(values, layout, convention).shape
    return (*_without_ones(shape[:-2]), *shape[-2:]) if set(shape[:-2]) == {1} else shape


def relaid(
    variable: Variable,
    source: tuple[str, Convention],
    target: tuple[str, Convention],
    shape: tuple[int, ...] | None = None,
    dtype: np.dtype[Any] | None = None,
) -> Variable:
    """A variable as another convention lays it out; transposed when it is read.

    Args:
        source, target: its `layout` and convention, before and after.
        shape: that it must get. Without it a depthwise kernel has one output for each input. A convolution over one
            value is a dense kernel; a vector may have dimensions of one value.
        dtype: that its values get.

    Raises:
        InputError: it cannot get that shape.

    Example:
        >>> kernel = Variable.of(np.zeros((3, 5, 16, 32)))
        >>> relaid(kernel, ("convolution", "keras"), ("convolution", "torch")).shape
        (32, 16, 3, 5)
    """

    def function(values: np.ndarray) -> np.ndarray:
        if (shape == values.shape and source == target) or (shape is None and related(source[1], target[1])):
            return values
        if not source[0] and not target[0]:
            return values if shape is None else values.reshape(shape)
        values = _neutral(values, *source)
        if shape is not None:
            values = _of_rank(values, len(shape))
        return _laid_out(values, *target, shape)

    message = f"{variable.where} has shape {variable.shape}, which cannot become {shape}"
    if not source[0] and not target[0] and shape and _without_ones(shape) != _without_ones(variable.shape):
        raise InputError(message)
    try:
        new_shape = function(np.broadcast_to(np.zeros((), "bool"), variable.shape)).shape
    except ValueError as error:
        raise InputError(message) from error
    if shape is not None and new_shape != shape:
        raise InputError(message)
    return replaced(variable, function, new_shape, dtype)


def replaced(
    variable: Variable,
    function: Callable[[np.ndarray], np.ndarray],
    shape: tuple[int, ...] | None = None,
    dtype: np.dtype[Any] | None = None,
) -> Variable:
    """A variable with what `function` makes of its values, which gets `shape` and `dtype` thereby."""
    dtype = dtype or variable.dtype
    shape = variable.shape if shape is None else shape
    return Variable(shape, dtype, variable.where, lambda: np.asarray(function(variable.read()), dtype, order="C"))


def related(one: Convention, other: Convention) -> bool:
    """Whether names and layouts are the same in both, but for some names of moving statistics."""
    return one == other or {one, other} == {"tensorflow", "keras"}


def _neutral(values: np.ndarray, kind: str, convention: Convention) -> np.ndarray:
    """TensorFlow's `(..., inputs, outputs)`, transposed `(..., outputs, inputs)`; depthwise `(..., 1, outputs)`."""
    if kind in KERNELS and convention == "torch":
        return values.transpose(*range(2, values.ndim), 1, 0)
    if kind == "depthwise" and convention != "flax":
        return values.reshape(*values.shape[:-2], 1, values.shape[-2] * values.shape[-1])
    if kind == "transposed" and convention == "flax":
        return _as_flax_transposes(values)
    return values


def _laid_out(
    values: np.ndarray, kind: str, convention: Convention, shape: tuple[int, ...] | None = None
) -> np.ndarray:
    """The inverse of `_neutral`."""
    if kind in KERNELS and convention == "torch":
        return values.transpose(-1, -2, *range(values.ndim - 2))
    if kind == "depthwise" and convention != "flax":
        return values.reshape(shape or (*values.shape[:-2], values.shape[-1], 1))
    if kind == "transposed" and convention == "flax":
        return _as_flax_transposes(values)
    return values


def _as_flax_transposes(values: np.ndarray) -> np.ndarray:
    """`flax.linen.ConvTranspose` without `transpose_kernel` is a convolution, where others have the gradient of one."""
    return np.flip(values, tuple(range(values.ndim - 2))).swapaxes(-1, -2)


def _of_rank(values: np.ndarray, rank: int) -> np.ndarray:
    """With dimensions of one value more or fewer, at the front."""
    more = rank - values.ndim
    if more >= 0 or set(values.shape[:-more]) == {1}:
        return values.reshape((1,) * more + values.shape[max(-more, 0) :])
    return values


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(length for length in shape if length != 1)


# Names.


def _path(name: str, convention: Convention) -> tuple[str, ...]:
    """The parts of a name that say where in the model it is, and what."""
    if convention == "torch":
        return tuple(re.split("[./]", name))
    path = name.removesuffix(OBJECT_BASED).split("/" if "/" in name or convention != "flax" else ".")
    if convention == "flax":
        path = path[len(path) > 1 and path[0] in COLLECTIONS :]
        path = path[: len(path) - (len(path) > 1 and path[-1] == "value")]
    return tuple(path)


def _joined(path: tuple[str, ...], convention: Convention) -> str:
    return ("." if convention == "torch" else "/").join(path)


def _name(layer: Layer, role: str, source: Convention, convention: Convention) -> str:
    if related(source, convention) and not (layer.kind == "normalizer" and role in names.FOUR):
        return layer.parts[role]
    elsewhere = convention in ("torch", "flax")
    statistics = role in ("mean", "variance", "count", *names.KEPT)
    word = role if statistics and layer.kind != "normalizer" else WORDS[convention].get(role, role)
    path = layer.path
    if layer.kind == "depthwise" and role == "kernel" and not elsewhere:
        word = "depthwise_kernel"
    elif layer.kind == "embedding" and role == "kernel" and convention != "torch":
        word = "embedding" if elsewhere else "embeddings"
    elif layer.kind == "separable" and role in HALVES and elsewhere:
        path = (*path, HALVES[role])
    if convention == "flax":
        path = (COLLECTIONS[layer.kind == "normalizer" and statistics], *path)
    return _joined((*path, *word.split("/")), convention)


# Layers.


def _layers(
    path: tuple[str, ...], parts: dict[str, str], shapes: Mapping[str, tuple[int, ...]], convention: Convention
) -> list[Layer]:
    """What variables of one scope are that are no normalizer's."""
    kernels = ("kernel", "depthwise_kernel", "embedding")
    kernel: str | None = next((role for role in kernels if role in parts), None)
    kind: Kind = "other"
    if {"depthwise_kernel", "pointwise_kernel"} <= parts.keys():
        kind, kernel = "separable", None
    elif kernel:
        kind = _kind(path, kernel, shapes[parts[kernel]], convention)
    elif {"gamma", "beta"} & parts.keys():
        kind = "scale"
    if kind == "other":
        return [Layer(path, kind, {role: name}) for role, name in parts.items()]
    scale, other = {kernel: "gamma", "bias": "beta"}, {kernel: "kernel"}
    new: Mapping[str | None, str] = scale if kind == "scale" else other
    return [Layer(path, kind, {new.get(role, role): name for role, name in parts.items()})]


def _kind(path: tuple[str, ...], role: str, shape: tuple[int, ...], convention: Convention) -> Kind:
    """Of a layer with such a kernel."""
    where = "/".join(path)
    if role != "kernel":
        return "embedding" if role == "embedding" else "depthwise"
    if len(shape) == 1 and convention == "torch":
        return "scale"
    if len(shape) == 2:
        return "embedding" if convention == "torch" and NAMED_EMBEDDING.search(where) else "dense"
    if len(shape) not in (3, 4, 5):
        return "other"
    inputs = {"torch": shape[1], "flax": shape[-2]}.get(convention)
    if inputs == 1 and NAMED_DEPTHWISE.search(where):
        return "depthwise"
    return "transposed" if NAMED_TRANSPOSED.search(where) else "convolution"
