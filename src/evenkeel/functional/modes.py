# SPDX-License-Identifier: Apache-2.0
"""Which statistics a call uses, and whether it changes them."""

from __future__ import annotations

from typing import Any, NamedTuple

from evenkeel.errors import ArgumentError


class Mode(NamedTuple):
    """batch: normalize with the batch's own statistics, otherwise with the moving ones.
    updates: the batch enters the moving statistics.
    """

    batch: bool
    updates: bool


INFERENCE = Mode(batch=False, updates=False)
TRAINING = Mode(batch=True, updates=True)

# training, trainable, frozen -> mode. Not trainable means inference, as in Keras since TensorFlow 2;
# frozen means moving statistics whatever the phase, while gamma and beta may still learn.
_TABLE = {
    (True, True, False): TRAINING,
    (True, True, True): INFERENCE,
    (True, False, False): INFERENCE,
    (True, False, True): INFERENCE,
    (False, True, False): INFERENCE,
    (False, True, True): INFERENCE,
    (False, False, False): INFERENCE,
    (False, False, True): INFERENCE,
}


def frozen(value: Any) -> bool | str:
    """`value` where it says what of a layer is frozen: nothing, the statistics, or all.

    Example:
        >>> frozen("everything")
        Traceback (most recent call last):
        evenkeel.errors.ArgumentError: frozen='everything' is unknown; give False, True or 'all'
    """
    if not isinstance(value, bool) and value != "all":
        raise ArgumentError(f"frozen={value!r} is unknown; give False, True or 'all'")
    return value


def mode(*, training: bool, trainable: bool = True, frozen: bool = False) -> Mode:
    """The row of the table for a layer in this state.

    Example:
        >>> mode(training=True)
        Mode(batch=True, updates=True)
        >>> mode(training=True, trainable=False)
        Mode(batch=False, updates=False)
    """
    return _TABLE[bool(training), bool(trainable), bool(frozen)]
