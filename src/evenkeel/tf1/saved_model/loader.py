# SPDX-License-Identifier: Apache-2.0
"""How a SavedModel comes into a session."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import tensorflow as tf
from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

from evenkeel.tf1.passing import passing
from evenkeel.tf1.saving import read, repair

v1 = tf.compat.v1

__getattr__, __dir__ = passing(__name__, "tensorflow.compat.v1.saved_model.loader")


def load(sess: Any, tags: Iterable[str], export_dir: Any, import_scope: str | None = None, **options: Any) -> Any:
    """`tf.saved_model.loader.load`, also of training graphs that TensorFlow 1 wrote with fused batch norm in them.

    Such a graph is repaired, see `saving.repair`, and loaded from a temporary directory that has the repaired graph
    and leads to the other files. The model itself stays as it is.

    Args:
        sess: the session; the graph goes into its graph.
        tags: of the graph, such as `["serve"]`.
        export_dir: the directory of the model.
        import_scope: name scope for the graph.
        options: for the saver.

    Returns:
        The `MetaGraphDef` that was loaded.

    Raises:
        OSError: there is no SavedModel in the directory.
        RuntimeError: the model has no graph with just these tags.

    Example:
        >>> with tempfile.TemporaryDirectory() as folder, v1.Session(graph=tf.Graph()) as session:
        ...     path = os.path.join(folder, "model")
        ...     with session.graph.as_default():
        ...         x = v1.placeholder(tf.float32, [None])
        ...         y = x * v1.get_variable("factor", initializer=3.0)
        ...         session.run(v1.global_variables_initializer())
        ...     v1.saved_model.simple_save(session, path, {"x": x}, {"y": y})
        ...     with v1.Session(graph=tf.Graph()) as other:
        ...         outputs = load(other, ["serve"], path).signature_def["serving_default"].outputs
        ...         float(other.run(outputs["y"].name, {x.name: [2.0]})[0])
        6.0
    """
    export_dir = os.fspath(export_dir)
    paths = [os.path.join(export_dir, f"saved_model.{kind}") for kind in ("pb", "pbtxt")]
    path = next(filter(tf.io.gfile.exists, paths), None)
    if path is None:
        return v1.saved_model.loader.load(sess, tags, export_dir, import_scope, **options)
    model = SavedModel()
    read(path, model)
    repaired = [repair(meta_graph.graph_def) for meta_graph in model.meta_graphs]
    if not any(repaired):
        return v1.saved_model.loader.load(sess, tags, export_dir, import_scope, **options)
    with tempfile.TemporaryDirectory() as folder:
        for name in tf.io.gfile.listdir(export_dir):
            if name != os.path.basename(path):
                os.symlink(os.path.abspath(os.path.join(export_dir, name)), os.path.join(folder, name.rstrip("/")))
        Path(folder, "saved_model.pb").write_bytes(model.SerializeToString())
        return v1.saved_model.loader.load(sess, tags, folder, import_scope, **options)
