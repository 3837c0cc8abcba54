# SPDX-License-Identifier: Apache-2.0
"""How values reach variables that exist: from a checkpoint, or from a dict of arrays."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf

from evenkeel.tf1.contrib.framework.variables import get_unique_variable, get_variable_full_name

v1 = tf.compat.v1


def assign_from_values(var_names_to_values: Mapping[str, Any]) -> tuple[Any, dict[Any, Any]]:
    """An operation that gives variables these values, and its feed.

    Args:
        var_names_to_values: name of a global variable, without `:0` -> its array.

    Raises:
        ValueError: no variable has that name, or the array has another size.

    Example:
        >>> with tf.Graph().as_default(), v1.Session() as session:
        ...     v = v1.get_variable("v", [2])
        ...     session.run(*assign_from_values({"v": np.array([1.0, 2.0])}))
        ...     v.eval().tolist()
        [1.0, 2.0]
    """
    assigns, feed = [], {}
    for name, value in var_names_to_values.items():
        var = get_unique_variable(name)
        placeholder = v1.placeholder(var.dtype.base_dtype, var.shape, name="placeholder/" + var.op.name)
        assigns.append(var.assign(placeholder))
        feed[placeholder] = value.reshape(var.shape.as_list())
    return tf.group(*assigns), feed


def assign_from_values_fn(var_names_to_values: Mapping[str, Any]) -> Callable[[Any], Any]:
    """A function of a session that gives variables these values; such as `init_fn` of slim's `train`."""
    assign, feed = assign_from_values(var_names_to_values)
    return lambda session: session.run(assign, feed)


def assign_from_checkpoint(
    model_path: str, var_list: Any, ignore_missing_vars: bool = False
) -> tuple[Any, dict[Any, Any]]:
    """An operation that gives variables what a checkpoint holds, and its feed.

    Args:
        model_path: prefix of the checkpoint, as from `tf.train.latest_checkpoint`.
        var_list: variables, each stored under its own name; or name in the checkpoint -> variable or list of them.
        ignore_missing_vars: leave out what the checkpoint lacks.

    Raises:
        ValueError: the checkpoint lacks a variable, or has it with another shape.
    """
    if not isinstance(var_list, Mapping):
        grouped: dict[str, Any] = {}
        for var in var_list:
            grouped.setdefault(get_variable_full_name(var), []).append(var)
    else:
        grouped = {name: value if isinstance(value, list | tuple) else [value] for name, value in var_list.items()}
    reader = v1.train.load_checkpoint(model_path)
    assigns, feed = [], {}
    for name, variables in grouped.items():
        if not reader.has_tensor(name):
            text = f"Checkpoint is missing variable [{name}]"
            if not ignore_missing_vars:
                raise ValueError(f"{text}; {model_path} was asked. ignore_missing_vars=True leaves it out.")
            v1.logging.warning(text)
            continue
        stored = reader.get_tensor(name)
        for var in variables:
            value = _part(stored, var)
            if var.shape.as_list() != list(value.shape):
                raise ValueError(
                    f"Total size of new array must be unchanged for {name} lh_shape: [{value.shape}], "
                    f"rh_shape: [{var.shape}]"
                )
            placeholder = v1.placeholder(var.dtype.base_dtype, var.shape, name="placeholder/" + var.op.name)
            assigns.append(var.assign(placeholder))
            feed[placeholder] = value
    return tf.group(*assigns), feed


def assign_from_checkpoint_fn(
    model_path: str, var_list: Any, ignore_missing_vars: bool = False, reshape_variables: bool = False
) -> Callable[[Any], Any] | None:
    """A function of a session that restores variables; None where the checkpoint has none of them.

    Args:
        reshape_variables: a stored array of the same size and another shape will do.

    Raises:
        ValueError: an empty `var_list`.
    """
    if not var_list:
        raise ValueError("var_list cannot be empty; give the variables to restore")
    if ignore_missing_vars:
        reader = v1.train.load_checkpoint(model_path)
        wanted = var_list if isinstance(var_list, Mapping) else {var.op.name: var for var in var_list}
        for name in wanted:
            if not reader.has_tensor(name):
                v1.logging.warning("Variable %s missing in checkpoint %s", name, model_path)
        var_list = {name: var for name, var in wanted.items() if reader.has_tensor(name)}
    if not var_list:
        v1.logging.warning("No Variables to restore")
        return None
    saver = v1.train.Saver(var_list, reshape=reshape_variables)
    return lambda session: saver.restore(session, model_path)


def _part(stored: Any, var: Any) -> Any:
    """What of the stored array belongs to a variable, which may be a part of a partitioned one."""
    info = var.to_proto().save_slice_info_def
    corners = zip(info.var_offset, info.var_shape, strict=True)
    return stored[tuple(slice(start, start + size) for start, size in corners)] if info.full_name else stored
