# SPDX-License-Identifier: Apache-2.0
"""How the bytes of a file that may lie become values, and values bytes."""

from __future__ import annotations

import contextlib
import math
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from evenkeel.checkpoints.contents import Convention
from evenkeel.errors import EvenkeelError, InputError, MissingLibraryError

DIMENSIONS = 32
"""More than NumPy 1 can hold, no variable has."""
EXPANSION = 100
"""Zeros shrink a thousandfold in a zip, weights hardly at all; small members may."""
SMALL = 2**28

BOMB = (
    "{path} holds {name!r}, which grows from {small} bytes to {large}: a zip bomb, or zeros; write the file without "
    "compression"
)


@contextlib.contextmanager
def reading(where: object) -> Iterator[None]:
    """What fails inside is the fault of the file.

    Raises:
        InputError: naming `where`, for whatever was raised inside that is not of this library.

    Example:
        >>> with reading("model.npz"):
        ...     b"abc"[7]
        Traceback (most recent call last):
        evenkeel.errors.InputError: model.npz cannot be read (IndexError: index out of range); it is damaged, or ...
    """
    try:
        yield
    except EvenkeelError:
        raise
    except Exception as error:
        what = f"{type(error).__name__}: {error}"[:300]
        raise InputError(f"{where} cannot be read ({what}); it is damaged, or not what its name says") from error


def dtype(name: str) -> np.dtype[Any]:
    """A type by its name, also one that NumPy does not have itself.

    Example:
        >>> dtype("float32").itemsize, dtype("bfloat16").itemsize
        (4, 2)
    """
    if not name.startswith(("bfloat", "float8")):
        return np.dtype(name)
    try:
        import ml_dtypes
    except ImportError as error:
        raise MissingLibraryError(
            f'ml_dtypes, which NumPy needs for {name}, is not installed; pip install "evenkeel[checkpoints]"'
        ) from error
    return np.dtype(getattr(ml_dtypes, name))


def is_shape(value: Any) -> bool:
    """Whether it is a shape that an array can have.

    Example:
        >>> is_shape([2, 3]), is_shape([2, -3]), is_shape([True]), is_shape("23")
        (True, False, False, False)
    """
    return (
        isinstance(value, list | tuple)
        and len(value) <= DIMENSIONS
        and all(type(n) is int and 0 <= n < 2**63 for n in value)
    )


def start_of(path: Path, nbytes: int) -> bytes:
    """The first bytes of a file; none where it is not one, or may not be read.

    Example:
        >>> start_of(Path("/no/such/file"), 8)
        b''
    """
    try:
        with path.open("rb") as file:
            return file.read(nbytes)
    except (OSError, ValueError):
        return b""


def fill(stream: Any, nbytes: int, where: str) -> np.ndarray:
    """The next `nbytes` bytes, piece by piece, so that no copy of all of them is made on the way.

    Args:
        stream: binary, with `readinto`.
        nbytes: how many.
        where: file and variable, for messages.

    Raises:
        InputError: there are fewer.
    """
    buffer = np.empty(nbytes, np.uint8)
    done = 0
    while done < nbytes:
        read = stream.readinto(buffer[done : done + 2**18].data)
        if not read:
            raise InputError(f"{where} has {done} bytes where it announces {nbytes}; the file is truncated")
        done += read
    return buffer


def values_at(path: Path, offset: int, kind: np.dtype[Any], shape: tuple[int, ...], where: str) -> np.ndarray:
    """The values that lie one after another from `offset` on."""
    with reading(where), path.open("rb") as file:
        file.seek(offset)
        return fill(file, math.prod(shape) * kind.itemsize, where).view(kind).reshape(shape)


def little_endian(values: np.ndarray) -> np.ndarray:
    """The bytes of values, the last dimension running fastest.

    Example:
        >>> little_endian(np.array([1, 2], ">i2")).tolist()
        [1, 0, 2, 0]
    """
    values = np.ascontiguousarray(values)
    if values.dtype.byteorder == ">":
        values = values.astype(values.dtype.newbyteorder("<"))
    return values.reshape(-1).view(np.uint8)


def convention_of(names: Iterable[str]) -> Convention:
    """Whose names these are.

    Example:
        >>> convention_of(["bn.weight"]), convention_of(["params/bn/scale", "batch_stats/bn/mean"]), convention_of([])
        ('torch', 'flax', 'tensorflow')
    """
    names = list(names)
    if any(name.endswith((".weight", ".running_mean", ".running_var")) for name in names):
        return "torch"
    return "flax" if any(name.startswith(("batch_stats/", "batch_stats.")) for name in names) else "tensorflow"


def check_member(path: Path, name: str) -> None:
    """
    Raises:
        InputError: a name that would lead out of a folder, or that a zip file cannot hold.
    """
    parts = name.replace("\\", "/").split("/")
    if not name.isprintable() or len(name) > 10_000 or ".." in parts or not parts[0]:
        raise InputError(f"{path} has {name[:200]!r} as the name of a member; a name is a path without '..' and root")


def open_archive(path: Path) -> zipfile.ZipFile:
    """A zip file whose members have names of their own, lie within the file one beside the other, and are no bombs."""
    with reading(path):
        archive = zipfile.ZipFile(path)
        with contextlib.ExitStack() as on_error:
            on_error.callback(archive.close)
            _check(path, archive)
            on_error.pop_all()
        return archive


def _check(path: Path, archive: zipfile.ZipFile) -> None:
    seen = set()
    packed = 0
    for info in archive.infolist():
        check_member(path, info.filename)
        if info.filename in seen:
            raise InputError(f"{path} has two members {info.filename!r}; which is meant cannot be said")
        seen.add(info.filename)
        packed += info.compress_size
        if info.file_size > max(info.compress_size * EXPANSION, SMALL):
            raise InputError(BOMB.format(path=path, name=info.filename, small=info.compress_size, large=info.file_size))
    if packed > path.stat().st_size:
        raise InputError(f"{path} has {path.stat().st_size} bytes and announces members of {packed}; it is damaged")
