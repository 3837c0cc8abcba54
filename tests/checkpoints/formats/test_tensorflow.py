# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of TensorFlow: what 1.15 wrote, what is written here, and what nobody of good will has written."""

import os
import shutil
import struct
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from evenkeel.checkpoints import Checkpoint, Variable, read_checkpoint, write_checkpoint
from evenkeel.checkpoints.formats import tensorflow
from evenkeel.errors import InputError

from conftest import GOLDENS

pytestmark = pytest.mark.skipif(os.environ.get("KERAS_BACKEND") != "tensorflow", reason="TensorFlow's own files")
SOURCE = Path(__file__).parents[3] / "src"
CHECKPOINTS = GOLDENS / "checkpoints"
FOLDERS = {
    "a1_contrib_mlp": "",
    "b1_layers_conv": "",
    "c1_estimator_mlp": "model_dir",
    "e1_slim_resnet_block": "",
    "g1_v1_format_mlp": "",
    "h1_trainable_only_mlp": "",
    "i1_updates_never_run_mlp": "",
}
V1 = CHECKPOINTS / "g1_v1_format_mlp" / "model.ckpt-60"
V2 = CHECKPOINTS / "a1_contrib_mlp" / "model.ckpt-60"
DATA = ".data-00000-of-00001"


def checkpoint(**values):
    variables = {name: Variable.of(value, f"memory: {name}") for name, value in values.items()}
    return Checkpoint("memory", "test", "tensorflow", variables)


def values(path):
    return {name: variable.read() for name, variable in tensorflow.read(path).variables.items()}


def assert_same(found, wanted):
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        np.testing.assert_array_equal(found[name], value, name, strict=True)


def stored(name):
    """What TensorFlow 1.15 had in its variables."""
    with np.load(CHECKPOINTS / name / "io.npz") as file:
        return {key.removeprefix("vars/"): file[key] for key in file if key.startswith("vars/")}


@pytest.mark.parametrize("name", FOLDERS)
def test_golden(name):
    folder = CHECKPOINTS / name / FOLDERS[name]
    assert tensorflow.recognises(folder)
    wanted = stored(name)
    if name.startswith("h"):
        wanted = {key: value for key, value in wanted.items() if "moving" not in key and key != "global_step"}
    assert_same(values(folder), wanted)


@pytest.mark.parametrize("ending", ["", ".index", DATA])
def test_any_file_stands_for_the_prefix(ending):
    path = V2.with_name(V2.name + ending)
    assert tensorflow.recognises(path)
    assert_same(values(path), stored("a1_contrib_mlp"))


def test_v1_is_said_to_be_v1():
    assert read_checkpoint(V1).format == "checkpoint of TensorFlow, V1"
    assert read_checkpoint(V2).format == "checkpoint of TensorFlow, V2"


def test_objects_of_tensorflow_2():
    variables = tensorflow.read(CHECKPOINTS / "d1_keras_mlp" / "tf_weights").variables
    assert "_CHECKPOINTABLE_OBJECT_GRAPH" not in variables
    wanted = stored("d1_keras_mlp")
    gamma = variables["layer_with_weights-1/gamma/.ATTRIBUTES/VARIABLE_VALUE"]
    assert gamma.where.endswith("tf_weights: layer_with_weights-1/gamma/.ATTRIBUTES/VARIABLE_VALUE (bn_0/gamma)")
    np.testing.assert_array_equal(gamma.read(), wanted["bn_0/gamma"])


class Saved:
    """What a saver of TensorFlow writes of a graph with a partitioned variable and every kind of value."""

    def __init__(self, folder, version, sharded):
        import tensorflow as tf

        v1 = tf.compat.v1
        with tf.Graph().as_default(), v1.Session() as session:
            with v1.variable_scope("net", partitioner=v1.fixed_size_partitioner(3)):
                parts = list(v1.get_variable("w", [7, 200], initializer=v1.random_normal_initializer(seed=1)))
            others = [
                np.int64(-5),
                [True, False],
                [1 + 2j, 3],
                np.float16([1, 2.5]),
                np.ones((300, 300)),
                np.zeros((0, 3)),
            ]
            self.variables = [v1.get_variable(f"v{i}", initializer=tf.constant(x)) for i, x in enumerate(others)]
            if version == 2:
                self.variables.append(v1.get_variable("text", initializer=tf.constant([[b"a"], [b""], [b"\0c"]])))
            session.run(v1.global_variables_initializer())
            saver = v1.train.Saver(write_version=version, sharded=sharded)
            self.path = Path(saver.save(session, str(folder / "model.ckpt"), global_step=3))
            self.values = {variable.op.name: session.run(variable) for variable in self.variables}
            self.values["net/w"] = np.concatenate(session.run(parts))


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("version", [1, 2])
def test_what_a_saver_writes(tmp_path, version, sharded):
    saved = Saved(tmp_path, version, sharded)
    assert tensorflow.recognises(saved.path)
    found = values(saved.path)
    assert found.keys() == saved.values.keys()
    for name, value in saved.values.items():
        np.testing.assert_array_equal(found[name], value, name)
    assert_same(values(tmp_path), found)


def test_a_shard_of_v1_that_is_missing(tmp_path):
    path = Saved(tmp_path, 1, sharded=True).path
    shutil.move(tmp_path / "model.ckpt-3-00000-of-00001", tmp_path / "model.ckpt-3-00000-of-00002")
    with pytest.raises(InputError, match=r"model.ckpt-3 has 1 shards that can be read, and .* is of 2"):
        tensorflow.read(path)


def test_a_real_saver_restores_it(tmp_path):
    import tensorflow as tf

    v1 = tf.compat.v1
    write_checkpoint(tmp_path / "model.ckpt-7", tensorflow.read(V1))
    wanted = stored("g1_v1_format_mlp")
    with tf.Graph().as_default(), v1.Session() as session:
        variables = {name: v1.get_variable(name, value.shape, value.dtype) for name, value in wanted.items()}
        v1.train.Saver().restore(session, str(tmp_path / "model.ckpt-7"))
        assert_same({name: np.asarray(value) for name, value in session.run(variables).items()}, wanted)
    assert sorted(file.name for file in tmp_path.iterdir()) == [f"model.ckpt-7{DATA}", "model.ckpt-7.index"]


ODD = {
    "scalar": np.float32(3),
    "empty": np.zeros((0, 3), "float32"),
    "turned": np.arange(12.0).reshape(3, 4).T,
    "text": np.array([b"a", b"bc"], object),
    "flags": np.array([True, False]),
    "complex": np.array([1 + 2j]),
    "unsigned": np.array([2**63], "uint64"),
    "a name/with spaces/und Umlauten äöü": np.float16([np.nan, np.inf]),
}


@pytest.mark.parametrize("name", ODD)
def test_round_trip(tmp_path, name):
    tensorflow.write(checkpoint(**{name: ODD[name]}), tmp_path / "model")
    assert_same(values(tmp_path / "model"), {name: np.asarray(ODD[name])})


def test_round_trip_of_bfloat16(tmp_path):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    wanted = {"half": np.array([1, 2.5], ml_dtypes.bfloat16)}
    tensorflow.write(checkpoint(**wanted), tmp_path / "model")
    assert_same(values(tmp_path / "model"), wanted)


def test_arrays_that_cannot_be_written_to_can_be_written_out(tmp_path):
    array = np.arange(3.0)
    array.flags.writeable = False
    tensorflow.write(checkpoint(a=array), tmp_path / "model")
    assert_same(values(tmp_path / "model"), {"a": array})


def test_with_eager_execution_switched_off(tmp_path):
    program = """
import sys, pathlib, tensorflow as tf
tf.compat.v1.disable_v2_behavior()
from evenkeel.checkpoints.formats import tensorflow
tensorflow.write(tensorflow.read(pathlib.Path(sys.argv[1])), pathlib.Path(sys.argv[2]))
assert not tf.executing_eagerly()
"""
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, "-c", program, V2, tmp_path / "model"]
    process = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert_same(values(tmp_path / "model"), stored("a1_contrib_mlp"))


def test_in_a_graph(tmp_path):
    import tensorflow as tf

    with tf.Graph().as_default():
        tensorflow.write(tensorflow.read(V2), tmp_path / "model")
    assert_same(values(tmp_path / "model"), stored("a1_contrib_mlp"))


def test_many_and_large_variables_go_in_groups(tmp_path, monkeypatch):
    monkeypatch.setattr(tensorflow, "GROUP", 64)
    monkeypatch.setattr(tensorflow, "NAMES", 3)
    wanted = {f"v{i}": np.full(i, i, "float32") for i in range(20)}
    tensorflow.write(checkpoint(**wanted), tmp_path / "model")
    assert_same(values(tmp_path / "model"), wanted)
    assert len(list(tmp_path.glob("model.data-*"))) == 15


def test_one_variable_at_a_time_is_in_memory(tmp_path):
    """Of Python's memory; TensorFlow uses that of the array."""
    size = 2**25

    def variable(i):
        return Variable((size,), np.dtype("float32"), f"memory: v{i}", lambda: np.full(size, i, "float32"))

    whole = Checkpoint("memory", "test", "tensorflow", {f"v{i}": variable(i) for i in range(3)})
    tracemalloc.start()
    try:
        tensorflow.write(whole, tmp_path / "model")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert 4 * size <= peak < 4 * size + 2**23


def test_many_variables(tmp_path):
    wanted = {f"scope{i // 100}/layer{i}/gamma": np.float32(i) for i in range(20_000)}
    tensorflow.write(checkpoint(**wanted), tmp_path / "model")
    assert values(tmp_path / "model") == wanted


class TestFolder:
    def test_of_one_checkpoint(self, tmp_path):
        tensorflow.write(checkpoint(a=1.0), tmp_path / "model.ckpt-60")
        assert values(tmp_path) == {"a": 1.0}

    def test_of_two(self, tmp_path):
        tensorflow.write(checkpoint(a=1.0), tmp_path / "model.ckpt-60")
        tensorflow.write(checkpoint(a=1.0), tmp_path / "model.ckpt-70")
        with pytest.raises(InputError, match=r"no file `checkpoint`.*give a prefix: model\.ckpt-60, model\.ckpt-70"):
            read_checkpoint(tmp_path)

    @pytest.mark.parametrize("named", ["model.ckpt-70", "/gone/elsewhere/model.ckpt-70"])
    def test_with_a_state(self, tmp_path, named):
        tensorflow.write(checkpoint(a=1.0), tmp_path / "model.ckpt-60")
        tensorflow.write(checkpoint(a=2.0), tmp_path / "model.ckpt-70")
        (tmp_path / "checkpoint").write_text(f'model_checkpoint_path: "{named}"\n')
        assert values(tmp_path) == {"a": 2.0}

    @pytest.mark.parametrize(
        ("state", "text"),
        [
            (b'model_checkpoint_path: "model.ckpt-80"', "names .*model.ckpt-80, which is not there; .*: model.ckpt-60"),
            (b"model_checkpoint_path: 3 4", "damaged"),
            (b'model_checkpoint_path: "\xff\xfe"', "damaged"),
            (b'model_checkpoint_path: ""', "damaged"),
        ],
    )
    def test_with_a_state_that_leads_nowhere(self, tmp_path, state, text):
        tensorflow.write(checkpoint(a=1.0), tmp_path / "model.ckpt-60")
        (tmp_path / "checkpoint").write_bytes(state)
        with pytest.raises(InputError, match=text):
            read_checkpoint(tmp_path)

    def test_of_something_else(self, tmp_path):
        (tmp_path / "checkpoint").write_text("torch")
        (tmp_path / "model.index").write_text("words")
        assert not tensorflow.recognises(tmp_path)


class TestWriting:
    def test_takes_the_place(self, tmp_path):
        path = tmp_path / "model"
        for number in range(4):
            write_checkpoint(path, checkpoint(a=float(number), b=1.0), overwrite=True)
            assert values(path)["a"] == number
            assert len(list(tmp_path.iterdir())) == 2 + number % 2

    def test_takes_the_place_of_v1(self, tmp_path):
        shutil.copy(V1, tmp_path / "model")
        write_checkpoint(tmp_path / "model", checkpoint(a=1.0), overwrite=True)
        assert values(tmp_path / "model") == {"a": 1.0}
        assert not (tmp_path / "model").exists()

    def test_asks_before(self, tmp_path):
        write_checkpoint(tmp_path / "model.ckpt-60", checkpoint(a=1.0))
        with pytest.raises(InputError, match=r"model\.ckpt-60 already exists"):
            write_checkpoint(tmp_path / "model.ckpt-60", checkpoint(a=2.0))

    def interrupted(self, folder, error):
        before = {file: file.read_bytes() for file in folder.iterdir()}

        def load():
            raise error

        broken = Variable((), np.dtype("float64"), "memory: c", load)
        whole = Checkpoint("memory", "test", "tensorflow", {**checkpoint(a=2.0, b=2.0).variables, "c": broken})
        with pytest.raises(type(error)):
            tensorflow.write(whole, folder / "model")
        return before == {file: file.read_bytes() for file in folder.iterdir()}

    @pytest.mark.parametrize("error", [InputError("no longer there"), KeyboardInterrupt()])
    def test_interrupted_leaves_what_was_there(self, tmp_path, monkeypatch, error):
        tensorflow.write(checkpoint(a=1.0, b=1.0), tmp_path / "model")
        monkeypatch.setattr(tensorflow, "NAMES", 1)
        assert self.interrupted(tmp_path, error)

    def test_interrupted_in_an_empty_folder_leaves_nothing(self, tmp_path):
        assert self.interrupted(tmp_path, InputError("no longer there"))
        assert not list(tmp_path.iterdir())

    def test_interrupted_while_files_move(self, tmp_path, monkeypatch):
        tensorflow.write(checkpoint(a=1.0, b=1.0), tmp_path / "model")
        replace = Path.replace

        def failing(file, target):
            if target.name == "model.index":
                raise OSError("the disk is gone")
            return replace(file, target)

        monkeypatch.setattr(Path, "replace", failing)
        with pytest.raises(OSError, match="the disk is gone"):
            tensorflow.write(checkpoint(a=2.0, b=2.0), tmp_path / "model")
        assert values(tmp_path / "model") == {"a": 1.0, "b": 1.0}
        assert len(list(tmp_path.iterdir())) == 2

    @pytest.mark.parametrize("name", ["", "a\0b", "\ud800", "_CHECKPOINTABLE_OBJECT_GRAPH"])
    def test_names_that_cannot_be(self, tmp_path, name):
        with pytest.raises(InputError, match="cannot be the name of a variable"):
            tensorflow.write(checkpoint(**{name: 1.0}), tmp_path / "model")
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize("value", [np.array(["2020-01-01"], "M8[s]"), np.ones(1, [("x", "i4"), ("y", "i4")])])
    def test_types_that_cannot_be(self, tmp_path, value):
        with pytest.raises(InputError, match="memory: dates: TensorFlow has no type"):
            tensorflow.write(checkpoint(dates=value), tmp_path / "model")

    def test_objects_that_cannot_be(self, tmp_path):
        with pytest.raises(InputError, match="things cannot be written by TensorFlow"):
            tensorflow.write(checkpoint(things=np.array([{}, 1], object)), tmp_path / "model")
        assert not list(tmp_path.iterdir())

    def test_a_folder_is_no_prefix(self, tmp_path):
        with pytest.raises(InputError, match=r"is a folder; give a prefix, such as .*model\.ckpt"):
            tensorflow.write(checkpoint(a=1.0), tmp_path)

    def test_nothing_cannot_be_written(self, tmp_path):
        with pytest.raises(InputError, match="memory has no variables"):
            tensorflow.write(checkpoint(), tmp_path / "model")


def masked_sum(data):
    """CRC-32C, turned as LevelDB does."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def varint(number):
    return bytes([number]) if number < 128 else bytes([number & 127 | 128]) + varint(number >> 7)


def table(pairs):
    """With sums that are right, whatever it says."""
    whole = b""

    def put(entries):
        nonlocal whole
        body, starts = b"", []
        for key, value in entries:
            starts.append(len(body))
            body += varint(0) + varint(len(key)) + varint(len(value)) + key + value
        block = body + b"".join(struct.pack("<I", start) for start in [*starts, len(starts)]) + b"\0"
        place = varint(len(whole)) + varint(len(block) - 1)
        whole += block + masked_sum(block)
        return place

    footer = put([]) + put([(b"\xff", put(pairs))])
    return whole + footer.ljust(40, b"\0") + bytes.fromhex("57fb808b247547db")


def bundle(path, *entries, data=bytes(64)):
    """A checkpoint that says of `a` and what else it has whatever it should."""
    from google.protobuf import text_format
    from tensorflow.core.protobuf.tensor_bundle_pb2 import BundleEntryProto, BundleHeaderProto

    def message(entry):
        if isinstance(entry, bytes):
            return entry
        return text_format.Parse(entry, BundleEntryProto()).SerializeToString()

    header = BundleHeaderProto(num_shards=1, version={"producer": 1}).SerializeToString()
    pairs = [(b"", header), *((key, message(entry)) for key, entry in zip([b"a", b"b"], entries, strict=False))]
    path.with_name(f"{path.name}.index").write_bytes(table(pairs))
    path.with_name(f"{path.name}{DATA}").write_bytes(data)


SHAPE = "shape { dim { size: %s } }"
HOSTILE = {  # the first five end the process, where TensorFlow's reader gets them
    "no message": (b"\xff\xff\xff", "is damaged at a"),
    "negative": (f"dtype: DT_FLOAT size: 12 {SHAPE % -3}", r"a is announced as float32 of shape \(-3,\)"),
    "beyond 64 bits": (
        "dtype: DT_FLOAT size: 4 shape { " + f"dim {{ size: {2**40} }}" * 2 + " }",
        "a is announced as float32 of shape",
    ),
    "rank 300": (
        "dtype: DT_FLOAT size: 4 shape { " + "dim { size: 1 }" * 300 + " }",
        "a is announced as float32 of shape",
    ),
    "no type": (bytes.fromhex("08cf0f"), "a has the type 1999"),
    "2 GB": (
        f"dtype: DT_FLOAT size: {2**31} {SHAPE % 2**29}",
        f"a is announced with {2**31} bytes at 0, in a file of 64",
    ),
    "2 GB in 8 bytes": (f"dtype: DT_FLOAT size: 8 {SHAPE % 2**29}", r"of shape \(536870912,\), in 8 bytes"),
    "before": (f"dtype: DT_FLOAT size: 8 offset: -8 {SHAPE % 2}", "8 bytes at -8"),
    "another shard": (f"dtype: DT_FLOAT size: 8 shard_id: 7 {SHAPE % 2}", r"data-00007-of-00001 is missing; .*: a"),
    "a variant": (f"dtype: DT_VARIANT size: 8 {SHAPE % 2}", r"a cannot be read: variant is a type"),
    "a reference": (f"dtype: DT_FLOAT_REF size: 8 {SHAPE % 2}", "a is announced as float32_ref"),
    "part outside": (
        f"dtype: DT_FLOAT {SHAPE % 4} slices {{ extent {{ start: -3 length: 9 }} }}",
        "a has a part of 9 from -3 in a dimension of 4",
    ),
    "part of another rank": (f"dtype: DT_FLOAT {SHAPE % 4} slices {{ }}", "a has 1 dimensions, and a part 0"),
    "part that is missing": (
        f"dtype: DT_FLOAT {SHAPE % 4} slices {{ extent {{ start: 0 length: 2 }} }}",
        r"a should have a part of shape \(2,\), which is missing",
    ),
    "no such sum": (f"dtype: DT_FLOAT size: 8 crc32c: 7 {SHAPE % 2}", "a cannot be read"),
}


class TestHostile:
    @pytest.mark.parametrize("case", HOSTILE)
    def test_index(self, tmp_path, case):
        entry, text = HOSTILE[case]
        bundle(tmp_path / "model", entry)
        with pytest.raises(InputError, match=text) as caught:
            values(tmp_path / "model")
        assert str(tmp_path / "model") in str(caught.value)

    def test_the_index_itself_would_do(self, tmp_path):
        data = struct.pack("<2f", 3, 4)
        crc = struct.unpack("<I", masked_sum(data))[0]
        bundle(tmp_path / "model", f"dtype: DT_FLOAT size: 8 crc32c: {crc} {SHAPE % 2}", data=data)
        assert_same(values(tmp_path / "model"), {"a": np.float32([3, 4])})

    def test_string_that_says_it_is_long(self, tmp_path):
        bundle(tmp_path / "model", f"dtype: DT_STRING size: 16 {SHAPE % 1}", data=varint(2**55).ljust(16, b"\0"))
        with pytest.raises(InputError, match=r"a cannot be read: strings up to byte \d+ in 16 bytes"):
            values(tmp_path / "model")

    def test_name_that_is_no_text(self, tmp_path):
        bundle(tmp_path / "model", f"dtype: DT_FLOAT size: 4 {SHAPE % 1}")
        index = tmp_path / "model.index"
        from evenkeel.checkpoints import tables

        pairs = [(entry.key.replace(b"a", b"\xff"), bytes(entry.value)) for entry in tables.entries(index)]
        index.write_bytes(table(pairs))
        with pytest.raises(InputError, match=r"has the name \\xff, which is no text"):
            values(tmp_path / "model")

    def test_names_twice(self, tmp_path):
        entry = bytes([8, 1])  # float32
        (tmp_path / "model.index").write_bytes(table([(b"", b""), (b"a", entry), (b"a", entry)]))
        with pytest.raises(InputError, match="key b'a' comes after b'a'"):
            tensorflow.read(tmp_path / "model")

    def test_index_without_values(self, tmp_path):
        shutil.copy(V2.with_name(V2.name + ".index"), tmp_path / "model.index")
        with pytest.raises(InputError, match=rf"model{DATA} is missing; .*: bn1/beta"):
            read_checkpoint(tmp_path / "model")

    def test_values_without_index(self, tmp_path):
        shutil.copy(V2.with_name(V2.name + DATA), tmp_path / f"model{DATA}")
        with pytest.raises(InputError, match=r"model\.index is not a table of TensorFlow, or its end is missing"):
            read_checkpoint(tmp_path / "model")

    def test_values_cut_short(self, copies):
        data = copies / f"v2{DATA}"
        data.write_bytes(data.read_bytes()[:-100])
        with pytest.raises(InputError, match=r"logits/weights is announced with 640 bytes .* cut short"):
            read_checkpoint(copies / "v2")

    def test_one_value_changed(self, copies):
        data = copies / f"v2{DATA}"
        changed = bytearray(data.read_bytes())
        changed[-1] ^= 1
        data.write_bytes(changed)
        variables = read_checkpoint(copies / "v2").variables
        with pytest.raises(InputError, match="v2: logits/weights cannot be read"):
            variables["logits/weights"].read()
        assert variables["bn1/beta"].read().shape == (24,)

    def test_v1_that_announces_2_gb(self, tmp_path):
        from google.protobuf import text_format
        from tensorflow.core.util.saved_tensor_slice_pb2 import SavedTensorSlices

        text = f"meta {{ tensor {{ name: 'a' type: DT_FLOAT {SHAPE % 2**29} slice {{ extent {{ }} }} }} }}"
        (tmp_path / "model").write_bytes(
            table([(b"", text_format.Parse(text, SavedTensorSlices()).SerializeToString())])
        )
        with pytest.raises(
            InputError, match=r"model: a is announced with shape \(536870912,\), in a file of \d{3} bytes"
        ):
            read_checkpoint(tmp_path / "model")

    @pytest.mark.parametrize(
        ("kind", "stored", "text"),
        [
            ("DT_FLOAT", "float_val: 1", r"has 1 values for a part of shape \(2,\)"),
            ("DT_HALF", "half_val: 1 half_val: 278784", "278784"),
            ("DT_VARIANT", "variant_val { } variant_val { }", "variant is a type"),
        ],
    )
    def test_v1_with_other_values(self, tmp_path, kind, stored, text):
        from google.protobuf import text_format
        from tensorflow.core.util.saved_tensor_slice_pb2 import SavedTensorSlices

        def message(text):
            return text_format.Parse(text, SavedTensorSlices()).SerializeToString()

        meta = message(f"meta {{ tensor {{ name: 'a' type: {kind} {SHAPE % 2} slice {{ extent {{ }} }} }} }}")
        part = message(f"data {{ name: 'a' data {{ dtype: {kind} {stored} }} }}")
        (tmp_path / "model").write_bytes(table([(b"", meta), (b"\0a\0\1\1\1\x80\x7f", part)]))
        with pytest.raises(InputError, match=f"model: a cannot be read: .*{text}"):
            values(tmp_path / "model")


@pytest.fixture
def copies(tmp_path):
    shutil.copy(V1, tmp_path / "v1")
    for ending in (".index", DATA):
        shutil.copy(V2.with_name(V2.name + ending), tmp_path / f"v2{ending}")
    return tmp_path


def survives(path):
    """Whatever lies there: values, or an InputError."""
    try:
        if tensorflow.recognises(path):
            for variable in tensorflow.read(path).variables.values():
                variable.read()
    except InputError:
        return


changes = st.lists(st.tuples(st.integers(0, 10_000), st.binary(max_size=8)), max_size=4)
fuzz = settings(
    max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def changed(content, changes, kept):
    content = bytearray(content)
    for place, new in changes:
        place %= len(content)
        content[place : place + len(new)] = new
    return bytes(content[:kept] if kept is not None else content)


@fuzz
@pytest.mark.parametrize("name", ["v1", "v2.index", f"v2{DATA}"])
@given(changes=changes, kept=st.none() | st.integers(0, 10_000))
def test_any_bytes(copies, name, changes, kept):
    path = copies / name
    original = path.read_bytes()
    path.write_bytes(changed(original, changes, kept))
    try:
        survives(copies / name[:2])
    finally:
        path.write_bytes(original)


@fuzz
@pytest.mark.parametrize("name", ["v1", "v2.index"])
@given(which=st.integers(0, 20), changes=changes)
def test_any_bytes_under_sums_that_are_right(copies, name, which, changes):
    from evenkeel.checkpoints import tables

    path = copies / name
    original = path.read_bytes()
    pairs = [(entry.key, bytes(entry.value)[:300]) for entry in tables.entries(path)]
    key, value = pairs[which % len(pairs)]
    pairs[which % len(pairs)] = (key, changed(value, changes, None))
    path.write_bytes(table(pairs))
    try:
        survives(copies / name[:2])
    finally:
        path.write_bytes(original)
