# SPDX-License-Identifier: Apache-2.0
"""How data of any kind becomes batches, pass after pass."""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from evenkeel.errors import ArgumentError, InputError

ONCE = (
    "data is a {kind}, which can be gone through once, and this takes several passes; "
    "give a function that makes a new one"
)


class Batches:
    """The inputs of a model, batch after batch; every iteration, and every call of `items`, is one pass.

    count: how many batches a pass has; None where that shows only at its end.
    """

    def __init__(self, start: Callable[[], Iterable[Any]], steps: int | None, count: int | None = None) -> None:
        self._start = start
        self._steps = steps
        self._first: list[Any] = []
        self.count = steps if count is None else count if steps is None else min(steps, count)

    def __iter__(self) -> Iterator[Any]:
        return map(inputs, self.items())

    def items(self) -> Iterator[Any]:
        """What the data has, with targets and weights; see `inputs` and `targets`."""
        kept, self._first = self._first, []
        return itertools.islice(kept[0] if kept else iter(self._start()), self._steps)

    def first(self) -> Any:
        """The first batch, which is also the first one of the next pass.

        Raises:
            InputError: there is none.
        """
        start = self.items()
        item = next(start, None)
        if item is None:
            raise InputError("data has no batch; give some")
        self._first = [itertools.chain([item], start)]
        return inputs(item)


def batches(data: Any, *, batch_size: int, steps: int | None) -> Batches:
    """The inputs in `data`.

    Args:
        data: see `recalibrate`.
        batch_size: rows of a batch, where `data` does not come in batches.
        steps: at most so many batches a pass; None is all.

    Raises:
        ArgumentError: nothing that batches can be made of.
        InputError: a file that cannot be used.

    Example:
        >>> [batch.shape for batch in batches(np.zeros((5, 3)), batch_size=2, steps=None)]
        [(2, 3), (2, 3), (1, 3)]
    """
    if isinstance(data, str | os.PathLike):
        data = _of_file(Path(data))
    labels = targets(data)
    data = inputs(data)
    if _is_array(data) or (isinstance(data, Mapping | list) and data and all(map(_is_array, _leaves(data)))):
        return _slices(data, labels, batch_size, steps)
    if isinstance(data, Iterator):
        return Batches(_once(data), steps)
    if callable(data) and not isinstance(data, Iterable):
        return Batches(data, steps)
    if hasattr(data, "num_batches") and hasattr(data, "__getitem__"):  # keras.utils.PyDataset
        count = data.num_batches
        indices = itertools.count if count is None else lambda: range(count)
        return Batches(lambda: (data[index] for index in indices()), steps, count)
    if not isinstance(data, Iterable):
        raise ArgumentError(
            f"data is a {type(data).__name__}; give arrays, a data set, batches, a function that makes them, or a file"
        )
    start: Callable[[], Iterable[Any]] = lambda: data  # noqa: E731
    if _is_loader(data):
        # Its default puts a sample's parts into a list, where the data set had a tuple.
        start = lambda: (tuple(item) if isinstance(item, list) else item for item in data)  # noqa: E731
    return Batches(start, steps, _length(data))


def inputs(item: Any) -> Any:
    """What the model is called with: of a tuple `(x, y)` or `(x, y, weights)` the first, of anything else all."""
    return item[0] if isinstance(item, tuple) else item


def targets(item: Any) -> Any:
    """The second of a tuple; None where there is none."""
    return item[1] if isinstance(item, tuple) and len(item) > 1 else None


def shown(
    items: Iterable[Any],
    count: int | None,
    progress: bool | Callable[[Iterable[Any]], Iterable[Any]],
    title: str,
) -> Iterable[Any]:
    """The items, while a bar is drawn; or a function wraps them."""
    if not progress:
        return items
    if callable(progress):
        return progress(items)
    from rich.console import Console
    from rich.progress import track

    return track(items, title, total=count, console=Console(stderr=True))


def plain(value: Any) -> np.ndarray:
    """A tensor of any library in NumPy."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        value = value.float() if str(value.dtype) == "torch.bfloat16" else value  # which NumPy has not
    return np.asarray(value)


def sliced(data: Any, rows: slice) -> Any:
    """The same rows of an array, or of each in a dictionary or list."""
    if isinstance(data, Mapping):
        return {name: value[rows] for name, value in data.items()}
    return [value[rows] for value in data] if isinstance(data, list) else data[rows]


def rows_of(data: Any) -> set[int]:
    """How many rows an array has, or each in a dictionary or list."""
    return {len(leaf) for leaf in _leaves(data)}


def _slices(data: Any, labels: Any, batch_size: int, steps: int | None) -> Batches:
    sizes = rows_of(data)
    if len(sizes) > 1:
        raise ArgumentError(
            f"the arrays of data have {sorted(sizes)} rows; give as many in each, or a function that returns batches"
        )
    (rows,) = sizes
    parts = [slice(start, start + batch_size) for start in range(0, rows, batch_size)]
    if _is_array(labels) and labels.shape and len(labels) == rows:
        return Batches(lambda: ((sliced(data, part), labels[part]) for part in parts), steps, count=len(parts))
    return Batches(lambda: (sliced(data, part) for part in parts), steps, count=len(parts))


def _leaves(data: Any) -> list[Any]:
    return list(data.values()) if isinstance(data, Mapping) else data if isinstance(data, list) else [data]


def _is_array(value: Any) -> bool:
    """Whether rows can be cut from it."""
    return hasattr(value, "shape") and hasattr(value, "dtype") and hasattr(value, "__getitem__")


def _is_loader(data: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(data, torch.utils.data.DataLoader)


def _length(data: Any) -> int | None:
    try:
        return len(data)
    except TypeError:  # endless, or of unknown length
        return None


def _once(data: Iterator[Any]) -> Callable[[], Iterator[Any]]:
    unread = [data]

    def start() -> Iterator[Any]:
        if not unread:
            raise ArgumentError(ONCE.format(kind=type(data).__name__))
        return unread.pop()

    return start


def _of_file(path: Path) -> Any:
    """The array of a `.npy`, or of an `.npz` the one called `x`, the only one, or all by their names; not in memory.

    With `x`, one called `y` is the targets.
    Arrays that were compressed are.
    """
    try:
        if path.suffix == ".npy":
            return np.load(path, mmap_mode="r", allow_pickle=False)
        if path.suffix == ".npz":
            return _of_archive(path)
    except (EOFError, OSError, ValueError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} cannot be read: {error}; give a file that numpy.save or numpy.savez wrote") from error
    raise InputError(f"{path} is no .npy and no .npz; give one of them")


def _of_archive(path: Path) -> Any:
    with zipfile.ZipFile(path) as archive:
        members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        if not members:
            raise ValueError("it has no array")
        names = ["x"] if "x" in members else list(members)
        arrays = {name: _member(path, archive, members[name]) for name in names}
        if "x" in members and "y" in members:
            with contextlib.suppress(ValueError):  # targets that are no numbers are nothing to us
                return arrays["x"], _member(path, archive, members["y"])
    return next(iter(arrays.values())) if len(arrays) == 1 else arrays


def _member(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    with archive.open(info) as file:
        if info.compress_type != zipfile.ZIP_STORED:
            return np.lib.format.read_array(file, allow_pickle=False)
        version = np.lib.format.read_magic(file)
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, by_column, dtype = header(file)
        skipped = file.tell()
    if dtype.hasobject:
        raise ValueError(f"{info.filename} has Python objects")
    with path.open("rb") as raw:
        # Before the data stand 30 bytes, the name and an extra field, whose sizes are the last two of those 30.
        raw.seek(info.header_offset + 26)
        name, extra = np.frombuffer(raw.read(4), "<u2").astype(int)
    offset = info.header_offset + 30 + name + extra + skipped
    return np.memmap(path, dtype, "r", offset, shape, "F" if by_column else "C")
