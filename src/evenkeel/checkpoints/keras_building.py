# SPDX-License-Identifier: Apache-2.0
"""How a model is made of a configuration, without running what the configuration says, and which values it gets."""

from __future__ import annotations

import copy
import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

import evenkeel
from evenkeel.checkpoints import hdf5_files, keras_upgrade
from evenkeel.checkpoints.contents import Checkpoint, Variable
from evenkeel.checkpoints.keras_upgrade import OURS, RUNS_CODE
from evenkeel.errors import InputError, MissingLibraryError


def write(
    checkpoint: Checkpoint,
    path: Path,
    save: Callable[[Any], None],
    stored: Callable[[hdf5_files.Contents, Mapping[str, Any]], Mapping[str, str]],
) -> None:
    """A file that Keras writes of the model, with the variables of a checkpoint in it.

    Keras knows best where a layer keeps what; the model is in memory meanwhile.

    Args:
        checkpoint: with a configuration.
        path: of the HDF5 file that is written.
        save: writes a model, and with it this file.
        stored: name -> dataset, of this file and the configuration of the model.

    Raises:
        InputError: Keras does not make this model, or it wants other variables.
    """
    checkpoint, _ = keras_upgrade.upgraded(checkpoint)
    model = built(checkpoint)
    save(model)
    contents = hdf5_files.contents(path)
    places = stored(contents, json.loads(model.to_json()))
    partners = matched(contents, places, checkpoint)
    hdf5_files.fill(contents, ((places[name], variable) for name, variable in partners.items()))


def built(checkpoint: Checkpoint) -> Any:
    """The Keras model of a configuration as Keras 3 has it.

    Raises:
        InputError: its configuration names code, or classes that are not Keras's or ours, or Keras cannot use it.
        MissingLibraryError: Keras is not installed.
    """
    try:
        import keras
    except ImportError as error:
        raise MissingLibraryError('keras is not installed; pip install "evenkeel[tensorflow]"') from error
    custom_objects = {}
    for entry in entries(checkpoint.model):
        name, module = entry.get("class_name"), entry.get("module")
        if name in RUNS_CODE or not known_module(module):
            raise InputError(
                f"{checkpoint.path}: the model has a {name} of {module or 'Keras'}, and code that a file "
                "names is not run here; make the model in Python and load weights into it"
            )
        if OURS in (name, entry.get("registered_name")):
            custom_objects[OURS] = evenkeel.BatchNormalization
    try:
        model: Any = copy.deepcopy(checkpoint.model)  # Keras takes configurations apart
        result = keras.saving.deserialize_keras_object(model, custom_objects=custom_objects, safe_mode=True)
        if not result.built:
            raise ValueError("it does not say the shape of its input, so its layers have no variables")
    except Exception as error:  # Keras raises whatever a strange configuration makes it raise
        raise InputError(f"{checkpoint.path}: Keras cannot make this model: {error}") from error
    return result


def entries(value: Any) -> Iterator[dict[str, Any]]:
    """All parts of a configuration that name a class or a function."""
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict):
            if "class_name" in item or "module" in item:
                yield item
            waiting += item.values()
        elif isinstance(item, list | tuple):
            waiting += item


def known_module(module: Any) -> bool:
    return module in (None, "builtins") or str(module).partition(".")[0] in ("keras", "tf_keras", "evenkeel")


def matched(contents: hdf5_files.Contents, places: Mapping[str, str], checkpoint: Checkpoint) -> dict[str, Variable]:
    """Name -> the variable of the checkpoint that goes there.

    Where Keras's versions differ in the middle of a name (`time_distributed/kernel`, `time_distributed/dense/kernel`),
    its first and last word decide, if that leaves no choice.

    Raises:
        InputError: a variable has no partner, or one of another shape.
    """
    found = {name: checkpoint.variables[name] for name in places if name in checkpoint.variables}
    wanted = [name for name in places if name not in found and "seed_generator" not in name]
    unused = [name for name in checkpoint.variables if name not in found]
    by_ends: dict[tuple[str, str], list[str]] = defaultdict(list)
    for name in unused:
        by_ends[_ends(name)].append(name)
    for name in wanted:
        candidates = by_ends.pop(_ends(name), [])
        if len(candidates) != 1 or sum(_ends(other) == _ends(name) for other in wanted) != 1:
            raise InputError(f"{checkpoint.path} has no {name}, which the model wants; it has, unused, {_some(unused)}")
        found[name] = checkpoint.variables[candidates[0]]
        unused.remove(candidates[0])
    if unused := [name for name in unused if "seed_generator" not in name]:
        raise InputError(f"{checkpoint.path} has {_some(unused)}, for which the model has no place")
    for name, variable in found.items():
        shape, dtype = contents.datasets[places[name]]
        if variable.shape != shape or dtype is None or not np.can_cast(variable.dtype, dtype, "safe"):
            raise InputError(
                f"{variable.where} is {variable.dtype} of shape {variable.shape}, and {name} of the model is {dtype} "
                f"of shape {shape}"
            )
    return found


def _ends(name: str) -> tuple[str, str]:
    return name.partition("/")[0], name.rpartition("/")[2]


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "") or "nothing"
