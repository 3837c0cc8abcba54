# SPDX-License-Identifier: Apache-2.0
"""`input_data` of the tutorials, against what 1.15's did with the same files."""

import gzip

import numpy as np
import pytest
import tensorflow as tf

from evenkeel.errors import InputError
from evenkeel.tf1.examples import DataSet, read_data_sets

NAMES = ["train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"]
IMAGES = np.random.default_rng(0).integers(0, 256, [10, 5, 4]).astype("uint8")
LABELS = np.arange(10).astype("uint8")
CONTENT = dict(zip(NAMES, [IMAGES, LABELS, IMAGES[:3], LABELS[:3]], strict=True))


def idx(values):
    return bytes([0, 0, 8, values.ndim]) + np.asarray(values.shape, ">i4").tobytes() + values.tobytes()


@pytest.fixture(params=["plain", "gzipped"])
def folder(tmp_path, request):
    for name, values in CONTENT.items():
        if request.param == "plain":
            (tmp_path / name).write_bytes(idx(values))
        else:
            (tmp_path / f"{name}.gz").write_bytes(gzip.compress(idx(values)))
    return f"{tmp_path}/"


def test_the_parts(folder):
    data = read_data_sets(folder, validation_size=4)
    assert [part.num_examples for part in data] == [6, 4, 3]
    flat = IMAGES.reshape(10, 20).astype("float32") * np.float32(1 / 255)
    np.testing.assert_array_equal(data.train.images, flat[4:])
    np.testing.assert_array_equal(data.validation.images, flat[:4])
    np.testing.assert_array_equal(data.test.labels, LABELS[:3])
    assert data.train.labels.dtype == "uint8"


def test_one_hot_labels_are_float64(folder):
    labels = read_data_sets(folder, one_hot=True, validation_size=0).train.labels
    np.testing.assert_array_equal(labels, np.eye(10))
    assert labels.dtype == "float64"


def test_whole_images_as_they_are(folder):
    images = read_data_sets(folder, dtype=tf.uint8, reshape=False, validation_size=0).train.images
    np.testing.assert_array_equal(images, IMAGES[..., np.newaxis])


@pytest.mark.parametrize("size", [-1, 11])
def test_a_validation_part_that_is_none(folder, size):
    with pytest.raises(ValueError, match=rf"should be between 0 and 10\. Received: {size}"):
        read_data_sets(folder, validation_size=size)


def test_a_type_that_is_none(folder):
    with pytest.raises(TypeError, match=r"Invalid image dtype tf\.int32, expected uint8 or float32"):
        read_data_sets(folder, dtype=tf.int32, validation_size=0)


def test_without_files_it_says_which(tmp_path):
    with pytest.raises(InputError) as raised:
        read_data_sets(tmp_path / "MNIST_data")
    text = str(raised.value)
    assert str(tmp_path / "MNIST_data") in text and "Nothing is downloaded" in text
    assert all(text.count(name) == 2 for name in NAMES)


def part(**options):
    return DataSet(IMAGES[..., np.newaxis], LABELS, **options)


def test_an_epoch_has_every_image_once():
    data = part(seed=1)
    labels = np.concatenate([data.next_batch(3)[1] for _ in range(3)] + [data.next_batch(1)[1]])
    assert sorted(labels) == list(range(10))
    assert data.epochs_completed == 0


def test_a_batch_across_the_end():
    data = part(seed=1)
    batches = [data.next_batch(4, shuffle=False)[1].tolist() for _ in range(4)]
    assert batches == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 0, 1], [2, 3, 4, 5]]
    assert data.epochs_completed == 1


def test_images_and_labels_stay_together():
    data = part(seed=2, dtype=tf.uint8)
    images, labels = data.next_batch(7)
    np.testing.assert_array_equal(images, IMAGES.reshape(10, 20)[labels])


def test_a_seed_gives_the_order_of_1_15():
    np.random.seed(7)
    order = np.arange(10)
    np.random.shuffle(order)
    np.testing.assert_array_equal(part(seed=7).next_batch(10)[1], order)


def test_the_seed_of_the_graph_counts():
    with tf.Graph().as_default():
        tf.compat.v1.set_random_seed(7)
        data = part()
    np.testing.assert_array_equal(data.next_batch(10)[1], part(seed=7).next_batch(10)[1])


def test_fake_data():
    images, labels = read_data_sets("nowhere", fake_data=True, one_hot=True).train.next_batch(2, fake_data=True)
    assert images == [[1] * 784] * 2 and labels == [[1] + [0] * 9] * 2
