# SPDX-License-Identifier: Apache-2.0
"""What every layer with weights does: its variables are the model's, then come normalizer, activation, collections."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf

from evenkeel.tf1.contrib.framework.variables import model_variable
from evenkeel.tf1.contrib.layers.utils import collect_named_outputs, get_variable_collections
from evenkeel.tf1.graph import add_once, parts

v1 = tf.compat.v1

KERNEL = {"kernel": "weights", "bias": "biases"}
# One function for all calls, as a default argument is one object.
ZEROS = v1.zeros_initializer()


def model_variable_getter(rename: Mapping[str, str] | None = None) -> Callable[..., Any]:
    """A custom getter that makes each variable a `model_variable`, under contrib's name for it.

    Args:
        rename: name in `tf.layers` -> name in `tf.contrib`.

    Example:
        >>> with tf.Graph().as_default(), v1.variable_scope("fc", custom_getter=model_variable_getter(KERNEL)):
        ...     v1.get_variable("kernel", [2]).op.name, len(v1.get_collection("model_variables"))
        ('fc/weights', 1)
    """

    def getter(
        getter: Callable[..., Any],
        name: str,
        shape: Any = None,
        dtype: Any = None,
        initializer: Any = None,
        regularizer: Any = None,
        trainable: bool = True,
        collections: Any = None,
        caching_device: Any = None,
        partitioner: Any = None,
        use_resource: bool | None = None,
        synchronization: Any = tf.VariableSynchronization.AUTO,
        aggregation: Any = tf.VariableAggregation.NONE,
        **_: Any,
    ) -> Any:
        *scopes, last = name.split("/")
        return model_variable(
            "/".join([*scopes, (rename or {}).get(last, last)]),
            shape=shape,
            dtype=dtype,
            initializer=initializer,
            regularizer=regularizer,
            trainable=trainable,
            collections=collections,
            caching_device=caching_device,
            partitioner=partitioner,
            custom_getter=getter,
            use_resource=use_resource,
            synchronization=synchronization,
            aggregation=aggregation,
        )

    return getter


def add_variable_to_collections(variable: Any, variables_collections: Any, name: str) -> None:
    """Puts a variable, or each part of a partitioned one, into collections, once."""
    for collection in get_variable_collections(variables_collections, name) or []:
        add_once(collection, parts(variable))


def finish(
    outputs: Any,
    scope: str,
    *,
    activation_fn: Callable[[Any], Any] | None,
    outputs_collections: Any,
    normalizer_fn: Callable[..., Any] | None = None,
    normalizer_params: Mapping[str, Any] | None = None,
) -> Any:
    """Normalizer, then activation; the result is collected under the name of the scope."""
    if normalizer_fn is not None:
        outputs = normalizer_fn(outputs, **(normalizer_params or {}))
    if activation_fn is not None:
        outputs = activation_fn(outputs)
    return collect_named_outputs(outputs_collections, scope, outputs)


def weighted(
    layer_class: Callable[..., Any],
    inputs: Any,
    default_scope: str,
    arguments: Mapping[str, Any],
    *,
    normalizer_fn: Callable[..., Any] | None,
    biases_initializer: Any,
    biases_regularizer: Any,
    reuse: Any,
    variables_collections: Any,
    trainable: bool,
    scope: Any,
    rename: Mapping[str, str] = KERNEL,
    **finishing: Any,
) -> Any:
    """The output of a layer of `tf.layers` with weights, as `tf.contrib.layers` has it.

    A normalizer takes the place of the biases: it has an offset of its own.

    Args:
        layer_class: of `tf.layers`.
        default_scope: its variables live here, made unique, if there is no `scope`.
        arguments: of `layer_class`; those below come on top.
        rename: attribute and variable of the layer -> the name of that variable here.
        finishing: the rest of the arguments of `finish`.
    """
    getter = model_variable_getter(rename)
    with v1.variable_scope(scope, default_scope, [inputs], reuse=reuse, custom_getter=getter) as variable_scope:
        inputs = tf.convert_to_tensor(inputs)
        layer = layer_class(
            **arguments,
            activation=None,
            use_bias=normalizer_fn is None and biases_initializer is not None,
            bias_initializer=biases_initializer,
            bias_regularizer=biases_regularizer,
            trainable=trainable,
            name=variable_scope.name,
            dtype=inputs.dtype.base_dtype,
            _scope=variable_scope,
            _reuse=reuse,
        )
        outputs = layer(inputs)
        for attribute in rename:
            variable = getattr(layer, attribute)
            if variable is not None:
                key = "biases" if attribute == "bias" else "weights"
                add_variable_to_collections(variable, variables_collections, key)
        return finish(outputs, variable_scope.name, normalizer_fn=normalizer_fn, **finishing)


def channels_axis(data_format: str | None, allowed: tuple[str, ...]) -> str:
    """`"channels_first"` or `"channels_last"`, for one of the `allowed` formats.

    Raises:
        ValueError: another format.

    Example:
        >>> channels_axis("NCHW", ("NCHW", "NHWC"))
        'channels_first'
    """
    if data_format not in allowed:
        raise ValueError(f"data_format has to be either {' or '.join(allowed)}. Got {data_format!r}.")
    return "channels_first" if data_format.startswith("NC") else "channels_last"


IMAGES = ("NCHW", "NHWC")
VOLUMES = ("NCDHW", "NDHWC")
