# SPDX-License-Identifier: Apache-2.0
"""What the configuration of a Keras model says of its layers and their variables, whichever Keras wrote it."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from evenkeel.checkpoints.contents import Facts
from evenkeel.checkpoints.hdf5_files import Contents
from evenkeel.checkpoints.hdf5_survey import LONGEST_PATH
from evenkeel.errors import InputError

BATCH_NORMALIZATIONS = {
    "batch_normalization",
    "batch_normalization_v1",
    "batch_normalization_v2",
    "sync_batch_normalization",
}
_RENORM = ("moving_stddev", "renorm_mean", "renorm_stddev")
_KERNEL = ("kernel", "bias")
_DEPTHWISE = ("depthwise_kernel", "bias")
_SEPARABLE = ("depthwise_kernel", "pointwise_kernel", "bias")
_CELL = ("kernel", "recurrent_kernel", "bias")
VARIABLES = {
    **dict.fromkeys(BATCH_NORMALIZATIONS, ("gamma", "beta", "moving_mean", "moving_variance", *_RENORM, "updates")),
    **dict.fromkeys(("dense", "einsum_dense", "conv1d", "conv2d", "conv3d"), _KERNEL),
    **dict.fromkeys(("conv1d_transpose", "conv2d_transpose", "conv3d_transpose"), _KERNEL),
    **dict.fromkeys(("depthwise_conv1d", "depthwise_conv2d"), _DEPTHWISE),
    **dict.fromkeys(("separable_conv1d", "separable_conv2d"), _SEPARABLE),
    **dict.fromkeys(("layer_normalization", "group_normalization"), ("gamma", "beta")),
    **dict.fromkeys(("lstm_cell", "gru_cell", "simple_rnn_cell"), _CELL),
    "embedding": ("embeddings",),
    "normalization": ("mean", "variance", "count"),
    "p_re_lu": ("alpha",),
    "rms_normalization": ("scale",),
}
"""Kind of layer -> its variables, in the order in which Keras stores them."""
FLAGS = {"gamma": "scale", "beta": "center", "bias": "use_bias"} | dict.fromkeys(_RENORM, "renorm")
"""Variable -> the argument without which there is none."""
CONTAINERS = ("layers", "_layer_checkpoint_dependencies")


class Layer(NamedTuple):
    """A layer as the configuration has it.

    kind: name of its class, as in the names of groups: `batch_normalization`.
    settings: arguments of its constructor.
    entry: all that the configuration says of it.
    """

    kind: str
    settings: Mapping[str, Any]
    entry: Mapping[str, Any]

    @classmethod
    def of(cls, entry: Any) -> Layer:
        entry = entry if isinstance(entry, dict) else {}
        settings = entry.get("config")
        return cls(
            snake_case(str(entry.get("class_name", "")).rpartition(">")[2]),
            settings if isinstance(settings, dict) else {},
            entry,
        )

    @property
    def name(self) -> str:
        return str(self.settings.get("name") or self.entry.get("name") or self.kind)

    def children(self) -> Iterator[tuple[str, Layer]]:
        """Group in a file -> layer, of a model."""
        inside = self.entry.get("config")
        entries = inside.get("layers") if isinstance(inside, dict) else inside
        counts: Counter[str] = Counter()
        for entry in entries if isinstance(entries, list) else ():
            layer = Layer.of(entry)
            if not str(layer.entry.get("module")).startswith(("keras.ops", "keras.src.ops")):
                yield (f"{layer.kind}_{counts[layer.kind]}" if counts[layer.kind] else layer.kind), layer
                counts[layer.kind] += 1

    def part(self, attribute: str) -> Layer | None:
        """The layer that a wrapper or a recurrent layer keeps under a name."""
        if attribute in ("forward_layer", "backward_layer"):
            inner = Layer.of(self.settings.get(attribute) or self.settings.get("layer"))
            direction = attribute.removesuffix("layer")
            return inner._replace(settings={**inner.settings, "name": direction + inner.name.removeprefix(direction)})
        if attribute == "cell" and "cell" not in self.settings:
            kind = f"{self.kind}_cell"
            return Layer(kind, {**self.settings, "name": kind}, {})
        return (
            Layer.of(self.settings[attribute])
            if attribute in ("layer", "cell") and attribute in self.settings
            else None
        )


def snake_case(class_name: str) -> str:
    """As Keras does it.

    Example:
        >>> snake_case("DepthwiseConv2D"), snake_case("BatchNormalization")
        ('depthwise_conv2d', 'batch_normalization')
    """
    name = re.sub(r"(.)([A-Z][a-z0-9]+)", r"\1_\2", re.sub(r"\W+", "", class_name))
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()


def configuration(text: Any, where: str) -> dict[str, Any]:
    """
    Raises:
        InputError: this is no configuration of a model.
    """
    try:
        model = json.loads(text)
    except (ValueError, TypeError, RecursionError) as error:
        raise InputError(f"the configuration of the model in {where} cannot be read: {error}") from error
    if not isinstance(model, dict) or not isinstance(model.get("config"), dict | list):
        raise InputError(f"the configuration of the model in {where} has no class_name and config; the file is damaged")
    try:
        layers(model), _groups(model)
    except InputError as error:
        raise InputError(f"the configuration of the model in {where} cannot be used: {error}") from error
    return model


def _join(*parts: str) -> str:
    path = "/".join(part for part in parts if part)
    if len(path) > LONGEST_PATH:
        raise InputError(f"a layer is called {path[:40]}..., {len(path)} letters; the file is damaged")
    return path


def layers(model: Mapping[str, Any] | None) -> dict[str, Layer]:
    """Path through the nested models -> layer, in the order of the configuration."""
    found: dict[str, Layer] = {}
    waiting = [("", Layer.of(model))]
    while waiting:
        path, layer = waiting.pop()
        if path:
            found[path] = layer
        inner = [child for _, child in layer.children()]
        inner += [part for name in ("layer", "cell") if name in layer.settings and (part := layer.part(name))]
        waiting += [(_join(path, child.name), child) for child in reversed(inner)]
    return found


def facts(model: Mapping[str, Any] | None, version: str, names: Iterable[str]) -> dict[str, Facts]:
    """Path -> what the configuration says, for each batch normalization.

    Args:
        model: its configuration.
        version: of the Keras that wrote it.
        names: of its variables, for layers of which the configuration of a subclassed model says nothing.
    """
    modern = version.partition(".")[0].isdecimal() and int(version.partition(".")[0]) >= 3
    inside = layers(model)
    found = {path: _facts(layer, modern) for path, layer in inside.items() if layer.kind in BATCH_NORMALIZATIONS}
    scopes = [name.removesuffix("/moving_mean") for name in names if modern and name.endswith("/moving_mean")]
    return found | {scope: Facts("keras.layers.BatchNormalization") for scope in scopes if scope not in inside}


def _facts(layer: Layer, modern: bool) -> Facts:
    settings = layer.settings
    axis = settings.get("axis")
    axes = [item for item in (axis if isinstance(axis, list) else [axis]) if isinstance(item, int)]
    built = isinstance(axis, list)  # tf.keras makes a list of it then, counted from the front
    if built and not modern and settings.get("virtual_batch_size"):
        axes = [item - 1 for item in axes]  # and with virtual batches it is the axis of the reshaped input
    return Facts(
        kind=_class(layer) if modern else str(layer.entry.get("class_name")),
        epsilon=_number(settings.get("epsilon")),
        momentum=_number(settings.get("momentum")),
        axis=axes[0] if len(axes) == 1 else tuple(axes) or None,
        bessel_correction=bool(settings.get("bessel_correction")) if modern else _sample_variance(layer, axes, built),
        frozen=settings["frozen"] if settings.get("frozen") in (False, True, "all") else None,
    )


def _class(layer: Layer) -> str:
    """Of Keras 3, with the library that it is from."""
    library, _, name = str(layer.entry.get("registered_name") or layer.entry.get("class_name")).rpartition(">")
    return f"{library}.{name}" if library else f"keras.layers.{name}"


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _sample_variance(layer: Layer, axes: list[int], built: bool) -> bool | None:
    """Whether tf.keras's fused operation served, which no file says; None where the input may have any rank."""
    settings = layer.settings
    if settings.get("fused") is False or settings.get("renorm") or settings.get("virtual_batch_size"):
        return False
    if layer.kind == "sync_batch_normalization" or len(axes) != 1:
        return False
    build = layer.entry.get("build_config")
    shape = build.get("input_shape") if isinstance(build, dict) else None
    if isinstance(shape, list):
        return len(shape) in (4, 5) and axes[0] in (1, len(shape) - 1, -1)
    return {2: False, 3: True}.get(axes[0]) if built else None


def names_of(layer: Layer, count: int) -> tuple[str, ...] | None:
    """Names of the variables of a layer of which there are `count`; None where that is not certain."""
    if layer.kind not in VARIABLES:
        return None
    names = VARIABLES[layer.kind]
    if layer.settings:
        names = tuple(name for name in names if bool(layer.settings.get(FLAGS.get(name, ""), name not in _RENORM)))
    optional = ("bias", "updates", *_RENORM) if not layer.settings else ("bias", "updates")
    shortest = len([name for name in names if name not in optional])
    full = len([name for name in names if name != "updates"])
    return names[:count] if count in (shortest, full, len(names)) else None


def stored_names(contents: Contents, model: Mapping[str, Any] | None) -> dict[str, str]:
    """Name -> dataset, of a file in which Keras keeps the variables of each layer by number.

    The state of the optimizer and of metrics is left out.
    """
    members: dict[str, list[str]] = {}
    for dataset in contents.datasets:
        group, _, key = dataset.rpartition("/")
        owner, _, variables = f"/{group}".rpartition("/")
        owner = owner.lstrip("/")
        if variables == "vars" and owner.partition("/")[0] not in ("optimizer", "metrics"):
            members.setdefault(owner, []).append(key)
    known = _groups(model)
    order = {owner: index for index, owner in enumerate(known)}
    owners = sorted(members, key=lambda owner: (order.get(owner, len(order)), _natural(owner)))
    try:
        found = {owner: _owner(owner, contents, known) for owner in owners}
    except InputError as error:
        raise InputError(f"{contents.name} cannot be used: {error}") from error
    namesakes = Counter(path for path, _ in found.values())
    named: dict[str, str] = {}
    for owner, (path, layer) in found.items():
        if namesakes[path] > 1:  # layers of a subclassed model may share a name; their groups differ
            path = "/".join(part for part in owner.split("/") if part not in CONTAINERS)
        keys = sorted(members[owner], key=_natural)
        names = names_of(layer, len(keys))
        if names and not layer.settings and layer.kind in BATCH_NORMALIZATIONS:
            shapes = {contents.datasets[f"{owner}/vars/{key}"][0] for key in keys}
            names = names if len(keys) == 4 and len(shapes) == 1 else None
        for key, name in zip(keys, names or [f"vars/{key}" for key in keys], strict=True):
            full = f"{path}/{name}".lstrip("/")
            if full in named:
                raise InputError(f"{contents.name} has two variables called {full}; the file is damaged")
            named[full] = f"{owner}/vars/{key}".lstrip("/")
    return named


def _natural(text: str) -> list[tuple[int, str]]:
    return [(int(part) if part.isdecimal() else 0, part) for part in re.split(r"(\d{1,9})", text)]


def _groups(model: Mapping[str, Any] | None) -> dict[str, Layer]:
    """Group in a file -> layer, in the order of the configuration."""
    found = {}
    waiting = [("", Layer.of(model))]
    while waiting:
        path, layer = waiting.pop()
        found[path] = layer
        waiting += [(_join(path, "layers", group), child) for group, child in reversed(list(layer.children()))]
    return found


def _owner(group: str, contents: Contents, known: Mapping[str, Layer]) -> tuple[str, Layer]:
    """Path and layer of a group of a file; the file may name the layer, or the configuration, or only the group."""
    parts = group.split("/") if group else []
    layer: Layer | None = known[""]
    names: list[str] = []
    place = ""
    for index, part in enumerate(parts):
        if part in CONTAINERS and parts[index - 1 : index] not in ([name] for name in CONTAINERS):
            place = f"{place}/layers".lstrip("/")
            layer = None
            continue
        place = f"{place}/{part}".lstrip("/")
        layer = known.get(place) or (layer.part(part) if layer else None)
        label = contents.groups.get("/".join([*parts[: index + 1], "vars"]), {}).get("name")
        names.append(label if isinstance(label, str) and label else layer.name if layer else part)
    if layer is None or not layer.kind:
        kinds = [re.sub(r"_\d+$", "", name) for name in (*parts[-1:], *names[-1:])]
        kinds += ["dense"] if group.endswith("_dense") else []  # the parts of an attention layer
        layer = Layer(next((kind for kind in kinds if kind in VARIABLES), ""), {}, {})
    return _join(*names), layer
