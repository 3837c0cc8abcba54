# SPDX-License-Identifier: Apache-2.0
"""How Keras lists layers, and under which names it keeps their variables, in an `.h5` file."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from evenkeel.checkpoints import hdf5_files, keras_model
from evenkeel.checkpoints.contents import Checkpoint
from evenkeel.errors import InputError, MissingLibraryError

ROOT, TOP = "model_weights", "top_level_model_weights"
KERAS_1 = {"running_mean": "moving_mean", "running_std": "moving_variance"}
"""Names of Keras 1 -> today's; what it called a standard deviation is a variance."""
ORDER = ("depthwise_kernel", "pointwise_kernel", "kernel", "recurrent_kernel", "gamma", "beta", "bias")
STATISTICS = ("moving_mean", "moving_variance", "moving_stddev", "renorm_mean", "renorm_stddev")
LARGEST_ATTRIBUTE = 64512
"""Bytes; the limit of the HDF5 library is a little above."""


def stored_names(contents: hdf5_files.Contents, model: Mapping[str, Any] | None) -> dict[str, str]:
    """Name -> dataset."""
    root = ROOT if contents.texts("", "layer_names") is None else ""
    layer_names = contents.texts(root, "layer_names")
    if layer_names is None:
        raise InputError(
            f"{contents.name} has no layer_names, by which Keras lists the layers of an .h5 file; it was not "
            "written by Keras 1 or newer, or is damaged"
        )
    known = keras_model.layers(model)
    inner: dict[tuple[str, str], list[str]] = defaultdict(list)
    for path in known:
        inner[path.partition("/")[0], path.rpartition("/")[2]].append(path)
    names: dict[str, str] = {}
    for layer in [*layer_names, TOP]:
        group = f"{root}/{layer}".lstrip("/")
        if group not in contents.groups and layer != TOP:
            raise InputError(
                f"{contents.name} lists a layer {layer}, and has no group of this name; the file is damaged"
            )
        for weight in contents.texts(group, "weight_names") or []:
            name = _name(layer, re.sub(r":\d+$", "", weight), inner)
            owner = known.get(name.rpartition("/")[0])
            if name.endswith("/kernel") and owner is not None and owner.kind.startswith("depthwise_conv"):
                name = name.removesuffix("kernel") + "depthwise_kernel"  # as all but Keras 3 call it
            if name in names:
                raise InputError(f"{contents.name} has two variables called {name}; the file is damaged")
            names[name] = f"{group}/{weight}"
    return names


def _name(layer: str, weight: str, inner: Mapping[tuple[str, str], list[str]]) -> str:
    """The layer, with the path through nested models, and the variable."""
    if layer == TOP or weight == layer:
        return weight
    if weight.startswith(f"{layer}_") and "/" not in weight:  # Keras 1: batchnormalization_1_running_mean
        word = weight.removeprefix(f"{layer}_")
        return f"{layer}/{KERAS_1.get(word, word)}"
    _, found, after = f"/{weight}".partition(f"/{layer}/")  # the layer may come after its model: my_model/bn/gamma
    owner, _, word = (after if found else weight).rpartition("/")
    paths = inner.get((layer, owner.rpartition("/")[2]), [])
    path = paths[0] if owner and len(paths) == 1 else f"{layer}/{owner}".rstrip("/")
    return f"{path}/{word}"


def write(checkpoint: Checkpoint, path: Path) -> None:
    """A file of weights that Keras loads by name; with its model, if that is there, as it was configured.

    Raises:
        InputError: a name that HDF5 cannot hold.
        MissingLibraryError: h5py is not installed.
    """
    try:
        import h5py
    except ImportError as error:
        raise MissingLibraryError('h5py is not installed; pip install "evenkeel[checkpoints]"') from error
    layers: dict[str, list[str]] = {layer.name: [] for _, layer in keras_model.Layer.of(checkpoint.model).children()}
    for name, variable in checkpoint.variables.items():
        parts = name.split("/")
        if {"", "."} & set(parts) or parts[0] == TOP or ":" in name or len(name) > 1000 or not name.isprintable():
            raise InputError(f"{checkpoint.path}: HDF5 cannot hold a variable called {name[:80]!r}; rename it")
        if variable.dtype.kind not in "biufc" and variable.dtype.name != "bfloat16":
            raise InputError(f"{variable.where} is {variable.dtype}, and Keras keeps numbers only; leave it out")
        # Outside Keras all but the last word is the scope of one layer. What has no scope is a layer of its own: Keras
        # refuses variables without a layer that the model does not have.
        owner = name.partition("/")[0] if checkpoint.convention == "keras" else name.rpartition("/")[0] or name
        layers.setdefault(owner, []).append(name)
    with h5py.File(path, "w") as file:
        root = file
        if checkpoint.model is not None:
            file.attrs["model_config"] = json.dumps(checkpoint.model).encode()
            root = file.create_group(ROOT)
        root.attrs["backend"], root.attrs["keras_version"] = b"tensorflow", b"2.15.0"
        _write_texts(root, "layer_names", list(layers))
        for layer, names in layers.items():
            group = root.require_group(layer)
            names.sort(key=_position(names))
            _write_texts(group, "weight_names", [f"{name}:0" for name in names])
            for name in names:
                hdf5_files.create(group, f"{name}:0", checkpoint.variables[name])
        root.require_group(TOP).attrs["weight_names"] = np.array([], "S1")


def _position(names: list[str]) -> Any:
    """Keras's order, by which it loads: what is learned before the statistics; layer by layer; then variables."""
    words = {word: index for index, word in enumerate((*ORDER, *STATISTICS))}
    owners = {name.rpartition("/")[0]: index for index, name in reversed(list(enumerate(names)))}

    def position(name: str) -> tuple[bool, int, int]:
        owner, _, word = name.rpartition("/")
        return word in STATISTICS, owners[owner], words.get(word, len(words))

    return position


def _write_texts(group: Any, name: str, texts: list[str]) -> None:
    """An attribute, or several where one would be longer than the HDF5 library allows."""
    encoded = np.array([text.encode() for text in texts], "S")
    count = LARGEST_ATTRIBUTE // encoded.itemsize
    if len(encoded) <= count:
        group.attrs[name] = encoded
    else:
        for index in range(0, len(encoded), count):
            group.attrs[f"{name}{index // count}"] = encoded[index : index + count]
