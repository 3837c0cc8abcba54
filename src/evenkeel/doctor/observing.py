# SPDX-License-Identifier: Apache-2.0
"""What data shows of a model: what its normalizers see, and what its outputs are in both phases.

All data goes through the model once, every normalizer using its batch as in training; dropout is off, for this is about
normalization alone. Then some of the batches go through it again with the statistics that they had in that pass.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from evenkeel.doctor import distance
from evenkeel.doctor.evidence import Batching, Evidence, Observed, Phases, Rows, Score, Seen, Unseen
from evenkeel.doctor.evidence import Normalizer as Known
from evenkeel.doctor.options import Options
from evenkeel.errors import InputError
from evenkeel.functional.moments import Moments
from evenkeel.functional.moving import State
from evenkeel.surgery.recalibrate import subject as subjects
from evenkeel.surgery.recalibrate.feeding import Batches, batches, inputs, plain, rows_of, shown, sliced, targets
from evenkeel.surgery.recalibrate.pool import Pool, merged, pool_of
from evenkeel.surgery.recalibrate.subject import Call, Normalizer, Subject

# Data of unknown length may be endless.
MOST_BATCHES = 1000
# The outputs are compared on as many rows as have a million numbers, but on at least and at most so many.
NUMBERS, FEWEST_ROWS, MOST_ROWS = 1_000_000, 16, 256
MOST_KEPT = 8  # batches
# Points of the curve by layer, first spread evenly, then where it is steepest.
SPREAD, POINTS = 4, 8
# Of a small batch, so many rows are kept and as many replaced.
FIXED_ROWS = 2
# Least difference of two numbers near 1.
EPSILON = {"float16": 2.0**-10, "bfloat16": 2.0**-7}
LEAST_LIKELY = 1e-7

ALONE = "whether rows depend on each other"

COMPILED = Unseen(
    "what {name} sees of the data",
    "it is called inside a compiled or mapped function, where its input has no values",
    "take tf.function, jit, RNN or TimeDistributed away from round it",
)
ENDLESS = Unseen(
    f"the data after {MOST_BATCHES:,} batches", "its length is not known", "give arrays, or an iterable with a length"
)
UNREACHED = Unseen(
    "the statistics of the batch", "no data reached a normalizer", "give data of one batch at least, and see the model"
)
ALL_FROZEN = Unseen(
    "the outputs in both phases",
    "all normalizers are frozen, and training normalizes as inference does",
    "evenkeel.unfreeze(model), if they are not to be",
)
LABELS = "give (x, y) with class labels, integers of shape (rows,)"
NO_OUTPUTS = Unseen(
    "the outputs in both phases",
    "a session does not tell which of its tensors are the outputs",
    "diagnose the model as a Keras model, or compare session.run of your outputs with both values of the phase",
)


@dataclasses.dataclass(eq=False)
class _Layer:
    """What is gathered of a normalizer; the fields as in `Seen`.

    pools: of each of its calls within a pass.
    rows: of the largest batch.
    padding: how many positions are padding, and how many there are.
    """

    pools: list[Pool] = dataclasses.field(default_factory=list)
    values: list[int] = dataclasses.field(default_factory=list)
    rows: int = 1
    padding: tuple[int, int] = (0, 0)
    dtype: str | None = None
    masked: bool = False

    def note(self, call: Call, *, padding: bool) -> None:
        """What shows while a call lasts."""
        self.masked |= call.masked
        self.rows = max(self.rows, *call.inputs.shape[:1])
        dtype = call.inputs.dtype
        self.dtype = getattr(dtype, "name", None) or str(dtype).removeprefix("torch.")
        if padding and not call.masked and len(call.inputs.shape) == 3 and isinstance(call.axis, int):
            found = _padding(np.moveaxis(_plain(call.inputs), call.axis, -1))
            self.padding = self.padding[0] + found[0], self.padding[1] + found[1]

    def add(self, pools: list[Pool]) -> None:
        """The calls of one batch."""
        self.values.append(min(int(np.max(pool.moments.count, initial=0)) for pool in pools))
        self.pools = [merged(*filter(None, both)) for both in itertools.zip_longest(self.pools, pools)]


class _Kept(NamedTuple):
    """Rows of a batch on which outputs are compared.

    states: of each call of a normalizer, the statistics of the whole batch.
    """

    inputs: Any
    labels: np.ndarray | None
    rows: int
    states: Mapping[Normalizer, list[State]]

    @classmethod
    def of(
        cls, batch: Any, labels: Any, rows: int | None, wanted: int, states: Mapping[Normalizer, list[State]]
    ) -> _Kept:
        labels = plain(labels) if hasattr(labels, "shape") else None
        if rows is None:
            return cls(batch, labels, wanted, states)
        if rows > wanted:
            batch, labels = sliced(batch, slice(wanted)), None if labels is None else labels[:wanted]
        return cls(batch, labels, min(rows, wanted), states)


def evidence(model: Any, options: Options, normalizers: Mapping[str, Known]) -> Iterator[Evidence]:
    """Runs the model on the data; nothing of it is changed afterwards.

    Args:
        model: what `evenkeel.recalibrate` takes.
        options: with data.
        normalizers: those of the model, by the names that `evenkeel.recalibrate` gives them.

    Raises:
        ArgumentError, InputError: data or a model that cannot be used.

    Example:
        >>> import keras
        >>> model = keras.Sequential([keras.Input([1]), keras.layers.BatchNormalization()])
        >>> observed, batching, phases, rows = evidence(model, Options(np.array([[1.0], [3.0]])), {})
        >>> observed.seen[0].moments, phases.training.gap.__round__(3), rows.change
        (Moments(mean=array([2.]), variance=array([1.]), count=array([2.])), 2.0, 0.0)
    """
    with same_random_numbers():
        found = list(_found(model, options, normalizers))
    yield from found


def _found(model: Any, options: Options, normalizers: Mapping[str, Known]) -> Iterator[Evidence]:
    source = batches(options.data, batch_size=options.batch_size, steps=None)
    endless = source.count is None
    if endless:
        source = batches(options.data, batch_size=options.batch_size, steps=MOST_BATCHES)
    source.first()  # or what follows would blame the model
    try:
        subject = subjects.of(model, source, phase=options.phase, feed=options.feed, include_frozen=True)
    except InputError as error:
        why, _, remedy = str(error).partition("; ")
        yield Unseen("what the data shows", why, remedy)
        return
    if not subject.normalizers:
        return
    before = {normalizer: normalizer.read() for normalizer in subject.normalizers if normalizer.left is None}
    compared: list[Evidence] = [NO_OUTPUTS] if subject.call is None else []
    try:
        layers, blind, kept, rows = _all_data(subject, source, before, options, normalizers)
        if subject.call is not None and layers:
            frozen = {one for one in layers if one.name in normalizers and normalizers[one.name].frozen}
            learning = {one: layer for one, layer in layers.items() if one not in frozen}
            compared.append(_phases(subject, before, learning, kept) if learning else ALL_FROZEN)
            compared += _unused(options.data, kept, compared[-1])
        if subject.call is not None:
            _write(before)
            compared.append(_rows(subject.call, kept[0].inputs, {layer.dtype for layer in layers.values()}))
    finally:
        _write(before)  # after the call too, for a layer that is told to train moves its statistics
    seen = tuple(_seen(layer, one, normalizers.get(one.name)) for one, layer in layers.items())
    if seen:
        known = [count for count in rows if count is not None]
        yield Observed(seen, sum(known) if len(known) == len(rows) else None)
        yield from _batching(seen, rows)
    yield from compared
    yield from (dataclasses.replace(COMPILED, what=COMPILED.what.format(name=one.name)) for one in blind)
    if before and not layers and not blind:
        yield UNREACHED
    if endless and len(rows) == MOST_BATCHES:
        yield ENDLESS


def _all_data(
    subject: Subject,
    source: Batches,
    before: Mapping[Normalizer, State],
    options: Options,
    normalizers: Mapping[str, Known],
) -> tuple[dict[Normalizer, _Layer], list[Normalizer], list[_Kept], list[int | None]]:
    """One pass in which every normalizer uses its batch, but for frozen ones.

    Returns:
        Those that were reached, in the order of their first call; those that were called without values; the first
        batches; and the rows of each batch, None where nobody can tell.
    """
    # In training these keep to their moving statistics; where all do, it is still to be seen what they are worth.
    frozen = {one for one in before if one.name in normalizers and normalizers[one.name].frozen}
    frozen = frozen if len(frozen) < len(before) else set()
    layers: dict[Normalizer, _Layer] = {}
    blind: dict[Normalizer, None] = {}
    kept: list[_Kept] = []
    rows: list[int | None] = []
    wanted = _wanted(source.first())
    calls: dict[Normalizer, list[tuple[Pool, State]]] = {}

    def seen(normalizer: Normalizer, call: Call) -> State | None:
        try:
            pool = pool_of(call.glance())
            state = normalizer.renewed(before[normalizer], pool, sample=False)
        except Exception:  # each framework has its own; and what is wrong with the input, the layer itself will say
            blind[normalizer] = None
            return None
        calls.setdefault(normalizer, []).append((pool, state))
        layers.setdefault(normalizer, _Layer()).note(call, padding=wanted > 0)
        return None if normalizer in frozen else state

    with subject.running(seen) as run:
        for item in shown(source.items(), source.count, options.progress, "looking at the data"):
            batch = inputs(item)
            calls.clear()
            run(batch)
            rows.append(_count(batch))
            for normalizer, called in calls.items():
                layers[normalizer].add([pool for pool, _ in called])
            if wanted > 0:
                states = {normalizer: [state for _, state in called] for normalizer, called in calls.items()}
                kept.append(_Kept.of(batch, targets(item), rows[-1], wanted, states))
                wanted = wanted - kept[-1].rows if len(kept) < MOST_KEPT else 0
    return layers, [one for one in blind if one not in layers], kept, rows


def _seen(layer: _Layer, normalizer: Normalizer, known: Known | None) -> Seen:
    if known is None:
        mean, variance = map(np.ravel, normalizer.read()[:2])
        known = Known(normalizer.name, mean, variance, epsilon=normalizer.epsilon)
    whole = merged(*layer.pools)
    calls = [Moments(*map(np.ravel, pool.moments)) for pool in (whole, *layer.pools)]
    padded, positions = layer.padding
    group = min(known.virtual_batch_size or layer.rows, layer.rows)
    return Seen(
        known,
        calls[0],
        tuple(calls[1:]),
        tuple(layer.values),
        known.replicas * group / layer.rows,
        layer.dtype,
        padded / positions if positions else None,
        layer.masked,
        int(whole.spoiled.max(initial=0)),
        normalizer.one_pass,
    )


def _batching(seen: tuple[Seen, ...], rows: list[int | None]) -> Iterator[Batching]:
    """How data is cut, where all batches but the last are alike: a last one that was dropped leaves no rest."""
    sizes = [size for size in rows if size]
    if len(sizes) == len(rows) and len(set(sizes[:-1])) < 2:
        alone = (item for item in seen if list(item.values) == sizes and not item.masked and item.together <= 1)
        flat = [item.normalizer for item in alone]
        raises = any(normalizer.raises for normalizer in flat)
        yield Batching(sum(sizes), sizes[0], False, tuple(normalizer.name for normalizer in flat), raises)


def _phases(
    subject: Subject, before: Mapping[Normalizer, State], layers: Mapping[Normalizer, _Layer], kept: list[_Kept]
) -> Phases | Unseen:
    order = list(layers)
    pools = {normalizer: merged(*layer.pools) for normalizer, layer in layers.items()}
    pooled = {**before, **{one: one.renewed(before[one], pool, sample=False) for one, pool in pools.items()}}

    def outputs(states: Mapping[Normalizer, State], swapped: int) -> list[np.ndarray]:
        return [_output(subject, states, set(order[:swapped]), part) for part in kept]

    try:
        inference = outputs(before, 0)
        labels = [part.labels for part in kept]

        def score(found: list[np.ndarray]) -> Score:
            return _score(found, inference, labels, subject.class_axis)

        curve = _curve(len(order), lambda swapped: score(outputs(before, swapped)), {0: score(inference)})
        renewed = score(outputs(pooled, 0))
    except Exception as error:  # the model may not like some rows of a batch
        return Unseen("the outputs in both phases", _said(error), f"give batches of at most {FEWEST_ROWS} rows")
    swapped = {order[place - 1].name: found for place, found in curve.items() if place}
    return Phases(curve[0], curve[len(order)], swapped, sum(part.rows for part in kept), renewed)


def _unused(data: Any, kept: list[_Kept], found: Evidence) -> Iterator[Unseen]:
    """Labels that came with the data, and that the outputs could not be compared with."""
    if isinstance(data, tuple) and len(data) > 1 and all(part.labels is None for part in kept):
        yield Unseen("accuracy and loss", "y is no array with a label for each row of x", LABELS)
    given = [part.labels for part in kept if part.labels is not None]
    if given and isinstance(found, Phases) and found.inference.accuracy is None:
        yield Unseen(
            "accuracy and loss",
            f"the labels are {given[0].dtype} of shape {given[0].shape}, and no classes of the first output",
            LABELS,
        )


def _output(
    subject: Subject, states: Mapping[Normalizer, State], using: Collection[Normalizer], part: _Kept
) -> np.ndarray:
    """The first output; the normalizers in `using` have the statistics of the batch, the others those of `states`."""
    waiting = {normalizer: iter(states) for normalizer, states in part.states.items() if normalizer in using}

    def seen(normalizer: Normalizer, call: Call) -> State | None:
        return next(waiting.get(normalizer, iter(())), states[normalizer])

    _write(states)
    with subject.running(seen) as run:
        return _first(run(part.inputs))


def _write(states: Mapping[Normalizer, State]) -> None:
    for normalizer, state in states.items():
        normalizer.write(state)


def _curve(count: int, score: Callable[[int], Score], found: dict[int, Score]) -> dict[int, Score]:
    """So many of `count` layers swapped -> score; of all if they are few, else where it is steepest.

    Args:
        found: that of none.
    """
    parts = SPREAD if count > POINTS else count
    found = found | {place: score(place) for place in {round(count * part / parts) for part in range(1, parts + 1)}}
    while len(found) <= POINTS:
        low, high = max(itertools.pairwise(sorted(found)), key=lambda ends: _step(found, ends))
        if high - low == 1:
            break
        found[(low + high) // 2] = score((low + high) // 2)
    return dict(sorted(found.items()))


def _step(found: Mapping[int, Score], ends: tuple[int, int]) -> float:
    return distance.step(found[ends[0]], found[ends[1]])


def _score(
    outputs: list[np.ndarray], reference: list[np.ndarray], labels: list[np.ndarray | None], class_axis: int
) -> Score:
    one, other = (np.concatenate([part.ravel() for part in parts]) for parts in (outputs, reference))
    with np.errstate(all="ignore"):
        # Outputs that are all alike, as those of a dead network, have no unit of their own.
        gap = np.sqrt(np.mean((one - other) ** 2)) / (np.std(other) or np.std([one, other]))
    gap = 0.0 if np.array_equal(one, other, equal_nan=True) else math.inf if np.isnan(gap) else float(gap)
    told = [_likelihood(*pair, class_axis) for pair in zip(outputs, labels, strict=True)]
    right, likelihood = ([pair[place] for pair in told if pair is not None] for place in (0, 1))
    if len(right) < len(told):
        return Score(gap)
    return Score(gap, float(np.mean(np.concatenate(right))), -float(np.mean(np.concatenate(likelihood))))


def _likelihood(output: np.ndarray, labels: np.ndarray | None, class_axis: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Whether each label is the likeliest, and the logarithm of how likely it is; None where these are no labels."""
    if labels is None or labels.dtype.kind not in "iub" or output.ndim < 2:
        return None
    classes = np.moveaxis(output, class_axis, -1)
    labels = labels.astype(int).reshape(labels.shape[:-1] if labels.shape == (*classes.shape[:-1], 1) else labels.shape)
    if classes.shape[-1] == 1:  # of the second of two classes
        within = (classes >= 0).all() and (classes <= 1).all()
        classes = np.concatenate([1 - classes if within else 0 * classes, classes], axis=-1)
    if (
        labels.shape != classes.shape[:-1]
        or not labels.size
        or not 0 <= labels.min() <= labels.max() < classes.shape[-1]
    ):
        return None
    with np.errstate(all="ignore"):
        if (classes >= 0).all() and np.allclose(classes.sum(-1), 1, atol=1e-2):
            logarithms = np.log(np.maximum(classes, LEAST_LIKELY))
        else:
            classes = classes - classes.max(-1, keepdims=True)
            logarithms = classes - np.log(np.exp(classes).sum(-1, keepdims=True))
    right = (logarithms.argmax(-1) == labels) & np.isfinite(logarithms).all(-1)
    return right.ravel(), np.take_along_axis(logarithms, labels[..., None], -1).ravel()


def _rows(call: Callable[[Any], Any], batch: Any, dtypes: Collection[str | None]) -> Rows | Unseen:
    """Whether the outputs of the first rows change when all others become copies of the first."""
    count = _count(batch) or 0
    fixed = min(FIXED_ROWS, count // 2)
    if not fixed:
        return Unseen(ALONE, "the first batch has one row", "give batches of two or more")
    rows = np.arange(min(2 * FIXED_ROWS, count))
    try:
        parts = [_taken(batch, chosen) for chosen in (rows, rows, np.where(rows < fixed, rows, 0))]
        once, again, changed = (_first(call(part)) for part in parts)
    except Exception as error:  # as above
        return Unseen(ALONE, _said(error), "call it on a batch and on the same with other rows changed")
    if once.shape[:1] != rows.shape:
        return Unseen(ALONE, f"the output of {len(rows)} rows has shape {once.shape}", "put the rows first")
    with np.errstate(invalid="ignore"):  # what is not finite before and after has not changed
        change, noise = (_largest(other[:fixed] - once[:fixed]) for other in (changed, again))
    # Ten times the rounding of a half's width is seldom, and a hundred times that of float32, after many layers.
    digits = max([100 * 2.0**-23, *(10 * EPSILON.get(str(dtype), 0) for dtype in dtypes)])
    finite = once[np.isfinite(once)]
    unit = (float(np.std(finite)) if finite.size else 0.0) or 1.0
    return Rows(change / unit, (digits * _largest(once) + 10 * noise) / unit)


def _largest(values: np.ndarray) -> float:
    """Of those that are finite."""
    return float(np.abs(values[np.isfinite(values)]).max(initial=0))


def _padding(x: np.ndarray) -> tuple[int, int]:
    """How many positions at the ends of rows are padding, and how many positions there are.

    Padding is a run of equal positions that ends, or starts, several rows in the same way. Data of few different values
    has such runs at both ends, so those at the other end are taken off.

    Args:
        x: shape `(rows, time, channels)`.

    Example:
        >>> _padding(np.array([[[1.0], [2.0], [0.0], [0.0]], [[3.0], [0.0], [0.0], [0.0]]]))
        (5, 8)
    """

    def run(x: np.ndarray) -> int:
        lengths = np.cumprod((x == x[:, :1]).all(-1), axis=1).sum(1)
        alike = (x[:, 0] == x[lengths.argmax(), 0]).all(-1)
        return int(lengths[alike].sum()) if lengths.max() > 1 else 0

    if x.shape[0] < 2 or not x.size:
        return 0, x.shape[0] * x.shape[1]
    return abs(run(x[:, ::-1]) - run(x)), x.shape[0] * x.shape[1]


def _wanted(batch: Any) -> int:
    """On how many rows like these outputs are compared."""
    leaves = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, list) else [batch]
    numbers = sum(math.prod(getattr(leaf, "shape", ())[1:]) for leaf in leaves)
    return min(max(NUMBERS // max(numbers, 1), FEWEST_ROWS), MOST_ROWS)


def _count(batch: Any) -> int | None:
    """The rows of a batch, where all its parts have as many."""
    try:
        sizes = rows_of(batch)
    except TypeError:
        return None
    return sizes.pop() if len(sizes) == 1 else None


def _taken(batch: Any, rows: np.ndarray) -> Any:
    """Some rows of a batch; of TensorFlow's tensors in NumPy, for they cannot be indexed so."""
    if isinstance(batch, Mapping):
        return {name: _taken(value, rows) for name, value in batch.items()}
    if isinstance(batch, list):
        return [_taken(value, rows) for value in batch]
    return (batch if hasattr(batch, "detach") else plain(batch))[rows]


def _first(outputs: Any) -> np.ndarray:
    """The first of the outputs, in float64."""
    while isinstance(outputs, Mapping | list | tuple):
        outputs = next(iter(outputs.values() if isinstance(outputs, Mapping) else outputs))
    return _plain(outputs)


def _plain(tensor: Any) -> np.ndarray:
    # NumPy has no bfloat16, and Apple's GPU no float64.
    return plain(tensor.detach().cpu().double() if hasattr(tensor, "detach") else tensor).astype("float64")


def _said(error: Exception) -> str:
    """On one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())


@contextlib.contextmanager
def same_random_numbers() -> Iterator[None]:
    """A DataLoader draws from torch's generator, even one that does not shuffle."""
    torch = sys.modules.get("torch")
    before = None if torch is None else torch.get_rng_state()
    try:
        yield
    finally:
        if torch is not None:
            torch.set_rng_state(before)
