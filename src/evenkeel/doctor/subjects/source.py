# SPDX-License-Identifier: Apache-2.0
"""A Python program, or a notebook."""

from __future__ import annotations

import io
import json
import os
import re
import tokenize
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from evenkeel.doctor import programs
from evenkeel.doctor.evidence import Evidence, Source, Unseen
from evenkeel.doctor.options import Options
from evenkeel.errors import InputError

KIND = "Python program"

LARGEST = 1 << 20
MAGIC = re.compile(r"%{1,2}[A-Za-z_]|!(?!=)|\?")  # a line may go on with `% name` or `!= name`
TIMED = re.compile(r"%%(time|timeit|capture|prun)\b")  # of cells that hold Python
NOT_PYTHON = (
    "{path} could not be looked at: line {line} is not Python 3 ({why}). If it was written for Python 2, "
    "`2to3 -w {path}` translates it"
)


def recognises(subject: Any) -> bool:
    if isinstance(subject, Source):
        return True
    return isinstance(subject, str | os.PathLike) and (
        Path(os.fsdecode(subject)).suffix in (".py", ".ipynb") and not Path(os.fsdecode(subject)).is_dir()
    )


def evidence(subject: Any, options: Options) -> Iterator[Evidence]:
    source = subject if isinstance(subject, Source) else _read(Path(os.fsdecode(subject)))
    program = programs.of(source)
    yield source
    if not program.has("layers", "slim", "tflearn", "nn", "keras", "torch", "flax"):
        yield Unseen(
            "the batch normalization of the program",
            "no call in this file makes one that is known",
            "give the file that builds the model, or the trained model itself",
        )


def _read(path: Path) -> Source:
    if path.exists() and not path.is_file():
        raise InputError(f"{path} is no file; give a Python program")
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST + 1)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    if len(data) > LARGEST:
        raise InputError(f"{path} has more than {LARGEST >> 20} MiB; that is no program. Give the program itself")
    try:
        text = _cells(data) if path.suffix == ".ipynb" else _decoded(data)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what the program's own text deserves is not said here
            return Source.of(text, str(path))
    except SyntaxError as error:
        raise InputError(NOT_PYTHON.format(path=path, why=error.msg, line=error.lineno or 1)) from error
    except (ValueError, LookupError, TypeError, RecursionError, MemoryError) as error:
        why = str(error) or "it is nested too deep"
        raise InputError(f"{path} cannot be read as a Python program: {why}") from error


def _decoded(data: bytes) -> str:
    """The text, in the encoding that the file declares."""
    encoding, _ = tokenize.detect_encoding(io.BytesIO(data).readline)
    return io.IncrementalNewlineDecoder(None, translate=True).decode(data.decode(encoding))


def _cells(data: bytes) -> str:
    """The code of a notebook; lines for IPython do nothing in it."""
    cells = [cell["source"] for cell in json.loads(data)["cells"] if cell["cell_type"] == "code"]
    texts = ["".join(cell) for cell in cells]
    lines = "\n".join(text for text in texts if not text.startswith("%%") or TIMED.match(text)).split("\n")
    return "\n".join(map(_python, lines))


def _python(line: str) -> str:
    words = line.lstrip()
    return line[: len(line) - len(words)] + "pass" if MAGIC.match(words) else line
