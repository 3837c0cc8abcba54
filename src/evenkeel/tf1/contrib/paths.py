# SPDX-License-Identifier: Apache-2.0
"""How the long module paths of `tf.contrib` are found: `tf.contrib.layers.python.layers.utils` and the like."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any


def register(package: str, path: str, **modules: str) -> None:
    """Makes `package.path`, what leads there, and modules below it; each has the names of a module that exists.

    Args:
        package: full name of a module that exists; also the one behind `path`.
        path: dotted, such as `"python.layers"`.
        modules: name below `path` -> name below `package` of the one behind it, `""` for `package` itself.

    Example:
        >>> from evenkeel.tf1.contrib import layers
        >>> from evenkeel.tf1.contrib.layers.python.layers import utils
        >>> utils.collect_named_outputs is layers.utils.collect_named_outputs
        True
    """
    first, *rest = path.split(".")
    targets = {first: package}
    for name in rest:
        targets[f"{list(targets)[-1]}.{name}"] = package
    targets |= {f"{path}.{name}": f"{package}.{target}".rstrip(".") for name, target in modules.items()}
    for name, target in targets.items():
        full = f"{package}.{name}"
        if full not in sys.modules:
            sys.modules[full] = _alias(full, target)
    setattr(sys.modules[package], first, sys.modules[f"{package}.{first}"])


def missing(module: str, replacements: Mapping[str, str]) -> Callable[[str], Any]:
    """`__getattr__` of a module: the AttributeError names what there is instead.

    Example:
        >>> missing("evenkeel.tf1.contrib", {"rnn": "tf.nn.rnn_cell"})("rnn")
        Traceback (most recent call last):
        AttributeError: module 'evenkeel.tf1.contrib' has no attribute 'rnn'; use tf.nn.rnn_cell
    """

    def get(name: str) -> Any:
        instead = f"; use {replacements[name]}" if name in replacements else ""
        raise AttributeError(f"module {module!r} has no attribute {name!r}{instead}")

    return get


def _alias(name: str, target: str) -> ModuleType:
    """A module whose names are those of another, and of the modules below it."""

    def get(attribute: str) -> Any:
        below = sys.modules.get(f"{name}.{attribute}")
        # A function wins over a module of its name, as with arg_scope in 1.15.
        found = getattr(importlib.import_module(target), attribute, below)
        if found is None:
            raise AttributeError(f"module {name!r} has no attribute {attribute!r}")
        return found

    module = ModuleType(name, f"The names of `{target}`, under an old path.")
    module.__path__ = []  # as packages have, so that modules may lie below
    module.__dict__["__getattr__"] = get
    return module
