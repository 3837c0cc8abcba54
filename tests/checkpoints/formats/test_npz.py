# SPDX-License-Identifier: Apache-2.0
""".npz files: round trips, agreement with NumPy, damaged and hostile files."""

import io
import os
import pickle
import struct
import tempfile
import tracemalloc
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evenkeel.checkpoints import Checkpoint, Variable, read_checkpoint, write_checkpoint
from evenkeel.checkpoints.formats import npz as format
from evenkeel.errors import InputError

from conftest import GOLDENS

pytestmark = pytest.mark.skipif(os.environ.get("KERAS_BACKEND", "numpy") != "numpy", reason="no framework takes part")

VALUES = {
    "bn/gamma": np.array([1.0, 2.5, -3.0], "float32"),
    "conv/kernel": np.arange(12, dtype="float32").reshape(2, 2, 3),
    "global_step": np.array(7, "int64"),
    "empty": np.zeros((0, 3), "float32"),
    "columns": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "other order": np.arange(3, dtype=">f4"),
    "text": np.array(["ä", "bc"]),
}


def checkpoint(values=VALUES):
    return Checkpoint("example", "memory", "tensorflow", {name: Variable.of(value) for name, value in values.items()})


def values(read):
    return {name: variable.read() for name, variable in read.variables.items()}


def equal(got, expected):
    assert list(got) == list(expected)
    for name, value in expected.items():
        assert got[name].dtype == value.dtype and got[name].shape == value.shape
        assert got[name].tobytes() == value.tobytes()


def array(value, **options):
    stream = io.BytesIO()
    np.lib.format.write_array(stream, np.asarray(value), **options)
    return stream.getvalue()


def saved(folder, members, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(folder / "x.npz", "w", compression) as archive:
        for name, content in members:
            archive.writestr(zipfile.ZipInfo(name), content, compression)
    return folder / "x.npz"


def announcing(shape, dtype="<f4", version=b"\x01\x00"):
    """A header of three numbers that says something else."""
    text = f"{{'descr': {dtype!r}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY" + version + struct.pack("<H", len(text)) + text + bytes(12)


def test_round_trip(tmp_path):
    write_checkpoint(tmp_path / "x.npz", checkpoint())
    read = read_checkpoint(tmp_path / "x.npz")
    equal(values(read), VALUES)
    assert (read.format, read.convention) == (format.DESCRIPTION, "tensorflow")


def test_the_same_values_make_the_same_file(tmp_path):
    format.write(checkpoint(), tmp_path / "a.npz")
    format.write(format.read(tmp_path / "a.npz"), tmp_path / "b.npz")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_numpy_reads_what_is_written(tmp_path):
    format.write(checkpoint(), tmp_path / "x.npz")
    with np.load(tmp_path / "x.npz") as file:
        equal(dict(file), VALUES)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed], ids=["plain", "compressed"])
def test_what_numpy_writes_is_read(tmp_path, save):
    save(tmp_path / "x.npz", **VALUES)
    equal(values(read_checkpoint(tmp_path / "x.npz")), VALUES)


def test_values_of_tensorflow_1_15():
    path = GOLDENS / "checkpoints" / "a1_contrib_mlp" / "io.npz"
    read = read_checkpoint(path)
    assert [normalizer.name for normalizer in read.normalizers] == ["vars/bn1", "vars/bn2"]
    with np.load(path) as file:
        np.testing.assert_array_equal(read.normalizers[0].mean.read(), file["vars/bn1/moving_mean"])


@pytest.mark.parametrize(
    ("name", "convention"),
    [("bn.running_mean", "torch"), ("batch_stats/bn/mean", "flax"), ("bn/moving_mean", "tensorflow")],
)
def test_names_say_the_convention(tmp_path, name, convention):
    np.savez(tmp_path / "x.npz", **{name: np.zeros(3)})
    assert format.read(tmp_path / "x.npz").convention == convention


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed], ids=["plain", "compressed"])
def test_memory_holds_one_variable(tmp_path, save):
    noise = np.random.default_rng(0).integers(0, 255, 2**22, "uint8")
    save(tmp_path / "x.npz", **{f"{number}": noise for number in range(8)})
    tracemalloc.start()
    format.write(format.read(tmp_path / "x.npz"), tmp_path / "again.npz")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert 2**22 < peak < 3 * 2**22  # NumPy writes in pieces of up to 16 MiB, so one is there twice


def test_the_file_may_be_renamed_and_deleted(tmp_path):
    format.write(checkpoint(), tmp_path / "x.npz")
    read = format.read(tmp_path / "x.npz")
    (tmp_path / "x.npz").rename(tmp_path / "y.npz")
    (tmp_path / "y.npz").unlink()
    equal(values(read), VALUES)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("x", np.ones(1, ml_dtypes.bfloat16)),
        ("x", np.array([None])),
        ("../x", np.ones(1)),
        ("/x", np.ones(1)),
        ("a\0b", np.ones(1)),
        ("\ud800", np.ones(1)),
    ],
    ids=["bfloat16", "object", "upwards", "absolute", "zero byte", "half a character"],
)
def test_what_cannot_be_written_leaves_nothing(tmp_path, name, value):
    (tmp_path / "x.npz").write_text("before")
    with pytest.raises(InputError, match=r"x\.npz"):
        format.write(checkpoint({name: value}), tmp_path / "x.npz")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["before"]


def test_an_interrupted_write_leaves_what_was_there(tmp_path):
    def interrupted():
        raise KeyboardInterrupt

    (tmp_path / "x.npz").write_text("before")
    variables = {"a": Variable.of([1.0]), "b": Variable((1,), np.dtype(float), "b", interrupted)}
    with pytest.raises(KeyboardInterrupt):
        format.write(Checkpoint("example", "memory", "tensorflow", variables), tmp_path / "x.npz")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["before"]


class Bomb:
    def __reduce__(self):
        return Path.touch, (Path(os.environ["EVENKEEL_TEST_PROOF"]),)


def test_a_pickle_is_not_run(tmp_path, monkeypatch):
    proof = tmp_path / "it ran"
    monkeypatch.setenv("EVENKEEL_TEST_PROOF", str(proof))
    np.savez(tmp_path / "x.npz", x=np.array([Bomb()], object))
    with pytest.raises(InputError, match=r"x\.npz: x\.npy is of type object, which NumPy keeps as a pickle"):
        read_checkpoint(tmp_path / "x.npz")
    assert not proof.exists()
    pickle.loads(pickle.dumps(Bomb()))
    assert proof.exists()  # so it can run


GOOD = array(np.ones(3, "float32"))
HOSTILE = {
    "upwards": ([("../x.npy", GOOD)], "'../x.npy' as the name of a member"),
    "upwards, on Windows": ([("a\\..\\x.npy", GOOD)], "as the name of a member"),
    "absolute": ([("/x.npy", GOOD)], "'/x.npy' as the name of a member"),
    "not an array": ([("x.npy", GOOD), ("x.txt", b"text")], "x.txt is no array"),
    "2 GB in a small file": ([("x.npy", announcing((2**29,)))], "x.npy of .* announces float32 of shape"),
    "an overflow": ([("x.npy", announcing((2**62, 2**62)))], "x.npy of .* announces"),
    "a negative size": ([("x.npy", announcing((-3, -1)))], "x.npy of .* announces"),
    "an unknown version": ([("x.npy", announcing((3,), version=b"\x09\x00"))], "x.npy"),
    "a header that is code": ([("x.npy", announcing("(__import__('os').getpid(),)"))], "x.npy cannot be read"),
    "a deep header": ([("x.npy", announcing("(" * 5000 + ")" * 5000))], "x.npy cannot be read"),
    "a type without a size": ([("x.npy", announcing((3,), "|S0"))], "x.npy is of type"),
    "bytes without a meaning": ([("x.npy", array(np.ones(3, "V2")))], "x.npy is of type"),
    "half an array": ([("x.npy", GOOD[:-1])], "x.npy of .* announces"),
    "half a header": ([("x.npy", GOOD[:9])], "x.npy cannot be read"),
    "an empty array": ([("x.npy", b"")], "x.npy cannot be read"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files(tmp_path, case):
    members, message = HOSTILE[case]
    with pytest.raises(InputError, match=rf"x\.npz.*{message}"):
        read_checkpoint(saved(tmp_path, members))


def test_the_hostile_files_can_be_good(tmp_path):
    assert list(read_checkpoint(saved(tmp_path, [("x.npy", announcing((3,)))])).variables) == ["x"]


def test_a_zip_bomb(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_DEFLATED) as archive, archive.open("x.npy", "w") as file:
        file.write(announcing((2**28 // 4,))[:-12])
        for _ in range(2**8):
            file.write(bytes(2**20))
    with pytest.raises(InputError, match=r"x\.npz holds 'x\.npy', which grows from \d+ bytes to \d+: a zip bomb"):
        read_checkpoint(tmp_path / "x.npz")


def test_members_that_share_their_bytes(tmp_path):
    content = saved(tmp_path, [("x.npy", array(np.ones(100)))]).read_bytes()
    start = content.index(b"PK\x01\x02")
    end = content.index(b"PK\x05\x06")
    entry, tail = content[start:end], content[end:]
    second = entry.replace(b"x.npy", b"y.npy")
    tail = tail[:8] + struct.pack("<2HI", 2, 2, 2 * len(entry)) + tail[16:]
    (tmp_path / "x.npz").write_bytes(content[:start] + entry + second + tail)
    with pytest.raises(InputError, match=r"x\.npz has \d+ bytes and announces members of"):
        read_checkpoint(tmp_path / "x.npz")


def test_a_name_twice(tmp_path):
    with pytest.warns(UserWarning, match="Duplicate name"):
        path = saved(tmp_path, [("x.npy", GOOD), ("x.npy", GOOD)])
    with pytest.raises(InputError, match=r"x\.npz has two members 'x\.npy'"):
        read_checkpoint(path)


def test_values_that_changed(tmp_path):
    path = saved(tmp_path, [("x.npy", GOOD)])
    path.write_bytes(path.read_bytes().replace(GOOD[-12:], bytes(12)))
    with pytest.raises(InputError, match=r"x\.npz: x\.npy cannot be read \(BadZipFile: Bad CRC"):
        read_checkpoint(path).variables["x"].read()


def test_a_cut_file(tmp_path):
    format.write(checkpoint(), tmp_path / "x.npz")
    os.truncate(tmp_path / "x.npz", 1000)
    with pytest.raises(InputError, match=r"x\.npz cannot be read \(BadZipFile"):
        read_checkpoint(tmp_path / "x.npz")


def test_many_variables_take_seconds(tmp_path):
    format.write(checkpoint({f"layer{number}/gamma": np.ones(1) for number in range(20_000)}), tmp_path / "x.npz")
    assert len(format.read(tmp_path / "x.npz").variables) == 20_000


def _valid():
    stream = io.BytesIO()
    np.savez_compressed(stream, **VALUES)
    return stream.getvalue()


VALID = _valid()


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
        path = Path(folder, "x.npz")
        path.write_bytes(content[:cut] if cut % 2 else content)
        try:
            if format.recognises(path):
                values(format.read(path))
            said = ""
        except InputError as error:
            said = str(error)
    assert not said or str(path) in said
