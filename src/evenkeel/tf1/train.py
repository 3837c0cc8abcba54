# SPDX-License-Identifier: Apache-2.0
"""Where an average goes after one more value: the moving averages that TensorFlow 2 does not show any more.

`assign_moving_average` and `weighted_moving_average` were in `tensorflow.python.training.moving_averages`. `Saver` and
`import_meta_graph` come from `saving`. All else of `tf.train` is TensorFlow's own; `ExponentialMovingAverage` has kept
its numbers and names.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from evenkeel.tf1.passing import passing
from evenkeel.tf1.saving import MissingStatisticsWarning, Saver, import_meta_graph

v1 = tf.compat.v1

__getattr__, __dir__ = passing(__name__, "tensorflow.compat.v1.train")


def assign_moving_average(
    variable: Any, value: Any, decay: Any, zero_debias: bool = True, name: str | None = None
) -> Any:
    """`variable -= (variable - value) * (1 - decay)`.

    With `zero_debias`, what is averaged starts at zero whatever the variable holds, and the variable gets that average
    over `1 - decay ** updates`: after one update it is the value. The average and the number of updates are variables,
    `biased` and `local_step`, in the variable scope of the variable's full name, within the current scope.

    Args:
        variable: of floating point.
        value: shape of the variable.
        decay: share of the old average that is kept; a number or a scalar tensor. `1 - decay` of a number is rounded to
            float32, whatever the type of the variable.
        zero_debias: as above.
        name: of the operation.

    Returns:
        The updated variable.

    Raises:
        ValueError: `biased` does not exist and the variable scope says `reuse=True`.

    Example:
        >>> with tf.Graph().as_default(), v1.Session() as session:
        ...     average = v1.get_variable("average", initializer=8.0)
        ...     update = assign_moving_average(average, 4.0, decay=0.75, zero_debias=False)
        ...     _ = session.run(v1.global_variables_initializer())
        ...     float(session.run(update))
        7.0
    """
    with v1.name_scope(name, "AssignMovingAvg", [variable, value, decay]) as scope:
        share = tf.cast(tf.convert_to_tensor(1.0 - decay, name="decay"), variable.dtype.base_dtype)
        if not zero_debias:
            return v1.assign_sub(variable, (variable - value) * share, name=scope)
        biased, steps = _debiasing(variable)
        biased = v1.assign_sub(biased, (biased - value) * share)
        steps = v1.assign_add(steps, tf.ones([], share.dtype))
        return v1.assign(variable, biased / (1 - tf.pow(1.0 - share, steps)), name=scope)


def weighted_moving_average(
    value: Any,
    decay: Any,
    weight: Any,
    truediv: bool = True,
    collections: Sequence[str] | None = None,
    name: str | None = None,
) -> Any:
    """The moving average of `value * weight` over that of `weight`; both start at zero and are updated when it is run.

    Args:
        value: of floating point.
        decay: share of the old averages that is kept.
        weight: shape that broadcasts to that of `value`.
        truediv: divide integers as numbers; with False their quotient is an integer.
        collections: of the variables `value_x_weight` and `weight`; GLOBAL_VARIABLES by default.
        name: variable scope of the two; `WeightedMovingAvg` by default, made unique.

    Returns:
        The new average, in the shape of `value`.

    Example:
        >>> with tf.Graph().as_default(), v1.Session() as session:
        ...     average = weighted_moving_average(tf.constant(3.0), 0.9, tf.constant(2.0))
        ...     _ = session.run(v1.global_variables_initializer())
        ...     round(float(session.run(average)), 5)
        3.0
    """
    with v1.variable_scope(name, "WeightedMovingAvg", [value, weight, decay]) as scope:

        def averaged(name: str, value: Any) -> Any:
            variable = _zeros(name, value.shape, value.dtype, collections)
            return assign_moving_average(variable, value, decay, zero_debias=False)

        total, weights = averaged("value_x_weight", value * weight), averaged("weight", weight)
        divide = tf.truediv if truediv else v1.div
        return divide(total, weights, name=scope.name)


def _debiasing(variable: Any) -> tuple[Any, Any]:
    """The average that starts at zero, and the number of updates it has had; `_1` and so on where they are taken."""
    with v1.variable_scope(variable.op.name), v1.device(variable.device):
        dtype = variable.dtype.base_dtype
        return _zeros(_unused("biased"), variable.shape, dtype), _zeros(_unused("local_step"), [], dtype)


def _zeros(name: str, shape: Any, dtype: Any, collections: Sequence[str] | None = None) -> Any:
    return v1.get_variable(
        name, shape, dtype, initializer=v1.zeros_initializer(), trainable=False, collections=collections
    )


def _unused(name: str) -> str:
    """The name, with a number where the variable scope has such a variable already, unless it reuses."""
    scope = v1.get_variable_scope()
    taken = () if scope.reuse else {variable.op.name for variable in scope.global_variables()}
    candidates = itertools.chain([name], (f"{name}_{number}" for number in itertools.count(1)))
    return next(candidate for candidate in candidates if f"{scope.name}/{candidate}" not in taken)


__all__ = [
    "MissingStatisticsWarning",
    "Saver",
    "assign_moving_average",
    "import_meta_graph",
    "weighted_moving_average",
]
