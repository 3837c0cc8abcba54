# SPDX-License-Identifier: Apache-2.0
"""Batch normalization as modules of PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from evenkeel import arguments
from evenkeel.errors import ArgumentError
from evenkeel.functional import modes, moving, virtual
from evenkeel.functional.activations import ACTIVATIONS, INVERTIBLE
from evenkeel.functional.batch_norm import Parameters, inference_step, training_step
from evenkeel.functional.renorm import Limits, Renorm

ONLY_OURS = "{name} has what torch.nn.{kind} lacks: {what}; leave it evenkeel's"
NO_RANK = "{name} takes inputs of any rank, which torch has with synchronized=True only; leave it evenkeel's"
NO_SIZE = "{name} does not know its channels yet, and torch has no lazy SyncBatchNorm; run it on a batch first"
NOT_TOGETHER = "{names}: virtual_batch_size and memory go without synchronized=True; make them anew without"
ALONE = """\
an input of shape {shape} arrived in training: one value a channel, and there are no running statistics to normalize \
it with; give larger batches, or track_running_stats=True"""

_FUSED: dict[Any, str] = {
    torch.relu: "relu",
    torch.nn.functional.relu: "relu",
    torch.nn.functional.leaky_relu: "leaky_relu",
    torch.nn.functional.elu: "elu",
}
_EXTRA_STATE = ("moving_stddev", "renorm_mean", "renorm_stddev", "updates")


class _Normalizer(torch.nn.Module):
    """What our modules have beside what torch's have; it stands before one of torch's among the bases."""

    # Any: torch's classes say which of their attributes are None, each in its own way.
    eps: Any
    momentum: Any
    num_features: Any
    track_running_stats: Any
    weight: Any
    bias: Any
    running_mean: Any
    running_var: Any
    num_batches_tracked: Any
    moving_stddev: Any
    renorm_mean: Any
    renorm_stddev: Any
    updates: Any

    def __init__(
        self,
        *args: Any,
        device: Any = None,
        axis: int = 1,
        average: str = "exponential",
        bessel_correction: bool = True,
        renorm: bool = False,
        renorm_clipping: dict[str, Any] | None = None,
        renorm_momentum: float = 0.01,
        virtual_batch_size: int | None = None,
        activation: str | Callable[[torch.Tensor], torch.Tensor] | None = None,
        frozen: bool | str = False,
        synchronized: bool = False,
        process_group: Any = None,
        memory: str | None = None,
        **kwargs: Any,
    ) -> None:
        if device is not None:  # which has a name here because torch.nn.utils.skip_init looks for it
            kwargs["device"] = device
        super().__init__(*args, **kwargs)
        arguments.number("eps", self.eps, low=0)
        if self.momentum is not None:
            arguments.number("momentum", self.momentum, low=0, high=1)
        self._take(
            axis=axis,
            average=average,
            bessel_correction=bessel_correction,
            renorm=renorm,
            renorm_clipping=renorm_clipping,
            renorm_momentum=renorm_momentum,
            virtual_batch_size=virtual_batch_size,
            activation=activation,
            frozen=frozen,
            synchronized=synchronized,
            process_group=process_group,
            memory=memory,
        )

    def _take(
        self,
        *,
        axis: int = 1,
        average: str = "exponential",
        bessel_correction: bool = True,
        renorm: bool = False,
        renorm_clipping: dict[str, Any] | None = None,
        renorm_momentum: float = 0.01,
        virtual_batch_size: int | None = None,
        activation: Any = None,
        frozen: bool | str = False,
        synchronized: bool = False,
        process_group: Any = None,
        memory: str | None = None,
    ) -> None:
        """Make ours of what torch has made."""
        axes = arguments.axes(axis)
        if len(axes) > 1:
            raise ArgumentError(f"axis={axis!r} names several axes; give one, as torch's weight has one dimension")
        (self.axis,) = axes
        self.average = arguments.choice("average", average, moving.AVERAGES)
        self.bessel_correction = bessel_correction
        self.renorm_clipping = renorm_clipping
        limits = Limits.of(renorm_clipping)
        self.renorm_momentum = arguments.number("renorm_momentum", renorm_momentum, low=0, high=1)
        self.renorm = Renorm(limits, 1.0 - self.renorm_momentum) if renorm else None
        if renorm and not self.track_running_stats:
            raise ArgumentError("renorm=True corrects towards the running statistics; give track_running_stats=True")
        if virtual_batch_size is not None:
            virtual_batch_size = virtual.check(virtual_batch_size, axis, synchronized=bool(synchronized))
        self.virtual_batch_size = virtual_batch_size
        self.synchronized = bool(synchronized)
        if process_group is not None and not synchronized:
            raise ArgumentError("process_group says with whom to synchronize; give synchronized=True too")
        self.process_group = process_group
        self.activation = _activation(activation)
        if memory is not None:
            arguments.choice("memory", memory, ["recompute", "inplace"])
            if memory == "inplace" and self.activation not in INVERTIBLE:
                raise ArgumentError(
                    f"memory='inplace' finds x again from the result, which activation={activation!r} does not allow; "
                    "give 'leaky_relu', 'elu' or None, or memory='recompute'"
                )
            if renorm or virtual_batch_size or synchronized:
                raise ArgumentError(
                    f"memory={memory!r} goes without renorm, virtual_batch_size and synchronized; leave it out"
                )
        self.memory = memory
        self._frozen: bool | str = False
        self._held: tuple[str, ...] = ()
        self.frozen = frozen
        for name in _EXTRA_STATE:
            self.register_buffer(name, None)
        self._add_statistics()

    def _add_statistics(self) -> None:
        """The buffers that torch's modules lack, beside those that they have."""
        mean, variance = self.running_mean, self.running_var
        if mean is None or variance is None or _is_lazy(mean):
            return
        self._widen(self._statistics())
        mean, variance = self.running_mean, self.running_var
        if self.renorm and self.moving_stddev is None:
            self.moving_stddev = moving.deviation_of(variance, self.eps)
            self.renorm_mean, self.renorm_stddev = mean.clone(), self.moving_stddev.clone()
        if self.momentum is None or self._keeps_updates():
            counted = self.num_batches_tracked.expand(self.num_features).clone()
            self.register_buffer("updates", counted, persistent=self._keeps_updates())

    def _keeps_updates(self) -> bool:
        """Whether the updates of each channel are among the keys; torch's momentum=None has no such key."""
        return moving.counts_updates(self.average) or (self.renorm is not None and self.renorm.limits.scheduled)

    @property
    def frozen(self) -> bool | str:
        """Whether the running statistics are used and kept in training too; "all" if weight and bias stay as well."""
        return self._frozen

    @frozen.setter
    def frozen(self, value: bool | str) -> None:
        if modes.frozen(value) and not self.track_running_stats:
            raise ArgumentError(f"frozen={value!r} uses the running statistics; give track_running_stats=True")
        for name in self._held:
            getattr(self, name).requires_grad = True
        learning = [name for name in ("weight", "bias") if getattr(getattr(self, name), "requires_grad", False)]
        self._held = tuple(learning) if value == "all" else ()
        for name in self._held:
            getattr(self, name).requires_grad = False
        self._frozen = value

    def forward(
        self,
        input: torch.Tensor,
        residual: torch.Tensor | None = None,
        *,
        mask: torch.Tensor | None = None,
        sample_weight: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Normalize.

        Args:
            input: shape `(batch, channels, ...)`, or with the channels at `axis`.
            residual: added before the activation; shape of the input.
            mask: False removes a value from the statistics; any shape that broadcasts against the input, or that of
                the input without the channels.
            sample_weight: how much each value counts; shapes as for `mask`.
        """
        if isinstance(input, torch.fx.Proxy):  # a leaf of the graph, as torch's own modules are
            named = {"residual": residual, "mask": mask, "sample_weight": sample_weight}
            named = {name: value for name, value in named.items() if value is not None}
            path = input.tracer.path_of_module(self)
            return input.tracer.create_proxy("call_module", path, (input,), named)
        self._check_input_dim(input)
        if input.shape[self.axis] != self.num_features:
            raise ArgumentError(
                f"input has shape {tuple(input.shape)}, and num_features={self.num_features} is not its size at axis "
                f"{self.axis}; give one of the two another size"
            )
        has_statistics = self.running_mean is not None
        if has_statistics and self.running_mean.device != input.device:
            raise ArgumentError(
                f"input is on {input.device} and the module on {self.running_mean.device}; move one of them with .to()"
            )
        mode = modes.mode(training=self.training or not has_statistics, frozen=bool(self._frozen))
        params, state = Parameters(self.weight, self.bias), self._state(input)
        if self._frozen == "all":  # whatever model.requires_grad_(True) has done since
            params = Parameters(*(None if value is None else value.detach() for value in params))
        fused = self.activation if isinstance(self.activation, str) else None
        shared = {"axis": self.axis, "epsilon": self.eps, "activation": fused, "residual": residual}
        if not mode.batch:
            y, _ = inference_step(input, params, state, **shared)
        else:
            y, new_state = training_step(
                input,
                params,
                state,
                momentum=1.0 if self.momentum is None else 1.0 - self.momentum,
                average="cumulative" if self.momentum is None else self.average,
                bessel_correction=self.bessel_correction,
                mask=mask,
                sample_weight=sample_weight,
                renorm=self.renorm,
                virtual_batch_size=self.virtual_batch_size,
                memory=self.memory,
                synchronized=self.synchronized,
                group=self.process_group,
                **shared,
            )
            if self.training and self.track_running_stats and has_statistics and new_state is not state:
                self._keep(new_state)
        return y if fused or self.activation is None else self.activation(y)

    def _check_input_dim(self, input: torch.Tensor) -> None:
        super()._check_input_dim(input)  # type: ignore[misc]
        arguments.axes_within((self.axis,), input.dim())

    def _state(self, input: torch.Tensor) -> moving.State:
        if self.running_mean is None:
            distributed = torch.distributed
            alone = not (self.synchronized and distributed.is_available() and distributed.is_initialized())
            if 0 < input.numel() == self.num_features and alone:
                raise ArgumentError(ALONE.format(shape=tuple(input.shape)))
            mean = input.new_zeros([self.num_features], dtype=torch.promote_types(input.dtype, torch.float32))
            return moving.State(mean, mean + 1, updates=torch.zeros_like(mean))
        if self.updates is None and self.momentum is None:  # torch.optim.swa_utils.update_bn takes the momentum away
            self._add_statistics()
        statistics = (self.running_mean, self.running_var, *(getattr(self, name) for name in _EXTRA_STATE))
        state = moving.State(*statistics)
        if self.updates is not None and self.momentum is None and self.training and self.num_features:
            # torch's number decides, which a program may have set.
            behind = self.num_batches_tracked - self.updates.max()
            state = state._replace(updates=(self.updates + behind).clamp(min=0))
        return state

    def _keep(self, state: moving.State) -> None:
        names = ("running_mean", "running_var", *_EXTRA_STATE)
        for name, value in zip(names, state, strict=True):
            if value is not None:
                getattr(self, name).copy_(value)
        if self.num_batches_tracked is None:  # which a program may have set
            return
        if self.updates is not None and self.num_features:
            self.num_batches_tracked.copy_(self.updates.max())
        else:
            self.num_batches_tracked.add_(1)

    def reset_running_stats(self) -> None:
        super().reset_running_stats()  # type: ignore[misc]
        if getattr(self, "moving_stddev", None) is not None:
            self.moving_stddev.copy_(moving.deviation_of(self.running_var, self.eps))
            self.renorm_mean.copy_(self.running_mean)
            self.renorm_stddev.copy_(self.moving_stddev)
        if getattr(self, "updates", None) is not None:
            self.updates.zero_()

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        # .half() and .bfloat16() are for what is learned: 1 % of a small difference is less than 16 bits can add.
        before = self._statistics()
        super()._apply(fn, recurse)
        self._widen(before)
        return self

    def _statistics(self) -> dict[str, torch.Tensor]:
        names = ("running_mean", "running_var", *_EXTRA_STATE)
        return {name: value for name in names if (value := getattr(self, name, None)) is not None}

    def _widen(self, before: dict[str, torch.Tensor]) -> None:
        """Statistics of 16 bits become float32, with the values that they had `before`."""
        for name, value in before.items():
            now = getattr(self, name)
            if now.dtype in (torch.float16, torch.bfloat16) and not _is_lazy(now):
                setattr(self, name, value.to(device=now.device, dtype=torch.float32))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        if _is_lazy(self.running_mean):
            super()._load_from_state_dict(state_dict, prefix, *rest)
            return
        # Files of torch's modules lack what only ours have.
        mean, variance = (state_dict.get(f"{prefix}{name}") for name in ("running_mean", "running_var"))
        if self.renorm and mean is not None and variance is not None:
            wide = variance.to(torch.promote_types(variance.dtype, torch.float32))
            deviation = moving.deviation_of(wide, self.eps)
            for name, value in zip(_EXTRA_STATE, (deviation, mean.clone(), deviation.clone()), strict=False):
                state_dict.setdefault(f"{prefix}{name}", value)
        counted = state_dict.get(f"{prefix}num_batches_tracked")
        named = f"{prefix}updates" in state_dict
        if self._keeps_updates() and f"{prefix}running_mean" in state_dict:
            counted = torch.tensor(0) if counted is None else counted
            state_dict.setdefault(f"{prefix}updates", counted.expand(self.num_features).clone())
        super()._load_from_state_dict(state_dict, prefix, *rest)
        self._widen(self._statistics())  # load_state_dict(assign=True) takes tensors as they are
        if self.updates is not None and not named:
            self.updates = self.num_batches_tracked.expand(self.num_features).clone()

    def extra_repr(self) -> str:
        defaults = {"axis": 1, "average": "exponential", "bessel_correction": True, "activation": None}
        defaults |= {"frozen": False, "memory": None, "synchronized": False, "virtual_batch_size": None}
        shown = {name: value for name, default in defaults.items() if (value := getattr(self, name)) != default}
        shown = {name: value for name, value in shown.items() if not isinstance(value, torch.nn.Module)}
        if self.renorm:
            shown["renorm"] = True
        return ", ".join([super().extra_repr(), *(f"{name}={value!r}" for name, value in shown.items())])


def _activation(given: Any) -> Any:
    """A name that the step knows, or what is to be called after it."""
    plain = {torch.nn.ReLU: "relu", torch.nn.LeakyReLU: "leaky_relu", torch.nn.ELU: "elu"}
    name = plain.get(type(given))
    if name and getattr(given, "negative_slope", 0.01) == 0.01 and getattr(given, "alpha", 1.0) == 1.0:
        return name
    if given is None or isinstance(given, str):
        return given if given is None else arguments.choice("activation", given, ACTIVATIONS)
    if not callable(given) or isinstance(given, type):
        raise ArgumentError(f"activation={given!r} is no function; give one, or one of {', '.join(ACTIVATIONS)}")
    return _FUSED.get(given, given)


def _is_lazy(value: Any) -> bool:
    return isinstance(value, torch.nn.UninitializedParameter | torch.nn.UninitializedBuffer)


_AnyRank: Any = torch.nn.BatchNorm1d.__base__  # which has no public name


class BatchNorm(_Normalizer, _AnyRank):
    """Batch normalization of inputs of any rank, the channels at any axis.

    A drop-in for torch's modules: the arguments up to `bias` are torch's, in torch's order and with torch's defaults
    and sense of momentum, and so are the keys of `state_dict`. What differs is what goes wrong there: one NaN never
    reaches the running statistics, a batch of one value a channel is normalized with the running statistics, statistics
    stay in float32 under `.half()` and `.bfloat16()`, and what torch.utils.checkpoint computes again counts once.

    `BatchNorm1d`, `BatchNorm2d` and `BatchNorm3d` take the same arguments, and the ranks that torch's take; so do the
    lazy ones, without `num_features`.

    Args:
        num_features: channels.
        eps: added to the variance, not negative.
        momentum: share of the running statistics that a batch replaces, in [0, 1]; None: every batch counts the same.
        affine, bias: have weight, have bias.
        track_running_stats: False normalizes with the batch in both phases.
        axis: of the channels.
        average: of the running statistics: "exponential", "debiased" (the start value leaves no trace) or "cumulative".
        bessel_correction: the running variance keeps the sample variance (n - 1), as torch's does; False: the
            population's (n).
        renorm: batch renormalization, without limits unless `renorm_clipping` gives some.
        renorm_clipping: `rmin`, `rmax`, `dmax`, each a number or a function of the number of updates so far.
        renorm_momentum: share of the renorm statistics that a batch replaces.
        virtual_batch_size: in training, normalize groups of so many rows each by itself; any batch size.
        activation: applied to the result: "relu", "leaky_relu" or "elu" with torch's defaults, which may be computed in
            the same step, or any function or module.
        frozen: True uses the running statistics and keeps them, whatever `train()` says, while weight and bias still
            learn; "all" keeps weight and bias too. May be changed later.
        synchronized: statistics of the whole batch over all processes of torch.distributed, or of `process_group`. That
            belongs to a run: leave it out of what is pickled.
        memory: what is kept for the backward pass. "recompute": the input alone, from which the activation is computed
            again. "inplace": the result alone, from which the input is computed again to the precision of its type,
            which is little where weight is near 0; for "leaky_relu", "elu" or no activation, and no residual. None:
            what is fastest.

    Raises:
        ArgumentError: an argument that cannot be honoured, in the constructor; an input of another number of channels.

    Example:
        >>> module = BatchNorm(1, momentum=0.5)
        >>> module(torch.tensor([[1.0], [3.0]])).detach().ravel()
        tensor([-1.0000,  1.0000])
        >>> module.running_mean, module.running_var
        (tensor([1.]), tensor([1.5000]))

    References:
        Ioffe and Szegedy 2015, Batch Normalization; torch.nn.BatchNorm1d.
    """

    def _check_input_dim(self, input: torch.Tensor) -> None:
        arguments.axes_within((self.axis,), input.dim())


class BatchNorm1d(_Normalizer, torch.nn.BatchNorm1d):
    """For inputs of two or three dimensions; see `BatchNorm`."""


class BatchNorm2d(_Normalizer, torch.nn.BatchNorm2d):
    """For inputs of four dimensions; see `BatchNorm`."""


class BatchNorm3d(_Normalizer, torch.nn.BatchNorm3d):
    """For inputs of five dimensions; see `BatchNorm`."""


class _Lazy(_Normalizer):
    def initialize_parameters(self, input: torch.Tensor, *_: Any, **__: Any) -> None:
        if self.num_features == 0:
            self._initialize(input.movedim(self.axis, 1))

    def _initialize(self, like: torch.Tensor) -> None:
        super().initialize_parameters(like)  # type: ignore[misc]
        self.num_features = like.shape[1]  # which torch leaves at 0 where nothing is to be initialized
        self._add_statistics()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        value = state_dict.get(f"{prefix}running_mean", state_dict.get(f"{prefix}weight"))
        if self.num_features == 0 and value is not None and not _is_lazy(value):
            self._initialize(value.unsqueeze(0))
        super()._load_from_state_dict(state_dict, prefix, *rest)


class LazyBatchNorm1d(_Lazy, torch.nn.LazyBatchNorm1d):
    """`BatchNorm1d` with as many channels as its first input has."""

    cls_to_become = BatchNorm1d


class LazyBatchNorm2d(_Lazy, torch.nn.LazyBatchNorm2d):
    """`BatchNorm2d` with as many channels as its first input has."""

    cls_to_become = BatchNorm2d


class LazyBatchNorm3d(_Lazy, torch.nn.LazyBatchNorm3d):
    """`BatchNorm3d` with as many channels as its first input has."""

    cls_to_become = BatchNorm3d


_OURS: dict[type, type] = {
    torch.nn.BatchNorm1d: BatchNorm1d,
    torch.nn.BatchNorm2d: BatchNorm2d,
    torch.nn.BatchNorm3d: BatchNorm3d,
    torch.nn.LazyBatchNorm1d: LazyBatchNorm1d,
    torch.nn.LazyBatchNorm2d: LazyBatchNorm2d,
    torch.nn.LazyBatchNorm3d: LazyBatchNorm3d,
    torch.nn.SyncBatchNorm: BatchNorm,
}
_THEIRS = {ours: theirs for theirs, ours in _OURS.items()}


def convert(
    module: torch.nn.Module, to: str = "evenkeel", *, synchronized: bool | None = None, process_group: Any = None
) -> torch.nn.Module:
    """Make every BatchNorm and SyncBatchNorm of torch in a module ours, in place; or the other way round.

    The modules stay the objects that they are, with their parameters, buffers and hooks, wherever they stand: an
    optimizer goes on. What derives from torch's classes stays as it is: what it does is not known.

    Args:
        module: a network, or a normalizer by itself.
        to: "evenkeel", or "torch" for the way back.
        synchronized: what all of them are to be, those that are ours already too; None leaves each as it is. For
            "torch", True gives SyncBatchNorm.
        process_group: with whom, where `synchronized=True`.

    Returns:
        The module that was given.

    Raises:
        ArgumentError: for "torch", a module with something that torch's do not have; all are named, none is changed.

    Example:
        >>> network = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
        >>> convert(network)[1]
        BatchNorm1d(3, eps=1e-05, momentum=0.1, affine=True, ..., track_running_stats=True)
        >>> type(network[1]).__module__, type(convert(network, to="torch")[1]) is torch.nn.BatchNorm1d
        ('evenkeel.layers.torch', True)
    """
    arguments.choice("to", to, ["evenkeel", "torch"])
    if not isinstance(module, torch.nn.Module):
        raise ArgumentError(f"convert() got {module!r}; give a torch.nn.Module")
    if process_group is not None and not synchronized:
        raise ArgumentError("process_group says with whom to synchronize; give synchronized=True too")
    found = [(name or type(part).__name__, part) for name, part in module.named_modules()]
    if to == "evenkeel":
        parts = [(name, part) for name, part in found if synchronized and type(part) in _THEIRS]
        if alone := [name for name, part in parts if part.virtual_batch_size or part.memory]:
            raise ArgumentError(NOT_TOGETHER.format(names=", ".join(alone)))
        for _, part in found:
            if type(part) in _OURS:
                _to_ours(part)
            if type(part) in _THEIRS and synchronized is not None:
                part.synchronized = synchronized
                part.process_group = (process_group or part.process_group) if synchronized else None
        return module
    ours = [(name, part) for name, part in found if type(part) in _THEIRS]
    if lacking := [text for name, part in ours if (text := _only_ours(name, part, synchronized))]:
        raise ArgumentError("\n".join(lacking))
    for _, part in ours:
        _to_theirs(part, part.synchronized if synchronized is None else synchronized, process_group)
    return module


def _to_ours(part: Any) -> None:
    was_synchronized = type(part) is torch.nn.SyncBatchNorm
    group = part.process_group if was_synchronized else None
    part.__class__ = _OURS[type(part)]
    part._take(synchronized=was_synchronized, process_group=group)


def _to_theirs(part: Any, synchronized: bool, process_group: Any) -> None:
    group = process_group or part.process_group
    for name in ("axis", "average", "bessel_correction", "renorm", "renorm_clipping", "renorm_momentum"):
        delattr(part, name)
    for name in ("virtual_batch_size", "synchronized", "process_group", "activation", "memory", "_frozen", "_held"):
        delattr(part, name)
    for name in _EXTRA_STATE:
        delattr(part, name)
    if part.weight is not None and part.weight.dtype in (torch.float16, torch.bfloat16):
        # torch has one type for all of a module; with statistics of another it refuses an input of 16 bits.
        for name in ("running_mean", "running_var") if part.track_running_stats else ():
            setattr(part, name, getattr(part, name).to(part.weight.dtype))
    part.__class__ = torch.nn.SyncBatchNorm if synchronized else _THEIRS[type(part)]
    if synchronized:
        part.process_group = group


def _only_ours(name: str, part: Any, synchronized: bool | None) -> str | None:
    """What a module of ours has that torch's lacks, in words."""
    synchronized = part.synchronized if synchronized is None else synchronized
    kind = torch.nn.SyncBatchNorm if synchronized else _THEIRS[type(part)]
    if synchronized and isinstance(part, _Lazy):
        return NO_SIZE.format(name=name)
    if kind is torch.nn.SyncBatchNorm and not synchronized:
        return NO_RANK.format(name=name)
    lacking = {
        f"axis={part.axis}": part.axis != 1,
        f"average={part.average!r}": part.average != "exponential",
        "bessel_correction=False": not part.bessel_correction,
        "renorm": part.renorm is not None,
        f"virtual_batch_size={part.virtual_batch_size}": part.virtual_batch_size is not None,
        "an activation": part.activation is not None,
        f"frozen={part.frozen!r} (unfreeze does away with it)": part.frozen,
    }
    what = ", ".join(text for text, has in lacking.items() if has)
    return ONLY_OURS.format(name=name, kind=kind.__name__, what=what) if what else None
