# SPDX-License-Identifier: Apache-2.0
"""How a file is written so that nobody ever finds half of it."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from evenkeel.errors import InputError


def check_free(path: Path, *, overwrite: bool) -> None:
    """
    Raises:
        InputError: no file can be written at `path`, or one is there that is not to be overwritten.
    """
    if path.is_dir():
        raise InputError(f"{path} is a folder; give the name of a file")
    if path.exists() and not overwrite:
        raise InputError(f"{path} is there already; give --overwrite or another name")
    if not path.absolute().parent.is_dir():
        raise InputError(f"{path.absolute().parent} is not a folder; make it, or give another name")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file or folder beside `path` to write to, which takes the place of `path` when all went well.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "numbers")
        >>> with replacing(path) as partial:
        ...     _ = partial.write_text("1 2 3")
        ...     path.exists()
        False
        >>> path.read_text()
        '1 2 3'
    """
    partial = path.with_name(f"partial-{path.name}")
    remove(partial)  # of a process that was killed
    try:
        yield partial
        if partial.is_dir() and path.is_dir():  # a file is replaced at once, and takes no folder's place
            remove(path)
        os.replace(partial, path)
    finally:
        remove(partial)


def remove(path: Path) -> None:
    """A file, or a folder with all that is in it; nothing where there is none."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
