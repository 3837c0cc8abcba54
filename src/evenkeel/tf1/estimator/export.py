# SPDX-License-Identifier: Apache-2.0
"""How a model meets its server: the tensors it is fed, the outputs it gives, and the signatures made of both."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import tensorflow as tf

from evenkeel.errors import ArgumentError

v1 = tf.compat.v1

__all__ = [
    "ClassificationOutput",
    "ExportOutput",
    "PredictOutput",
    "RegressionOutput",
    "ServingInputReceiver",
    "TensorServingInputReceiver",
    "build_parsing_serving_input_receiver_fn",
    "build_raw_serving_input_receiver_fn",
]


class ExportOutput:
    """What a signature gives back."""

    def as_signature_def(self, receiver_tensors: dict[str, Any]) -> Any:
        """The signature from these inputs to this output.

        Raises:
            ValueError: inputs that such a signature cannot have.
        """
        raise NotImplementedError(f"{type(self).__name__} does not say how it becomes a signature")


class PredictOutput(ExportOutput):
    """Any tensors, under any names.

    Args:
        outputs: dict of tensors, or a tensor, which is then called `output`.

    Raises:
        ValueError: a value that is not a tensor.

    Example:
        >>> with tf.Graph().as_default():
        ...     sorted(PredictOutput(tf.ones([2])).outputs)
        ['output']
    """

    def __init__(self, outputs: Any) -> None:
        self._outputs = outputs if isinstance(outputs, dict) else {"output": outputs}
        for key, value in self._outputs.items():
            if not isinstance(key, str) or not _is_tensor(value):
                raise ArgumentError(f"Prediction output value must be a Tensor under a string; got {key!r}: {value!r}")

    @property
    def outputs(self) -> dict[str, Any]:
        return self._outputs

    def as_signature_def(self, receiver_tensors: dict[str, Any]) -> Any:
        return v1.saved_model.predict_signature_def(receiver_tensors, self.outputs)


class ClassificationOutput(ExportOutput):
    """Classes and their scores, from serialized examples.

    Args:
        scores: floating point, shape `(batch, classes)`.
        classes: strings, shape `(batch, classes)`.

    Raises:
        ValueError: neither was given, or one has another type.
    """

    def __init__(self, scores: Any = None, classes: Any = None) -> None:
        if scores is not None and not (_is_tensor(scores) and scores.dtype.is_floating):
            raise ArgumentError(f"Classification scores must be a float32 Tensor; got {scores!r}")
        if classes is not None and not (_is_tensor(classes) and classes.dtype == tf.string):
            raise ArgumentError(f"Classification classes must be a string Tensor; got {classes!r}")
        if scores is None and classes is None:
            raise ArgumentError("At least one of scores and classes must be set; both are None")
        self._scores = scores
        self._classes = classes

    @property
    def scores(self) -> Any:
        return self._scores

    @property
    def classes(self) -> Any:
        return self._classes

    def as_signature_def(self, receiver_tensors: dict[str, Any]) -> Any:
        examples = _only_string("Classification", receiver_tensors)
        return v1.saved_model.classification_signature_def(examples, self.classes, self.scores)


class RegressionOutput(ExportOutput):
    """Numbers, from serialized examples.

    Args:
        value: floating point, shape `(batch, ...)`.

    Raises:
        ValueError: another type.
    """

    def __init__(self, value: Any) -> None:
        if not (_is_tensor(value) and value.dtype.is_floating):
            raise ArgumentError(f"Regression output value must be a float32 Tensor; got {value!r}")
        self._value = value

    @property
    def value(self) -> Any:
        return self._value

    def as_signature_def(self, receiver_tensors: dict[str, Any]) -> Any:
        return v1.saved_model.regression_signature_def(_only_string("Regression", receiver_tensors), self.value)


class _Receiver(NamedTuple):
    features: Any
    receiver_tensors: dict[str, Any]
    receiver_tensors_alternatives: dict[str, dict[str, Any]] | None


class ServingInputReceiver(_Receiver):
    """What a server feeds, and the features made of it.

    Args:
        features: dict of tensors; a single one becomes `{"feature": tensor}`.
        receiver_tensors: dict of the tensors that are fed; a single one is called `input`.
        receiver_tensors_alternatives: name -> dict of other tensors that may be fed instead.

    Raises:
        ValueError: nothing was given, or something that is not a tensor.

    Example:
        >>> with tf.Graph().as_default():
        ...     x = tf.compat.v1.placeholder(tf.float32, [None, 3])
        ...     sorted(ServingInputReceiver({"x": x}, x).receiver_tensors)
        ['input']
    """

    __slots__ = ()

    def __new__(
        cls,
        features: Any,
        receiver_tensors: Any,
        receiver_tensors_alternatives: Mapping[str, Any] | None = None,
    ) -> ServingInputReceiver:
        return super().__new__(
            cls,
            _named("features", features, "feature"),
            _named("receiver_tensors", receiver_tensors, "input"),
            _alternatives(receiver_tensors_alternatives),
        )


class TensorServingInputReceiver(_Receiver):
    """As `ServingInputReceiver`, for a model function that wants one tensor and not a dict of them."""

    __slots__ = ()

    def __new__(
        cls,
        features: Any,
        receiver_tensors: Any,
        receiver_tensors_alternatives: Mapping[str, Any] | None = None,
    ) -> TensorServingInputReceiver:
        if not _is_tensor(features):
            raise ArgumentError(f"features must be one Tensor, got {features!r}; a dict is for ServingInputReceiver")
        return super().__new__(
            cls,
            features,
            _named("receiver_tensors", receiver_tensors, "input"),
            _alternatives(receiver_tensors_alternatives),
        )


def build_raw_serving_input_receiver_fn(
    features: Mapping[str, Any], default_batch_size: int | None = None
) -> Callable[[], ServingInputReceiver]:
    """A function that makes placeholders like these tensors, to be fed with the features themselves.

    Args:
        features: name -> tensor with the type and shape of the feature; its first dimension is the batch.
        default_batch_size: the first dimension of the placeholders; None takes any.
    """

    def serving_input_receiver_fn() -> ServingInputReceiver:
        tensors = {
            name: v1.placeholder(tensor.dtype, _with_batch(tensor, default_batch_size), name=tensor.op.name)
            for name, tensor in features.items()
        }
        return ServingInputReceiver(tensors, tensors)

    return serving_input_receiver_fn


def build_parsing_serving_input_receiver_fn(
    feature_spec: Mapping[str, Any], default_batch_size: int | None = None
) -> Callable[[], ServingInputReceiver]:
    """A function that makes one placeholder `examples` for serialized `tf.Example`s, and parses them.

    Args:
        feature_spec: name -> `tf.FixedLenFeature` and the like.
        default_batch_size: how many examples; None is any number.
    """

    def serving_input_receiver_fn() -> ServingInputReceiver:
        examples = v1.placeholder(tf.string, [default_batch_size], name="input_example_tensor")
        return ServingInputReceiver(v1.parse_example(examples, dict(feature_spec)), {"examples": examples})

    return serving_input_receiver_fn


def signatures(receiver: Any, outputs: Mapping[str, ExportOutput] | None) -> dict[str, Any]:
    """All signatures that a server can be given. An output that does not fit the inputs has none.

    Args:
        receiver: ServingInputReceiver, or what has its fields.
        outputs: of the model's EstimatorSpec.

    Raises:
        ValueError: no outputs.
    """
    if not isinstance(outputs, dict):
        raise ArgumentError(
            f"export_outputs must be a dict and not {type(outputs)}; give it to the PREDICT EstimatorSpec"
        )
    inputs = {"": receiver.receiver_tensors, **(receiver.receiver_tensors_alternatives or {})}
    found = {}
    for key, output in outputs.items():
        for alternative, tensors in inputs.items():
            name = f"{alternative}:{key}" if alternative else key
            try:
                signature = output.as_signature_def(tensors)
            except ValueError as error:
                v1.logging.warning("Export includes no signature %s: %s", name, error)
            else:
                if v1.saved_model.is_valid_signature(signature):
                    found[name] = signature
    return found


def _with_batch(tensor: Any, size: int | None) -> Any:
    return tensor.shape if tensor.shape.rank in (None, 0) else [size, *tensor.shape.as_list()[1:]]


def _is_tensor(value: Any) -> bool:
    return isinstance(value, tf.Tensor | tf.SparseTensor)


def _named(name: str, tensors: Any, single: str) -> dict[str, Any]:
    if tensors is None:
        raise ArgumentError(f"{name} must be defined; got None")
    tensors = tensors if isinstance(tensors, dict) else {single: tensors}
    for key, value in tensors.items():
        if not isinstance(key, str):
            raise ArgumentError(f"{name} keys must be strings: {key!r}.")
        if not _is_tensor(value):
            raise ArgumentError(f"{name} {key} must be a Tensor or SparseTensor, got {value!r}.")
    return tensors


def _alternatives(alternatives: Mapping[str, Any] | None) -> dict[str, dict[str, Any]] | None:
    if alternatives is None:
        return None
    if not isinstance(alternatives, dict):
        raise ArgumentError(f"receiver_tensors_alternatives must be a dict: {alternatives!r}.")
    return {name: _named(f"receiver_tensors_alternatives[{name}]", it, "input") for name, it in alternatives.items()}


def _only_string(kind: str, tensors: dict[str, Any]) -> Any:
    values = list(tensors.values())
    if len(values) != 1 or values[0].dtype != tf.string:
        raise ArgumentError(f"{kind} input must be a single string Tensor; got {tensors}")
    return values[0]
