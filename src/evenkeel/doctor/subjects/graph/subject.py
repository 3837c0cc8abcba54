# SPDX-License-Identifier: Apache-2.0
"""A graph of TensorFlow 1, as evidence: who updates the moving statistics, and who uses which in which phase."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from evenkeel.checkpoints import Checkpoint, Variable, bundles, read_checkpoint
from evenkeel.checkpoints.flags import never_updated
from evenkeel.checkpoints.names import OBJECT
from evenkeel.doctor import evidence as seen
from evenkeel.doctor.options import Options
from evenkeel.doctor.subjects.graph.kept import Kept, frozen, kept, restored
from evenkeel.doctor.subjects.graph.nodes import Graph, Node, ancestors, constant
from evenkeel.doctor.subjects.graph.origins import ALWAYS, Origins
from evenkeel.doctor.subjects.graph.training import Training, has_gradients, trainings
from evenkeel.doctor.subjects.graph.uses import Use, normalized, uses
from evenkeel.errors import ArgumentError, InputError

KIND = "graph of TensorFlow 1"
_FILES = (".meta", ".pb", ".pbtxt")
_MODELS = ("saved_model.pb", "saved_model.pbtxt")
NO_GRAPH = "{path} holds no graph; give a .meta file, a SavedModel or a GraphDef"
NOT_IN_GRAPH = "train_op {name!r} is not in the graph; give an operation or a tensor of it, or its name"

NOT_RUN = seen.Unseen(
    "what the data shows", "only a session runs a graph", "restore the checkpoint into a session and diagnose that"
)


class Described(NamedTuple):
    """A graph, as it was written.

    graph: a `GraphDef`.
    train_ops: names in the collection of train operations.
    signatures: of a SavedModel: names of inputs, names of outputs.
    serves: it is for inference, whatever is in it.
    """

    graph: Any
    train_ops: Sequence[str] = ()
    signatures: Sequence[tuple[set[str], set[str]]] = ()
    serves: bool = False


def recognises(subject: Any) -> bool:
    """A `tf.Graph`, a session, an operation or tensor of a graph; a path that ends like a graph, or is a SavedModel."""
    if isinstance(subject, str | os.PathLike):
        path = Path(subject)
        return path.suffix in _FILES or any((path / name).is_file() for name in _MODELS)
    tf = sys.modules.get("tensorflow")
    return tf is not None and _graph(subject, tf) is not None


def evidence(subject: Any, options: Options) -> Iterator[seen.Evidence]:
    """Normalizers, then who updates them, then who uses which statistics.

    Raises:
        InputError: a file that is no graph, or a damaged one.
    """
    if isinstance(subject, str | os.PathLike):
        path = Path(subject)
        described, values = list(_read(path)), _beside(path)
        names = _names(options.train_op)
        _check(names, described)
        for each in described:
            yield from _of(each, values or _constants(each, path), options, names)
        if options.data is not None:
            yield NOT_RUN
        return
    import tensorflow as tf

    v1 = tf.compat.v1
    graph = _graph(subject, tf)
    session = subject if isinstance(subject, v1.Session | v1.InteractiveSession) else None
    names = _names(
        options.train_op if options.train_op is not None else None if session or graph is subject else subject
    )
    described = [Described(graph.as_graph_def(), _names(graph.get_collection(v1.GraphKeys.TRAIN_OP)))]
    _check(names, described)
    normalizers: dict[str, seen.Normalizer] = {}
    for item in _of(described[0], session and _values(session), options, names):
        if isinstance(item, seen.Normalizer):
            normalizers[item.name] = item
        yield item
    if options.data is None:
        return
    if session is None:
        yield NOT_RUN
    else:
        from evenkeel.doctor import observing

        yield from observing.evidence(session, options, normalizers)


def _of(
    described: Described, values: Checkpoint | None, options: Options, names: Sequence[str]
) -> Iterator[seen.Evidence]:
    graph = Graph(described.graph)
    fed = {name for inputs, _ in described.signatures for name in inputs}
    unfed = {name for name, node in graph.nodes.items() if node.op == "PlaceholderWithDefault" and name not in fed}
    origins = Origins(graph, unfed if described.signatures else ())
    keeping = kept(origins)
    using = uses(origins, keeping)
    stored = None if values is None else _in_graph(graph, values)
    normalizers = list(_normalizers(keeping, using, stored, options))
    yield from normalizers
    moved = {item.name: _moved(item) for item in normalizers}
    training = _trainings(graph, described, names)
    yield from _updates(graph, keeping, using, training, moved)
    if training:
        yield from _in_training(graph, keeping, using, training, moved)
    elif described.serves or not has_gradients(graph):
        yield from _in_inference(graph, using, described.signatures)
    else:
        yield seen.Unseen("which updates are run", "no train operation was found", "give train_op=")
    yield from _placeholders(origins, using, described, options)


def _normalizers(
    keeping: Mapping[str, Kept], using: Sequence[Use], values: Checkpoint | None, options: Options
) -> Iterator[seen.Normalizer]:
    """With the values there are, and what the graph says of momentum and epsilon."""
    from evenkeel.doctor.subjects.checkpoint import normalizers

    found = {} if values is None else {item.name: item for item in normalizers(values, options)}
    for name, own in keeping.items():
        item = found.get(name, seen.Normalizer(name, steps=options.steps, batches_per_step=options.batches_per_step))
        momentum = own.momentum()
        epsilon = next((use.epsilon for use in using if use.name == name), None)
        yield dataclasses.replace(
            item,
            momentum=item.momentum if momentum is None else momentum,
            epsilon=item.epsilon if epsilon is None else epsilon,
        )


def _moved(normalizer: seen.Normalizer) -> bool | None:
    mean, variance = normalizer.moving_mean, normalizer.moving_variance
    return None if mean is None or variance is None else not never_updated(mean, variance)


def _trainings(graph: Graph, described: Described, names: Sequence[str]) -> list[Training]:
    if not names:
        return [] if described.serves else trainings(graph, described.train_ops)
    found = graph.named(names)
    return [Training.of(graph, found)] if found else []


def _updates(
    graph: Graph,
    keeping: Mapping[str, Kept],
    using: Sequence[Use],
    training: Sequence[Training],
    moved: Mapping[str, bool | None],
) -> Iterator[seen.Updates]:
    for name, item in keeping.items():
        everywhere = {update for step in training for update in item.updates if update in step.run}
        for step in training:
            here = [use for use in using if use.name == name and use.node in step.run and use.batch]
            reached = [update for update in item.updates if update in step.run]
            # What another train operation runs is not forgotten: of a GAN, each runs its own.
            if not reached and (not here or everywhere):
                continue
            left = [key for key, updates in item.statistics.items() if updates and everywhere.isdisjoint(updates)]
            yield seen.Updates(
                name,
                step.name,
                tuple(update.name for update in item.updates),
                tuple(update.name for update in reached),
                step.foreign(item),
                trained=bool(step.trained.intersection(item.affine)) or _trains_before(graph, step, here),
                unreached=tuple(left),
                moved=moved.get(name),
            )


def _trains_before(graph: Graph, step: Training, here: Sequence[Use]) -> bool:
    return any(node in step.behind for use in here for node in normalized(use, graph.consumers))


def _in_training(
    graph: Graph,
    keeping: Mapping[str, Kept],
    using: Sequence[Use],
    training: Sequence[Training],
    moved: Mapping[str, bool | None],
) -> Iterator[seen.Phase]:
    """Those that use their moving statistics in every train operation, and are updated by none."""
    for name, item in keeping.items():
        run = [(step, [use for use in using if use.name == name and use.node in step.run]) for step in training]
        here = [use for _, found in run for use in found]
        updated = any(update in step.run for step in training for update in item.updates)
        if not here or updated or any(use.batch for use in here):
            continue
        trained = any(
            not step.trained.isdisjoint(item.affine) if item.affine else _trains_before(graph, step, found)
            for step, found in run
        )
        yield seen.Phase(name, "training", False, here[0].because, trained, moved.get(name))


def _in_inference(
    graph: Graph, using: Sequence[Use], signatures: Sequence[tuple[set[str], set[str]]]
) -> Iterator[seen.Phase]:
    needed = ancestors(graph.named(name for _, outputs in signatures for name in outputs)) if signatures else None
    told: set[str] = set()
    for use in using:
        if use.name not in told and ALWAYS in use.batch and (needed is None or use.node in needed):
            told.add(use.name)
            yield seen.Phase(use.name, "inference", True, use.because)


def _placeholders(
    origins: Origins, using: Sequence[Use], described: Described, options: Options
) -> Iterator[seen.Placeholder]:
    decided: dict[Node, dict[str, None]] = {}
    for use in using:
        for phase in (*use.batch, *use.moving):
            for node in origins.placeholders(phase):
                decided.setdefault(node, {})[use.name] = None
    given = set(_names(list(options.phase) if isinstance(options.phase, Mapping) else options.phase))
    for node, names in decided.items():
        fed: bool | None = True if node.name in given else None
        for inputs, outputs in described.signatures:
            if node in ancestors(origins.graph.named(outputs)):
                fed = node.name in inputs and fed is not False
        yield seen.Placeholder(node.name, node.op == "PlaceholderWithDefault", fed, tuple(names))


def _graph(subject: Any, tf: Any) -> Any:
    """The graph of whatever belongs to one; None of what does not, as of tensors of TensorFlow 2."""
    v1 = tf.compat.v1
    if isinstance(subject, tf.Graph):
        return subject
    if isinstance(subject, v1.Session | v1.InteractiveSession | tf.Operation):
        return subject.graph
    if isinstance(subject, tf.Tensor | tf.IndexedSlices) and not hasattr(subject, "numpy"):
        return subject.graph
    return None


def _names(operations: Any) -> list[str]:
    """Of operations and tensors, one or several, or names."""
    if operations is None:
        return []
    if isinstance(operations, list | tuple | set):
        return [name for operation in operations for name in _names(operation)]
    name = operations if isinstance(operations, str) else operations.name
    return [name.partition(":")[0]]


def _check(names: Sequence[str], described: Sequence[Described]) -> None:
    """Raise where a train operation is in none of the graphs; of a SavedModel, only one may have it."""
    held = {node.name for each in described for node in each.graph.node}
    held |= {node.name for each in described for function in each.graph.library.function for node in function.node_def}
    for name in names:
        if name not in held:
            raise ArgumentError(NOT_IN_GRAPH.format(name=name))


def _values(session: Any) -> Checkpoint | None:
    """What the variables hold; those that are not initialized are left out."""
    import tensorflow as tf

    v1 = tf.compat.v1
    held: dict[str, Variable] = {}
    for variable in session.graph.get_collection(v1.GraphKeys.GLOBAL_VARIABLES):
        if (variable.shape.rank or 0) <= 1:
            try:
                held[variable.op.name] = Variable.of(session.run(variable), f"{variable.op.name} of the session")
            except tf.errors.FailedPreconditionError:
                continue
    return Checkpoint("session", "session", "tensorflow", held) if held else None


def _read(path: Path) -> Iterator[Described]:
    import tensorflow as tf
    from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

    v1 = tf.compat.v1
    folder = path.parent if path.name in _MODELS else path
    model = next((folder / name for name in _MODELS if (folder / name).is_file()), None)
    if model is not None:
        metas = _message(model, SavedModel()).meta_graphs
    elif path.suffix == ".meta":
        metas = [_message(path, v1.MetaGraphDef())]
    else:
        described = _message(path, v1.GraphDef())
        metas = [v1.MetaGraphDef(graph_def=described)]
    if not any(meta.graph_def.node for meta in metas):
        raise InputError(NO_GRAPH.format(path=path))
    for meta in metas:
        train_ops = meta.collection_def["train_op"].node_list.value if "train_op" in meta.collection_def else ()
        signatures = [
            (_tensors(signature.inputs), _tensors(signature.outputs))
            for name, signature in meta.signature_def.items()
            if not name.startswith("__")
        ]
        serves = "serve" in meta.meta_info_def.tags
        yield Described(meta.graph_def, _names(list(train_ops)), signatures if serves else (), serves)


def _message(path: Path, message: Any) -> Any:
    """
    Raises:
        InputError: there is no such file, or it holds something else.
    """
    from evenkeel.tf1.saving import read

    try:
        read(path, message)
    except OSError as error:
        raise InputError(f"{path} cannot be read as a graph: {error}") from error
    return message


def _tensors(infos: Mapping[str, Any]) -> set[str]:
    """Names of operations; sparse and composite tensors have several."""
    found: set[str] = set()
    for info in infos.values():
        parts = [info.name, info.coo_sparse.values_tensor_name, info.coo_sparse.indices_tensor_name]
        parts += [component.name for component in info.composite_tensor.components]
        found |= {part.partition(":")[0] for part in parts if part}
    return found


def _beside(path: Path) -> Checkpoint | None:
    """The checkpoint of a `.meta`, the variables of a SavedModel."""
    if path.suffix == ".meta":
        prefix = path.with_suffix("")
        return read_checkpoint(prefix) if bundles.index_file(prefix).is_file() or prefix.is_file() else None
    folder = path.parent if path.name in _MODELS else path
    if folder.is_dir() and bundles.index_file(folder / "variables" / "variables").is_file():
        return read_checkpoint(folder)
    return None


def _in_graph(graph: Graph, values: Checkpoint) -> Checkpoint:
    """With the variables' names in the graph; files of TensorFlow 2 have others, which the graph tells."""
    if not any(name.endswith(OBJECT) for name in values.variables):
        return values
    held = {name: values.variables[key] for name, key in restored(graph).items() if key in values.variables}
    return dataclasses.replace(values, variables=held)


def _constants(described: Described, path: Path) -> Checkpoint | None:
    """The values in a frozen graph."""
    graph = Graph(described.graph)
    arrays = {name: constant(node) for name, node in frozen(graph).items()}
    held = {name: Variable.of(array, f"{name} of {path}") for name, array in arrays.items() if array is not None}
    return Checkpoint(str(path), "frozen graph", "tensorflow", held) if held else None
