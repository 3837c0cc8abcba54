# SPDX-License-Identifier: Apache-2.0
"""What a file of `torch.save` holds: a pickle that names tensors, and their values; read without torch."""

from __future__ import annotations

import functools
import io
import math
import mmap
import struct
import zipfile
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from evenkeel.checkpoints import pickled, raw
from evenkeel.checkpoints.contents import Checkpoint, Variable
from evenkeel.errors import InputError
from evenkeel.files import replacing

DESCRIPTION = "a state_dict of PyTorch (.pt, .pth, .bin)"
SUFFIXES = (".pt", ".pth", ".bin")

MAGIC = 0x1950A86A20F9469CFC6C
"""The first pickle of files of torch before 1.6, which are no zip files."""
LEGACY = b"\x80\x02\x8a\x0a" + MAGIC.to_bytes(10, "little")
PICKLE = "/data.pkl"
WRAPPERS = ("state_dict", "model_state_dict", "model")
"""Where people put the state_dict when they save other things with it."""
ALIGNMENT = 64
LOCAL_HEADER, ZIP64 = 30, 20
"""Bytes before a member's name, and of the extra field of a large one."""
EMPTY_DICT = b"ccollections\nOrderedDict\n)R"
BIG_ENDIAN = "{path} was written by a machine whose numbers have their bytes in the other order; save it anew here"

Places = Mapping[str, tuple[int, int]]
"""Key of a storage -> where it lies in the file, and how many bytes it has."""


def recognises(path: Path) -> bool:
    start = raw.start_of(path, len(LEGACY))
    if not start.startswith(b"PK"):
        return start == LEGACY or (path.name.endswith((".pt", ".pth")) and start[:1] == b"\x80")
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith(PICKLE) for name in archive.namelist())
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile):
        return path.name.endswith(SUFFIXES)


def read(path: Path) -> Checkpoint:
    with raw.reading(path), path.open("rb") as file:
        value, places = _zipped(path) if file.read(2) == b"PK" else _legacy(path)
        variables = {}
        for name, tensor in _tensors(path, value):
            if name in variables:
                raise InputError(f"{path} has two tensors {name!r}; which is meant cannot be said")
            variables[name] = _variable(path, places, name, tensor)
    return Checkpoint(str(path), DESCRIPTION, "torch", variables)


def _unpickled(path: Path, stream: Any) -> pickled.Pickle:
    try:
        return pickled.load(stream)
    except InputError as error:
        raise InputError(f"{path} is refused: {error}") from error


def _zipped(path: Path) -> tuple[Any, Places]:
    """Its value, and the places of the storages."""
    with raw.open_archive(path) as archive, path.open("rb") as file:
        members = {info.filename: info for info in archive.infolist()}
        root = next((name.removesuffix(PICKLE) for name in members if name.endswith(PICKLE)), None)
        if root is None:
            raise InputError(f"{path} is a zip file without {PICKLE}, so not one of torch.save")
        order = members.get(f"{root}/byteorder")
        if order is not None and archive.read(order) != b"little":
            raise InputError(BIG_ENDIAN.format(path=path))
        value = _unpickled(path, io.BytesIO(archive.read(root + PICKLE))).value
        folder = f"{root}/data/"
        places = {
            name.removeprefix(folder): _place(path, file, info)
            for name, info in members.items()
            if name.startswith(folder)
        }
    return value, places


def _place(path: Path, file: IO[bytes], info: zipfile.ZipInfo) -> tuple[int, int]:
    """Where a member lies that is not compressed; its own header, before it, is as long as it says there."""
    if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
        raise InputError(f"{path}: {info.filename} is compressed or encrypted, which torch never does; save it anew")
    file.seek(info.header_offset)
    *_, name, extra = struct.unpack("<4s5H3I2H", file.read(LOCAL_HEADER))
    return info.header_offset + LOCAL_HEADER + name + extra, info.file_size


def _legacy(path: Path) -> tuple[Any, Places]:
    """Five pickles: a magic number, a version, the machine, the value, the keys of the storages; then these, one after
    another, each with the number of its values before it."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as stream:
        magic = _unpickled(path, stream).value
        if type(magic) is not int or magic != MAGIC:
            raise InputError(f"{path} is a pickle, but not of torch.save; save a state_dict with torch.save")
        _, machine = (_unpickled(path, stream).value for _ in range(2))
        if machine.get("little_endian") is not True:
            raise InputError(BIG_ENDIAN.format(path=path))
        value, storages = _unpickled(path, stream)
        places = {}
        for key in _unpickled(path, stream).value:
            (count,) = struct.unpack("<q", stream.read(8))
            places[key] = stream.tell(), count * raw.dtype(storages[key].dtype).itemsize
            stream.seek(sum(places[key]))
    return value, places


def _tensors(path: Path, value: Any) -> Iterator[tuple[str, pickled.Tensor]]:
    """The tensors of a state_dict, which may lie in a dict with other things; dots join the names of nested dicts."""
    for wrapper in WRAPPERS * 2:  # one may lie in the other
        if type(value) is dict and type(value.get(wrapper)) is dict:
            value = value[wrapper]
    if type(value) is not dict:
        raise InputError(f"{path} holds one {type(value).__name__}; save a dict of tensors: model.state_dict()")
    seen: dict[int, bool] = {}  # whether a dict has tensors in it; True until that is known, so that none is in itself

    def inside(prefix: str, values: dict[Any, Any]) -> Generator[tuple[str, pickled.Tensor], None, bool]:
        has = seen.get(id(values))
        if has:
            raise InputError(f"{path} has a dict in two places, {prefix[:200]!r} is one; save a state_dict")
        if has is None:
            seen[id(values)] = True
            has = False
            for key, item in values.items():
                if type(item) is pickled.Tensor:
                    has = True
                    yield f"{prefix}{key}", item
                elif type(item) is dict:
                    has |= yield from inside(f"{prefix}{key}.", item)
            seen[id(values)] = has
        return has

    yield from inside("", value)


def _variable(path: Path, places: Places, name: str, tensor: pickled.Tensor) -> Variable:
    where = f"{path}: {name}"
    kind = raw.dtype(tensor.dtype)
    if tensor.key not in places:
        raise InputError(f"{where} has its values in storage {tensor.key!r}, which the file has not; it is damaged")
    start, size = places[tensor.key]
    count = math.prod(tensor.shape)
    span = 1 + sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride, strict=True))
    end = tensor.offset + span
    if count and (max(end, count) * kind.itemsize > size or start + size > path.stat().st_size):
        raise InputError(
            f"{where} has {count} values up to number {end} of a storage of {size} bytes at {start}; the file is "
            "truncated or damaged"
        )
    start += tensor.offset * kind.itemsize
    return Variable(tensor.shape, kind, where, functools.partial(_load, path, start, span, kind, tensor, where))


def _load(path: Path, start: int, span: int, kind: np.dtype[Any], tensor: pickled.Tensor, where: str) -> np.ndarray:
    if 0 in tensor.shape:
        return np.empty(tensor.shape, kind)
    nbytes = span * kind.itemsize
    values = raw.values_at(path, start, np.dtype(np.uint8), (nbytes,), where)
    return np.ndarray(tensor.shape, kind, values.data, 0, [step * kind.itemsize for step in tensor.stride])


def write(checkpoint: Checkpoint, path: Path) -> None:
    classes = {name: storage for storage, name in reversed(pickled.STORAGES.items())}
    for name, variable in checkpoint.variables.items():
        if variable.dtype.name not in classes:
            raise InputError(f"{path} cannot hold {name!r} of type {variable.dtype}; known are {', '.join(classes)}")
    try:
        entries = [
            _text(name) + _tensor_of(variable, str(number), classes[variable.dtype.name])
            for number, (name, variable) in enumerate(checkpoint.variables.items())
        ]
    except UnicodeEncodeError as error:
        raise InputError(f"{path} cannot hold the name {error.object[:200]!r}; give it one of letters") from error
    pickle = b"\x80\x02" + EMPTY_DICT + b"(" + b"".join(entries) + b"u."
    with replacing(path) as partial, partial.open("wb") as file, zipfile.ZipFile(file, "w") as archive:
        for name, content in (("data.pkl", pickle), ("byteorder", b"little"), ("version", b"3\n")):
            _add(archive, file, name, np.frombuffer(content, np.uint8))
        for number, variable in enumerate(checkpoint.variables.values()):
            _add(archive, file, f"data/{number}", raw.little_endian(variable.read()))


def _text(text: str) -> bytes:
    return b"X" + struct.pack("<I", len(text.encode())) + text.encode()


def _integers(*numbers: int) -> bytes:
    """A tuple of them; nine bytes hold any number of values and a sign."""
    return b"(" + b"".join(b"\x8a\x09" + number.to_bytes(9, "little") for number in numbers) + b"t"


def _tensor_of(variable: Variable, key: str, storage: str) -> bytes:
    """A call of `_rebuild_tensor_v2`: a storage, its first value, shape, stride, no gradient, no hooks."""
    strides = [math.prod(variable.shape[axis + 1 :]) for axis in range(len(variable.shape))]
    count = b"\x8a\x09" + variable.size.to_bytes(9, "little")
    identity = b"(" + _text("storage") + f"ctorch\n{storage}\n".encode() + _text(key) + _text("cpu") + count + b"tQ"
    shape = _integers(*variable.shape) + _integers(*strides)
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + identity + b"K\x00" + shape + b"\x89" + EMPTY_DICT + b"tR"


def _add(archive: zipfile.ZipFile, file: IO[bytes], name: str, content: np.ndarray) -> None:
    """A member whose content begins at a multiple of 64 bytes, so that torch can map it into memory."""
    info = zipfile.ZipInfo(f"archive/{name}")
    large = content.size > 2**30
    begin = file.tell() + LOCAL_HEADER + len(info.filename) + ZIP64 * large + 4
    padding = -begin % ALIGNMENT
    info.extra = struct.pack("<2sH", b"FB", padding) + b"Z" * padding
    with archive.open(info, "w", force_zip64=large) as stream:
        stream.write(content.data)
