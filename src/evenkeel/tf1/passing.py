# SPDX-License-Identifier: Apache-2.0
"""How a module of the old API answers for what it does not define."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

# Of what Python itself may ask a module for, an original answers for these alone.
_VERSIONS = ("__compiler_version__", "__git_version__", "__version__")


def passing(
    here: str,
    there: str,
    *,
    modules: Sequence[str] = (),
    attributes: Mapping[str, str] | None = None,
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of the module `here`: what is not in it comes from the module `there`.

    Args:
        here: full name of the module.
        there: dotted path of the original, such as `"tensorflow.compat.v1.nn"`; loaded when first asked. An unknown
            name is its AttributeError.
        modules: submodules of `here`, loaded when first asked.
        attributes: name -> the submodule of `here` that defines it.

    Example:
        >>> get, _ = passing("evenkeel.tf1", "tensorflow.compat.v1")
        >>> get("placeholder").__name__
        'placeholder'
    """
    attributes = attributes or {}

    def get(name: str) -> Any:
        if name in modules:
            return importlib.import_module(f"{here}.{name}")
        if name in attributes:
            return getattr(importlib.import_module(f"{here}.{attributes[name]}"), name)
        if name.startswith("__") and name not in _VERSIONS:
            raise AttributeError(f"module {here!r} has no attribute {name!r}")
        return getattr(_module(there), name)

    def names() -> list[str]:
        module = importlib.import_module(here)
        return sorted({*vars(module), *modules, *attributes, *dir(_module(there))})

    return get, names


def _module(path: str) -> ModuleType:
    """Some of TensorFlow's modules can be had as attributes only."""
    first, *rest = path.split(".")
    module = importlib.import_module(first)
    for name in rest:
        module = getattr(module, name)
    return module
