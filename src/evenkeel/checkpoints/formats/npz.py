# SPDX-License-Identifier: Apache-2.0
"""What an .npz file holds: a zip file of arrays, each with a header of NumPy."""

from __future__ import annotations

import functools
import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from evenkeel.checkpoints import raw
from evenkeel.checkpoints.contents import Checkpoint, Variable
from evenkeel.errors import InputError
from evenkeel.files import replacing

DESCRIPTION = "arrays of NumPy (.npz)"
SUFFIXES = (".npz",)

ENDING = ".npy"
HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
KINDS = "biufcSU"

UNTYPED = (
    "{where} is of type {dtype}, which NumPy keeps as a pickle or as bytes without a meaning (bfloat16, for one); "
    "save it as float32, or as .safetensors"
)


def recognises(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile):
        return path.suffix == ".npz" and path.is_file()
    return any(name.endswith(ENDING) for name in names) or path.suffix == ".npz"


def read(path: Path) -> Checkpoint:
    archive = raw.open_archive(path)
    variables = {}
    for info in archive.infolist():
        variable = _variable(path, archive, info)
        variables[info.filename.removesuffix(ENDING)] = variable
    return Checkpoint(str(path), DESCRIPTION, raw.convention_of(variables), variables)


def _variable(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Variable:
    where = f"{path}: {info.filename}"
    if not info.filename.endswith(ENDING):
        raise InputError(f"{where} is no array; the members of an .npz file end in {ENDING}")
    with raw.reading(where), archive.open(info) as stream:
        version = np.lib.format.read_magic(stream)
        if version not in HEADERS:
            raise InputError(f"{where} has a header of version {version}; known are {list(HEADERS)}")
        shape, transposed, kind = HEADERS[version](stream)
        start = stream.tell()
    if kind.kind not in KINDS or kind.itemsize == 0:
        raise InputError(UNTYPED.format(where=where, dtype=kind))
    if not raw.is_shape(shape) or start + math.prod(shape) * kind.itemsize != info.file_size:
        raise InputError(f"{where} of {info.file_size} bytes announces {kind} of shape {shape}; the file is damaged")
    return Variable(shape, kind, where, functools.partial(_load, archive, info, start, kind, shape, transposed, where))


def _load(
    archive: zipfile.ZipFile,
    info: zipfile.ZipInfo,
    start: int,
    kind: np.dtype[Any],
    shape: tuple[int, ...],
    transposed: bool,
    where: str,
) -> np.ndarray:
    with raw.reading(where), archive.open(info) as stream:
        raw.fill(stream, start, where)
        values = raw.fill(stream, info.file_size - start, where).view(kind)
        stream.read(1)  # at the end the zip file compares its sum
    return values.reshape(shape[::-1]).transpose() if transposed else values.reshape(shape)


def write(checkpoint: Checkpoint, path: Path) -> None:
    for name, variable in checkpoint.variables.items():
        raw.check_member(path, f"{name}{ENDING}")
        if variable.dtype.kind not in KINDS or variable.dtype.isbuiltin == 2:
            raise InputError(UNTYPED.format(where=f"{path}: {name}", dtype=variable.dtype))
    with replacing(path) as partial, zipfile.ZipFile(partial, "w") as archive:
        for name, variable in checkpoint.variables.items():
            with archive.open(zipfile.ZipInfo(f"{name}{ENDING}"), "w", force_zip64=True) as stream:
                np.lib.format.write_array(stream, np.asanyarray(variable.read()), allow_pickle=False)
