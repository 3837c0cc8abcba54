# SPDX-License-Identifier: Apache-2.0
"""A Keras model, or its weights, in HDF5 under names: `.h5` of Keras 1 to 3."""

from __future__ import annotations

from pathlib import Path

from evenkeel.checkpoints import hdf5_files, hdf5_layers, keras_building, keras_model
from evenkeel.checkpoints.contents import Checkpoint
from evenkeel.errors import InputError
from evenkeel.files import replacing

DESCRIPTION = "Keras model or weights in HDF5 (.h5)"
SUFFIXES = (".h5", ".hdf5")


def recognises(path: Path) -> bool:
    return hdf5_files.is_hdf5(path)


def read(path: Path) -> Checkpoint:
    """Names begin with the layer, and end with what Keras 2 calls the variable. The optimizer's state is left out."""
    contents = hdf5_files.contents(path)
    attributes = contents.groups[""]
    model = keras_model.configuration(attributes["model_config"], str(path)) if "model_config" in attributes else None
    names = hdf5_layers.stored_names(contents, model)
    variables = {name: contents.variable(place) for name, place in names.items()}
    version = str(attributes.get("keras_version") or contents.groups.get(hdf5_layers.ROOT, {}).get("keras_version", ""))
    return Checkpoint(str(path), DESCRIPTION, "keras", variables, keras_model.facts(model, version, names), model)


def write(checkpoint: Checkpoint, path: Path) -> None:
    """With a configuration a whole model that Keras loads, otherwise weights that it loads by name.

    Raises:
        InputError: a layer has several axes, of which Keras finds only the first in such a file.
    """
    for name, layer in keras_model.layers(checkpoint.model).items():
        axis = layer.settings.get("axis")
        if isinstance(axis, list) and len(axis) > 1:
            raise InputError(
                f"{checkpoint.path}: Keras 3 reads only one of axis={axis} of {name} from an .h5 file; "
                f"write {path.with_suffix('.keras').name}"
            )
    with replacing(path) as partial:
        if checkpoint.model is None:
            hdf5_layers.write(checkpoint, partial)
        else:
            keras_building.write(
                checkpoint,
                partial,
                lambda model: model.save(partial, include_optimizer=False),
                hdf5_layers.stored_names,
            )
