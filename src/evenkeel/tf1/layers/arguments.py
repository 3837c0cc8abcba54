# SPDX-License-Identifier: Apache-2.0
"""What the arguments of a layer of `tf.layers` mean: sizes, paddings, functions by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import tensorflow as tf

from evenkeel.arguments import choice, positive_integer
from evenkeel.errors import ArgumentError

v1 = tf.compat.v1

Sizes = int | Sequence[int]

ZEROS = v1.zeros_initializer()

_ACTIVATIONS: dict[str, Callable[[Any], Any]] = {
    "elu": tf.nn.elu,
    "exponential": tf.exp,
    "hard_sigmoid": lambda x: tf.clip_by_value(0.2 * x + 0.5, 0.0, 1.0),
    "linear": lambda x: x,
    "relu": tf.nn.relu,
    "selu": tf.nn.selu,
    "sigmoid": tf.nn.sigmoid,
    "softmax": tf.nn.softmax,
    "softplus": tf.nn.softplus,
    "softsign": tf.nn.softsign,
    "tanh": tf.nn.tanh,
}
# The names are Keras's, and so are the spreads: tf.random_normal_initializer() itself has 1.
_INITIALIZERS: dict[str, Callable[[], Any]] = {
    "constant": v1.constant_initializer,
    "glorot_normal": v1.glorot_normal_initializer,
    "glorot_uniform": v1.glorot_uniform_initializer,
    "he_normal": v1.initializers.he_normal,
    "he_uniform": v1.initializers.he_uniform,
    "identity": v1.initializers.identity,
    "lecun_normal": v1.initializers.lecun_normal,
    "lecun_uniform": v1.initializers.lecun_uniform,
    "normal": partial(v1.random_normal_initializer, stddev=0.05),
    "ones": v1.ones_initializer,
    "orthogonal": v1.orthogonal_initializer,
    "random_normal": partial(v1.random_normal_initializer, stddev=0.05),
    "random_uniform": partial(v1.random_uniform_initializer, minval=-0.05, maxval=0.05),
    "truncated_normal": partial(v1.truncated_normal_initializer, stddev=0.05),
    "uniform": partial(v1.random_uniform_initializer, minval=-0.05, maxval=0.05),
    "variance_scaling": v1.variance_scaling_initializer,
    "zeros": v1.zeros_initializer,
}


def sizes(name: str, value: Any, rank: int) -> tuple[int, ...]:
    """One integer for each of `rank` dimensions; a single one is for all.

    Raises:
        ArgumentError: not an integer, and not `rank` of them.

    Example:
        >>> sizes("strides", 2, 3), sizes("strides", [1, 2], 2)
        ((2, 2, 2), (1, 2))
        >>> sizes("strides", [1, 2, 3], 2)
        Traceback (most recent call last):
        evenkeel.errors.ArgumentError: The `strides` argument must be a tuple of 2 integers. Received: [1, 2, 3]; ...
    """
    try:
        result = (int(value),) * rank if hasattr(value, "__index__") else tuple(map(int, value))
    except (TypeError, ValueError):
        result = ()
    if len(result) != rank or isinstance(value, str):
        raise ArgumentError(
            f"The `{name}` argument must be a tuple of {rank} integers. Received: {value}; give an integer or a tuple"
        )
    return result


def count(name: str, value: Any) -> int:
    """How many, at least one; a float without a fraction serves, as in `filters=0.5 * 32`.

    Raises:
        ArgumentError: anything else.

    Example:
        >>> count("filters", 16.0)
        16
    """
    return positive_integer(name, int(value) if isinstance(value, float) and value.is_integer() else value)


def word(name: str, value: Any, allowed: Sequence[str]) -> str:
    """`value` where it is one of `allowed`, in whatever case it arrives.

    Example:
        >>> word("padding", "SAME", ["valid", "same"])
        'same'
    """
    lower = value.lower() if isinstance(value, str) else value
    return choice(name, lower if lower in allowed else value, allowed)


def padding(value: Any, *, causal: bool = False) -> str:
    """`"valid"` or `"same"`, in whatever case; `"causal"` where that is possible.

    Raises:
        ArgumentError: anything else.

    Example:
        >>> padding("SAME")
        'same'
    """
    return word("padding", value, ["valid", "same", "causal"] if causal else ["valid", "same"])


def activation(value: Any) -> Callable[[Any], Any] | None:
    """A function, or the one of that name.

    Raises:
        ArgumentError: a name that is unknown.

    Example:
        >>> activation("relu").__name__, activation(None)
        ('relu', None)
    """
    return _ACTIVATIONS[choice("activation", value, _ACTIVATIONS)] if isinstance(value, str) else value


def initializer(value: Any) -> Any:
    """An initializer, or the one of that name; None is for `tf.get_variable` to decide.

    Raises:
        ArgumentError: a name that is unknown.

    Example:
        >>> type(initializer("ones")).__name__
        'Ones'
    """
    return _INITIALIZERS[choice("initializer", value, _INITIALIZERS)]() if isinstance(value, str) else value
