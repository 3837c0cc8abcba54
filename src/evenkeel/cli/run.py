# SPDX-License-Identifier: Apache-2.0
"""`evenkeel run`: a TensorFlow 1 program, as it is, on today's TensorFlow."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Annotated

import typer

from evenkeel.errors import MissingLibraryError

HELP = "Run a TensorFlow 1 program as it is. What follows SCRIPT goes to the program."
CONTEXT = {"allow_interspersed_args": False}


def run(
    script: Annotated[Path, typer.Argument(metavar="SCRIPT", help="The Python file of the program.")],
    arguments: Annotated[list[str] | None, typer.Argument(metavar="ARGS", help="What the program is given.")] = None,
    quiet: Annotated[
        bool, typer.Option("--quiet", help="Do not say at the end which normalizers were never updated.")
    ] = False,
) -> None:
    """Run the program, and end with its exit code.

    Raises:
        EvenkeelError: TensorFlow is not installed, or the file cannot be read.
        SystemExit: the program's.
    """
    if importlib.util.find_spec("tensorflow") is None:
        raise MissingLibraryError('tensorflow is not installed; pip install "evenkeel[tensorflow]"')
    from evenkeel.tf1.script import run_script

    run_script(script, arguments or (), quiet=quiet)
