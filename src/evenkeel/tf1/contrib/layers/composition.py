# SPDX-License-Identifier: Apache-2.0
"""How one layer function is used several times in a row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from evenkeel.tf1.contrib.framework.scopes import add_arg_scope

v1 = tf.compat.v1


@add_arg_scope
def repeat(inputs: Any, repetitions: int, layer: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """`layer(layer(...layer(inputs)))`, each with variables of its own.

    Args:
        layer: called with `args`, `kwargs` and `scope="<scope>_1"`, `"<scope>_2"`, ...
        scope: of all of them; `Repeat`, made unique, with the name of the function within, by default.

    Example:
        >>> from evenkeel.tf1.contrib.layers.connected import fully_connected
        >>> with tf.Graph().as_default():
        ...     y = repeat(tf.ones([8, 3]), 2, fully_connected, 4, scope="fc")
        ...     [variable.op.name for variable in v1.model_variables("fc/.*weights")]
        ['fc/fc_1/weights', 'fc/fc_2/weights']
    """
    scope = kwargs.pop("scope", None)
    with v1.variable_scope(scope, "Repeat", [inputs]):
        return _chained(inputs, layer, [args] * repetitions, kwargs, scope or _name(layer, "repeat"))


@add_arg_scope
def stack(inputs: Any, layer: Callable[..., Any], stack_args: Sequence[Any], **kwargs: Any) -> Any:
    """One layer after the other, with other arguments each.

    Args:
        layer: called with `kwargs` and `scope="<scope>_1"`, `"<scope>_2"`, ...
        stack_args: the positional arguments of each: a list of lists, or of single arguments.
        scope: of all of them; `Stack`, made unique, with the name of the function within, by default.

    Raises:
        ValueError: `stack_args` is not a list or a tuple.

    Example:
        >>> from evenkeel.tf1.contrib.layers.connected import fully_connected
        >>> with tf.Graph().as_default():
        ...     y = stack(tf.ones([8, 3]), fully_connected, [4, 5])
        ...     [variable.op.name for variable in v1.model_variables(".*weights")]
        ['Stack/fully_connected_1/weights', 'Stack/fully_connected_2/weights']
    """
    scope = kwargs.pop("scope", None)
    if not isinstance(stack_args, list | tuple):
        raise ValueError(f"stack_args need to be a list or tuple; got {stack_args!r}")
    arguments = [item if isinstance(item, list | tuple) else [item] for item in stack_args]
    with v1.variable_scope(scope, "Stack", [inputs]):
        return _chained(inputs, layer, arguments, kwargs, scope or _name(layer, "stack"))


def _chained(inputs: Any, layer: Callable[..., Any], arguments: Sequence[Any], options: Any, scope: str) -> Any:
    outputs = tf.convert_to_tensor(inputs)
    for number, args in enumerate(arguments, 1):
        outputs = layer(outputs, *args, **{**options, "scope": f"{scope}_{number}"})
    return outputs


def _name(layer: Any, default: str) -> str:
    """Name of a function, also where it is a partial one."""
    named = layer if hasattr(layer, "__name__") else getattr(layer, "func", None)
    return getattr(named, "__name__", default)
