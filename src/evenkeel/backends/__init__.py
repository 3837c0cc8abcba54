# SPDX-License-Identifier: Apache-2.0
"""Which array library owns a tensor."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np

from evenkeel.errors import UnknownTensorError

__all__ = ["NAMES", "kernels", "of", "primitives"]

# How each library knows its own. Tracers and symbolic tensors answer as tensors do. PyTorch is asked first: its
# compiler follows that question, and not TensorFlow's.
_OWNS: dict[str, Callable[[ModuleType, Any], bool]] = {
    "torch": lambda torch, value: isinstance(value, torch.Tensor),
    "tensorflow": lambda tensorflow, value: tensorflow.is_tensor(value),
    "jax": lambda jax, value: isinstance(value, jax.Array),
    "numpy": lambda _, value: isinstance(value, np.ndarray | np.generic | list | tuple | int | float),
}
NAMES = tuple(_OWNS)

_HAS_TRITON = importlib.util.find_spec("triton") is not None


def of(value: Any) -> ModuleType:
    """The primitives of the library that owns `value`.

    Asks only libraries that are already loaded: a tensor cannot come from any other.

    Raises:
        UnknownTensorError: no library owns it.

    Example:
        >>> of(np.zeros(3)).NAME
        'numpy'
    """
    for name, owns in _OWNS.items():
        if (library := sys.modules.get(name)) is not None and owns(library, value):
            return primitives(name)
    raise UnknownTensorError(
        f"a value of type {type(value).__module__}.{type(value).__name__} arrived; "
        "give a tensor of NumPy, TensorFlow, JAX or PyTorch"
    )


# Import statements, not import_module: torch.compile traces through the one and not the other.
def primitives(name: str) -> ModuleType:
    """The `primitives` module of the library called `name`."""
    if name == "tensorflow":
        import evenkeel.backends.tensorflow.primitives as tensorflow_primitives

        return tensorflow_primitives
    if name == "jax":
        import evenkeel.backends.jax.primitives as jax_primitives

        return jax_primitives
    if name == "torch":
        import evenkeel.backends.torch.primitives as torch_primitives

        return torch_primitives
    import evenkeel.backends.numpy.primitives as numpy_primitives

    return numpy_primitives


def kernels(name: str, device: str = "") -> tuple[ModuleType, ...]:
    """The modules with kernels of the library called `name`, for that kind of device; the fastest first."""
    if name == "tensorflow":
        import evenkeel.backends.tensorflow.kernels as tensorflow_kernels

        return (tensorflow_kernels,)
    if name == "jax":
        import evenkeel.backends.jax.kernels as jax_kernels

        return (jax_kernels,)
    if name == "torch":
        import evenkeel.backends.torch.kernels as torch_kernels

        if device == "cuda" and _HAS_TRITON:
            import evenkeel.backends.torch.triton as triton_kernels

            return triton_kernels, torch_kernels
        return (torch_kernels,)
    import evenkeel.backends.numpy.kernels as numpy_kernels

    return (numpy_kernels,)
