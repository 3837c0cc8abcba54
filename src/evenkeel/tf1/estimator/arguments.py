# SPDX-License-Identifier: Apache-2.0
"""What the functions and the hooks that a program hands over are, and whether they can be used."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import tensorflow as tf

from evenkeel.errors import ArgumentError

v1 = tf.compat.v1


def argument_names(function: Callable[..., Any]) -> list[str]:
    """The arguments that can be given to the function by name and that no `partial` has given yet.

    Example:
        >>> argument_names(functools.partial(lambda features, mode, params: None, params=3))
        ['features', 'mode']
    """
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    given = function.keywords if isinstance(function, functools.partial) else ()
    parameters = inspect.signature(function).parameters.values()
    return [parameter.name for parameter in parameters if parameter.kind in named and parameter.name not in given]


def accepted(function: Callable[..., Any], offered: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the arguments offered that the function takes.

    Example:
        >>> accepted(lambda mode: None, {"mode": "train", "params": {}})
        {'mode': 'train'}
    """
    names = argument_names(function)
    return {name: value for name, value in offered.items() if name in names}


def hooks_of(hooks: Iterable[Any] | None) -> tuple[Any, ...]:
    """The hooks as a tuple.

    Raises:
        TypeError: one is not a SessionRunHook.
    """
    hooks = tuple(hooks or ())
    for hook in hooks:
        if not isinstance(hook, v1.train.SessionRunHook):
            raise TypeError(
                f"Hooks must be a SessionRunHook, given: {hook!r}; make an object, not a class or a function"
            )
    return hooks


def listeners_of(listeners: Iterable[Any] | None) -> tuple[Any, ...]:
    """The listeners as a tuple.

    Raises:
        TypeError: one is not a CheckpointSaverListener.
    """
    listeners = tuple(listeners or ())
    for listener in listeners:
        if not isinstance(listener, v1.train.CheckpointSaverListener):
            raise TypeError(f"saving_listeners must be a list of CheckpointSaverListener, given: {listener!r}")
    return listeners


def check_positive(name: str, value: int | None) -> None:
    """
    Raises:
        ValueError: a number of steps that is 0 or less.
    """
    if value is not None and value <= 0:
        raise ArgumentError(f"Must specify {name} > 0, given: {value}; None is without limit")
