# SPDX-License-Identifier: Apache-2.0
"""What a safetensors file holds: a JSON header with names, types, shapes and places, then the values.

The file is read and written here, because the library `safetensors` writes only what is all in memory.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evenkeel.checkpoints import raw
from evenkeel.checkpoints.contents import Checkpoint, Convention, Variable
from evenkeel.errors import InputError
from evenkeel.files import replacing

DESCRIPTION = "safetensors (.safetensors)"
SUFFIXES = (".safetensors",)

LARGEST_HEADER = 100_000_000
"""As the library has it."""
METADATA = "__metadata__"
TYPES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "U16": "uint16",
    "I16": "int16",
    "U32": "uint32",
    "I32": "int32",
    "U64": "uint64",
    "I64": "int64",
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
    "C64": "complex64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
}
FORMATS: dict[str, Convention] = {"pt": "torch", "flax": "flax", "tf": "tensorflow", "keras": "keras"}
"""What the metadata say of who wrote the file."""


def recognises(path: Path) -> bool:
    start = raw.start_of(path, 9)
    fits = start[8:] == b"{" and int.from_bytes(start[:8], "little") + 8 <= path.stat().st_size
    return fits or (path.suffix == ".safetensors" and path.is_file() and not start.startswith(b"PK"))


def read(path: Path) -> Checkpoint:
    with raw.reading(path):
        header, data = _header(path)
        metadata = header.pop(METADATA, None) or {}
        variables = {name: _variable(path, data, name, entry) for name, entry in header.items()}
        _check_places(path, header, path.stat().st_size - data)
        convention = FORMATS.get(metadata.get("format", "")) or raw.convention_of(variables)
    return Checkpoint(str(path), DESCRIPTION, convention, variables)


def _header(path: Path) -> tuple[dict[str, Any], int]:
    """The header, and where the values begin."""
    size = path.stat().st_size
    with path.open("rb") as file:
        announced = int.from_bytes(file.read(8), "little")
        if not 2 <= announced <= min(size - 8, LARGEST_HEADER):
            raise InputError(
                f"{path} announces a header of {announced} bytes and has {size}, of which a header may be at most "
                f"{LARGEST_HEADER}; it is truncated, or no safetensors file"
            )
        header = json.loads(file.read(announced), object_pairs_hook=functools.partial(_once, path))
    if not isinstance(header, dict):
        raise InputError(f"{path} has a header that is {type(header).__name__}, not names with their places")
    return header, 8 + announced


def _once(path: Path, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) < len(pairs):
        raise InputError(f"{path} has a name twice among {list(entries)[:5]}; which is meant cannot be said")
    return entries


def _variable(path: Path, data: int, name: str, entry: Mapping[str, Any]) -> Variable:
    where = f"{path}: {name}"
    with raw.reading(where):
        code, shape, places = entry["dtype"], entry["shape"], entry["data_offsets"]
        if code not in TYPES:
            raise InputError(f"{where} is of type {code}; known are {', '.join(TYPES)}")
        kind = raw.dtype(TYPES[code])
        if not (raw.is_shape(shape) and raw.is_shape(places) and len(places) == 2):
            raise InputError(f"{where} has shape {shape} at {places}; the header is damaged")
        if places[1] - places[0] != math.prod(shape) * kind.itemsize:
            raise InputError(f"{where} of shape {shape} and type {code} lies at {places}, which is not its size")
    load = functools.partial(raw.values_at, path, data + places[0], kind, tuple(shape), where)
    return Variable(tuple(shape), kind, where, load)


def _check_places(path: Path, header: Mapping[str, Mapping[str, Any]], size: int) -> None:
    """Variables fill the file without holes, and share no bytes."""
    end = 0
    for name, (start, stop) in sorted(
        ((name, entry["data_offsets"]) for name, entry in header.items()), key=lambda item: item[1]
    ):
        if start != end or stop > size:
            raise InputError(
                f"{path}: {name} lies at {start} to {stop}, where {end} to at most {size} is left; "
                "the file is truncated, or its header is damaged"
            )
        end = stop
    if end != size:
        raise InputError(f"{path} has {size} bytes of values and names for {end}; it is damaged")


def write(checkpoint: Checkpoint, path: Path) -> None:
    names = {convention: word for word, convention in FORMATS.items()}
    header: dict[str, Any] = {METADATA: {"format": names[checkpoint.convention]}}
    codes = {name: code for code, name in TYPES.items()}
    end = 0
    for name, variable in checkpoint.variables.items():
        code = codes.get(variable.dtype.name)
        if code is None or name == METADATA:
            raise InputError(f"{path} cannot hold {name!r} of type {variable.dtype}; known are {', '.join(codes)}")
        start, end = end, end + variable.size * variable.dtype.itemsize
        header[name] = {"dtype": code, "shape": variable.shape, "data_offsets": (start, end)}
    try:
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{path} cannot hold the name {error.object[error.start - 20 : error.end]!r}") from error
    text += b" " * (-len(text) % 8)
    with replacing(path) as partial, partial.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for variable in checkpoint.variables.values():
            file.write(raw.little_endian(variable.read()).data)
