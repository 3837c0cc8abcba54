# SPDX-License-Identifier: Apache-2.0
"""Saving and restoring: what a saver leaves out, what TensorFlow 1.15 wrote, maps of `init_from_checkpoint`."""

import contextlib
import importlib
import json
import os
import shutil
import warnings

import numpy as np
import pytest
import tensorflow as tf

import evenkeel.tf1 as tf1
from evenkeel.tf1 import saving, train
from evenkeel.tf1.contrib import framework

from conftest import GOLDENS

v1 = tf.compat.v1
saved_model = importlib.import_module("evenkeel.tf1.saved_model")

FOLDERS = GOLDENS / "checkpoints"
SESSIONS = ["a1_contrib_mlp", "b1_layers_conv", "e1_slim_resnet_block", "g1_v1_format_mlp", "i1_updates_never_run_mlp"]
GRAPHS = sorted(path.relative_to(FOLDERS).as_posix() for path in FOLDERS.rglob("*.meta"))
FUSED = [path for path in GRAPHS if path.startswith(("a1", "b1", "e1", "h1"))]


def golden(name):
    """What its writer said of a folder, and its arrays."""
    with np.load(FOLDERS / name / "io.npz") as file:
        return json.loads((FOLDERS / name / "meta.json").read_text()), dict(file)


def meta_graph(path):
    read = v1.MetaGraphDef()
    read.ParseFromString((FOLDERS / path).read_bytes())
    return read


def network(meta, x, training):
    """The network of a folder, from its source."""
    world = {"tf": tf1, "V1": tf1, "layers": tf1.layers, "contrib": tf1.contrib.layers, "slim": tf1.contrib.slim}
    exec(meta["net_source"], world)
    return world[meta["params"]["net"]](x, training, meta["params"])


def close(got, expected):
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def small(training=True):
    """A layer and its input; four dimensions, so that its gradient is the fused one."""
    x = v1.placeholder(tf.float32, [None, 4, 4, 3], "x")
    return x, tf1.layers.batch_normalization(x, training=training, name="bn")


def trained(session, y, x, steps=3):
    """Runs training steps, updates included."""
    with tf.control_dependencies(v1.get_collection(v1.GraphKeys.UPDATE_OPS)):
        step = v1.train.GradientDescentOptimizer(0.1).minimize(tf.reduce_mean((y - 1.0) ** 3))
    session.run(v1.global_variables_initializer())
    for _ in range(steps):
        session.run(step, {x: images()})


def images():
    return np.random.RandomState(0).normal(2.0, 3.0, [8, 4, 4, 3]).astype("float32")


# Graphs that 1.15 wrote


@pytest.mark.parametrize("path", GRAPHS)
def test_a_graph_of_1_15_is_imported(path, graph):
    saver = train.import_meta_graph(str(FOLDERS / path))
    assert isinstance(saver, train.Saver)
    assert {node.name for node in meta_graph(path).graph_def.node} == {op.name for op in graph.get_operations()}


@pytest.mark.parametrize("path", GRAPHS)
def test_a_graph_of_1_15_is_imported_under_the_rules_of_tensorflow_2(path):
    with tf.Graph().as_default():
        assert train.import_meta_graph(FOLDERS / path) is not None


@pytest.mark.parametrize("path", FUSED)
def test_tensorflow_itself_refuses_it(path, graph):
    with pytest.raises(ValueError, match="_output_shapes"):
        v1.train.import_meta_graph(str(FOLDERS / path))


@pytest.mark.parametrize("path", FUSED)
def test_what_was_given_stays_as_it_is(path, graph):
    given = meta_graph(path)
    train.import_meta_graph(given)
    assert given == meta_graph(path)


@pytest.mark.parametrize("path", FUSED)
def test_import_graph_def(path, graph):
    definition = meta_graph(path).graph_def
    (logits,) = saving.import_graph_def(definition, return_elements=["logits_out:0"], name="there")
    assert logits.name == "there/logits_out:0"
    assert definition == meta_graph(path).graph_def


def test_the_shapes_that_are_right_stay():
    repaired = meta_graph(FUSED[0]).graph_def
    assert saving.repair(repaired)
    node = next(node for node in repaired.node if node.op == "FusedBatchNormGradV3")
    shapes = [tf.TensorShape(shape) for shape in node.attr["_output_shapes"].list.shape]
    assert [shape.rank for shape in shapes] == [4, 1, 1, None, None]


def test_a_graph_may_be_text(graph, tmp_path):
    written = tmp_path / "graph.pbtxt"
    written.write_text(str(meta_graph(FUSED[0])))
    assert train.import_meta_graph(str(written)) is not None


def test_a_graph_goes_into_a_scope(session):
    meta, arrays = golden("a1_contrib_mlp")
    saver = train.import_meta_graph(str(FOLDERS / FUSED[0]), import_scope="there")
    saver.restore(session, str(FOLDERS / "a1_contrib_mlp" / meta["checkpoint_prefix"]))
    close(
        session.run("there/logits_out:0", {"there/x:0": arrays["x"], "there/is_training:0": False}), arrays["y_infer"]
    )


def test_no_such_graph(graph):
    with pytest.raises(OSError, match=r"/nowhere\.meta does not exist"):
        train.import_meta_graph("/nowhere.meta")


def test_not_a_graph(graph, tmp_path):
    (tmp_path / "graph.meta").write_bytes(b"\xff\xfe no graph")
    with pytest.raises(OSError, match=r"Cannot parse file .*graph\.meta: it is no MetaGraphDef"):
        train.import_meta_graph(str(tmp_path / "graph.meta"))


def test_a_graph_without_variables_has_no_saver(graph):
    tf.constant(1.0)
    assert train.import_meta_graph(v1.train.export_meta_graph()) is None


# Checkpoints of 1.15, in their own graphs


@pytest.mark.parametrize("name", SESSIONS)
def test_a_restored_graph_infers(name, session):
    meta, arrays = golden(name)
    prefix = str(FOLDERS / name / meta["checkpoint_prefix"])
    train.import_meta_graph(f"{prefix}.meta").restore(session, prefix)
    feed = {meta["tensors"]["input"]: arrays["x"], meta["tensors"]["is_training"]: False}
    close(session.run(meta["tensors"]["logits"], feed), arrays["y_infer"])
    close(session.run(meta["tensors"]["probabilities"], feed), arrays["probabilities"])
    feed[meta["tensors"]["is_training"]] = True
    close(session.run(meta["tensors"]["logits"], feed), arrays["y_batch_statistics"])


@pytest.mark.parametrize("name", SESSIONS)
def test_a_restored_graph_trains_on(name, session):
    meta, arrays = golden(name)
    prefix = str(FOLDERS / name / meta["checkpoint_prefix"])
    train.import_meta_graph(f"{prefix}.meta").restore(session, prefix)
    tensors = meta["tensors"]
    feed = {tensors["input"]: arrays["x"], tensors["labels"]: arrays["labels"], tensors["is_training"]: True}
    (step,) = v1.get_collection("train_op")
    before = session.run(tensors["loss"], feed)
    session.run(step, feed)
    assert session.run(v1.train.get_global_step()) == meta["global_step"] + 1
    assert session.run(tensors["loss"], feed) < before
    statistics = {v.op.name: session.run(v) for v in v1.global_variables() if "moving_" in v.op.name}
    moved = [not np.array_equal(value, arrays[f"vars/{name}"]) for name, value in statistics.items()]
    assert moved == [meta["update_ops_run"]] * len(moved)


def test_an_estimators_graph_trains_on(session):
    meta, arrays = golden("c1_estimator_mlp")
    prefix = v1.train.latest_checkpoint(FOLDERS / "c1_estimator_mlp" / meta["model_dir"])
    train.import_meta_graph(f"{prefix}.meta").restore(session, prefix)
    _, x, labels = session.graph.get_operation_by_name("fifo_queue_DequeueMany").outputs
    feed = {x: arrays["x_train"][:32], labels: arrays["labels_train"][:32]}
    before = session.run("Mean:0", feed)
    session.run(v1.get_collection("train_op"), feed)
    assert session.run(v1.train.get_global_step()) == meta["global_step"] + 1
    assert session.run("Mean:0", feed) < before


@pytest.mark.parametrize(
    ("statistics", "expected"),
    [("initial", "y_infer_initial_statistics"), ("true", "y_infer_true_statistics")],
)
def test_what_was_trained_is_all_that_was_saved(statistics, expected, session):
    meta, arrays = golden("h1_trainable_only_mlp")
    prefix = str(FOLDERS / "h1_trainable_only_mlp" / meta["checkpoint_prefix"])
    saver = train.import_meta_graph(f"{prefix}.meta")
    session.run(v1.global_variables_initializer())
    saver.restore(session, prefix)
    if statistics == "true":
        given = {name: arrays[f"vars/{name}"] for name in meta["missing_variables"]}
        framework.assign_from_values_fn(given)(session)
    close(session.run("logits_out:0", {"x:0": arrays["x"], "is_training:0": False}), arrays[expected])


def test_what_was_trained_is_all_that_was_saved_of_it(graph):
    meta, _ = golden("h1_trainable_only_mlp")
    train.import_meta_graph(str(FOLDERS / "h1_trainable_only_mlp" / f"{meta['checkpoint_prefix']}.meta"))
    assert sorted(saving.statistics_left_out(v1.trainable_variables())) == meta["missing_variables"][:4]


# Checkpoints of 1.15, in graphs built here

PREFIXES = {
    **dict.fromkeys(SESSIONS, "model.ckpt-60"),
    "c1_estimator_mlp": "model_dir/model.ckpt-100",
    "f1_saved_model_mlp": "saved_model/variables/variables",
}


def rebuilt(name):
    meta, arrays = golden(name)
    x = v1.placeholder(tf.float32, [None, *arrays["x"].shape[1:]])
    v1.train.get_or_create_global_step()
    return x, network(meta, x, False), arrays


@pytest.mark.parametrize("name", PREFIXES)
def test_a_saver_restores(name, session):
    x, logits, arrays = rebuilt(name)
    train.Saver().restore(session, str(FOLDERS / name / PREFIXES[name]))
    close(session.run(logits, {x: arrays["x"]}), arrays["y_infer"])


@pytest.mark.parametrize("name", PREFIXES)
def test_assign_from_checkpoint_fn(name, session):
    x, logits, arrays = rebuilt(name)
    prefix = str(FOLDERS / name / PREFIXES[name])
    framework.assign_from_checkpoint_fn(prefix, framework.get_variables_to_restore())(session)
    close(session.run(logits, {x: arrays["x"]}), arrays["y_infer"])


@pytest.mark.parametrize("name", PREFIXES)
def test_initial_values_from_a_checkpoint(name, session):
    x, logits, arrays = rebuilt(name)
    train.init_from_checkpoint(str(FOLDERS / name / PREFIXES[name]), {"/": "/"})
    session.run(v1.global_variables_initializer())
    close(session.run(logits, {x: arrays["x"]}), arrays["y_infer"])


@pytest.mark.parametrize("name", PREFIXES)
def test_a_checkpoint_can_be_read(name):
    meta, _ = golden(name)
    prefix = str(FOLDERS / name / PREFIXES[name])
    assert train.list_variables(prefix) == sorted(
        (key, meta["variable_shapes"][key]) for key in meta["saved_variables"]
    )
    np.testing.assert_array_equal(train.load_variable(prefix, "global_step"), meta["global_step"])


def test_two_checkpoints_of_an_estimator():
    state = train.get_checkpoint_state(FOLDERS / "c1_estimator_mlp" / "model_dir")
    assert [os.path.basename(path) for path in state.all_model_checkpoint_paths] == ["model.ckpt-50", "model.ckpt-100"]


# What a saver does


@pytest.fixture(params=["reference", "resource"])
def kept(request, session):
    """The graph's session; for both kinds of variables."""
    if request.param == "resource":
        v1.enable_resource_variables()
    return session


@contextlib.contextmanager
def another():
    with tf.Graph().as_default() as graph, v1.Session(graph=graph) as session:
        yield session


@pytest.fixture
def checkpoint(kept, tmp_path):
    """`old/a` [2, 3], `old/b` [], `c` [2] and `old/p` [4, 2], which is in parts; its prefix."""
    v1.get_variable("old/a", initializer=np.arange(6, dtype="float32").reshape(2, 3))
    v1.get_variable("old/b", initializer=7.0)
    v1.get_variable("c", initializer=[1.0, 2.0])
    parts = v1.fixed_size_partitioner(2)
    v1.get_variable("old/p", [4, 2], initializer=v1.ones_initializer(), partitioner=parts)
    kept.run(v1.global_variables_initializer())
    return train.Saver().save(kept, str(tmp_path / "model"), global_step=3)


SHAPES = [("c", [2]), ("old/a", [2, 3]), ("old/b", []), ("old/p", [4, 2])]


def test_files(checkpoint, tmp_path):
    assert checkpoint == str(tmp_path / "model-3")
    names = ["checkpoint", "model-3.data-00000-of-00001", "model-3.index", "model-3.meta"]
    assert sorted(os.listdir(tmp_path)) == names
    assert train.latest_checkpoint(str(tmp_path)) == checkpoint


@pytest.mark.parametrize("where", ["directory", "prefix"])
def test_list_variables(where, checkpoint, tmp_path):
    assert train.list_variables(str(tmp_path) if where == "directory" else checkpoint) == SHAPES


@pytest.mark.parametrize("name", ["c", "c:0"])
def test_load_variable(name, checkpoint):
    assert train.load_variable(checkpoint, name).tolist() == [1.0, 2.0]


def test_load_variable_of_no_such_name(checkpoint):
    with pytest.raises(tf.errors.NotFoundError, match="nothing"):
        train.load_variable(checkpoint, "nothing")


@pytest.mark.parametrize("function", [train.list_variables, train.load_checkpoint])
def test_no_checkpoint_in_a_directory(function, tmp_path):
    with pytest.raises(ValueError, match="Couldn't find 'checkpoint' file"):
        function(str(tmp_path))


def test_no_checkpoint_at_a_prefix(tmp_path):
    with pytest.raises(tf.errors.NotFoundError):
        train.list_variables(str(tmp_path / "nothing"))


def test_the_oldest_files_go(session, tmp_path):
    v1.get_variable("v", initializer=1.0)
    session.run(v1.global_variables_initializer())
    saver = train.Saver(max_to_keep=2)
    paths = [saver.save(session, str(tmp_path / "model"), global_step=step) for step in range(4)]
    assert saver.last_checkpoints == paths[2:]
    assert [train.checkpoint_exists(path) for path in paths] == [False, False, True, True]
    assert train.latest_checkpoint(str(tmp_path)) == paths[3]


@pytest.mark.parametrize("written", ["V1", "V2"])
@pytest.mark.parametrize("read", ["V1", "V2"])
def test_formats(written, read, kept, tmp_path):
    variable = v1.get_variable("v", initializer=1.0)
    kept.run(v1.global_variables_initializer())
    writer, reader = (train.Saver(write_version=getattr(train.SaverDef, version)) for version in (written, read))
    path = writer.save(kept, str(tmp_path / "model"), global_step=7)
    assert os.path.exists(path) == (written == "V1")
    assert train.latest_checkpoint(str(tmp_path)) == path
    variable.load(0.0, kept)
    reader.restore(kept, path)
    assert kept.run(variable) == 1.0


def test_other_names(checkpoint):
    with another() as session:
        variable = v1.get_variable("d", [2])
        train.Saver({"c": variable}).restore(session, checkpoint)
        assert session.run(variable).tolist() == [1.0, 2.0]


def test_other_parts(checkpoint):
    with another() as session:
        variable = v1.get_variable("old/p", [4, 2], partitioner=v1.fixed_size_partitioner(4))
        train.Saver([variable]).restore(session, checkpoint)
        assert session.run(tf.convert_to_tensor(variable)).tolist() == [[1.0, 1.0]] * 4


def test_another_shape_where_reshape_says_so(checkpoint):
    with another() as session:
        variable = v1.get_variable("old/a", [3, 2])
        train.Saver([variable], reshape=True).restore(session, checkpoint)
        assert session.run(variable).ravel().tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("name", "shape", "dtype", "error", "text"),
    [
        ("c", [3], tf.float32, tf.errors.InvalidArgumentError, r"c: lhs shape= \(3,\) rhs shape= \[2\]"),
        ("c", [2], tf.float64, tf.errors.InvalidArgumentError, "float"),
        ("nothing", [2], tf.float32, tf.errors.NotFoundError, "nothing"),
    ],
    ids=["shape", "type", "name"],
)
def test_what_does_not_fit(name, shape, dtype, error, text, checkpoint):
    with another() as session:
        v1.get_variable(name, shape, dtype)
        saver = train.Saver()
        with pytest.raises(error, match=text):
            saver.restore(session, checkpoint)


@pytest.mark.parametrize(
    ("path", "text"), [(None, "Can't load save_path when it is None"), ("/nowhere", "not a valid checkpoint: /nowhere")]
)
def test_no_checkpoint_to_restore(path, text, session):
    v1.get_variable("v", [])
    with pytest.raises(ValueError, match=text):
        train.Saver().restore(session, path)


def test_eagerly(tmp_path):
    variable = v1.Variable([1.0, 2.0], use_resource=True, name="v")
    path = train.Saver([variable]).save(None, str(tmp_path / "model"))
    assert train.list_variables(path) == [("v", [2])]


def test_nothing_to_save(graph):
    with pytest.raises(ValueError, match="No variables to save"):
        train.Saver()


def test_a_saver_that_is_built_later(session, tmp_path):
    saver = train.Saver(defer_build=True)
    v1.get_variable("v", initializer=1.0)
    saver.build()
    session.run(v1.global_variables_initializer())
    assert train.list_variables(saver.save(session, str(tmp_path / "model"))) == [("v", [])]


# init_from_checkpoint


def made(*names, **options):
    return [v1.get_variable(name, shape, initializer=v1.zeros_initializer(), **options) for name, shape in names]


NEW = [("new/a", [2, 3]), ("new/b", [])]
VALUES = {"a": [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]], "b": 7.0, "c": [1.0, 2.0]}
MAPS = {
    "scope to scope": (NEW, {"old/": "new/"}, "ab"),
    "one name": (NEW, {"old/a": "new/a"}, "a"),
    "one variable": (NEW, lambda variables: {"old/b": variables[1]}, "b"),
    "pairs": (NEW, lambda variables: [("old/b", variables[1]), ("old/a", "new/a")], "ab"),
    "root to scope": ([("new/c", [2]), ("new/old/b", [])], {"/": "new/"}, "cb"),
    "root to root": ([("c", [2]), ("old/b", [])], {"/": "/"}, "cb"),
}
NO_MAPS = {
    "a scope has more": ([*NEW, ("new/q", [])], {"old/": "new/"}, "Tensor old/q .* is not found"),
    "a value without a slash": (NEW, {"old/": "new"}, "Tensor old/ew/a .* is not found"),
    "a key without a slash": (NEW, {"old": "new/"}, "scope only name new should map to scope only old"),
    "another shape": (NEW, {"old/a": "new/b"}, "Shape of variable new/b:0 .* doesn't match"),
    "no such tensor": (NEW, {"old/z": "new/a"}, "Tensor old/z is not found"),
    "no such variable": (NEW, {"old/a": "new/z"}, "scope only name new should map to scope only old/a"),
}


@pytest.mark.parametrize("case", MAPS)
def test_maps(case, checkpoint):
    names, mapping, loaded = MAPS[case]
    with another() as session:
        variables = made(*names)
        train.init_from_checkpoint(checkpoint, mapping(variables) if callable(mapping) else mapping)
        session.run(v1.global_variables_initializer())
        got = {variable.op.name[-1]: session.run(variable).tolist() for variable in variables}
    assert {key: value for key, value in got.items() if np.any(value)} == {key: VALUES[key] for key in loaded}


@pytest.mark.parametrize("case", NO_MAPS)
def test_maps_that_lead_nowhere(case, checkpoint):
    names, mapping, text = NO_MAPS[case]
    with another():
        made(*names)
        with pytest.raises(ValueError, match=text):
            train.init_from_checkpoint(checkpoint, mapping)


@pytest.mark.parametrize("mapping", [{"old/p": "p"}, {"old/": ""}, "list"], ids=["name", "scope", "list"])
def test_maps_to_parts(mapping, checkpoint, tmp_path):
    with another() as session:
        (variable,) = made(("new/p", [4, 2]), partitioner=v1.fixed_size_partitioner(4))
        mapping = {"old/p": list(variable)} if mapping == "list" else {key: f"new/{to}" for key, to in mapping.items()}
        train.init_from_checkpoint(str(tmp_path), mapping)
        session.run(v1.global_variables_initializer())
        assert session.run(tf.convert_to_tensor(variable)).tolist() == [[1.0, 1.0]] * 4


def test_a_plain_variable_is_not_known_by_name(checkpoint):
    with another():
        v1.Variable([0.0, 0.0], name="c")
        with pytest.raises(ValueError, match="should map to scope only c"):
            train.init_from_checkpoint(checkpoint, {"c": "c"})


def test_a_plain_variable_itself(checkpoint):
    with another() as session:
        variable = v1.Variable([0.0, 0.0])
        train.init_from_checkpoint(checkpoint, {"c": variable})
        session.run(v1.global_variables_initializer())
        assert session.run(variable).tolist() == [1.0, 2.0]


# Statistics that are left out

STATISTICS = ["bn/moving_mean", "bn/moving_variance"]


def contrib(training):
    return tf1.contrib.layers.batch_norm(v1.placeholder(tf.float32, [None, 3]), is_training=training, scope="bn")


def plain(training):
    return tf1.layers.batch_normalization(
        v1.placeholder(tf.float32, [None, 3]), training=training, name="bn", center=False, scale=False
    )


def no_warning(list_or_map):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train.Saver(list_or_map)


@pytest.mark.parametrize("training", [True, False, "placeholder"])
@pytest.mark.parametrize("layer", [lambda training: small(training)[1], contrib], ids=["layers", "contrib"])
def test_a_saver_of_what_is_trained_warns(layer, training, graph):
    layer(v1.placeholder(tf.bool, []) if training == "placeholder" else training)
    with pytest.warns(saving.MissingStatisticsWarning, match="bn/moving_mean, bn/moving_variance;") as caught:
        train.Saver(v1.trainable_variables())
    assert caught[0].filename == __file__


def test_the_global_step_does_not_help(graph):
    small()
    step = v1.train.get_or_create_global_step()
    with pytest.warns(saving.MissingStatisticsWarning, match="bn/moving_mean, bn/moving_variance;"):
        train.Saver([*v1.trainable_variables(), step])


def test_a_map_warns(graph):
    small()
    with pytest.warns(saving.MissingStatisticsWarning, match="bn/moving_mean"):
        train.Saver({f"old/{variable.op.name}": variable for variable in v1.trainable_variables()})


def test_parts_warn(graph):
    with v1.variable_scope("bn", partitioner=v1.fixed_size_partitioner(3)):
        v1.get_variable("gamma", [3])
    v1.get_variable("bn/moving_mean", [3], trainable=False)
    assert saving.statistics_left_out(v1.trainable_variables()) == ["bn/moving_mean"]


def test_updates_tell_where_no_gamma_is(graph):
    v1.get_variable("weights", [3])
    tf1.layers.dense(plain(True), 2)
    assert saving.statistics_left_out(v1.trainable_variables()) == STATISTICS


def test_averages_of_the_helper(graph):
    normalizer = tf1.ConvolutionalBatchNormalizer(3, 0.001, v1.train.ExponentialMovingAverage(0.9), True)
    normalizer.normalize(tf.zeros([2, 4, 4, 3]))
    normalizer.get_assigner()
    left_out = saving.statistics_left_out(v1.trainable_variables())
    assert {"mean", "variance"} <= {name.split("/")[-1] for name in left_out}
    assert {"mean", "variance"} == {name.split("/")[-2] for name in left_out if name.endswith("Average")}


def test_a_map_from_averages_to_statistics(graph):
    averages = v1.train.ExponentialMovingAverage(0.9)
    normalizer = tf1.ConvolutionalBatchNormalizer(3, 0.001, averages, True)
    normalizer.normalize(tf.zeros([2, 4, 4, 3]))
    normalizer.get_assigner()
    no_warning(averages.variables_to_restore())


WITHOUT_WARNING = {
    "all": lambda: None,
    "global variables": v1.global_variables,
    "statistics alone": lambda: [v for v in v1.global_variables() if "moving_" in v.op.name],
    "another layer": lambda: v1.global_variables("dense"),
    "averages of what is trained": lambda: v1.train.ExponentialMovingAverage(0.9).variables_to_restore(),
}


@pytest.mark.parametrize("case", WITHOUT_WARNING)
def test_nothing_is_left_out(case, graph):
    _, y = small()
    tf1.layers.dense(y, 2, name="dense")
    no_warning(WITHOUT_WARNING[case]())


def test_slots_are_no_statistics(graph):
    v1.get_variable("bn/gamma", [3])
    v1.train.AdamOptimizer().minimize(tf.reduce_sum(v1.trainable_variables()[0] ** 2))
    no_warning(v1.trainable_variables())


def test_the_step_beside_a_normalizer_without_a_scope_is_no_statistic(graph):
    v1.get_variable("beta", [3])
    v1.train.get_or_create_global_step()
    no_warning(v1.trainable_variables())


# Averages of what is trained


def test_averages_are_served(session, tmp_path):
    """Train with averages, save all, serve the averages with the moving statistics."""
    x, y = small()
    trained(session, y, x)
    averages = v1.train.ExponentialMovingAverage(0.5)
    average = averages.apply(v1.trainable_variables())
    session.run([averages.average(variable).initializer for variable in v1.trainable_variables()])
    v1.trainable_variables()[1].load([3.0, 4.0, 5.0], session)
    session.run(average)
    path = train.Saver().save(session, str(tmp_path / "model"))
    gamma, beta, mean, variance = session.run(
        [averages.average(variable) or variable for variable in v1.global_variables()[:4]]
    )
    assert beta.tolist() != [3.0, 4.0, 5.0]
    with another() as serving:
        x, y = small(training=False)
        restored = v1.train.ExponentialMovingAverage(0.5).variables_to_restore()
        assert sorted(restored) == [
            "bn/beta/ExponentialMovingAverage",
            "bn/gamma/ExponentialMovingAverage",
            "bn/moving_mean",
            "bn/moving_variance",
        ]
        train.Saver(restored).restore(serving, path)
        close(serving.run(y, {x: images()}), (images() - mean) / np.sqrt(variance + 0.001) * gamma + beta)


# SavedModel


def test_a_saved_model_of_1_15(session):
    meta, arrays = golden("f1_saved_model_mlp")
    folder = FOLDERS / "f1_saved_model_mlp" / meta["saved_model"]
    signature = saved_model.loader.load(session, ["serve"], folder).signature_def[meta["signature"]]
    feed = {signature.inputs["x"].name: arrays["x"]}
    got = {name: session.run(output.name, feed) for name, output in signature.outputs.items()}
    assert sorted(got) == sorted(meta["signature_outputs"])
    close(got["logits"], arrays["predict_logits"])
    close(got["probabilities"], arrays["predict_probabilities"])
    np.testing.assert_array_equal(got["classes"], arrays["predict_classes"])


def exported(session, folder, how):
    """Trains, exports and says what the served output for the images should be."""
    training = v1.placeholder_with_default(False, [], "training")
    x, y = small(training)
    trained(session, y, x)
    if how == "simple_save":
        saved_model.simple_save(session, folder, {"x": x}, {"y": y})
    else:
        builder = saved_model.builder.SavedModelBuilder(folder)
        signature = saved_model.signature_def_utils.predict_signature_def({"x": x}, {"y": y})
        builder.add_meta_graph_and_variables(session, ["serve"], {"serving_default": signature})
        builder.save(as_text=how == "text")
    return session.run(y, {x: images()})


def served(folder):
    with another() as session:
        signature = saved_model.load(session, ["serve"], folder).signature_def["serving_default"]
        return session.run(signature.outputs["y"].name, {signature.inputs["x"].name: images()})


@pytest.mark.parametrize("how", ["simple_save", "builder", "text"])
def test_a_saved_model_serves_moving_statistics(how, kept, tmp_path):
    folder = str(tmp_path / "export")
    expected = exported(kept, folder, how)
    assert abs(expected.mean()) > 0.1
    np.testing.assert_array_equal(served(folder), expected)


def as_1_15_wrote(folder, text):
    """Claims what 1.15 claimed of the gradient's last outputs, where this graph has one."""
    path = folder / ("saved_model.pbtxt" if text else "saved_model.pb")
    model = importlib.import_module("tensorflow.core.protobuf.saved_model_pb2").SavedModel()
    saving.read(path, model)
    nodes = [node for node in model.meta_graphs[0].graph_def.node if node.op == "FusedBatchNormGradV3"]
    for node in nodes:
        for shape in node.attr["_output_shapes"].list.shape[3:]:
            shape.CopyFrom(tf.TensorShape([3]).as_proto())
    path.write_bytes(str(model).encode() if text else model.SerializeToString())
    return len(nodes)


@pytest.mark.parametrize("text", [False, True], ids=["binary", "text"])
def test_a_training_graph_of_1_15_is_loaded(text, session, tmp_path):
    x = v1.placeholder(tf.float32, [None, 4, 4, 3])
    gamma = v1.get_variable("gamma", initializer=[1.0, 2.0, 3.0])
    y = v1.nn.fused_batch_norm(x, gamma, tf.zeros([3]))[0]
    tf.gradients(y**3, x)
    session.run(gamma.initializer)
    folder = tmp_path / "export"
    builder = saved_model.builder.SavedModelBuilder(str(folder))
    signature = saved_model.signature_def_utils.predict_signature_def({"x": x}, {"y": y})
    builder.add_meta_graph_and_variables(session, ["serve"], {"serving_default": signature})
    builder.save(as_text=text)
    assert as_1_15_wrote(folder, text) == 1
    copy = shutil.copytree(folder, tmp_path / "copy")
    with another() as refused, pytest.raises(ValueError, match="_output_shapes"):
        v1.saved_model.load(refused, ["serve"], str(folder))
    close(served(folder), session.run(y, {x: images()}))
    written = sorted(path.relative_to(copy) for path in copy.rglob("*"))
    assert sorted(path.relative_to(folder) for path in folder.rglob("*")) == written
    assert [(folder / path).read_bytes() for path in written if (copy / path).is_file()] == [
        (copy / path).read_bytes() for path in written if (copy / path).is_file()
    ]


def test_no_saved_model(session, tmp_path):
    with pytest.raises(OSError, match="does not exist at"):
        saved_model.load(session, ["serve"], tmp_path)


def test_no_graph_with_such_tags(session):
    with pytest.raises(RuntimeError, match="train"):
        saved_model.load(session, ["train"], FOLDERS / "f1_saved_model_mlp" / "saved_model")


def test_the_rest_is_tensorflows():
    assert saved_model.tag_constants.SERVING == "serve"
    assert saved_model.loader.maybe_saved_model_directory(str(FOLDERS / "f1_saved_model_mlp" / "saved_model"))
