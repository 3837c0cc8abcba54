# SPDX-License-Identifier: Apache-2.0
"""The kinds of files that checkpoints come in, one module each; formats never import formats.

A module has

* `DESCRIPTION`: what it is, in words.
* `SUFFIXES`: how names of such files end; the first is what it writes. Empty for a prefix of several files.
* `recognises(path) -> bool`: whether what lies there is of this kind, by its content; never raises for a path that
  exists, or is the prefix of files that do.
* `read(path) -> Checkpoint`: names, shapes and types at once, values when they are asked for. InputError, naming the
  file and where it can the variable, for whatever cannot be used.
* `write(checkpoint, path)`: a new file at `path`, variable by variable; in place only when it is whole. InputError for
  what the format cannot hold. A module without it is read only.
"""

from __future__ import annotations

import importlib
import os
import re
from pathlib import Path
from types import ModuleType

from evenkeel.checkpoints.contents import Checkpoint
from evenkeel.errors import InputError

MODULES = ("keras", "weights", "hdf5", "safetensors", "npz", "torch", "saved_model", "tensorflow")
"""In the order in which they are asked: the more particular first."""


def all_formats() -> list[ModuleType]:
    return [importlib.import_module(f"{__name__}.{name}") for name in MODULES]


def recognised(path: Path) -> ModuleType:
    """The format of what lies at `path`.

    Raises:
        InputError: nothing lies there, or nothing that is known here.
    """
    for module in all_formats():
        if module.recognises(path):
            return module
    if path.exists():
        known = "; ".join(module.DESCRIPTION for module in all_formats())
        raise InputError(f"{path} is none of the files that can be read here: {known}")
    raise InputError(f"{path} does not exist, and no checkpoint begins with this name; give a file, folder or prefix")


def of_name(path: Path) -> ModuleType:
    """The format in which a file of this name is written.

    Raises:
        InputError: no format that can be written has such names.
    """
    writable = [module for module in all_formats() if hasattr(module, "write")]
    for module in writable:
        if module.SUFFIXES and path.name.endswith(module.SUFFIXES):
            return module
    if re.fullmatch(r"(\.ckpt(-\d+)?|\.\d+)?", path.suffix):
        return next(module for module in writable if not module.SUFFIXES)
    endings = ", ".join(suffix for module in writable for suffix in module.SUFFIXES)
    raise InputError(f"{path} ends in {path.suffix}; give {endings}, or a name without an ending for TensorFlow")


def read(path: str | os.PathLike[str]) -> Checkpoint:
    """What lies at `path`, by its own format."""
    path = Path(path)
    checkpoint: Checkpoint = recognised(path).read(path)
    return checkpoint


def writer(path: Path, *, overwrite: bool) -> ModuleType:
    """The format in which a file of this name is written, if it may be.

    Raises:
        InputError: there is none, or something lies there that is not to be overwritten.
    """
    module = of_name(path)
    if not overwrite and (path.exists() or module.recognises(path)):
        raise InputError(f"{path} already exists; give another name, or overwrite")
    return module
