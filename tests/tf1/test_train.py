# SPDX-License-Identifier: Apache-2.0
"""Moving averages of `tf.train`, against what 1.15 wrote down."""

import numpy as np
import pytest
import tensorflow as tf

import evenkeel.tf1 as ek
from evenkeel.tf1.train import assign_moving_average, weighted_moving_average
from tf1 import goldens

v1 = tf.compat.v1

EMA = goldens.cases("ema")
AMA = goldens.cases("ama")
ERRORS = goldens.cases("error", "tf.train.ExponentialMovingAverage")


class Averaged:
    """`ExponentialMovingAverage` of a case, over its variables or tensors of them."""

    def __init__(self, case):
        self.case, self.arrays = case, goldens.arrays(case)
        kwargs = dict(case["kwargs"])
        self.num_updates = None
        if isinstance(kwargs.get("num_updates"), dict):
            start = tf.constant(0, case.get("num_updates_dtype", "float32"))
            self.num_updates = v1.get_variable("num_updates", initializer=start, trainable=False)
            kwargs["num_updates"] = self.num_updates
        with v1.variable_scope(case.get("scope") or v1.get_variable_scope(), use_resource=case.get("use_resource")):
            self.variables = [
                v1.get_variable(f"v{i}", initializer=tf.constant(self.arrays[f"v{i}_init"]))
                for i in range(len(case["shapes"]))
            ]
            self.targets = self.variables
            if case.get("target") == "tensor":
                self.targets = [tf.multiply(v, 2, f"t{i}") for i, v in enumerate(self.variables)]
            self.ema = ek.train.ExponentialMovingAverage(**kwargs)
            self.apply = self.ema.apply(None if case.get("default_varlist") else self.targets)

    def feed(self, step):
        """For the initializers of the variables, which are assignments."""
        return {v.initializer.inputs[1]: self.arrays[f"v{i}_{step}"] for i, v in enumerate(self.variables)}


def assert_state(case, arrays, step, session):
    """All variables after a step."""
    state = goldens.starting_with(f"state_{step}/", arrays)
    variables = {variable.op.name: variable for variable in v1.global_variables()}
    assert set(state) == set(variables)
    for name, value in session.run(variables).items():
        goldens.check(case, value, f"state_{step}/{name}")


@pytest.mark.parametrize("case", EMA, ids=goldens.name)
def test_exponential_averages_are_those_of_1_15(case, session):
    averaged = Averaged(case)
    session.run(v1.global_variables_initializer())
    assert_state(case, averaged.arrays, "init", session)
    for step in range(case["n_steps"]):
        session.run([variable.initializer for variable in averaged.variables], averaged.feed(step))
        session.run(averaged.apply)
        if averaged.num_updates is not None:
            session.run(v1.assign_add(averaged.num_updates, 1))
        assert_state(case, averaged.arrays, step, session)


@pytest.mark.parametrize("case", EMA, ids=goldens.name)
def test_exponential_averages_are_called_as_in_1_15(case, graph):
    averaged = Averaged(case)
    meta, ema = case["meta"], averaged.ema
    assert goldens.described(graph) == goldens.recorded(case)
    assert {item.op.name: ema.average(item).op.name for item in averaged.targets} == meta["average_names"]
    if "average_name_method" in meta:
        assert {v.op.name: ema.average_name(v) for v in averaged.variables} == meta["average_name_method"]
    assert {key: v.op.name for key, v in ema.variables_to_restore().items()} == meta["variables_to_restore"]
    assert [v.op.name for v in v1.moving_average_variables()] == meta["moving_average_variables"]


class Assigned:
    """`assign_moving_average` or `weighted_moving_average` of a case."""

    def __init__(self, case):
        self.case, self.arrays = case, goldens.arrays(case)
        self.feeds = {}
        value = goldens.decoded({"$feed": "value"}, self.arrays, self.feeds)
        value.set_shape(case["input_shape"])
        if case.get("weighted"):
            weight = goldens.decoded({"$feed": "weight"}, self.arrays, self.feeds)
            self.updates = {"out": weighted_moving_average(value, weight=weight, **case["kwargs"])}
            return
        start = self.arrays["state_init/v"]
        variable = v1.get_variable("v", initializer=tf.constant(start), trainable=False)
        names = ("out", "out_second") if case.get("twice") else ("out",)
        self.updates = {name: assign_moving_average(variable, value, **case["kwargs"]) for name in names}


@pytest.mark.parametrize("case", AMA, ids=goldens.name)
def test_assigned_averages_are_those_of_1_15(case, session):
    assigned = Assigned(case)
    session.run(v1.global_variables_initializer())
    assert_state(case, assigned.arrays, "init", session)
    for step in range(case["n_steps"]):
        for name, update in assigned.updates.items():
            got = session.run(update, goldens.fed(assigned.feeds, assigned.arrays, step))
            goldens.check(case, got, f"{name}_{step}")
        assert_state(case, assigned.arrays, step, session)


@pytest.mark.parametrize("case", AMA, ids=goldens.name)
def test_assigned_averages_are_called_as_in_1_15(case, graph):
    Assigned(case)
    assert goldens.described(graph) == goldens.recorded(case)


@pytest.mark.parametrize("case", ERRORS, ids=goldens.name)
def test_errors_are_those_of_1_15(case, session):
    goldens.check_error(case, ek, session)


def test_integers_have_no_average(graph):
    with pytest.raises(TypeError, match="v:0"):
        ek.train.ExponentialMovingAverage(0.9).apply([v1.get_variable("v", initializer=tf.constant(3))])


def variable(start=0.0, *, resource=False, dtype="float32"):
    start = tf.constant(start, dtype)
    return v1.get_variable("moving_mean", initializer=start, trainable=False, use_resource=resource)


@pytest.mark.parametrize(
    ("resource", "zero_debias", "name"),
    [
        (False, False, "bn/AssignMovingAvg"),
        (True, False, "bn/AssignMovingAvg/AssignSubVariableOp"),
        (False, True, "bn/AssignMovingAvg"),
        (True, True, "bn/AssignMovingAvg"),
    ],
)
def test_the_operation_has_its_name_of_1_15(resource, zero_debias, name, graph):
    with v1.variable_scope("bn"):
        update = assign_moving_average(variable(resource=resource), 1.0, 0.9, zero_debias)
    v1.add_to_collection(v1.GraphKeys.UPDATE_OPS, update)
    assert goldens.update_ops(graph) == [name]


def test_the_second_operation_has_a_number(graph):
    with v1.variable_scope("bn"):
        average = variable()
        updates = [assign_moving_average(average, 1.0, 0.9, zero_debias=False) for _ in range(2)]
    assert [update.op.name for update in updates] == ["bn/AssignMovingAvg", "bn/AssignMovingAvg_1"]


def test_names_of_debiasing_are_doubled(graph):
    with v1.variable_scope("net"), v1.variable_scope("bn"):
        assign_moving_average(variable(), 1.0, 0.9)
    names = [v.op.name for v in v1.global_variables()]
    assert names[1:] == ["net/bn/net/bn/moving_mean/biased", "net/bn/net/bn/moving_mean/local_step"]


@pytest.mark.parametrize("resource", [False, True], ids=["reference", "resource"])
def test_debiasing_forgets_where_the_variable_started(resource, session):
    average = variable(100.0, resource=resource)
    update = assign_moving_average(average, 3.0, 0.999)
    session.run(v1.global_variables_initializer())
    session.run(update)
    assert session.run(average) == pytest.approx(3.0, rel=1e-4)


def debiased_names():
    return [v.op.name for v in v1.global_variables() if not v.op.name.endswith("moving_mean")]


def test_reuse_takes_the_same_debiasing_variables(graph):
    average = variable()
    assign_moving_average(average, 1.0, 0.9)
    first = debiased_names()
    with v1.variable_scope(v1.get_variable_scope(), reuse=True):
        assign_moving_average(average, 1.0, 0.9)
    assert debiased_names() == first


def test_auto_reuse_shares_one_pair(graph):
    average = variable()
    with v1.variable_scope(v1.get_variable_scope(), reuse=v1.AUTO_REUSE):
        assign_moving_average(average, 1.0, 0.9)
        assign_moving_average(average, 1.0, 0.9)
    assert debiased_names() == ["moving_mean/biased", "moving_mean/local_step"]


def test_reuse_of_what_is_not_there_is_an_error(graph):
    average = variable()
    with (
        v1.variable_scope(v1.get_variable_scope(), reuse=True),
        pytest.raises(ValueError, match="moving_mean/biased does not exist"),
    ):
        assign_moving_average(average, 1.0, 0.9)


def test_one_minus_decay_is_a_float32(session):
    update = assign_moving_average(variable(dtype="float64"), tf.constant(1.0, "float64"), 0.9, zero_debias=False)
    session.run(v1.global_variables_initializer())
    assert session.run(update) == np.float64(np.float32(1.0 - 0.9)) != 1.0 - 0.9


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_decay_may_be_a_tensor(dtype, session):
    decay = v1.placeholder(dtype, [])
    update = assign_moving_average(variable(), 1.0, decay, zero_debias=False)
    session.run(v1.global_variables_initializer())
    assert session.run(update, {decay: 0.75}) == 0.25


@pytest.mark.parametrize("zero_debias", [False, True])
@pytest.mark.parametrize("control_flow", ["v1", "v2"])
def test_an_average_may_be_updated_in_a_branch(control_flow, zero_debias, session):
    if control_flow == "v2":
        v1.enable_control_flow_v2()  # the fixture leaves it so
    train = v1.placeholder("bool", [])
    average = variable(8.0, resource=control_flow == "v2")
    update = v1.cond(
        train,
        lambda: tf.identity(assign_moving_average(average, 4.0, 0.5, zero_debias)),
        lambda: tf.identity(average),
    )
    session.run(v1.global_variables_initializer())
    assert session.run(update, {train: False}) == 8.0
    assert session.run(update, {train: True}) == (4.0 if zero_debias else 6.0)


def test_weights_count(session):
    value, weight = v1.placeholder("float32", []), v1.placeholder("float32", [])
    average = weighted_moving_average(value, 0.5, weight)
    session.run(v1.global_variables_initializer())
    session.run(average, {value: 1.0, weight: 4.0})
    assert session.run(average, {value: 5.0, weight: 2.0}) == 3.0  # (1 * 4 / 4 + 5 * 2 / 2) / (4 / 4 + 2 / 2)


@pytest.mark.parametrize(("truediv", "dtype"), [(True, "float64"), (False, "int32")])
def test_integers_divide_as_told(truediv, dtype, session):
    average = weighted_moving_average(tf.constant(7), 0.0, tf.constant(2), truediv)
    session.run(v1.global_variables_initializer())
    assert average.dtype == dtype and session.run(average) == 7


def test_weighted_averages_go_where_they_are_told(graph):
    weighted_moving_average(tf.constant(1.0), 0.5, tf.constant(1.0), truediv=False, collections=["mine"])
    assert [v.op.name for v in v1.get_collection("mine")] == [
        "WeightedMovingAvg/value_x_weight",
        "WeightedMovingAvg/weight",
    ]
    assert not v1.global_variables()


def test_what_is_not_here_is_tensorflows():
    assert ek.train.GradientDescentOptimizer is v1.train.GradientDescentOptimizer
    with pytest.raises(AttributeError):
        _ = ek.train.no_such_function
