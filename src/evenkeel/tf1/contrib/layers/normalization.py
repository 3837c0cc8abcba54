# SPDX-License-Identifier: Apache-2.0
"""`tf.contrib.layers.batch_norm`: three ways, of which each is a row of `dialects.CONTRIB`, over one computation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from evenkeel.dialects import CONTRIB, ContribPath
from evenkeel.functional.batch_norm import Parameters
from evenkeel.functional.moving import State
from evenkeel.tf1 import steps
from evenkeel.tf1.contrib.framework.scopes import add_arg_scope
from evenkeel.tf1.contrib.framework.variables import model_variable
from evenkeel.tf1.contrib.layers.utils import collect_named_outputs, get_variable_collections, smart_cond
from evenkeel.tf1.contrib.layers.weighted import add_variable_to_collections, model_variable_getter
from evenkeel.tf1.graph import after, can_be_run
from evenkeel.tf1.layers.normalization import BatchNormalization
from evenkeel.tf1.train import assign_moving_average

v1 = tf.compat.v1

_INITIALIZERS = {
    "beta": v1.zeros_initializer,
    "gamma": v1.ones_initializer,
    "moving_mean": v1.zeros_initializer,
    "moving_variance": v1.ones_initializer,
}


@add_arg_scope
def batch_norm(
    inputs: Any,
    decay: Any = 0.999,
    center: bool = True,
    scale: bool = False,
    epsilon: float = 0.001,
    activation_fn: Callable[[Any], Any] | None = None,
    param_initializers: dict[str, Any] | None = None,
    param_regularizers: dict[str, Any] | None = None,
    updates_collections: Any = v1.GraphKeys.UPDATE_OPS,
    is_training: Any = True,
    reuse: Any = None,
    variables_collections: Any = None,
    outputs_collections: Any = None,
    trainable: bool = True,
    batch_weights: Any = None,
    fused: bool | None = None,
    data_format: str = "NHWC",
    zero_debias_moving_mean: bool = False,
    scope: Any = None,
    renorm: bool = False,
    renorm_clipping: dict[str, Any] | None = None,
    renorm_decay: float = 0.99,
    adjustment: Callable[[Any], tuple[Any, Any]] | None = None,
) -> Any:
    """Batch normalization of `tf.contrib.layers` and slim in TensorFlow 1.15: usable in `arg_scope`.

    Two updates a call go to UPDATE_OPS, to be run with the training step (`slim.learning.create_train_op` does):

        update_ops = tf.get_collection(tf.GraphKeys.UPDATE_OPS)
        with tf.control_dependencies(update_ops):
            train_op = optimizer.minimize(loss)

    Unlike there, a batch that is not finite, is empty or has one value a channel leaves the moving statistics alone,
    and `data_format="NCHW"` works on the CPU.

    Args:
        inputs: floating point, shape `(batch, ..., channels)`, or `(batch, channels, ...)` with `"NCHW"`.
        decay: share of the old average that is kept; a number or a tensor.
        center, scale: have beta, have gamma. No gamma by default: a layer that follows can take its place.
        epsilon: added to the variance.
        activation_fn: applied to the output.
        param_initializers, param_regularizers: by name of the variable.
        updates_collections: where the updates go; None makes the output depend on them instead. The updates of any
            but `tf.GraphKeys.UPDATE_OPS` itself are tensors.
        is_training: a bool or a bool tensor.
        reuse: of the variables; wants `scope`.
        variables_collections: a list of collections for all variables, or a dictionary of lists by name.
        outputs_collections: for the output.
        trainable: gamma and beta go to TRAINABLE_VARIABLES.
        batch_weights: shape `(batch,)`; how much each example counts.
        fused: False keeps the population variance for two and four dimensions, where the sample variance is kept.
        data_format: "NHWC" or "NCHW".
        zero_debias_moving_mean: the moving mean is divided by `1 - decay ** updates`, which two more variables count.
        scope: of the variables; `BatchNorm`, made unique, by default.
        renorm, renorm_clipping, renorm_decay, adjustment: as in `tf.layers.batch_normalization`.

    Returns:
        Shape and type of `inputs`.

    Raises:
        ValueError: unknown rank, channels or data format; renorm beside `batch_weights`, `zero_debias_moving_mean` or
            other `updates_collections`; reuse without `scope`.

    Example:
        >>> with tf.Graph().as_default():
        ...     y = batch_norm(tf.ones([8, 3]), scope="bn")
        ...     [variable.op.name for variable in tf.compat.v1.model_variables()]
        ['bn/beta', 'bn/moving_mean', 'bn/moving_variance']

    References:
        Ioffe and Szegedy 2015, Batch Normalization. tf.contrib.layers of TensorFlow 1.15.
    """
    if data_format not in ("NHWC", "NCHW"):
        raise ValueError(f"data_format has to be either NCHW or NHWC, not {data_format!r}.")
    inputs = tf.convert_to_tensor(inputs)
    rank = inputs.shape.rank
    into_default = updates_collections is v1.GraphKeys.UPDATE_OPS
    plain = batch_weights is None and not zero_debias_moving_mean and into_default
    fusable = fused is not False and batch_weights is None and not renorm and rank in (2, 4) and adjustment is None
    path = CONTRIB["fused" if fusable and (rank == 2 or not plain) else "core" if plain else "legacy"]
    getter = None if path is CONTRIB["fused"] else model_variable_getter()
    with v1.variable_scope(scope, "BatchNorm", [inputs], reuse=reuse, custom_getter=getter) as variable_scope:
        if rank is None:
            raise ValueError(f"Inputs {inputs.name} has undefined rank; call set_shape on it")
        axis = 1 if data_format == "NCHW" else rank - 1
        initializers = {
            name: (param_initializers or {}).get(name, default()) for name, default in _INITIALIZERS.items()
        }
        regularizers = (param_regularizers or {}) if path.regularizes else {}
        if path is CONTRIB["core"]:
            layer = BatchNormalization(
                axis=axis,
                momentum=decay,
                epsilon=epsilon,
                center=center,
                scale=scale,
                **{f"{name}_initializer": initializer for name, initializer in initializers.items()},
                beta_regularizer=regularizers.get("beta"),
                gamma_regularizer=regularizers.get("gamma"),
                trainable=trainable,
                renorm=renorm,
                renorm_clipping=renorm_clipping,
                renorm_momentum=renorm_decay,
                adjustment=adjustment,
                name=variable_scope.name,
                _scope=variable_scope,
                _reuse=reuse,
                fused=fused,
            )
            outputs = layer(inputs, training=is_training)
            for name in ("moving_mean", "moving_variance", "beta", "gamma"):
                if (variable := getattr(layer, name)) is not None:
                    add_variable_to_collections(variable, variables_collections, name)
        else:
            if renorm:
                raise ValueError(
                    "renorm is not supported with batch_weights, updates_collections or zero_debias_moving_mean; "
                    "leave them out, or renorm"
                )
            if is_training is None:
                raise ValueError("is_training is None; give True, False or a bool tensor")
            outputs = _normalized(
                path,
                inputs,
                {
                    name: _variable(
                        path, name, inputs, axis, initializer, regularizers, variables_collections, trainable
                    )
                    for name, initializer in ((name, initializers[name]) for name in path.order)
                    if {"beta": center, "gamma": scale}.get(name, True)
                },
                steps.phase(is_training),
                updates_collections,
                zero_debias_moving_mean,
                axis=axis,
                decay=decay,
                epsilon=steps.fused_epsilon(epsilon) if path.keeps == "sample" else epsilon,
                weights=_by_row(batch_weights, inputs),
            )
        outputs.set_shape(inputs.shape)
        if activation_fn is not None:
            outputs = activation_fn(outputs)
        return collect_named_outputs(outputs_collections, variable_scope.name, outputs)


def _variable(
    path: ContribPath,
    name: str,
    inputs: Any,
    axis: int,
    initializer: Any,
    regularizers: dict[str, Any],
    variables_collections: Any,
    trainable: bool,
) -> Any:
    size = inputs.shape.as_list()[axis]
    if size is None:
        raise ValueError(
            f"`C` dimension must be known but is None: inputs {inputs.name} have undefined channels dimension {axis} "
            f"in shape {inputs.shape}; call set_shape on them"
        )

    def made() -> Any:
        return model_variable(
            name,
            shape=[size],
            dtype=tf.float32 if path.widens else inputs.dtype.base_dtype,
            initializer=initializer,
            regularizer=regularizers.get(name),
            collections=get_variable_collections(variables_collections, name),
            trainable=trainable and not name.startswith("moving_"),
        )

    if not name.startswith("moving_"):
        return made()
    with steps.unpartitioned(v1.get_variable_scope()):
        return made()


def _by_row(batch_weights: Any, inputs: Any) -> Any:
    """Weights of shape `(batch,)` in a shape that broadcasts against the inputs."""
    if batch_weights is None:
        return None
    batch_weights = tf.convert_to_tensor(batch_weights)
    inputs.shape[:1].assert_is_compatible_with(batch_weights.shape)
    return tf.reshape(batch_weights, [-1] + [1] * (inputs.shape.rank - 1))


def _normalized(
    path: ContribPath,
    inputs: Any,
    variables: dict[str, Any],
    training: Any,
    updates_collections: Any,
    zero_debias: bool,
    *,
    axis: int,
    decay: Any,
    epsilon: float,
    weights: Any,
) -> Any:
    """The output; the updates are in their collections, or the output waits for them."""
    steps.check_type(inputs)
    if path.keeps == "sample":
        steps.check_fused_type(inputs.dtype, "give fused=False for float64")
    mean, variance = variables["moving_mean"], variables["moving_variance"]
    outputs, batch = steps.step(
        inputs,
        Parameters(
            *(tf.convert_to_tensor(variables[name]) if name in variables else None for name in ("gamma", "beta"))
        ),
        State(tf.convert_to_tensor(mean), tf.convert_to_tensor(variance)),
        training,
        axis=axis,
        epsilon=epsilon,
        bessel_correction=path.keeps == "sample",
        sample_weight=weights,
        cond="cond_1" if path is CONTRIB["legacy"] else None,  # 1.15 made that of the updates first there
    )
    if path is CONTRIB["legacy"] or inputs.shape.rank == 4:
        outputs = tf.identity(outputs, name=steps.output_name(path.keeps == "sample", training))
    if batch is None:
        return outputs

    def updates() -> tuple[Any, Any]:
        return (
            assign_moving_average(mean, batch.moving_mean, decay, zero_debias=zero_debias),
            assign_moving_average(variance, batch.moving_variance, decay, zero_debias=False),
        )

    if updates_collections is None:
        return smart_cond(training, lambda: after(updates(), outputs), lambda: tf.identity(outputs))
    made = smart_cond(training, updates, lambda: (tf.identity(mean), tf.identity(variance)))
    if not can_be_run(update.op for update in made):
        return after(made, outputs)
    for update in made:
        v1.add_to_collections(updates_collections, update)
    return outputs
