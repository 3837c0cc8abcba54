# SPDX-License-Identifier: Apache-2.0
"""`tf.estimator`: a directory of 1.15 goes on, a killed process goes on, updates are looked for, errors are 1.15's."""

import functools
import glob
import json
import os
import shutil
import signal
import subprocess
import sys
import warnings

import numpy as np
import pytest
import tensorflow as tf

from evenkeel.tf1 import estimator as tfe
from evenkeel.tf1 import layers
from evenkeel.tf1.estimator import feeding, updates

from conftest import GOLDENS

v1 = tf.compat.v1

ROWS = np.random.RandomState(0).normal(3.0, 2.0, (40, 4)).astype(np.float32)
TARGETS = ROWS.sum(axis=1, keepdims=True)


@pytest.fixture(params=["tf1", "tf2"], autouse=True)
def rules(request):
    """Both under TensorFlow 1's rules and as TensorFlow 2 starts."""
    if request.param == "tf1":
        request.getfixturevalue("graph")


def rows(batch_size=8, num_epochs=None, x=ROWS, y=TARGETS):
    return tfe.inputs.numpy_input_fn({"x": x}, y, batch_size, num_epochs, shuffle=False)


def model_fn(features, labels, mode, params):
    """A normalized regression; `params["updates"]` says whether train_op depends on UPDATE_OPS."""
    training = mode == tfe.ModeKeys.TRAIN
    hidden = layers.batch_normalization(features["x"], momentum=0.5, training=training, name="bn")
    y = layers.dense(hidden, 1, name="out", kernel_initializer=v1.ones_initializer())
    predictions = {"y": y, "twice": 2 * y}
    if mode == tfe.ModeKeys.PREDICT:
        return tfe.EstimatorSpec(mode, predictions)
    loss = tf.reduce_mean(tf.square(y - labels))
    metrics = {"error": v1.metrics.mean_absolute_error(labels, y)}
    if mode == tfe.ModeKeys.EVAL:
        return tfe.EstimatorSpec(mode, predictions, loss, eval_metric_ops=metrics)
    with tf.control_dependencies(v1.get_collection("update_ops") if params.get("updates", True) else []):
        train_op = v1.train.GradientDescentOptimizer(0.01).minimize(loss, v1.train.get_global_step())
    return tfe.EstimatorSpec(mode, predictions, loss, train_op)


def estimator(model_dir, *, updates=True, warm_start_from=None, **config):
    config = {"tf_random_seed": 1, "save_checkpoints_steps": 5, **config}
    return tfe.Estimator(model_fn, str(model_dir), tfe.RunConfig(**config), {"updates": updates}, warm_start_from)


def receiver():
    x = v1.placeholder(tf.float32, [None, 4], name="input")
    return tfe.export.ServingInputReceiver({"x": x}, {"x": x})


@pytest.fixture
def trained(tmp_path):
    return estimator(tmp_path / "model").train(rows(), steps=12)


# What TensorFlow 1.15 wrote.

C1 = GOLDENS / "checkpoints/c1_estimator_mlp"
F1 = GOLDENS / "checkpoints/f1_saved_model_mlp"


def golden_model(features, labels, mode, params):
    hidden = features["x"]
    for index, width in enumerate(params["widths"]):
        hidden = layers.dense(hidden, width, use_bias=False, name=f"dense{index}")
        training = mode == tfe.ModeKeys.TRAIN
        hidden = layers.batch_normalization(hidden, training=training, name=f"bn{index}", **params["bn"])
        hidden = tf.nn.relu(hidden)
    logits = layers.dense(hidden, params["classes"], name="logits")
    predictions = {"logits": logits, "probabilities": tf.nn.softmax(logits), "classes": tf.argmax(logits, -1)}
    if mode == tfe.ModeKeys.PREDICT:
        outputs = {"serving_default": tfe.export.PredictOutput(predictions)}
        return tfe.EstimatorSpec(mode, predictions, export_outputs=outputs)
    loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits))
    if mode == tfe.ModeKeys.EVAL:
        metrics = {"accuracy": v1.metrics.accuracy(labels, predictions["classes"])}
        return tfe.EstimatorSpec(mode, loss=loss, eval_metric_ops=metrics)
    with tf.control_dependencies(v1.get_collection("update_ops")):
        step = v1.train.GradientDescentOptimizer(params["lr"]).minimize(loss, v1.train.get_global_step())
    return tfe.EstimatorSpec(mode, loss=loss, train_op=step)


@pytest.fixture
def golden(tmp_path):
    """The Estimator over a copy of 1.15's directory, its meta.json, its arrays."""
    shutil.copytree(C1 / "model_dir", tmp_path / "model_dir")
    meta = json.loads((C1 / "meta.json").read_text())
    with np.load(C1 / "io.npz") as file:
        io = dict(file)
    config = tfe.RunConfig(save_checkpoints_steps=50)
    return tfe.Estimator(golden_model, str(tmp_path / "model_dir"), config, meta["params"]), meta, io


@pytest.mark.parametrize("key", ["logits", "probabilities", "classes"])
def test_a_directory_of_1_15_predicts(golden, key):
    model, _, io = golden
    found = list(model.predict(rows(7, 1, io["x"], None)))
    np.testing.assert_allclose([row[key] for row in found], io[f"predict_{key}"], rtol=1e-5, atol=1e-5)


def test_a_directory_of_1_15_evaluates(golden):
    model, meta, io = golden
    found = model.evaluate(rows(128, 1, io["x"], io["labels"]))
    assert found == pytest.approx(meta["eval_metrics"], rel=1e-5)


def test_a_directory_of_1_15_goes_on_training_as_it_did_there(golden):
    model, meta, io = golden
    path = os.path.join(model.model_dir, "checkpoint")
    with open(path, "w") as file:
        file.write('model_checkpoint_path: "model.ckpt-50"\nall_model_checkpoint_paths: "model.ckpt-50"\n')
    behind = 50 * 32 % len(io["x_train"])
    x, y = np.roll(io["x_train"], -behind, 0), np.roll(io["labels_train"], -behind, 0)
    model.train(rows(32, None, x, y), max_steps=100)
    found = {f"vars/{name}": model.get_variable_value(name) for name in meta["saved_variables"]}
    worst = {name: np.max(np.abs(value - io[name])) / np.max(np.abs(io[name])) for name, value in found.items()}
    assert max(worst.values()) < 2e-5, worst


def test_our_directory_has_the_files_and_keys_of_1_15(golden, tmp_path):
    there, meta, io = golden
    config = tfe.RunConfig(save_checkpoints_steps=50)
    ours = tfe.Estimator(golden_model, str(tmp_path / "ours"), config, meta["params"])
    ours.train(rows(32, None, io["x_train"], io["labels_train"]), steps=100)
    suffixes = ("data-00000-of-00001", "index", "meta")
    saved = {f"model.ckpt-{step}.{suffix}" for step in (0, 50, 100) for suffix in suffixes}
    written = {name for name in os.listdir(ours.model_dir) if "tfevents" not in name}
    assert written == {"checkpoint", "graph.pbtxt", *saved}
    assert tf.train.list_variables(ours.model_dir) == tf.train.list_variables(there.model_dir)
    first = 'model_checkpoint_path: "model.ckpt-100"\nall_model_checkpoint_paths: "model.ckpt-0"\n'
    with open(os.path.join(ours.model_dir, "checkpoint")) as file:
        assert file.read().startswith(first)


def test_an_exported_model_of_1_15_and_ours_have_the_same_signature(golden, tmp_path):
    model, _, io = golden

    def receiver():
        x = v1.placeholder(tf.float32, [None, 64], name="input")
        return tfe.export.ServingInputReceiver({"x": x}, {"x": x})

    path = model.export_saved_model(str(tmp_path / "export"), receiver)
    meta = json.loads((F1 / "meta.json").read_text())
    with v1.Session(graph=tf.Graph()) as session:
        signature = v1.saved_model.load(session, ["serve"], os.fsdecode(path)).signature_def["serving_default"]
        assert {key: value.name for key, value in signature.inputs.items()} == {"x": "input:0"}
        assert sorted(signature.outputs) == sorted(meta["signature_outputs"])
        found = session.run(signature.outputs["logits"].name, {"input:0": io["x"]})
    np.testing.assert_allclose(found, io["predict_logits"], rtol=1e-5, atol=1e-5)


# Train, evaluate, predict, export.


def test_training_goes_on_and_stops(tmp_path):
    model = estimator(tmp_path)
    assert model.train(rows(), steps=3) is model
    model.train(rows(), steps=3)
    assert model.get_variable_value("global_step") == 6
    model.train(rows(), max_steps=8).train(rows(), max_steps=8).train(rows(), max_steps=2)
    assert model.latest_checkpoint() == str(tmp_path / "model.ckpt-8")


def test_variables_of_the_checkpoint(trained):
    names = {"bn/gamma", "bn/beta", "bn/moving_mean", "bn/moving_variance", "out/kernel", "out/bias", "global_step"}
    assert set(trained.get_variable_names()) == names
    assert not np.allclose(trained.get_variable_value("bn/moving_mean"), 0)


def test_training_ends_with_its_data(tmp_path):
    assert estimator(tmp_path).train(rows(16, 1)).get_variable_value("global_step") == 3


def test_evaluation(trained):
    found = trained.evaluate(rows(16, 1))
    y = np.concatenate([row["y"] for row in trained.predict(rows(16, 1))])[:, None]
    losses = [np.mean((y - TARGETS)[start : start + 16] ** 2) for start in (0, 16, 32)]
    assert sorted(found) == ["error", "global_step", "loss"]
    # An uneven last batch counts as much as the others, as in 1.15.
    assert found["loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    assert found["error"] == pytest.approx(np.mean(np.abs(y - TARGETS)), rel=1e-5)
    assert found["global_step"] == 12


def test_evaluation_of_some_batches_without_a_checkpoint(tmp_path):
    assert estimator(tmp_path).evaluate(rows(), steps=2)["global_step"] == 0


def test_evaluation_of_an_older_checkpoint(trained):
    path = os.path.join(trained.model_dir, "model.ckpt-5")
    assert trained.evaluate(rows(), steps=1, checkpoint_path=path)["global_step"] == 5


@pytest.mark.parametrize(("name", "folder"), [(None, "eval"), ("test", "eval_test")])
def test_evaluations_are_written_where_tensorboard_looks(trained, name, folder):
    result = trained.evaluate(rows(), steps=2, name=name)
    (path,) = glob.glob(os.path.join(trained.model_dir, folder, "*tfevents*"))
    values = {value.tag: value for event in v1.train.summary_iterator(path) for value in event.summary.value}
    assert values["loss"].simple_value == pytest.approx(float(result["loss"]))
    assert values["checkpoint_path"].tensor.string_val == [trained.latest_checkpoint().encode()]


def test_training_writes_the_loss_and_the_speed(tmp_path):
    estimator(tmp_path, save_summary_steps=2, log_step_count_steps=2).train(rows(), steps=6)
    (path,) = glob.glob(str(tmp_path / "*tfevents*"))
    found = [(event.step, v.tag) for event in v1.train.summary_iterator(path) for v in event.summary.value]
    assert (1, "loss") in found and len([tag for _, tag in found if tag == "loss"]) >= 2
    assert "global_step/sec" in {tag for _, tag in found}


def test_predictions(trained):
    batches = list(trained.predict(rows(16, 1), yield_single_examples=False))
    assert [len(batch["y"]) for batch in batches] == [16, 16, 8]
    (first, *_) = trained.predict(rows(16, 1), predict_keys=["twice"])
    np.testing.assert_allclose(first["twice"], batches[0]["twice"][0])
    assert list(first) == ["twice"]


def test_predictions_may_be_left_and_mixed(trained):
    one, other = trained.predict(rows(8, 1)), trained.predict(rows(4, 1))
    found = [next(one)["y"], next(other)["y"], next(one)["y"]]
    one.close()
    np.testing.assert_allclose(next(other)["y"], found[2], rtol=1e-6)


def test_a_dataset_as_input(trained):
    def dataset(params, mode):
        assert mode in ("eval", "infer") and params == {"updates": True}
        return tf.data.Dataset.from_tensor_slices(({"x": ROWS}, TARGETS)).batch(16)

    assert trained.evaluate(dataset) == pytest.approx(trained.evaluate(rows(16, 1)), rel=1e-6)
    assert len(list(trained.predict(dataset))) == 40


def test_export(trained, tmp_path):
    extra = tmp_path / "words.txt"
    extra.write_text("one")
    path = trained.export_saved_model(str(tmp_path / "export"), receiver, {"a/words.txt": str(extra)})
    assert isinstance(path, bytes)
    path = os.fsdecode(path)
    assert os.path.basename(path).isdigit()
    assert sorted(os.listdir(path)) == ["assets.extra", "saved_model.pb", "variables"]
    assert tf.train.list_variables(f"{path}/variables/variables") == tf.train.list_variables(trained.model_dir)
    with v1.Session(graph=tf.Graph()) as session:
        v1.saved_model.load(session, ["serve"], path)
        (y,) = session.run(["out/BiasAdd:0"], {"input:0": ROWS})
    np.testing.assert_allclose(y, [row["y"] for row in trained.predict(rows(40, 1))], rtol=1e-6)


def test_export_from_serialized_examples(tmp_path):
    def model_fn(features, mode):
        y = features["x"] * v1.get_variable("w", [], initializer=v1.ones_initializer())
        outputs = {
            "serving_default": tfe.export.PredictOutput(y),
            "scores": tfe.export.ClassificationOutput(scores=y),
            "value": tfe.export.RegressionOutput(y),
        }
        train_op = v1.assign_add(v1.train.get_global_step(), 1)
        return tfe.EstimatorSpec(mode, y, tf.reduce_sum(y), train_op, export_outputs=outputs)

    model = tfe.Estimator(model_fn, str(tmp_path)).train(lambda: {"x": tf.ones([2, 1])}, steps=1)
    spec = {"x": tf.io.FixedLenFeature([1], tf.float32)}
    parsing = tfe.export.build_parsing_serving_input_receiver_fn(spec)
    path = os.fsdecode(model.export_saved_model(str(tmp_path / "export"), parsing))
    example = tf.train.Example()
    example.features.feature["x"].float_list.value.append(5.0)
    with v1.Session(graph=tf.Graph()) as session:
        signatures = v1.saved_model.load(session, ["serve"], path).signature_def
        assert sorted(signatures) == ["scores", "serving_default", "value"]
        name = signatures["value"].outputs["outputs"].name
        assert session.run(name, {"input_example_tensor:0": [example.SerializeToString()]}) == [[5.0]]


def test_a_raw_receiver_has_no_signature_for_classes():
    with tf.Graph().as_default():
        features = {"x": v1.placeholder(tf.float32, [3, 4], name="x")}
        raw = tfe.export.build_raw_serving_input_receiver_fn(features)()
        assert raw.features["x"].shape.as_list() == [None, 4]
        outputs = {"a": tfe.export.ClassificationOutput(raw.features["x"]), "b": tfe.export.PredictOutput(raw.features)}
        assert list(tfe.export.signatures(raw, outputs)) == ["b"]


def test_hooks_listeners_and_the_scaffold_are_called(tmp_path):
    called = []

    class Hook(v1.train.SessionRunHook):
        def __init__(self, name):
            self.name = name

        def end(self, session):
            called.append(self.name)

    class Listener(v1.train.CheckpointSaverListener):
        def after_save(self, session, global_step_value):
            called.append(global_step_value)

    def with_hooks(features, labels, mode, params):
        kind = {"train": "training_hooks", "eval": "evaluation_hooks", "infer": "prediction_hooks"}[mode]
        scaffold = v1.train.Scaffold(init_fn=lambda scaffold, session: called.append("init"))
        return model_fn(features, labels, mode, params)._replace(scaffold=scaffold, **{kind: [Hook(f"model {mode}")]})

    model = tfe.Estimator(with_hooks, str(tmp_path), tfe.RunConfig(save_checkpoints_steps=2), {})
    model.train(rows(), [Hook("train")], 3, saving_listeners=[Listener()])
    model.evaluate(rows(), 1, [Hook("eval")])
    list(model.predict(rows(8, 1), hooks=[Hook("predict")]))
    assert set(called) == {"init", 0, 2, 3, *("train", "eval", "predict", "model train", "model eval", "model infer")}


def test_a_scaffold_with_its_own_local_variables_still_evaluates(trained):
    def with_scaffold(features, labels, mode, params):
        spec = model_fn(features, labels, mode, params)
        return spec._replace(scaffold=v1.train.Scaffold(local_init_op=tf.no_op()))

    model = tfe.Estimator(with_scaffold, trained.model_dir, params={})
    assert model.evaluate(rows(16, 1), steps=2) == trained.evaluate(rows(16, 1), steps=2)


def test_a_scaffold_whose_saver_restores_averages(tmp_path):
    def averaged(features, labels, mode):
        weight = v1.get_variable("weight", [], initializer=v1.zeros_initializer())
        loss = tf.reduce_mean(tf.square(features["x"] - weight))
        average = v1.train.ExponentialMovingAverage(0.5)
        step = v1.train.get_global_step()
        if mode == tfe.ModeKeys.TRAIN:
            with tf.control_dependencies([v1.train.GradientDescentOptimizer(0.1).minimize(loss, step)]):
                return tfe.EstimatorSpec(mode, loss=loss, train_op=average.apply([weight]))
        scaffold = v1.train.Scaffold(
            saver=v1.train.Saver(average.variables_to_restore([weight]) | {"global_step": step})
        )
        metrics = {"weight": v1.metrics.mean(weight)}
        return tfe.EstimatorSpec(mode, loss=loss, eval_metric_ops=metrics, scaffold=scaffold)

    model = tfe.Estimator(averaged, str(tmp_path)).train(rows(), steps=3)
    found = model.evaluate(rows(), 1)["weight"]
    assert found == pytest.approx(model.get_variable_value("weight/ExponentialMovingAverage"))
    assert found != pytest.approx(model.get_variable_value("weight"))


def test_a_saving_hook_of_the_program_takes_the_place_of_ours(tmp_path):
    hook = v1.train.CheckpointSaverHook(str(tmp_path), save_steps=3)
    model = estimator(tmp_path).train(rows(), [hook], 7)
    saved = v1.train.get_checkpoint_state(str(tmp_path)).all_model_checkpoint_paths
    assert [os.path.basename(path) for path in saved] == [f"model.ckpt-{step}" for step in (0, 3, 6, 7)]
    with pytest.raises(ValueError, match="give the listeners to that one"):
        model.train(rows(), [hook], 1, saving_listeners=[v1.train.CheckpointSaverListener()])


@pytest.mark.parametrize("listeners", [[], [v1.train.CheckpointSaverListener()]], ids=["nothing", "listeners"])
def test_nothing_is_saved_without_steps_and_seconds(tmp_path, listeners):
    model = estimator(tmp_path, save_checkpoints_steps=None, save_checkpoints_secs=None)
    if listeners:
        with pytest.raises(ValueError, match="both are None"):
            model.train(rows(), steps=1, saving_listeners=listeners)
    else:
        assert model.train(rows(), steps=1).latest_checkpoint() is None


# Warm start.

NAMES = ["out/kernel", "bn/gamma", "bn/moving_mean"]


@pytest.mark.parametrize(
    ("pattern", "taken"),
    # One pattern is of trainable variables, as in 1.15: the moving statistics start anew.
    [(".*", NAMES[:2]), (["bn/.*"], NAMES[1:]), ([".*"], NAMES), ("out.*", NAMES[:1]), (None, [])],
    ids=repr,
)
def test_warm_start(trained, tmp_path, pattern, taken):
    settings = tfe.WarmStartSettings(trained.model_dir, pattern)
    other = estimator(tmp_path / "other", warm_start_from=settings).train(rows(), steps=1)
    path = v1.train.get_checkpoint_state(other.model_dir).all_model_checkpoint_paths[0]
    same = [
        name for name in NAMES if np.array_equal(v1.train.load_variable(path, name), trained.get_variable_value(name))
    ]
    assert same == taken
    assert v1.train.load_variable(path, "global_step") == (12 if pattern == [".*"] else 0)


def test_warm_start_by_path_and_under_another_name(trained, tmp_path):
    renamed = tfe.WarmStartSettings(trained.model_dir, "out/bias", None, {"out/bias": "bn/moving_mean"})
    by_path = estimator(tmp_path / "a", warm_start_from=trained.model_dir)
    assert by_path.evaluate(rows(), 1)["global_step"] == 0
    with pytest.raises(ValueError, match="bn/moving_mean"):
        estimator(tmp_path / "b", warm_start_from=renamed).train(rows(), steps=1)


def test_a_checkpoint_goes_before_a_warm_start(trained, tmp_path):
    other = estimator(tmp_path / "other").train(rows(), steps=1)
    before = other.evaluate(rows(), 1)
    again = estimator(tmp_path / "other", warm_start_from=trained.model_dir)
    assert again.evaluate(rows(), 1) == before


# Updates.


def test_updates_that_do_not_run_are_named_once(tmp_path):
    model = estimator(tmp_path, updates=False)
    with pytest.warns(tfe.UpdatesNotRunWarning, match="update operations of bn:") as caught:
        model.train(rows(), steps=2).train(rows(), steps=2)
    assert [warning.filename for warning in caught] == [__file__]
    assert "with tf.control_dependencies(tf.get_collection(tf.GraphKeys.UPDATE_OPS)):" in str(caught[0].message)
    np.testing.assert_array_equal(model.get_variable_value("bn/moving_mean"), 0)


def test_updates_that_run_are_not_spoken_of(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        estimator(tmp_path).train(rows(), steps=2)


def test_updates_run_on_request_and_once(trained, tmp_path):
    asked = estimator(tmp_path / "asked", updates=False, run_update_ops=True).train(rows(), steps=12)
    both = estimator(tmp_path / "both", updates=True, run_update_ops=True).train(rows(), steps=12)
    for_all = [model.get_variable_value("bn/moving_variance") for model in (trained, asked, both)]
    np.testing.assert_allclose(for_all[1:], for_all[:1] * 2, rtol=1e-6)


def test_an_update_may_be_reached_over_many_operations():
    with tf.Graph().as_default() as graph:
        updated = v1.assign_add(v1.get_variable("v", initializer=0.0), 1.0)
        graph.add_to_collection("update_ops", updated)
        with tf.control_dependencies([tf.identity(updated) + 1]):
            train_op = tf.group(tf.no_op())
        assert updates.not_run(train_op) == []
        assert updates.not_run(tf.no_op()) == [updated]


# train_and_evaluate.


def test_training_and_evaluation_take_turns(tmp_path):
    model = estimator(tmp_path)
    exporters = [tfe.LatestExporter("latest", receiver, exports_to_keep=1), tfe.FinalExporter("final", receiver)]
    train_spec = tfe.TrainSpec(rows(), max_steps=12)
    spec = tfe.EvalSpec(rows(), 2, exporters=exporters, throttle_secs=0)
    metrics, exports = tfe.train_and_evaluate(model, train_spec, spec)
    assert metrics["global_step"] == 12 and len(exports) == 2
    (path,) = glob.glob(str(tmp_path / "eval/*tfevents*"))
    steps = {event.step for event in v1.train.summary_iterator(path) if event.summary.value}
    assert steps == {5, 10, 12}
    assert [len(os.listdir(tmp_path / "export" / name)) for name in ("latest", "final")] == [1, 1]
    assert tfe.train_and_evaluate(model, train_spec, spec) == (None, [])


def test_few_evaluations_with_a_throttle(tmp_path):
    spec = tfe.EvalSpec(rows(), 1, throttle_secs=600)
    tfe.train_and_evaluate(estimator(tmp_path), tfe.TrainSpec(rows(), 12), spec)
    (path,) = glob.glob(str(tmp_path / "eval/*tfevents*"))
    assert 12 in {event.step for event in v1.train.summary_iterator(path) if event.summary.value}


@pytest.mark.parametrize(("losses", "exported"), [([3.0, 2.0, 2.5, 1.0], [1, 1, 0, 1]), ([1.0, 1.0], [1, 0])])
def test_the_best_is_exported(trained, tmp_path, losses, exported):
    best = tfe.BestExporter("best", receiver)
    path = str(tmp_path / "best")
    results = [best.export(trained, path, trained.latest_checkpoint(), {"loss": loss}, False) for loss in losses]
    assert [result is not None for result in results] == [bool(it) for it in exported]


def test_the_best_knows_earlier_runs(trained, tmp_path):
    loss = trained.evaluate(rows(), 2)["loss"]
    best = tfe.BestExporter("best", receiver, "eval/*tfevents*")
    worse = {"loss": loss + 1, "global_step": 13}
    assert best.export(trained, str(tmp_path / "best"), trained.latest_checkpoint(), worse, False) is None


# A process that is killed goes on.

PROGRAM = """
import sys, time
import numpy as np
import tensorflow as tf
tf.compat.v1.disable_v2_behavior()
from evenkeel.tf1 import estimator as tfe, layers
v1 = tf.compat.v1

directory, pause = sys.argv[1], float(sys.argv[2])
x = np.random.RandomState(0).normal(3.0, 2.0, (400, 4)).astype(np.float32)

def input_fn():
    # Which rows, is said by the global step, so that a process that goes on sees what it would have seen.
    rows = tf.cast(tf.identity(v1.train.get_global_step()), tf.int32) % 100 * 4 + tf.range(4)
    return {"x": tf.gather(x, rows)}, tf.gather(x.sum(1, keepdims=True), rows)

def model_fn(features, labels, mode):
    training = mode == tfe.ModeKeys.TRAIN
    hidden = layers.batch_normalization(features["x"], momentum=0.9, training=training, name="bn")
    loss = tf.reduce_mean(tf.square(layers.dense(hidden, 1, name="out") - labels))
    with tf.control_dependencies(v1.get_collection(v1.GraphKeys.UPDATE_OPS)):
        train_op = v1.train.MomentumOptimizer(0.01, 0.9).minimize(loss, v1.train.get_global_step())
    return tfe.EstimatorSpec(mode, loss=loss, train_op=train_op)

class Tell(v1.train.SessionRunHook):
    def before_run(self, context):
        return v1.train.SessionRunArgs(v1.train.get_global_step())
    def after_run(self, context, values):
        print(values.results, flush=True)
        time.sleep(pause)

config = tfe.RunConfig(tf_random_seed=1, save_checkpoints_steps=30)
tfe.Estimator(model_fn, directory, config).train(input_fn, hooks=[Tell()], max_steps=100)
"""


def run(directory, pause):
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(directory), str(pause)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )


@pytest.mark.parametrize("rules", ["tf1"], indirect=True)  # the process has its own
def test_a_killed_process_goes_on_from_its_last_checkpoint(tmp_path):
    with run(tmp_path / "whole", 0) as whole:
        whole.communicate()
    assert whole.returncode == 0
    with run(tmp_path / "killed", 0.02) as killed:
        for line in killed.stdout:
            if int(line) >= 70:
                killed.send_signal(signal.SIGKILL)
                break
        killed.stdout.read()
    assert killed.returncode == -signal.SIGKILL
    assert v1.train.latest_checkpoint(str(tmp_path / "killed")).endswith("-60")
    with run(tmp_path / "killed", 0) as again:
        steps = [int(line) for line in again.communicate()[0].split()]
    assert again.returncode == 0 and min(steps) in (60, 61) and len(steps) == 40
    read = functools.partial(v1.train.load_variable, str(tmp_path / "whole"))
    names = [name for name, _ in v1.train.list_variables(str(tmp_path / "whole"))]
    wanted = {name: read(name) for name in names}
    found = {name: v1.train.load_variable(str(tmp_path / "killed"), name) for name in names}
    assert {"bn/moving_mean", "bn/moving_variance", "out/kernel/Momentum"} <= set(names)
    assert found == {name: pytest.approx(value, rel=1e-5, abs=1e-6) for name, value in wanted.items()}


# Errors.

PLACES = {
    "chief": ({"chief": ["a:1"], "worker": ["b:1"], "ps": ["c:1"]}, "chief", 0, (True, 1, 2, 0)),
    "worker": ({"chief": ["a:1"], "worker": ["b:1", "d:1"]}, "worker", 1, (False, 0, 3, 2)),
    "ps": ({"chief": ["a:1"], "worker": ["b:1"], "ps": ["c:1"]}, "ps", 0, (False, 1, 2, 2)),
    "evaluator": ({"chief": ["a:1"]}, "evaluator", 0, (False, 0, 0, None)),
    "alone": ({}, "worker", 0, (True, 0, 1, 0)),
}


@pytest.mark.parametrize(("cluster", "kind", "index", "place"), PLACES.values(), ids=PLACES)
def test_the_place_in_a_cluster(monkeypatch, cluster, kind, index, place):
    monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": cluster, "task": {"type": kind, "index": index}}))
    config = tfe.RunConfig()
    found = (config.is_chief, config.num_ps_replicas, config.num_worker_replicas, config.global_id_in_cluster)
    assert (config.task_type, config.task_id, found) == (kind, index, place)


def test_a_cluster_does_not_train_and_evaluate(monkeypatch, tmp_path):
    monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": PLACES["chief"][0], "task": {"type": "chief", "index": 0}}))
    with pytest.raises(ValueError, match="chief:0 of a cluster"):
        tfe.train_and_evaluate(estimator(tmp_path), tfe.TrainSpec(rows()), tfe.EvalSpec(rows()))


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"task": {"type": "ps"}}, "must be worker; it is 'ps'"),
        ({"task": {"index": 2}}, "must be 0; it is 2"),
        ({"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 0}}, 'one "chief" node'),
        ({"cluster": {"chief": ["a:1"]}}, "type and index must be set"),
        ({"cluster": {"chief": ["a:1"]}, "task": {"type": "worker", "index": 3}}, "worker:3 .* is not in its cluster"),
        ({"model_dir": ""}, "should be non-empty"),
    ],
)
def test_wrong_places_in_a_cluster(monkeypatch, environment, message):
    monkeypatch.setenv("TF_CONFIG", json.dumps(environment))
    with pytest.raises(ValueError, match=message):
        tfe.RunConfig()


def test_defaults_of_the_configuration():
    config = tfe.RunConfig()
    assert (config.save_summary_steps, config.save_checkpoints_secs, config.save_checkpoints_steps) == (100, 600, None)
    assert (config.keep_checkpoint_max, config.keep_checkpoint_every_n_hours) == (5, 10000)
    assert (config.log_step_count_steps, config.tf_random_seed, config.session_creation_timeout_secs) == (
        100,
        None,
        7200,
    )
    replaced = config.replace(save_checkpoints_steps=3, run_update_ops=True)
    assert (replaced.save_checkpoints_secs, replaced.save_checkpoints_steps, replaced.run_update_ops) == (None, 3, True)
    assert (config.save_checkpoints_steps, config.run_update_ops) == (None, False)


def test_a_temporary_directory():
    assert os.path.isdir(tfe.Estimator(model_fn, params={}).model_dir)


def spec(mode="train", **changes):
    """A TRAIN spec that is right, with some fields changed."""
    right = {"predictions": tf.ones([2]), "loss": tf.ones([]), "train_op": tf.no_op()}
    return tfe.EstimatorSpec(mode, **{**right, **changes})


def elsewhere():
    with tf.Graph().as_default():
        return tf.ones([])


def returning(result):
    return lambda features, labels, mode: result


def build(model, **arguments):
    return tfe.Estimator(model, **arguments)


def trains(model, data=lambda: (tf.ones([2, 4]), tf.ones([2, 1])), **arguments):
    return tfe.Estimator(model).train(data, **arguments)


def clash(name):
    def metrics(features, labels, mode):
        return spec(mode, eval_metric_ops={name: v1.metrics.mean(labels)})

    return tfe.Estimator(metrics).evaluate(lambda: (tf.ones([2]), tf.ones([2])), 1)


X = np.ones([3, 2])
ERRORS = {
    "steps twice": (ValueError, "steps=1 and max_steps=2", lambda: trains(returning(0), steps=1, max_steps=2)),
    "steps 0": (ValueError, "steps > 0, given: 0", lambda: trains(returning(0), steps=0)),
    "max_steps -1": (ValueError, "max_steps > 0, given: -1", lambda: trains(returning(0), max_steps=-1)),
    "evaluate 0": (ValueError, "steps > 0, given: 0", lambda: build(returning(0)).evaluate(rows(), 0)),
    "no model": (ValueError, "model_fn must be provided", lambda: build(None)),
    "no features": (ValueError, "must include features", lambda: build(lambda labels: 0)),
    "too much": (ValueError, r"not expected args: \['extra'\]", lambda: build(lambda features, extra: 0)),
    "params": (ValueError, r"params \({'a': 1}\) is passed", lambda: build(lambda features: 0, params={"a": 1})),
    "no spec": (ValueError, "EstimatorSpec, and returned 7", lambda: trains(returning(7))),
    "labels": (ValueError, "model_fn does not take labels", lambda: trains(lambda features: 0)),
    "three parts": (ValueError, "it has 3 parts", lambda: trains(returning(0), lambda: (1, 2, 3))),
    "no input": (ValueError, "input_fn returned None", lambda: trains(returning(0), lambda: None)),
    "hook": (TypeError, "SessionRunHook, given: 5", lambda: trains(returning(0), hooks=[5])),
    "listener": (TypeError, "Listener, given: 5", lambda: trains(returning(0), saving_listeners=[5])),
    "config": (ValueError, "RunConfig`, but provided 5", lambda: build(returning(0), config=5)),
    "two dirs": (
        ValueError,
        "constructor: 'a', in `RunConfig`: 'b'",
        lambda: build(returning(0), model_dir="a", config=tfe.RunConfig("b")),
    ),
    "warm start": (ValueError, "instead got 5", lambda: build(returning(0), warm_start_from=5)),
    "no warm start": (ValueError, "MUST be set", lambda: tfe.WarmStartSettings("")),
    "no checkpoint": (ValueError, "find trained model at", lambda: build(returning(0)).get_variable_names()),
    "no value": (ValueError, "find trained model at", lambda: build(returning(0)).get_variable_value("a")),
    "no export": (ValueError, "find trained model at", lambda: build(returning(0)).export_saved_model("a", receiver)),
    "both": (
        ValueError,
        "steps=1 and save_checkpoints_secs=2",
        lambda: tfe.RunConfig(save_checkpoints_steps=1, save_checkpoints_secs=2),
    ),
    "unknown": (ValueError, "Replacing colour is not supported", lambda: tfe.RunConfig().replace(colour=1)),
    "range": (ValueError, "save_summary_steps should be >= 0, got -1", lambda: tfe.RunConfig(save_summary_steps=-1)),
    "device": (ValueError, "device_fn should be", lambda: tfe.RunConfig(device_fn=lambda: 0)),
    "strategy": (ValueError, "train_distribute='mirrored'", lambda: tfe.RunConfig(train_distribute="mirrored")),
    "loss name": (ValueError, "Metric with name `loss`", lambda: clash("loss")),
    "step name": (ValueError, "Metric with name `global_step`", lambda: clash("global_step")),
    "missing loss": (ValueError, "Missing loss", lambda: spec("eval", loss=None)),
    "missing train_op": (ValueError, "Missing train_op", lambda: spec(train_op=None)),
    "missing predictions": (ValueError, "Missing predictions", lambda: spec("infer", predictions=None)),
    "vector loss": (ValueError, "must be scalar", lambda: spec(loss=tf.ones([2]))),
    "other graph": (ValueError, "loss must be from the default graph", lambda: spec(loss=elsewhere())),
    "number loss": (TypeError, "loss must be Tensor, given: 5", lambda: spec(loss=5)),
    "number predictions": (TypeError, r"predictions\[a\] must be Tensor", lambda: spec(predictions={"a": 5})),
    "number train_op": (TypeError, "train_op must be Operation or Tensor, given: 5", lambda: spec(train_op=5)),
    "metric": (TypeError, "tuples, given: 5 for key: a", lambda: spec(eval_metric_ops={"a": 5})),
    "metrics": (TypeError, "must be a dict, given: 5", lambda: spec(eval_metric_ops=5)),
    "scaffold": (TypeError, "Scaffold. Given: 5", lambda: spec(scaffold=5)),
    "outputs": (TypeError, "must be dict, received: 5", lambda: spec(export_outputs=5)),
    "output": (TypeError, "ExportOutput objects. Given: {'a': 5}", lambda: spec(export_outputs={"a": 5})),
    "default output": (
        ValueError,
        r"none of \['a', 'b'\] is specified as the default",
        lambda: spec(export_outputs=dict.fromkeys("ab", tfe.export.PredictOutput(tf.ones([2])))),
    ),
    "mode": (ValueError, "cannot be changed from 'train' to 'eval'", lambda: spec()._replace(mode="eval")),
    "shuffle": (ValueError, "explicitly set as boolean .* got None", lambda: tfe.inputs.numpy_input_fn(X)),
    "lengths": (ValueError, "mismatched", lambda: tfe.inputs.numpy_input_fn(X, X[:2], shuffle=False)),
    "no columns": (ValueError, "x cannot be empty dict", lambda: tfe.inputs.numpy_input_fn({}, shuffle=False)),
    "list": (TypeError, "must be a dict or array; got list", lambda: tfe.inputs.numpy_input_fn([1], shuffle=False)),
    "names": (
        ValueError,
        "1 duplicate keys",
        lambda: tfe.inputs.numpy_input_fn({"a": X}, {"a": X}, shuffle=False),
    ),
    "scores": (ValueError, "scores must be a float32", lambda: tfe.export.ClassificationOutput(tf.ones([2], tf.int32))),
    "neither": (ValueError, "At least one", lambda: tfe.export.ClassificationOutput()),
    "value": (ValueError, "Regression output value", lambda: tfe.export.RegressionOutput(5)),
    "receiver": (ValueError, "features must be defined", lambda: tfe.export.ServingInputReceiver(None, None)),
    "logits": (ValueError, "Got: 5", lambda: tfe.experimental.call_logit_fn(lambda features: 5, 0, 0, 0, 0)),
    "estimator": (TypeError, "`estimator` must have type", lambda: tfe.train_and_evaluate(5, 5, 5)),
    "train spec": (ValueError, "max_steps > 0, given: 0", lambda: tfe.TrainSpec(rows(), 0)),
    "input": (TypeError, "must be callable, given: 5", lambda: tfe.TrainSpec(5)),
    "throttle": (ValueError, "throttle_secs >= 0, given: -1", lambda: tfe.EvalSpec(rows(), throttle_secs=-1)),
    "exporter": (TypeError, "given: 5", lambda: tfe.EvalSpec(rows(), exporters=[5])),
    "one name": (
        ValueError,
        "unique names",
        lambda: tfe.EvalSpec(rows(), exporters=[tfe.FinalExporter("a", receiver), tfe.LatestExporter("a", receiver)]),
    ),
    "to keep": (ValueError, "Got 0", lambda: tfe.LatestExporter("a", receiver, exports_to_keep=0)),
    "canned": (AttributeError, "DNNClassifier.*canned estimators are left out", lambda: tfe.DNNClassifier),
    "tpu": (AttributeError, "tpu.*TPUs are left out", lambda: tfe.tpu),
    "other": (AttributeError, "NoSuchThing", lambda: tfe.NoSuchThing),
}


@pytest.mark.parametrize(("kind", "message", "act"), ERRORS.values(), ids=ERRORS)
def test_errors(kind, message, act):
    with tf.Graph().as_default(), pytest.raises(kind, match=message):
        act()


@pytest.mark.parametrize(
    ("keys", "message"), [(["nothing"], r"from \['twice', 'y'\], provided \['nothing'\]")], ids=["unknown"]
)
def test_predictions_that_are_not_there(trained, keys, message):
    with pytest.raises(ValueError, match=message):
        next(trained.predict(rows(), predict_keys=keys))


def test_a_loss_that_is_not_a_number_ends_training(tmp_path):
    with pytest.raises(tfe.NanLossDuringTrainingError):
        estimator(tmp_path).train(rows(x=ROWS * np.nan), steps=2)


# Inputs.


def batches(input_fn):
    found = []
    with tf.Graph().as_default():
        batch = feeding.call(input_fn, {}).features
        with v1.train.MonitoredSession() as session:
            while not session.should_stop() and len(found) < 6:
                found.append(session.run(batch).tolist())
    return found


@pytest.mark.parametrize(
    ("epochs", "wanted"),
    [
        (1, [[0, 1, 2], [3, 4]]),
        (2, [[0, 1, 2], [3, 4, 0], [1, 2, 3], [4]]),
        (None, [[0, 1, 2], [3, 4, 0], [1, 2, 3], [4, 0, 1], [2, 3, 4], [0, 1, 2]]),
    ],
)
def test_epochs_of_arrays(epochs, wanted):
    assert batches(tfe.inputs.numpy_input_fn(np.arange(5), None, 3, epochs, shuffle=False)) == wanted


def test_shuffled_arrays():
    (found,) = batches(tfe.inputs.numpy_input_fn(np.arange(30), None, 100, 1, shuffle=True))
    assert sorted(found) == list(range(30)) and found != list(range(30))


def test_names_of_columns_and_labels():
    input_fn = tfe.inputs.numpy_input_fn({"b": X, "a": X[:, 0]}, {"c": X}, shuffle=False)
    with tf.Graph().as_default():
        features, labels = input_fn()
    assert {name: tensor.shape.as_list() for name, tensor in features.items()} == {"a": [None], "b": [None, 2]}
    assert list(labels) == ["c"]


@pytest.mark.parametrize("logits", [lambda features: features, lambda features, mode: {"a": features}])
def test_logits(logits):
    with tf.Graph().as_default():
        x = tf.ones([2])
        assert tfe.experimental.call_logit_fn(logits, x, "train", None, None) in (x, {"a": x})
