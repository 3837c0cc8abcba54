# SPDX-License-Identifier: Apache-2.0
"""How HDF5 files that nobody vouches for are read, and values put into them."""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from evenkeel.checkpoints import hdf5_survey
from evenkeel.checkpoints.contents import Variable
from evenkeel.errors import InputError, MissingLibraryError

MAGIC = b"\x89HDF\r\n\x1a\n"
DAMAGED = (OSError, RuntimeError, LookupError, ValueError, TypeError, ArithmeticError, MemoryError)
"""What h5py raises for a damaged file."""

PATIENCE = 60
"""Seconds that a small file may take; each megabyte has a second more."""


class Contents(NamedTuple):
    """An HDF5 file, or a part of a file that is one.

    name: of the file, for messages.
    path, start, size: which bytes of which file.
    groups: path -> attributes that Keras writes; the path of the root is empty.
    datasets: path -> shape, and type where they are numbers.
    """

    name: str
    path: str
    start: int
    size: int
    groups: Mapping[str, Mapping[str, Any]]
    datasets: Mapping[str, tuple[tuple[int, ...], np.dtype[Any] | None]]

    def texts(self, group: str, attribute: str) -> list[str] | None:
        """A list of texts, which Keras spreads over several attributes when it is long; None where there is none."""
        attributes = self.groups.get(group, {})
        if attribute in attributes:
            return list(attributes[attribute])
        parts: list[list[str]] = []
        while f"{attribute}{len(parts)}" in attributes:
            parts.append(attributes[f"{attribute}{len(parts)}"])
        return [text for part in parts for text in part] if parts else None

    def variable(self, place: str) -> Variable:
        """
        Raises:
            InputError: nothing is there, or no numbers.
        """
        where = f"{place} of {self.name}"
        if place not in self.datasets:
            raise InputError(f"{where} is listed, but is not in the file; the file is damaged")
        shape, dtype = self.datasets[place]
        if dtype is None:
            raise InputError(f"{where} holds no numbers; a variable of a model was wanted")
        return Variable(shape, dtype, where, functools.partial(self._load, place, shape, dtype, where))

    def _load(self, place: str, shape: tuple[int, ...], dtype: np.dtype[Any], where: str) -> np.ndarray:
        stored = np.dtype("V2") if dtype.name == "bfloat16" else dtype
        try:
            values = np.empty(shape, stored)
            with hdf5_survey.opened(self.path, self.start, self.size) as file:
                dataset = file[place]
                if dataset.shape != shape or dataset.dtype.newbyteorder("=") != stored:
                    raise ValueError("it is no longer what it was")
                if values.size:
                    dataset.read_direct(values)
        except DAMAGED as error:
            raise InputError(f"{where} cannot be read: {error}") from error
        return values.view(dtype)


def is_hdf5(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def contents(path: Path) -> Contents:
    """What a file holds.

    Raises:
        InputError: it is no HDF5 file, is damaged, leads elsewhere, or announces more than it has.
        MissingLibraryError: h5py is not installed.
    """
    try:
        return part(path, 0, path.stat().st_size, str(path))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error}") from error


def part(path: Path, start: int, size: int, name: str) -> Contents:
    """What some bytes of a file hold that are an HDF5 file; raises as `contents` does."""
    if importlib.util.find_spec("h5py") is None:
        raise MissingLibraryError('h5py is not installed; pip install "evenkeel[checkpoints]"')
    found = _survey(str(path), start, size, os.stat(path).st_mtime_ns)
    if "error" in found:
        raise InputError(f"{name} cannot be used: {found['error']}")
    datasets = {place: (tuple(shape), _dtype(dtype)) for place, (shape, dtype) in found["datasets"].items()}
    return Contents(name, str(path), start, size, found["groups"], datasets)


@functools.lru_cache(maxsize=1)  # a file is first recognised, then read
def _survey(path: str, start: int, size: int, changed: int) -> dict[str, Any]:
    seconds = PATIENCE + size / 1e6
    command = [sys.executable, "-P", hdf5_survey.__file__, path, str(start), str(size)]
    try:
        done = subprocess.run(command, capture_output=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return {"error": f"the HDF5 library was not done after {seconds:.0f} seconds; the file is damaged"}
    if done.returncode:
        return {"error": f"the HDF5 library crashes on it (exit status {done.returncode}); the file is damaged"}
    return json.loads(done.stdout)


def _dtype(name: str | None) -> np.dtype[Any] | None:
    if name != "bfloat16":
        return None if name is None else np.dtype(name)
    try:
        import ml_dtypes
    except ImportError as error:
        raise MissingLibraryError('ml_dtypes is not installed; pip install "evenkeel[checkpoints]"') from error
    return np.dtype(ml_dtypes.bfloat16)


def create(group: Any, name: str, variable: Variable) -> None:
    """A dataset with the values of a variable."""
    values = variable.read()
    if values.dtype.name != "bfloat16":
        group.create_dataset(name, data=values)
    else:
        group.create_dataset(name, data=values.view("V2")).attrs["dtype"] = "bfloat16"  # as Keras does it


def fill(contents: Contents, values: Iterable[tuple[str, Variable]]) -> None:
    """Put values into datasets of an HDF5 file of our own, one after the other."""
    import h5py

    with h5py.File(contents.path, "r+") as file:
        for place, variable in values:
            dtype = contents.datasets[place][1]
            array = variable.read().astype(dtype, copy=False)
            file[place][...] = array.view("V2") if array.dtype.name == "bfloat16" else array
