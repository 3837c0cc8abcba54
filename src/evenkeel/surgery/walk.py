# SPDX-License-Identifier: Apache-2.0
"""Which normalizers a model has, however nested."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from evenkeel.errors import UnknownTensorError

TORCH_NORMALIZERS = ("BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "SyncBatchNorm")
"""Classes of torch.nn."""
OUR_TORCH_NORMALIZERS = ("BatchNorm", "BatchNorm1d", "BatchNorm2d", "BatchNorm3d")
"""Classes of evenkeel.torch."""


def parts(model: Any) -> Iterator[Any]:
    """The model and all layers or modules in it, once each, also those in its lists and dictionaries.

    Args:
        model: a Keras model or layer, or a torch module; or a mixture, as Keras on PyTorch allows it.

    Raises:
        UnknownTensorError: anything else.

    Example:
        >>> import keras
        >>> inner = keras.layers.Activation("relu")
        >>> model = keras.Sequential([inner, keras.layers.TimeDistributed(inner)])
        >>> [part is inner for part in parts(model)].count(True)
        1
    """
    kinds = tuple(kind for kind in (_keras("Layer"), _torch("Module")) if kind)
    if not kinds or not isinstance(model, kinds):
        kind = type(model)
        raise UnknownTensorError(
            f"model is a {kind.__module__}.{kind.__qualname__}; give a Keras 3 model or layer, or a torch.nn.Module"
        )
    seen: set[int] = set()
    left = [model]
    while left:
        item = left.pop()
        if id(item) in seen:
            continue
        if isinstance(item, kinds):
            yield item
            inside = vars(item).values()
        elif isinstance(item, dict):
            inside = item.values()
        elif isinstance(item, list | tuple):
            inside = item
        else:
            continue
        seen.add(id(item))
        left += reversed(list(inside))


def keras_normalizers(model: Any) -> list[Any]:
    """The batch normalization layers of Keras in it: ours, Keras's own, and what derives from them."""
    kind = _keras("BatchNormalization")
    return [part for part in parts(model) if kind and isinstance(part, kind)]


def keras_names(layers: Iterable[Any]) -> dict[int, str]:
    """id of a layer -> its path, or its name until it is built; numbered where several have the same.

    Args:
        layers: in the order of the model.
    """
    times: Counter[str] = Counter()
    found = {}
    for layer in layers:
        name = layer.path or layer.name
        times[name] += 1
        found[id(layer)] = name if times[name] == 1 else f"{name}#{times[name]}"
    return found


def torch_normalizers(model: Any) -> list[Any]:
    """The batch normalization modules of torch in it: torch's own, ours, and what derives from them."""
    return [part for part in parts(model) if is_torch_normalizer(part)]


def is_torch_normalizer(module: Any) -> bool:
    """Whether it is one of torch's or of ours."""
    return isinstance(module, tuple(filter(None, map(_torch, TORCH_NORMALIZERS)))) or is_ours_of_torch(module)


def is_ours_of_torch(module: Any) -> bool:
    """Whether it is a normalizer of evenkeel.torch, which has settings that torch's have not."""
    ours = sys.modules.get("evenkeel.layers.torch")
    return ours is not None and isinstance(module, tuple(getattr(ours, name) for name in OUR_TORCH_NORMALIZERS))


def _keras(name: str) -> Any:
    """A class of keras.layers, if Keras is loaded: what is not loaded made no model."""
    return getattr(getattr(sys.modules.get("keras"), "layers", None), name, None)


def _torch(name: str) -> Any:
    return getattr(getattr(sys.modules.get("torch"), "nn", None), name, None)
