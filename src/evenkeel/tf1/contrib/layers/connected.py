# SPDX-License-Identifier: Apache-2.0
"""How layers connect every input with every output."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf

from evenkeel.tf1.contrib.framework.scopes import add_arg_scope
from evenkeel.tf1.contrib.layers.initializers import xavier_initializer
from evenkeel.tf1.contrib.layers.weighted import ZEROS, weighted
from evenkeel.tf1.layers.core import Dense


@add_arg_scope
def fully_connected(
    inputs: Any,
    num_outputs: int,
    activation_fn: Callable[[Any], Any] | None = tf.nn.relu,
    normalizer_fn: Callable[..., Any] | None = None,
    normalizer_params: Mapping[str, Any] | None = None,
    weights_initializer: Any = xavier_initializer(),  # noqa: B008
    weights_regularizer: Callable[[Any], Any] | None = None,
    biases_initializer: Any = ZEROS,
    biases_regularizer: Callable[[Any], Any] | None = None,
    reuse: Any = None,
    variables_collections: Any = None,
    outputs_collections: Any = None,
    trainable: bool = True,
    scope: Any = None,
) -> Any:
    """`activation_fn(inputs @ weights + biases)` over the last axis; with a normalizer, `normalizer_fn` for the biases.

    Args:
        inputs: shape `(batch, ..., channels)`.
        num_outputs: size of the last axis of the output.
        normalizer_fn: such as `batch_norm`; called with `normalizer_params` and nothing else: not `trainable`, not
            `reuse`.
        biases_initializer: None for no biases.
        variables_collections: list of collections for all variables, or `"weights"`, `"biases"` -> list.
        outputs_collections: collection, or list of them, of the output; its alias is the name of the scope.
        scope: of the variables; `fully_connected`, made unique, by default.

    Raises:
        ValueError: `num_outputs` is not an integer, the last axis of `inputs` is unknown, or there is only one.

    Example:
        >>> with tf.Graph().as_default():
        ...     y = fully_connected(tf.ones([8, 3]), 5)
        ...     y.op.name, [variable.op.name for variable in tf.compat.v1.model_variables()]
        ('fully_connected/Relu', ['fully_connected/weights', 'fully_connected/biases'])
    """
    if not hasattr(num_outputs, "__index__"):
        raise ValueError(f"num_outputs type should be one of [int], got {type(num_outputs)}; round it")
    return weighted(
        Dense,
        inputs,
        "fully_connected",
        {"units": num_outputs, "kernel_initializer": weights_initializer, "kernel_regularizer": weights_regularizer},
        activation_fn=activation_fn,
        normalizer_fn=normalizer_fn,
        normalizer_params=normalizer_params,
        biases_initializer=biases_initializer,
        biases_regularizer=biases_regularizer,
        reuse=reuse,
        variables_collections=variables_collections,
        outputs_collections=outputs_collections,
        trainable=trainable,
        scope=scope,
    )


elu = functools.partial(fully_connected, activation_fn=tf.nn.elu)
linear = functools.partial(fully_connected, activation_fn=None)
relu = functools.partial(fully_connected, activation_fn=tf.nn.relu)
relu6 = functools.partial(fully_connected, activation_fn=tf.nn.relu6)
