# SPDX-License-Identifier: Apache-2.0
"""`tf.contrib.opt`: the optimizer that keeps moving averages of what it trains."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from evenkeel.tf1.contrib.paths import register

v1 = tf.compat.v1


class MovingAverageOptimizer(tf.compat.v1.train.Optimizer):
    """An optimizer, and after each of its steps the moving averages of the variables it changed.

    Args:
        opt: the optimizer.
        average_decay: share of the old average that is kept.
        num_updates: scalar variable, that lowers the decay at the beginning: at most `(1 + n) / (10 + n)`.
        sequential_update: averages after the step; otherwise beside it, in no order.

    Example:
        >>> with tf.Graph().as_default(), v1.Session() as session:
        ...     w = v1.get_variable("w", initializer=4.0)
        ...     optimizer = MovingAverageOptimizer(v1.train.GradientDescentOptimizer(0.25), average_decay=0.5)
        ...     train = optimizer.minimize(w * w)
        ...     saver = optimizer.swapping_saver()
        ...     session.run(v1.global_variables_initializer())
        ...     session.run(train)
        ...     float(session.run(w)), float(session.run(v1.global_variables("w/Exp")[0]))
        (2.0, 3.0)
    """

    def __init__(
        self, opt: Any, average_decay: float = 0.9999, num_updates: Any = None, sequential_update: bool = True
    ) -> None:
        super().__init__(use_locking=False, name="MovingAverageOptimizer")
        self._optimizer = opt
        self._average = v1.train.ExponentialMovingAverage(average_decay, num_updates=num_updates)
        self._sequential_update = sequential_update
        self._averaged: list[Any] | None = None

    def compute_gradients(self, *args: Any, **kwargs: Any) -> Any:
        return self._optimizer.compute_gradients(*args, **kwargs)

    def apply_gradients(self, grads_and_vars: Any, global_step: Any = None, name: str | None = None) -> Any:
        pairs = list(grads_and_vars)
        step = self._optimizer.apply_gradients(pairs, global_step=global_step, name=name)
        self._averaged = [variable for gradient, variable in pairs if gradient is not None]
        with tf.control_dependencies([step] if self._sequential_update else []):
            average = self._average.apply(self._averaged)
        return tf.group(step, average)

    def swapping_saver(self, var_list: Any = None, name: str = "swapping_saver", **kwargs: Any) -> Any:
        """A saver that stores each average under the name of its variable, and the variable under that of the average.

        What it saves gives the averages to a graph that knows only the variables.

        Raises:
            RuntimeError: called before `minimize` or `apply_gradients`.
        """
        if self._averaged is None:
            raise RuntimeError("Must call apply_gradients or minimize before creating the swapping_saver")
        stored = v1.global_variables() if var_list is None else var_list
        names = stored if isinstance(stored, dict) else {variable.op.name: variable for variable in stored}
        swapped = dict(names)
        of_variable = {id(variable): key for key, variable in names.items()}
        for variable in self._averaged:
            average = self._average.average(variable)
            if id(variable) in of_variable and id(average) in of_variable:
                swapped[of_variable[id(variable)]], swapped[of_variable[id(average)]] = average, variable
        return v1.train.Saver(swapped, name=name, **kwargs)


register(__name__, "python.training", moving_average_optimizer="")

__all__ = ["MovingAverageOptimizer"]
