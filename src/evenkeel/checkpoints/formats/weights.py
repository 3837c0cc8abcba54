# SPDX-License-Identifier: Apache-2.0
"""Weights of a Keras model, by layer and number: `.weights.h5` of Keras 3, and of tf_keras since 2.12."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evenkeel.checkpoints import hdf5_files, keras_building, keras_model
from evenkeel.checkpoints.contents import Checkpoint
from evenkeel.errors import EvenkeelError, InputError
from evenkeel.files import replacing

DESCRIPTION = "weights of a Keras model (.weights.h5)"
SUFFIXES = (".weights.h5",)


def recognises(path: Path) -> bool:
    try:
        return hdf5_files.is_hdf5(path) and _is_ours(hdf5_files.contents(path))
    except EvenkeelError:
        return False


def _is_ours(contents: hdf5_files.Contents) -> bool:
    """Whether variables are kept by number, not under names as older files have them."""
    return contents.texts("", "layer_names") is None and any(
        group == "vars" or group.endswith("/vars") for group in contents.groups
    )


def read(path: Path, model: Mapping[str, Any] | None = None) -> Checkpoint:
    """The layers are named as the file names them, where it does so, otherwise as its groups.

    Which variable is which says `model`, the configuration of the model of which these are the weights. Without it, it
    follows from their number for layers that are called after their class; otherwise a name ends in `vars/0`, as in
    the file.
    """
    contents = hdf5_files.contents(path)
    if not _is_ours(contents):
        raise InputError(
            f"{path} has no groups called vars, in which Keras keeps weights; it is something else, or damaged"
        )
    names = keras_model.stored_names(contents, model)
    variables = {name: contents.variable(place) for name, place in names.items()}
    version = "3" if any("name" in attributes for attributes in contents.groups.values()) else ""
    return Checkpoint(str(path), DESCRIPTION, "keras", variables, keras_model.facts(None, version, names))


def write(checkpoint: Checkpoint, path: Path) -> None:
    if checkpoint.model is None:
        raise InputError(
            f"{checkpoint.path} does not say what model its variables belong to, and a .weights.h5 file keeps them by "
            f"the order of the layers; write {path.name.removesuffix(SUFFIXES[0])}.h5, which keeps them by name"
        )
    with replacing(path) as partial:
        keras_building.write(checkpoint, partial, lambda model: model.save_weights(partial), keras_model.stored_names)
