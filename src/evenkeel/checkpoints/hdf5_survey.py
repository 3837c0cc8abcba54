# SPDX-License-Identifier: Apache-2.0
"""What an HDF5 file holds, seen from a process of its own.

The HDF5 library can crash or hang on a damaged file (fuzzing found both within 2500 files), and takes the process with
it. So this module runs first, as a program, looks at all that will be looked at later, and prints what it found.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import re
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

LONGEST_PATH = 4096
ATTRIBUTES = re.compile(r"(layer_names|weight_names)\d*|model_config|keras_version|name")
LARGEST_EXPANSION = 1100
"""What deflate makes of one byte, at most, is 1032."""
SMALL = 1 << 16
"""Bytes that may be announced without being there: values that were never written."""


class Window(io.RawIOBase):
    """Some bytes of a file, as a file."""

    def __init__(self, path: str, start: int, size: int) -> None:
        super().__init__()
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115, closed with the window
        self._start, self._size, self._at = start, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        self._file.seek(self._start + self._at)
        count = self._file.readinto(memoryview(buffer)[: max(0, self._size - self._at)]) or 0
        self._at += count
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


@contextlib.contextmanager
def opened(path: str, start: int, size: int) -> Iterator[Any]:
    """An `h5py.File` of some bytes of a file, or of all."""
    import h5py

    if start == 0 and size == os.path.getsize(path):
        with h5py.File(path, "r", locking=False) as file:
            yield file
    else:
        with Window(path, start, size) as window, h5py.File(window, "r") as file:
            yield file


def survey(path: str, start: int, size: int) -> dict[str, Any]:
    """The attributes of each group, the shape and type of each dataset, by path.

    Raises:
        ValueError: something in it leads elsewhere, or announces more than there is; anything, if it is damaged.
    """
    import h5py

    groups: dict[str, Any] = {}
    datasets: dict[str, Any] = {}
    with opened(path, start, size) as file:
        root = h5py.h5g.open(file.id, b"/")
        seen = {h5py.h5o.get_info(root).addr}
        waiting = [("", root)]
        while waiting:
            place, group = waiting.pop()
            groups[place] = _attributes(group, place, size)
            for name in group:
                inner = f"{place}/{name.decode()}".lstrip("/")
                if len(inner) > LONGEST_PATH:
                    raise ValueError(f"{inner[:80]}... is a name of {len(inner)} letters")
                if group.links.get_info(name).type != h5py.h5l.TYPE_HARD:
                    raise ValueError(f"{inner} is a link to somewhere else, which is not followed")
                item = h5py.h5o.open(group, name)
                if isinstance(item, h5py.h5d.DatasetID):
                    datasets[inner] = _dataset(item, inner, size)
                elif isinstance(item, h5py.h5g.GroupID):
                    address = h5py.h5o.get_info(item).addr
                    if address in seen:
                        raise ValueError(f"{inner} leads back to a group that was there before")
                    seen.add(address)
                    waiting.append((inner, item))
    return {"groups": groups, "datasets": datasets}


def _attributes(group: Any, place: str, size: int) -> dict[str, Any]:
    """Those that Keras writes: texts, and lists of texts."""
    import h5py

    found: dict[str, Any] = {}
    for index in range(h5py.h5a.get_num_attrs(group)):
        attribute = h5py.h5a.open(group, index=index)
        name = attribute.name.decode()
        if ATTRIBUTES.fullmatch(name):
            announced = attribute.get_space().get_select_npoints() * attribute.get_type().get_size()
            if announced > size:
                raise ValueError(f"attribute {name} of {place or '/'} announces {announced} bytes")
            value = h5py.AttributeManager(h5py.Group(group))[name]
            if isinstance(value, str | bytes):
                found[name] = _text(value)
            else:
                found[name] = [_text(item) for item in np.ravel(value)]
    return found


def _text(value: Any) -> str:
    return (value if isinstance(value, bytes) else str(value).encode()).decode()


def _dataset(dataset: Any, place: str, size: int) -> tuple[tuple[int, ...], str | None]:
    """Shape and type; no type where the values are not numbers."""
    import h5py

    properties = dataset.get_create_plist()
    layout = properties.get_layout()
    if layout == h5py.h5d.VIRTUAL or properties.get_external_count():
        raise ValueError(f"{place} keeps its values in another file, which is not opened")
    dtype, stored, chunked = dataset.dtype, dataset.get_storage_size(), layout == h5py.h5d.CHUNKED
    shape = dataset.shape
    if shape is None:
        return (), None
    announced = dtype.itemsize * max(math.prod(shape), math.prod(properties.get_chunk()) if chunked else 0)
    if stored > size or announced > SMALL + stored * (LARGEST_EXPANSION if chunked else 1):
        raise ValueError(f"{place} announces {announced} bytes and has {min(stored, size)}")
    if dtype.kind not in "biufc":
        return shape, "bfloat16" if dtype.str == "|V2" else None
    if chunked:
        h5py.Dataset(dataset)[()]  # values in one piece need no more of the library than was needed so far
    return shape, dtype.newbyteorder("=").str


if __name__ == "__main__":
    try:
        result = survey(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
    except Exception as error:  # whatever it is, it is the other process that says so
        result = {"error": str(error) or type(error).__name__}
    json.dump(result, sys.stdout)
