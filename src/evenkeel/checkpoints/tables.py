# SPDX-License-Identifier: Apache-2.0
"""What a table of TensorFlow holds: keys with values, in the layout of LevelDB.

TensorFlow's own reader trusts what it finds here and can end the process, so nothing reaches it that was not read here.
Its sums over the blocks are not checked here.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from evenkeel.errors import InputError

MAGIC = bytes.fromhex("57fb808b247547db")
FOOTER = 48
"""Bytes: two places, filled up to 40, and the magic number."""
TRAILER = 5
"""Bytes behind a block: how it is compressed, and its sum."""
RESTART = 16
"""So many keys at most go without one that is written out in full."""


class Entry(NamedTuple):
    """offset: of the value, in bytes from the start of the file."""

    key: bytes
    value: memoryview
    offset: int


def is_table(path: Path) -> bool:
    """Whether there is a file that ends as a table does."""
    try:
        if not path.is_file():
            return False
        with open(path, "rb") as file:
            if file.seek(0, 2) < FOOTER:
                return False
            file.seek(-len(MAGIC), 2)
            return file.read() == MAGIC
    except OSError:
        return False


def entries(path: Path) -> Iterator[Entry]:
    """In the order of the file, which is that of the keys; one block at a time is in memory.

    Raises:
        InputError: not a table, or a damaged one.
    """
    if not is_table(path):
        raise InputError(f"{path} is not a table of TensorFlow, or its end is missing")
    try:
        with open(path, "rb") as file:
            yield from _entries(file)
    except (IndexError, ValueError, struct.error) as error:
        raise InputError(f"{path} is damaged: {error}") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error}") from error


def _entries(file: BinaryIO) -> Iterator[Entry]:
    size = file.seek(0, 2)
    file.seek(-FOOTER, 2)
    footer = memoryview(file.read())
    _, _, start, length = varints(footer, 0, 4)[0]
    end = keys = 0
    previous = None
    for _, handle, _ in _pairs(_block(file, start, length), 0):
        (start, length), _ = varints(handle, 0, 2)
        if start < end:
            raise ValueError(f"the blocks at {start} and before {end} overlap")
        end = start + length + TRAILER
        for entry in _pairs(_block(file, start, length), start):
            if previous is not None and entry.key <= previous:
                raise ValueError(f"key {entry.key!r:.99} comes after {previous!r:.99}")
            # A key is told by what it adds to the last one: a small file could describe gigabytes of them.
            keys += len(entry.key)
            if keys > RESTART * size:
                raise ValueError(f"keys of more than {keys} bytes in a file of {size}")
            previous = entry.key
            yield entry


def _block(file: BinaryIO, start: int, length: int) -> memoryview:
    if start + length + TRAILER > file.seek(0, 2) - FOOTER:
        raise ValueError(f"a block of {length} bytes at {start} reaches beyond the end")
    file.seek(start)
    block = memoryview(file.read(length + 1))
    if block[length] != 0:
        raise ValueError(f"the block at {start} is compressed, as TensorFlow never writes it")
    return block[:length]


def _pairs(block: memoryview, start: int) -> Iterator[Entry]:
    (count,) = struct.unpack("<I", block[-4:])
    end = len(block) - 4 * (count + 1)
    if end < 0:
        raise ValueError(f"the block at {start} announces {count} restarts in {len(block)} bytes")
    # TensorFlow's reader would begin in the midst of a value, and find there what was not read here.
    restarts = set(struct.unpack(f"<{count}I", block[end:-4]))
    key, position = b"", 0
    while position < end:
        begin = position
        (shared, added, length), position = varints(block, position, 3)
        value = position + added
        if shared > len(key) or value + length > end:
            raise ValueError(f"an entry of the block at {start} reaches beyond its end")
        if not shared:
            restarts.discard(begin)
        key = key[:shared] + bytes(block[position:value])
        position = value + length
        yield Entry(key, block[value:position], start + value)
    if restarts - {0}:
        raise ValueError(f"the block at {start} has restarts where no entry begins")


def varints(data: memoryview, position: int, count: int) -> tuple[list[int], int]:
    """Numbers of seven bits a byte, and where they end.

    Raises:
        IndexError: the data end before.
        ValueError: a number of more than 64 bits.

    Example:
        >>> varints(memoryview(bytes([5, 0x80 + 44, 2])), 0, 2)
        ([5, 300], 3)
    """
    numbers = []
    for _ in range(count):
        number = shift = 0
        while True:
            byte = data[position]
            position += 1
            number |= (byte & 127) << shift
            if byte < 128:
                break
            shift += 7
            if shift > 63:
                raise ValueError(f"a number before byte {position} does not end")
        numbers.append(number)
    return numbers, position
