# SPDX-License-Identifier: Apache-2.0
"""What the layers of `tf.layers` and of Keras, which keep their variables each in their way, do with a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from evenkeel.backends.tensorflow import primitives
from evenkeel.functional import moving
from evenkeel.functional.batch_norm import Parameters
from evenkeel.functional.layout import Layout
from evenkeel.functional.moving import State
from evenkeel.functional.renorm import Limits, Renorm
from evenkeel.tf1 import steps
from evenkeel.tf1.train import assign_moving_average

v1 = tf.compat.v1


class Normalizer:
    """A layer with TensorFlow 1.15's batch normalization, whoever makes its variables; mixed into that layer's class.

    The layer has the arguments and the variables of `tf.layers.BatchNormalization` as attributes, `fused` decided.
    """

    momentum: Any
    epsilon: float
    renorm: bool
    renorm_clipping: Any
    renorm_momentum: Any
    fused: bool | None
    virtual_batch_size: int | None
    adjustment: Any
    gamma: Any
    beta: Any
    moving_mean: Any
    moving_variance: Any
    moving_stddev: Any
    renorm_mean: Any
    renorm_stddev: Any

    def can_be_fused(self, ndim: int, channels: Sequence[int]) -> bool:
        """Whether 1.15 had a fused operation for it, which keeps the sample variance."""
        return (
            ndim == 4
            and list(channels) in ([1], [3])
            and not self.renorm
            and self.virtual_batch_size is None
            and self.adjustment is None
        )

    def normalized(self, inputs: Any, training: Any, channels: Sequence[int]) -> tuple[Any, list[Any]]:
        """The output of a call, and the operations that move the statistics.

        Args:
            inputs: floating point, `(batch, ..., channels, ...)`.
            training: from `steps.phase`.
            channels: axes of `inputs`.
        """
        steps.check_type(inputs)
        adjustment = self.adjustment
        x = inputs if self.virtual_batch_size is None else steps.strided_groups(inputs, self.virtual_batch_size)
        layout = Layout.of(inputs.shape.rank, channels)
        variables = {name: getattr(self, name, None) for name in State._fields[:-1]}
        y, batch = steps.step(
            x,
            Parameters(self._flat(self.gamma, layout), self._flat(self.beta, layout)),
            State(**{name: self._flat(value, layout) for name, value in variables.items()}),
            training,
            axis=list(channels),
            epsilon=steps.fused_epsilon(self.epsilon) if self.fused else self.epsilon,
            bessel_correction=bool(self.fused),
            renorm=Renorm(Limits.of(self.renorm_clipping), momentum=0.0) if self.renorm else None,
            virtual_batch_size=self.virtual_batch_size,
            adjustment=adjustment and (lambda _: adjustment(tf.shape(inputs))),
        )
        updates = [] if batch is None else self.updates_to(variables, batch, training, y)
        if self.virtual_batch_size is not None:
            y = steps.strided_groups(y, self.virtual_batch_size, back=True)
        y.set_shape(inputs.shape)
        return tf.identity(y, name=steps.output_name(bool(self.fused), training)), updates

    def updates_to(self, variables: dict[str, Any], batch: State, training: Any, y: Any) -> list[Any]:
        """The update operations; those of the renorm statistics come before, as control inputs."""

        def moved(name: str, momentum: Any = self.momentum) -> Any:
            variable = variables[name]
            value = tf.reshape(getattr(batch, name), variable.shape)
            return assign_moving_average(variable, value, momentum, zero_debias=False)

        def moved_variance() -> Any:
            if not self.renorm:
                return moved("moving_variance")
            variance = moving.variance_of(primitives, moved("moving_stddev"), self.epsilon)
            with v1.name_scope("AssignNewValue") as scope:
                return v1.assign(self.moving_variance, variance, name=scope)

        before = []
        if self.renorm:
            # The output is normalized with what the renorm statistics were.
            with tf.control_dependencies([y]):
                before = [moved(name, self.renorm_momentum) for name in ("renorm_mean", "renorm_stddev")]
        moves = [(self.moving_mean, lambda: moved("moving_mean")), (self.moving_variance, moved_variance)]
        updates = []
        # 1.15 has two conds for the moments before, two more for an adjustment, four more for renorm.
        first = 2 + 2 * bool(self.adjustment) + 4 * bool(self.renorm)
        for number, (variable, move) in enumerate(moves, first):
            with tf.control_dependencies(before):
                if isinstance(training, bool) or self.fused:
                    updates.append(move())
                else:
                    unchanged = lambda variable=variable: tf.identity(variable)  # noqa: E731
                    updates.append(v1.cond(training, move, unchanged, name=f"cond_{number}"))
        return updates

    def _flat(self, variable: Any, layout: Layout) -> Any:
        """The value of a variable in the shape that `functional` wants."""
        if variable is None:
            return None
        value = tf.convert_to_tensor(variable)
        if self.virtual_batch_size is None:
            return value
        sizes = [1] * layout.ndim
        for axis in layout.channels:
            sizes[axis] = value.shape.as_list()[axis + 1]
        return tf.reshape(value, layout.parameter_shape(tuple(sizes)))
