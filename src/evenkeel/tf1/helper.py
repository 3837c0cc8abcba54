# SPDX-License-Identifier: Apache-2.0
"""How programs normalized before `tf.layers`: one object with the variables, and an operation that averages them.

Example:
    >>> with tf.Graph().as_default():
    ...     x = v1.placeholder("float32", [None, 8, 8, 3])
    ...     ewma = v1.train.ExponentialMovingAverage(decay=0.99)
    ...     bn = ConvolutionalBatchNormalizer(3, 0.001, ewma, True)
    ...     y = bn.normalize(x)
    ...     update = bn.get_assigner()
    ...     [variable.op.name for variable in v1.global_variables()]
    ['bn/mean', 'bn/variance', 'bn/beta', 'bn/gamma',
     'bn/mean/ExponentialMovingAverage', 'bn/variance/ExponentialMovingAverage']
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from evenkeel.errors import ArgumentError

v1 = tf.compat.v1

NO_AVERAGES = (
    "normalize(train={train}) of {scope!r} needs the moving averages, and there are none; call get_assigner() before it"
)
RANK = "{kind} takes inputs of {wanted}, not shape {shape}; BatchNormalizer takes any rank from 2"


class BatchNormalizer:
    """Batch normalization of inputs whose last axis is the channels, such as `(batch, channels)`.

    `mean` and `variance` hold the statistics of the last batch that was normalized in training. `ewma_trainer` averages
    them when the operation of `get_assigner()` runs. Its variables are in a variable scope `bn`, made unique.

    Args:
        depth: number of channels.
        epsilon: added to the variance.
        ewma_trainer: a `tf.train.ExponentialMovingAverage`; many normalizers may share it.
        scale_after_norm: multiply with `gamma`.

    Attributes:
        mean, variance: shape `(depth,)`, not trainable; resource variables, because a reference variable is not read
            again where control dependencies say so.
        beta, gamma: shape `(depth,)`.

    Example:
        >>> with tf.Graph().as_default(), v1.Session() as session:
        ...     bn = BatchNormalizer(1, 0.0, v1.train.ExponentialMovingAverage(0.9), False)
        ...     y = bn.normalize(tf.constant([[1.0], [3.0]]))
        ...     update = bn.get_assigner()
        ...     _ = session.run(v1.global_variables_initializer())
        ...     session.run([y, update])[0].tolist()
        [[-1.0], [1.0]]
    """

    def __init__(self, depth: int, epsilon: float, ewma_trainer: Any, scale_after_norm: bool) -> None:
        with v1.variable_scope(None, "bn") as scope:
            zeros, ones = v1.zeros_initializer(), v1.ones_initializer()
            kept = {"trainable": False, "use_resource": True}
            self.mean = v1.get_variable("mean", [depth], initializer=zeros, **kept)
            self.variance = v1.get_variable("variance", [depth], initializer=ones, **kept)
            self.beta = v1.get_variable("beta", [depth], initializer=zeros)
            self.gamma = v1.get_variable("gamma", [depth], initializer=ones)
        self.epsilon = epsilon
        self.ewma_trainer = ewma_trainer
        self.scale_after_norm = scale_after_norm
        self._scope = scope.name
        self._normalized: list[Any] = []

    def get_assigner(self) -> Any:
        """The operation that averages `mean` and `variance`; run it once a training step.

        Made after `normalize(train=True)`, it averages the batch that was normalized last there, also within one
        `session.run`, and needs what that batch needs, such as fed inputs.

        Inside a `tf.cond` of your own this does not hold; give the bool tensor to `normalize` instead.

        Made before, as in the old programs, run it in a `session.run` of its own after the step. Within the same run
        as the step it averages the batch of the step before: an operation cannot wait for one that does not exist yet.
        """
        graph = v1.get_default_graph()
        with v1.control_dependencies([made for made in self._normalized if made.graph is graph]):
            return self.ewma_trainer.apply([self.mean, self.variance])

    def normalize(self, x: Any, train: Any = True) -> Any:
        """`x` normalized, in its shape.

        Args:
            x: float32, shape `(..., depth)`.
            train: with the statistics of `x`, which go to `mean` and `variance`; with the moving averages otherwise. A
                bool, or a scalar bool tensor or variable.

        Raises:
            ArgumentError: there are no moving averages yet, or `x` has another rank than the class is for.
        """
        x = tf.convert_to_tensor(x)
        self._check(x)
        phase = tf.convert_to_tensor(train)
        always = tf.get_static_value(phase)
        if always is not None:
            return self._trained(x) if always else self._inferred(x, train)
        y = tf.cond(phase, lambda: self._trained(x), lambda: self._inferred(x, train))
        self._normalized = [y]
        return y

    def _trained(self, x: Any) -> Any:
        mean, variance = v1.nn.moments(x, list(range(x.shape.rank - 1)))
        # Or an assigner that was made before would read the old mean with the new variance.
        with v1.control_dependencies(_reads(self.mean) + _reads(self.variance)):
            self._normalized = [self.mean.assign(mean).op, self.variance.assign(variance).op]
        with v1.control_dependencies(self._normalized):
            return self._apply(x, mean, variance)

    def _inferred(self, x: Any, train: Any) -> Any:
        mean, variance = map(self.ewma_trainer.average, (self.mean, self.variance))
        if mean is None or variance is None:
            raise ArgumentError(NO_AVERAGES.format(train=train, scope=self._scope))
        return self._apply(x, mean, variance)

    def _apply(self, x: Any, mean: Any, variance: Any) -> Any:
        return v1.nn.batch_norm_with_global_normalization(
            x, mean, variance, self.beta, self.gamma, self.epsilon, self.scale_after_norm
        )

    def _check(self, x: Any) -> None:
        if x.shape.rank is None or x.shape.rank < 2:
            raise ArgumentError(RANK.format(kind=type(self).__name__, wanted="rank 2 or more", shape=x.shape))


class ConvolutionalBatchNormalizer(BatchNormalizer):
    """Batch normalization of `(batch, height, width, channels)`, as early TensorFlow programs wrote it by hand.

    Arguments, attributes and methods are those of `BatchNormalizer`.
    """

    def _check(self, x: Any) -> None:
        if x.shape.rank != 4:
            raise ArgumentError(RANK.format(kind=type(self).__name__, wanted="rank 4", shape=x.shape))


def _reads(variable: Any) -> list[Any]:
    """Operations that read the variable and wait for nothing else."""
    return [
        operation
        for operation in variable.handle.consumers()
        if operation.type == "ReadVariableOp" and not operation.control_inputs
    ]
