# SPDX-License-Identifier: Apache-2.0
"""Batch normalization as a Keras 3 layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from evenkeel import arguments
from evenkeel.errors import ArgumentError
from evenkeel.functional import modes, moving, virtual
from evenkeel.functional.batch_norm import Parameters, inference_step, training_step
from evenkeel.functional.layout import Layout
from evenkeel.functional.renorm import Limits, Renorm


@keras.saving.register_keras_serializable(package="evenkeel")
class BatchNormalization(keras.layers.BatchNormalization):
    """Batch normalization on TensorFlow, JAX and PyTorch; a drop-in for `keras.layers.BatchNormalization`.

    The arguments up to `synchronized` are Keras's, with Keras's defaults and order of weights; files and
    configurations of Keras's layer load. What differs is what goes wrong there: the variance is right far from
    zero, one NaN never reaches the moving statistics, a batch of one value a channel is normalized with the moving
    statistics, masks fit any axis, and statistics stay in float32 under 16-bit policies.

    Args:
        axis: the axis of the channels, or a list of them.
        momentum: share of the old average that is kept, in [0, 1].
        epsilon: added to the variance, not negative.
        center, scale: have beta, have gamma.
        renorm: batch renormalization, without limits unless `renorm_clipping` gives some.
        renorm_clipping: `rmin`, `rmax`, `dmax`, each a number or a function of the number of updates so far, such as a
            `keras.optimizers.schedules.LearningRateSchedule`.
        renorm_momentum: share of the old renorm statistics that is kept.
        synchronized: True: statistics of the whole batch over all devices and processes of the step: the replicas of
            a `tf.distribute` strategy, the processes of torch.distributed, the devices of a JAX mesh. False: of the
            share of each by itself; under `keras.distribution` too, where JAX alone would take those of the whole
            batch. What a plain `jax.jit` is given in shards is one array there, and always whole.
        virtual_batch_size: in training, normalize groups of so many rows each by itself; any batch size.
        adjustment: a function of the shape of the input, giving a scale and an offset that are applied in training
            before gamma and beta.
        average: of the moving statistics: "exponential", "debiased" (the start value leaves no trace) or "cumulative"
            (every batch counts the same).
        bessel_correction: the moving variance keeps the sample variance (n - 1), as PyTorch and TensorFlow's fused
            operation do, instead of the population variance (n).
        activation: applied to the output; any name or function of `keras.activations`.
        frozen: True uses the moving statistics and keeps them, in training too, while gamma and beta still learn; "all"
            keeps gamma and beta too. May be changed later; functions that were traced before notice through
            `evenkeel.freeze`.
        process_group: with PyTorch, synchronize within this group of torch.distributed only. It belongs to a run and is
            not in the configuration.
        axis_name: with JAX, the names of the mesh axes to synchronize along, under `shard_map` or `pmap`; all that a
            `shard_map` maps over by default.

    Call arguments:
        inputs: shape `(batch, ..., channels, ...)`.
        training: normalize with the statistics of the batch, if the layer is trainable and not frozen.
        mask: False removes a value from the statistics; any shape that broadcasts against the input, or that of the
            input without the channels.
        sample_weight: how much each value counts; shapes as for `mask`.
        inputs_mask: the mask that came with the inputs, if `mask` is not given; Keras fills it in.

    Weights, in order: gamma, beta, moving_mean, moving_variance; with renorm moving_stddev, renorm_mean,
    renorm_stddev; with an average or a schedule that counts, updates.

    Raises:
        ArgumentError: an argument that cannot be honoured, in the constructor; AxisError: an axis that the input does
            not have, when the layer is built.

    Example:
        >>> layer = BatchNormalization(momentum=0.5)
        >>> y = layer(np.array([[1.0], [3.0]], "float32"), training=True)
        >>> keras.ops.convert_to_numpy(y).ravel().round(2)
        array([-1.,  1.], dtype=float32)
        >>> keras.ops.convert_to_numpy(layer.moving_mean.value)
        array([1.], dtype=float32)

    References:
        Ioffe and Szegedy 2015, Batch Normalization.
    """

    def __init__(
        self,
        axis: Any = -1,
        momentum: float = 0.99,
        epsilon: float = 1e-3,
        center: bool = True,
        scale: bool = True,
        beta_initializer: Any = "zeros",
        gamma_initializer: Any = "ones",
        moving_mean_initializer: Any = "zeros",
        moving_variance_initializer: Any = "ones",
        beta_regularizer: Any = None,
        gamma_regularizer: Any = None,
        beta_constraint: Any = None,
        gamma_constraint: Any = None,
        renorm: bool = False,
        renorm_clipping: dict[str, Any] | None = None,
        renorm_momentum: float = 0.99,
        synchronized: bool = False,
        *,
        virtual_batch_size: int | None = None,
        adjustment: Any = None,
        average: str = "exponential",
        bessel_correction: bool = False,
        activation: Any = None,
        frozen: bool | str = False,
        process_group: Any = None,
        axis_name: str | Sequence[str] | None = None,
        **kwargs: Any,
    ) -> None:
        axes = arguments.axes(axis)
        super().__init__(
            axis=axes[0],
            momentum=arguments.number("momentum", momentum, low=0, high=1),
            epsilon=arguments.number("epsilon", epsilon, low=0),
            center=center,
            scale=scale,
            beta_initializer=beta_initializer,
            gamma_initializer=gamma_initializer,
            moving_mean_initializer=moving_mean_initializer,
            moving_variance_initializer=moving_variance_initializer,
            beta_regularizer=beta_regularizer,
            gamma_regularizer=gamma_regularizer,
            beta_constraint=beta_constraint,
            gamma_constraint=gamma_constraint,
            renorm_momentum=arguments.number("renorm_momentum", renorm_momentum, low=0, high=1),
            **kwargs,
        )
        self.synchronized = bool(synchronized)
        self.process_group = _of_backend("process_group", process_group, "torch", synchronized)
        self.axis_name = _of_backend("axis_name", axis_name, "jax", synchronized)
        self.axis = list(axes) if isinstance(axis, list | tuple) else axes[0]
        self.renorm = renorm
        self.renorm_clipping = renorm_clipping or {} if renorm else renorm_clipping  # as Keras has it
        self._limits = Limits.of(renorm_clipping)
        if virtual_batch_size is not None:
            virtual_batch_size = virtual.check(virtual_batch_size, axis, synchronized=bool(synchronized))
        self.virtual_batch_size = virtual_batch_size
        if adjustment is not None and not callable(adjustment):
            raise ArgumentError(f"adjustment={adjustment!r} is not a function; give one of the shape of the input")
        self.adjustment = adjustment
        self.average = arguments.choice("average", average, moving.AVERAGES)
        self.bessel_correction = bessel_correction
        self.activation = keras.activations.get(activation)
        self._held: tuple[str, ...] = ()
        self.frozen = frozen
        self.moving_stddev = self.renorm_mean = self.renorm_stddev = self.updates = None

    @property
    def frozen(self) -> bool | str:
        """Whether the statistics stay as they are; "all" if gamma and beta do too."""
        return self._frozen

    @frozen.setter
    def frozen(self, value: bool | str) -> None:
        self._frozen = modes.frozen(value)
        for name in self._held:
            getattr(self, name).trainable = True
        self._hold()

    @property
    def trainable(self) -> bool:
        """Whether the layer may train; gamma and beta of a layer frozen in all do not whatever this says."""
        return super().trainable

    @trainable.setter
    def trainable(self, value: bool) -> None:
        keras.layers.BatchNormalization.trainable.fset(self, value)
        self._hold()

    def _hold(self) -> None:
        """Take gamma and beta from the optimizer if all is frozen, and remember which it had."""
        trained = [name for name in ("gamma", "beta") if getattr(getattr(self, name), "trainable", False)]
        self._held = tuple(trained) if self.frozen == "all" else ()
        for name in self._held:
            getattr(self, name).trainable = False

    def build(self, input_shape: Any) -> None:
        layout = Layout.of(len(input_shape), self.axis)
        shape = layout.parameter_shape(input_shape)
        if None in shape:
            raise ArgumentError(f"input has shape {input_shape}, whose axis {self.axis} is unknown; give its size")
        if self.virtual_batch_size:
            virtual.check(self.virtual_batch_size, self.axis, ndim=len(input_shape))
        if self.scale:
            self.gamma = self._weight(
                "gamma", shape, self.gamma_initializer, True, self.gamma_regularizer, self.gamma_constraint
            )
        if self.center:
            self.beta = self._weight(
                "beta", shape, self.beta_initializer, True, self.beta_regularizer, self.beta_constraint
            )
        self.moving_mean = self._weight("moving_mean", shape, self.moving_mean_initializer)
        self.moving_variance = self._weight("moving_variance", shape, self.moving_variance_initializer)
        if self.renorm:

            def deviation(shape: Any, dtype: Any = None) -> Any:
                return keras.ops.sqrt(_again(self.moving_variance_initializer)(shape, dtype=dtype))

            self.moving_stddev = self._weight("moving_stddev", shape, deviation)
            self.renorm_mean = self._weight("renorm_mean", shape, _again(self.moving_mean_initializer))
            self.renorm_stddev = self._weight("renorm_stddev", shape, deviation)
        if moving.counts_updates(self.average) or (self.renorm and self._limits.scheduled):
            self.updates = self.add_weight(
                name="updates", shape=shape, initializer="zeros", dtype="int32", trainable=False, autocast=False
            )
        self._hold()
        self.input_spec = keras.layers.InputSpec(
            ndim=len(input_shape), axes={axis: input_shape[axis] for axis in layout.channels}
        )

    def _weight(
        self,
        name: str,
        shape: Any,
        initializer: Any,
        trainable: bool = False,
        regularizer: Any = None,
        constraint: Any = None,
    ) -> Any:
        dtype = self.variable_dtype
        if not trainable and dtype in ("float16", "bfloat16"):
            dtype = "float32"  # 1 % of a small difference is less than bfloat16 can add to a moving average
        return self.add_weight(
            name=name,
            shape=shape,
            dtype=dtype,
            initializer=initializer,
            regularizer=regularizer,
            constraint=constraint,
            trainable=trainable,
            autocast=False,
        )

    def call(
        self,
        inputs: Any,
        training: Any = None,
        mask: Any = None,
        sample_weight: Any = None,
        inputs_mask: Any = None,
    ) -> Any:
        # Beside another tensor, Keras hands the mask that came with the inputs over under this name.
        mask = inputs_mask if mask is None else mask
        mode = modes.mode(training=bool(training), trainable=self.trainable, frozen=bool(self.frozen))
        params = Parameters(*map(_value, (self.gamma, self.beta)))
        variables = moving.State(*(getattr(self, name) for name in moving.State._fields))
        state = moving.State(*map(_value, variables))
        fused = "relu" if self.activation is keras.activations.relu else None
        shared = {"axis": self.axis, "epsilon": self.epsilon, "activation": fused}
        if mode.batch:
            outputs, new_state = training_step(
                inputs,
                params,
                state,
                momentum=self.momentum,
                average=self.average,
                bessel_correction=self.bessel_correction,
                mask=mask,
                sample_weight=sample_weight,
                renorm=Renorm(self._limits, self.renorm_momentum) if self.renorm else None,
                virtual_batch_size=self.virtual_batch_size or (None if self.synchronized else _share(inputs)),
                adjustment=self.adjustment,
                synchronized=self.synchronized,
                group=self.axis_name or self.process_group,
                **shared,
            )
        else:
            outputs, new_state = inference_step(inputs, params, state, **shared)
        if mode.updates:
            for variable, old, new in zip(variables, state, new_state, strict=True):
                if new is not old:
                    variable.assign(new)
        outputs = keras.ops.cast(outputs, self.compute_dtype)
        return outputs if fused else self.activation(outputs)

    def compute_output_shape(self, input_shape: Any) -> Any:
        Layout.of(len(input_shape), self.axis)
        return input_shape

    def get_config(self) -> dict[str, Any]:
        limits = {
            name: keras.saving.serialize_keras_object(limit) if callable(limit) else limit
            for name, limit in (self.renorm_clipping or {}).items()
        }
        return {
            **super().get_config(),
            "axis": list(self.axis) if isinstance(self.axis, list) else self.axis,
            "renorm_clipping": None if self.renorm_clipping is None else limits,
            "virtual_batch_size": self.virtual_batch_size,
            "adjustment": keras.saving.serialize_keras_object(self.adjustment),
            "average": self.average,
            "bessel_correction": self.bessel_correction,
            "activation": keras.activations.serialize(self.activation),
            "frozen": self.frozen,
            "axis_name": self.axis_name,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> BatchNormalization:
        """The layer of a configuration: its own, Keras 3's, or one that tf.keras 1.x or 2.x wrote.

        tf.keras stored `axis` as a list, counted with the extra dimension of virtual batches, and `fused=True` made it
        keep the sample variance. Version 1 stored types with initializers, and version 2 its own kind of policy.
        """
        config = dict(config) if "bessel_correction" in config else _translated(config)
        if keras.backend.backend() != "jax":
            config.pop("axis_name", None)  # which says with whom JAX synchronizes, not what is computed
        config["adjustment"] = keras.saving.deserialize_keras_object(config.get("adjustment"))
        if config.get("renorm_clipping"):
            config["renorm_clipping"] = {
                name: keras.saving.deserialize_keras_object(limit) if isinstance(limit, dict) else limit
                for name, limit in config["renorm_clipping"].items()
            }
        return cls(**config)


def _of_backend(name: str, value: Any, backend: str, synchronized: bool) -> Any:
    """An argument that only one backend honours."""
    if value is not None and keras.backend.backend() != backend:
        raise ArgumentError(
            f"{name}={value!r} is for {backend}, and Keras computes with {keras.backend.backend()}; leave it out"
        )
    if value is not None and not synchronized:
        raise ArgumentError(f"{name}={value!r} says with whom to synchronize; give synchronized=True too")
    return value


def _share(inputs: Any) -> int | None:
    """How many rows each device has of an array that Keras's distribution spreads over several; None without one.

    Each normalizes its own, so they are virtual batches.
    """
    distribution = keras.distribution.distribution() if keras.backend.backend() == "jax" else None
    if distribution is None or distribution.batch_dim_name is None:
        return None
    import jax

    mesh = distribution.device_mesh
    devices = mesh.shape[mesh.axis_names.index(distribution.batch_dim_name)]
    if devices == 1 or jax.sharding.get_abstract_mesh().manual_axes:  # under shard_map, inputs are those of one device
        return None
    return -(-inputs.shape[0] // devices)


def _value(variable: Any) -> Any:
    # Of a variable itself, TensorFlow's conversion gives back the variable, whose dtype is a string.
    return None if variable is None else keras.ops.convert_to_tensor(variable.value)


def _again(initializer: Any) -> Any:
    """A copy that draws the same numbers once more."""
    return initializer.clone() if hasattr(initializer, "clone") else initializer


def _translated(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration of Keras 3 or of tf.keras in our words."""
    config = dict(config)
    axis = config.get("axis", -1)
    if isinstance(axis, list | tuple):
        if config.get("virtual_batch_size"):
            axis = [item - 1 if item > 0 else item for item in axis]
        config["axis"] = axis[0] if len(axis) == 1 else list(axis)
    config["bessel_correction"] = bool(config.pop("fused", None))
    if (shape := config.pop("batch_input_shape", None)) is not None:
        config["input_shape"] = tuple(shape[1:])
    policy = config.get("dtype")
    if isinstance(policy, dict) and policy["class_name"] == "Policy":
        config["dtype"] = policy["config"]["name"]
    for name, value in config.items():
        if name.endswith("_initializer") and isinstance(value, dict) and "module" not in value:
            kept = {key: item for key, item in value["config"].items() if key != "dtype"}
            config[name] = {**value, "config": kept}
    return config
