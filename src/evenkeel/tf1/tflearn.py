# SPDX-License-Identifier: Apache-2.0
"""What `tflearn.batch_normalization` did, and the switch between training and inference it obeyed."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from evenkeel.errors import ArgumentError
from evenkeel.functional.batch_norm import Parameters
from evenkeel.functional.moving import State
from evenkeel.tf1 import steps
from evenkeel.tf1.graph import after
from evenkeel.tf1.train import assign_moving_average

v1 = tf.compat.v1

MODE = "is_training"  # collection and name of the variable
NO_RESTORE = "restore_variables"  # tflearn's own name of it, although they are those not restored


def batch_normalization(
    incoming: Any,
    beta: float = 0.0,
    gamma: float = 1.0,
    epsilon: float = 1e-5,
    decay: float = 0.9,
    stddev: float = 0.002,
    trainable: bool = True,
    restore: bool = True,
    reuse: bool = False,
    scope: Any = None,
    name: str = "BatchNormalization",
) -> Any:
    """Batch normalization over the last axis; `is_training` says with which statistics.

    The moving statistics are updated whenever the output is computed in training; nothing goes to UPDATE_OPS. Unlike
    there, a batch that is not finite, is empty or has one value a channel leaves them alone.

    Args:
        incoming: float32, shape `(..., channels)`.
        beta: where the offset starts.
        gamma: mean of the normal distribution the scale starts from.
        epsilon: added to the variance.
        decay: share of the old moving statistics that is kept.
        stddev: standard deviation of that distribution.
        trainable: offset and scale go to TRAINABLE_VARIABLES.
        restore: False puts the variables into the collection `restore_variables`.
        reuse: take the variables of `scope`.
        scope: variable scope; `name`, made unique, by default.

    Returns:
        `incoming` normalized, with attributes `scope`, `beta` and `gamma`.

    Raises:
        ValueError: `reuse` without `scope`.
        TypeError: `incoming` is not float32.

    Example:
        >>> with tf.Graph().as_default():
        ...     y = batch_normalization(tf.ones([8, 3]))
        ...     [variable.op.name for variable in v1.global_variables()]
        ['BatchNormalization/beta', 'BatchNormalization/gamma', 'BatchNormalization/moving_mean',
         'BatchNormalization/moving_variance', 'BatchNormalization/is_training']
    """
    incoming = tf.convert_to_tensor(incoming)
    if incoming.dtype != tf.float32:
        raise TypeError(
            f"incoming is {incoming.dtype.name}, and tflearn's variables are float32; tf.cast it to tf.float32"
        )
    shape = incoming.shape.as_list()
    with v1.variable_scope(scope, default_name=name, values=[incoming], reuse=reuse) as opened:

        def channels(name: str, initializer: Any, trainable: bool = False) -> Any:
            variable = _variable(name, shape[-1:], "float32", initializer, trainable)
            if not restore:
                v1.add_to_collection(NO_RESTORE, variable)
            return variable

        offset = channels("beta", v1.constant_initializer(beta), trainable)
        scale = channels("gamma", v1.random_normal_initializer(gamma, stddev), trainable)
        for variable in (offset, scale):
            v1.add_to_collection(f"layer_variables/{opened.name}", variable)
        moving_mean = channels("moving_mean", v1.zeros_initializer())
        moving_variance = channels("moving_variance", v1.ones_initializer())

        training = tf.convert_to_tensor(get_training_mode())
        params = Parameters(tf.convert_to_tensor(scale), tf.convert_to_tensor(offset))
        state = State(tf.convert_to_tensor(moving_mean), tf.convert_to_tensor(moving_variance))
        normalized, batch = steps.step(incoming, params, state, training, axis=-1, epsilon=epsilon)
        assert batch is not None, "the phase is a variable"

        def updated() -> Any:
            moved = (
                assign_moving_average(variable, value, decay, zero_debias=False)
                for variable, value in ((moving_mean, batch.moving_mean), (moving_variance, batch.moving_variance))
            )
            return after(moved, normalized)

        y = v1.cond(training, updated, lambda: tf.identity(normalized))
    y.scope, y.beta, y.gamma = opened, offset, scale
    v1.add_to_collection(f"layer_tensor/{opened.name}", y)
    return y


def is_training(is_training: bool = False, session: Any = None) -> None:
    """Switch the graph of a session to training or to inference; it starts in inference.

    Args:
        is_training: True for training.
        session: the default session by default.

    Raises:
        ArgumentError: there is no session.

    Example:
        >>> with tf.Graph().as_default(), v1.Session() as session:
        ...     mode = get_training_mode()
        ...     _ = session.run(v1.global_variables_initializer())
        ...     is_training(True)
        ...     bool(session.run(mode))
        True
    """
    session = session or v1.get_default_session()
    if session is None:
        raise ArgumentError("is_training needs a session, and there is no default one; give session=")
    with session.graph.as_default():
        start = get_training_mode().initializer
    # The initializer is an assignment, and feeding it adds nothing to the graph.
    session.run(start, {start.inputs[1]: is_training})


def get_training_mode() -> Any:
    """The bool variable that says whether the graph trains; made in the current variable scope when first asked for."""
    made = v1.get_collection(MODE)
    if made:
        return made[0]
    variable = _variable(MODE, [], "bool", v1.constant_initializer(False), trainable=False)
    v1.add_to_collection(MODE, variable)
    return variable


def _variable(name: str, shape: list[int], dtype: str, initializer: Any, trainable: bool) -> Any:
    collections = [v1.GraphKeys.GLOBAL_VARIABLES, v1.GraphKeys.MODEL_VARIABLES]
    return v1.get_variable(name, shape, dtype, initializer=initializer, trainable=trainable, collections=collections)
