# SPDX-License-Identifier: Apache-2.0
"""HDF5 files that nobody vouches for: read, or an InputError that names the file; no crash, no hang."""

import json
import os
import time
import zipfile

import h5py
import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from evenkeel.checkpoints import formats, hdf5_files
from evenkeel.checkpoints.contents import Checkpoint, Variable
from evenkeel.checkpoints.formats import hdf5, keras, weights
from evenkeel.errors import InputError

pytestmark = pytest.mark.skipif(os.environ.get("KERAS_BACKEND", "numpy") != "numpy", reason="no framework takes part")

CONFIGURATION = {
    "module": "keras",
    "class_name": "Sequential",
    "config": {
        "name": "net",
        "layers": [
            {"module": "keras.layers", "class_name": "BatchNormalization", "config": {"name": "bn", "scale": False}}
        ],
    },
}
WIDE = {"class_name": "Model", "config": {"layers": [{"class_name": "Dense", "config": {"name": "x" * 5000}}]}}
VALUES = np.array([1.5, -2, 0], "float32")


def legacy(path):
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [b"bn"]
        group = file.create_group("bn")
        group.attrs["weight_names"] = [b"bn/gamma:0", b"bn/moving_mean:0"]
        group["bn/gamma:0"] = VALUES
        group.create_dataset("bn/moving_mean:0", data=np.zeros(50, "float32"), compression="gzip")


def numbered(path):
    with h5py.File(path, "w") as file:
        for index in range(3):
            file[f"layers/batch_normalization/vars/{index}"] = VALUES
        file["optimizer/vars/0"] = VALUES


def archive(path, members=None):
    numbered(path.with_suffix(".h5"))
    members = {
        "metadata.json": json.dumps({"keras_version": "3.15.0"}),
        "config.json": json.dumps(CONFIGURATION),
        "model.weights.h5": path.with_suffix(".h5").read_bytes(),
        **(members or {}),
    }
    with zipfile.ZipFile(path, "w") as target:
        for name, content in members.items():
            if content is not None:
                target.writestr(name, content)


FILES = [(hdf5, "net.h5", legacy), (weights, "net.weights.h5", numbered), (keras, "net.keras", archive)]
IDS = ["hdf5", "weights", "keras"]


@pytest.mark.parametrize(("module", "name", "make"), FILES, ids=IDS)
def test_file_is_recognised_and_read(module, name, make, tmp_path):
    make(tmp_path / name)
    assert formats.recognised(tmp_path / name) is module
    checkpoint = module.read(tmp_path / name)
    first = next(iter(checkpoint.variables.values()))
    np.testing.assert_array_equal(first.read(), VALUES)
    assert name in first.where


def read_everything(module, path):
    """The InputError, if one was raised."""
    try:
        module.recognises(path)
        for variable in module.read(path).variables.values():
            variable.read()
    except InputError as error:
        return error
    return None


@pytest.mark.parametrize(("module", "name", "make"), FILES, ids=IDS)
@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damage_is_read_or_refused(module, name, make, tmp_path, data):
    path = tmp_path / name
    make(path)
    content = bytearray(path.read_bytes())
    for place, value in data.draw(
        st.lists(st.tuples(st.integers(0, len(content) - 1), st.integers(0, 255)), max_size=12)
    ):
        content[place] = value
    path.write_bytes(content[: data.draw(st.integers(0, len(content)) | st.just(len(content)))])
    error = read_everything(module, path)
    assert error is None or name in str(error)


@pytest.mark.parametrize(("module", "name", "make"), FILES, ids=IDS)
@pytest.mark.parametrize("share", [0, 0.01, 0.3, 0.9, 0.999])
def test_truncated_file_is_refused(module, name, make, share, tmp_path):
    path = tmp_path / name
    make(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    assert name in str(read_everything(module, path))


@pytest.mark.parametrize("module", [hdf5, weights, keras], ids=IDS)
@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04" + b"x" * 100, hdf5_files.MAGIC + b"\xff" * 500, bytes(range(256)) * 9]
)
def test_other_bytes_are_refused(module, content, tmp_path):
    path = tmp_path / "net.h5"
    path.write_bytes(content)
    assert "net.h5" in str(read_everything(module, path))


def test_file_that_does_not_exist_is_refused(tmp_path):
    assert not any(module.recognises(tmp_path / "net") for module in (hdf5, weights, keras))
    with pytest.raises(InputError, match="net"):
        hdf5.read(tmp_path / "net")


def external_link(file):
    file["other"] = h5py.ExternalLink("/etc/passwd", "/")


def soft_link_cycle(file):
    file["loop"] = h5py.SoftLink("/loop")


def hard_link_cycle(file):
    file["bn/again"] = file["bn"]


def root_within(file):
    file["bn/again"] = file["/"]


def external_values(file):
    del file["bn/bn/gamma:0"]
    file.create_dataset("bn/bn/gamma:0", (3,), "f4", external=[("/etc/passwd", 0, 12)])


def virtual_values(file):
    del file["bn/bn/gamma:0"]
    layout = h5py.VirtualLayout((3,), "f4")
    layout[:] = h5py.VirtualSource("/etc/passwd", "x", (3,))
    file.create_virtual_dataset("bn/bn/gamma:0", layout)


def values_never_written(file):
    del file["bn/bn/gamma:0"]
    file.create_dataset("bn/bn/gamma:0", (1 << 29,), "f4")


def values_in_unwritten_chunks(file):
    del file["bn/bn/gamma:0"]
    file.create_dataset("bn/bn/gamma:0", (1 << 40,), "f4", chunks=(1 << 20,), compression="gzip")


def long_name(file):
    file.create_group("x" * 5000)


def name_that_is_no_text(file):
    file.create_group(b"\xff\xfe")


def layer_without_group(file):
    file.attrs["layer_names"] = [b"bn", b"dense"]


def weight_that_is_missing(file):
    file["bn"].attrs["weight_names"] = [b"bn/gamma:0", b"bn/beta:0"]


def weight_of_two_names(file):
    file["bn/gamma:0"] = VALUES
    file["bn"].attrs["weight_names"] = [b"bn/gamma:0", b"gamma:0"]


def texts_for_numbers(file):
    del file["bn/bn/gamma:0"]
    file["bn/bn/gamma:0"] = ["a", "b"]


def no_layer_names(file):
    del file.attrs["layer_names"]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (external_link, "other is a link to somewhere else"),
        (soft_link_cycle, "loop is a link to somewhere else"),
        (hard_link_cycle, "bn/again leads back"),
        (root_within, "bn/again leads back"),
        (external_values, "gamma:0 keeps its values in another file"),
        (virtual_values, "gamma:0 keeps its values in another file"),
        (values_never_written, "gamma:0 announces 2147483648 bytes and has 0"),
        (values_in_unwritten_chunks, "gamma:0 announces 4398046511104 bytes and has 0"),
        (long_name, "a name of 5000 letters"),
        (name_that_is_no_text, "codec can't decode"),
        (layer_without_group, "a layer dense"),
        (weight_that_is_missing, "bn/bn/beta:0"),
        (weight_of_two_names, "two variables called bn/gamma"),
        (texts_for_numbers, "gamma:0 .* holds no numbers"),
        (no_layer_names, "no layer_names"),
    ],
)
def test_hostile_file_is_refused(change, text, tmp_path):
    path = tmp_path / "net.h5"
    legacy(path)
    with h5py.File(path, "a") as file:
        change(file)
    with pytest.raises(InputError, match=text) as caught:
        hdf5.read(path)
    assert str(path) in str(caught.value)


def test_label_of_many_letters_is_refused(tmp_path):
    path = tmp_path / "net.h5"
    legacy(path)
    with h5py.File(path, "a") as file:
        del file.attrs["layer_names"]
        file["layers/dense/vars/0"] = VALUES
        file["layers/dense/vars"].attrs["name"] = "x" * 5000
    with pytest.raises(InputError, match=r"net\.h5 cannot be used: .* 5000 letters"):
        weights.read(path)


def test_library_that_hangs_is_stopped(tmp_path, monkeypatch):
    path = tmp_path / "net.h5"
    legacy(path)
    program = tmp_path / "hangs.py"
    program.write_text("import time; time.sleep(60)")
    monkeypatch.setattr(hdf5_files.hdf5_survey, "__file__", str(program))
    monkeypatch.setattr(hdf5_files, "PATIENCE", 0.2)
    with pytest.raises(InputError, match=r"net\.h5 .* not done after"):
        hdf5.read(path)


def test_library_that_crashes_takes_nothing_with_it(tmp_path, monkeypatch):
    path = tmp_path / "net.h5"
    legacy(path)
    program = tmp_path / "crashes.py"
    program.write_text("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    monkeypatch.setattr(hdf5_files.hdf5_survey, "__file__", str(program))
    with pytest.raises(InputError, match=r"net\.h5 .* crashes"):
        hdf5.read(path)


@pytest.mark.parametrize(
    ("members", "text"),
    [
        ({"/etc/x": "x"}, "'/etc/x', which leads out of it"),
        ({"../x": "x"}, "'../x', which leads out of it"),
        ({"a\\..\\x": "x"}, "which leads out of it"),
        ({"config.json": "x" * (keras.LARGEST_TEXT + 1)}, "config.json is longer"),
        ({"config.json": "[1]"}, "no class_name and config"),
        ({"config.json": "{"}, "cannot be read"),
        ({"config.json": "[" * 100_000}, "cannot be read"),
        ({"config.json": json.dumps(WIDE)}, "5000 letters"),
        ({"model.weights.h5": None}, "no model.weights.h5"),
        ({"model.weights.h5": b"x" * 100}, "model.weights.h5"),
    ],
)
def test_hostile_archive_is_refused(members, text, tmp_path):
    path = tmp_path / "net.keras"
    archive(path, members)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(InputError, match="net") as caught:
        keras.read(path)
    assert text in str(caught.value)
    assert sorted(tmp_path.iterdir()) == before


def test_member_that_is_there_twice_is_refused(tmp_path):
    path = tmp_path / "net.keras"
    archive(path)
    with zipfile.ZipFile(path, "a") as target, pytest.warns(UserWarning, match="Duplicate"):
        target.writestr("config.json", "{}")
    with pytest.raises(InputError, match=r"net\.keras has two members"):
        keras.read(path)


def test_compressed_bomb_is_refused(tmp_path):
    path = tmp_path / "net.keras"
    archive(path, {"model.weights.h5": None})
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as target:
        target.writestr("model.weights.h5", bytes(10_000_000))
    assert path.stat().st_size < 20_000
    with pytest.raises(InputError, match="compressed"):
        keras.read(path)


def test_file_may_be_removed_before_its_values_are_read(tmp_path):
    path = tmp_path / "net.h5"
    legacy(path)
    variable = hdf5.read(path).variables["bn/gamma"]
    path.unlink()
    with pytest.raises(InputError, match=r"bn/bn/gamma:0 of .*net\.h5 cannot be read"):
        variable.read()


def test_values_that_change_under_way_are_refused(tmp_path):
    path = tmp_path / "net.h5"
    legacy(path)
    variable = hdf5.read(path).variables["bn/gamma"]
    with h5py.File(path, "a") as file:
        del file["bn/bn/gamma:0"]
        file["bn/bn/gamma:0"] = VALUES[:2]
    with pytest.raises(InputError, match="no longer what it was"):
        variable.read()


def test_many_variables_take_seconds(tmp_path):
    path = tmp_path / "net.h5"
    names = [f"layer_{index}/gamma" for index in range(5000)]
    hdf5.write(Checkpoint("memory", "memory", "keras", dict.fromkeys(names, Variable.of(VALUES))), path)
    start = time.monotonic()
    assert list(hdf5.read(path).variables) == names
    assert time.monotonic() - start < 30


def test_types_keep_their_bits(tmp_path):
    path = tmp_path / "net.h5"
    values = {
        "a/half": np.array([1, 65504], "float16"),
        "a/brain": np.array([1, 3e38], ml_dtypes.bfloat16),
        "a/double": np.array([[0.1], [np.nan]]),
        "a/scalar": np.array(7, "int64"),
        "a/flag": np.array([True, False]),
        "a/nothing": np.zeros((0, 3), "float32"),
    }
    hdf5.write(
        Checkpoint("memory", "memory", "keras", {name: Variable.of(value) for name, value in values.items()}), path
    )
    found = {name: variable.read() for name, variable in hdf5.read(path).variables.items()}
    assert {name: (value.dtype, value.shape, value.tobytes()) for name, value in found.items()} == {
        name: (value.dtype, value.shape, value.tobytes()) for name, value in values.items()
    }


def test_big_endian_values_are_read(tmp_path):
    path = tmp_path / "net.h5"
    legacy(path)
    with h5py.File(path, "a") as file:
        del file["bn/bn/gamma:0"]
        file["bn/bn/gamma:0"] = VALUES.astype(">f4")
    values = hdf5.read(path).variables["bn/gamma"].read()
    assert values.dtype == np.dtype("float32") and values.tolist() == VALUES.tolist()
