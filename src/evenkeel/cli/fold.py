# SPDX-License-Identifier: Apache-2.0
"""`evenkeel fold`: a saved Keras model for inference, its normalizers folded into the layers beside them."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import typer

from evenkeel.errors import InputError
from evenkeel.files import check_free, replacing
from evenkeel.surgery.saved import load_model

HELP = "Fold the normalizers of a saved Keras model into the layers beside them, and show that it computes the same."


def run(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A whole model, .keras; it stays as it is.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The folded model, .keras.")],
    data: Annotated[
        Path | None, typer.Option(help="A batch to compare on: .npz with one array, or an array for each input's name.")
    ] = None,
    backend: Annotated[
        Literal["tensorflow", "jax", "torch"], typer.Option(help="What Keras computes with.", envvar="KERAS_BACKEND")
    ] = "tensorflow",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT if it is there.")] = False,
) -> None:
    """Load, fold, compare, say what was done, save.

    Raises:
        EvenkeelError: the model or the data cannot be used, or the folded model computes something else.
    """
    if out.suffix != ".keras":
        raise InputError(f"{out} does not end with .keras; give --out a name that does")
    check_free(out, overwrite=overwrite)
    batch = None if data is None else _batch(data)
    loaded = load_model(model, backend, (".keras",), "evenkeel.fold(model, data)")
    from evenkeel.surgery.fold import fold

    folded, report = fold(loaded, batch)
    with replacing(out) as partial:
        folded.save(partial)
    print(report)


def _batch(path: Path) -> Any:
    try:
        with np.load(path) as file:
            arrays = dict(file)
    except (OSError, EOFError, ValueError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} is no .npz that can be read: {error}") from error
    if not arrays:
        raise InputError(f"{path} has no arrays; give one, or one for each input")
    return arrays if len(arrays) > 1 else next(iter(arrays.values()))
