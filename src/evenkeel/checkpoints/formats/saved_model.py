# SPDX-License-Identifier: Apache-2.0
"""SavedModels: folders in which TensorFlow keeps a graph and its variables. The variables are read, nothing is run."""

from __future__ import annotations

from pathlib import Path

from evenkeel.checkpoints import bundles
from evenkeel.checkpoints.contents import Checkpoint
from evenkeel.errors import InputError

DESCRIPTION = "SavedModel of TensorFlow"
SUFFIXES: tuple[str, ...] = ()
MODELS = ("saved_model.pb", "saved_model.pbtxt")


def recognises(path: Path) -> bool:
    """A folder with the file of its graph, or that file."""
    return any((_folder(path) / name).is_file() for name in MODELS)


def read(path: Path) -> Checkpoint:
    """
    Raises:
        InputError: it has no variables, or damaged ones.
    """
    prefix = _folder(path) / "variables" / "variables"
    if not bundles.index_file(prefix).is_file():
        raise InputError(f"{path} has no variables: there is no {bundles.index_file(prefix)}")
    return Checkpoint(str(path), DESCRIPTION, "tensorflow", bundles.read(prefix))


def _folder(path: Path) -> Path:
    return path.parent if path.name in MODELS else path
