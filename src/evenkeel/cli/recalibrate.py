# SPDX-License-Identifier: Apache-2.0
"""`evenkeel recalibrate`: the statistics of a saved Keras model, estimated anew from data."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

import typer

from evenkeel.errors import InputError
from evenkeel.files import check_free, replacing
from evenkeel.surgery.saved import load_model

HELP = "Estimate the statistics of a saved Keras model's normalizers anew from data; the weights stay."

SUFFIXES = (".keras", ".h5", ".hdf5")


def run(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A whole model: .keras, or .h5.")],
    data: Annotated[Path, typer.Option(help="The inputs, rows first: .npy, or .npz with `x` or an array an input.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The model with the new statistics: .keras, or .h5.")],
    method: Annotated[
        Literal["pooled", "sequential"],
        typer.Option(help="One pass over the data, or one for each normalizer and one more."),
    ] = "pooled",
    batch_size: Annotated[int, typer.Option(help="Rows of a batch; as in training.", min=1)] = 32,
    steps: Annotated[int | None, typer.Option(help="At most so many batches; all by default.", min=1)] = None,
    backend: Annotated[
        Literal["tensorflow", "jax", "torch"], typer.Option(help="What Keras computes with.", envvar="KERAS_BACKEND")
    ] = "tensorflow",
    include_frozen: Annotated[bool, typer.Option("--include-frozen", help="Layers that are frozen too.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT if it is there.")] = False,
) -> None:
    """Load, recalibrate, say what changed, save.

    Raises:
        EvenkeelError: the model, the data or an option cannot be used.
    """
    if out.suffix not in SUFFIXES:
        raise InputError(
            f"{out} ends with {out.suffix or 'nothing'}; give --out a name with one of {', '.join(SUFFIXES)}"
        )
    check_free(out, overwrite=overwrite)
    loaded = load_model(model, backend, SUFFIXES, "evenkeel.recalibrate(model, data)")
    from evenkeel.surgery.recalibrate import recalibrate

    report = recalibrate(
        loaded,
        data,
        method=method,
        batch_size=batch_size,
        steps=steps,
        include_frozen=include_frozen,
        progress=os.isatty(2),
    )
    with replacing(out) as partial:
        loaded.save(partial)
    print(report)
