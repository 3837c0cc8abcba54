# SPDX-License-Identifier: Apache-2.0
"""How layers name what they give, and read the sizes they are given."""

from __future__ import annotations

import operator
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any

import tensorflow as tf

v1 = tf.compat.v1

constant_value = tf.get_static_value


def append_tensor_alias(tensor: Any, alias: str) -> Any:
    """`tensor`, known by one more name."""
    tensor.aliases = [*getattr(tensor, "aliases", []), alias.removesuffix("/")]
    return tensor


def get_tensor_aliases(tensor: Any) -> list[str]:
    """The names a tensor is known by: its aliases, or its own name without `:0`."""
    return getattr(tensor, "aliases", None) or [tensor.name.removesuffix(":0")]


def gather_tensors_aliases(tensors: Iterable[Any]) -> list[str]:
    """The names of all of them."""
    return [alias for tensor in tensors for alias in get_tensor_aliases(tensor)]


def collect_named_outputs(collections: Any, alias: str, outputs: Any) -> Any:
    """`outputs`, put into collections (a name or a list of names) under an alias."""
    if collections:
        append_tensor_alias(outputs, alias)
        v1.add_to_collections(collections, outputs)
    return outputs


def convert_collection_to_dict(collection: str, clear_collection: bool = False) -> OrderedDict[str, Any]:
    """Alias -> tensor, of a collection: the end points of a network.

    Example:
        >>> with tf.Graph().as_default():
        ...     end = collect_named_outputs("ends", "net/conv1", tf.zeros([2]))
        ...     list(convert_collection_to_dict("ends"))
        ['net/conv1']
    """
    found = OrderedDict(
        (alias, tensor) for tensor in v1.get_collection(collection) for alias in get_tensor_aliases(tensor)
    )
    if clear_collection:
        v1.get_default_graph().clear_collection(collection)
    return found


def get_variable_collections(variables_collections: Any, name: str) -> Any:
    """The collections for a variable: those under its name in a dict, or all that were given."""
    return variables_collections.get(name) if isinstance(variables_collections, dict) else variables_collections


def static_cond(pred: Any, fn1: Callable[[], Any], fn2: Callable[[], Any]) -> Any:
    """`fn1()` where `pred`, a Python value, holds, else `fn2()`."""
    _callable(fn1, fn2)
    return fn1() if pred else fn2()


def smart_cond(pred: Any, fn1: Callable[[], Any], fn2: Callable[[], Any], name: str | None = None) -> Any:
    """`static_cond` where the value of `pred` is known, `tf.cond` otherwise.

    Args:
        pred: a bool, 0 or 1, or a scalar tensor.

    Raises:
        TypeError: `fn1` or `fn2` cannot be called.

    Example:
        >>> smart_cond(True, lambda: "yes", lambda: "no")
        'yes'
    """
    _callable(fn1, fn2)
    known = constant_value(pred) if tf.is_tensor(pred) else pred
    return (
        v1.cond(pred, fn1, fn2, name)
        if known is None or isinstance(known, tf.Variable)
        else (static_cond(known, fn1, fn2))
    )


def n_positive_integers(n: int, value: Any) -> tuple[int, ...]:
    """`value` as `n` positive integers; one integer stands for all of them.

    Raises:
        ValueError: not `n` of them, or not positive.

    Example:
        >>> n_positive_integers(2, 3), n_positive_integers(2, [3, 5])
        ((3, 3), (3, 5))
    """
    if isinstance(value, tf.TensorShape):
        value = value.as_list()
    try:
        values = (operator.index(value),) * n if not isinstance(value, list | tuple) else tuple(map(int, value))
    except (TypeError, ValueError):
        values = ()
    if len(values) != n or min(values, default=0) <= 0:
        raise ValueError(f"{value!r} was given where {n} positive integers are wanted; give one integer or {n} of them")
    return values


def two_element_tuple(int_or_tuple: Any) -> tuple[int, ...]:
    """`n_positive_integers(2, ...)`: height and width."""
    return n_positive_integers(2, int_or_tuple)


def first_dimension(shape: Any, min_rank: int = 1) -> int:
    """Size of the first dimension.

    Raises:
        ValueError: fewer than `min_rank` dimensions, or an unknown size.
    """
    return _dimension(shape, 0, min_rank, "first")


def last_dimension(shape: Any, min_rank: int = 1) -> int:
    """Size of the last dimension; errors as `first_dimension`.

    Example:
        >>> last_dimension(tf.TensorShape([None, 3]))
        3
    """
    return _dimension(shape, -1, min_rank, "last")


def channel_dimension(shape: Any, data_format: str, min_rank: int = 1) -> int:
    """Size of the channels; errors as `first_dimension`.

    Args:
        data_format: `"channels_first"` (then dimension 1) or `"channels_last"`.
    """
    return _dimension(shape, 1 if data_format == "channels_first" else -1, min_rank, "channel")


def _dimension(shape: Any, axis: int, min_rank: int, which: str) -> int:
    shape = tf.TensorShape(shape)
    if shape.rank is None:
        raise ValueError(f"{which} dimension of shape {shape} must be known, but the rank is unknown; use set_shape")
    if shape.rank < min_rank:
        raise ValueError(f"rank of shape must be at least {min_rank} not: {shape.rank}")
    size = shape.as_list()[axis]
    if size is None:
        raise ValueError(f"{which} dimension shape must be known but is None; shape {shape}, use set_shape")
    return size


def _callable(*functions: Any) -> None:
    for function in functions:
        if not callable(function):
            raise TypeError(f"{function!r} must be callable; write `lambda: ...`")
