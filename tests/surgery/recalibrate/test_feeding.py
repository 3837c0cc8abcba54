# SPDX-License-Identifier: Apache-2.0
"""What becomes a batch of what kind of data."""

import itertools

import numpy as np
import pytest

from evenkeel.errors import ArgumentError, InputError
from evenkeel.surgery.recalibrate.feeding import Batches, batches, inputs, targets

from conftest import NAME

X, Y = np.arange(15.0).reshape(5, 3), np.arange(5)
PARTS = [X[:2], X[2:4], X[4:]]


def fed(data, steps=None):
    return list(batches(data, batch_size=2, steps=steps))


def tensorflow_data(*arrays):
    if NAME != "tensorflow":
        pytest.skip("tf.data is TensorFlow's")
    import tensorflow as tf

    return tf.data.Dataset.from_tensor_slices(arrays if len(arrays) > 1 else arrays[0]).batch(2)


def loader(*arrays):
    if NAME != "torch":
        pytest.skip("DataLoader is torch's")
    import torch

    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*map(torch.tensor, arrays)), batch_size=2)


def py_dataset(*arrays):
    if NAME == "numpy":
        pytest.skip("PyDataset is Keras's")
    import keras

    class Data(keras.utils.PyDataset):
        def __init__(self):
            super().__init__(workers=1)

        def __len__(self):
            return 3

        def __getitem__(self, index):
            if index > 2:
                raise AssertionError(index)  # a sequence without end would go on
            parts = tuple(array[2 * index : 2 * index + 2] for array in arrays)
            return parts if len(parts) > 1 else parts[0]

    return Data()


KINDS = {
    "array": lambda: X,
    "pair of arrays": lambda: (X, Y),
    "list of batches": lambda: [*zip(PARTS, [1, 2, 3], strict=True)],
    "generator": lambda: (part for part in PARTS),
    "generator of pairs": lambda: ((part, 1) for part in PARTS),
    "generator of triples": lambda: ((part, 1, 2) for part in PARTS),
    "function": lambda: lambda: iter(PARTS),
    "tf.data": lambda: tensorflow_data(X),
    "tf.data of pairs": lambda: tensorflow_data(X, Y),
    "DataLoader": lambda: loader(X),
    "DataLoader of pairs": lambda: loader(X, Y),
    "PyDataset": lambda: py_dataset(X),
    "PyDataset of pairs": lambda: py_dataset(X, Y),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_inputs_come_out(kind):
    found = fed(KINDS[kind]())
    assert len(found) == 3
    assert all(np.array_equal(part, wanted) for part, wanted in zip(found, PARTS, strict=True))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if not kind.startswith("generator")])
def test_every_pass_is_the_same(kind):
    data = batches(KINDS[kind](), batch_size=2, steps=None)
    first, second = list(data), list(data)
    assert len(second) == 3 and all(map(np.array_equal, first, second))


@pytest.mark.parametrize("kind", KINDS)
def test_steps_are_a_limit(kind):
    assert len(fed(KINDS[kind](), steps=2)) == 2
    assert len(fed(KINDS[kind](), steps=9)) == 3


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_batch_is_not_lost(kind):
    data = batches(KINDS[kind](), batch_size=2, steps=2)
    assert np.array_equal(data.first(), PARTS[0])
    assert np.array_equal(data.first(), PARTS[0])
    assert [len(part) for part in data] == [2, 2]


@pytest.mark.parametrize(
    ("kind", "count"), [("array", 3), ("list of batches", 3), ("generator", None), ("PyDataset", 3), ("function", None)]
)
def test_how_many_there_will_be(kind, count):
    assert batches(KINDS[kind](), batch_size=2, steps=None).count == count
    assert batches(KINDS[kind](), batch_size=2, steps=2).count == 2


@pytest.mark.parametrize("data", [[X, 2 * X], {"a": X, "b": 2 * X}], ids=["list", "dictionary"])
def test_several_inputs(data):
    for found, part in zip(fed(data), PARTS, strict=True):
        a, b = found.values() if isinstance(found, dict) else found
        assert np.array_equal(a, part) and np.array_equal(b, 2 * part)


@pytest.mark.parametrize("data", [[X, 2 * X], {"a": X, "b": 2 * X}], ids=["list", "dictionary"])
def test_several_inputs_with_labels(data):
    assert type(fed((data, Y))[0]) is type(data)


def test_an_endless_source_ends_with_steps():
    assert len(fed(lambda: itertools.repeat(X), steps=4)) == 4


def test_a_generator_is_for_one_pass():
    data = batches((part for part in PARTS), batch_size=2, steps=None)
    list(data)
    with pytest.raises(ArgumentError, match=r"data is a generator, .* give a function that makes a new one"):
        list(data)


def test_no_first_batch():
    with pytest.raises(InputError, match="data has no batch"):
        Batches(lambda: [], None).first()


@pytest.mark.parametrize(
    ("data", "said"),
    [(3, "data is a int"), ({"a": X, "b": X[:3]}, r"have \[3, 5\] rows"), ("data.csv", "data.csv is no .npy")],
)
def test_what_cannot_be_fed(data, said):
    with pytest.raises((ArgumentError, InputError), match=said):
        fed(data)


@pytest.mark.parametrize("order", ["C", "F"])
def test_npy(tmp_path, order):
    np.save(tmp_path / "x.npy", np.asarray(X, order=order))
    found = fed(tmp_path / "x.npy")
    assert isinstance(found[0], np.memmap)
    assert all(map(np.array_equal, found, PARTS))


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("arrays", [{"data": X}, {"x": X, "y": Y}], ids=["the only one", "x"])
def test_npz(tmp_path, arrays, order):
    np.savez(tmp_path / "x.npz", **{name: np.asarray(array, order=order) for name, array in arrays.items()})
    found = fed(str(tmp_path / "x.npz"))
    assert isinstance(found[0], np.memmap)
    assert all(map(np.array_equal, found, PARTS))


def test_compressed_npz(tmp_path):
    np.savez_compressed(tmp_path / "x.npz", x=X)
    assert all(map(np.array_equal, fed(tmp_path / "x.npz"), PARTS))


def test_targets_stay_beside_their_inputs(tmp_path):
    np.savez(tmp_path / "x.npz", x=X, y=Y)
    items = list(batches(tmp_path / "x.npz", batch_size=2, steps=None).items())
    assert np.array_equal(np.concatenate([targets(item) for item in items]), Y)
    assert all(len(inputs(item)) == len(targets(item)) for item in items)


def test_targets_that_are_no_numbers_are_left_out(tmp_path):
    np.savez(tmp_path / "x.npz", x=X, y=np.array(["a"] * len(X), object))
    items = list(batches(tmp_path / "x.npz", batch_size=2, steps=None).items())
    assert all(map(np.array_equal, items, PARTS))


def test_npz_of_several_inputs(tmp_path):
    np.savez(tmp_path / "x.npz", a=X, b=2 * X)
    found = fed(tmp_path / "x.npz")
    assert all(np.array_equal(2 * batch["a"], batch["b"]) for batch in found)
    assert isinstance(found[0]["b"], np.memmap)


@pytest.mark.parametrize("name", ["x.npy", "x.npz"])
@pytest.mark.parametrize("content", [None, b"", b"no array"], ids=["missing", "empty", "text"])
def test_files_that_cannot_be_read(tmp_path, name, content):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=f"{name} cannot be read"):
        fed(tmp_path / name)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_objects_are_not_unpickled(tmp_path, save):
    save(tmp_path / "x.npz", x=np.array([{}], object))
    with pytest.raises(InputError, match=r"Python objects|Object arrays"):
        fed(tmp_path / "x.npz")


def test_an_archive_without_arrays(tmp_path):
    np.savez(tmp_path / "x.npz")
    with pytest.raises(InputError, match="it has no array"):
        fed(tmp_path / "x.npz")
