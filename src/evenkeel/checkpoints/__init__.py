# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of any library, as variables by name and normalizers among them."""

from __future__ import annotations

import os
from pathlib import Path

from evenkeel.checkpoints import formats
from evenkeel.checkpoints.contents import Checkpoint, Facts, Normalizer, Variable
from evenkeel.checkpoints.convert import Report, convert

__all__ = ["Checkpoint", "Facts", "Normalizer", "Report", "Variable", "convert", "read_checkpoint", "write_checkpoint"]


def read_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """What a checkpoint holds; its values are read when they are asked for.

    Args:
        path: a file of TensorFlow, Keras, PyTorch, safetensors or NumPy, a folder, or the prefix of TensorFlow's files.

    Raises:
        InputError: not such a file, or a damaged one.
        MissingLibraryError: what reads it is not installed.
    """
    return formats.read(path)


def write_checkpoint(path: str | os.PathLike[str], checkpoint: Checkpoint, *, overwrite: bool = False) -> None:
    """Write variables under their names, in the format that the ending of `path` says.

    Args:
        path: `.safetensors`, `.npz`, `.pt`, `.h5`, `.keras`, ...; without an ending the prefix of TensorFlow's files.
        checkpoint: what `read_checkpoint` gave, or one of your own.
        overwrite: take the place of what lies there.

    Raises:
        InputError: something lies there, or the format cannot hold it; nothing is written then.
    """
    path = Path(path)
    formats.writer(path, overwrite=overwrite).write(checkpoint, path)
