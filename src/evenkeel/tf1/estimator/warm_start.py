# SPDX-License-Identifier: Apache-2.0
"""Which checkpoint a new model starts from, and which of its variables."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import tensorflow as tf

from evenkeel.errors import ArgumentError

v1 = tf.compat.v1

VocabInfo = v1.train.VocabInfo


class _Settings(NamedTuple):
    ckpt_to_initialize_from: str
    vars_to_warm_start: Any
    var_name_to_vocab_info: dict[str, Any]
    var_name_to_prev_var_name: dict[str, str]


class WarmStartSettings(_Settings):
    """What a model takes over before its first step; a model directory that has a checkpoint goes on from that instead.

    Args:
        ckpt_to_initialize_from: checkpoint file, or a directory with checkpoints.
        vars_to_warm_start: a pattern, of *trainable* variables: with the default, moving statistics start at 0 and 1.
            A list of patterns is of all variables, so `[".*moving_.*", ".*gamma", ...]` takes them over. A list of
            variables is these. None is only those with a vocabulary.
        var_name_to_vocab_info: variable name -> `VocabInfo`.
        var_name_to_prev_var_name: variable name -> its name in the checkpoint.

    Raises:
        ValueError: no checkpoint.

    Example:
        >>> WarmStartSettings("/tmp/model").vars_to_warm_start
        '.*'
    """

    __slots__ = ()

    def __new__(
        cls,
        ckpt_to_initialize_from: str,
        vars_to_warm_start: Any = ".*",
        var_name_to_vocab_info: Mapping[str, Any] | None = None,
        var_name_to_prev_var_name: Mapping[str, str] | None = None,
    ) -> WarmStartSettings:
        if not ckpt_to_initialize_from:
            raise ArgumentError(
                f"`ckpt_to_initialize_from` MUST be set in WarmStartSettings, got {ckpt_to_initialize_from!r}"
            )
        return super().__new__(
            cls,
            ckpt_to_initialize_from,
            vars_to_warm_start,
            dict(var_name_to_vocab_info or {}),
            dict(var_name_to_prev_var_name or {}),
        )


def settings_of(warm_start_from: Any) -> WarmStartSettings | None:
    """What `Estimator(warm_start_from=...)` means: settings, a checkpoint, a directory, or a SavedModel.

    Raises:
        ValueError: anything else.
    """
    if warm_start_from is None or isinstance(warm_start_from, WarmStartSettings):
        return warm_start_from
    if not isinstance(warm_start_from, str | bytes):
        raise ArgumentError(f"warm_start_from must be a string or a WarmStartSettings, instead got {warm_start_from!r}")
    path = os.fsdecode(warm_start_from)
    if v1.saved_model.contains_saved_model(path):
        path = os.path.join(path, v1.saved_model.VARIABLES_DIRECTORY, v1.saved_model.VARIABLES_FILENAME)
    return WarmStartSettings(path)


def warm_start(settings: WarmStartSettings) -> None:
    """Replace the initializers of the variables of the default graph."""
    v1.logging.info("Warm-starting with WarmStartSettings: %s", settings)
    v1.train.warm_start(*settings)
