# SPDX-License-Identifier: Apache-2.0
"""Which default arguments hold for a function here: `arg_scope`."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

Scope = dict[str, dict[str, Any]]

_stack: list[Scope] = [{}]
_decorated: dict[str, tuple[str, ...]] = {}


def add_arg_scope(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, with its default arguments open to `arg_scope`.

    Arguments of the call win over those of a scope. Positional arguments are not looked at: one that a scope gives
    too is a TypeError at the call, as is an argument `function` does not have.

    Example:
        >>> @add_arg_scope
        ... def scaled(x, factor=1):
        ...     return factor * x
        >>> with arg_scope([scaled], factor=3):
        ...     scaled(2), scaled(2, factor=5)
        (6, 10)
    """

    @functools.wraps(function)
    def with_scope(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **{**_stack[-1].get(key, {}), **kwargs})

    # The text of a function holds its address, so two functions of one name have two keys.
    key = str(function)
    with_scope._key_op = key  # type: ignore[attr-defined]
    defaults = inspect.signature(function).parameters.values()
    _decorated[key] = tuple(item.name for item in defaults if item.default is not inspect.Parameter.empty)
    return with_scope


def arg_scope_func_key(function: Any) -> str:
    """The key of a function in the dict that `arg_scope` yields."""
    return getattr(function, "_key_op", str(function))


def has_arg_scope(function: Any) -> bool:
    """Whether `function` was made by `add_arg_scope`."""
    return arg_scope_func_key(function) in _decorated


def arg_scoped_arguments(function: Any) -> tuple[str, ...]:
    """Names of the arguments that a scope can give: those with defaults.

    Raises:
        AssertionError: `function` is not decorated with `add_arg_scope`.
    """
    assert has_arg_scope(function), f"{function} is not decorated with @add_arg_scope"
    return _decorated[arg_scope_func_key(function)]


def current_arg_scope() -> Scope:
    """Key of a function -> the arguments that hold for it here."""
    return _stack[-1]


@contextlib.contextmanager
def arg_scope(list_ops_or_scope: Sequence[Any] | Mapping[str, Any], **kwargs: Any) -> Iterator[Scope]:
    """Inside it, `kwargs` are the defaults of the functions; the innermost scope wins.

    Args:
        list_ops_or_scope: a list or tuple of functions made by `add_arg_scope`; or what another `arg_scope` yielded,
            to enter that one again.

    Raises:
        TypeError: neither a list, a tuple nor a dict.
        ValueError: a function without `add_arg_scope`, or a dict together with `kwargs`.

    Example:
        >>> @add_arg_scope
        ... def scaled(x, factor=1):
        ...     return factor * x
        >>> with arg_scope([scaled], factor=3) as scope:
        ...     pass
        >>> with arg_scope(scope):
        ...     scaled(2)
        6
    """
    if isinstance(list_ops_or_scope, Mapping):
        if kwargs:
            raise ValueError(
                "When attempting to re-use a scope by suppling a dictionary, kwargs must be empty; got "
                f"{', '.join(sorted(kwargs))}. Give them in an arg_scope of their own."
            )
        scope = dict(list_ops_or_scope)
    elif isinstance(list_ops_or_scope, list | tuple):
        scope = dict(_stack[-1])
        for function in list_ops_or_scope:
            if not has_arg_scope(function):
                name = getattr(function, "__name__", function)
                raise ValueError(f"{name} is not decorated with @add_arg_scope; decorate it, or leave it out")
            key = arg_scope_func_key(function)
            scope[key] = {**scope.get(key, {}), **kwargs}
    else:
        raise TypeError(
            "list_ops_or_scope must either be a list/tuple or reused scope (i.e. dict); got "
            f"{type(list_ops_or_scope).__name__}. Write arg_scope([function], ...)."
        )
    _stack.append(scope)
    try:
        yield scope
    finally:
        _stack.pop()
