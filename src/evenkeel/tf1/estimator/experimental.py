# SPDX-License-Identifier: Apache-2.0
"""How a function that gives logits is called from a model function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from evenkeel.errors import ArgumentError
from evenkeel.tf1.estimator.arguments import accepted

__all__ = ["call_logit_fn"]


def call_logit_fn(logit_fn: Callable[..., Any], features: Any, mode: str, params: Any, config: Any) -> Any:
    """The logits, from a function that takes `features` and any of `mode`, `params` and `config`.

    Returns:
        A tensor, or a dict of tensors where there are several heads.

    Raises:
        ValueError: the function returned something else.

    Example:
        >>> with tf.Graph().as_default():
        ...     call_logit_fn(lambda features, params: features * params, tf.ones([2, 3]), "train", 4.0, None).shape
        TensorShape([2, 3])
    """
    logits = logit_fn(features=features, **accepted(logit_fn, {"mode": mode, "params": params, "config": config}))
    values = list(logits.items()) if isinstance(logits, dict) else [("", logits)]
    if not all(isinstance(key, str) and isinstance(value, tf.Tensor) for key, value in values):
        raise ArgumentError(
            f"logit_fn should return a Tensor or a dictionary mapping strings to Tensors. Got: {logits!r}"
        )
    return logits
