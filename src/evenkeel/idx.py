# SPDX-License-Identifier: Apache-2.0
"""What an IDX file, the format of MNIST, holds."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np

from evenkeel.errors import InputError

__all__ = ["by", "find_idx", "read_idx"]


def read_idx(path: Path, *, ndim: int) -> np.ndarray:
    """An IDX file of unsigned bytes, gzipped or not, whatever its name says.

    Args:
        path: the file.
        ndim: how many dimensions it must have: 3 for images, 1 for labels.

    Returns:
        uint8, of the shape in the file's header.

    Raises:
        InputError: not such a file, or more or fewer bytes than its header announces.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "labels")
        >>> path.write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 3, 7, 2, 1]))
        11
        >>> read_idx(path, ndim=1)
        array([7, 2, 1], dtype=uint8)

    References:
        The layout is described on the page of MNIST: a magic number (0, 0, type, number of dimensions), one
        big-endian int32 a dimension, the values.
    """
    try:
        content = path.read_bytes()
        if content.startswith(b"\x1f\x8b"):
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} cannot be read ({error}); download it again") from error

    header = 4 + 4 * ndim
    wanted = bytes([0, 0, 8, ndim])
    if content[:4] != wanted:
        raise InputError(
            f"{path} starts with 0x{content[:4].hex()}, and an IDX file of unsigned bytes in {ndim} dimensions starts "
            f"with 0x{wanted.hex()}; give the file of MNIST that has this name"
        )
    if len(content) < header:
        raise InputError(f"{path} ends within its header, after {len(content)} of {header} bytes; download it again")
    shape = tuple(int.from_bytes(content[at : at + 4], "big") for at in range(4, header, 4))
    arrived, announced = len(content) - header, math.prod(shape)
    if arrived != announced:
        raise InputError(f"{path} announces {by(shape)} = {announced} values, and {arrived} arrived; download it again")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def find_idx(folder: Path, name: str) -> Path:
    """The file of this name in the folder, or the one with `.gz` behind it.

    Raises:
        InputError: there is neither.
    """
    for path in (folder / name, folder / f"{name}.gz"):
        if path.exists():
            return path
    raise InputError(f"{folder} has neither {name} nor {name}.gz; put the four IDX files of MNIST there")


def by(shape: tuple[int, ...]) -> str:
    """`28 x 28`."""
    return " x ".join(map(str, shape))
