# SPDX-License-Identifier: Apache-2.0
"""What TensorFlow 1's first checkpoints hold (V1), and where the parts of partitioned variables lie, in V1 and V2.

V1 is one table, or several shards: its first value describes the variables, the others are parts of them.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from evenkeel.checkpoints import tables
from evenkeel.checkpoints.contents import Variable
from evenkeel.errors import InputError, MissingLibraryError

DIMENSIONS = 32
"""As many as an array has in every version of NumPy."""
NO_ARRAYS = ("resource", "variant")


def tensorflow() -> Any:
    """TensorFlow, without which its files cannot be understood."""
    try:
        import tensorflow
    except ImportError as error:
        raise MissingLibraryError('tensorflow is not installed; pip install "evenkeel[tensorflow]"') from error
    return tensorflow


def shape_and_dtype(announced: Any, where: str) -> tuple[tuple[int, ...], Any]:
    """What a message of TensorFlow says, as a shape and TensorFlow's type.

    Raises:
        InputError: no tensor can be like that.
    """
    shape, number = announced.shape, announced.dtype if hasattr(announced, "dtype") else announced.type
    dimensions = tuple(dimension.size for dimension in shape.dim)
    try:
        kind = tensorflow().as_dtype(number)
    except TypeError as error:
        raise InputError(
            f"{where} has the type {number}, which TensorFlow does not know; the file is damaged"
        ) from error
    if (
        shape.unknown_rank
        or len(dimensions) > DIMENSIONS
        or min(dimensions, default=0) < 0
        or math.prod(max(1, size) for size in dimensions) >= 2**59
        or kind != kind.base_dtype
    ):
        raise InputError(f"{where} is announced as {kind.name} of shape {dimensions}; the file is damaged")
    return dimensions, kind


def numpy_dtype(kind: Any) -> np.dtype[Any]:
    """`object` of strings, and of what is no array."""
    return np.dtype(object if kind.name in ("string", *NO_ARRAYS) else kind.as_numpy_dtype)


def check_arrays(kind: Any) -> None:
    """
    Raises:
        ValueError: it is a type of what is no array.
    """
    if kind.name in NO_ARRAYS:
        raise ValueError(f"{kind.name} is a type of which there are no arrays")


def key(name: bytes, part: Any) -> bytes:
    """Under which key a part lies in a table.

    Args:
        name: of the variable.
        part: a `TensorSliceProto`.
    """
    escaped = name.replace(b"\xff", b"\xff\0").replace(b"\0", b"\0\xff") if b"\0" in name or b"\xff" in name else name
    numbers = [number for extent in part.extent for number in (extent.start, _length(extent))]
    rank = len(part.extent)
    return b"\0" + escaped + b"\0\1" + (bytes([1, rank]) if rank else b"\0") + b"".join(map(_ordered, numbers))


def _length(extent: Any) -> int:
    """-1 stands for all of the dimension."""
    return extent.length if extent.HasField("length") else -1


def _ordered(number: int) -> bytes:
    """As many ones as bytes, then the number: so that byte strings sort as the numbers do."""
    if number < 0:
        return b"\x7f"
    length = number.bit_length() // 7 + 1
    return (number ^ ((1 << length) - 1) << 7 * length).to_bytes(length, "big")


def region(part: Any, shape: Sequence[int], where: str) -> tuple[slice, ...]:
    """Which part of a variable of this shape it is.

    Raises:
        InputError: none.
    """
    ranges = [(extent.start, _length(extent)) for extent in part.extent]
    if len(ranges) != len(shape):
        raise InputError(f"{where} has {len(shape)} dimensions, and a part {len(ranges)}; the file is damaged")
    for (start, length), size in zip(ranges, shape, strict=True):
        if not (min(start, length) >= 0 and start + length <= size) and (start, length) != (0, -1):
            raise InputError(
                f"{where} has a part of {length} from {start} in a dimension of {size}; the file is damaged"
            )
    return tuple(
        slice(start, size if length < 0 else start + length)
        for (start, length), size in zip(ranges, shape, strict=True)
    )


def extents(region: Iterable[slice]) -> tuple[int, ...]:
    return tuple(along.stop - along.start for along in region)


def check_regions(regions: Sequence[tuple[slice, ...]], shape: tuple[int, ...], where: str) -> None:
    """
    Raises:
        InputError: parts are missing, or there are too many.
    """
    held = sum(math.prod(extents(region)) for region in regions)
    if held != math.prod(shape) or len({str(region) for region in regions}) != len(regions):
        raise InputError(f"{where} has {math.prod(shape)} values, and {held} in its {len(regions)} parts")


def read(paths: Sequence[Path]) -> dict[str, Variable]:
    """Of a checkpoint in V1, by name.

    Args:
        paths: the shards, all of them.

    Raises:
        InputError: not such files, or damaged ones.
    """
    tensorflow()
    parts: dict[str, list[tuple[Path, Any]]] = {}
    announced: dict[str, tuple[tuple[int, ...], Any]] = {}
    for path in paths:
        for meta in _description(path).tensor:
            where = f"{path}: {meta.name}"
            this = shape_and_dtype(meta, where)
            if announced.setdefault(meta.name, this) != this:
                raise InputError(f"{where} is {this} here and {announced[meta.name]} in another shard")
            parts.setdefault(meta.name, []).extend((path, part) for part in meta.slice)
    size = sum(path.stat().st_size for path in paths)

    @functools.cache
    def values(path: Path) -> dict[bytes, tuple[int, int]]:
        return {entry.key: (entry.offset, len(entry.value)) for entry in tables.entries(path)}

    variables = {}
    for name, (shape, kind) in announced.items():
        where = f"{paths[0] if len(paths) == 1 else paths[0].parent}: {name}"
        if math.prod(shape) > size:
            raise InputError(f"{where} is announced with shape {shape}, in a file of {size} bytes")
        load = functools.partial(_load, name, shape, kind, parts[name], values, where)
        variables[name] = Variable(shape, numpy_dtype(kind), where, load)
    return variables


def _description(path: Path) -> Any:
    from google.protobuf.message import DecodeError
    from tensorflow.core.util.saved_tensor_slice_pb2 import SavedTensorSlices

    first = next(tables.entries(path), None)
    if first is None or first.key:
        raise InputError(f"{path} is a table of TensorFlow, and not a checkpoint")
    try:
        return SavedTensorSlices.FromString(bytes(first.value)).meta
    except DecodeError as error:
        raise InputError(f"{path} is damaged: {error}") from error


def _load(
    name: str,
    shape: tuple[int, ...],
    kind: Any,
    parts: Sequence[tuple[Path, Any]],
    values: Callable[[Path], dict[bytes, tuple[int, int]]],
    where: str,
) -> np.ndarray:
    regions = [region(part, shape, where) for _, part in parts]
    check_regions(regions, shape, where)
    try:
        check_arrays(kind)
        if len(parts) == 1:
            return _part(name, *parts[0], values, shape, kind)
        result = np.zeros(shape, numpy_dtype(kind))
        for (path, part), place in zip(parts, regions, strict=True):
            result[place] = _part(name, path, part, values, extents(place), kind)
        return result
    except (ArithmeticError, ValueError, TypeError, OSError) as error:
        raise InputError(f"{where} cannot be read: {error}") from error


def _part(name: str, path: Path, part: Any, values: Any, shape: tuple[int, ...], kind: Any) -> np.ndarray:
    from google.protobuf.message import DecodeError
    from tensorflow.core.util.saved_tensor_slice_pb2 import SavedTensorSlices

    offset, length = values(path).get(key(name.encode(), part), (0, 0))
    if not length:
        raise ValueError(f"{path} describes a part and does not have it")
    with open(path, "rb") as file:
        file.seek(offset)
        stored = file.read(length)
    try:
        proto = SavedTensorSlices.FromString(stored).data.data
    except DecodeError as error:
        raise ValueError(f"its message is damaged: {error}") from error
    for size in shape:
        proto.tensor_shape.dim.add(size=size)
    proto.dtype = kind.as_datatype_enum
    count = sum(len(value) for field, value in proto.ListFields() if field.is_repeated)
    if count != math.prod(shape) * (2 if kind.is_complex else 1):
        raise ValueError(f"{path} has {count} values for a part of shape {shape}")
    return np.asarray(tensorflow().make_ndarray(proto))
