# SPDX-License-Identifier: Apache-2.0
"""What torch computes in one fused operation, on a CPU or a CUDA device.

On channels-last data the operation adds a channel's values one by one in float32: from 100 352 values of mean 10010 and
standard deviation 1 it gets a mean wrong by 4 and a variance of 17. Its statistics are kept where `_trusted` says so;
elsewhere it is given short columns, which are put together in float64, and a step takes 1.2 to 1.5 of the time.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from evenkeel.backends.contract import INVERTIBLE, SLOPE, Formula, Normalized, Request

# In place: the backward pass then keeps `x` and the result, not what the activation was given.
_ACTIVATIONS: dict[str | None, Callable[[Tensor], Tensor]] = {
    None: lambda y: y,
    "relu": torch.relu_,
    "leaky_relu": lambda y: torch.nn.functional.leaky_relu_(y, SLOPE),
    "elu": lambda y: torch.nn.functional.elu(y, inplace=True),
}
_DTYPES = ("bfloat16", "float16", "float32", "float64")

# So many values are summed one by one. Twice as many save about 3 % of a step, at twice the error.
_COLUMN = 128


def supports(request: Request) -> str | None:
    """Why these kernels cannot serve a request, or None."""
    if request.dtype not in _DTYPES:
        return f"the fused operation has no {request.dtype} version, only {', '.join(_DTYPES)}"
    if len(request.shape) < 2:
        return f"the fused operation wants at least two dimensions, got {len(request.shape)}"
    if request.shape[request.axis] == 0:
        return "the fused operation wants at least one channel, got 0"
    if request.activation not in _ACTIVATIONS:
        return f"what follows the fused operation is known for {tuple(_ACTIVATIONS)}, not for {request.activation!r}"
    if request.memory == "inplace" and (request.residual or request.activation not in INVERTIBLE):
        return "x cannot be found from y behind a residual or relu"
    return None


def training(
    x: Tensor,
    gamma: Tensor,
    beta: Tensor,
    *,
    axis: int,
    epsilon: float,
    activation: str | None,
    formula: Formula,
    residual: Tensor | None = None,
    memory: str | None = None,
) -> Normalized:
    """Normalize with the statistics of the batch; gradients flow to `x`, `gamma`, `beta` and `residual`.

    Args:
        x: shape `(..., channels, ...)`; two or more values per channel.
        gamma: shape `(channels,)`, float32, or float64 where `x` is.
        beta: like `gamma`.
        axis: of the channels, not negative.
        epsilon: added to the variance; 0 is allowed.
        activation: a name in `_ACTIVATIONS`.
        formula: the same step without activation, for a compiler: it writes one kernel from this, and has none for
            the operations here.
        residual: added before the activation; shape and type of `x`.
        memory: what to keep for the backward pass; see `_Lean`. A compiler decides that by itself.

    Returns:
        `Normalized`. Neither statistic carries a gradient.
    """
    if torch.compiler.is_compiling() or x.is_meta:
        y, mean, variance = formula(x, gamma, beta)
        return Normalized(_finish(y, residual, activation), mean.detach(), variance.detach())
    folded, shape, place = _fold(x, axis)
    # The operations take strides of 0, as of a broadcast number, for strides of 1.
    gamma, beta = gamma.contiguous(), beta.contiguous()
    residual = _beside(residual, folded, axis, place)
    if memory is None:
        y, mean, variance = _Step.apply(folded, gamma, beta, epsilon)
        y = _finish(y, residual, activation)
    else:
        y, mean, variance = _Lean.apply(folded, gamma, beta, residual, epsilon, activation, memory)
    return Normalized(y.view(shape).movedim(place, axis), mean, variance)


def inference(
    x: Tensor,
    gamma: Tensor,
    beta: Tensor,
    mean: Tensor,
    variance: Tensor,
    *,
    axis: int,
    epsilon: float,
    activation: str | None,
    residual: Tensor | None = None,
) -> Tensor:
    """Normalize with given statistics; gradients flow to `x`, `gamma`, `beta` and `residual`.

    Args:
        x, gamma, beta, axis, epsilon, activation, residual: as for `training`; `x` may be empty.
        mean: shape `(channels,)`, type of `gamma`; a constant to gradients.
        variance: like `mean`.

    Returns:
        Shape and type of `x`.
    """
    folded, shape, place = _fold(x, axis)
    gamma, beta = gamma.contiguous(), beta.contiguous()
    mean, variance = constants(mean, variance)
    y = _normalize(folded, gamma, beta, mean, variance, epsilon)
    added = _beside(residual, folded, axis, place)
    if added is not None:  # not in place: torch.vmap may map over the residual alone
        y = y + added
    return _finish(y, None, activation).view(shape).movedim(place, axis)


def constants(*statistics: Tensor) -> Iterator[Tensor]:
    """Statistics that the backward pass may keep: a training step may change the buffers before it runs."""
    return (value.clone() if torch.is_grad_enabled() else value.contiguous() for value in statistics)


def _fold(x: Tensor, axis: int) -> tuple[Tensor, tuple[int, ...], int]:
    """`x` as `(before, channels, after)`, copied only where its axes lie in memory in no order the kernels know.

    Also the shape before folding and the place of the channels in it: `y.view(shape).movedim(place, axis)` undoes all.
    """
    place = axis
    if not x.is_contiguous():
        places = (place for place in (x.ndim - 1, 1) if x.movedim(axis, place).is_contiguous())
        place = next(places, axis)
        x = x.movedim(axis, place).contiguous()
    shape = x.shape
    if shape[place] == 1:
        # The kernels walk along the channels where nothing follows them: with one channel that is slow.
        return x.view(1, 1, -1), shape, place
    return x.view(math.prod(shape[:place]), shape[place], math.prod(shape[place + 1 :])), shape, place


def _beside(residual: Tensor | None, folded: Tensor, axis: int, place: int) -> Tensor | None:
    """`residual` folded as its `x` was."""
    return None if residual is None else residual.movedim(axis, place).reshape(folded.shape).to(folded.dtype)


def _finish(y: Tensor, residual: Tensor | None, activation: str | None) -> Tensor:
    return _ACTIVATIONS[activation](y if residual is None else y.add_(residual))


def _normalize(x: Tensor, gamma: Tensor, beta: Tensor, mean: Tensor, variance: Tensor, epsilon: float) -> Tensor:
    # The function in torch.nn.functional refuses epsilon 0.
    return torch.batch_norm(x, gamma, beta, mean, variance, False, 0.0, epsilon, torch.backends.cudnn.enabled)


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and population variance of each channel of `(before, channels, after)`."""
    wide = torch.promote_types(x.dtype, torch.float32)
    before, channels, after = x.shape
    columns = before // _COLUMN if x.is_cpu and after == 1 else 1
    plain = _column_moments(x, wide)
    # So few columns are put together with more error than they spare.
    if columns < 4 or _trusted(*plain, before):
        return plain
    counted = columns * _COLUMN
    moments = _column_moments(x[:counted].view(_COLUMN, columns * channels), wide)
    means, variances = (moment.view(columns, channels).double() for moment in moments)
    mean = means.mean(0)
    variance = variances.mean(0) + (means - mean).square_().mean(0)
    if counted < before:
        share = 1.0 - counted / before
        rest, rest_variance = _column_moments(x[counted:], wide)
        distance = rest - mean
        mean = mean + share * distance
        variance = variance + share * (rest_variance - variance + (1.0 - share) * distance.square())
    return mean.to(wide), variance.to(wide)


def _trusted(mean: Tensor, variance: Tensor, count: int) -> bool:
    """Whether the rounding of one sum after the other is small beside what a batch of `count` values can know.

    Once the last place of the sum of squares or values is larger than their spread, all rounding goes to one side; and
    with many equal values, as after relu, it does so from the start: the variance is then wrong by 3e-9 * count.
    """
    if count > 2**17:
        return False
    return bool(((mean * mean + variance) * (count * 2.0**-23) ** 2 <= variance).all())


def _column_moments(x: Tensor, wide: torch.dtype) -> tuple[Tensor, Tensor]:
    # The moving averages are only there for their type, which is that of the result.
    unused = x.new_empty(x.shape[1], dtype=wide)
    return torch.batch_norm_update_stats(x, unused, unused, 0.0)


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, gamma: Tensor, beta: Tensor, epsilon: float) -> tuple[Tensor, Tensor, Tensor]:
        mean, variance = _moments(x)
        return _normalize(x, gamma, beta, mean, variance, epsilon), mean, variance

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, gamma, _, ctx.epsilon = inputs
        _, mean, variance = output
        ctx.mark_non_differentiable(mean, variance)
        ctx.save_for_backward(x, gamma, mean, variance)
        ctx.save_for_forward(x, gamma, mean, variance)

    @staticmethod
    def backward(ctx: Any, dy: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        x, gamma, mean, variance = ctx.saved_tensors
        return *_pulled_back(dy, x, gamma, mean, variance, ctx.epsilon, ctx.needs_input_grad[:3]), None

    @staticmethod
    def jvp(ctx: Any, dx: Tensor, dgamma: Tensor, dbeta: Tensor, _: None) -> tuple[Tensor | None, ...]:
        x, gamma, mean, variance = ctx.saved_tensors
        # The derivative of y with respect to x is a symmetric matrix, so its transpose serves as well.
        through_x, _, _ = _pulled_back(dx, x, gamma, mean, variance, ctx.epsilon, (True, False, False))
        return through_x + _normalize(x, dgamma, dbeta, mean, variance, ctx.epsilon), None, None

    @staticmethod
    def vmap(info: Any, places: tuple[int | None, ...], *arguments: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        # What is mapped over becomes more channels.
        x, gamma, beta = (
            value.unsqueeze(0).expand(info.batch_size, *value.shape) if place is None else value.movedim(place, 0)
            for value, place in zip(arguments[:3], places[:3], strict=True)
        )
        before, channels, after = x.shape[1:]
        many = x.movedim(0, 1).reshape(before, info.batch_size * channels, after)
        y, mean, variance = _Step.apply(many, gamma.reshape(-1), beta.reshape(-1), arguments[3])
        each = (info.batch_size, channels)
        return (y.view(before, *each, after), mean.view(each), variance.view(each)), (1, 0, 0)


def _pulled_back(
    dy: Tensor, x: Tensor, gamma: Tensor, mean: Tensor, variance: Tensor, epsilon: float, wanted: tuple[bool, ...]
) -> Any:
    scale = (variance + epsilon).rsqrt()
    return torch.ops.aten.native_batch_norm_backward(
        dy.contiguous(), x, gamma, None, None, mean, scale, True, epsilon, list(wanted)
    )


class _Lean(torch.autograd.Function):
    """A whole step that keeps one tensor of the size of `x` for its backward pass.

    "recompute": `x`, from which the activation is computed again; with a residual `y` too, which tells what the
    activation did, and which the next layer mostly keeps anyway. "inplace": `y` alone, from which the activation and
    gamma are taken away again, to the precision of the type of `y`. A channel whose `|gamma|` is below the machine
    epsilon of that type has gradients as if its input were its mean; not far above, they are rough.
    """

    @staticmethod
    def forward(
        x: Tensor,
        gamma: Tensor,
        beta: Tensor,
        residual: Tensor | None,
        epsilon: float,
        activation: str | None,
        memory: str,
    ) -> tuple[Tensor, Tensor, Tensor]:
        mean, variance = _moments(x)
        y = _finish(_normalize(x, gamma, beta, mean, variance, epsilon), residual, activation)
        return y, mean, variance

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, gamma, beta, residual, ctx.epsilon, ctx.activation, memory = inputs
        y, mean, variance = output
        ctx.mark_non_differentiable(mean, variance)
        inplace = memory == "inplace"
        kept_y = y if inplace or (residual is not None and ctx.activation) else None
        ctx.save_for_backward(None if inplace else x, kept_y, gamma, beta, mean, variance)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        x, y, gamma, beta, mean, variance = ctx.saved_tensors
        if y is None and ctx.activation:
            y = _finish(_normalize(x, gamma, beta, mean, variance, ctx.epsilon), None, ctx.activation)
        dz = dy * _slope(y, ctx.activation) if ctx.activation else dy
        wanted = ctx.needs_input_grad[:3]
        if x is None:
            # Not from x: far from zero its type has fewer digits for it than y had.
            x_hat, scale = _recovered(y, gamma, beta, ctx.activation), gamma * (variance + ctx.epsilon).rsqrt()
            dz, zeros = dz.to(gamma.dtype), torch.zeros_like(mean)
            dx, dgamma, dbeta = _pulled_back(dz, x_hat, scale, zeros, zeros + 1, 0.0, wanted)
            return None if dx is None else dx.to(y.dtype), dgamma, dbeta, None, None, None, None
        gradients = _pulled_back(dz, x, gamma, mean, variance, ctx.epsilon, wanted)
        return *gradients, dz if ctx.needs_input_grad[3] else None, None, None, None


def _slope(y: Tensor, activation: str | None) -> Tensor:
    """The derivative of the activation, from its result."""
    if activation == "elu":
        return torch.where(y > 0, 1, y + 1).to(y.dtype)
    # Of two plain numbers torch would make float32, and a slope of 0.01 that float64 does not know.
    return torch.where(y > 0, y.new_ones(()), SLOPE if activation == "leaky_relu" else 0.0)


def _recovered(y: Tensor, gamma: Tensor, beta: Tensor, activation: str | None) -> Tensor:
    """The normalized input, of which the step made `y`, in the type of gamma."""
    z = y.to(gamma.dtype)
    if activation == "leaky_relu":
        z = torch.where(z > 0, z, z / SLOPE)
    elif activation == "elu":
        # Below about -17 the result is -1, of which nothing can be found.
        z = torch.where(z > 0, z, torch.log1p(z.clamp(min=-1 + torch.finfo(z.dtype).eps)))
    column = (1, -1, 1)
    lost = (gamma.abs() < torch.finfo(y.dtype).eps).view(column)
    return torch.where(lost, 0, (z - beta.view(column)) / torch.where(lost, 1, gamma.view(column)))


for _function in (_Step, _Lean):
    # PyTorch asks for the signature in every call, and to find it takes a fifth of the time of a small step.
    setattr(_function.forward, "__signature__", inspect.signature(_function.forward))  # noqa: B010
