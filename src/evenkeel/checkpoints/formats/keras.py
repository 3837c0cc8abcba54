# SPDX-License-Identifier: Apache-2.0
"""A whole Keras model in a zip file: `.keras` of Keras 3, and of tf_keras since 2.12."""

from __future__ import annotations

import json
import struct
import tempfile
import zipfile
from pathlib import Path, PurePosixPath
from typing import Any

from evenkeel.checkpoints import hdf5_files, keras_building, keras_model
from evenkeel.checkpoints.contents import Checkpoint
from evenkeel.errors import InputError
from evenkeel.files import replacing

DESCRIPTION = "Keras model (.keras)"
SUFFIXES = (".keras",)
CONFIGURATION, METADATA, WEIGHTS = "config.json", "metadata.json", "model.weights.h5"
LARGEST_TEXT = 1 << 26
"""Bytes of configuration; the one of a network of a thousand layers has less than two million."""
DAMAGED = (*hdf5_files.DAMAGED, zipfile.BadZipFile, struct.error, EOFError)


def recognises(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return {CONFIGURATION, METADATA} <= set(archive.namelist())
    except DAMAGED:
        return False


def read(path: Path) -> Checkpoint:
    """The configuration names layers and variables."""
    try:
        with zipfile.ZipFile(path) as archive:
            _check(path, archive)
            model = keras_model.configuration(_text(archive, CONFIGURATION), str(path))
            metadata = json.loads(_text(archive, METADATA))
            information = archive.getinfo(WEIGHTS)
            contents = _weights(path, archive, information)
    except InputError:
        raise
    except DAMAGED as error:
        raise InputError(f"{path} is no .keras file that can be used: {error}") from error
    version = str(metadata.get("keras_version", "")) if isinstance(metadata, dict) else ""
    names = keras_model.stored_names(contents, model)
    variables = {name: contents.variable(place) for name, place in names.items()}
    return Checkpoint(str(path), DESCRIPTION, "keras", variables, keras_model.facts(model, version, names), model)


def _check(path: Path, archive: zipfile.ZipFile) -> None:
    names = archive.namelist()
    for name in names:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts or "\\" in name:
            raise InputError(f"{path} has a member {name!r}, which leads out of it; nothing of it is used")
    if len(set(names)) != len(names):
        raise InputError(f"{path} has two members of one name; nothing of it is used")
    if WEIGHTS not in names:
        raise InputError(f"{path} has no {WEIGHTS}; only models with weights in HDF5 can be read")


def _text(archive: zipfile.ZipFile, name: str) -> bytes:
    with archive.open(name) as member:
        text = member.read(LARGEST_TEXT + 1)
    if len(text) > LARGEST_TEXT:
        raise ValueError(f"{name} is longer than {LARGEST_TEXT} bytes")
    return text


def _weights(path: Path, archive: zipfile.ZipFile, information: zipfile.ZipInfo) -> hdf5_files.Contents:
    name = f"{WEIGHTS} of {path}"
    if information.compress_type != zipfile.ZIP_STORED or information.flag_bits & 1:
        raise InputError(
            f"{name} is compressed or encrypted, which Keras does not do; unpack it and read {WEIGHTS} itself"
        )
    with path.open("rb") as file:
        file.seek(information.header_offset)
        header = file.read(30)
        name_length, extra_length = struct.unpack("<26x2H", header)
        start = information.header_offset + len(header) + name_length + extra_length
        if start + information.file_size > path.stat().st_size:
            raise InputError(f"{name} announces {information.file_size} bytes, which the file does not have")
    return hdf5_files.part(path, start, information.file_size, name)


def write(checkpoint: Checkpoint, path: Path) -> None:
    if checkpoint.model is None:
        raise InputError(
            f"{checkpoint.path} does not say what model its variables belong to, and a .keras file is a whole model; "
            f"write {path.with_suffix('.h5').name}, or convert with a .keras file of the same model as the target"
        )
    with tempfile.TemporaryDirectory(dir=path.parent, prefix="partial-") as folder, replacing(path) as partial:
        weights = Path(folder, WEIGHTS)
        whole = Path(folder, "model.keras")

        def save(model: Any) -> None:
            model.save(whole)
            with zipfile.ZipFile(whole) as archive:
                archive.extract(WEIGHTS, folder)

        keras_building.write(checkpoint, weights, save, keras_model.stored_names)
        with zipfile.ZipFile(whole) as archive, zipfile.ZipFile(partial, "w") as target:
            for name in (CONFIGURATION, METADATA):
                target.writestr(name, archive.read(name))
            target.write(weights, WEIGHTS)
