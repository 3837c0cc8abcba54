# SPDX-License-Identifier: Apache-2.0
"""How variables are made for a model, and found again."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import tensorflow as tf

from evenkeel.tf1.contrib.framework.scopes import add_arg_scope
from evenkeel.tf1.graph import add_once

v1 = tf.compat.v1


@add_arg_scope
def variable(
    name: str,
    shape: Any = None,
    dtype: Any = None,
    initializer: Any = None,
    regularizer: Any = None,
    trainable: bool = True,
    collections: Sequence[str] | None = None,
    caching_device: Any = None,
    device: Any = None,
    partitioner: Any = None,
    custom_getter: Callable[..., Any] | None = None,
    use_resource: bool | None = None,
    synchronization: Any = tf.VariableSynchronization.AUTO,
    aggregation: Any = tf.VariableAggregation.NONE,
) -> Any:
    """`tf.get_variable` on a device, open to `arg_scope`.

    Args:
        dtype: float32 by default.
        collections: GLOBAL_VARIABLES by default; a collection named twice is entered once.
        custom_getter: called in place of `tf.get_variable`, with the `reuse` of the current scope.

    Example:
        >>> with tf.Graph().as_default():
        ...     variable("v", [2], collections=["mine"]).op.name, len(v1.get_collection("mine"))
        ('v', 1)
    """
    getter: Any = v1.get_variable
    if custom_getter is not None:
        getter = functools.partial(custom_getter, reuse=v1.get_variable_scope().reuse)
    with v1.device(device or ""):
        return getter(
            name,
            shape=shape,
            dtype=dtype,
            initializer=initializer,
            regularizer=regularizer,
            trainable=trainable,
            collections=list(dict.fromkeys([v1.GraphKeys.GLOBAL_VARIABLES] if collections is None else collections)),
            caching_device=caching_device,
            partitioner=partitioner,
            use_resource=use_resource,
            synchronization=synchronization,
            aggregation=aggregation,
        )


@add_arg_scope
def model_variable(
    name: str,
    shape: Any = None,
    dtype: Any = tf.float32,
    initializer: Any = None,
    regularizer: Any = None,
    trainable: bool = True,
    collections: Sequence[str] | None = None,
    caching_device: Any = None,
    device: Any = None,
    partitioner: Any = None,
    custom_getter: Callable[..., Any] | None = None,
    use_resource: bool | None = None,
    synchronization: Any = tf.VariableSynchronization.AUTO,
    aggregation: Any = tf.VariableAggregation.NONE,
) -> Any:
    """A `variable` that is also in MODEL_VARIABLES: the ones a checkpoint of the model is made of.

    Args:
        collections: these, and GLOBAL_VARIABLES and MODEL_VARIABLES.

    Example:
        >>> with tf.Graph().as_default():
        ...     made = model_variable("v", [2])
        ...     get_model_variables() == [made]
        True
    """
    return variable(
        name,
        shape=shape,
        dtype=dtype,
        initializer=initializer,
        regularizer=regularizer,
        trainable=trainable,
        collections=[*(collections or []), v1.GraphKeys.GLOBAL_VARIABLES, v1.GraphKeys.MODEL_VARIABLES],
        caching_device=caching_device,
        device=device,
        partitioner=partitioner,
        custom_getter=custom_getter,
        use_resource=use_resource,
        synchronization=synchronization,
        aggregation=aggregation,
    )


def local_variable(
    initial_value: Any, validate_shape: bool = True, name: str | None = None, use_resource: bool | None = None
) -> Any:
    """A variable of this process only: in LOCAL_VARIABLES, not trained, not saved."""
    return v1.Variable(
        initial_value,
        trainable=False,
        collections=[v1.GraphKeys.LOCAL_VARIABLES],
        validate_shape=validate_shape,
        name=name,
        use_resource=use_resource,
    )


def global_variable(
    initial_value: Any, validate_shape: bool = True, name: str | None = None, use_resource: bool | None = None
) -> Any:
    """A variable in GLOBAL_VARIABLES that is not trained."""
    return v1.Variable(
        initial_value,
        trainable=False,
        collections=[v1.GraphKeys.GLOBAL_VARIABLES],
        validate_shape=validate_shape,
        name=name,
        use_resource=use_resource,
    )


def add_model_variable(var: Any) -> None:
    """Puts a variable into MODEL_VARIABLES, once."""
    add_once(v1.GraphKeys.MODEL_VARIABLES, [var])


def get_variables(
    scope: Any = None, suffix: str | None = None, collection: str = v1.GraphKeys.GLOBAL_VARIABLES
) -> list[Any]:
    """Variables of a collection whose name begins with `scope` and ends with `suffix`.

    Args:
        scope: a regular expression for the beginning of the name, or a variable scope. A bare `"conv1"` also finds
            `conv10/weights`.
        suffix: a regular expression for the end of the name.

    Example:
        >>> with tf.Graph().as_default():
        ...     made = [variable(name, [1]) for name in ("a/weights", "a/biases", "b/weights")]
        ...     [found.op.name for found in get_variables(suffix="weights")]
        ['a/weights', 'b/weights']
    """
    if isinstance(scope, v1.VariableScope):
        scope = scope.name
    if suffix is not None:
        scope = (scope or "") + ".*" + (suffix if ":" in suffix else suffix + ":")
    return v1.get_collection(collection, scope)


def get_model_variables(scope: Any = None, suffix: str | None = None) -> list[Any]:
    """`get_variables` of MODEL_VARIABLES."""
    return get_variables(scope, suffix, v1.GraphKeys.MODEL_VARIABLES)


def get_local_variables(scope: Any = None, suffix: str | None = None) -> list[Any]:
    """`get_variables` of LOCAL_VARIABLES."""
    return get_variables(scope, suffix, v1.GraphKeys.LOCAL_VARIABLES)


def get_trainable_variables(scope: Any = None, suffix: str | None = None) -> list[Any]:
    """`get_variables` of TRAINABLE_VARIABLES."""
    return get_variables(scope, suffix, v1.GraphKeys.TRAINABLE_VARIABLES)


def get_variables_by_suffix(suffix: str, scope: Any = None) -> list[Any]:
    """Global variables whose name ends with `suffix`."""
    return get_variables(scope, suffix)


def get_variables_by_name(given_name: str, scope: Any = None) -> list[Any]:
    """Global variables whose last name is `given_name`; one outside all scopes is found whatever the `scope`."""
    return get_variables(scope, f"/{given_name}:|^{given_name}:")


def get_unique_variable(var_op_name: str) -> Any:
    """The global variable of exactly this name, without `:0`.

    Raises:
        ValueError: no variable has it.
    """
    candidates = get_variables(var_op_name)
    if not candidates:
        raise ValueError(f"Couldn't find variable {var_op_name}; tf.global_variables() lists what there is")
    for candidate in candidates:
        if candidate.op.name == var_op_name:
            return candidate
    names = ", ".join(candidate.op.name for candidate in candidates)
    raise ValueError(f"Variable {var_op_name} does not uniquely identify a variable; it begins the names {names}")


def get_variable_full_name(var: Any) -> str:
    """The name of a variable in a checkpoint; all parts of a partitioned one have the same."""
    return var.to_proto().save_slice_info_def.full_name or var.op.name


def get_variables_to_restore(include: Any = None, exclude: Any = None) -> list[Any]:
    """Global variables, of some scopes only, without others.

    Args:
        include: list of scopes; all by default.
        exclude: list of scopes.

    Raises:
        TypeError: not a list or a tuple.
    """
    for name, value in (("include", include), ("exclude", exclude)):
        if value is not None and not isinstance(value, list | tuple):
            raise TypeError(f"{name} is provided but is not a list or a tuple; got {value!r}. Write [{value!r}].")
    included = get_variables() if include is None else [found for scope in include for found in get_variables(scope)]
    excluded = {id(found) for scope in exclude or () for found in get_variables(scope)}
    return [found for found in included if id(found) not in excluded]


def filter_variables(
    var_list: Iterable[Any],
    include_patterns: Iterable[str] | None = None,
    exclude_patterns: Iterable[str] | None = None,
    reg_search: bool = True,
) -> list[Any]:
    """Those of `var_list` whose name fits one of the included patterns and none of the excluded.

    Args:
        include_patterns: regular expressions; everything by default.
        reg_search: a pattern may fit anywhere in the name; otherwise at its beginning.
    """
    fits = re.search if reg_search else re.match

    def fits_any(patterns: Iterable[str], name: str) -> bool:
        return any(fits(pattern, name) for pattern in patterns)

    return [
        var
        for var in var_list
        if (include_patterns is None or fits_any(include_patterns, var.name))
        and not fits_any(exclude_patterns or (), var.name)
    ]
