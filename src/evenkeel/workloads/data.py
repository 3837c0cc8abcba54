# SPDX-License-Identifier: Apache-2.0
"""Which images the networks learn from."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from evenkeel.errors import InputError, MissingLibraryError
from evenkeel.idx import by, find_idx, read_idx

__all__ = ["CLASSES", "Dataset", "digits", "mnist"]

CLASSES = 10
"""The digits 0 to 9."""


class Dataset(NamedTuple):
    """Images of handwritten digits and what they show, in a part to train on and a part to test on.

    train_images: float32 in [0, 1], 0 is paper and 1 is ink; shape `(count, height, width, 1)`.
    train_labels: int64 in 0..9, shape `(count,)`.
    test_images: as `train_images`; the same height and width, any count.
    test_labels: as `train_labels`.
    """

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray


def digits(*, seed: int = 0) -> Dataset:
    """The 1797 digits of 8 x 8 pixels that come with scikit-learn; a fifth of every class is for the test.

    Args:
        seed: which fifth.

    Raises:
        MissingLibraryError: scikit-learn is not installed.

    Example:
        >>> dataset = digits(seed=0)
        >>> dataset.train_images.shape, dataset.test_images.shape
        ((1437, 8, 8, 1), (360, 8, 8, 1))
    """
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise MissingLibraryError(
            'scikit-learn, which brings the digits, is not installed; pip install "evenkeel[train]"'
        ) from error
    images, labels = load_digits(return_X_y=True)
    pixels = (images / 16).astype(np.float32).reshape(-1, 8, 8, 1)
    train_images, test_images, train_labels, test_labels = train_test_split(
        pixels, labels.astype(np.int64), test_size=0.2, random_state=seed, stratify=labels
    )
    return Dataset(train_images, train_labels, test_images, test_labels)


def mnist(folder: Path) -> Dataset:
    """MNIST, or any data laid out like it, from a folder of four IDX files.

    Args:
        folder: holds `train-images-idx3-ubyte`, `train-labels-idx1-ubyte`, `t10k-images-idx3-ubyte` and
            `t10k-labels-idx1-ubyte`, each gzipped (the name then ends in `.gz`) or not.

    Raises:
        InputError: a file is missing or damaged, or the four do not fit together.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; give the folder with the four IDX files of MNIST")
    train_images, train_labels = _part(folder, "train")
    test_images, test_labels = _part(folder, "t10k")
    if train_images.shape[1:] != test_images.shape[1:]:
        raise InputError(
            f"{folder} has images of {by(train_images.shape[1:-1])} pixels to train on and of "
            f"{by(test_images.shape[1:-1])} to test on; give two parts of one size"
        )
    return Dataset(train_images, train_labels, test_images, test_labels)


def _part(folder: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels of one part, checked against each other."""
    images_path = find_idx(folder, f"{name}-images-idx3-ubyte")
    labels_path = find_idx(folder, f"{name}-labels-idx1-ubyte")
    images, labels = read_idx(images_path, ndim=3), read_idx(labels_path, ndim=1)
    if not images.size:
        raise InputError(f"{images_path} holds {by(images.shape)} values, so no image; give at least one")
    if len(images) != len(labels):
        raise InputError(
            f"{images_path} holds {len(images)} images and {labels_path} {len(labels)} labels; "
            "give two files that belong together"
        )
    if labels.max() >= CLASSES:
        at = int(labels.argmax())
        raise InputError(f"{labels_path} has label {labels[at]} at position {at}; give labels 0 to {CLASSES - 1}")
    return np.divide(images, 255, dtype=np.float32)[..., np.newaxis], labels.astype(np.int64)
