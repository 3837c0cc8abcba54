# SPDX-License-Identifier: Apache-2.0
"""`tf.contrib.framework`: `arg_scope`, and variables of a model."""

from __future__ import annotations

import tensorflow as tf

from evenkeel.tf1.contrib.framework.checkpoints import (
    assign_from_checkpoint,
    assign_from_checkpoint_fn,
    assign_from_values,
    assign_from_values_fn,
)
from evenkeel.tf1.contrib.framework.scopes import (
    add_arg_scope,
    arg_scope,
    arg_scope_func_key,
    arg_scoped_arguments,
    current_arg_scope,
    has_arg_scope,
)
from evenkeel.tf1.contrib.framework.variables import (
    add_model_variable,
    filter_variables,
    get_local_variables,
    get_model_variables,
    get_trainable_variables,
    get_unique_variable,
    get_variable_full_name,
    get_variables,
    get_variables_by_name,
    get_variables_by_suffix,
    get_variables_to_restore,
    global_variable,
    local_variable,
    model_variable,
    variable,
)
from evenkeel.tf1.contrib.paths import register

v1 = tf.compat.v1

argsort, sort = v1.argsort, v1.sort
assert_global_step = v1.train.assert_global_step
assert_same_float_dtype, assert_scalar = v1.debugging.assert_same_float_dtype, v1.debugging.assert_scalar
create_global_step, get_global_step = v1.train.create_global_step, v1.train.get_global_step
get_or_create_global_step = v1.train.get_or_create_global_step
init_from_checkpoint = v1.train.init_from_checkpoint
is_non_decreasing, is_strictly_increasing = v1.debugging.is_non_decreasing, v1.debugging.is_strictly_increasing
is_numeric_tensor, is_tensor = v1.debugging.is_numeric_tensor, v1.is_tensor
list_variables, load_checkpoint = v1.train.list_variables, v1.train.load_checkpoint
load_variable = v1.train.load_variable
nest = v1.nest
py_func = v1.py_func
CriticalSection, TensorSpec = v1.CriticalSection, v1.TensorSpec


def get_name_scope() -> str:
    """The current name scope, such as `"net/conv1"`.

    Example:
        >>> with tf.Graph().as_default(), tf.name_scope("net"):
        ...     get_name_scope()
        'net'
    """
    return v1.get_default_graph().get_name_scope()


register(__name__, "python.framework", checkpoint_utils="", tensor_util="")
register(__name__, "python.ops", add_arg_scope="", arg_scope="", ops="", variables="")

__all__ = [
    "CriticalSection",
    "TensorSpec",
    "add_arg_scope",
    "add_model_variable",
    "arg_scope",
    "arg_scope_func_key",
    "arg_scoped_arguments",
    "argsort",
    "assert_global_step",
    "assert_same_float_dtype",
    "assert_scalar",
    "assign_from_checkpoint",
    "assign_from_checkpoint_fn",
    "assign_from_values",
    "assign_from_values_fn",
    "create_global_step",
    "current_arg_scope",
    "filter_variables",
    "get_global_step",
    "get_local_variables",
    "get_model_variables",
    "get_name_scope",
    "get_or_create_global_step",
    "get_trainable_variables",
    "get_unique_variable",
    "get_variable_full_name",
    "get_variables",
    "get_variables_by_name",
    "get_variables_by_suffix",
    "get_variables_to_restore",
    "global_variable",
    "has_arg_scope",
    "init_from_checkpoint",
    "is_non_decreasing",
    "is_numeric_tensor",
    "is_strictly_increasing",
    "is_tensor",
    "list_variables",
    "load_checkpoint",
    "load_variable",
    "local_variable",
    "model_variable",
    "nest",
    "py_func",
    "sort",
    "variable",
]
