# SPDX-License-Identifier: Apache-2.0
"""What a checkpoint holds, whatever wrote it: variables by name, and the normalizers among them."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np

from evenkeel.checkpoints import names
from evenkeel.errors import InputError

Convention = Literal["tensorflow", "keras", "torch", "flax"]
"""How names are put together and kernels laid out: `a/b/kernel` in HWIO, or `a.b.weight` in OIHW."""


@dataclass(frozen=True)
class Variable:
    """One variable of a file.

    shape: of its values.
    dtype: of its values; bfloat16 is `ml_dtypes.bfloat16`.
    where: file, and name within it as the file has it, for messages.
    load: reads its values.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    where: str
    load: Callable[[], np.ndarray] = field(repr=False, compare=False)

    @classmethod
    def of(cls, values: Any, where: str = "memory") -> Variable:
        """
        Example:
            >>> Variable.of([1.0, 2.0]).shape
            (2,)
        """
        array = np.asarray(values)
        return cls(array.shape, array.dtype, where, lambda: array)

    def read(self) -> np.ndarray:
        """Its values.

        Raises:
            InputError: the file no longer holds them, or holds something else.
        """
        values = self.load()
        if values.shape != self.shape or values.dtype != self.dtype:
            raise InputError(
                f"{self.where} was announced as {self.dtype} of shape {self.shape} and holds {values.dtype} of shape "
                f"{values.shape}; the file is damaged, or changed while it was read"
            )
        return values

    @property
    def size(self) -> int:
        return math.prod(self.shape)


class Facts(NamedTuple):
    """What a file says of a normalizer beside its values; None is what it does not say.

    kind: name of the class of the layer.
    epsilon: added to the variance.
    momentum: share of the old moving statistics that is kept.
    axis: of the channels.
    bessel_correction: the moving variance was divided by n - 1.
    frozen: the statistics are to stay as they are; "all" if gamma and beta are too.
    """

    kind: str | None = None
    epsilon: float | None = None
    momentum: float | None = None
    axis: int | tuple[int, ...] | None = None
    bessel_correction: bool | None = None
    frozen: bool | str | None = None


@dataclass(frozen=True)
class Normalizer:
    """One batch normalization of a checkpoint. What the file does not have is None, never invented.

    name: of its scope or module, as the file has it.
    dialect: whose names these are, a key of `dialects.DIALECTS` or `"helper"`.
    gamma, beta: scale and offset; a layer may do without.
    mean, variance: the moving statistics; of a helper class their averages.
    others: what else it keeps: `moving_stddev`, `renorm_mean`, `renorm_stddev`, `count`, `batch_mean` and
        `batch_variance` (of a helper class: of the last batch), ...
    missing: of gamma, beta, mean, variance those that such a normalizer must have, and the file has not.
    facts: what the file says beside values.
    """

    name: str
    dialect: str
    gamma: Variable | None
    beta: Variable | None
    mean: Variable | None
    variance: Variable | None
    others: Mapping[str, Variable]
    missing: tuple[str, ...]
    facts: Facts

    @property
    def channels(self) -> int:
        return next(part.size for part in (self.mean, self.variance, self.gamma, self.beta) if part is not None)


@dataclass(frozen=True)
class Checkpoint:
    """A file, or several that belong together, as variables by name.

    path: as it was given.
    format: what it is, in words.
    convention: of names and kernels.
    variables: by name, in the order of the file; read one at a time.
    facts: normalizer -> what the file says of it.
    model: the configuration of a whole Keras model, where the file has one.

    Example:
        >>> values = {"bn/gamma": [1.0], "bn/moving_mean": [0.0], "bn/moving_variance": [1.0]}
        >>> variables = {name: Variable.of(value) for name, value in values.items()}
        >>> normalizer, = Checkpoint("example", "memory", "tensorflow", variables).normalizers
        >>> normalizer.name, normalizer.channels, normalizer.beta, normalizer.missing
        ('bn', 1, None, ())
    """

    path: str
    format: str
    convention: Convention
    variables: Mapping[str, Variable]
    facts: Mapping[str, Facts] = field(default_factory=dict)
    model: Mapping[str, Any] | None = None

    @functools.cached_property
    def normalizers(self) -> tuple[Normalizer, ...]:
        """In the order of the file."""
        shapes = {name: variable.shape for name, variable in self.variables.items()}
        kinds = {name: facts.kind for name, facts in self.facts.items()}
        return tuple(self._normalizer(found) for found in names.find(shapes, kinds))

    def _normalizer(self, found: names.Found) -> Normalizer:
        roles = {role: self.variables[name] for role, name in found.roles.items()}
        four = {role: roles.pop(role, None) for role in names.FOUR}
        facts = self._facts(found)
        return Normalizer(found.scope, found.dialect, **four, others=roles, missing=found.missing, facts=facts)

    def _facts(self, found: names.Found) -> Facts:
        """Of the file, and what the dialect leaves no doubt about."""
        facts = self.facts.get(found.scope, Facts())
        if facts.bessel_correction is None and found.dialect in ("torch", "keras", "flax"):
            return facts._replace(bessel_correction=found.dialect == "torch")
        return facts
