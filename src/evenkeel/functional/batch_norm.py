# SPDX-License-Identifier: Apache-2.0
"""One step of batch normalization: `(x, params, state) -> (y, new_state)`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, SupportsIndex

from evenkeel import backends
from evenkeel.backends.contract import Normalized, Request, Tensor
from evenkeel.errors import ArgumentError
from evenkeel.functional import activations, modes, moments, moving, normalize, renorm, virtual
from evenkeel.functional import weights as weighting
from evenkeel.functional.choice import choose, enabled
from evenkeel.functional.layout import Layout

Axis = SupportsIndex | Iterable[SupportsIndex]


class Parameters(NamedTuple):
    """gamma, beta: learned scale and offset, shape `(channels,)`; None is 1 and 0."""

    gamma: Tensor | None = None
    beta: Tensor | None = None


def batch_norm(
    x: Tensor, params: Parameters, state: moving.State, *, training: bool, **options: Any
) -> tuple[Tensor, moving.State]:
    """A training step or an inference step, with the options of `training_step`.

    Inference takes the same options, so that one dictionary serves both; those that only training has do nothing there.

    Example:
        >>> x = np.array([[1.0], [3.0]])
        >>> y, state = batch_norm(x, Parameters(), ek.State(np.zeros(1), np.ones(1)), training=True, momentum=0.5)
        >>> y.round(3).ravel(), state.moving_mean, state.moving_variance
        (array([-1.,  1.]), array([1.]), array([1.]))
    """
    if modes.mode(training=training).batch:
        return training_step(x, params, state, **options)
    shared = {name: options[name] for name in ("axis", "epsilon", "activation", "residual") if name in options}
    return inference_step(x, params, state, **shared)


def inference_step(
    x: Tensor,
    params: Parameters,
    state: moving.State,
    *,
    axis: Axis = -1,
    epsilon: float = 1e-3,
    activation: str | None = None,
    residual: Tensor | None = None,
) -> tuple[Tensor, moving.State]:
    """Normalizes with the moving statistics; the state comes back as it was.

    Arguments as in `training_step`.
    """
    call = _Call.of(x, params, state, axis, epsilon, activation, residual)
    return call.cast_back(call.inference()), state


def training_step(
    x: Tensor,
    params: Parameters,
    state: moving.State,
    *,
    axis: Axis = -1,
    epsilon: float = 1e-3,
    momentum: float = 0.99,
    average: str = "exponential",
    bessel_correction: bool = False,
    mask: Tensor | None = None,
    sample_weight: Tensor | None = None,
    renorm: renorm.Renorm | None = None,
    virtual_batch_size: int | None = None,
    adjustment: Callable[[Any], tuple[Tensor, Tensor]] | None = None,
    activation: str | None = None,
    residual: Tensor | None = None,
    memory: str | None = None,
    synchronized: bool = False,
    group: Any = None,
) -> tuple[Tensor, moving.State]:
    """Normalizes with the statistics of the batch, and moves the state towards them.

    A batch without values, or with one value a channel, is normalized with the moving statistics and moves
    nothing; a channel whose statistics are not finite keeps its state.

    Args:
        x: a number type, shape `(batch, ..., channels, ...)`; integers are computed in float32.
        params: gamma and beta.
        state: moving statistics, in float32 or wider.
        axis: the axis of the channels, or several; `params` and `state` then have the shape of `x` with 1 elsewhere.
        epsilon: added to the variance.
        momentum: share of the old average that is kept.
        average: `"exponential"`, `"debiased"` or `"cumulative"`; see `moving.kept_share`.
        bessel_correction: the state keeps the sample variance (divided by n - 1) instead of the population's.
        mask: False removes a value from the statistics; `y` is there all the same.
        sample_weight: how much each value counts.
        renorm: limits and momentum of batch renormalization; the state must have its statistics.
        virtual_batch_size: groups of so many rows are normalized each by itself; the rest is a group of its own.
        adjustment: a function of the shape of `x` that gives a scale and an offset, applied before gamma and beta.
        activation: one of `activations.ACTIVATIONS` or None, applied to the result.
        residual: added before the activation; the shape of `x`.
        memory: what is kept for the backward pass, with PyTorch: `"recompute"` keeps `x` and computes the activation
            again; `"inplace"` keeps `y` alone and computes `x` from it, which needs an activation that can be turned
            round (`"leaky_relu"`, `"elu"`, None) and no residual. None is what the library does by itself.
        synchronized: statistics of all replicas together: of `tf.distribute` and torch.distributed; in JAX under
            `shard_map`, for under `jit` an array is the whole of its shards anyway.
        group: only of these replicas: a process group of torch, the names of mesh axes in JAX.

    Returns:
        `y` in the type of `x`, and the new state.

    References:
        Ioffe and Szegedy 2015, Batch Normalization; Ioffe 2017, Batch Renormalization; Hoffer, Hubara and Soudry
        2017, Train longer, generalize better (virtual batches); Rota Bulò, Porzi and Kontschieder 2018, In-Place
        Activated BatchNorm (memory).
    """
    if synchronized and virtual_batch_size:
        raise ArgumentError(virtual.WHOLE_AND_PARTS.format(size=virtual_batch_size))
    call = _Call.of(x, params, state, axis, epsilon, activation, residual, memory)
    all_reduce = call.backend.all_reduce(group) if synchronized else None
    count = moments.size(call.backend, call.x, call.layout)
    if moments.is_known(count) and count < 2 and all_reduce is None:
        return call.cast_back(call.inference()), state
    weights = weighting.combined(call.backend, call.x, call.layout, call.dtype, mask, sample_weight)
    kernel, asked = call.kernel(
        True,
        "several channel axes" if len(call.layout.channels) > 1 else None,
        "a mask or weights" if weights is not None else None,
        "renorm" if renorm else None,
        "virtual batches" if virtual_batch_size else None,
        "an adjustment" if adjustment else None,
        "replicas" if all_reduce else None,
    )
    if kernel is not None:
        y, batch = asked.by_kernel(kernel, count)
        y = y if asked is call else call.finish(y)
    else:
        y, batch = call.by_formula(weights, renorm, virtual_batch_size, adjustment, all_reduce)
    if call.backend.recomputing():
        return call.cast_back(y), state  # which has this batch already
    new_state = moving.updated(
        call.backend,
        call.state,
        mean=batch.mean,
        variance=batch.sample_variance if bessel_correction else batch.variance,
        usable=batch.usable,
        momentum=momentum,
        average=average,
        renorm_momentum=renorm.momentum if renorm else 0.0,
        epsilon=epsilon,
    )
    return call.cast_back(y), new_state


class _Batch(NamedTuple):
    """What a batch says; every entry in the shape of the parameters, `usable` a bool or of that shape."""

    mean: Tensor
    variance: Tensor
    sample_variance: Tensor
    usable: Tensor


class _Call(NamedTuple):
    """One call, its input converted and checked. `dtype` is the type that is computed in; the rest as in the step."""

    backend: Any
    x: Tensor
    params: Parameters
    state: moving.State
    layout: Layout
    epsilon: float
    dtype: str
    activation: str | None
    residual: Tensor | None
    memory: str | None

    @classmethod
    def of(
        cls,
        x: Tensor,
        params: Parameters,
        state: moving.State,
        axis: Axis,
        epsilon: float,
        activation: str | None,
        residual: Tensor | None = None,
        memory: str | None = None,
    ) -> _Call:
        activations.check(activation)
        backend = backends.of(x)
        x = backend.convert(x)
        dtype = moments.wide(backend.dtype(x))
        if "float" not in backend.dtype(x):
            x = backend.cast(x, dtype)
        layout = Layout.of(len(backend.shape(x)), axis)

        def ours(values: Iterable[Tensor | None]) -> Iterable[Tensor | None]:
            return (None if value is None else backend.convert(value, like=x) for value in values)

        params, state = Parameters(*ours(params)), moving.State(*ours(state))
        if residual is not None:
            residual = backend.convert(residual, like=x)
            if backend.shape(residual) != backend.shape(x):
                given, wanted = backend.shape(residual), backend.shape(x)
                raise ArgumentError(f"residual has shape {given}; give one of the input's shape, {wanted}")
        return cls(backend, x, params, state, layout, epsilon, dtype, activation, residual, memory)

    def kernel(self, training: bool, *obstacles: str | None) -> tuple[Any, _Call]:
        """The kernel that serves, or None, and what it is asked for: this call, or the normalization of it alone."""
        choice = choose(self.backend.NAME, self.request(training), *obstacles)
        if choice.kernel is not None:
            return choice.kernel, self
        if self.memory and enabled():
            raise ArgumentError(f"memory={self.memory!r} cannot be had here: {choice.reason}; leave it out")
        plain = self._replace(activation=None, residual=None)
        return choose(self.backend.NAME, plain.request(training), *obstacles).kernel, plain

    def request(self, training: bool) -> Request:
        return Request(
            training,
            self.backend.dtype(self.x),
            self.backend.shape(self.x),
            self.layout.channels[0],
            self.activation,
            self.residual is not None,
            self.memory,
            self.backend.device(self.x),
        )

    def options(self) -> dict[str, Any]:
        """For a kernel; what is not wanted is not mentioned."""
        found = {"axis": self.layout.channels[0], "epsilon": self.epsilon, "activation": self.activation}
        more = {"residual": self.residual, "memory": self.memory}
        return found | {name: value for name, value in more.items() if value is not None}

    def cast_back(self, y: Tensor) -> Tensor:
        dtype = self.backend.dtype(self.x)
        return y if self.backend.dtype(y) == dtype else self.backend.cast(y, dtype)

    def wide(self, value: Tensor | float) -> Tensor:
        return self.backend.cast(self.backend.convert(value, like=self.x), self.dtype)

    def spread(self, parameter: Tensor | None, layout: Layout) -> Tensor | None:
        if parameter is None:
            return None
        return layout.spread(self.backend, self.backend.cast(parameter, self.dtype))

    def affine(self) -> tuple[Tensor, Tensor]:
        """gamma and beta for a kernel, which wants both."""
        backend, shape = self.backend, self.backend.shape(self.state.moving_mean)
        gamma, beta = (
            backend.broadcast_to(self.wide(default), shape) if value is None else backend.cast(value, self.dtype)
            for value, default in zip(self.params, (1.0, 0.0), strict=True)
        )
        return gamma, beta

    def finish(self, y: Tensor) -> Tensor:
        """The residual, and then the activation."""
        if self.residual is not None:
            y = y + self.backend.cast(self.residual, self.backend.dtype(y))
        return activations.apply(self.backend, self.activation, y)

    def inference(self) -> Tensor:
        call = self._replace(memory=None)  # which is of training
        kernel, asked = call.kernel(False, "several channel axes" if len(call.layout.channels) > 1 else None)
        if kernel is not None:
            y = kernel.inference(
                call.x,
                *call.affine(),
                *(call.backend.cast(value, call.dtype) for value in call.state[:2]),
                **asked.options(),
            )
            return y if asked is call else call.finish(y)
        x = call.backend.cast(call.x, call.dtype)
        mean, variance, gamma, beta = (call.spread(value, call.layout) for value in (*call.state[:2], *call.params))
        return call.finish(normalize.apply(call.backend, x, mean, variance, gamma, beta, call.epsilon))

    def by_kernel(self, kernel: Any, count: Tensor | int) -> tuple[Tensor, _Batch]:
        def serve() -> tuple[Tensor, Tensor, Tensor]:
            # A plain tuple, as `decline` gives: tf.cond tells the two kinds apart.
            return tuple(kernel.training(self.x, *self.affine(), formula=self.formula, **self.options()))

        def decline() -> tuple[Tensor, Tensor, Tensor]:
            mean, variance = (self.backend.cast(value, self.dtype) for value in self.state[:2])
            return self.inference(), mean, variance

        usable = count > 1
        # A size that is known only when the graph runs may turn out to be too small for statistics.
        y, mean, variance = serve() if moments.is_known(count) else self.backend.cond(usable, serve, decline)
        return y, _Batch(mean, variance, variance * moments.bessel(self.backend, count), usable)

    def formula(self, x: Tensor, gamma: Tensor, beta: Tensor) -> Normalized:
        """The step that kernels serve, for those that cannot trust their library's numbers."""
        backend, layout = self.backend, self.layout
        wide = backend.cast(x, self.dtype)
        mean, variance, _, _ = moments.over(backend, wide, layout, None)
        gamma, beta = self.spread(gamma, layout), self.spread(beta, layout)
        y = normalize.apply(backend, wide, mean, variance, gamma, beta, self.epsilon)
        mean, variance = (layout.gather(backend, value, self.state.moving_mean) for value in (mean, variance))
        return Normalized(self.cast_back(y), mean, variance)

    def by_formula(
        self,
        weights: Tensor | None,
        renormalization: renorm.Renorm | None,
        virtual_batch_size: int | None,
        adjustment: Callable[[Any], tuple[Tensor, Tensor]] | None,
        all_reduce: Callable[[Tensor], Tensor] | None,
    ) -> tuple[Tensor, _Batch]:
        backend, layout = self.backend, self.layout
        x = backend.cast(self.x, self.dtype)
        if weights is not None:
            # Padding may hold NaN: it counts nowhere, and through 0 * NaN would still reach every gradient.
            x = backend.where(backend.cast(weights, "bool") | backend.is_finite(x), x, 0 * weights)
        if virtual_batch_size:
            x, weights, layout = virtual.split(backend, x, weights, layout, virtual_batch_size)
        mean, variance, count, present = moments.over(backend, x, layout, weights)
        if all_reduce:
            mean, variance, count, present = moments.merge_across(all_reduce, mean, variance, count, present)
        batch = self.summary(layout, mean, variance, count, present)
        if not (moments.is_known(present) and present > 1):
            usable = backend.convert(present, like=x) > 1
            old_mean, old_variance = (self.spread(value, layout) for value in self.state[:2])
            mean, variance = backend.where(usable, mean, old_mean), backend.where(usable, variance, old_variance)
        r = d = None
        if renormalization:
            r, d = (layout.spread(backend, value) for value in self.corrections(batch, renormalization))
        gamma, beta = (self.spread(value, layout) for value in self.params)
        if not adjustment:
            # (x * r + d) * gamma + beta as one scale and one offset
            r, d = renorm.composed(r, d, gamma, beta)
        y = normalize.apply(backend, x, mean, variance, r, d, self.epsilon)
        if virtual_batch_size:
            y = virtual.join(backend, y, self.x)
        if adjustment:
            scale, offset = adjustment(tuple(backend.size(self.x, axis) for axis in range(self.layout.ndim)))
            gamma, beta = (self.spread(value, self.layout) for value in self.params)
            for factor, term in ((scale, offset), (gamma, beta)):
                y = y if factor is None else y * self.wide(factor)
                y = y if term is None else y + self.wide(term)
        return self.finish(y), batch

    def summary(
        self, layout: Layout, mean: Tensor, variance: Tensor, count: Tensor | int, present: Tensor | int
    ) -> _Batch:
        """What the whole batch says; of groups, their average by count, since each was normalized by itself."""
        backend = self.backend
        sample = variance * moments.bessel(backend, count)
        # torch.compile makes a symbol of a comparison, of which there is no tensor, unless a branch depends on it.
        usable = True if moments.is_known(present) and present > 1 else present > 1
        if layout.groups:
            weight = backend.where(backend.convert(usable, like=mean), self.wide(count), self.wide(0.0))
            weight = backend.broadcast_to(weight, [backend.size(mean, axis) for axis in range(layout.ndim)])
            total = backend.sum(weight, layout.groups)
            mean, variance, sample = (
                moments.ratio(backend, backend.sum(value * weight, layout.groups), total)
                for value in (mean, variance, sample)
            )
            usable = total > 0
        if not isinstance(usable, bool):
            usable = backend.broadcast_to(usable, backend.shape(mean))
            usable = layout.gather(backend, usable, self.state.moving_mean)
        mean, variance, sample = (
            layout.gather(backend, value, self.state.moving_mean) for value in (mean, variance, sample)
        )
        return _Batch(mean, variance, sample, usable)

    def corrections(self, batch: _Batch, renormalization: renorm.Renorm) -> tuple[Tensor, Tensor]:
        """r and d of renorm; 1 and 0 where the moving statistics stand in for the batch's."""
        backend = self.backend
        r, d = renorm.corrections(
            backend,
            batch.mean,
            moving.deviation_of(batch.variance, self.epsilon),
            backend.cast(self.state.renorm_mean, self.dtype),
            backend.cast(self.state.renorm_stddev, self.dtype),
            limits=renormalization.limits,
            updates=self.state.updates,
            epsilon=self.epsilon,
        )
        usable = backend.convert(batch.usable, like=r)
        return backend.where(usable, r, 0.0 * r + 1), backend.where(usable, d, 0.0 * d)
