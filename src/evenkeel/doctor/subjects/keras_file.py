# SPDX-License-Identifier: Apache-2.0
"""What a file of a whole Keras model says of its normalizers."""

from __future__ import annotations

import os
import sys
import textwrap
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from evenkeel.checkpoints import read_checkpoint
from evenkeel.doctor.evidence import Evidence, Normalizer, Unseen
from evenkeel.doctor.options import Options
from evenkeel.doctor.subjects import keras
from evenkeel.doctor.subjects.checkpoint import normalizers
from evenkeel.errors import EvenkeelError, InputError

KIND = "file of a Keras model"
ENDINGS = (".keras", ".h5", ".hdf5")
LONGEST = 200
CONVERT = "evenkeel convert {path} NEW.keras, and look at that; or build the model in Python and give it to diagnose"


def recognises(subject: Any) -> bool:
    if not isinstance(subject, str | os.PathLike) or not os.fspath(subject).endswith(ENDINGS):
        return False
    try:
        return Path(subject).is_file() and read_checkpoint(subject).model is not None
    except EvenkeelError:
        return False  # whoever reads checkpoints says what is wrong


def evidence(subject: Any, options: Options) -> Iterator[Evidence]:
    in_file = list(normalizers(read_checkpoint(subject), options))
    try:
        model = _loaded(Path(subject), options.backend)
    except Exception as error:  # of any kind: what loads is partly somebody else's code
        if options.data is not None:
            raise InputError(f"{error}; {CONVERT.format(path=subject)}") from error
        yield from in_file
        # Keras tells a configuration and what went wrong, for each layer on the way.
        cause = str(error).rpartition("Exception encountered: ")[2]
        why = textwrap.shorten(cause, LONGEST, placeholder=" ...")
        yield Unseen("settings, layers and phases of the model", why, CONVERT.format(path=subject))
        return
    yield from filter(None, map(_told_by_the_file, in_file))
    yield from keras.evidence(model, options)


def _loaded(path: Path, backend: str) -> Any:
    from evenkeel.surgery.saved import load_model

    if "keras" in sys.modules:
        backend = sys.modules["keras"].config.backend()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of old arguments, which whoever has the file cannot change
        return load_model(path, backend, ENDINGS, "evenkeel.diagnose")


def _told_by_the_file(normalizer: Normalizer) -> Normalizer | None:
    """What a loaded model no longer shows: parts that the file lacks, and narrow types."""
    statistics = [part for part in (normalizer.moving_mean, normalizer.moving_variance) if part is not None]
    if any(part.dtype.itemsize < 4 for part in statistics):
        return normalizer
    return Normalizer(normalizer.name, missing=normalizer.missing) if normalizer.missing else None
