# SPDX-License-Identifier: Apache-2.0
"""The data networks are trained on: what arrives, and what is said when it cannot."""

import gzip
import math

import numpy as np
import pytest

from evenkeel.errors import InputError
from evenkeel.idx import read_idx
from evenkeel.workloads.data import digits, mnist

NAMES = ["train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"]
IMAGES, LABELS, TEST_IMAGES, TEST_LABELS = NAMES


def idx(values):
    """`values` as the bytes of an IDX file, written from the description of the format."""
    values = np.asarray(values, np.uint8)
    return bytes([0, 0, 8, values.ndim]) + np.asarray(values.shape, ">i4").tobytes() + values.tobytes()


@pytest.fixture
def parts():
    """File name -> array, for four files that fit together."""
    numbers = np.random.default_rng(0)
    shapes = [(6, 5, 4), (6,), (3, 5, 4), (3,)]
    highest = [256, 10, 256, 10]
    return {name: numbers.integers(0, high, shape) for name, shape, high in zip(NAMES, shapes, highest, strict=True)}


@pytest.fixture
def folder(tmp_path, parts):
    for name, values in parts.items():
        (tmp_path / name).write_bytes(idx(values))
    return tmp_path


def test_mnist_is_what_the_files_hold(folder, parts):
    dataset = mnist(folder)
    np.testing.assert_array_equal(dataset.train_images[..., 0], (parts[IMAGES] / 255).astype("float32"))
    np.testing.assert_array_equal(dataset.train_labels, parts[LABELS])
    np.testing.assert_array_equal(dataset.test_images[..., 0], (parts[TEST_IMAGES] / 255).astype("float32"))
    np.testing.assert_array_equal(dataset.test_labels, parts[TEST_LABELS])


def test_mnist_has_the_types_promised(folder):
    assert [part.dtype.name for part in mnist(folder)] == ["float32", "int64", "float32", "int64"]


@pytest.mark.parametrize("name", ["labels", "labels.gz"])
@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzipped"])
def test_gzip_is_known_by_the_content(tmp_path, name, pack):
    (tmp_path / name).write_bytes(pack(idx([7, 2, 1])))
    np.testing.assert_array_equal(read_idx(tmp_path / name, ndim=1), [7, 2, 1])


def test_mnist_finds_gzipped_files(folder):
    plain = mnist(folder)
    for name in NAMES:
        (folder / f"{name}.gz").write_bytes(gzip.compress((folder / name).read_bytes()))
        (folder / name).unlink()
    for before, after in zip(plain, mnist(folder), strict=True):
        np.testing.assert_array_equal(before, after)


WHOLE = idx(np.zeros((6, 5, 4)))
DAMAGE = {
    "empty file": (IMAGES, b"", f"{IMAGES} starts with 0x,"),
    "labels for images": (IMAGES, idx(np.zeros(6)), "starts with 0x00000801"),
    "images for labels": (LABELS, WHOLE, "starts with 0x00000803"),
    "floats": (IMAGES, b"\0\0\x0d\3" + WHOLE[4:], "starts with 0x00000d03"),
    "a web page": (IMAGES, b"<!DOCTYPE html>", "starts with 0x3c21444f"),
    "ends in the header": (IMAGES, WHOLE[:9], "after 9 of 16 bytes"),
    "truncated": (IMAGES, WHOLE[:-1], "announces 6 x 5 x 4 = 120 values, and 119 arrived"),
    "too long": (IMAGES, WHOLE + b"\0", "announces 6 x 5 x 4 = 120 values, and 121 arrived"),
    "announces 2**93 values": (
        IMAGES,
        WHOLE[:4] + b"\x7f\xff\xff\xff" * 3 + WHOLE[16:],
        f"= {math.prod([2**31 - 1] * 3)} values, and 120 arrived",
    ),
    "truncated gzip": (IMAGES, gzip.compress(WHOLE)[:-9], "cannot be read"),
    "broken gzip": (IMAGES, gzip.compress(WHOLE)[:12] + b"\xff" * 20, "cannot be read"),
    "no images": (IMAGES, idx(np.zeros((0, 5, 4))), "holds 0 x 5 x 4 values, so no image"),
    "no pixels": (IMAGES, idx(np.zeros((6, 0, 4))), "holds 6 x 0 x 4 values, so no image"),
    "one label missing": (LABELS, idx(np.zeros(5)), f"holds 6 images and .*{LABELS} 5 labels"),
    "label outside": (TEST_LABELS, idx([3, 10, 9]), "has label 10 at position 1; give labels 0 to 9"),
    "another size to test on": (
        TEST_IMAGES,
        idx(np.zeros((3, 4, 5))),
        "5 x 4 pixels to train on and of 4 x 5 to test on",
    ),
}


@pytest.mark.parametrize(("name", "content", "said"), DAMAGE.values(), ids=DAMAGE)
def test_damage_is_named(folder, name, content, said):
    (folder / name).write_bytes(content)
    with pytest.raises(InputError, match=said):
        mnist(folder)


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(InputError, match=f"has neither {name} nor {name}.gz"):
        mnist(folder)


def test_a_folder_in_the_place_of_a_file_is_named(folder):
    (folder / IMAGES).unlink()
    (folder / IMAGES).mkdir()
    with pytest.raises(InputError, match=f"{IMAGES} cannot be read"):
        mnist(folder)


@pytest.mark.parametrize("name", ["nowhere", IMAGES])
def test_no_such_folder(folder, name):
    with pytest.raises(InputError, match=f"{name} is not a folder"):
        mnist(folder / name)


def test_digits_are_scaled_and_complete():
    dataset = digits(seed=0)
    assert {part.dtype.name for part in dataset} == {"float32", "int64"}
    images = np.concatenate([dataset.train_images, dataset.test_images])
    assert images.shape == (1797, 8, 8, 1)
    assert (images.min(), images.max()) == (0, 1)


@pytest.mark.parametrize("digit", range(10))
def test_a_fifth_of_every_class_is_for_the_test(digit):
    dataset = digits(seed=3)
    test, train = (dataset.test_labels == digit).sum(), (dataset.train_labels == digit).sum()
    assert abs(test - (test + train) / 5) <= 1


def rows(images):
    return sorted(map(tuple, images.reshape(len(images), -1)))


def test_seeds_split_the_same_images_differently():
    one, other = digits(seed=0), digits(seed=1)
    assert rows(one.test_images) != rows(other.test_images)
    assert rows(np.concatenate([one.train_images, one.test_images])) == rows(
        np.concatenate([other.train_images, other.test_images])
    )


def test_a_seed_splits_always_the_same():
    for one, other in zip(digits(seed=7), digits(seed=7), strict=True):
        np.testing.assert_array_equal(one, other)
