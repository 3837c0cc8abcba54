# SPDX-License-Identifier: Apache-2.0
"""What every layer of `tf.layers` is: where its variables live, what they are called, what it leaves in collections."""

from __future__ import annotations

import re
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import tensorflow as tf

from evenkeel.errors import ArgumentError
from evenkeel.tf1.graph import add_once, after, can_be_run, parts, reaches
from evenkeel.tf1.layers import arguments

v1 = tf.compat.v1

EAGER = (
    "{name} makes variables in a graph, and TensorFlow is executing eagerly; call tf.disable_v2_behavior() or build "
    "inside `with tf.Graph().as_default():`. In TensorFlow 2 programs use evenkeel.BatchNormalization, or keras.layers."
)


class InputSpec(NamedTuple):
    """What a layer accepts; None is anything.

    dtype: of the input.
    shape: of it, with None for any size.
    ndim, max_ndim, min_ndim: how many dimensions, at most, at least.
    axes: sizes of some of them.
    """

    dtype: Any = None
    shape: Any = None
    ndim: int | None = None
    max_ndim: int | None = None
    min_ndim: int | None = None
    axes: dict[int, int] | None = None


class Layer:
    """Base of all layers of `tf.layers`, with TensorFlow 1.15's rules for names, reuse and collections.

    A subclass makes its variables in `build(input_shape)` with `add_weight`, and computes in `call(inputs, ...)`.

    Args:
        trainable: its variables go to TRAINABLE_VARIABLES.
        name: of the layer; its variables live in the variable scope of that name, made unique.
        dtype: of its variables; that of the first input by default.
        activity_regularizer: a function of the output that gives a loss.

    Example:
        >>> class Scale(Layer):
        ...     def build(self, input_shape):
        ...         self.factor = self.add_weight("factor", [], initializer=tf.compat.v1.ones_initializer())
        ...
        ...     def call(self, inputs):
        ...         return inputs * self.factor
        >>> with tf.Graph().as_default():
        ...     layer = Scale(name="half")
        ...     y = layer(tf.ones([2, 3]))
        ...     y.name, layer.factor.name, layer.name, layer.scope_name
        ('half/mul:0', 'half/factor:0', 'half', 'half')
    """

    input_spec: InputSpec | list[InputSpec] | None = None

    def __init__(
        self,
        trainable: bool = True,
        name: Any = None,
        dtype: Any = None,
        *,
        activity_regularizer: Callable[[Any], Any] | None = None,
        _scope: Any = None,
        _reuse: Any = None,
    ) -> None:
        if v1.executing_eagerly_outside_functions():
            raise ArgumentError(EAGER.format(name=f"tf.layers.{type(self).__name__}"))
        self.trainable = trainable
        self.built = False
        self.activity_regularizer = activity_regularizer
        self.graph = v1.get_default_graph()
        self._dtype = None if dtype is None else tf.as_dtype(dtype).name
        self._weights: list[tuple[Any, bool]] = []
        self._updates: list[tuple[Any, bool]] = []
        self._losses: list[tuple[Any, bool]] = []
        self._reuse = _reuse
        self._base_name = name if name and not isinstance(name, v1.VariableScope) else snake_case(type(self).__name__)
        self._name = self._base_name if isinstance(name, str) and name else _unique_name(self.graph, self._base_name)
        self._scope: Any = None
        self._current_scope: Any = None
        if _scope:
            with v1.variable_scope(_scope) as self._scope:
                pass

    # Names and variables.

    @property
    def name(self) -> str:
        return self._name

    @property
    def dtype(self) -> str | None:
        return self._dtype

    @property
    def scope_name(self) -> str:
        """The variable scope of the layer; there is one once the layer was called, or was given one."""
        if self._scope is None:
            raise ValueError(
                f'No name available for layer scope because the layer "{self._name}" has not been used yet. The scope '
                "name is determined the first time the layer instance is called. You must therefore call the layer "
                "before querying `scope_name`."
            )
        return self._scope.name

    def add_weight(
        self,
        name: str,
        shape: Any,
        dtype: Any = None,
        initializer: Any = None,
        regularizer: Any = None,
        trainable: bool = True,
        constraint: Any = None,
        use_resource: bool | None = None,
        synchronization: Any = tf.VariableSynchronization.AUTO,
        aggregation: Any = tf.VariableAggregation.NONE,
        partitioner: Any = None,
    ) -> Any:
        """A variable in the scope of the layer, by `tf.get_variable`: reuse, custom getters and partitioners apply.

        Returns:
            The variable, or a partitioned one.
        """
        before = set(map(id, v1.global_variables()))
        self._set_scope()
        with v1.variable_scope(self._scope, reuse=self.built or self._reuse, auxiliary_name_scope=False) as scope:
            self._current_scope = scope
            with v1.name_scope(scope.original_name_scope):
                variable = v1.get_variable(
                    name,
                    shape=shape,
                    dtype=tf.as_dtype(dtype or self._dtype or "float32"),
                    initializer=scope.initializer if initializer is None else arguments.initializer(initializer),
                    trainable=trainable and self.trainable,
                    constraint=constraint,
                    partitioner=partitioner,
                    use_resource=use_resource or scope.use_resource or None,
                    synchronization=synchronization,
                    aggregation=aggregation,
                )
                pieces = parts(variable)
                if regularizer and all(id(part) not in before for part in pieces):
                    for part in pieces:
                        with v1.name_scope(f"{name}/Regularizer"):
                            # Keras's regularizers do not know the type of a reference variable.
                            loss = regularizer(tf.convert_to_tensor(part))
                        if loss is not None:
                            self.add_loss(loss)
        # A custom getter may have decided otherwise.
        learns = trainable and all(_contains(v1.trainable_variables(), part) for part in pieces)
        self._weights.append((variable, learns if self.trainable else trainable))
        return variable

    add_variable = add_weight

    @property
    def trainable_variables(self) -> list[Any]:
        return self._variables(True) if self.trainable else []

    @property
    def non_trainable_variables(self) -> list[Any]:
        return self._variables(False) if self.trainable else self._variables(True) + self._variables(False)

    @property
    def variables(self) -> list[Any]:
        return self.trainable_variables + self.non_trainable_variables

    weights = variables
    trainable_weights = trainable_variables
    non_trainable_weights = non_trainable_variables

    def _variables(self, trainable: bool) -> list[Any]:
        """Its own, those that are its attributes, and those of the layers that are."""
        made = [(part, learns) for kept, learns in self._weights for part in parts(kept)]
        mine = {id(variable) for variable, _ in made}
        held = [value for value in self._held() if isinstance(value, tf.Variable) and id(value) not in mine]
        made += [(variable, variable.trainable) for variable in held]
        found = [variable for variable, learns in made if learns == trainable]
        for layer in self._layers():
            found += layer.trainable_variables if trainable else layer.non_trainable_variables
        return list({id(variable): variable for variable in found}.values())

    def _held(self) -> Iterator[Any]:
        """What its attributes are, and what is in those that are lists, tuples or dictionaries."""
        for name, value in vars(self).items():
            if not name.startswith("_"):
                yield from value.values() if isinstance(value, dict) else value if isinstance(value, list) else [value]

    def _layers(self) -> list[Layer]:
        return [value for value in self._held() if isinstance(value, Layer)]

    # Updates and losses.

    def add_update(self, updates: Any, inputs: Any = None) -> None:
        """Operations that belong to a training step; they go to UPDATE_OPS when the call is over."""
        for update in tf.nest.flatten(updates):
            self._updates.append((getattr(update, "op", update), inputs is not None))

    def add_loss(self, losses: Any, inputs: Any = None) -> None:
        """Scalars that belong to the loss; they go to REGULARIZATION_LOSSES."""
        new = tf.nest.flatten(losses)
        self._losses += [(loss, inputs is not None) for loss in new]
        add_once(v1.GraphKeys.REGULARIZATION_LOSSES, new)

    @property
    def updates(self) -> list[Any]:
        if not self.trainable:
            return []
        own = [update for update, _ in self._updates]
        return own + [update for layer in self._layers() for update in layer.updates]

    @property
    def losses(self) -> list[Any]:
        return [loss for loss, _ in self._losses] + [loss for layer in self._layers() for loss in layer.losses]

    def get_updates_for(self, inputs: Any) -> list[Any]:
        """Updates that depend on these inputs; for None, those that depend on no input of the layer."""
        if not self.trainable:
            return []
        if inputs is None:
            return [update for update, depends in self._updates if not depends]
        return [update for update, depends in self._updates if depends and reaches(tf.nest.flatten(inputs), update)]

    def get_losses_for(self, inputs: Any) -> list[Any]:
        conditional = inputs is not None
        return [loss for loss, depends in self._losses if depends == conditional]

    def count_params(self) -> int:
        if not self.built:
            raise ValueError(f"You tried to call `count_params` on {self.name}, but the layer isn't built.")
        return sum(variable.shape.num_elements() for variable in self.variables)

    # Building and calling.

    def begin_build(self, input_shape: Any) -> tf.TensorShape:
        """The shape, for a `build` that was called by itself; the layer has a type from here on."""
        self._dtype = self._dtype or "float32"
        return tf.TensorShape(input_shape)

    def build(self, input_shape: Any) -> None:
        self.built = True

    def call(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        return inputs

    def apply(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        return self(inputs, *args, **kwargs)

    def __call__(self, inputs: Any, *args: Any, scope: Any = None, **kwargs: Any) -> Any:
        self._set_scope(scope)
        inputs = tf.nest.map_structure(
            lambda value: value if hasattr(value, "graph") or hasattr(value, "values") else tf.convert_to_tensor(value),
            inputs,
        )
        with (
            v1.variable_scope(
                self._scope, reuse=True if self.built else self._reuse, auxiliary_name_scope=False
            ) as self._current_scope,
            v1.name_scope(self._current_scope.original_name_scope),
        ):
            first = tf.nest.flatten(inputs)[0]
            if not self.built:
                self._check(first)
                if self._dtype is None:
                    self._dtype = first.dtype.base_dtype.name
                self.build(tf.nest.map_structure(lambda value: value.shape, inputs))
                self.built = True
            self._check(first)
            before = len(self._updates)
            outputs = self.call(inputs, *args, **kwargs)
            new = [update for update, _ in self._updates[before:]]
            if not can_be_run(new):
                # Nobody could run them from a collection, so the outputs take them along.
                del self._updates[before:]
                outputs = after(new, outputs)
            if self.activity_regularizer is not None:
                for output in tf.nest.flatten(outputs):
                    with v1.name_scope("ActivityRegularizer"):
                        loss = self.activity_regularizer(output)
                        self.add_loss(loss / tf.cast(tf.shape(output)[0], loss.dtype), inputs=True)
        add_once(v1.GraphKeys.UPDATE_OPS, self.updates)
        return outputs

    def _check(self, tensor: Any) -> None:
        spec = self.input_spec[0] if isinstance(self.input_spec, list) else self.input_spec
        if spec is None:
            return
        arrived = f"Input 0 of layer {self.name} is incompatible with the layer"
        if tensor.shape.rank is None:
            raise ValueError(f"{arrived}: its rank is undefined, but the layer requires a defined rank.")
        if spec.ndim is not None and tensor.shape.rank != spec.ndim:
            raise ValueError(
                f"{arrived}: expected ndim={spec.ndim}, found ndim={tensor.shape.rank}. "
                f"Full shape received: {tensor.shape.as_list()}"
            )
        if spec.min_ndim is not None and tensor.shape.rank < spec.min_ndim:
            raise ValueError(
                f"{arrived}: expected min_ndim={spec.min_ndim}, found ndim={tensor.shape.rank}. "
                f"Full shape received: {tensor.shape.as_list()}"
            )
        if spec.max_ndim is not None and tensor.shape.rank > spec.max_ndim:
            raise ValueError(
                f"{arrived}: expected max_ndim={spec.max_ndim}, found ndim={tensor.shape.rank}. "
                f"Full shape received: {tensor.shape.as_list()}"
            )
        if spec.dtype is not None and tensor.dtype.base_dtype != tf.as_dtype(spec.dtype):
            raise ValueError(f"{arrived}: expected dtype={spec.dtype}, found dtype={tensor.dtype.name}")
        if spec.shape is not None and not tensor.shape.is_compatible_with(spec.shape):
            raise ValueError(f"{arrived}: expected shape={spec.shape}, found shape={tensor.shape.as_list()}")
        for axis, size in (spec.axes or {}).items():
            found = tensor.shape.as_list()[axis]
            if size is not None and found not in (size, None):
                raise ValueError(
                    f"{arrived}: expected axis {axis} of input shape to have value {size} but received input with "
                    f"shape {tensor.shape.as_list()}"
                )

    def _set_scope(self, scope: Any = None) -> None:
        if self._scope is not None:
            return
        if self._reuse:
            context = v1.variable_scope(self._base_name if scope is None else scope)
        else:
            context = v1.variable_scope(scope, default_name=self._base_name)
        with context as self._scope:
            pass


def _contains(variables: Iterable[Any], variable: Any) -> bool:
    return any(other is variable for other in variables)


def snake_case(name: str) -> str:
    """
    Example:
        >>> snake_case("BatchNormalization"), snake_case("Conv2DTranspose")
        ('batch_normalization', 'conv2d_transpose')
    """
    name = re.sub("(.)([A-Z][a-z0-9]+)", r"\1_\2", name)
    return re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()


_used: weakref.WeakKeyDictionary[Any, Counter[str]] = weakref.WeakKeyDictionary()


def _unique_name(graph: Any, base: str) -> str:
    """The next unused name of a layer in a graph; the first is `base_1`."""
    names = _used.setdefault(graph, Counter())
    names[base] += 1
    return f"{base}_{names[base]}"
