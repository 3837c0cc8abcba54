# SPDX-License-Identifier: Apache-2.0
"""`tf.nn`, against what 1.15 wrote down."""

import numpy as np
import pytest
import tensorflow as tf

import evenkeel.tf1 as ek
from evenkeel.tf1 import nn
from tf1 import goldens

v1 = tf.compat.v1

CASES = goldens.cases("function")
INPUTS = ("x", "mean", "variance", "offset", "scale", "weights")
GLOBAL = "tf.nn.batch_norm_with_global_normalization"
OUTPUTS = {
    "tf.nn.moments": ("mean", "variance"),
    "tf.nn.weighted_moments": ("mean", "variance"),
    "tf.nn.fused_batch_norm": ("y", "batch_mean", "batch_variance"),
    "tf.nn.batch_normalization": ("y",),
    GLOBAL: ("y",),
}


class Called:
    """The function of a case, called once on placeholders."""

    def __init__(self, case):
        self.case, self.arrays, self.feed = case, goldens.arrays(case), {}
        self.inputs = {name: self.placeholder(name) for name in INPUTS if name in self.arrays}
        names = OUTPUTS[case["api"]]
        results = self.call(**goldens.decoded(case["kwargs"], self.arrays, {}))
        self.outputs = dict(zip(names, results if len(names) > 1 else [results], strict=True))
        upstream = {name: "dy" if name == "y" else f"d_{name}" for name in names}
        self.upstream = {name: self.placeholder(d) for name, d in upstream.items() if d in self.arrays}

    def placeholder(self, name):
        array = self.arrays[name]
        dtype = self.case["weight_dtype"] if name == "weights" else array.dtype.name
        # Stored as float32. The fused operation takes parameters of float32 only.
        if self.case["dtype"] == "bfloat16" and (name in ("x", "dy") or "fused" not in self.case["api"]):
            dtype = "bfloat16"
        placeholder = v1.placeholder(dtype, array.shape, name)
        self.feed[placeholder] = array
        return placeholder

    def call(self, **kwargs):
        given, api = dict(self.inputs), self.case["api"]
        if api == "tf.nn.weighted_moments":
            given["frequency_weights"] = given.pop("weights")
        if api == "tf.nn.batch_normalization":
            given = {"offset": None, "scale": None, **given}
        if api == GLOBAL:
            given["beta"], given["gamma"] = given.pop("offset"), given.pop("scale")
            aliased = self.case["arg_style"] == "input_mean_variance"
            names = {"x": "input"} if aliased else {"x": "t", "mean": "m", "variance": "v"}
            given = {names.get(name, name): value for name, value in given.items()}
        return getattr(nn, api.removeprefix("tf.nn."))(**given, **kwargs)

    def gradients(self):
        """Name of the recorded array -> gradient, None where there is none."""
        ys = [self.outputs[name] for name in self.upstream]
        gradients = tf.gradients(ys, [*self.inputs.values()], [*self.upstream.values()])
        named = dict(zip((f"d{name}" for name in self.inputs), gradients, strict=True))
        if "dx_from_mean" in self.arrays:
            for name, dy in self.upstream.items():
                named[f"dx_from_{name}"] = tf.gradients(self.outputs[name], self.inputs["x"], dy)[0]
        return named


@pytest.mark.parametrize("case", CASES, ids=goldens.name)
def test_numbers_are_those_of_1_15(case, session):
    called = Called(case)
    outputs = {f"out_{name}": output for name, output in called.outputs.items() if f"out_{name}" in called.arrays}
    gradients = {name: value for name, value in called.gradients().items() if value is not None}
    for name, value in session.run({**outputs, **gradients}, called.feed).items():
        goldens.check(case, value, name)


@pytest.mark.parametrize("case", CASES, ids=goldens.name)
def test_gradients_are_there_where_1_15_had_them(case, graph):
    gradients = Called(case).gradients()
    missing = sorted(name[1:] for name, value in gradients.items() if value is None)
    assert missing == case["meta"]["none_gradients"]
    assert {name for name in gradients if name[1:] not in missing} == {
        name for name in case["arrays"] if name.startswith("d") and name != "dy" and not name.startswith("d_")
    }


@pytest.mark.parametrize("case", CASES, ids=goldens.name)
def test_types_and_shapes_are_those_of_1_15(case, graph):
    outputs = Called(case).outputs
    meta = case["meta"]
    names = list(meta["output_dtypes"])
    assert {name: outputs[name].dtype.name for name in names} == meta["output_dtypes"]
    # A null is a size that 1.15 was not told.
    for name in names:
        known = meta["output_static_shapes"][name]
        found = outputs[name].shape.as_list()
        assert len(found) == len(known) and all(size in (None, ours) for size, ours in zip(known, found, strict=True))


ERRORS = [case for case in goldens.cases("error") if case["api"] in OUTPUTS]


@pytest.mark.parametrize("case", ERRORS, ids=goldens.name)
def test_errors_are_those_of_1_15(case, session):
    goldens.check_error(case, ek, session)


def test_an_error_says_what_1_15_said(graph):
    x = v1.placeholder("float32", [None, 4, 4, 3])
    with pytest.raises(ValueError, match="Both 'mean' and 'variance' must be None if is_training is True"):
        nn.fused_batch_norm(x, tf.ones([3]), tf.zeros([3]), variance=tf.ones([3]))


@pytest.mark.parametrize(
    "function", [nn.moments, lambda x, *rest, **options: nn.weighted_moments(x, *rest, 1.0, **options)]
)
def test_both_spellings_of_keepdims_are_refused(function, graph):
    with pytest.raises(ValueError, match="keepdims"):
        function(tf.ones([2, 2]), [0], keep_dims=True, keepdims=True)


@pytest.mark.parametrize("axes", [[0, -1], 1, [], [-2]], ids=str)
def test_weights_of_one_change_nothing(axes, session):
    x = tf.constant(np.random.default_rng(0).normal(size=(4, 3)))
    plain, weighted = session.run([nn.moments(x, axes), nn.weighted_moments(x, axes, tf.ones([4, 1]))])
    np.testing.assert_allclose(plain[0], weighted[0])
    np.testing.assert_allclose(plain[1], weighted[1], atol=1e-15)


def test_weights_in_integers_repeat(session):
    mean, variance = session.run(nn.weighted_moments(tf.constant([1.0, 4.0]), [0], tf.constant([2, 1])))
    assert (mean, variance) == (2.0, 2.0)


def test_weighted_float16_is_summed_in_float32(session):
    x = tf.constant([[200.0]] * 2000, "float16")
    mean, _ = session.run(nn.weighted_moments(x, [0], 1.0))
    assert mean == 200.0 and mean.dtype == np.float16


def test_inference_hands_back_the_statistics_it_was_given(session):
    x = tf.ones([2, 3, 3, 2])
    statistics = tf.constant([1.0, 2.0]), tf.constant([3.0, 4.0])
    _, mean, variance = session.run(nn.fused_batch_norm(x, [1.0, 1.0], [0.0, 0.0], *statistics, is_training=False))
    assert mean.tolist() == [1.0, 2.0] and variance.tolist() == [3.0, 4.0]


def both_layouts(x, last, first, *, training):
    """Outputs and gradients of the operation, channels last and channels first; the latter brought to the former."""
    rank = len(x.shape)
    to_first, to_last = [0, rank - 1, *range(1, rank - 1)], [0, *range(2, rank), 1]
    x, scale, offset = tf.constant(x), tf.constant([1.0, 2.0]), tf.constant([0.5, -0.5])
    rest = {} if training else {"mean": tf.constant([1.0, 2.0]), "variance": tf.constant([3.0, 4.0])}

    def run(x, layout):
        results = nn.fused_batch_norm(x, scale, offset, data_format=layout, is_training=training, **rest)
        return results, tf.gradients(tf.sin(results[0]), [x, scale, offset])

    (y, *statistics), (dx, *gradients) = run(tf.transpose(x, to_first), first)
    y, dx = (tf.transpose(value, to_last) for value in (y, dx))
    return run(x, last), ((y, *statistics), [dx, *gradients])


@pytest.mark.parametrize("training", [True, False], ids=["training", "inference"])
@pytest.mark.parametrize(
    ("shape", "last", "first"), [((4, 5, 3, 2), "NHWC", "NCHW"), ((2, 3, 4, 3, 2), "NDHWC", "NCDHW")], ids=["4", "5"]
)
def test_channels_first_are_channels_last_transposed(shape, last, first, training, session):
    x = np.random.default_rng(0).normal(size=shape).astype("float32")
    expected, got = session.run(both_layouts(x, last, first, training=training))
    for one, other in zip(tf.nest.flatten(expected), tf.nest.flatten(got), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


# What 1.15 did and TensorFlow's own functions must go on doing.


def test_moments_of_integers_are_integers(session):
    assert session.run(nn.moments(tf.constant([1, 2, 4, 5]), [0])) == (3, 2)


def test_moments_of_nothing_are_nan(session):
    assert np.isnan(session.run(nn.moments(tf.zeros([0]), [0]))).all()


def test_float16_variance_may_overflow(session):
    mean, variance = session.run(nn.moments(tf.constant([300.0, -300.0], "float16"), [0]))
    assert mean == 0.0 and variance == np.inf and variance.dtype == np.float16


@pytest.mark.parametrize(("axes", "count"), [([0], 3.0), ([0, 0], 3.0), ([0, -2], 9.0)], ids=str)
def test_an_axis_named_in_two_ways_counts_twice(axes, count, session):
    assert session.run(nn.sufficient_statistics(tf.ones([3, 2]), axes)[0]) == count


def test_shifted_statistics_give_the_moments(session):
    x = np.random.default_rng(0).normal(100.0, 2.0, (50, 3))
    statistics = nn.sufficient_statistics(tf.constant(x), [0], shift=tf.constant(100.0, "float64"))
    mean, variance = session.run(nn.normalize_moments(*statistics))
    np.testing.assert_allclose(mean, x.mean(0))
    np.testing.assert_allclose(variance, x.var(0))


def test_the_variance_of_statistics_is_not_clamped(session):
    statistics = nn.sufficient_statistics(tf.constant([10000.1] * 5), [0])
    assert session.run(nn.normalize_moments(*statistics)[1]) < 0.0


def test_a_global_normalization_of_nothing_is_a_type_error(graph):
    with pytest.raises(TypeError):
        nn.batch_norm_with_global_normalization()


def test_an_argument_has_one_name_at_a_time(graph):
    ones = tf.ones([3])
    with pytest.raises(ValueError, match="'t'"):
        nn.batch_norm_with_global_normalization(ones, ones, ones, ones, ones, 1e-3, True, input=ones)


def test_mean_and_variance_share_a_type(graph):
    with pytest.raises(TypeError):
        nn.batch_normalization(tf.ones([2, 3]), tf.ones([3], "float16"), tf.ones([3]), None, None, 1e-3)


def test_what_is_not_here_is_tensorflows():
    assert ek.nn.batch_normalization is v1.nn.batch_normalization
    assert {"moments", "relu", "weighted_moments"} <= set(dir(nn))
    with pytest.raises(AttributeError):
        _ = nn.no_such_function
