# SPDX-License-Identifier: Apache-2.0
"""`tf.contrib.framework`: whose argument wins, which variables are found, what a checkpoint gives back."""

import functools
import importlib

import numpy as np
import pytest
import tensorflow

from evenkeel.tf1.contrib import framework

v1 = tensorflow.compat.v1


@framework.add_arg_scope
def called(first, second=2, third=3):
    return first, second, third


@framework.add_arg_scope
def other(first=1, second=2):
    return first, second


def undecorated(first=1):
    return first


# arg_scope


def test_a_scope_gives_defaults():
    with framework.arg_scope([called, other], second=20):
        assert (called(1), other()) == ((1, 20, 3), (1, 20))


def test_the_innermost_scope_wins_and_the_rest_of_the_outer_one_stays():
    with framework.arg_scope([called], second=20, third=30), framework.arg_scope([called], second=200):
        assert called(1) == (1, 200, 30)


def test_the_call_wins_over_all_scopes():
    with framework.arg_scope([called], second=20):
        assert called(1, second=5) == (1, 5, 3)


def test_a_scope_ends_with_its_block():
    with framework.arg_scope([called], second=20):
        pass
    assert called(1) == (1, 2, 3)


def test_a_scope_ends_with_an_exception():
    with pytest.raises(KeyError), framework.arg_scope([called], second=20):
        raise KeyError
    assert called(1) == (1, 2, 3)


def test_a_scope_can_be_entered_again():
    with framework.arg_scope([called], second=20) as scope:
        pass
    with framework.arg_scope([called], third=30), framework.arg_scope(scope):
        assert called(1) == (1, 20, 3)


def test_what_a_scope_yields_is_not_changed_by_inner_ones():
    with framework.arg_scope([called], second=20) as scope, framework.arg_scope([called], second=200):
        pass
    with framework.arg_scope(scope):
        assert called(1) == (1, 20, 3)


def test_a_positional_argument_that_a_scope_gives_too_is_an_error():
    with framework.arg_scope([called], second=20), pytest.raises(TypeError, match="second"):
        called(1, 2)


def test_an_unknown_argument_is_an_error_at_the_call():
    with framework.arg_scope([called], fourth=4), pytest.raises(TypeError, match="fourth"):
        called(1)


@pytest.mark.parametrize(
    ("argument", "options", "error", "text"),
    [
        (called, {"second": 2}, TypeError, "got function"),
        ([undecorated], {"first": 2}, ValueError, "undecorated is not decorated"),
        ([functools.partial(called, 1)], {"second": 2}, ValueError, "not decorated"),
        ({}, {"second": 2}, ValueError, "got second"),
    ],
    ids=["no list", "undecorated", "partial", "dict and arguments"],
)
def test_what_a_scope_cannot_be(argument, options, error, text):
    with pytest.raises(error, match=text), framework.arg_scope(argument, **options):
        pass


def test_a_refused_scope_leaves_no_trace():
    before = framework.current_arg_scope()
    with pytest.raises(ValueError, match="undecorated"), framework.arg_scope([called, undecorated], second=20):
        pass
    assert framework.current_arg_scope() is before


def test_decorated_functions_are_known():
    assert framework.has_arg_scope(called) and not framework.has_arg_scope(undecorated)
    assert framework.arg_scoped_arguments(called) == ("second", "third")
    assert called.__name__ == "called"


def test_asking_for_the_arguments_of_another_function_is_an_error():
    with pytest.raises(AssertionError, match="undecorated"):
        framework.arg_scoped_arguments(undecorated)


# Variables


def names(variables):
    return [variable.op.name for variable in variables]


def collections(graph, variable):
    return sorted(
        key for key in graph.get_all_collection_keys() if any(variable is other for other in v1.get_collection(key))
    )


def test_a_variable_is_in_the_collections_it_was_given_and_once(graph):
    made = framework.variable("v", [2], collections=["a", "a", "b"], trainable=False)
    assert collections(graph, made) == ["a", "b"] and len(v1.get_collection("a")) == 1


def test_a_model_variable_is_global_and_the_models(graph):
    made = framework.model_variable("v", [2], collections=["mine", "model_variables"])
    assert collections(graph, made) == ["mine", "model_variables", "trainable_variables", "variables"]
    assert len(framework.get_model_variables()) == 1 and made.dtype.base_dtype == tensorflow.float32


def test_variables_take_arguments_from_a_scope(graph):
    with framework.arg_scope([framework.variable], device="/cpu:1"):
        assert framework.model_variable("v", [2], device=None).device == ""
        assert framework.variable("w", [2]).device.lower().endswith("cpu:1")


def test_the_custom_getter_is_told_whether_to_reuse(graph):
    told = []

    def getter(name, reuse, **options):
        told.append((name, reuse, options["shape"]))
        return v1.get_variable(name, options["shape"])

    with v1.variable_scope("s", reuse=v1.AUTO_REUSE):
        assert framework.model_variable("v", [2], custom_getter=getter).op.name == "s/v"
    assert told == [("v", v1.AUTO_REUSE, [2])]


def test_local_and_global_variables(graph, session):
    local, of_all = framework.local_variable(1, name="local"), framework.global_variable(2, name="global")
    assert collections(graph, local) == ["local_variables"] and collections(graph, of_all) == ["variables"]


@pytest.fixture
def several(graph):
    """conv1/weights, conv1/biases, conv10/weights and weights; the first is the model's, the last a local one."""
    framework.model_variable("conv1/weights", [2, 3])
    framework.variable("conv1/biases", [3], trainable=False)
    framework.variable("conv10/weights", [2, 3])
    framework.variable("weights", [1])
    return framework.local_variable(0.0, name="weights_local")


@pytest.mark.parametrize(
    ("find", "found"),
    [
        (lambda f: f.get_variables(), ["conv1/weights", "conv1/biases", "conv10/weights", "weights"]),
        (lambda f: f.get_variables("conv1/"), ["conv1/weights", "conv1/biases"]),
        (lambda f: f.get_variables("conv1"), ["conv1/weights", "conv1/biases", "conv10/weights"]),
        (lambda f: f.get_variables("conv1/", "weights"), ["conv1/weights"]),
        (lambda f: f.get_variables_by_suffix("biases"), ["conv1/biases"]),
        (lambda f: f.get_variables_by_name("weights"), ["conv1/weights", "conv10/weights", "weights"]),
        (lambda f: f.get_variables_by_name("weights", "conv10"), ["conv10/weights", "weights"]),
        (lambda f: f.get_model_variables(), ["conv1/weights"]),
        (lambda f: f.get_local_variables(), ["weights_local"]),
        (lambda f: f.get_trainable_variables("conv1/"), ["conv1/weights"]),
        (lambda f: [f.get_unique_variable("conv1/weights")], ["conv1/weights"]),
        (lambda f: f.get_variables_to_restore(["conv1/"], ["conv1/biases"]), ["conv1/weights"]),
        (lambda f: f.get_variables_to_restore(exclude=("conv",)), ["weights"]),
        (lambda f: f.filter_variables(v1.global_variables(), ["biases"]), ["conv1/biases"]),
        (lambda f: f.filter_variables(v1.global_variables(), ["weights"], reg_search=False), ["weights"]),
        (lambda f: f.filter_variables(v1.global_variables(), None, ["conv1/"]), ["conv10/weights", "weights"]),
        (lambda f: f.filter_variables(v1.global_variables(), []), []),
    ],
)
def test_which_variables_are_found(several, find, found):
    assert names(find(framework)) == found


def test_a_variable_scope_is_a_scope(several):
    with v1.variable_scope("conv10") as scope:
        assert names(framework.get_variables(scope)) == ["conv10/weights"]


@pytest.mark.parametrize(("name", "text"), [("nothing", "Couldn't find variable nothing"), ("conv1", "conv10/weights")])
def test_a_name_that_is_not_a_variables(several, name, text):
    with pytest.raises(ValueError, match=text):
        framework.get_unique_variable(name)


@pytest.mark.parametrize("name", ["include", "exclude"])
def test_scopes_to_restore_come_in_a_list(several, name):
    with pytest.raises(TypeError, match=rf"{name} .* got 'conv1'"):
        framework.get_variables_to_restore(**{name: "conv1"})


def test_the_global_step(graph):
    step = framework.get_or_create_global_step()
    assert framework.get_or_create_global_step() is step and framework.get_global_step() is step
    assert step.dtype.base_dtype == tensorflow.int64 and collections(graph, step) == ["global_step", "variables"]


def test_the_name_scope(graph):
    with v1.name_scope("a"), v1.name_scope("b"):
        assert framework.get_name_scope() == "a/b"


# Values from elsewhere


@pytest.fixture
def checkpoint(graph, session, tmp_path):
    """A checkpoint of `v`, of shape (2, 3), and `w`; another graph then is the default."""
    with graph.as_default():
        framework.variable("v", initializer=np.arange(6.0, dtype="float32").reshape(2, 3))
        framework.variable("w", initializer=np.float32(7.0))
        session.run(v1.global_variables_initializer())
        path = v1.train.Saver().save(session, str(tmp_path / "model"))
    with tensorflow.Graph().as_default():
        yield path


def value_after(assign, feed, variable):
    with v1.Session() as session:
        session.run(v1.global_variables_initializer())
        session.run(assign, feed)
        return session.run(variable)


def test_values_by_name(graph, session):
    variable = framework.variable("v", [2, 2])
    framework.variable("v_2", [2])
    framework.assign_from_values_fn({"v": np.arange(4.0)})(session)
    assert session.run(variable).tolist() == [[0, 1], [2, 3]]


def test_values_of_an_unknown_name(graph):
    with pytest.raises(ValueError, match="nothing"):
        framework.assign_from_values({"nothing": np.zeros(1)})


def test_a_checkpoint_gives_variables_their_values(checkpoint):
    variable = framework.variable("v", [2, 3])
    assert value_after(*framework.assign_from_checkpoint(checkpoint, [variable]), variable).tolist()[1] == [3, 4, 5]


def test_a_checkpoint_gives_values_under_another_name(checkpoint):
    variable = framework.variable("new", [2, 3])
    both = {"v": [variable, framework.variable("newer", [2, 3])]}
    assert value_after(*framework.assign_from_checkpoint(checkpoint, both), variable).sum() == 15


def test_a_partitioned_variable_gets_its_parts(checkpoint):
    parts = framework.variable("v", [2, 3], partitioner=v1.fixed_size_partitioner(2))
    assign, feed = framework.assign_from_checkpoint(checkpoint, list(parts))
    assert [framework.get_variable_full_name(part) for part in parts] == ["v", "v"]
    assert value_after(assign, feed, parts.as_tensor()).tolist() == [[0, 1, 2], [3, 4, 5]]


def test_a_checkpoint_that_lacks_a_variable(checkpoint):
    with pytest.raises(ValueError, match=r"Checkpoint is missing variable \[u\]"):
        framework.assign_from_checkpoint(checkpoint, [framework.variable("u", [1])])


def test_missing_variables_may_be_left_out(checkpoint):
    missing = framework.variable("u", [1])
    _, feed = framework.assign_from_checkpoint(checkpoint, [missing, framework.variable("w", [])], True)
    assert list(feed.values()) == [7.0]


def test_a_checkpoint_with_another_shape(checkpoint):
    with pytest.raises(ValueError, match=r"\(2, 3\)"):
        framework.assign_from_checkpoint(checkpoint, [framework.variable("v", [3, 2])])


def test_a_function_restores(checkpoint):
    variable = framework.variable("v", [2, 3])
    restore = framework.assign_from_checkpoint_fn(checkpoint, [variable, framework.variable("u", [1])], True)
    with v1.Session() as session:
        restore(session)
        assert session.run(variable).sum() == 15


def test_a_function_may_reshape(checkpoint):
    variable = framework.variable("v", [3, 2])
    restore = framework.assign_from_checkpoint_fn(checkpoint, [variable], reshape_variables=True)
    with v1.Session() as session:
        restore(session)
        assert session.run(variable).tolist() == [[0, 1], [2, 3], [4, 5]]


def test_a_function_for_nothing_is_none(checkpoint):
    assert framework.assign_from_checkpoint_fn(checkpoint, [framework.variable("u", [1])], True) is None


def test_a_function_of_no_variables(checkpoint):
    with pytest.raises(ValueError, match="var_list cannot be empty"):
        framework.assign_from_checkpoint_fn(checkpoint, [])


def test_what_a_checkpoint_holds(checkpoint):
    assert framework.list_variables(checkpoint) == [("v", [2, 3]), ("w", [])]
    assert framework.load_variable(checkpoint, "w") == 7.0


def test_initial_values_from_a_checkpoint(checkpoint):
    variable = framework.variable("new/v", [2, 3])
    framework.init_from_checkpoint(checkpoint, {"v": "new/v"})
    with v1.Session() as session:
        session.run(v1.global_variables_initializer())
        assert session.run(variable).sum() == 15


# Paths and names


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("framework.python.ops", "add_arg_scope"),
        ("framework.python.ops.arg_scope", "arg_scope"),
        ("framework.python.ops.variables", "model_variable"),
        ("framework.python.framework.tensor_util", "list_variables"),
        ("layers.python.layers", "utils"),
        ("layers.python.layers.initializers", "xavier_initializer"),
        ("layers.python.layers.layers", "conv2d"),
        ("layers.python.layers.regularizers", "l2_regularizer"),
        ("layers.python.layers.utils", "collect_named_outputs"),
        ("losses.python.losses.loss_ops", "log_loss"),
        ("metrics.python.ops.metric_ops", "streaming_accuracy"),
        ("opt.python.training.moving_average_optimizer", "MovingAverageOptimizer"),
        ("slim.python.slim", "conv2d"),
        ("slim.python.slim.learning", "create_train_op"),
        ("training.python.training.hparam", "HParams"),
    ],
)
def test_long_paths_lead_to_the_same(path, name):
    short = importlib.import_module("evenkeel.tf1.contrib." + path.split(".")[0])
    module = importlib.import_module("evenkeel.tf1.contrib." + path)
    short = short.learning if path.endswith("learning") else short.utils if path.endswith("utils") else short
    assert getattr(module, name) is getattr(short, name)


def test_a_function_wins_over_the_module_of_its_name():
    from evenkeel.tf1.contrib.framework.python.ops import arg_scope, variables

    assert arg_scope is framework.arg_scope and variables.model_variable is framework.model_variable


@pytest.mark.parametrize(
    ("module", "name", "text"),
    [
        ("", "rnn", "'rnn'; use tf.nn.dynamic_rnn"),
        ("", "nonsense", "no attribute 'nonsense'$"),
        (".slim", "nets", "'nets'; use"),
        (".layers.python", "nonsense", "nonsense"),
    ],
)
def test_what_is_not_there(module, name, text):
    with pytest.raises(AttributeError, match=text):
        getattr(importlib.import_module(f"evenkeel.tf1.contrib{module}"), name)


@pytest.mark.parametrize("name", ["framework", "layers", "losses", "metrics", "opt", "slim", "training"])
def test_public_names_are_sorted_and_there(name):
    module = importlib.import_module(f"evenkeel.tf1.contrib.{name}")
    assert set(module.__all__) <= set(dir(module))
    assert name == "slim" or module.__all__ == sorted(module.__all__)
