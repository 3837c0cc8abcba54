# SPDX-License-Identifier: Apache-2.0
"""Files of torch.save: round trips, agreement with torch, and pickles that would like to run."""

import argparse
import collections
import io
import os
import pickle
import tempfile
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evenkeel import torch as ours
from evenkeel.checkpoints import Checkpoint, Variable, pickled, read_checkpoint, write_checkpoint
from evenkeel.checkpoints.convert import convert
from evenkeel.checkpoints.formats import torch as format
from evenkeel.checkpoints.meaning import translated
from evenkeel.errors import InputError

pytestmark = pytest.mark.skipif(os.environ.get("KERAS_BACKEND", "numpy") != "numpy", reason="no framework takes part")

VALUES = {
    "bn.weight": np.array([1.0, 2.5, -3.0], "float32"),
    "conv.weight": np.arange(12, dtype="float32").reshape(2, 2, 3),
    "bn.num_batches_tracked": np.array(7, "int64"),
    "empty": np.zeros((0, 3), "float32"),
}
TYPES = ["bool", "uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64", "complex64"]
TYPES += ["complex128", "bfloat16"]
LAYOUTS = {
    "transposed": torch.arange(6.0).reshape(2, 3).t(),
    "a part": torch.arange(9.0)[2:5],
    "every second": torch.arange(9.0)[1::2],
    "number": torch.tensor(3.0),
    "empty": torch.zeros(0, 2),
    "parameter": torch.nn.Parameter(torch.ones(3)),
    "expanded": torch.arange(3).expand(1, -1),
    "channels last": torch.arange(24.0).reshape(1, 2, 3, 4).contiguous(memory_format=torch.channels_last),
}
SAVES = {"zip": True, "before torch 1.6": False}


def checkpoint(values=VALUES):
    return Checkpoint("example", "memory", "torch", {name: Variable.of(value) for name, value in values.items()})


def values(read):
    return {name: variable.read() for name, variable in read.variables.items()}


def equal(got, expected):
    assert list(got) == list(expected)
    for name, value in expected.items():
        assert got[name].dtype == value.dtype and got[name].shape == value.shape
        assert got[name].tobytes() == value.tobytes()


def saved(folder, value, zipped=True):
    torch.save(value, folder / "x.pt", _use_new_zipfile_serialization=zipped)
    return folder / "x.pt"


def archive(folder, content, members=(("data/0", bytes(12)),), name="archive", compression=zipfile.ZIP_STORED):
    """A zip file as torch makes them, around any pickle."""
    with zipfile.ZipFile(folder / "x.pt", "w", compression) as file:
        for member, data in (("data.pkl", content), *members):
            file.writestr(f"{name}/{member}", data)
    return folder / "x.pt"


def tensor(count=b"K\x03", offset=b"K\x00", shape=b"K\x03\x85", stride=b"K\x01\x85", key=b"0"):
    """The pickle of {"x": a tensor}, with any numbers in it."""
    identity = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x00" + key + b"X\x03\x00\x00\x00cpu"
    call = b"ctorch._utils\n_rebuild_tensor_v2\n(" + identity + count + b"tQ" + offset + shape + stride + b"\x89NtR"
    return b"\x80\x02}X\x01\x00\x00\x00x" + call + b"s."


def test_round_trip(tmp_path):
    write_checkpoint(tmp_path / "x.pt", checkpoint())
    read = read_checkpoint(tmp_path / "x.pt")
    equal(values(read), VALUES)
    assert (read.format, read.convention) == (format.DESCRIPTION, "torch")
    assert [normalizer.name for normalizer in read.normalizers] == ["bn"]


@pytest.mark.parametrize("suffix", format.SUFFIXES)
def test_endings(tmp_path, suffix):
    write_checkpoint(tmp_path / f"x{suffix}", checkpoint())
    equal(values(read_checkpoint(tmp_path / f"x{suffix}")), VALUES)


@pytest.mark.parametrize("mmap", [False, True], ids=["read", "mapped"])
def test_torch_reads_what_is_written(tmp_path, mmap):
    format.write(checkpoint(), tmp_path / "x.pt")
    read = torch.load(tmp_path / "x.pt", weights_only=True, mmap=mmap)
    equal({name: value.numpy() for name, value in read.items()}, VALUES)


def test_tensors_are_aligned(tmp_path):
    format.write(checkpoint(), tmp_path / "x.pt")
    read = torch.load(tmp_path / "x.pt", weights_only=True, mmap=True)
    first = min(value.data_ptr() for value in read.values() if value.numel())
    assert [(value.data_ptr() - first) % 64 for value in read.values() if value.numel()] == [0, 0, 0]


@pytest.mark.parametrize("dtype", TYPES)
def test_round_trip_of_each_type(tmp_path, dtype):
    expected = torch.tensor([0, 1, 1]).to(getattr(torch, dtype))
    read = format.read(saved(tmp_path, {"x": expected}))
    assert read.variables["x"].dtype.name == dtype
    format.write(read, tmp_path / "y.pt")
    assert torch.equal(torch.load(tmp_path / "y.pt", weights_only=True)["x"], expected)


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2", "uint16", "uint32"])
def test_newer_types_are_read(tmp_path, dtype):
    read = format.read(saved(tmp_path, {"x": torch.tensor([0.0, 1.0, 2.0]).to(getattr(torch, dtype))}))
    assert read.variables["x"].dtype.name == dtype
    assert read.variables["x"].read().astype(float).tolist() == [0, 1, 2]


@pytest.mark.parametrize("zipped", SAVES.values(), ids=SAVES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_tensors(tmp_path, layout, zipped):
    value = LAYOUTS[layout]
    read = format.read(saved(tmp_path, {"other": torch.ones(5), "x": value}, zipped))
    np.testing.assert_array_equal(read.variables["x"].read(), value.detach().numpy(), strict=True)


@pytest.mark.parametrize("zipped", SAVES.values(), ids=SAVES)
def test_a_model(tmp_path, zipped):
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4))
    expected = {name: value.numpy() for name, value in model.state_dict().items()}
    read = read_checkpoint(saved(tmp_path, model.state_dict(), zipped))
    equal(values(read), expected)
    (normalizer,) = read.normalizers
    assert (normalizer.name, normalizer.dialect, normalizer.channels) == ("1", "torch", 4)


@pytest.mark.parametrize("wrapper", format.WRAPPERS)
def test_a_state_dict_among_other_things(tmp_path, wrapper):
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.ones(2))]).state_dict()
    value = {wrapper: {"bn.weight": torch.ones(3)}, "optimizer": optimizer, "epoch": 3, "loss": 0.5, "name": "x"}
    assert list(format.read(saved(tmp_path, value)).variables) == ["bn.weight"]


def test_a_state_dict_in_the_dict_of_a_model(tmp_path):
    value = {"model": {"state_dict": {"module.bn.weight": torch.ones(3)}, "version": 1}, "epoch": 3}
    assert list(format.read(saved(tmp_path, value)).variables) == ["module.bn.weight"]


def test_dicts_of_state_dicts(tmp_path):
    value = {"encoder": {"bn.weight": torch.ones(3)}, "decoder": {0: torch.ones(2)}, "steps": [1, 2]}
    assert list(format.read(saved(tmp_path, value)).variables) == ["encoder.bn.weight", "decoder.0"]


def test_a_dict_without_tensors_may_lie_in_two_places(tmp_path):
    settings = {"rate": 0.1, "more": {}}
    value = {"bn.weight": torch.ones(3), "first": settings, "second": settings}
    assert list(format.read(saved(tmp_path, value)).variables) == ["bn.weight"]


def test_memory_holds_one_variable(tmp_path):
    path = saved(tmp_path, {f"{number}": torch.zeros(2**22, dtype=torch.uint8) for number in range(4)})
    tracemalloc.start()
    format.write(format.read(path), tmp_path / "again.pt")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert 2**22 < peak < 1.5 * 2**22


def test_a_part_of_a_large_tensor_is_read_alone(tmp_path):
    read = format.read(saved(tmp_path, {"x": torch.zeros(2**24, dtype=torch.uint8)[:4]}))
    tracemalloc.start()
    read.variables["x"].read()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20


@pytest.mark.parametrize(
    ("name", "value"),
    [("x", np.array(["text"])), ("x", np.array([None])), ("\ud800", np.ones(1))],
    ids=["text", "object", "half a character"],
)
def test_what_cannot_be_written_leaves_nothing(tmp_path, name, value):
    (tmp_path / "x.pt").write_text("before")
    with pytest.raises(InputError, match=r"x\.pt cannot hold"):
        format.write(checkpoint({name: value}), tmp_path / "x.pt")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["before"]


def test_an_interrupted_write_leaves_what_was_there(tmp_path):
    def interrupted():
        raise KeyboardInterrupt

    (tmp_path / "x.pt").write_text("before")
    variables = {"a": Variable.of([1.0]), "b": Variable((1,), np.dtype(float), "b", interrupted)}
    with pytest.raises(KeyboardInterrupt):
        format.write(Checkpoint("example", "memory", "torch", variables), tmp_path / "x.pt")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["before"]


@pytest.mark.parametrize("name", ["nan", "", "/", "a" * 10_000, "🙂", "../../etc/passwd", "a\0b", "a\nb"])
def test_odd_names_are_only_names(tmp_path, name):
    format.write(checkpoint({name: np.ones(1)}), tmp_path / "x.pt")
    equal(values(format.read(tmp_path / "x.pt")), {name: np.ones(1)})


class Bomb:
    def __reduce__(self):
        return Path.touch, (Path(os.environ["EVENKEEL_TEST_PROOF"]),)


@pytest.mark.parametrize("zipped", SAVES.values(), ids=SAVES)
def test_a_pickle_is_not_run(tmp_path, monkeypatch, zipped):
    proof = tmp_path / "it ran"
    monkeypatch.setenv("EVENKEEL_TEST_PROOF", str(proof))
    path = saved(tmp_path, {"model": {"x": torch.ones(3)}, "bomb": Bomb()}, zipped)
    with pytest.raises(InputError, match=r"x\.pt is refused: it holds an object of __builtin__\.getattr"):
        read_checkpoint(path)
    assert not proof.exists()
    torch.load(path, weights_only=False)
    assert proof.exists()  # so it can run


REFUSED = {
    "a model": (torch.nn.BatchNorm2d(3), r"torch\.nn\.modules\.batchnorm\.BatchNorm2d"),
    "arguments": ({"args": argparse.Namespace(a=1)}, r"argparse\.Namespace"),
    "a counter": ({"c": collections.Counter()}, r"collections\.Counter"),
    "an array": ({"a": np.ones(3)}, r"numpy.*_reconstruct"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_objects_are_refused_by_name(tmp_path, case):
    value, name = REFUSED[case]
    with pytest.raises(InputError, match=rf"x\.pt is refused: it holds an object of {name}.*model\.state_dict\(\)"):
        read_checkpoint(saved(tmp_path, value))


HUGE = b"\x8a\x08" + (2**61).to_bytes(8, "little")
PICKLES = {
    "text of 2 GB": (b"\x80\x02X\xff\xff\xff\x7fabc.", "expected 2147483647 bytes"),
    "text of 8 EB": (b"\x80\x04\x8d" + b"\xff" * 7 + b"\x7f.", "cannot be read"),
    "a distant memory": (b"\x80\x02}r\xff\xff\xff\xffj\x01\x00\x00\x00.", "KeyError"),
    "an empty stack": (b"\x80\x02R.", "IndexError"),
    "no end": (b"\x80\x02}", "pickle exhausted before seeing STOP"),
    "nothing": (b"", "cannot be read"),
    "a name twice": (b"\x80\x02(K\x01t}Q.", "cannot be read"),
    "a deep tuple as a key": (b"\x80\x02})" + b"\x85" * 200_000 + b"K\x01s.", "tuple as a key"),
    "a list in itself": (b"\x80\x02}(X\x01\x00\x00\x00a]q\x00h\x00au.", None),
    "a dict in itself": (b"\x80\x02}q\x00X\x01\x00\x00\x00ah\x00s.", "a dict in two places"),
    "dicts that double": (
        tensor()[:-1] + b"q\x00}(X\x01\x00\x00\x00ah\x00X\x01\x00\x00\x00bh\x00u" * 100 + b".",
        "a dict in two places",
    ),
    "tuples that double, as a shape": (tensor(shape=b")" + b"q\x00h\x00\x86" * 100), "a tensor whose shape is none"),
    "a call of a type": (b"\x80\x02ctorch\nfloat32\n)R.", "a call of Name"),
    "a state for a tensor": (tensor()[:-2] + b"}bs.", "Tensor with a state"),
    "a number": (b"\x80\x02K\x01.", "holds one int"),
    "a list": (b"\x80\x02].", "holds one list"),
    "2 GB in a small file": (tensor(b"J\0\0\0\x7f", shape=b"J\0\0\0\x20\x85"), ": x has 536870912 values"),
    "an overflow": (tensor(HUGE, shape=HUGE + HUGE + b"\x86", stride=b"K\x00K\x00\x86"), ": x has"),
    "a step too far": (tensor(stride=HUGE + b"\x85"), ": x has"),
    "an offset": (tensor(offset=b"K\x01"), ": x has 3 values up to number 4 "),
    "a negative offset": (tensor(offset=b"J\xff\xff\xff\xff"), "a tensor whose shape is none"),
    "one value, repeated for ever": (tensor(shape=HUGE + b"\x85", stride=b"K\x00\x85"), ": x has"),
    "many dimensions": (tensor(shape=b"(" + b"K\x01" * 99 + b"t"), "a tensor whose shape is none"),
    "no such storage": (tensor(key=b"7"), ": x has its values in storage '7'"),
}


@pytest.mark.parametrize("case", [case for case, (_, message) in PICKLES.items() if message])
def test_hostile_pickles(tmp_path, case):
    content, message = PICKLES[case]
    with pytest.raises(InputError, match=rf"x\.pt.*{message}"):
        read_checkpoint(archive(tmp_path, content))


def test_the_hostile_pickles_can_be_good(tmp_path):
    equal(values(read_checkpoint(archive(tmp_path, tensor()))), {"x": np.zeros(3, "float32")})


def test_a_list_in_itself_is_passed_over(tmp_path):
    assert read_checkpoint(archive(tmp_path, PICKLES["a list in itself"][0])).variables == {}


ARCHIVES = {
    "upwards": ({"members": [("../../data/0", bytes(12))]}, "as the name of a member"),
    "absolute": ({"name": "/archive"}, "'/archive/data.pkl' as the name of a member"),
    "compressed": ({"compression": zipfile.ZIP_DEFLATED}, "archive/data/0 is compressed"),
    "big-endian": ({"members": [("byteorder", b"big")]}, "their bytes in the other order"),
    "too small a storage": ({"members": [("data/0", bytes(11))]}, ": x has 3 values"),
    "no storage": ({"members": []}, ": x has its values in storage '0'"),
}


@pytest.mark.parametrize("case", ARCHIVES)
def test_hostile_archives(tmp_path, case):
    arguments, message = ARCHIVES[case]
    with pytest.raises(InputError, match=rf"x\.pt.*{message}"):
        read_checkpoint(archive(tmp_path, tensor(), **arguments))


@pytest.mark.parametrize("zipped", SAVES.values(), ids=SAVES)
def test_cut_files(tmp_path, zipped):
    path = saved(tmp_path, {"x": torch.ones(1000)}, zipped)
    os.truncate(path, path.stat().st_size - 2000)
    with pytest.raises(InputError, match=r"x\.pt"):
        read_checkpoint(path)


def test_a_pickle_of_something_else(tmp_path):
    (tmp_path / "x.pt").write_bytes(pickle.dumps([1, 2, 3], 2))
    with pytest.raises(InputError, match=r"x\.pt is a pickle, but not of torch\.save"):
        read_checkpoint(tmp_path / "x.pt")


def test_two_tensors_of_one_name(tmp_path):
    with pytest.raises(InputError, match=r"x\.pt has two tensors 'a\.b'"):
        read_checkpoint(saved(tmp_path, {"a.b": torch.ones(1), "a": {"b": torch.ones(2)}}))


@pytest.mark.parametrize("protocol", range(2, 6))
def test_pickles_of_each_protocol(protocol):
    value = {"a": [1, -2, 2**40, 2**80, 0.5, "ä", None, True, (), (1,), (1, 2, 3, 4), {}], "b": {"c": "x" * 300}}
    assert pickled.load(io.BytesIO(pickle.dumps(value, protocol))).value == value


def test_many_variables_take_seconds(tmp_path):
    format.write(checkpoint({f"layer{number}.weight": np.ones(1) for number in range(20_000)}), tmp_path / "x.pt")
    assert len(format.read(tmp_path / "x.pt").variables) == 20_000


# What ours keep beside torch's buffers.


def our_module(**options):
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(4, 3), ours.BatchNorm1d(3, **options))
    for _ in range(3):
        module(torch.randn(8, 4))
    return module


RENORM = {"renorm": True, "average": "debiased"}
KEPT = ("moving_stddev", "renorm_mean", "renorm_stddev", "updates")


def test_what_ours_keep_is_part_of_the_normalizer(tmp_path):
    (found,) = read_checkpoint(saved(tmp_path, our_module(**RENORM).state_dict())).normalizers
    assert (found.name, set(found.others), found.missing) == ("1", {"count", *KEPT}, ())
    assert found.others["updates"].read().tolist() == [3, 3, 3]


@pytest.mark.parametrize(
    ("convention", "name"), [("keras", "1/renorm_stddev"), ("flax", "batch_stats/1/renorm_stddev")]
)
def test_what_ours_keep_has_its_place_elsewhere(tmp_path, convention, name):
    read = read_checkpoint(saved(tmp_path, our_module(**RENORM).state_dict()))
    there = translated(read, convention)
    assert set(there.normalizers[0].others) == set(KEPT) and name in there.variables
    back = values(translated(there, "torch"))
    back.pop("1.num_batches_tracked")
    assert all((value == values(read)[key]).all() for key, value in back.items())
    assert set(back) == {*read.variables} - {"1.num_batches_tracked"}


def test_what_ours_keep_goes_through_files(tmp_path):
    path = saved(tmp_path, our_module(**RENORM).state_dict())
    convert(path, tmp_path / "x.npz", to="keras")
    report = convert(tmp_path / "x.npz", tmp_path / "y.pt", like=path)
    assert not report.left
    module, untouched = our_module(**RENORM), our_module(**RENORM).state_dict()
    for name in ("running_mean", *KEPT):
        getattr(module[1], name).zero_()
    module.load_state_dict(torch.load(tmp_path / "y.pt"))
    assert all(torch.equal(value, untouched[name]) for name, value in module.state_dict().items())


def test_what_a_target_lacks_is_listed(tmp_path):
    plain = tmp_path / "plain.pt"
    torch.save(our_module().state_dict(), plain)
    report = convert(saved(tmp_path, our_module(**RENORM).state_dict()), tmp_path / "y.safetensors", like=plain)
    assert set(report.left) == {f"1.{name}" for name in KEPT}
    (found,) = read_checkpoint(tmp_path / "y.safetensors").normalizers
    assert set(found.others) == {"count"}


def _valid(zipped):
    stream = io.BytesIO()
    state = {name: torch.from_numpy(value.copy()) for name, value in VALUES.items()}
    torch.save(state, stream, _use_new_zipfile_serialization=zipped)
    return stream.getvalue()


VALID = {zipped: _valid(zipped) for zipped in SAVES.values()}


@pytest.mark.parametrize("zipped", SAVES.values(), ids=SAVES)
@settings(max_examples=60)
@given(
    cut=st.integers(0, 2**20),
    changes=st.lists(st.tuples(st.floats(0, 0.9999), st.integers(0, 255)), max_size=4),
)
def test_damaged_bytes_are_good_or_an_input_error(zipped, cut, changes):
    content = bytearray(VALID[zipped])
    for place, byte in changes:
        content[int(place * len(content))] = byte
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "x.pt")
        path.write_bytes(content[: cut % len(content)] if cut % 2 else content)
        try:
            if format.recognises(path):
                values(format.read(path))
            said = ""
        except InputError as error:
            said = str(error)
    assert not said or str(path) in said
