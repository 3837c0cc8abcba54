# SPDX-License-Identifier: Apache-2.0
"""What a model function answers: the operations to run in training, evaluation and prediction."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import tensorflow as tf

from evenkeel.errors import ArgumentError
from evenkeel.tf1.estimator.arguments import hooks_of
from evenkeel.tf1.estimator.export import ExportOutput, PredictOutput

v1 = tf.compat.v1

_DEFAULT_SIGNATURE = v1.saved_model.DEFAULT_SERVING_SIGNATURE_DEF_KEY


class ModeKeys:
    """What a model function is called for."""

    TRAIN = "train"
    EVAL = "eval"
    PREDICT = "infer"


class _Fields(NamedTuple):
    mode: str
    predictions: Any
    loss: Any
    train_op: Any
    eval_metric_ops: dict[str, Any]
    export_outputs: dict[str, ExportOutput] | None
    training_chief_hooks: tuple[Any, ...]
    training_hooks: tuple[Any, ...]
    scaffold: Any
    evaluation_hooks: tuple[Any, ...]
    prediction_hooks: tuple[Any, ...]


class EstimatorSpec(_Fields):
    """The operations of a model, all in the default graph.

    Args:
        mode: of `ModeKeys`. TRAIN needs `loss` and `train_op`, EVAL `loss`, PREDICT `predictions`.
        predictions: a tensor, or a dict of tensors whose first dimension is the batch.
        loss: a scalar tensor, or one of shape `(1,)`.
        train_op: what a step runs. It must depend on UPDATE_OPS, or moving statistics stay where they are.
        eval_metric_ops: name -> `(value, update_op)`, as `tf.metrics` gives them.
        export_outputs: name -> output of `tf.estimator.export`; the predictions by default.
        scaffold: a `tf.train.Scaffold`; its saver decides what checkpoints hold.
        training_chief_hooks, training_hooks, evaluation_hooks, prediction_hooks: SessionRunHooks.

    Raises:
        ValueError: something the mode needs is missing, a loss that is not one number, a tensor of another graph,
            several outputs and none of them `serving_default`.
        TypeError: something is not a tensor, an operation, a hook, a scaffold, an output.

    Example:
        >>> with tf.Graph().as_default():
        ...     spec = EstimatorSpec(ModeKeys.PREDICT, predictions={"y": tf.ones([2, 1])})
        ...     sorted(spec.predictions), sorted(spec.export_outputs)
        (['y'], ['serving_default'])
    """

    __slots__ = ()

    def __new__(
        cls,
        mode: str,
        predictions: Any = None,
        loss: Any = None,
        train_op: Any = None,
        eval_metric_ops: Mapping[str, Any] | None = None,
        export_outputs: Mapping[str, ExportOutput] | None = None,
        training_chief_hooks: Iterable[Any] | None = None,
        training_hooks: Iterable[Any] | None = None,
        scaffold: Any = None,
        evaluation_hooks: Iterable[Any] | None = None,
        prediction_hooks: Iterable[Any] | None = None,
    ) -> EstimatorSpec:
        predictions = _predictions(mode, predictions)
        loss = _loss(mode, loss)
        if train_op is not None:
            _check_tensor("train_op", train_op, or_operation=True)
        elif mode == ModeKeys.TRAIN:
            raise ArgumentError("Missing train_op. A TRAIN EstimatorSpec has train_op=optimizer.minimize(...)")
        if scaffold is not None and not isinstance(scaffold, v1.train.Scaffold):
            raise TypeError(f"scaffold must be tf.train.Scaffold. Given: {scaffold!r}")
        return super().__new__(
            cls,
            mode,
            predictions,
            loss,
            train_op,
            _metrics(eval_metric_ops),
            _outputs(mode, export_outputs, predictions),
            hooks_of(training_chief_hooks),
            hooks_of(training_hooks),
            scaffold or v1.train.Scaffold(),
            hooks_of(evaluation_hooks),
            hooks_of(prediction_hooks),
        )

    def _replace(self, **changes: Any) -> EstimatorSpec:
        """A copy with some fields changed, checked again.

        Raises:
            ValueError: another mode.
        """
        if changes.get("mode", self.mode) != self.mode:
            raise ArgumentError(f"mode of EstimatorSpec cannot be changed from {self.mode!r} to {changes['mode']!r}")
        return EstimatorSpec(**{**self._asdict(), **changes})


def _predictions(mode: str, predictions: Any) -> Any:
    if predictions is None:
        if mode == ModeKeys.PREDICT:
            raise ArgumentError(
                "Missing predictions. A PREDICT EstimatorSpec has predictions=tensor or dict of tensors"
            )
        return {}
    if isinstance(predictions, dict):
        for key, value in predictions.items():
            _check_tensor(f"predictions[{key}]", value)
    else:
        _check_tensor("predictions", predictions)
    return predictions


def _loss(mode: str, loss: Any) -> Any:
    if loss is None:
        if mode in (ModeKeys.TRAIN, ModeKeys.EVAL):
            raise ArgumentError(f"Missing loss. An EstimatorSpec of mode {mode!r} has a scalar loss")
        return None
    _check_tensor("loss", loss)
    if loss.shape.num_elements() not in (None, 1):
        raise ArgumentError(f"Loss must be scalar, given: {loss} of shape {loss.shape}; take tf.reduce_mean of it")
    return loss if loss.shape.rank == 0 else tf.reshape(loss, [])


def _metrics(metrics: Mapping[str, Any] | None) -> dict[str, Any]:
    if not isinstance(metrics or {}, Mapping):
        raise TypeError(f"eval_metric_ops must be a dict, given: {metrics!r}")
    for key, pair in (metrics or {}).items():
        if not isinstance(pair, tuple) or len(pair) != 2:
            raise TypeError(
                f"Values of eval_metric_ops must be (metric_value, update_op) tuples, given: {pair!r} for key: {key}; "
                "use what a function of tf.metrics returns"
            )
        for value in pair:
            _check_tensor(f"eval_metric_ops[{key}]", value, or_operation=True)
    return dict(metrics or {})


def _outputs(mode: str, outputs: Mapping[str, Any] | None, predictions: Any) -> dict[str, ExportOutput] | None:
    if outputs is None:
        return {_DEFAULT_SIGNATURE: PredictOutput(predictions)} if mode == ModeKeys.PREDICT else None
    if not isinstance(outputs, dict):
        raise TypeError(f"`export_outputs` must be dict, received: {outputs!r}")
    for value in outputs.values():
        if not isinstance(value, ExportOutput):
            raise TypeError(f"Values in `export_outputs` must be ExportOutput objects. Given: {outputs!r}")
    if len(outputs) == 1:
        return {_DEFAULT_SIGNATURE: next(iter(outputs.values())), **outputs}
    if outputs and _DEFAULT_SIGNATURE not in outputs:
        raise ArgumentError(
            f"Multiple export_outputs were provided, but none of {sorted(outputs)} is specified as the default. Name "
            f"one of them {_DEFAULT_SIGNATURE!r}, which is signature_constants.DEFAULT_SERVING_SIGNATURE_DEF_KEY"
        )
    return dict(outputs)


def _check_tensor(name: str, value: Any, *, or_operation: bool = False) -> None:
    wanted = tf.Tensor | tf.Variable | tf.SparseTensor | (tf.Operation if or_operation else tf.Tensor)
    if not isinstance(value, wanted):
        raise TypeError(f"{name} must be {'Operation or ' if or_operation else ''}Tensor, given: {value!r}")
    if value.graph is not v1.get_default_graph():
        raise ArgumentError(f"{name} must be from the default graph, and {value} is not; build it inside the model_fn")
