# SPDX-License-Identifier: Apache-2.0
"""What a saver leaves out, and how graphs that TensorFlow 1 wrote can be imported."""

from __future__ import annotations

import itertools
import os
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import tensorflow as tf

v1 = tf.compat.v1

_FUSED_GRADIENTS = ("FusedBatchNormGrad", "FusedBatchNormGradV2", "FusedBatchNormGradV3")
_LEFT_OUT = (
    "this saver has the variables that are trained, but not the moving statistics {names}; a model restored from its "
    "files normalizes with other ones. Give it tf.global_variables(), or add them to its list"
)
_OTHER_SHAPE = (
    "Assign requires shapes of both tensors to match. {name}: lhs shape= {wanted} rhs shape= {stored}; the variable is "
    "on the left, the checkpoint on the right. Build the graph that was saved, or leave the variable out of the saver."
)


class MissingStatisticsWarning(UserWarning):
    """A saver leaves out what a normalizer needs at inference."""


class Saver(tf.compat.v1.train.Saver):
    """`tf.train.Saver`; warns when it has what is trained of a normalizer, but not its moving statistics.

    All arguments, files, methods and errors are TensorFlow's.

    Warns:
        MissingStatisticsWarning: names the statistics that are left out.

    Example:
        >>> with tf.Graph().as_default():
        ...     gamma = v1.get_variable("bn/gamma", [3])
        ...     mean = v1.get_variable("bn/moving_mean", [3], trainable=False)
        ...     Saver([gamma, mean]).saver_def.max_to_keep
        5
    """

    def __init__(self, var_list: Any = None, reshape: bool = False, *arguments: Any, **options: Any) -> None:
        super().__init__(var_list, reshape, *arguments, **options)
        self._shapes: dict[str, Any] = {}
        if tf.executing_eagerly():
            return
        everything = [] if options.get("saver_def") else v1.global_variables()
        if not reshape:
            self._shapes = _shapes(everything if var_list is None else var_list)
        if var_list and (names := statistics_left_out(var_list)):
            warnings.warn(_LEFT_OUT.format(names=", ".join(names)), MissingStatisticsWarning, stacklevel=2)

    def restore(self, sess: Any, save_path: Any) -> None:
        """Gives the variables what the files hold.

        Args:
            sess: the session.
            save_path: what `save` returned, or `tf.train.latest_checkpoint`.

        Raises:
            ValueError: the path is None, or there is no checkpoint.
            NotFoundError: the checkpoint lacks a variable.
            InvalidArgumentError: it has a variable with another shape or type.
        """
        if save_path and v1.train.checkpoint_exists(save_path):
            _check_shapes(self._shapes, v1.train.load_checkpoint(save_path).get_variable_to_shape_map())
        super().restore(sess, save_path)


def statistics_left_out(var_list: Any) -> list[str]:
    """Names of the statistics in the default graph that a saver of these variables would not save.

    A statistic is a global variable that is not trained and stands beside a gamma or a beta of its size, or is changed
    by UPDATE_OPS, or an average of such a variable. It is left out when trained variables beside it are saved; where
    none are beside it, when all that is trained is.

    Args:
        var_list: as for `Saver`: variables, or name in the file -> variable or list of its parts.

    Example:
        >>> with tf.Graph().as_default():
        ...     gamma = v1.get_variable("bn/gamma", [3])
        ...     mean = v1.get_variable("bn/moving_mean", [3], trainable=False)
        ...     statistics_left_out([gamma]), statistics_left_out([gamma, mean])
        (['bn/moving_mean'], [])
    """
    saved = _names(var_list)
    trained = _names(v1.trainable_variables())

    def left_out(name: str) -> bool:
        beside = {other for other in trained if _scope(other) == _scope(name)}
        return name not in saved and bool(beside & saved if beside else trained and trained <= saved)

    return [name for name in _statistics(trained) if left_out(name)]


def import_meta_graph(
    meta_graph_or_file: Any, clear_devices: bool = False, import_scope: str | None = None, **options: Any
) -> Saver | None:
    """`tf.train.import_meta_graph`, also of graphs that TensorFlow 1 wrote with gradients of fused batch norm in them.

    The file, or what was given, stays as it is; see `repair`.

    Args:
        meta_graph_or_file: a `MetaGraphDef`, or the path of one, binary or text.
        options: `input_map`, `restore_collections_predicate` and so on.

    Returns:
        The saver of the graph; None where nothing is to be saved.

    Raises:
        OSError: there is no such file, or it does not hold a `MetaGraphDef`.

    Example:
        >>> with tf.Graph().as_default():
        ...     _ = v1.get_variable("weights", [2])
        ...     written = v1.train.export_meta_graph()
        >>> with tf.Graph().as_default():
        ...     saver = import_meta_graph(written)
        ...     [variable.op.name for variable in v1.global_variables()]
        ['weights']
    """
    meta_graph = v1.MetaGraphDef()
    if isinstance(meta_graph_or_file, v1.MetaGraphDef):
        meta_graph.CopyFrom(meta_graph_or_file)
    else:
        read(meta_graph_or_file, meta_graph)
    repair(meta_graph.graph_def)
    saver = v1.train.import_meta_graph(meta_graph, clear_devices, import_scope, **options)
    return saver and Saver(saver_def=saver.saver_def)


def import_graph_def(graph_def: Any = None, *arguments: Any, **options: Any) -> Any:
    """`tf.import_graph_def`, also of graphs as in `import_meta_graph`.

    Example:
        >>> with tf.Graph().as_default() as graph:
        ...     _ = tf.constant(2.0, name="two")
        >>> with tf.Graph().as_default(), v1.Session() as session:
        ...     (two,) = import_graph_def(graph.as_graph_def(add_shapes=True), return_elements=["two:0"])
        ...     float(session.run(two))
        2.0
    """
    if isinstance(graph_def, v1.GraphDef):
        copy = v1.GraphDef()
        copy.CopyFrom(graph_def)
        repair(copy)
        graph_def = copy
    return v1.import_graph_def(graph_def, *arguments, **options)


def repair(graph_def: Any) -> bool:
    """Takes out of a graph the shapes that TensorFlow 2 would refuse; whether there were any.

    The last two outputs of a gradient of fused batch norm are not used. TensorFlow 1 wrote down that they have one
    value a channel; TensorFlow 2 says that they are empty, and does not import a graph that contradicts.

    Args:
        graph_def: a `GraphDef`, changed in place.

    Example:
        >>> with tf.Graph().as_default() as graph:
        ...     x, one = tf.zeros([2, 4, 4, 3]), tf.ones([3])
        ...     _ = tf.gradients(v1.nn.fused_batch_norm(x, one, one)[0], x)
        >>> repair(graph.as_graph_def(add_shapes=True)), repair(graph.as_graph_def())
        (True, False)
    """
    bodies = (function.node_def for function in graph_def.library.function)
    nodes = itertools.chain(graph_def.node, *bodies)
    wrong = [
        shape
        for node in nodes
        if node.op in _FUSED_GRADIENTS and "_output_shapes" in node.attr
        for shape in node.attr["_output_shapes"].list.shape[3:]
    ]
    for shape in wrong:
        shape.Clear()
        shape.unknown_rank = True
    return bool(wrong)


def read(path: Any, message: Any) -> None:
    """Fills a protocol buffer from its file, binary or text.

    Raises:
        OSError: there is no such file, or it holds something else.
    """
    from google.protobuf.message import DecodeError
    from google.protobuf.text_format import Parse, ParseError

    path = os.fspath(path)
    if not tf.io.gfile.exists(path):
        raise OSError(f"File {path} does not exist.")
    with tf.io.gfile.GFile(path, "rb") as file:
        content = file.read()
    try:
        message.ParseFromString(content)
    except DecodeError:
        try:
            Parse(content.decode(), message)
        except (ParseError, UnicodeDecodeError) as error:
            raise OSError(f"Cannot parse file {path}: it is no {message.DESCRIPTOR.name}, {error}.") from error


def _statistics(trained: set[str]) -> list[str]:
    """In the order in which they were made."""
    sizes: Counter[str] = Counter()
    for variable in v1.global_variables():
        if variable.shape.rank:
            sizes[_name(variable)] += variable.shape.num_elements() or 0
    updated = set(_updated())
    normalizers = {(_scope(name), size) for name, size in sizes.items() if _last(name) in ("gamma", "beta")}
    kept = [name for name in sizes if name not in trained and _last(name) not in ("gamma", "beta")]
    found = {name for name in kept if name in updated or (_scope(name), sizes[name]) in normalizers}
    return [name for name in kept if name in found or _scope(name) in found]


def _updated() -> Iterator[str]:
    """Names of what UPDATE_OPS change: the variable is an update's first input, through switches and merges."""
    for update in v1.get_collection(v1.GraphKeys.UPDATE_OPS):
        operation = getattr(update, "op", update)
        seen: set[Any] = set()
        while operation.inputs and operation not in seen:
            seen.add(operation)
            operation = operation.inputs[0].op
        yield _name(operation)


def _names(var_list: Any) -> set[str]:
    """Of variables, partitioned ones, lists of parts, and saveable objects; and under which names they are saved."""
    names = set(var_list) if isinstance(var_list, Mapping) else set()
    for variable in var_list.values() if isinstance(var_list, Mapping) else var_list:
        if hasattr(variable, "op"):
            names.add(_name(variable))
        elif isinstance(variable, Iterable):
            names |= _names(variable)
    return names


def _shapes(var_list: Any) -> dict[str, Any]:
    """Name in the file -> shape, of the variables that are not parts."""
    named = var_list.items() if isinstance(var_list, Mapping) else ((None, variable) for variable in var_list)
    return {
        name or variable.op.name: variable.shape
        for name, variable in named
        if isinstance(variable, tf.Variable) and variable.op.name == _name(variable)
    }


def _check_shapes(wanted: Mapping[str, Any], stored: Mapping[str, list[int]]) -> None:
    """Reference variables complain by themselves, resource variables would take any shape.

    Raises:
        InvalidArgumentError: names the first that does not fit.
    """
    for name, shape in wanted.items():
        if name in stored and not shape.is_compatible_with(stored[name]):
            text = _OTHER_SHAPE.format(name=name, wanted=shape, stored=stored[name])
            raise tf.errors.InvalidArgumentError(None, None, text)


def _name(variable: Any) -> str:
    """Parts of a variable count as one."""
    return re.sub(r"(/part_\d+)?(:\d+)?$", "", getattr(variable, "op", variable).name)


def _scope(name: str) -> str:
    return name.rpartition("/")[0]


def _last(name: str) -> str:
    return name.rpartition("/")[2]
