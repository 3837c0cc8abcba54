# SPDX-License-Identifier: Apache-2.0
"""The normalizers of a torch module."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from evenkeel.functional.moments import Moments, moments
from evenkeel.functional.moving import State
from evenkeel.surgery.pinned import is_pinned
from evenkeel.surgery.recalibrate.feeding import plain
from evenkeel.surgery.recalibrate.pool import glanced
from evenkeel.surgery.recalibrate.subject import Call, Normalizer, Seen
from evenkeel.surgery.walk import is_ours_of_torch, torch_normalizers


class TorchModule:
    """Hooks before every normalizer, and every module in eval mode, while it runs.

    `num_batches_tracked` of torch's own stays: it counts training steps, and matters with `momentum=None` only.
    """

    class_axis = 1

    def __init__(self, module: Any, *, include_frozen: bool) -> None:
        self._module = module
        wanted = set(map(id, torch_normalizers(module)))
        self._layers = {
            _normalizer(name, layer, None if include_frozen else _frozen(module, layer)): layer
            for name, layer in module.named_modules()
            if id(layer) in wanted
        }
        self.normalizers = list(self._layers)

    def call(self, batch: Any) -> Any:
        """The output in eval mode; a dictionary is keyword arguments, a list several arguments."""
        import torch

        with self._evaluating(), torch.no_grad():
            if isinstance(batch, Mapping):
                return self._module(**{name: self._usable(value) for name, value in batch.items()})
            return self._module(*map(self._usable, batch if isinstance(batch, list) else [batch]))

    @contextlib.contextmanager
    def running(self, seen: Seen) -> Iterator[Callable[[Any], Any]]:
        with contextlib.ExitStack() as stack:
            for normalizer, layer in self._layers.items():
                if normalizer.left is None:
                    hook = layer.register_forward_pre_hook(_before(normalizer, seen), with_kwargs=True)
                    stack.callback(hook.remove)
            yield self.call

    @contextlib.contextmanager
    def _evaluating(self) -> Iterator[None]:
        modes = [(module, module.training) for module in self._module.modules()]
        for module, _ in modes:
            module.training = False
        try:
            yield
        finally:
            for module, training in modes:
                module.training = training

    def _usable(self, value: Any) -> Any:
        import torch

        like = next(self._module.parameters(), torch.zeros([]))
        value = value if isinstance(value, torch.Tensor) else torch.tensor(plain(value))
        # NumPy's float64, which is what people have, fits no layer.
        return value.to(like.device, like.dtype if value.is_floating_point() else None)


def _before(normalizer: Normalizer, seen: Seen) -> Callable[..., None]:
    def hook(layer: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        x = arguments[0] if arguments else options["input"]
        given = {name: options.get(name) for name in ("mask", "sample_weight")}
        axis = layer.axis if is_ours_of_torch(layer) else 1

        def measure() -> Moments:
            # Apple's GPU has no float64.
            found = moments(x if x.device.type == "mps" else x.double(), axis=axis, **given)
            return Moments(plain(found.mean), plain(found.variance), plain(found.count))

        glance = functools.partial(glanced, x, axis=axis, **given)
        masked = any(weight is not None for weight in given.values())
        state = seen(normalizer, Call(x, axis, measure, glance, masked))
        if state is not None:
            normalizer.write(state)

    return hook


def _frozen(module: Any, layer: Any) -> str | None:
    """Why a layer is, if it is."""
    if is_pinned(layer) or (is_ours_of_torch(layer) and layer.frozen):
        return "frozen"
    if module.training and not layer.training:
        return "frozen: in eval mode, though the module is in training mode"
    return None


def _normalizer(name: str, layer: Any, left: str | None) -> Normalizer:
    import torch

    ours = is_ours_of_torch(layer)

    def read() -> State:
        return State(*(None if buffer is None else _values(buffer) for buffer in buffers()))

    def write(state: State) -> None:
        for buffer, value in zip(buffers(), state, strict=True):
            if buffer is not None and value is not None:
                buffer.copy_(torch.as_tensor(value))
        if state.updates is not None:
            layer.num_batches_tracked.copy_(layer.updates.max())

    def buffers() -> State:
        more = State._fields[2:] if ours else ()
        return State(layer.running_mean, layer.running_var, *(getattr(layer, name) for name in more))

    if layer.running_mean is None:
        left = "it keeps no statistics (track_running_stats=False)"
    sample = layer.bessel_correction if ours else True
    return Normalizer(name or type(layer).__name__, layer.eps, sample, read, write, left)


def _values(buffer: Any) -> np.ndarray:
    """A copy, or it would change with the buffer; bfloat16 is nothing to NumPy."""
    return np.array(plain(buffer.float() if buffer.itemsize < 4 else buffer))
