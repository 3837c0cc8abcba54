# SPDX-License-Identifier: Apache-2.0
"""What TensorFlow's checkpoints hold since 1.0 (V2): what lies where, in `.index`, and the values, in `.data-*`."""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from evenkeel.checkpoints import slices, tables
from evenkeel.checkpoints.contents import Variable
from evenkeel.errors import InputError

OBJECT_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"
"""Describes the objects of TensorFlow 2 that were saved; it is no variable."""
SUM = 4
"""Bytes of the sum between the lengths of strings and the strings."""


class Entry(NamedTuple):
    """What the index says of a variable, or of a part of one.

    kind: TensorFlow's type.
    place: a `BundleEntryProto`: shard, offset and size of the values in bytes, and the parts where it has such.
    """

    shape: tuple[int, ...]
    kind: Any
    place: Any


def index_file(prefix: Path) -> Path:
    return prefix.with_name(f"{prefix.name}.index")


def data_file(prefix: Path, shard: int, shards: int) -> Path:
    return prefix.with_name(f"{prefix.name}.data-{shard:05d}-of-{shards:05d}")


def read(prefix: Path) -> dict[str, Variable]:
    """The variables by name; a partitioned one is one. Of objects of TensorFlow 2 `where` has also the variable's name.

    Args:
        prefix: what the names of the files begin with.

    Raises:
        InputError: not such files, or damaged ones; also when a file of values is missing or too short.
    """
    tf = slices.tensorflow()
    shards, entries = _index(prefix)
    parts = {slices.key(key, part) for key, entry in entries.items() for part in entry.place.slices}
    try:
        # It checks the sums of the index, too.
        reader = tf.compat.v1.train.NewCheckpointReader(str(prefix))
    except (tf.errors.OpError, RuntimeError) as error:
        raise InputError(f"{index_file(prefix)} is damaged: {error}") from error
    variables = {}
    for key in (key for key in entries if key not in parts):
        try:
            name = key.decode()
        except UnicodeDecodeError as error:
            raise InputError(f"{index_file(prefix)} has the name {_text(key)}, which is no text") from error
        entry, where = entries[key], f"{prefix}: {name}"
        path = data_file(prefix, entry.place.shard_id, shards)
        load = functools.partial(_load, reader, name, entry, path, where)
        variables[name] = Variable(entry.shape, slices.numpy_dtype(entry.kind), where, load)
    graph = variables.pop(OBJECT_GRAPH, None)
    return variables if graph is None else _named(variables, graph)


def _index(prefix: Path) -> tuple[int, dict[bytes, Entry]]:
    """Number of shards, and what lies where, which TensorFlow's reader can be trusted with.

    Given an index that was made up, that reader ends the process, or asks for all the memory there is.
    """
    from google.protobuf.message import DecodeError
    from tensorflow.core.protobuf.tensor_bundle_pb2 import BundleEntryProto, BundleHeaderProto

    index = index_file(prefix)
    table = tables.entries(index)
    first = next(table, None)
    if first is None or first.key:
        raise InputError(f"{index} is a table of TensorFlow, and not the index of a checkpoint")
    key, entries = b"", {}
    try:
        shards = BundleHeaderProto.FromString(bytes(first.value)).num_shards
        for key, value, _ in table:
            place = BundleEntryProto.FromString(bytes(value))
            entries[key] = Entry(*slices.shape_and_dtype(place, f"{index}: {_text(key)}"), place)
    except DecodeError as error:
        raise InputError(f"{index} is damaged at {_text(key)}: {error}") from error

    sizes: dict[int, int] = {}
    for key, entry in entries.items():
        where = f"{index}: {_text(key)}"
        if entry.place.slices:
            _check_parts(key, entry, entries, where)
            continue
        shard = entry.place.shard_id
        if shard not in sizes:
            path = data_file(prefix, shard, shards)
            if not path.is_file():
                raise InputError(f"{path} is missing; {where} should have its values there")
            sizes[shard] = path.stat().st_size
        _check(entry, sizes[shard], where)
    return shards, entries


def _text(key: bytes) -> str:
    return f"{key.decode(errors='backslashreplace'):.99}"


def _check(entry: Entry, size: int, where: str) -> None:
    """
    Raises:
        InputError: the values cannot be where the entry says, in a file of that size.
    """
    shape, kind, place = entry
    if not 0 <= place.offset <= place.offset + place.size <= size:
        raise InputError(
            f"{where} is announced with {place.size} bytes at {place.offset}, in a file of {size}; "
            "the file is cut short, or the index damaged"
        )
    dtype, count = slices.numpy_dtype(kind), math.prod(shape)
    if place.size < count or (not dtype.hasobject and place.size != count * dtype.itemsize):
        raise InputError(f"{where} is announced as {kind.name} of shape {shape}, in {place.size} bytes")


def _check_parts(key: bytes, entry: Entry, entries: dict[bytes, Entry], where: str) -> None:
    """
    Raises:
        InputError: the parts do not make up the variable.
    """
    regions = []
    for announced in entry.place.slices:
        region = slices.region(announced, entry.shape, where)
        shape = slices.extents(region)
        part = entries.get(slices.key(key, announced))
        if part is None or part.place.slices or part[:2] != (shape, entry.kind):
            raise InputError(f"{where} should have a part of shape {shape}, which is missing or different")
        regions.append(region)
    slices.check_regions(regions, entry.shape, where)


def _load(reader: Any, name: str, entry: Entry, path: Path, where: str) -> np.ndarray:
    tf = slices.tensorflow()
    try:
        slices.check_arrays(entry.kind)
        if entry.kind == tf.string:
            return _strings(path, entry)
        return np.asarray(reader.get_tensor(name), slices.numpy_dtype(entry.kind))
    except (tf.errors.OpError, RuntimeError, ValueError, TypeError, IndexError, OSError) as error:
        raise InputError(f"{where} cannot be read: {error}") from error


def _strings(path: Path, entry: Entry) -> np.ndarray:
    """The lengths, their sum, the strings. TensorFlow's reader would believe a length of 2^60."""
    if entry.place.slices:
        raise ValueError("it is a variable of strings in several parts, which are not put together here")
    with open(path, "rb") as file:
        file.seek(entry.place.offset)
        stored = memoryview(file.read(entry.place.size))
    lengths, position = tables.varints(stored, 0, math.prod(entry.shape))
    ends = np.cumsum([position + SUM, *lengths], dtype=object)
    if ends[-1] != len(stored):
        raise ValueError(f"strings up to byte {ends[-1]} in {len(stored)} bytes")
    strings = np.empty(len(lengths), object)
    strings[:] = [bytes(stored[start:end]) for start, end in itertools.pairwise(ends)]
    return strings.reshape(entry.shape)


def _named(variables: dict[str, Variable], graph: Variable) -> dict[str, Variable]:
    """With the names that the variables had in their program."""
    from google.protobuf.message import DecodeError
    from tensorflow.core.protobuf.trackable_object_graph_pb2 import TrackableObjectGraph

    try:
        nodes = TrackableObjectGraph.FromString(graph.read().item()).nodes
    except (DecodeError, TypeError, ValueError) as error:
        raise InputError(f"{graph.where} is damaged: {error}") from error
    names = {saved.checkpoint_key: saved.full_name for node in nodes for saved in node.attributes if saved.full_name}
    return {
        key: replace(variable, where=f"{variable.where} ({names[key]})") if key in names else variable
        for key, variable in variables.items()
    }
