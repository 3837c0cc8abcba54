# SPDX-License-Identifier: Apache-2.0
"""How the values of a checkpoint get into a file of another library."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np

from evenkeel.arguments import choice
from evenkeel.checkpoints import formats, names
from evenkeel.checkpoints.contents import Checkpoint, Convention, Facts, Normalizer, Variable
from evenkeel.checkpoints.keras_upgrade import upgraded
from evenkeel.checkpoints.matching import matched
from evenkeel.checkpoints.meaning import WORDS, related, replaced, translation
from evenkeel.checkpoints.proof import largest_difference
from evenkeel.dialects import DIALECTS
from evenkeel.errors import ArgumentError, EvenkeelError, InputError

HOLDS: Mapping[str, Convention] = {
    "torch": "torch",
    "keras": "keras",
    "weights": "keras",
    "hdf5": "keras",
    "tensorflow": "tensorflow",
}
"""Module of a format -> the convention of such files; the others may have any."""
SPEAKS = {"tensorflow": "tf.layers", "keras": "keras", "torch": "torch", "flax": "flax"}
"""Convention -> the dialect of new layers."""
COUNTER = WORDS["torch"]["count"]
REGULAR = "re:"


class Report(NamedTuple):
    """What a conversion did.

    source, target: the files.
    convention: of the names in the target.
    renamed: name in the source -> name in the target, in the order of the target; also where they are the same.
    left: what of the source is not in the target, but for counters.
    notes: what is to be known, a sentence each.
    normalizers: how many of the target were compared with those of the source.
    difference: the largest between their outputs.
    """

    source: str
    target: str
    convention: Convention
    renamed: Mapping[str, str]
    left: tuple[str, ...]
    notes: tuple[str, ...]
    normalizers: int
    difference: float


def convert(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    like: str | os.PathLike[str] | None = None,
    rename: Iterable[str] = (),
    to: Convention | None = None,
    examples: int | None = None,
    averages: bool = False,
    overwrite: bool = False,
    dry_run: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Write the values of one checkpoint as another library has them, and prove that it normalizes alike.

    The file is written beside `target`, read again, every normalizer is applied to random data and compared with that
    of `source`; only then it takes its place.

    Args:
        source: what `read_checkpoint` reads.
        target: the format follows from its ending, as in `write_checkpoint`.
        like: a file of the model that is to load the result. It gives names, order, shapes, types, the model.
        rename: rules for names of the source, one after the other: `old=new` for names that begin with `old`, up to a
            separator, which `old=` takes away too, and `re:pattern=replacement` for what a regular expression finds.
        to: whose names and layouts; without it those of `like`, of the format, or of the source.
        examples: how many values of a channel a batch had, from which the moving variance came: converts between
            variances divided by n and n - 1 where the libraries differ. Without it variances are copied.
        averages: take the moving averages of weights (the EMA shadows of TensorFlow) for the weights.
        overwrite: take the place of what is at `target`.
        dry_run: do all but write.
        progress: called with how many variables are written, of how many.

    Raises:
        InputError: a file that cannot be read or written; parts of `like` are not in `source`.
        UnequalError: the result would compute something else. Like all errors, it leaves `target` as it was.
        ArgumentError: a rule that is none, or changes nothing; options that contradict each other.
    """
    path = Path(target)
    module = formats.writer(path, overwrite=overwrite)
    original = _averaged(formats.read(source)) if averages else formats.read(source)
    now, before = _renamed(original, rename)
    notes: list[str] = []
    goal = now if like is None else formats.read(like)
    if HOLDS.get(_name(module)) == "keras" and goal.model is not None:
        goal, notes = upgraded(goal)
    if like is None:
        before = dict(zip(goal.variables, before.values(), strict=True))
        result, origins = translation(goal, _convention(module, goal, to))
    else:
        (result, origins), matches = matched(now, goal)
        notes += matches
        if to is not None and not related(to, result.convention):
            raise ArgumentError(
                f"to={to!r} was given, and {like} has names of {result.convention}; leave one of them out"
            )
    held = HOLDS.get(_name(module), result.convention)
    if not related(held, result.convention):
        raise ArgumentError(f"{path} has names of {held} ({module.DESCRIPTION}), not of {result.convention}")
    renamed = {before[old]: new for new, old in origins.items() if old is not None}
    pairs = _pairs(original, renamed, result, told=like is not None or result.model is not None)
    factors = _factors(pairs, result.convention, examples)
    left = [name for name in original.variables if name not in renamed]
    notes += [*_of_missing(pairs), *_of_counters(left, origins)]
    if original.convention != result.convention:
        notes += [*_of_variances(pairs, result.convention, examples), *_of_settings(pairs, result.convention)]
    result = _scaled(result, pairs, factors)
    if dry_run:
        difference = _proven(pairs, result, factors)
    else:
        with _beside(path, module) as partial:
            module.write(_watched(result, progress), partial)
            difference = _proven(pairs, _read_again(module, partial, result), factors)
    lost = tuple(name for name in left if not name.endswith(COUNTER))
    return Report(original.path, str(path), result.convention, renamed, lost, tuple(notes), len(pairs), difference)


def _read_again(module: ModuleType, path: Path, written: Checkpoint) -> Checkpoint:
    """What was written. In a `.weights.h5` variables have numbers, and only the model says whose."""
    checkpoint: Checkpoint = module.read(path, written.model) if _name(module) == "weights" else module.read(path)
    return checkpoint


def _averaged(checkpoint: Checkpoint) -> Checkpoint:
    """With the moving averages in the place of what they average; of a helper class they are its statistics anyway."""
    statistics = {roles.get(role) for _, roles in _named(checkpoint) for role in ("mean", "variance")}
    averages = names.averages(checkpoint.variables)
    averages = {name: average for name, average in averages.items() if average not in statistics}
    if not averages:
        raise ArgumentError(f"{checkpoint.path} has no moving averages of its weights; leave averages out")
    taken = set(averages.values())
    variables = {
        name: checkpoint.variables[averages.get(name, name)] for name in checkpoint.variables if name not in taken
    }
    return dataclasses.replace(checkpoint, variables=variables)


def _name(module: ModuleType) -> str:
    return module.__name__.rpartition(".")[2]


def _convention(module: ModuleType, checkpoint: Checkpoint, to: Convention | None) -> Convention:
    if to is not None:
        choice("to", to, WORDS)
        return to
    return HOLDS.get(_name(module), checkpoint.convention)


@contextlib.contextmanager
def _beside(path: Path, module: ModuleType) -> Iterator[Path]:
    """What to write to, in a folder beside `path`; it takes the place of `path` when all went well."""
    try:
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f"partial-{path.name}-") as folder:
            partial = Path(folder, path.name)
            try:
                yield partial
            except EvenkeelError as error:
                raise type(error)(str(error).replace(str(partial), str(path))) from error
            if partial.is_file():
                os.replace(partial, path)
            else:  # of several files, only their format knows in which order they can be replaced
                module.write(module.read(partial), path)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}; give another name") from error


def _watched(checkpoint: Checkpoint, progress: Callable[[int, int], None] | None) -> Checkpoint:
    """The same, and `progress` hears of each variable that is read."""
    if progress is None:
        return checkpoint
    seen = set()

    def watch(name: str, variable: Variable) -> Variable:
        def load() -> np.ndarray:
            values = variable.read()
            seen.add(name)
            progress(len(seen), len(checkpoint.variables))
            return values

        return dataclasses.replace(variable, load=load)

    variables = {name: watch(name, variable) for name, variable in checkpoint.variables.items()}
    return dataclasses.replace(checkpoint, variables=variables)


# Rules for names.


def _renamed(checkpoint: Checkpoint, rules: Iterable[str]) -> tuple[Checkpoint, dict[str, str]]:
    """A checkpoint under new names, and new name -> old name."""
    new = {name: name for name in checkpoint.variables}
    for rule in rules:
        change = _change(rule)
        changed = {old: change(name) for old, name in new.items()}
        if changed == new:
            raise ArgumentError(
                f"the rule {rule!r} changes no name in {checkpoint.path}; see `evenkeel inspect --variables`"
            )
        new = changed
    if checkpoint.convention == "torch":  # rules may be written with the other library's separator
        new = {old: name.replace("/", ".") for old, name in new.items()}
    old = {name: before for before, name in new.items()}
    if len(old) < len(new):
        twice, count = Counter(new.values()).most_common(1)[0]
        raise ArgumentError(
            f"by the rules, {count} variables of {checkpoint.path} would be called {twice}; give others"
        )
    variables = {name: checkpoint.variables[before] for name, before in old.items()}
    result = dataclasses.replace(checkpoint, variables=variables, facts={})
    scopes = {name: normalizer.name for normalizer, roles in _named(result) for name in roles.values()}
    facts = {
        scopes[new[name]]: checkpoint.facts[normalizer.name]
        for normalizer, roles in _named(checkpoint)
        for name in roles.values()
        if normalizer.name in checkpoint.facts and new[name] in scopes
    }
    return dataclasses.replace(result, facts=facts), old


def _change(rule: str) -> Callable[[str], str]:
    """What a rule does to a name."""
    old, equals, new = rule.rpartition("=")
    if not equals or not old:
        raise ArgumentError(f"{rule!r} is no rule for names; give old=new, or re:pattern=replacement")
    if not old.startswith(REGULAR):
        # Where nothing takes the place of OLD, its separator goes too.
        end = "" if old[-1] in "/." else r"(?![^/.])" if new else "[/.]"
        pattern = re.compile(re.escape(old) + end)
        return lambda name: pattern.sub(lambda _: new, name, count=1) if pattern.match(name) else name
    try:
        pattern = re.compile(old.removeprefix(REGULAR))
        pattern.sub(new, "")
    except (re.error, IndexError) as error:
        raise ArgumentError(f"{rule!r} is no rule for names: {error}; see Python's re.sub") from error
    return lambda name: pattern.sub(new, name)


# Normalizers.


class _Pair(NamedTuple):
    """A normalizer of the source, and what became of it.

    names: role -> name in the result, of what is there.
    facts: what the result says of it.
    """

    source: Normalizer
    names: Mapping[str, str]
    facts: Facts


def _named(checkpoint: Checkpoint) -> Iterator[tuple[Normalizer, Mapping[str, str]]]:
    """The normalizers, and role -> name of the variable."""
    shapes = {name: variable.shape for name, variable in checkpoint.variables.items()}
    kinds = {name: facts.kind for name, facts in checkpoint.facts.items()}
    roles = (found.roles for found in names.find(shapes, kinds))
    return zip(checkpoint.normalizers, roles, strict=True)


def _owners(checkpoint: Checkpoint) -> dict[str, Normalizer]:
    """Name of a variable -> the normalizer of which it is a part."""
    return {name: normalizer for normalizer, roles in _named(checkpoint) for name in roles.values()}


def _pairs(source: Checkpoint, renamed: Mapping[str, str], result: Checkpoint, *, told: bool) -> list[_Pair]:
    """Those of the source of which something is in the result.

    Args:
        told: the file of the result says more than values.
    """
    owners = _owners(result)
    pairs = []
    for normalizer, roles in _named(source):
        new = {role: renamed[name] for role, name in roles.items() if role in names.FOUR and name in renamed}
        owner = next((owners[name] for name in new.values() if name in owners), None)
        if new:
            pairs.append(_Pair(normalizer, new, owner.facts if owner and told else Facts()))
    return pairs


def _proven(pairs: Sequence[_Pair], result: Checkpoint, factors: Mapping[str, float]) -> float:
    """The largest difference between the normalizers of the source and those of the result."""
    owners = _owners(result)

    def partner(pair: _Pair) -> Normalizer | None:
        found = {owners[name].name: owners[name] for name in pair.names.values() if name in owners}
        return next(iter(found.values())) if len(found) == 1 else None

    return largest_difference((pair.source, partner(pair), factors.get(pair.source.name, 1.0)) for pair in pairs)


# Which variance is kept.


def _sample_variances(pair: _Pair, convention: Convention) -> tuple[bool | None, bool | None]:
    """Whether the variance of the source was divided by n - 1, and that of the result is meant to be."""
    usual = {"population": False, "sample": True}.get(DIALECTS[SPEAKS[convention]].keeps)
    said = pair.facts.bessel_correction
    return pair.source.facts.bessel_correction, usual if said is None else said


def _factors(pairs: Sequence[_Pair], convention: Convention, examples: int | None) -> dict[str, float]:
    """Name of a normalizer -> what its variance is multiplied by, where that is not 1."""
    if examples is None:
        return {}
    if examples < 2:
        raise ArgumentError(f"examples={examples}: the sample variance of so few is not defined; give 2 or more")
    scale = {(False, True): examples / (examples - 1), (True, False): (examples - 1) / examples}
    kept = {pair.source.name: _sample_variances(pair, convention) for pair in pairs if "variance" in pair.names}
    return {name: scale[both] for name, both in kept.items() if both in scale}


def _scaled(result: Checkpoint, pairs: Sequence[_Pair], factors: Mapping[str, float]) -> Checkpoint:
    variables = dict(result.variables)
    for pair in pairs:
        if factor := factors.get(pair.source.name):
            name = pair.names["variance"]
            variables[name] = replaced(variables[name], functools.partial(np.multiply, factor, dtype="float64"))
    return dataclasses.replace(result, variables=variables)


# What is to be known.


def _normalizers(count: int) -> str:
    return "1 normalizer" if count == 1 else f"{count} normalizers"


def _of_missing(pairs: Sequence[_Pair]) -> Iterator[str]:
    for pair in pairs:
        if pair.source.missing:
            yield f"{pair.source.name}: no {' and '.join(pair.source.missing)} in the source"


def _of_counters(left: Iterable[str], origins: Mapping[str, str | None]) -> Iterator[str]:
    if dropped := sum(name.endswith(COUNTER) for name in left):
        yield f"{COUNTER} of {_normalizers(dropped)} is left out, only torch has it"
    if added := sum(name.endswith(COUNTER) for name, old in origins.items() if old is None):
        yield f"{COUNTER} of {_normalizers(added)} is not in the source: 0, or what the target has"


def _of_variances(pairs: Sequence[_Pair], convention: Convention, examples: int | None) -> Iterator[str]:
    words = {False: "n", True: "n - 1", None: "n or n - 1, which the file does not say,"}
    counts = Counter(_sample_variances(pair, convention) for pair in pairs if "variance" in pair.names)
    for (ours, theirs), count in counts.items():
        if ours == theirs or theirs is None:
            continue
        difference = f"variances were divided by {words[ours]} and {convention} divides by {words[theirs]}"
        what = f"{_normalizers(count)}: {difference}"
        if ours is None:
            yield f"{what}: copied as they are"
        elif examples is None:
            yield f"{what}: copied as they are; give the number of values of a channel in a batch to convert them"
        else:
            yield f"{what}: converted for {examples} values"


def _of_settings(pairs: Sequence[_Pair], convention: Convention) -> Iterator[str]:
    """Epsilon and momentum, which most files do not hold."""
    usual = DIALECTS[SPEAKS[convention]]
    word = "eps" if convention == "torch" else "epsilon"
    silent = [pair for pair in pairs if pair.facts.epsilon is None]
    for epsilon, count in Counter(pair.source.facts.epsilon for pair in silent).items():
        if epsilon is None:
            yield f"{_normalizers(count)}: the source does not say epsilon; {convention} takes {usual.epsilon:g}"
        elif epsilon != usual.epsilon:
            yield f"{_normalizers(count)}: give them {word}={epsilon:g}; {convention} takes {usual.epsilon:g}"
    silent = [pair for pair in pairs if pair.facts.momentum is None]
    for momentum, count in Counter(pair.source.facts.momentum for pair in silent).items():
        if momentum is not None and momentum != usual.kept_share:
            own = momentum if usual.kept else 1 - momentum
            yield f"{_normalizers(count)}: to go on training give them momentum={own:.6g}"
