# SPDX-License-Identifier: Apache-2.0
"""`tf.contrib.slim`, `training`, `losses`, `metrics`, `opt`: what a step runs, and what an evaluation gives."""

import numpy as np
import pytest
import tensorflow

from evenkeel.tf1.contrib import layers, losses, metrics, opt, slim, training

v1 = tensorflow.compat.v1

SGD = v1.train.GradientDescentOptimizer
# The supervisor's own threads would run eagerly: the fixtures cannot switch that off in a process of TensorFlow 2.
NO_THREADS = {"save_summaries_secs": 0, "save_interval_secs": 0}


def initialized(session):
    session.run(v1.global_variables_initializer())
    return session


def names(variables):
    return [variable.op.name for variable in variables]


# The namespace


@pytest.mark.parametrize(
    "name",
    [
        "arg_scope",
        "assign_from_checkpoint_fn",
        "batch_norm",
        "conv2d",
        "evaluation",
        "fully_connected",
        "get_or_create_global_step",
        "l2_regularizer",
        "learning",
        "losses",
        "max_pool2d",
        "metrics",
        "model_analyzer",
        "model_variable",
        "queues",
        "repeat",
        "summaries",
        "utils",
        "variance_scaling_initializer",
        "xavier_initializer",
    ],
)
def test_slim_has_it_all(name):
    assert hasattr(slim, name) and name in slim.__all__


def test_a_network_as_slim_writes_it(graph, session):
    def net(x, is_training, reuse=None):
        with (
            slim.arg_scope([slim.conv2d], normalizer_fn=slim.batch_norm, weights_regularizer=slim.l2_regularizer(0.01)),
            slim.arg_scope([slim.batch_norm], is_training=is_training, decay=0.5),
            v1.variable_scope("net", reuse=reuse) as scope,
            slim.arg_scope([slim.conv2d, slim.max_pool2d], outputs_collections=scope.original_name_scope + "ends"),
        ):
            x = slim.repeat(x, 2, slim.conv2d, 4, [3, 3], scope="conv1")
            x = slim.max_pool2d(x, [2, 2], scope="pool1")
            x = slim.dropout(slim.flatten(x), is_training=is_training)
            y = slim.fully_connected(x, 3, activation_fn=None, scope="logits")
            return y, slim.utils.convert_collection_to_dict(scope.original_name_scope + "ends")

    images = tensorflow.ones([2, 4, 4, 1])
    y, ends = net(images, True)
    net(images, False, reuse=True)
    assert y.op.name == "net/logits/BiasAdd"
    assert list(ends) == ["net/conv1/conv1_1", "net/conv1/conv1_2", "net/pool1"]
    assert names(slim.get_model_variables("net/conv1/conv1_1")) == [
        "net/conv1/conv1_1/weights",
        "net/conv1/conv1_1/BatchNorm/beta",
        "net/conv1/conv1_1/BatchNorm/moving_mean",
        "net/conv1/conv1_1/BatchNorm/moving_variance",
    ]
    assert len(slim.losses.get_regularization_losses()) == 2 and len(v1.get_collection("update_ops")) == 4


# create_train_op


@pytest.fixture
def loss(graph):
    """The square of a variable `w` of 4; `first` and `second` count how often their update operation was run."""
    w = v1.get_variable("w", initializer=4.0)
    for name in ("first", "second"):
        counter = v1.get_variable(name, initializer=0.0, trainable=False)
        v1.add_to_collection("update_ops", counter.assign_add(1.0, name=f"count_{name}"))
    return w * w


def state(session):
    return [float(session.run(variable)) for variable in v1.global_variables()]


def test_a_step_runs_the_updates_and_counts(loss, session):
    train = slim.learning.create_train_op(loss, SGD(0.25))
    initialized(session).run(train)
    assert names(v1.global_variables()) == ["w", "first", "second", "global_step"]
    assert state(session) == [2, 1, 1, 1] and v1.get_collection("train_op")[-1] is train


def test_the_loss_is_returned(graph, session):
    x = v1.placeholder(tensorflow.float32, [])
    w = v1.get_variable("w", initializer=4.0)
    train = slim.learning.create_train_op(tensorflow.exp(w - x), SGD(0.25))
    assert initialized(session).run(train, {x: 4.0}) == 1.0


@pytest.mark.parametrize(
    ("options", "after"),
    [
        ({"global_step": None}, [2, 1, 1]),
        ({"update_ops": []}, [2, 0, 0, 1]),
        ({"clip_gradient_norm": 4.0}, [3, 1, 1, 1]),
        ({"gradient_multipliers": {"w": 0.5}}, [3, 1, 1, 1]),
        ({"gradient_multipliers": {"w": 0.5}, "clip_gradient_norm": 2.0}, [3.5, 1, 1, 1]),
        ({"check_numerics": False, "summarize_gradients": True}, [2, 1, 1, 1]),
    ],
    ids=str,
)
def test_options_of_a_step(loss, session, options, after):
    train = slim.learning.create_train_op(loss, SGD(0.25), **options)
    initialized(session).run(train)
    assert state(session) == after


def test_some_updates_only_are_run_with_a_warning(loss, session, caplog):
    train = slim.learning.create_train_op(loss, SGD(0.25), update_ops=v1.get_collection("update_ops")[1:])
    initialized(session).run(train)
    assert state(session) == [2, 0, 1, 1] and "does not contain all" in caplog.text


def test_all_updates_are_run_without_a_warning(loss, session, caplog):
    slim.learning.create_train_op(loss, SGD(0.25), update_ops=v1.get_collection("update_ops"))
    assert "does not contain all" not in caplog.text


def test_a_loss_that_is_no_number_is_an_error(graph, session):
    x = v1.placeholder(tensorflow.float32, [])
    train = slim.learning.create_train_op(v1.get_variable("w", initializer=4.0) * x, SGD(0.25))
    with pytest.raises(tensorflow.errors.InvalidArgumentError, match="LossTensor is inf or nan"):
        initialized(session).run(train, {x: np.nan})


def test_variables_to_train(graph, session):
    a, b = (v1.get_variable(name, initializer=4.0) for name in "ab")
    train = slim.learning.create_train_op(a * b, SGD(0.25), variables_to_train=[b])
    initialized(session).run(train)
    assert session.run([a, b]) == [4.0, 3.0]


@pytest.mark.parametrize("trainable", [True, False])
def test_nothing_to_train(graph, trainable):
    variable = v1.get_variable("v", initializer=4.0, trainable=trainable)
    with pytest.raises(AssertionError, match="no variables to train" if trainable else "v:0 is not trainable"):
        slim.learning.create_train_op(variable**2, SGD(0.25), variables_to_train=[] if trainable else [variable])


def test_gradients_are_transformed(loss, session):
    train = training.create_train_op(
        loss, SGD(0.25), transform_grads_fn=lambda pairs: [(2 * gradient, variable) for gradient, variable in pairs]
    )
    initialized(session).run(train)
    assert state(session)[0] == 0.0


def test_sparse_gradients_are_multiplied_and_clipped(graph, session):
    table = v1.get_variable("table", initializer=np.zeros((4, 2), "float32"))
    rows = tensorflow.nn.embedding_lookup(table, [1, 3])
    train = slim.learning.create_train_op(
        tensorflow.reduce_sum(rows), SGD(1.0), gradient_multipliers={table: 8.0}, clip_gradient_norm=2.0
    )
    initialized(session).run(train)
    assert session.run(table).tolist() == [[0, 0], [-1, -1], [0, 0], [-1, -1]]


@pytest.mark.parametrize(
    ("pairs", "multipliers", "text"),
    [
        ((), {"w": 1.0}, "must be a list; got tuple"),
        ([], {}, r"not empty; got \{\}"),
        ([], [1.0], "must be a dict"),
    ],
)
def test_multipliers_that_cannot_be(pairs, multipliers, text):
    with pytest.raises(ValueError, match=text):
        slim.learning.multiply_gradients(pairs, multipliers)


def test_a_multiplier_wants_a_gradient(graph):
    with pytest.raises(ValueError, match="`None` gradient of w"):
        slim.learning.multiply_gradients([(None, v1.get_variable("w", []))], {"w": 2.0})


# train and evaluate


@pytest.fixture
def trained(loss, tmp_path):
    """A directory with what three steps of `slim.learning.train` left; the default graph is a new one."""
    v1.summary.scalar("loss", loss)
    train = slim.learning.create_train_op(loss, SGD(0.25))
    last = slim.learning.train(train, str(tmp_path / "model"), number_of_steps=3, trace_every_n_steps=2, **NO_THREADS)
    assert last >= 0
    with tensorflow.Graph().as_default():
        yield tmp_path


def test_training_stops_saves_and_traces(trained):
    path = tensorflow.train.latest_checkpoint(str(trained / "model"))
    reader = v1.train.load_checkpoint(path)
    assert path.endswith("-3") and reader.get_tensor("w") == 0.5 and reader.get_tensor("first") == 3
    assert sorted(item.name for item in (trained / "model").glob("tf_trace*")) == ["tf_trace-1.pb", "tf_trace-3.pb"]
    assert list((trained / "model").glob("events*"))


def test_training_goes_on_where_it_stopped(trained):
    w = v1.get_variable("w", initializer=4.0)
    train = slim.learning.create_train_op(w * w, SGD(0.25))
    slim.learning.train(train, str(trained / "model"), number_of_steps=4, saver=v1.train.Saver(), **NO_THREADS)
    assert v1.train.load_checkpoint(str(trained / "model")).get_tensor("w") == 0.25


def test_training_begins_with_values_from_elsewhere_and_saves_nothing(graph):
    w = v1.get_variable("w", initializer=4.0)
    train = slim.learning.create_train_op(w * w, SGD(0.25))
    seen = []

    def step(session, *args):
        seen.append(float(session.run(w)))
        return slim.learning.train_step(session, *args)

    start = slim.assign_from_values_fn({"w": np.array(8.0)})
    slim.learning.train(train, None, train_step_fn=step, init_fn=start, number_of_steps=2)
    assert seen == [8.0, 4.0]


def test_training_ends_with_the_data(graph):
    queue = v1.train.limit_epochs(tensorflow.constant(2.0), num_epochs=3)
    w = v1.get_variable("w", initializer=4.0)
    seen = []

    def step(session, *args):
        seen.append(0)
        return slim.learning.train_step(session, *args)

    slim.learning.train(slim.learning.create_train_op(w * queue, SGD(0.25)), None, train_step_fn=step)
    assert len(seen) == 4


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"train_op": None}, "train_op cannot be None"),
        ({"logdir": None, "summary_op": "some"}, "summary_op because logdir=None"),
        ({"logdir": None, "saver": "some"}, "saver because logdir=None"),
        ({"logdir": None, "trace_every_n_steps": 1}, "trace_every_n_steps because logdir=None"),
        ({"number_of_steps": 0}, "positive number; got 0"),
        ({"sync_optimizer": "some", "startup_delay_steps": 1}, "startup_delay_steps must be zero"),
    ],
)
def test_training_refuses(graph, options, text):
    with pytest.raises(ValueError, match=text):
        slim.learning.train(**{"train_op": "some", "logdir": "somewhere", **options})


def evaluation():
    """The value of `w` as a streaming mean, and its update."""
    return slim.metrics.streaming_mean(v1.get_variable("w", []))


def test_a_checkpoint_is_evaluated(trained):
    value, update = evaluation()
    v1.summary.scalar("mean", value)
    path = tensorflow.train.latest_checkpoint(str(trained / "model"))
    count = v1.get_variable("count", initializer=0.0, collections=["local_variables"], trainable=False)
    result = slim.evaluation.evaluate_once(
        "", path, str(trained / "logs"), num_evals=3, eval_op=[update, count.assign_add(1.0)], final_op=[value, count]
    )
    assert result == [0.5, 3.0] and list((trained / "logs").glob("events*"))


def test_each_new_checkpoint_is_evaluated(trained):
    value, update = evaluation()
    folder = str(trained / "model")
    seen = []
    result = slim.evaluation.evaluation_loop(
        "",
        folder,
        str(trained / "logs"),
        eval_op=update,
        final_op=value,
        eval_interval_secs=0,
        timeout=0.1,
        timeout_fn=lambda: not seen.append(0) and len(seen) == 2,
    )
    assert result == 0.5 and len(seen) == 2


def test_evaluations_are_counted(trained):
    value, update = evaluation()
    result = slim.evaluation.evaluation_loop(
        "", str(trained / "model"), str(trained), eval_op=update, final_op=value, max_number_of_evaluations=1
    )
    assert result == 0.5


def test_variables_are_restored_under_another_name(trained):
    value, update = slim.metrics.streaming_mean(v1.get_variable("new", []))
    result = slim.evaluation.evaluate_once(
        "",
        tensorflow.train.latest_checkpoint(str(trained / "model")),
        str(trained),
        eval_op=update,
        final_op=value,
        summary_op=None,
        variables_to_restore={"w": v1.global_variables()[0]},
    )
    assert result == 0.5


def test_two_evaluations_follow_each_other_in_one_graph(trained):
    value, update = evaluation()
    saver, hook = v1.train.Saver(), training.StopAfterNEvalsHook(1)
    folder = str(trained / "two")
    with v1.Session() as session:
        session.run(v1.global_variables_initializer())
        saver.save(session, folder + "/model", 1)

    def checkpoint_comes():
        with tensorflow.Graph().as_default(), v1.Session() as session:
            v1.get_variable("w", initializer=3.0)
            session.run(v1.global_variables_initializer())
            v1.train.Saver().save(session, folder + "/model", 2)
        return False

    result = training.evaluate_repeatedly(
        folder,
        scaffold=v1.train.Scaffold(saver=saver),
        eval_ops=update,
        final_ops=value,
        eval_interval_secs=0,
        hooks=[hook],
        max_number_of_evaluations=2,
        timeout=0.1,
        timeout_fn=checkpoint_comes,
    )
    assert result == 3.0


def test_waiting_for_a_checkpoint(trained):
    folder = str(trained / "model")
    path = slim.evaluation.wait_for_new_checkpoint(folder)
    assert path == tensorflow.train.latest_checkpoint(folder)
    assert slim.evaluation.wait_for_new_checkpoint(folder, path, seconds_to_sleep=0.01, timeout=0.05) is None
    assert list(slim.evaluation.checkpoints_iterator(folder, timeout=0.05)) == [path]


def test_contrib_training_trains_until_a_hook_stops(loss, tmp_path):
    train = training.create_train_op(loss, SGD(0.25))
    training.train(train, str(tmp_path), hooks=[v1.train.StopAtStepHook(2)], save_summaries_steps=None)
    assert v1.train.load_checkpoint(str(tmp_path)).get_tensor("w") == 1.0


def test_contrib_training_wants_a_directory(loss):
    with pytest.raises(ValueError, match="logdir cannot be None"):
        training.train(training.create_train_op(loss, SGD(0.25)), None)


def test_a_summary_at_the_end_wants_a_place():
    with pytest.raises(ValueError, match="log_dir or summary_writer"):
        training.SummaryAtEndHook()


# Analysis, queues, summaries


def test_how_large_a_model_is(graph, capsys):
    slim.fully_connected(v1.placeholder(tensorflow.float32, [None, 3]), 4, scope="fc")
    assert slim.model_analyzer.analyze_vars(slim.get_model_variables(), print_info=True) == (16, 64)
    printed = capsys.readouterr().out
    assert "fc/weights:0 (float32 3x4) [12, bytes: 48]" in printed and "Total bytes of variables: 64" in printed
    assert slim.model_analyzer.analyze_ops(v1.get_default_graph(), print_info=True) > 16
    assert "fc/biases/read\t-> (float32 4) [4]" in capsys.readouterr().out


def test_queues_run_for_a_block(graph, session):
    (value,) = v1.train.slice_input_producer([tensorflow.constant([1, 2])], shuffle=False)
    with slim.queues.QueueRunners(session):
        assert [int(session.run(value)) for _ in range(3)] == [1, 2, 1]


def test_queues_want_a_session(graph):
    with pytest.raises(ValueError, match="No session"), slim.queues.QueueRunners(None):
        pass


def test_summaries_are_named_after_tensors(graph, session):
    x = tensorflow.constant([[[[0.0], [1.0]]]], name="x")
    slim.summaries.add_histogram_summaries([x], prefix="many")
    slim.summaries.add_image_summaries([x])
    slim.summaries.add_scalar_summaries([tensorflow.reduce_sum(x, name="sum")])
    slim.summaries.add_zero_fraction_summaries([x])
    found = v1.summary.Summary.FromString(session.run(v1.summary.merge_all())).value
    expected = ["many/x", "x_1/image/0", "sum_1", "Fraction_of_Zero_Values/x"]
    assert [value.tag for value in found] == expected and found[3].simple_value == 0.5


def test_a_summary_can_be_printed(graph, session, capfd):
    slim.summaries.add_scalar_summary(tensorflow.constant(3.0), "three", print_summary=True)
    session.run(v1.summary.merge_all())
    assert "three 3" in capfd.readouterr().err


# Losses and metrics

X, Y = np.array([[1.0, 4.0], [0.5, 0.25]], "float32"), np.array([[1.0, 2.0], [0.0, 1.0]], "float32")


@pytest.mark.parametrize(
    ("make", "value"),
    [
        (lambda: losses.absolute_difference(X, Y), 0.8125),
        (lambda: losses.absolute_difference(X, Y, weights=[[1.0], [0.0]]), 1.0),
        (lambda: losses.mean_squared_error(X, Y), (4 + 0.25 + 0.5625) / 4),
        (lambda: losses.compute_weighted_loss(tensorflow.constant(X), 2.0), 2.875),
        (lambda: losses.cosine_distance(X, Y, 1, weights=2.0), 2 * (1 - (9 + 0.25) / 2)),
        (lambda: losses.cosine_distance(X, Y, dim=1), 1 - (9 + 0.25) / 2),
        (lambda: losses.log_loss(X[1:], Y[1:]), -(np.log(0.5) + np.log(0.25)) / 2),
        (lambda: losses.sigmoid_cross_entropy(np.zeros((1, 2), "float32"), Y[1:]), np.log(2)),
        (lambda: losses.softmax_cross_entropy(np.zeros((1, 2), "float32"), Y[1:]), np.log(2)),
        (lambda: losses.sparse_softmax_cross_entropy(np.zeros((1, 2), "float32"), [1]), np.log(2)),
    ],
)
def test_losses(graph, session, make, value):
    loss = make()
    np.testing.assert_allclose(session.run(loss), value, rtol=1e-5)
    assert any(loss is other for other in losses.get_losses())


def test_a_pairwise_loss_is_that_of_tf_losses(graph, session):
    ours, theirs = losses.mean_pairwise_squared_error(X, 2 * Y), v1.losses.mean_pairwise_squared_error(2 * Y, X)
    first, second = session.run([ours, theirs])
    assert first == second > 0 and losses.get_losses() == [ours, theirs]


def test_a_hinge_loss_is_neither_summed_nor_collected(graph, session):
    assert session.run(losses.hinge_loss([[0.5], [0.5]], [[1.0], [0.0]])).tolist() == [[0.5], [1.5]]
    assert losses.get_losses() == []


def test_all_losses(graph, session):
    losses.add_loss(tensorflow.constant(1.0))
    v1.add_to_collection(v1.GraphKeys.REGULARIZATION_LOSSES, tensorflow.constant(2.0))
    assert session.run([losses.get_total_loss(), losses.get_total_loss(False)]) == [3.0, 1.0]


def test_losses_take_arguments_from_a_scope(graph, session):
    with slim.arg_scope([losses.absolute_difference], weights=2.0):
        assert session.run(losses.absolute_difference(X, Y)) == 1.625


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: losses.absolute_difference(X), "labels cannot be None"),
        (lambda: losses.log_loss(None, Y), "predictions cannot be None"),
        (lambda: losses.cosine_distance(X, Y), "axis=None, dim=None"),
        (lambda: losses.cosine_distance(X, Y, axis=1, dim=1), "axis=1, dim=1"),
        (lambda: losses.hinge_loss(X, Y[:, :1]), "incompatible"),
    ],
)
def test_losses_refuse(graph, make, text):
    with pytest.raises(ValueError, match=text):
        make()


PREDICTED, LABELS = np.array([1, 0, 1, 1]), np.array([1, 1, 1, 0])


@pytest.mark.parametrize(
    ("metric", "arguments", "value"),
    [
        (metrics.streaming_accuracy, (PREDICTED, LABELS), 0.5),
        (metrics.streaming_precision, (PREDICTED, LABELS), 2 / 3),
        (metrics.streaming_recall, (PREDICTED[:2], LABELS[:2]), 0.5),
        (metrics.streaming_mean, (X,), X.mean()),
        (metrics.streaming_mean_relative_error, (X, Y, 2 * np.ones_like(X)), np.abs(X - Y).mean() / 2),
        (metrics.streaming_percentage_less, (X, 0.5), 0.25),
        (metrics.streaming_false_positives, (PREDICTED[:2], LABELS[:2]), 0.0),
        (metrics.streaming_sparse_recall_at_k, (X, np.array([[1], [1]]), 1), 0.5),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_metrics_take_predictions_first(graph, session, metric, arguments, value):
    result, update = metric(*arguments)
    session.run(v1.local_variables_initializer())
    session.run(update)
    assert session.run(result) == pytest.approx(value, rel=1e-6)


def test_a_metric_goes_to_collections(graph):
    value, update = metrics.streaming_accuracy(PREDICTED, LABELS, metrics_collections=["m"], updates_collections=["u"])
    assert (v1.get_collection("m"), v1.get_collection("u")) == ([value], [update])


def test_metrics_in_a_map(graph):
    accuracy = metrics.streaming_accuracy(PREDICTED, LABELS)
    assert metrics.aggregate_metric_map({"a": accuracy}) == ({"a": accuracy[0]}, {"a": accuracy[1]})
    with pytest.raises(ValueError, match="at least one"):
        metrics.aggregate_metrics()


@pytest.mark.parametrize(("weights", "value"), [(None, 0.5), ([1.0, 0.0, 1.0, 0.0], 1.0), (2.0, 0.5)])
def test_accuracy_of_a_batch(graph, session, weights, value):
    predicted, labels = tensorflow.constant(PREDICTED), tensorflow.constant(LABELS)
    assert session.run(metrics.accuracy(predicted, labels, weights)) == value


def test_accuracy_of_two_types(graph):
    with pytest.raises(ValueError, match="should have one type"):
        metrics.accuracy(tensorflow.constant(X), tensorflow.constant(Y))


# Averages of variables


def test_a_saver_swaps_variables_and_their_averages(graph, session, tmp_path):
    w = v1.get_variable("w", initializer=4.0)
    optimizer = opt.MovingAverageOptimizer(SGD(0.25), average_decay=0.75)
    train = optimizer.minimize(w * w)
    saver = optimizer.swapping_saver()
    initialized(session).run(train)
    path = saver.save(session, str(tmp_path / "model"))
    stored = {name: float(v1.train.load_variable(path, name)) for name, _ in v1.train.list_variables(path)}
    assert stored == {"w": 3.5, "w/ExponentialMovingAverage": 2.0}


def test_a_swapping_saver_wants_a_step(graph):
    with pytest.raises(RuntimeError, match="minimize"):
        opt.MovingAverageOptimizer(SGD(0.25)).swapping_saver()


# HParams


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("", {"rate": 0.1, "steps": 3, "name": "a", "widths": [1, 2], "flag": True}),
        ("rate=2", {"rate": 2.0}),
        ("steps=5, name=b c", {"steps": 5, "name": "b c"}),
        ("widths=[3, 4],flag=false", {"widths": [3, 4], "flag": False}),
        ("widths[1]=7", {"widths": [1, 7]}),
        ("widths=5", {"widths": [5]}),
    ],
)
def test_hyperparameters_from_text(text, values):
    hparams = training.HParams(rate=0.1, steps=3, name="a", widths=[1, 2], flag=True)
    assert hparams.parse(text) is hparams and hparams.values() == {**hparams.values(), **values}


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        (lambda h: h.parse("speed=1"), ValueError, "Unknown hyperparameter: speed; there are rate, steps"),
        (lambda h: h.parse("steps=1.5"), ValueError, "'steps' of type 'int' with value '1.5'"),
        (lambda h: h.parse("steps"), ValueError, "Malformed hyperparameter value: steps"),
        (lambda h: h.parse("steps[0]=1"), ValueError, "steps is not a list"),
        (lambda h: h.set_hparam("steps", [1]), ValueError, r"single-valued parameter: steps=\[1\]"),
        (lambda h: h.set_hparam("steps", 1.5), ValueError, "from value 1.5"),
        (lambda h: h.set_hparam("speed", 1), KeyError, "speed"),
        (lambda h: h.add_hparam("rate", 1), ValueError, "reserved: rate"),
        (lambda h: h.add_hparam("values", 1), ValueError, "reserved: values"),
        (lambda h: h.add_hparam("widths", []), ValueError, "cannot be empty: widths"),
    ],
)
def test_hyperparameters_refuse(change, error, text):
    with pytest.raises(error, match=text):
        change(training.HParams(rate=0.1, steps=3))


def test_hyperparameters_as_json_and_dict():
    hparams = training.HParams(rate=0.1, function=len)
    assert hparams.parse_json('{"rate": 1}').to_json() == '{"rate": 1.0}'
    assert hparams.override_from_dict({"rate": 2}).rate == 2.0 and "rate" in hparams and hparams.get("speed", 5) == 5
    hparams.del_hparam("rate")
    assert "rate" not in hparams and repr(hparams) == f"HParams(function={len!r})"


def test_slim_and_contrib_share_layers():
    assert slim.conv2d is layers.conv2d and slim.learning.clip_gradient_norms is training.clip_gradient_norms
