# SPDX-License-Identifier: Apache-2.0
"""safetensors: round trips, agreement with the library, damaged and hostile files."""

import json
import os
import tempfile
import tracemalloc
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from evenkeel.checkpoints import Checkpoint, Variable, read_checkpoint, write_checkpoint
from evenkeel.checkpoints.formats import safetensors as format
from evenkeel.errors import InputError

pytestmark = pytest.mark.skipif(os.environ.get("KERAS_BACKEND", "numpy") != "numpy", reason="no framework takes part")

TYPES = ["bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float16", "float32"]
TYPES += ["float64", "complex64", ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2]
VALUES = {
    "bn/gamma": np.array([1.0, 2.5, -3.0], "float32"),
    "conv/kernel": np.arange(12, dtype="float32").reshape(2, 2, 3),
    "global_step": np.array(7, "int64"),
    "empty": np.zeros((0, 3), "float32"),
}


def checkpoint(values=VALUES, convention="tensorflow"):
    return Checkpoint("example", "memory", convention, {name: Variable.of(value) for name, value in values.items()})


def values(read):
    return {name: variable.read() for name, variable in read.variables.items()}


def equal(got, expected):
    assert list(got) == list(expected)
    for name, value in expected.items():
        assert got[name].dtype == value.dtype and got[name].shape == value.shape
        assert got[name].tobytes() == value.tobytes()


def saved(folder, header, data=b"", announced=None):
    """A file with any header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path = folder / "x.safetensors"
    path.write_bytes((len(text) if announced is None else announced).to_bytes(8, "little") + text + data)
    return path


def entry(shape=(3,), places=(0, 12), dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": places}


def test_round_trip(tmp_path):
    path = tmp_path / "x.safetensors"
    write_checkpoint(path, checkpoint())
    read = read_checkpoint(path)
    equal(values(read), VALUES)
    assert (read.format, read.path) == (format.DESCRIPTION, str(path))


@pytest.mark.parametrize("dtype", TYPES, ids=lambda dtype: np.dtype(dtype).name)
def test_round_trip_of_each_type(tmp_path, dtype):
    expected = {"x": np.array([0, 1, 1]).astype(dtype)}
    format.write(checkpoint(expected), tmp_path / "x.safetensors")
    equal(values(format.read(tmp_path / "x.safetensors")), expected)


@pytest.mark.parametrize("convention", ["tensorflow", "keras", "torch", "flax"])
def test_round_trip_of_the_convention(tmp_path, convention):
    format.write(checkpoint(convention=convention), tmp_path / "x.safetensors")
    assert format.read(tmp_path / "x.safetensors").convention == convention


@pytest.mark.parametrize(
    ("name", "convention"),
    [("bn.running_mean", "torch"), ("batch_stats/bn/mean", "flax"), ("bn/moving_mean", "tensorflow")],
)
def test_without_metadata_the_names_say_the_convention(tmp_path, name, convention):
    safetensors.numpy.save_file({name: np.zeros(3)}, tmp_path / "x.safetensors")
    assert format.read(tmp_path / "x.safetensors").convention == convention


def test_the_library_reads_what_is_written(tmp_path):
    format.write(checkpoint(), tmp_path / "x.safetensors")
    read = safetensors.numpy.load_file(tmp_path / "x.safetensors")
    equal({name: read[name] for name in VALUES}, VALUES)


def test_what_the_library_writes_is_read(tmp_path):
    safetensors.numpy.save_file(VALUES, tmp_path / "x.safetensors", metadata={"format": "pt"})
    read = format.read(tmp_path / "x.safetensors")
    got = values(read)
    equal({name: got[name] for name in VALUES}, VALUES)
    assert read.convention == "torch"


def test_layouts_of_memory_do_not_show(tmp_path):
    transposed = np.arange(6, dtype=">f4").reshape(2, 3).T
    format.write(checkpoint({"x": transposed}), tmp_path / "x.safetensors")
    np.testing.assert_array_equal(format.read(tmp_path / "x.safetensors").variables["x"].read(), transposed)


def test_reading_holds_one_variable_and_the_file_may_go(tmp_path):
    path = tmp_path / "x.safetensors"
    format.write(checkpoint({"a": np.zeros(2**22, "uint8"), "b": np.zeros(2**22, "uint8")}), path)
    tracemalloc.start()
    read = format.read(path)
    format.write(read, tmp_path / "again.safetensors")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert 2**22 < peak < 1.5 * 2**22
    path.unlink()
    with pytest.raises(InputError, match=r"x\.safetensors: a cannot be read"):
        read.variables["a"].read()


def test_a_file_that_shrank_since(tmp_path):
    format.write(checkpoint({"a": np.zeros(100)}), tmp_path / "x.safetensors")
    read = format.read(tmp_path / "x.safetensors")
    os.truncate(tmp_path / "x.safetensors", 300)
    with pytest.raises(InputError, match=r"x\.safetensors: a has \d+ bytes where it announces 800"):
        read.variables["a"].read()


@pytest.mark.parametrize("name", ["nan", "", "/", "a" * 10_000, "🙂", "../../etc/passwd", "a\0b", '"', "a\nb"])
def test_odd_names_are_only_names(tmp_path, name):
    format.write(checkpoint({name: np.ones(1)}), tmp_path / "x.safetensors")
    equal(values(format.read(tmp_path / "x.safetensors")), {name: np.ones(1)})


@pytest.mark.parametrize(
    ("name", "value"),
    [("x", np.array(["text"])), ("x", np.array([None])), ("\ud800", np.ones(1)), ("__metadata__", np.ones(1))],
    ids=["text", "object", "half a character", "metadata"],
)
def test_what_cannot_be_written_leaves_nothing(tmp_path, name, value):
    (tmp_path / "x.safetensors").write_text("before")
    with pytest.raises(InputError, match=r"x\.safetensors cannot hold"):
        format.write(checkpoint({name: value}), tmp_path / "x.safetensors")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["before"]


def test_an_interrupted_write_leaves_what_was_there(tmp_path):
    def interrupted():
        raise KeyboardInterrupt

    path = tmp_path / "x.safetensors"
    path.write_text("before")
    variables = {"a": Variable.of([1.0]), "b": Variable((1,), np.dtype(float), "b", interrupted)}
    with pytest.raises(KeyboardInterrupt):
        format.write(Checkpoint("example", "memory", "tensorflow", variables), path)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["before"]


HOSTILE = {
    "a header of 2 GB": ({"saved": {}, "announced": 2**31}, "announces a header of 2147483648 bytes"),
    "a header of more than there is": ({"header": b"\xff" * 8, "announced": 2**64 - 1}, "announces a header"),
    "nothing": ({"header": b"", "announced": 0}, "announces a header of 0 bytes"),
    "no JSON": ({"header": b"{what"}, "JSONDecodeError"),
    "a list": ({"header": [1]}, "a header that is list"),
    "deep": ({"header": b'{"a":' + b"[" * 100_000}, "RecursionError"),
    "a name twice": ({"header": b'{"a": {}, "a": {}}'}, "a name twice"),
    "2 GB in a small file": ({"header": {"a": entry([2**29], [0, 2**31])}}, ": a lies at 0 to 2147483648"),
    "an overflow": ({"header": {"a": entry([2**62, 2**62], [0, 12])}}, ": a of shape .* is not its size"),
    "a negative size": ({"header": {"a": entry([-3], [0, -12])}}, ": a has shape"),
    "no number": ({"header": b'{"a": {"dtype": "F32", "shape": [NaN], "data_offsets": [0, 12]}}'}, ": a has shape"),
    "many dimensions": ({"header": {"a": entry([1] * 1000, [0, 4])}}, ": a has shape"),
    "an unknown type": ({"header": {"a": entry(dtype="F7")}}, "a is of type F7"),
    "a type that is none": ({"header": {"a": entry(dtype=[])}}, ": a cannot be read .TypeError"),
    "half an entry": ({"header": {"a": {"dtype": "F32"}}}, ": a cannot be read .KeyError: 'shape'"),
    "shared bytes": ({"header": {"a": entry(), "b": entry()}}, ": b lies at 0 to 12, where 12 to"),
    "a hole": ({"header": {"a": entry(places=[4, 16])}}, ": a lies at 4 to 16, where 0"),
    "bytes left over": ({"header": {"a": entry()}, "data": bytes(20)}, "has 20 bytes of values and names for 12"),
    "metadata that are none": ({"header": {"__metadata__": [1]}, "data": b""}, "AttributeError"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files(tmp_path, case):
    arguments, message = HOSTILE[case]
    path = saved(tmp_path, arguments.get("header", {}), arguments.get("data", bytes(12)), arguments.get("announced"))
    with pytest.raises(InputError, match=rf"x\.safetensors.*{message}"):
        read_checkpoint(path)


def test_the_hostile_files_can_be_good(tmp_path):
    assert list(read_checkpoint(saved(tmp_path, {"a": entry()}, bytes(12))).variables) == ["a"]


def test_many_variables_take_seconds(tmp_path):
    path = tmp_path / "x.safetensors"
    format.write(checkpoint({f"layer{number}/gamma": np.ones(1) for number in range(20_000)}), path)
    assert len(format.read(path).variables) == 20_000


with tempfile.TemporaryDirectory() as _folder:
    format.write(checkpoint(), Path(_folder, "x"))
    VALID = Path(_folder, "x").read_bytes()


@settings(max_examples=60)
@given(
    cut=st.integers(0, len(VALID)),
    changes=st.lists(st.tuples(st.integers(0, len(VALID) - 1), st.integers(0, 255)), max_size=4),
)
def test_damaged_bytes_are_good_or_an_input_error(cut, changes):
    content = bytearray(VALID)
    for place, byte in changes:
        content[place] = byte
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "x.safetensors")
        path.write_bytes(content[:cut] if cut % 2 else content)
        try:
            if format.recognises(path):
                values(format.read(path))
            said = ""
        except InputError as error:
            said = str(error)
    assert not said or str(path) in said
