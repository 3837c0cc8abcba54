# SPDX-License-Identifier: Apache-2.0
"""What a rule may look at, whatever the subject was. What is not known is None, never invented."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np

from evenkeel.functional.moments import Moments


def differ(before: np.ndarray, after: np.ndarray) -> bool:
    """Whether values changed in any bit of the narrower type of the two; NaN is equal to NaN.

    Example:
        >>> third = np.array([1 / 3])
        >>> differ(third, third.astype("float16")), differ(third, third + 1e-15)
        (False, True)
    """
    narrower = min(before.dtype, after.dtype, key=lambda dtype: dtype.itemsize)
    with np.errstate(over="ignore", invalid="ignore"):
        one, other = (np.ravel(values).astype(narrower).astype(np.float64) for values in (before, after))
    return not np.array_equal(one, other, equal_nan=True)


@dataclass(frozen=True, eq=False)
class Normalizer:
    """One batch normalization: its values and its settings.

    name: in the subject.
    moving_mean, moving_variance, gamma, beta: shape `(channels,)`, of the type they are kept in.
    others: what else it keeps: `moving_stddev`, `renorm_mean`, `count`, `gamma_average`, ...
    missing: of gamma, beta, mean, variance those that it must have, and that are not there.
    library: whose words it was configured in, a key of `dialects.DIALECTS`.
    momentum: share of the old average that is kept.
    epsilon: added to the variance.
    average: "exponential", "debiased" or "cumulative".
    bessel_correction: the moving variance was divided by n - 1.
    frozen: its statistics are to stay as they are; "all" if gamma and beta are too.
    trainable: gamma and beta learn.
    moves: training moves its statistics, as it is set now.
    updates: how many batches entered its statistics.
    steps: how many steps the optimizer has done, or will have.
    batches_per_step: how many batches each of these steps is meant to see.
    virtual_batch_size: groups of so many rows are normalized each by itself.
    replicas: over so many processes the statistics of a batch are taken together.
    raises: it ends the training with an error at one value a channel.
    """

    name: str
    moving_mean: np.ndarray | None = None
    moving_variance: np.ndarray | None = None
    gamma: np.ndarray | None = None
    beta: np.ndarray | None = None
    others: Mapping[str, np.ndarray] = field(default_factory=dict)
    missing: tuple[str, ...] = ()
    library: str | None = None
    momentum: float | None = None
    epsilon: float | None = None
    average: str = "exponential"
    bessel_correction: bool | None = None
    frozen: bool | str | None = None
    trainable: bool | None = None
    moves: bool | None = None
    updates: int | None = None
    steps: int | None = None
    batches_per_step: int = 1
    virtual_batch_size: int | None = None
    replicas: int = 1
    raises: bool = False


@dataclass(frozen=True, eq=False)
class Pair:
    """The same normalizer before and after: a training, or a conversion.

    before, after: as the two checkpoints have it.
    trained: what else of the model changed, such as kernels; None where it cannot be told.
    """

    before: Normalizer
    after: Normalizer
    trained: bool | None = None


@dataclass(frozen=True, eq=False)
class Decay:
    """An optimizer with weight decay.

    optimizer: name of its class.
    value: the decay.
    decayed: names of gammas and betas among what it decays.
    """

    optimizer: str
    value: float
    decayed: tuple[str, ...]


class Neighbour(NamedTuple):
    """A layer beside a normalizer.

    kind: "linear" (a convolution, a dense layer), "activation", "dropout", "normalizer", "pool", "shape" (reshape,
        flatten, permute), "junction" (add, concatenate) or "other".
    bias: it adds one; of a linear layer.
    homogeneous: `f(a x) = a f(x)` for a > 0, as of ReLU; of an activation.
    """

    name: str
    kind: str
    bias: bool | None = None
    homogeneous: bool | None = None


class Place(NamedTuple):
    """Where a normalizer stands.

    before: what its input came through, the nearest first, as long as it came one way and was used nowhere else.
    after: what its output goes through, the nearest first, as long as it goes one way.
        Both go no further than the next linear layer, normalizer or layer of an unknown kind; `before` no further than
        a junction either. Of a normalizer with several calls both are empty.
    scale: it has gamma.
    calls: at how many places of the model it is called.
    activation: it applies one itself.
    """

    name: str
    before: tuple[Neighbour, ...] = ()
    after: tuple[Neighbour, ...] = ()
    scale: bool = True
    calls: int = 1
    activation: bool = False


@dataclass(frozen=True, eq=False)
class Structure:
    """How the layers of a model follow each other."""

    places: tuple[Place, ...]


@dataclass(frozen=True, eq=False)
class Phase:
    """Which statistics a normalizer uses in one phase of a model, whatever is fed.

    model: "inference" (a graph that serves, a model called with training=False) or "training".
    batch: it uses those of the batch; otherwise the moving ones.
    because: what says so, such as `training=True in the call`, `FusedBatchNormV3 with is_training=True`.
    trained: gamma, beta or what stands before is trained; False for a layer that is frozen on purpose.
    moved: the moving statistics have left their starting values; None where that is not known.
    """

    name: str
    model: Literal["inference", "training"]
    batch: bool
    because: str
    trained: bool = True
    moved: bool | None = None


@dataclass(frozen=True, eq=False)
class Updates:
    """The update operations of a normalizer in a graph of TensorFlow 1, and a train operation.

    name: scope of its statistics.
    train_op: name of the train operation.
    all: names of the update operations.
    reached: those of them that a session runs for the train operation.
    foreign: those reached ones whose batch is none that the loss depends on -> the placeholders they need and the loss
        does not.
    trained: the train operation trains gamma, beta or what stands before.
    unreached: names of the variables among its statistics that none of the reached ones changes.
    moved: the moving statistics have left their starting values; None where that is not known.
    """

    name: str
    train_op: str
    all: tuple[str, ...]
    reached: tuple[str, ...]
    foreign: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    trained: bool = True
    unreached: tuple[str, ...] = ()
    moved: bool | None = None


@dataclass(frozen=True, eq=False)
class Placeholder:
    """A placeholder that decides on the phase.

    default: it has one.
    fed: a signature, or a feed that was given, has it; None where nobody can tell.
    normalizers: whose phase it is.
    """

    name: str
    default: bool
    fed: bool | None
    normalizers: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Seen:
    """What a normalizer saw while the data went through the model, every normalizer using its batch, as in training.

    normalizer: as it was before.
    moments: of all the data, in float64, each of shape `(channels,)`.
    calls: of each call within one pass through the model, the same; one entry where it is called once.
    values: how many values a channel had in each batch, masked ones not counted.
    together: how many values are normalized together for one of those: less than 1 with virtual batches, more where
        several processes share their statistics.
    dtype: of its input.
    padding: share of the positions (rows by time steps) that end a row and are padding, not data; None where the input
        has no time axis.
    masked: a mask or weights came with the input.
    spoiled: in how many batches a channel was not finite.
    one_pass: the library computes this layer's variance as mean of squares minus square of the mean.
    """

    normalizer: Normalizer
    moments: Moments
    calls: tuple[Moments, ...] = ()
    values: tuple[int, ...] = ()
    together: float = 1.0
    dtype: str | None = None
    padding: float | None = None
    masked: bool = False
    spoiled: int = 0
    one_pass: bool = False


@dataclass(frozen=True, eq=False)
class Observed:
    """All normalizers that the data reached, in the order of their first call.

    rows: of the data; None where that is not known.
    """

    seen: tuple[Seen, ...]
    rows: int | None = None


class Score(NamedTuple):
    """How good or how different the outputs of a model are.

    accuracy, loss: against labels; None without them.
    gap: root mean square of the difference from the outputs at inference, divided by the standard deviation of those.
    """

    gap: float
    accuracy: float | None = None
    loss: float | None = None


@dataclass(frozen=True, eq=False)
class Phases:
    """The outputs of a model on the same batches with moving and with batch statistics.

    inference, training: at the two ends.
    swapped: name of a normalizer -> score when it and all before it use their batch, and those after it their moving
        statistics; in the order of the layers. Of a deep model some layers only.
    rows: of how many rows.
    pooled: when all use the statistics of all the data, as after a recalibration; the small samples that batches are
        do not count there.
    """

    inference: Score
    training: Score
    swapped: Mapping[str, Score]
    rows: int
    pooled: Score | None = None


@dataclass(frozen=True, eq=False)
class Rows:
    """Whether an output at inference depends on the other rows of its batch.

    change: largest change of a row's output when the others changed, divided by the standard deviation of the outputs.
    rounding: the change that rounding alone explains, in the same unit.
    """

    change: float
    rounding: float


@dataclass(frozen=True, eq=False)
class Batching:
    """How data is cut into batches in training.

    rows: of the data.
    batch_size: rows of a batch.
    drop_last: a last batch that is smaller is left out.
    flat: names of normalizers whose channels have one value a row, such as after a flatten.
    raises: the library ends the training at one value a channel, as torch does; otherwise only beta comes out.
    """

    rows: int
    batch_size: int
    drop_last: bool
    flat: tuple[str, ...]
    raises: bool


@dataclass(frozen=True, eq=False)
class Source:
    """A Python program; it is read, never run.

    path: for messages.
    text: as it is in the file.
    tree: as `ast` reads it.
    """

    path: str
    text: str
    tree: ast.Module = field(repr=False)

    @classmethod
    def of(cls, text: str, path: str = "program.py") -> Source:
        """
        Raises:
            SyntaxError: it is not Python 3.
        """
        return cls(path, text, ast.parse(text, path))


@dataclass(frozen=True)
class Unseen:
    """What could not be looked at; goes into the report as it is, and no rule looks at it.

    what: such as "the statistics of the batch".
    why: such as "no data was given".
    remedy: the next step.
    """

    what: str
    why: str
    remedy: str


Evidence = (
    Normalizer
    | Pair
    | Decay
    | Structure
    | Phase
    | Updates
    | Placeholder
    | Observed
    | Phases
    | Rows
    | Batching
    | Source
    | Unseen
)
