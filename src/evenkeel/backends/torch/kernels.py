# SPDX-License-Identifier: Apache-2.0
"""What torch computes in one fused operation, on a CPU or a CUDA device.

On channels-last data the operation adds a channel's values one by one in float32: from 100 352 values of mean 10010 and
standard deviation 1 it gets a mean wrong by 4 and a variance of 17. Its statistics are kept where `_trusted` says so;
elsewhere it is given short columns, which are put together in float64, and a step takes 1.2 to 1.5 of the time.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from evenkeel.backends.contract import Formula, Normalized, Request

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
    if request.activation not in (None, "relu"):
        return f"the fused operation applies relu or nothing, got activation={request.activation!r}"
    return None


def training(
    x: Tensor, gamma: Tensor, beta: Tensor, *, axis: int, epsilon: float, activation: str | None, formula: Formula
) -> Normalized:
    """Normalize with the statistics of the batch; gradients flow to `x`, `gamma` and `beta`.

    Args:
        x: shape `(..., channels, ...)`; two or more values per channel.
        gamma: shape `(channels,)`, float32, or float64 where `x` is.
        beta: like `gamma`.
        axis: of the channels, not negative.
        epsilon: added to the variance; 0 is allowed.
        activation: `"relu"` or None.
        formula: the same step without activation, for a compiler: it writes one kernel from this, and has none for
            the operations here.

    Returns:
        `Normalized`. Neither statistic carries a gradient.
    """
    if torch.compiler.is_compiling() or x.is_meta:
        y, mean, variance = formula(x, gamma, beta)
        return Normalized(_finish(y, activation), mean.detach(), variance.detach())
    folded, shape, place = _fold(x, axis)
    # The operations take strides of 0, as of a broadcast number, for strides of 1.
    gamma, beta = gamma.contiguous(), beta.contiguous()
    y, mean, variance = _Step.apply(folded, gamma, beta, epsilon)
    return Normalized(_finish(y, activation).view(shape).movedim(place, axis), mean, variance)


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
) -> Tensor:
    """Normalize with given statistics; gradients flow to `x`, `gamma` and `beta`.

    Args:
        x, gamma, beta, axis, epsilon, activation: as for `training`; `x` may be empty.
        mean: shape `(channels,)`, type of `gamma`; a constant to gradients.
        variance: like `mean`.

    Returns:
        Shape and type of `x`.
    """
    folded, shape, place = _fold(x, axis)
    gamma, beta, mean, variance = (value.contiguous() for value in (gamma, beta, mean, variance))
    y = _normalize(folded, gamma, beta, mean, variance, epsilon)
    return _finish(y, activation).view(shape).movedim(place, axis)


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


def _finish(y: Tensor, activation: str | None) -> Tensor:
    # In place: the backward pass then keeps `x` and the result, not what relu was given.
    return torch.relu_(y) if activation == "relu" else y


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
        return *_pulled_back(ctx, dy, ctx.needs_input_grad[:3]), None

    @staticmethod
    def jvp(ctx: Any, dx: Tensor, dgamma: Tensor, dbeta: Tensor, _: None) -> tuple[Tensor | None, ...]:
        x, _, mean, variance = ctx.saved_tensors
        # The derivative of y with respect to x is a symmetric matrix, so its transpose serves as well.
        through_x, _, _ = _pulled_back(ctx, dx, (True, False, False))
        return through_x + _normalize(x, dgamma, dbeta, mean, variance, ctx.epsilon), None, None

    @staticmethod
    def vmap(info: Any, places: tuple[int | None, ...], *arguments: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        # What is mapped over becomes more channels.
        x, gamma, beta = (
            value.unsqueeze(0).expand(info.batch_size, *value.shape) if place is None else value.movedim(place, 0)
            for value, place in zip(arguments[:3], places, strict=True)
        )
        before, channels, after = x.shape[1:]
        many = x.movedim(0, 1).reshape(before, info.batch_size * channels, after)
        y, mean, variance = _Step.apply(many, gamma.reshape(-1), beta.reshape(-1), arguments[3])
        each = (info.batch_size, channels)
        return (y.view(before, *each, after), mean.view(each), variance.view(each)), (1, 0, 0)


def _pulled_back(ctx: Any, dy: Tensor, wanted: tuple[bool, ...]) -> Any:
    x, gamma, mean, variance = ctx.saved_tensors
    scale = (variance + ctx.epsilon).rsqrt()
    return torch.ops.aten.native_batch_norm_backward(
        dy.contiguous(), x, gamma, None, None, mean, scale, True, ctx.epsilon, list(wanted)
    )
