# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: N803 - the constants of a Triton kernel are written in capitals
"""What one pass over the data of a GPU does: statistics; normalization with a residual and an activation; gradients.

A tensor is seen as `(before, channels, after)` in the order of its memory, and cut into tiles of rows and columns.
Where little or nothing follows a channel (channels last) the columns run over the channels, which are then found from
the column; elsewhere (channels first) a program stays with one channel. Each program leaves its part of a sum in a
place of its own, and the parts are put together in a fixed order: no atomics, so equal inputs give equal bits.

The formula is that of `functional/`; the tests hold every kernel against it.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from evenkeel.backends.contract import INVERTIBLE, SLOPE, Formula, Normalized, Request
from evenkeel.backends.torch.kernels import constants
from evenkeel.errors import ArgumentError

_DTYPES = ("bfloat16", "float16", "float32")
_ACTIVATIONS = (None, "elu", "leaky_relu", "relu")
_MEMORIES = (None, "inplace", "recompute")

_SLOPE = tl.constexpr(SLOPE)

_TILE = 4096  # elements of a tile: 16 for each of 256 threads, two loads of 16 bytes each in half precision
_WARPS = 8
# Said in every launch, for Triton 3.10 changes what it takes for granted.
_FUSED = {"enable_fp_fusion": True}
# Programs of a reduction: eight for each of the 132 multiprocessors of an H100 or H200. It is no matter of the device
# at hand, so that the parts of a sum, and its last bits, are the same on all.
_PROGRAMS = 1056
# Tiles that a program adds up. Its variance is taken about the mean of the first one; where that is far from all
# others, each of these costs a few last places of float32 at worst. Fewer would leave more parts, 1 % of the data now.
_STEPS = 16


def supports(request: Request) -> str | None:
    """Why these kernels cannot serve a request, or None."""
    if request.dtype not in _DTYPES:
        return f"the Triton kernels have no {request.dtype} version, only {', '.join(_DTYPES)}"
    if request.activation not in _ACTIVATIONS:
        return f"the Triton kernels apply elu, leaky_relu, relu or nothing, got activation={request.activation!r}"
    if request.memory not in _MEMORIES:
        return f"the Triton kernels know memory 'inplace', 'recompute' or None, got memory={request.memory!r}"
    if request.memory == "inplace" and request.activation not in INVERTIBLE:
        return "what relu has set to 0 cannot be recovered from y: memory='inplace' wants leaky_relu, elu or None"
    if request.memory == "inplace" and request.residual:
        return "memory='inplace' cannot recover x from y where a residual was added"
    if request.shape[request.axis] == 0:
        return "the Triton kernels want at least one channel, got 0"
    if request.training and 0 in request.shape:
        return f"the Triton kernels take no statistics of nothing, got shape {request.shape}"
    return None


def training(
    x: Tensor,
    gamma: Tensor,
    beta: Tensor,
    *,
    axis: int,
    epsilon: float,
    activation: str | None,
    formula: Formula | None = None,
    residual: Tensor | None = None,
    memory: str | None = None,
) -> Normalized:
    """`activation(gamma * (x - mean) / sqrt(variance + epsilon) + beta + residual)` with the statistics of the batch.

    Gradients flow to `x`, `gamma`, `beta` and `residual`; they have no derivatives of their own.

    Args:
        x: float32, float16 or bfloat16, shape `(..., channels, ...)`, on a GPU; strides as they come.
        gamma, beta: shape `(channels,)`, float32.
        axis: of the channels, not negative.
        epsilon: added to the variance.
        activation: `"relu"`, `"leaky_relu"` (slope 0.01), `"elu"` (alpha 1) or None.
        formula: not needed here; other kernels ask for it.
        residual: shape of `x`; it is added in the type of `x`.
        memory: what is kept for the backward pass besides numbers of each channel. None and `"recompute"` keep `x`,
            from which the sign of the result is computed again; with a residual and an activation also `y`, which
            the next layer keeps anyway as its input, where the residual or a mask would be one tensor more.
            `"inplace"` keeps `y` alone and computes `x` from it, as the rounding of `y` has left it: a channel whose
            `|gamma|` is below the machine epsilon of the type of `x` has gradients as if `x` were its mean (for a
            gamma of 0, the gradient of gamma is 0 and it stays there), and an elu below -16, or -6 in bfloat16, is
            taken for one there.

    Returns:
        `Normalized`: `y` with the type and strides of `x` (where it has gaps or overlaps, strides in that order); mean
        and population variance in float32, without gradients.

    Raises:
        ArgumentError: for what `supports` gives a reason, and a residual of another shape than `x`.
    """
    residual = _checked(x, axis, activation, residual, training=True, memory=memory)
    gamma, beta = gamma.contiguous(), beta.contiguous()
    step = _train if torch.compiler.is_compiling() else _Training.apply
    y, mean, variance = step(x, gamma, beta, residual, axis, epsilon, activation, memory)
    return Normalized(y, mean, variance)


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
    """The same with given statistics, which are constants to gradients.

    Args:
        x, gamma, beta, axis, epsilon, activation, residual: as for `training`; `x` may be empty.
        mean, variance: shape `(channels,)`, float32.

    Returns:
        Type and strides of `x`.

    Raises:
        ArgumentError: as `training`.
    """
    residual = _checked(x, axis, activation, residual, training=False)
    gamma, beta = gamma.contiguous(), beta.contiguous()
    mean, variance = constants(mean, variance)
    step = _infer if torch.compiler.is_compiling() else _Inference.apply
    return step(x, gamma, beta, mean, variance, residual, axis, epsilon, activation)


def _checked(
    x: Tensor, axis: int, activation: str | None, residual: Tensor | None, *, training: bool, memory: str | None = None
) -> Tensor | None:
    """The residual, in the type of `x`."""
    dtype, shape = str(x.dtype).removeprefix("torch."), tuple(x.shape)
    if reason := supports(Request(training, dtype, shape, axis, activation, residual is not None, memory)):
        raise ArgumentError(reason)
    if residual is not None and residual.shape != x.shape:
        raise ArgumentError(f"residual has shape {tuple(residual.shape)}; give one of the input's shape, {shape}")
    return None if residual is None else residual.to(x.dtype)


# What torch knows of this file: operations that torch.compile keeps in its one graph, without looking inside.


@torch.library.custom_op("evenkeel::triton_training", mutates_args=())
def _train(
    x: Tensor,
    gamma: Tensor,
    beta: Tensor,
    residual: Tensor | None,
    axis: int,
    epsilon: float,
    activation: str | None,
    memory: str | None,
) -> tuple[Tensor, Tensor, Tensor]:
    y = torch.empty_like(x)
    cut = _Cut.of(y, axis)
    folded = cut.fold(x)
    counts = gamma.new_empty(cut.chunks)
    parts = cut.reduce(_moments, folded, counts)
    mean, variance = torch.empty_like(gamma), torch.empty_like(gamma)
    with torch.cuda.device_of(x):
        grid = (triton.cdiv(cut.channels, 8),)
        _merge_moments[grid](*parts, counts, mean, variance, *parts.shape[1:], PARTS=128, CHANNELS=8, **_FUSED)
    cut.each(_normalize, folded, cut.fold(residual), y, gamma, beta, mean, variance, epsilon, ACTIVATION=activation)
    return y, mean, variance


@torch.library.custom_op("evenkeel::triton_inference", mutates_args=())
def _infer(
    x: Tensor,
    gamma: Tensor,
    beta: Tensor,
    mean: Tensor,
    variance: Tensor,
    residual: Tensor | None,
    axis: int,
    epsilon: float,
    activation: str | None,
) -> Tensor:
    y = torch.empty_like(x)
    cut = _Cut.of(y, axis)
    parameters = gamma, beta, mean, variance
    cut.each(_normalize, cut.fold(x), cut.fold(residual), y, *parameters, epsilon, ACTIVATION=activation)
    return y


@torch.library.custom_op("evenkeel::triton_gradients", mutates_args=())
def _gradients(
    dy: Tensor,
    kept: Tensor,
    y: Tensor | None,
    gamma: Tensor,
    beta: Tensor,
    mean: Tensor,
    variance: Tensor,
    axis: int,
    epsilon: float,
    activation: str | None,
    inverted: bool,
    training: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `x`; of gamma and beta, shape `(2, channels)`; and with `y` of the residual, which else is empty.

    kept: `x`, or `y` if it is to be inverted.
    y: where a residual was added before an activation.
    """
    dx = torch.empty_like(kept)
    dz = torch.empty_like(kept if y is not None else kept.new_empty(0))
    cut = _Cut.of(dx, axis)
    folded, pulled = cut.fold(kept), cut.fold(dy)
    parameters = gamma, beta, mean, variance, epsilon
    recovery = {
        "ACTIVATION": activation,
        "INVERTED": inverted,
        # What was rounded to -1 had no more than a quarter of the machine epsilon left; half of that is likely.
        "FLOOR": torch.finfo(dx.dtype).eps / 8,
        "LEAST_GAMMA": torch.finfo(dx.dtype).eps,
    }
    sums = cut.reduce(_sums, folded, pulled, cut.fold(y), dz, *parameters, **recovery).sum((1, 3))
    if y is not None:
        # The first pass has written what came through the activation: the second reads that, and not dy and y again.
        pulled, recovery["ACTIVATION"] = cut.fold(dz), None
    share = 1 / max(cut.before * cut.after, 1)
    cut.each(_to_x, folded, pulled, dx, sums, *parameters, share, TRAINING=training, **recovery)
    return dx, sums, dz


@_train.register_fake
def _(x: Tensor, gamma: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(gamma), torch.empty_like(gamma)


@_infer.register_fake
def _(x: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(x)


@_gradients.register_fake
def _(dy: Tensor, kept: Tensor, y: Tensor | None, gamma: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    dz = torch.empty_like(kept if y is not None else kept.new_empty(0))
    return torch.empty_like(kept), gamma.new_empty(2, *gamma.shape), dz


def _keep_of_training(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, gamma, beta, residual, ctx.axis, ctx.epsilon, ctx.activation, memory = inputs
    y, mean, variance = output
    ctx.mark_non_differentiable(mean, variance)
    ctx.training, ctx.inverted, ctx.residual = True, memory == "inplace", residual is not None
    beside = y if ctx.residual and ctx.activation else None
    ctx.save_for_backward(y if ctx.inverted else x, beside, gamma, beta, mean, variance)


def _keep_of_inference(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, gamma, beta, mean, variance, residual, ctx.axis, ctx.epsilon, ctx.activation = inputs
    ctx.training, ctx.inverted, ctx.residual = False, False, residual is not None
    beside = output if ctx.residual and ctx.activation else None
    ctx.save_for_backward(x, beside, gamma, beta, mean, variance)


def _pull_back(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients of `x`, gamma, beta and the residual."""
    settings = ctx.axis, ctx.epsilon, ctx.activation, ctx.inverted, ctx.training
    dx, (dgamma, dbeta), dz = _gradients(dy, *ctx.saved_tensors, *settings)
    if not ctx.residual:
        return dx, dgamma, dbeta, None
    return dx, dgamma, dbeta, dz if ctx.activation else dy


def _pull_training_back(ctx: Any, dy: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    return *_pull_back(ctx, dy), None, None, None, None


def _pull_inference_back(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    dx, dgamma, dbeta, dresidual = _pull_back(ctx, dy)
    return dx, dgamma, dbeta, None, None, dresidual, None, None, None


_train.register_autograd(_pull_training_back, setup_context=_keep_of_training)
_infer.register_autograd(_pull_inference_back, setup_context=_keep_of_inference)


class _Training(torch.autograd.Function):
    """The operation for a program that is not compiled. By itself, forward mode would find it constant, and not say so.

    torch.func maps over it and differentiates it; second derivatives and forward mode are errors.
    """

    generate_vmap_rule = True
    forward = staticmethod(lambda *inputs: _train(*inputs))
    setup_context = staticmethod(_keep_of_training)
    backward = staticmethod(_pull_training_back)


class _Inference(torch.autograd.Function):
    """The same for given statistics."""

    generate_vmap_rule = True
    forward = staticmethod(lambda *inputs: _infer(*inputs))
    setup_context = staticmethod(_keep_of_inference)
    backward = staticmethod(_pull_inference_back)


def _widened(size: int, value: Tensor | None, place: int | None, axis: int) -> Any:
    """What torch.vmap maps over becomes more channels: of the dimension `axis`."""
    if value is None:
        return None
    value = value.unsqueeze(0).expand(size, *value.shape) if place is None else value.movedim(place, 0)
    return value.movedim(0, axis).flatten(axis, axis + 1)


@_train.register_vmap
def _(info: Any, places: tuple[int | None, ...], *arguments: Any) -> Any:
    size, axis = info.batch_size, arguments[4]
    axes = axis, 0, 0, axis
    tensors = map(_widened, [size] * 4, arguments[:4], places[:4], axes)
    y, mean, variance = _train(*tensors, *arguments[4:])
    return (y.unflatten(axis, (size, -1)), mean.view(size, -1), variance.view(size, -1)), (axis, 0, 0)


@_infer.register_vmap
def _(info: Any, places: tuple[int | None, ...], *arguments: Any) -> Any:
    size, axis = info.batch_size, arguments[6]
    axes = axis, 0, 0, 0, 0, axis
    tensors = map(_widened, [size] * 6, arguments[:6], places[:6], axes)
    return _infer(*tensors, *arguments[6:]).unflatten(axis, (size, -1)), axis


class _Cut(NamedTuple):
    """How a dense tensor is cut into tiles.

    order: its dimensions as they lie in memory, the slowest first.
    before, channels, after: its shape in that order, folded.
    merged: a tile holds columns of several channels; otherwise those of one.
    """

    order: tuple[int, ...]
    before: int
    channels: int
    after: int
    merged: bool

    @classmethod
    def of(cls, like: Tensor, axis: int) -> _Cut:
        order = tuple(sorted(range(like.ndim), key=like.stride, reverse=True))
        place, channels = order.index(axis), like.shape[axis]
        before, after = (
            math.prod(like.shape[dimension] for dimension in dimensions)
            for dimensions in (order[:place], order[place + 1 :])
        )
        if channels == 1:
            return cls(order, 1, 1, before * after, False)
        # A short run of a channel fills no tile of its own; but merged, each column leaves a part of a sum.
        return cls(order, before, channels, after, after == 1 or (after < 128 and before >= 64))

    @property
    def columns(self) -> int:
        return self.channels * self.after if self.merged else self.after

    @property
    def tile(self) -> tuple[int, int]:
        """Rows and columns of a tile; both powers of two."""
        rows = triton.next_power_of_2(max(self.before, 1))
        widest = _TILE // 32 if self.merged else max(_TILE // 4, _TILE // rows)
        columns = min(triton.next_power_of_2(max(self.columns, 1)), widest)
        return min(_TILE // columns, rows), columns

    @property
    def tiles(self) -> tuple[int, int]:
        """Groups of tiles whose sums are one, and how many tiles each has."""
        rows, columns = self.tile
        down, across = triton.cdiv(self.before, rows), triton.cdiv(self.columns, columns)
        return (across, down) if self.merged else (self.channels, down * across)

    def steps(self, most: int) -> int:
        """How many tiles of a group a program takes: so few that all multiprocessors have work, and `most` at most."""
        groups, tiles = self.tiles
        return min(most, triton.next_power_of_2(max(triton.cdiv(groups * tiles, _PROGRAMS), 1)))

    @property
    def chunks(self) -> int:
        """Programs of a reduction that share a group."""
        return triton.cdiv(self.tiles[1], self.steps(_STEPS))

    def fold(self, value: Tensor | None) -> Tensor | None:
        """`value` as it lies in memory, copied if its strides are other ones."""
        return None if value is None else value.permute(self.order).contiguous()

    def reduce(self, kernel: Any, *arguments: Any, **constants: Any) -> Tensor:
        """Parts of two sums, shape `(2, chunks, channels, inner)`."""
        shape = (2, self.chunks, self.channels, self.after if self.merged else 1)
        parts = arguments[0].new_empty(shape, dtype=torch.float32)
        self._launch(kernel, self.steps(_STEPS), *arguments, *parts, **constants)
        return parts

    def each(self, kernel: Any, *arguments: Any, **constants: Any) -> None:
        """Runs a kernel that computes every element by itself."""
        # Four tiles have the numbers of their channels read and prepared once.
        self._launch(kernel, self.steps(4), *arguments, **constants)

    def _launch(self, kernel: Any, steps: int, *arguments: Any, **constants: Any) -> None:
        (groups, tiles), (rows, columns) = self.tiles, self.tile
        programs = groups * triton.cdiv(tiles, steps)
        if not programs:
            return
        pitch = self.channels * self.after
        # The compiler learns of a factor of 16 in a size by itself, of a smaller one, which wide loads need too, so.
        unit = math.gcd(16, pitch if self.merged else self.after)
        after = self.after if self.merged else self.after // unit
        with torch.cuda.device_of(arguments[0]):
            kernel[(programs,)](
                *arguments,
                self.before,
                pitch // unit,
                after,
                groups,
                UNIT=unit,
                MERGED=self.merged,
                ROWS=rows,
                COLUMNS=columns,
                STEPS=steps,
                num_warps=_WARPS,
                **_FUSED,
                **constants,
            )


# The kernels. Each ends with the sizes of a cut: `rows`, `pitch` (of a row) and `after`, of which those that matter for
# wide loads come divided by UNIT; `groups`; and constants. All offsets have 64 bits.


@triton.jit
def _place(groups):
    """Of a program: its group of tiles, and its turn among the programs of that group."""
    program = tl.program_id(0)
    return program % groups, program // groups


@triton.jit
def _tile(
    group,
    tile,
    rows,
    pitch,
    after,
    UNIT: tl.constexpr,
    MERGED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Offsets of a tile; which of them there are; its columns; how many values it has of each channel or column."""
    if MERGED:
        width = pitch * UNIT
        first_row = tile.to(tl.int64) * ROWS
        column = group * COLUMNS + tl.arange(0, COLUMNS)[None, :]
        start = column
        across = 1
    else:
        width = after * UNIT
        blocks = (width + COLUMNS - 1) // COLUMNS
        first_row = (tile // blocks).to(tl.int64) * ROWS
        first_column = (tile % blocks).to(tl.int64) * COLUMNS
        column = first_column + tl.arange(0, COLUMNS)[None, :]
        start = group.to(tl.int64) * width + column
        across = tl.minimum(width - first_column, COLUMNS)
    row = first_row + tl.arange(0, ROWS)[:, None]
    inside = (row < rows) & (column < width)
    down = tl.maximum(tl.minimum(rows - first_row, ROWS), 0)
    return row * (pitch * UNIT) + start, inside, column, down * across


@triton.jit
def _parameter(pointer, group, column, pitch, after, UNIT: tl.constexpr, MERGED: tl.constexpr):
    """A number of each channel, such that it broadcasts against a tile."""
    if MERGED:
        return tl.load(pointer + column // after, mask=column < pitch * UNIT, other=0.0)
    else:
        return tl.load(pointer + group)


@triton.jit
def _total(tile, MERGED: tl.constexpr):
    """The sum over what is of one column, where tiles hold several channels, or of one tile."""
    if MERGED:
        return tl.sum(tile, axis=0, keep_dims=True)
    else:
        return tl.sum(tl.sum(tile, axis=1), axis=0)


@triton.jit
def _leave(pointer, part, chunk, group, column, pitch, groups, UNIT: tl.constexpr, MERGED: tl.constexpr):
    """Stores a program's part of a sum, in the shape `(chunks, channels, inner)`."""
    if MERGED:
        width = pitch * UNIT
        tl.store(pointer + chunk.to(tl.int64) * width + column, part, mask=column < width)
    else:
        tl.store(pointer + chunk.to(tl.int64) * groups + group, part)


@triton.jit
def _activated(z, ACTIVATION: tl.constexpr):
    if ACTIVATION == "relu":
        return tl.where(z < 0, 0.0, z)  # a comparison, and no maximum: NaN stays NaN
    elif ACTIVATION == "leaky_relu":
        return tl.where(z > 0, z, z * _SLOPE)
    elif ACTIVATION == "elu":
        # exp(z) - 1 has no digits near 0; the series is right to 3e-7 of its value down to -0.5.
        series = 1 + z / 2 * (1 + z / 3 * (1 + z / 4 * (1 + z / 5 * (1 + z / 6 * (1 + z / 7)))))
        return tl.where(z > 0, z, tl.where(z > -0.5, z * series, tl.exp(z) - 1))
    else:
        return z


@triton.jit
def _recovered(y, ACTIVATION: tl.constexpr, FLOOR: tl.constexpr):
    """What an activation gave `y` for."""
    if ACTIVATION == "leaky_relu":
        return tl.where(y > 0, y, y / _SLOPE)
    elif ACTIVATION == "elu":
        return tl.where(y > 0, y, tl.log(tl.maximum(1 + y, FLOOR)))
    else:
        return y


@triton.jit
def _through(dy, y, ACTIVATION: tl.constexpr):
    """A gradient by what an activation made into `y`."""
    if ACTIVATION == "relu":
        return tl.where(y <= 0, 0.0, dy)
    elif ACTIVATION == "leaky_relu":
        return tl.where(y > 0, dy, dy * _SLOPE)
    elif ACTIVATION == "elu":
        return tl.where(y > 0, dy, dy * (y + 1))
    else:
        return dy


@triton.jit
def _moments(
    x,
    counts,
    means,
    squares,
    rows,
    pitch,
    after,
    groups,
    UNIT: tl.constexpr,
    MERGED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    STEPS: tl.constexpr,
):
    """Mean, and sum of the squared distances from it, of the values a program reads; and how many these are."""
    group, chunk = _place(groups)
    first = chunk * STEPS
    offsets, inside, column, count = _tile(group, first, rows, pitch, after, UNIT, MERGED, ROWS, COLUMNS)
    value = tl.load(x + offsets, mask=inside, other=0.0).to(tl.float32)
    # All is summed as distances from the mean of the first tile. The true variance holds the distance of that mean from
    # the true one at least once a tile, so no more digits cancel than STEPS has, however far from 0 the data are.
    near = _total(value, MERGED) / count.to(tl.float32)
    away = tl.where(inside, value - near, 0.0)
    total, square = away, away * away
    for step in range(1, STEPS):
        offsets, inside, _, more = _tile(group, first + step, rows, pitch, after, UNIT, MERGED, ROWS, COLUMNS)
        value = tl.load(x + offsets, mask=inside, other=0.0).to(tl.float32)
        away = tl.where(inside, value - near, 0.0)
        total += away
        square += away * away
        count += more
    left = _total(total, MERGED)
    share = left / count.to(tl.float32)
    _leave(means, near + share, chunk, group, column, pitch, groups, UNIT, MERGED)
    _leave(squares, _total(square, MERGED) - left * share, chunk, group, column, pitch, groups, UNIT, MERGED)
    tl.store(counts + chunk, count.to(tl.float32), mask=group == 0)


@triton.jit
def _merge_moments(
    means,
    squares,
    counts,
    mean,
    variance,
    chunks,
    channels,
    inner,
    PARTS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Mean and population variance of each channel from those of its parts.

    In float64 the square of a mean may be taken away at the end: what cancels is less than the rounding of the parts.
    """
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    count = tl.zeros([PARTS, CHANNELS], tl.float64)
    total = tl.zeros([PARTS, CHANNELS], tl.float64)
    square = tl.zeros([PARTS, CHANNELS], tl.float64)
    for start in range(0, chunks * inner, PARTS):
        part = (start + tl.arange(0, PARTS)[:, None]).to(tl.int64)
        chunk = part // inner
        inside = (chunk < chunks) & (channel < channels)
        offsets = (chunk * channels + channel) * inner + part % inner
        more = tl.load(counts + chunk + 0 * channel, mask=inside, other=0.0).to(tl.float64)
        center = tl.load(means + offsets, mask=inside, other=0.0).to(tl.float64)
        count += more
        total += more * center
        square += more * center * center + tl.load(squares + offsets, mask=inside, other=0.0).to(tl.float64)
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    count = tl.maximum(tl.sum(count, axis=0), 1)  # of channels there are none of, 0
    center = tl.sum(total, axis=0) / count
    spread = tl.sum(square, axis=0) / count - center * center
    spread = tl.where(spread < 0, 0.0, spread)  # of a constant channel, rounding may leave less than 0
    tl.store(mean + channel, center.to(tl.float32), mask=channel < channels)
    tl.store(variance + channel, spread.to(tl.float32), mask=channel < channels)


@triton.jit
def _normalize(
    x,
    residual,
    y,
    gamma,
    beta,
    mean,
    variance,
    epsilon,
    rows,
    pitch,
    after,
    groups,
    ACTIVATION: tl.constexpr,
    UNIT: tl.constexpr,
    MERGED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    STEPS: tl.constexpr,
):
    group, turn = _place(groups)
    # From the end, of which the cache still holds what the pass before read last.
    first = (tl.num_programs(0) // groups - 1 - turn) * STEPS
    column = _tile(group, first, rows, pitch, after, UNIT, MERGED, ROWS, COLUMNS)[2]
    affine = _affine(gamma, beta, mean, variance, epsilon, group, column, pitch, after, UNIT, MERGED)
    for step in range(STEPS):
        offsets, inside, _, _ = _tile(group, first + step, rows, pitch, after, UNIT, MERGED, ROWS, COLUMNS)
        z = (tl.load(x + offsets, mask=inside, other=0.0).to(tl.float32) - affine[2]) * affine[0] + affine[1]
        if residual is not None:
            z += tl.load(residual + offsets, mask=inside, other=0.0).to(tl.float32)
        tl.store(y + offsets, _activated(z, ACTIVATION).to(y.dtype.element_ty), mask=inside)


@triton.jit
def _affine(
    gamma,
    beta,
    mean,
    variance,
    epsilon,
    group,
    column,
    pitch,
    after,
    UNIT: tl.constexpr,
    MERGED: tl.constexpr,
):
    """Of the channels of a tile: scale, offset, mean, and the inverse of the standard deviation."""
    spread = _parameter(variance, group, column, pitch, after, UNIT, MERGED)
    inverse = tl.div_rn(1.0, tl.sqrt_rn(spread + epsilon))
    scale = inverse * _parameter(gamma, group, column, pitch, after, UNIT, MERGED)
    offset = _parameter(beta, group, column, pitch, after, UNIT, MERGED)
    return scale, offset, _parameter(mean, group, column, pitch, after, UNIT, MERGED), inverse


@triton.jit
def _pulled(
    kept,
    dy,
    y,
    gamma,
    offsets,
    inside,
    scale,
    offset,
    center,
    inverse,
    ACTIVATION: tl.constexpr,
    INVERTED: tl.constexpr,
    FLOOR: tl.constexpr,
    LEAST_GAMMA: tl.constexpr,
):
    """The gradient before the activation, and the normalized input."""
    value = tl.load(kept + offsets, mask=inside, other=0.0).to(tl.float32)
    dz = tl.load(dy + offsets, mask=inside, other=0.0).to(tl.float32)
    if INVERTED:
        lost = tl.abs(gamma) < LEAST_GAMMA
        x_hat = (_recovered(value, ACTIVATION, FLOOR) - offset) / tl.where(lost, 1.0, gamma)
        return _through(dz, value, ACTIVATION), tl.where(lost, 0.0, x_hat)
    else:
        value -= center
        if y is not None:
            dz = _through(dz, tl.load(y + offsets, mask=inside, other=0.0).to(tl.float32), ACTIVATION)
        elif ACTIVATION is not None:
            dz = _through(dz, _activated(value * scale + offset, ACTIVATION), ACTIVATION)
        return dz, value * inverse


@triton.jit
def _sums(
    kept,
    dy,
    y,
    dz,
    gamma,
    beta,
    mean,
    variance,
    epsilon,
    products,
    plain,
    rows,
    pitch,
    after,
    groups,
    ACTIVATION: tl.constexpr,
    INVERTED: tl.constexpr,
    FLOOR: tl.constexpr,
    LEAST_GAMMA: tl.constexpr,
    UNIT: tl.constexpr,
    MERGED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    STEPS: tl.constexpr,
):
    """Sums of the gradient before the activation, times the normalized input and plain: gradients of gamma and beta.

    With `y`, that gradient is also that of the residual, and is stored.
    """
    group, chunk = _place(groups)
    first = chunk * STEPS
    column = _tile(group, first, rows, pitch, after, UNIT, MERGED, ROWS, COLUMNS)[2]
    affine = _affine(gamma, beta, mean, variance, epsilon, group, column, pitch, after, UNIT, MERGED)
    own = _parameter(gamma, group, column, pitch, after, UNIT, MERGED)
    product = tl.zeros([ROWS, COLUMNS], tl.float32)
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for step in range(STEPS):
        offsets, inside, _, _ = _tile(group, first + step, rows, pitch, after, UNIT, MERGED, ROWS, COLUMNS)
        pulled, x_hat = _pulled(kept, dy, y, own, offsets, inside, *affine, ACTIVATION, INVERTED, FLOOR, LEAST_GAMMA)
        if y is not None:
            tl.store(dz + offsets, pulled.to(dz.dtype.element_ty), mask=inside)
        product += pulled * x_hat
        total += pulled
    _leave(products, _total(product, MERGED), chunk, group, column, pitch, groups, UNIT, MERGED)
    _leave(plain, _total(total, MERGED), chunk, group, column, pitch, groups, UNIT, MERGED)


@triton.jit
def _to_x(
    kept,
    dy,
    dx,
    sums,
    gamma,
    beta,
    mean,
    variance,
    epsilon,
    share,
    rows,
    pitch,
    after,
    groups,
    TRAINING: tl.constexpr,
    ACTIVATION: tl.constexpr,
    INVERTED: tl.constexpr,
    FLOOR: tl.constexpr,
    LEAST_GAMMA: tl.constexpr,
    UNIT: tl.constexpr,
    MERGED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    STEPS: tl.constexpr,
):
    """The gradient of the input: `sums` are the two of `_sums`, `share` is one over the values of a channel."""
    group, turn = _place(groups)
    first = (tl.num_programs(0) // groups - 1 - turn) * STEPS
    column = _tile(group, first, rows, pitch, after, UNIT, MERGED, ROWS, COLUMNS)[2]
    affine = _affine(gamma, beta, mean, variance, epsilon, group, column, pitch, after, UNIT, MERGED)
    own = _parameter(gamma, group, column, pitch, after, UNIT, MERGED)
    if TRAINING:
        channels = pitch * UNIT // after if MERGED else groups
        along_x_hat = _parameter(sums, group, column, pitch, after, UNIT, MERGED) * share
        along_one = _parameter(sums + channels, group, column, pitch, after, UNIT, MERGED) * share
    for step in range(STEPS):
        offsets, inside, _, _ = _tile(group, first + step, rows, pitch, after, UNIT, MERGED, ROWS, COLUMNS)
        dz, x_hat = _pulled(kept, dy, None, own, offsets, inside, *affine, ACTIVATION, INVERTED, FLOOR, LEAST_GAMMA)
        if TRAINING:
            dz -= along_one + x_hat * along_x_hat
        tl.store(dx + offsets, (dz * affine[0]).to(dx.dtype.element_ty), mask=inside)
