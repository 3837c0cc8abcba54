# SPDX-License-Identifier: Apache-2.0
"""Which kernel serves a call, and why not a faster one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import NamedTuple

from evenkeel import backends
from evenkeel.backends.contract import Request

# A plain global, of the whole process: torch.compile cannot read a context variable.
_enabled = True


class Choice(NamedTuple):
    """kernel: the module with `training` and `inference`, or None for the plain formula.
    reason: why there is no kernel; empty if there is.
    """

    kernel: ModuleType | None
    reason: str


def enabled() -> bool:
    """Whether kernels may be chosen: not within `without_kernels`."""
    return _enabled


@contextmanager
def without_kernels() -> Iterator[None]:
    """Calls inside are computed by the plain formula, whose derivatives of every order and mode the library knows.

    The switch is one for the whole process. What was traced by TensorFlow or JAX before keeps what it had.

    Example:
        >>> with without_kernels():
        ...     choose("torch", Request(True, "float32", (8, 3), 1, None)).reason
        'kernels are switched off'
    """
    global _enabled
    before, _enabled = _enabled, False
    try:
        yield
    finally:
        _enabled = before


def choose(name: str, request: Request, *obstacles: str | None) -> Choice:
    """The kernel of the library called `name` for `request`.

    `obstacles` are what the caller knows to be in the way, None where there is nothing.
    """
    if not enabled():
        return Choice(None, "kernels are switched off")
    if reason := next(filter(None, obstacles), None):
        return Choice(None, reason)
    reasons = []
    for kernels in backends.kernels(name, request.device):
        if (reason := kernels.supports(request)) is None:
            return Choice(kernels, "")
        reasons.append(reason)
    return Choice(None, "; ".join(reasons))
