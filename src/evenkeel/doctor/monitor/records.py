# SPDX-License-Identifier: Apache-2.0
"""Where the rows of a monitor go: a CSV, and TensorBoard."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from evenkeel import files
from evenkeel.errors import InputError, MissingLibraryError

OTHER_HEADER = "{path} is no CSV that goes on with the columns {columns}; it begins with {found!r}; give another name"
NO_BOARD = "log_dir needs TensorFlow, or torch with tensorboard; pip install tensorflow-cpu, or pip install tensorboard"


class Records:
    """Rows, written whole: whatever ends the training, each line that is there has all its columns.

    A NaN is an empty cell, and has no place in TensorBoard.
    """

    def __init__(self, row: type[NamedTuple], path: Any, log_dir: Any, *, append: bool) -> None:
        """
        Args:
            row: a named tuple; its first field is the time, an integer, and its second the name of a normalizer.
            path: of the CSV; None for none.
            log_dir: of TensorBoard's files; None for none.
            append: the CSV may be there, and goes on.

        Raises:
            InputError: the CSV cannot be written, is there, or has other columns.
            MissingLibraryError: nothing is installed that writes for TensorBoard.
        """
        self._columns = row._fields
        self._path = None if path is None else Path(path)
        self._log_dir = None if log_dir is None else os.fspath(log_dir)
        self._board = None if log_dir is None else _board()
        self._open: Any = None
        if self._path is not None:
            _check(self._path, self._columns, append)

    def write(self, rows: Iterable[Any]) -> None:
        rows = list(rows)
        if self._path is not None:
            # In one go: a process that is killed meanwhile leaves no half of a line.
            with self._path.open("ab", buffering=0) as file:
                file.write(_lines(rows) if file.tell() else _lines([self._columns, *rows]))
        if self._board is not None:
            self._open = self._open or self._board(self._log_dir)
            for time, name, *values in rows:
                named = zip(self._columns[2:], values, strict=True)
                self._open.scalars(time, {f"{name}/{column}": value for column, value in named if value == value})
            self._open.flush()

    def close(self) -> None:
        """More rows may follow."""
        if self._open is not None:
            self._open.close()
            self._open = None


class _TensorFlow:
    """Events as TensorFlow 1 wrote them: `tf.summary.scalar` cannot do without the package tensorboard."""

    def __init__(self, log_dir: str) -> None:
        import tensorflow as tf

        self._v1 = tf.compat.v1
        with tf.Graph().as_default():  # which is all that it asks for
            self._writer = self._v1.summary.FileWriter(log_dir)
        self.flush, self.close = self._writer.flush, self._writer.close

    def scalars(self, time: int, values: dict[str, float]) -> None:
        entries = [self._v1.Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
        self._writer.add_summary(self._v1.Summary(value=entries), time)


class _Torch:
    def __init__(self, log_dir: str) -> None:
        from torch.utils import tensorboard

        self._writer = tensorboard.SummaryWriter(log_dir)
        self.flush, self.close = self._writer.flush, self._writer.close

    def scalars(self, time: int, values: dict[str, float]) -> None:
        for tag, value in values.items():
            self._writer.add_scalar(tag, value, time)


def _board() -> Any:
    try:
        import tensorflow  # noqa: F401
    except ImportError:
        try:
            import torch.utils.tensorboard  # noqa: F401
        except ImportError:
            raise MissingLibraryError(NO_BOARD) from None
        return _Torch
    return _TensorFlow


def _check(path: Path, columns: tuple[str, ...], append: bool) -> None:
    if path.exists() and not append:
        raise InputError(f"{path} is there already; give append=True to go on with it, or another name")
    files.check_free(path, overwrite=True)
    text = path.read_bytes() if path.exists() else b""
    header = _lines([columns])
    if text and not text.startswith(header):
        found = text.split(b"\n")[0][:200].decode(errors="replace")
        raise InputError(OTHER_HEADER.format(path=path, columns=",".join(columns), found=found))
    if text and not text.endswith(b"\n"):
        raise InputError(f"{path} ends in the middle of a line; take that line away")


def _lines(rows: Iterable[Any]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([_cell(value) for value in row] for row in rows)
    return text.getvalue().encode()


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return f"{value:.6g}" if value == value else ""
    return value
