# SPDX-License-Identifier: Apache-2.0
"""Batch normalization as a module of Flax nnx."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from evenkeel import arguments
from evenkeel.errors import ArgumentError
from evenkeel.functional import activations, modes, moments, moving, virtual
from evenkeel.functional.batch_norm import Parameters, inference_step, training_step
from evenkeel.functional.layout import Layout
from evenkeel.functional.renorm import Limits, Renorm

UNDECIDED = (
    "use_running_average=None was given to the module and to the call; give False to train or True to serve, to one of "
    "them, or call train() or eval() of the model"
)

# What `functional` can do in the same step.
_FUSED: dict[Any, str] = {jax.nn.relu: "relu", jax.nn.leaky_relu: "leaky_relu", jax.nn.elu: "elu"}


class BatchNorm(nnx.BatchNorm):
    """Batch normalization; a drop-in for `flax.nnx.BatchNorm`.

    The arguments up to `scale_metadata` are Flax's, with Flax's defaults; variables have its names and types, so states
    and checkpoints of Flax's module fit. What differs is what goes wrong there: the variance is right far from zero,
    one NaN never reaches the statistics, a batch of one value a channel is normalized with the running statistics,
    masks of unequal counts are exact across devices, and several axes work.

    Args:
        num_features: the size of the channel axis; of several axes, the product of their sizes.
        use_running_average: normalize with the running statistics, and keep them. `train()` and `eval()` set it; None
            leaves it to the call.
        axis: the axis of the channels, or several.
        momentum: share of the old average that is kept, in [0, 1].
        epsilon: added to the variance, not negative.
        dtype: of the output; None is what the input, the statistics and the parameters promote to.
        param_dtype: of scale and bias. The statistics are float32.
        use_bias, use_scale: have beta, have gamma.
        bias_init, scale_init: initializers, functions of key, shape and type.
        axis_name: synchronize along this axis, or these, of `shard_map`, `pmap` or `vmap`.
        axis_index_groups: only within these groups of positions along `axis_name`, under `pmap`.
        use_fast_variance: without effect, and False as an attribute: the mean is always taken away before squaring.
        promote_dtype: Flax's function that decides the type of the output where `dtype` is None.
        rngs: streams of random numbers; the initializers take "params".
        bias_metadata, scale_metadata: metadata of the parameters, such as their sharding.
        renorm: batch renormalization, without limits unless `renorm_clipping` gives some.
        renorm_clipping: `rmin`, `rmax`, `dmax`, each a number or a function of the number of updates so far, such as a
            schedule of optax.
        renorm_momentum: share of the old renorm statistics that is kept.
        synchronized: statistics of the whole batch over all devices of a `jax.shard_map`, along all axes that it maps
            over, or along `axis_name`, which says so by itself.
        virtual_batch_size: in training, normalize groups of so many rows each by itself; any batch size.
        average: of the statistics: "exponential", "debiased" (the start value leaves no trace) or "cumulative" (every
            batch counts the same).
        bessel_correction: `var` keeps the sample variance (n - 1) instead of the population variance (n).
        activation: applied to the output: any function, or "relu", "leaky_relu" or "elu".
        frozen: True uses the running statistics and keeps them, after `train()` too, while scale and bias still learn;
            "all" gives scale and bias no gradient either. May be changed later; `nnx.jit` notices.

    Call arguments:
        x: real numbers, shape `(batch, ..., channels, ...)`.
        use_running_average: goes before what the module was told.
        mask: False, or 0, removes a value from the statistics; any shape that broadcasts against the input, or that of
            the input without the channels.
        sample_weight: how much each value counts; shapes as for `mask`.
        residual: added before the activation; shape of `x`.

    Variables: `scale`, `bias` (`nnx.Param`), `mean`, `var` (`nnx.BatchStat`), shape `(num_features,)`; with renorm also
    `moving_stddev`, `renorm_mean`, `renorm_stddev`, and with an average or a schedule that counts `updates`.

    Raises:
        ArgumentError: an argument that cannot be honoured, in the constructor; an input of another number of features,
            in the call. AxisError: an axis that the input does not have. UnknownTensorError: complex numbers.

    Example:
        >>> layer = BatchNorm(1, momentum=0.5, rngs=nnx.Rngs(0))
        >>> layer(np.array([[1.0], [3.0]], "float32")).ravel().round(2)
        Array([-1.,  1.], dtype=float32)
        >>> layer.mean[...], layer.var[...]
        (Array([1.], dtype=float32), Array([1.], dtype=float32))

    References:
        Ioffe and Szegedy 2015, Batch Normalization.
    """

    def __init__(
        self,
        num_features: int,
        *,
        use_running_average: bool | None = False,
        axis: int | Iterable[int] = -1,
        momentum: float = 0.99,
        epsilon: float = 1e-5,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        use_bias: bool = True,
        use_scale: bool = True,
        bias_init: Callable[..., Any] = nnx.initializers.zeros_init(),  # noqa: B008
        scale_init: Callable[..., Any] = nnx.initializers.ones_init(),  # noqa: B008
        axis_name: str | Sequence[str] | None = None,
        axis_index_groups: Iterable[Iterable[int]] | None = None,
        use_fast_variance: bool = True,
        promote_dtype: Callable[..., Any] | None = None,
        rngs: nnx.Rngs,
        bias_metadata: Mapping[str, Any] = MappingProxyType({}),
        scale_metadata: Mapping[str, Any] = MappingProxyType({}),
        renorm: bool = False,
        renorm_clipping: dict[str, Any] | None = None,
        renorm_momentum: float = 0.99,
        synchronized: bool = False,
        virtual_batch_size: int | None = None,
        average: str = "exponential",
        bessel_correction: bool = False,
        activation: Callable[[Any], Any] | str | None = None,
        frozen: bool | str = False,
    ) -> None:
        axes = arguments.axes(axis)
        # Lists become tuples, and scalars numbers: what is no variable is part of the key of a compiled function.
        super().__init__(
            arguments.positive_integer("num_features", num_features),
            use_running_average=use_running_average,
            axis=axes if isinstance(axis, Iterable) else axes[0],  # type: ignore[arg-type]
            momentum=arguments.number("momentum", momentum, low=0, high=1),
            epsilon=arguments.number("epsilon", epsilon, low=0),
            dtype=None if dtype is None else _floating("dtype", dtype),
            param_dtype=_floating("param_dtype", param_dtype),
            use_bias=use_bias,
            use_scale=use_scale,
            bias_init=bias_init,
            scale_init=scale_init,
            axis_name=axis_name if axis_name is None or isinstance(axis_name, str) else tuple(axis_name),  # type: ignore[arg-type]
            axis_index_groups=None if axis_index_groups is None else tuple(map(tuple, axis_index_groups)),
            use_fast_variance=False,
            rngs=rngs,
            bias_metadata=bias_metadata,
            scale_metadata=scale_metadata,
            **({} if promote_dtype is None else {"promote_dtype": promote_dtype}),
        )
        if axis_index_groups is not None and axis_name is None:
            raise ArgumentError(
                f"axis_index_groups={axis_index_groups!r} are positions along an axis; give axis_name too"
            )
        if virtual_batch_size is not None:
            whole = bool(synchronized) or axis_name is not None
            virtual_batch_size = virtual.check(virtual_batch_size, axis, synchronized=whole)
        if isinstance(activation, str):
            activations.check(activation)
        elif activation is not None and not callable(activation):
            raise ArgumentError(f"activation={activation!r} is not a function; give one, its name or None")
        limits = Limits(
            *(limit if limit is None or callable(limit) else float(limit) for limit in Limits.of(renorm_clipping))
        )
        self.renorm = (
            Renorm(limits, arguments.number("renorm_momentum", renorm_momentum, low=0, high=1)) if renorm else None
        )
        self.synchronized = bool(synchronized)
        self.virtual_batch_size = virtual_batch_size
        self.average = arguments.choice("average", average, moving.AVERAGES)
        self.bessel_correction = bool(bessel_correction)
        self.activation: Any = _FUSED.get(activation, activation)
        self.frozen = frozen
        counted = moving.counts_updates(average) or (renorm and limits.scheduled)
        self.moving_stddev = nnx.BatchStat(jnp.sqrt(self.var[...])) if renorm else None
        self.renorm_mean = nnx.BatchStat(jnp.zeros_like(self.mean[...])) if renorm else None
        self.renorm_stddev = nnx.BatchStat(jnp.sqrt(self.var[...])) if renorm else None
        self.updates = nnx.BatchStat(jnp.zeros(num_features, "int32")) if counted else None

    @property
    def frozen(self) -> bool | str:
        """Whether the statistics stay as they are; "all" if scale and bias do too."""
        return self._frozen

    @frozen.setter
    def frozen(self, value: bool | str) -> None:
        self._frozen = modes.frozen(value)

    def __call__(
        self,
        x: Any,
        use_running_average: bool | None = None,
        *,
        mask: Any = None,
        sample_weight: Any = None,
        residual: Any = None,
    ) -> jax.Array:
        if use_running_average is None:
            use_running_average = self.use_running_average
        if use_running_average is None:
            raise ArgumentError(UNDECIDED)
        mode = modes.mode(training=not use_running_average, frozen=bool(self.frozen))
        x = jnp.asarray(x)
        shape = self._parameter_shape(x)
        variables = moving.State(
            self.mean, self.var, self.moving_stddev, self.renorm_mean, self.renorm_stddev, self.updates
        )
        params = Parameters(*(_value(variable) for variable in (self.scale, self.bias)))
        if self.frozen == "all":
            params = jax.lax.stop_gradient(params)
        state = moving.State(*map(_value, variables))
        dtype = self._result_type(x, params, state)
        if x.dtype != dtype:
            # In the type that is computed in, so that nothing is rounded twice.
            x = x.astype(max(moments.wide(x.dtype.name), moments.wide(dtype.name)))  # "float64" > "float32"
        params, state = jax.tree.map(lambda value: value.reshape(shape), (params, state))
        fused = self.activation if isinstance(self.activation, str) else None
        shared = {"axis": self.axis, "epsilon": self.epsilon, "activation": fused, "residual": residual}
        if mode.batch:
            y, state = training_step(
                x,
                params,
                state,
                momentum=self.momentum,
                average=self.average,
                bessel_correction=self.bessel_correction,
                mask=mask,
                sample_weight=sample_weight,
                renorm=self.renorm,
                virtual_batch_size=self.virtual_batch_size,
                synchronized=self.synchronized or self.axis_name is not None,
                group=self._group(),
                **shared,
            )
        else:
            y, state = inference_step(x, params, state, **shared)
        if mode.updates:
            for variable, value in zip(variables, state, strict=True):
                if variable is not None:
                    variable[...] = value.reshape(self.num_features)
        y = y.astype(dtype)
        return y if fused or self.activation is None else self.activation(y)

    def _parameter_shape(self, x: jax.Array) -> tuple[int, ...]:
        """What `functional` wants of parameters, which are kept in one dimension."""
        shape = Layout.of(x.ndim, self.axis).parameter_shape(x.shape)
        if math.prod(shape) != self.num_features:
            raise ArgumentError(
                f"input has shape {x.shape}, with {math.prod(shape)} features along axis {self.axis}; "
                f"give {self.num_features}, as num_features says, or another axis"
            )
        return shape

    def _result_type(self, x: jax.Array, params: Parameters, state: moving.State) -> Any:
        """As Flax finds it: the statistics take part."""
        moments.wide(x.dtype.name)  # complex numbers end here
        if self.dtype is not None:
            return jnp.dtype(self.dtype)
        promote = functools.partial(self.promote_dtype, dtype=None)
        x, _, _, *params = jax.eval_shape(promote, (x, *state[:2], *params))
        return jnp.result_type(*(value.dtype for value in (x, *params) if value is not None))

    def _group(self) -> Any:
        if self.axis_index_groups is None:
            return self.axis_name
        return functools.partial(jax.lax.psum, axis_name=self.axis_name, axis_index_groups=self.axis_index_groups)


def _value(variable: Any) -> Any:
    return None if variable is None else variable[...]


def _floating(name: str, dtype: Any) -> Any:
    """`dtype` where numbers with a fraction can be kept in it."""
    try:
        if jnp.issubdtype(dtype, jnp.floating):
            return dtype
    except TypeError:
        pass
    raise ArgumentError(f"{name}={dtype!r} is not a real floating type; give one such as jnp.float32 or jnp.bfloat16")
