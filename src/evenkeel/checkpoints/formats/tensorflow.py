# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of TensorFlow: several files with one prefix (V2), or the first format, a file or shards of it (V1)."""

from __future__ import annotations

import glob
import os
import re
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from evenkeel.checkpoints import bundles, slices, tables
from evenkeel.checkpoints.contents import Checkpoint, Variable
from evenkeel.errors import InputError

DESCRIPTION = "checkpoint of TensorFlow"
SUFFIXES: tuple[str, ...] = ()

GROUP = 2**26
"""Bytes that are written in one go; a larger variable goes alone."""
NAMES = 2**12
"""Variables that are written in one go."""
STATE = "checkpoint"
"""In which a saver keeps the name of its last prefix. None is written here: what a folder's newest is, savers say."""


def recognises(path: Path) -> bool:
    """A prefix, one of its files, or a folder with a saver's state or with such files."""
    if path.is_dir():
        return _has_state(path) or bool(_prefixes(path))
    return _is_prefix(_prefix(path))


def read(path: Path) -> Checkpoint:
    """A folder stands for the prefix that its `checkpoint` names, or for the only one there is."""
    prefix = _of_folder(path) if path.is_dir() else _prefix(path)
    if not bundles.index_file(prefix).is_file() and (shards := _shards(prefix)):
        wanted = 1 if shards == [prefix] else int(shards[0].name[-5:])
        if len(shards) != wanted:
            raise InputError(f"{prefix} has {len(shards)} shards that can be read, and {shards[0].name} is of {wanted}")
        return Checkpoint(str(path), f"{DESCRIPTION}, V1", "tensorflow", slices.read(shards))
    return Checkpoint(str(path), f"{DESCRIPTION}, V2", "tensorflow", bundles.read(prefix))


def write(checkpoint: Checkpoint, path: Path) -> None:
    """V2. The index comes last, and values get files of new names: what was there is whole until then."""
    tf = slices.tensorflow()
    if path.is_dir():
        raise InputError(f"{path} is a folder; give a prefix, such as {path / 'model.ckpt'}")
    if not checkpoint.variables:
        raise InputError(f"{checkpoint.path} has no variables, and TensorFlow has no checkpoint without")
    for name, variable in checkpoint.variables.items():
        _check(name, variable)
    old = set(_data_files(path))
    groups = _groups(checkpoint.variables, {int(file.name[-5:]) for file in old})
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f"partial-{path.name}-") as folder:
        parts = [os.path.join(folder, f"part-{number}") for number in range(len(groups))]
        for part, names in zip(parts, groups, strict=True):
            _save(part, {name: checkpoint.variables[name].read() for name in names})
        whole = Path(folder, "whole", path.name)
        _eagerly(lambda: tf.raw_ops.MergeV2Checkpoints(checkpoint_prefixes=parts, destination_prefix=str(whole)))
        new = _move([*_data_files(whole), bundles.index_file(whole)], path.parent)
    for file in old.difference(new):
        file.unlink()
    path.unlink(missing_ok=True)


def _check(name: str, variable: Variable) -> None:
    """
    Raises:
        InputError: a checkpoint of TensorFlow cannot hold it.
    """
    if not name or "\0" in name or name == bundles.OBJECT_GRAPH or name != name.encode(errors="replace").decode():
        raise InputError(f"{variable.where}: {name!r} cannot be the name of a variable in a checkpoint of TensorFlow")
    try:
        slices.tensorflow().as_dtype(variable.dtype)
    except TypeError as error:
        raise InputError(f"{variable.where}: TensorFlow has no type {variable.dtype}; convert {name} before") from error


def _groups(variables: Mapping[str, Variable], taken: set[int]) -> list[list[str]]:
    """Names that are written in one go; as many groups as there are no old files of, where that can be."""
    groups: list[list[str]] = []
    held = 0
    for name, variable in variables.items():
        size = variable.size * variable.dtype.itemsize
        if not groups or held + size > GROUP or len(groups[-1]) == NAMES:
            groups.append([])
            held = 0
        groups[-1].append(name)
        held += size
    while len(groups) in taken and any(len(group) > 1 for group in groups):
        longest = max(groups, key=len)
        groups.append([longest.pop()])
    return groups


def _save(prefix: str, values: Mapping[str, np.ndarray]) -> None:
    tf = slices.tensorflow()

    def save() -> None:
        with tf.device("CPU:0"):
            tensors = [_tensor(tf, array) for array in values.values()]
            tf.raw_ops.SaveV2(
                prefix=prefix, tensor_names=list(values), shape_and_slices=[""] * len(values), tensors=tensors
            )

    try:
        _eagerly(save)
    except (tf.errors.OpError, TypeError, ValueError) as error:
        raise InputError(f"{', '.join(values):.99} cannot be written by TensorFlow: {error}") from error


def _tensor(tf: Any, values: np.ndarray) -> Any:
    """In the memory of the array, where that can be: converted it would be there three times."""
    if values.dtype == tf.bfloat16.as_numpy_dtype:
        return tf.bitcast(_tensor(tf, values.view(np.uint16)), tf.bfloat16)
    if values.dtype.kind not in "biufc" or not values.flags.writeable:
        return tf.constant(values)
    return tf.experimental.dlpack.from_dlpack(
        np.asarray(values, values.dtype.newbyteorder("="), order="C").__dlpack__()
    )


def _eagerly(work: Callable[[], Any]) -> None:
    """At once, also in a program that has switched eager execution off."""
    tf = slices.tensorflow()
    with tf.init_scope():
        if tf.executing_eagerly():
            work()
            return
    config = tf.compat.v1.ConfigProto(device_count={"GPU": 0})
    with tf.Graph().as_default(), tf.compat.v1.Session(config=config) as session:
        session.run(tf.py_function(work, [], []))


def _move(files: list[Path], folder: Path) -> list[Path]:
    """One after the other; where that fails, none."""
    moved: list[Path] = []
    try:
        for file in files:
            moved.append(file.replace(folder / file.name))
    except BaseException:
        for file in moved:
            file.unlink()
        raise
    return moved


def _prefix(path: Path) -> Path:
    """Without what is added to a prefix in the names of its files."""
    name = re.sub(r"(?<=.)(\.index|\.data-\d{5}-of-\d{5}|-[\d?]{5}-of-[\d?]{5})$", "", path.name)
    return path.with_name(name) if name != path.name else path


def _is_prefix(prefix: Path) -> bool:
    return tables.is_table(bundles.index_file(prefix)) or bool(_data_files(prefix)) or bool(_shards(prefix))


def _data_files(prefix: Path) -> list[Path]:
    return sorted(prefix.parent.glob(f"{glob.escape(prefix.name)}.data-?????-of-?????"))


def _shards(prefix: Path) -> list[Path]:
    """Of V1: the file itself, or those whose names say of how many they are."""
    if tables.is_table(prefix):
        return [prefix]
    return sorted(filter(tables.is_table, prefix.parent.glob(f"{glob.escape(prefix.name)}-?????-of-?????")))


def _has_state(folder: Path) -> bool:
    state = folder / STATE
    try:
        return state.is_file() and b"model_checkpoint_path:" in state.read_bytes()
    except OSError:
        return False


def _prefixes(folder: Path) -> list[Path]:
    try:
        return sorted({_prefix(file) for file in folder.iterdir() if tables.is_table(file)})
    except OSError:
        return []


def _of_folder(folder: Path) -> Path:
    """The prefix that is meant by a folder.

    Raises:
        InputError: none, or there are several.
    """
    prefixes = _prefixes(folder)
    known = ", ".join(prefix.name for prefix in prefixes) or "there are none"
    if not _has_state(folder):
        if len(prefixes) == 1:
            return prefixes[0]
        raise InputError(f"{folder} has no file `{STATE}` that names one of its checkpoints; give a prefix: {known}")
    try:
        named = slices.tensorflow().train.get_checkpoint_state(str(folder)).model_checkpoint_path
    except (AttributeError, ValueError) as error:
        raise InputError(f"{folder / STATE} is damaged; give a prefix: {known}") from error
    # A folder that was moved here still has its old path in it.
    for prefix in (_prefix(folder / Path(named).name), _prefix(Path(named))):
        if prefix.name and _is_prefix(prefix):
            return prefix
    raise InputError(f"{folder / STATE} names {named}, which is not there; give another prefix: {known}")
