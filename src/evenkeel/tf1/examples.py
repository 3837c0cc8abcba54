# SPDX-License-Identifier: Apache-2.0
"""What `tensorflow.examples.tutorials.mnist.input_data` read: MNIST, or any IDX files laid out like it, in batches."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from evenkeel.errors import InputError
from evenkeel.idx import find_idx, read_idx

v1 = tf.compat.v1

__all__ = ["DataSet", "Datasets", "dense_to_one_hot", "extract_images", "extract_labels", "read_data_sets"]

_PARTS = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
_NO_FILES = """\
{folder} does not have {missing}.
Put the four IDX files of MNIST there, each gzipped (the name then ends in .gz) or not:
    {parts}
Nothing is downloaded."""


class Datasets(NamedTuple):
    """The three parts: the first `validation_size` training images are `validation`, the others `train`."""

    train: DataSet
    validation: DataSet
    test: DataSet


class DataSet:
    """Images with their labels, given out in batches; shuffled before the first and after each epoch.

    Args:
        images: uint8 in 0..255, shape `(count, height, width, 1)`.
        labels: shape `(count,)`, or `(count, classes)`.
        fake_data: be 10000 times one image of ones instead.
        one_hot: of the labels of fake data.
        dtype: float32, then the pixels are in [0, 1]; or uint8, as they are.
        reshape: make the images `(count, height * width)`.
        seed: of the shuffling, which is NumPy's global one, as in 1.15; the seed of the graph by default.

    Raises:
        TypeError: another `dtype`.
        ValueError: not as many labels as images.

    Example:
        >>> part = DataSet(np.full([3, 2, 2, 1], 255, "uint8"), np.array([7, 8, 9]), seed=1)
        >>> images, labels = part.next_batch(2, shuffle=False)
        >>> images.tolist(), labels.tolist(), part.epochs_completed
        ([[1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0]], [7, 8], 0)
    """

    def __init__(
        self,
        images: Any,
        labels: Any,
        fake_data: bool = False,
        one_hot: bool = False,
        dtype: Any = tf.float32,
        reshape: bool = True,
        seed: int | None = None,
    ) -> None:
        of_graph, of_operation = v1.get_seed(seed)
        np.random.seed(of_graph if seed is None else of_operation)
        dtype = tf.as_dtype(dtype).base_dtype
        if dtype not in (tf.uint8, tf.float32):
            raise TypeError(f"Invalid image dtype {dtype!r}, expected uint8 or float32")
        if not fake_data:
            if len(images) != len(labels):
                raise ValueError(f"images.shape: {images.shape} labels.shape: {labels.shape}; give a label an image")
            if reshape:
                images = images.reshape(len(images), images.shape[1] * images.shape[2])
            if dtype == tf.float32:
                images = np.multiply(images.astype(np.float32), 1.0 / 255.0)
        self.one_hot = one_hot
        self._images, self._labels = images, labels
        self._num_examples = 10000 if fake_data else len(images)
        self._epochs_completed = 0
        self._index_in_epoch = 0

    @property
    def images(self) -> Any:
        return self._images

    @property
    def labels(self) -> Any:
        return self._labels

    @property
    def num_examples(self) -> int:
        return self._num_examples

    @property
    def epochs_completed(self) -> int:
        return self._epochs_completed

    def next_batch(self, batch_size: int, fake_data: bool = False, shuffle: bool = True) -> tuple[Any, Any]:
        """The next images and labels; a batch at the end of an epoch is filled up from the next one."""
        if fake_data:
            label = [1] + [0] * 9 if self.one_hot else 0
            return [[1] * 784 for _ in range(batch_size)], [label for _ in range(batch_size)]
        start, end = self._index_in_epoch, self._index_in_epoch + batch_size
        if shuffle and start == 0 and self._epochs_completed == 0:
            self._shuffle()
        if end <= self._num_examples:
            self._index_in_epoch = end
            return self._images[start:end], self._labels[start:end]
        self._epochs_completed += 1
        rest = self._images[start:], self._labels[start:]
        if shuffle:
            self._shuffle()
        self._index_in_epoch = end - self._num_examples
        new = self._images[: self._index_in_epoch], self._labels[: self._index_in_epoch]
        return np.concatenate((rest[0], new[0])), np.concatenate((rest[1], new[1]))

    def _shuffle(self) -> None:
        order = np.arange(self._num_examples)
        np.random.shuffle(order)
        self._images, self._labels = self._images[order], self._labels[order]


def read_data_sets(
    train_dir: str | os.PathLike[str],
    fake_data: bool = False,
    one_hot: bool = False,
    dtype: Any = tf.float32,
    reshape: bool = True,
    validation_size: int = 5000,
    seed: int | None = None,
    source_url: str | None = None,
) -> Datasets:
    """The IDX files of a folder. Unlike 1.15's, it downloads nothing, whatever `source_url` says.

    Args:
        train_dir: the folder.
        fake_data, dtype, reshape, seed: as of `DataSet`.
        one_hot: labels of shape `(count, 10)`, float64; without it they are uint8 of shape `(count,)`.
        validation_size: so many training images go to `validation`.

    Raises:
        InputError: a file is missing or damaged.
        ValueError: there are fewer training images than `validation_size`.
    """
    if fake_data:
        return Datasets(*(DataSet([], [], fake_data=True, one_hot=one_hot, dtype=dtype, seed=seed) for _ in range(3)))
    folder = Path(train_dir)
    missing = [name for name in _PARTS if not any((folder / f"{name}{end}").exists() for end in ("", ".gz"))]
    if missing:
        raise InputError(
            _NO_FILES.format(folder=folder.absolute(), missing=", ".join(missing), parts="\n    ".join(_PARTS))
        )
    paths = [find_idx(folder, name) for name in _PARTS]
    images, test_images = extract_images(paths[0]), extract_images(paths[2])
    labels, test_labels = extract_labels(paths[1], one_hot), extract_labels(paths[3], one_hot)
    if not 0 <= validation_size <= len(images):
        raise ValueError(f"Validation size should be between 0 and {len(images)}. Received: {validation_size}.")
    options = {"dtype": dtype, "reshape": reshape, "seed": seed}
    return Datasets(
        train=DataSet(images[validation_size:], labels[validation_size:], **options),
        validation=DataSet(images[:validation_size], labels[:validation_size], **options),
        test=DataSet(test_images, test_labels, **options),
    )


def extract_images(path: str | os.PathLike[str]) -> np.ndarray:
    """The images of an IDX file: uint8, shape `(count, height, width, 1)`.

    Raises:
        InputError: the file is damaged, or none of images.
    """
    return read_idx(Path(path), ndim=3)[..., np.newaxis]


def extract_labels(path: str | os.PathLike[str], one_hot: bool = False, num_classes: int = 10) -> np.ndarray:
    """The labels of an IDX file: uint8, shape `(count,)`; with `one_hot` as `dense_to_one_hot` has them.

    Raises:
        InputError: the file is damaged, or none of labels.
    """
    labels = read_idx(Path(path), ndim=1)
    return dense_to_one_hot(labels, num_classes) if one_hot else labels


def dense_to_one_hot(labels_dense: np.ndarray, num_classes: int) -> np.ndarray:
    """
    Returns:
        float64, shape `(count, num_classes)`: 1 at the label, 0 elsewhere.

    Raises:
        ValueError: a label is outside `0..num_classes - 1`.

    Example:
        >>> dense_to_one_hot(np.array([1, 0]), 3).tolist()
        [[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]
    """
    if labels_dense.size and not 0 <= labels_dense.max() < num_classes:
        raise ValueError(f"label {labels_dense.max()} is not one of {num_classes} classes; give 0 to {num_classes - 1}")
    return np.eye(num_classes)[labels_dense]
