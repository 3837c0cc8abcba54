# SPDX-License-Identifier: Apache-2.0
"""How a verb gets the model in a file."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evenkeel.errors import InputError, MissingLibraryError

__all__ = ["load_model"]


def load_model(path: Path, backend: str, endings: Sequence[str], otherwise: str) -> Any:
    """A whole Keras model, not compiled; for a process in which Keras is not imported yet.

    Args:
        path: the file.
        backend: what Keras is to compute with.
        endings: of files that will do.
        otherwise: what to call in Python for models of other libraries.

    Raises:
        InputError: not such a file, or it cannot be loaded.
        MissingLibraryError: Keras or the backend is not installed.
    """
    for library in (backend, "keras"):
        if importlib.util.find_spec(library) is None:
            raise MissingLibraryError(f'{library} is not installed; pip install "evenkeel[{backend}]"')
    if not path.is_file() or not path.name.endswith(tuple(endings)):
        raise InputError(
            f"{path} is no file of a whole Keras model; give one of {', '.join(endings)}. Models of torch and sessions "
            f"of TensorFlow 1 need their code: call {otherwise} in Python"
        )
    os.environ["KERAS_BACKEND"] = backend
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    os.environ["TF_ENABLE_ONEDNN_OPTS"] = "0"  # or TensorFlow speaks of it when it is imported
    import keras

    import evenkeel.layers.keras  # noqa: F401  # Keras finds our layer by its name

    try:
        return keras.saving.load_model(path, compile=False)
    except (OSError, TypeError, ValueError, KeyError) as error:
        raise InputError(f"{path} cannot be loaded: {error}") from error
