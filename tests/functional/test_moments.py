# SPDX-License-Identifier: Apache-2.0
import hypothesis.extra.numpy as arrays
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

import evenkeel as ek
from evenkeel.errors import ArgumentError, AxisError, UnknownTensorError, WeightShapeError

import hard_data
import oracle
import tolerances


def check(backend, result, mean, variance, count, dtype):
    """Within the derived bounds, channel by channel."""
    got_mean, got_variance = backend.numpy(result.mean), backend.numpy(result.variance)
    for channel, (m, v) in enumerate(zip(mean, variance, strict=True)):
        condition = tolerances.condition(m, v) if v > 0 else 1.0
        unit = tolerances.UNIT_ROUNDOFF[tolerances.WIDE[dtype]]
        smallest = np.finfo(tolerances.WIDE[dtype]).tiny
        error = tolerances.mean(dtype, count, condition) * np.sqrt(v)
        assert abs(got_mean[channel] - m) <= error + 8 * unit * abs(m) + smallest
        bound = tolerances.variance(dtype, count, condition) * v + (16 * unit * m) ** 2 * (v == 0)
        assert abs(got_variance[channel] - v) <= bound + smallest


@pytest.mark.parametrize("name", hard_data.FINITE)
def test_moments_of_hard_data(backend, name):
    x, axis = hard_data.FINITE[name]
    mean, variance, count = oracle.moments(x, axis)
    result = ek.moments(backend.array(x), axis=axis)
    assert result.count == count[0]
    check(backend, result, mean, variance, count[0], x.dtype.name)


@pytest.mark.parametrize("name", hard_data.FINITE)
def test_moments_are_float32_or_wider(backend, name):
    x, axis = hard_data.FINITE[name]
    result = ek.moments(backend.array(x), axis=axis)
    assert backend.numpy(result.mean).dtype == backend.numpy(result.variance).dtype == np.float32


@pytest.mark.parametrize("shape", [(6, 5, 3), (6, 1, 1), (6, 5, 1), (6, 5), (6,), (1, 5, 3), (1, 1, 3)])
@pytest.mark.parametrize("kind", ["mask", "sample_weight"])
def test_weights_of_any_shape(backend, kind, shape):
    rng = np.random.default_rng(1)
    x = rng.normal(3, 2, (6, 5, 3)).astype("float32")
    weights = (rng.random(shape) > 0.4) if kind == "mask" else rng.random(shape).astype("float32")
    full = weights.reshape([*shape, *[1] * (3 - len(shape))])
    mean, variance, total = oracle.moments(x, weights=full)
    result = ek.moments(backend.array(x), **{kind: backend.array(weights)})
    np.testing.assert_allclose(backend.numpy(result.mean), mean, rtol=1e-5)
    np.testing.assert_allclose(backend.numpy(result.variance), variance, rtol=1e-5, atol=1e-12)
    np.testing.assert_allclose(np.broadcast_to(backend.numpy(result.count), 3), total, rtol=1e-6)


def test_mask_without_the_channel_axis_in_the_middle(backend):
    x = np.random.default_rng(2).normal(size=(4, 3, 6)).astype("float32")
    mask = np.arange(6) < np.array([[1], [4], [6], [2]])
    mean, variance, _ = oracle.moments(x, axis=1, weights=mask[:, None, :])
    result = ek.moments(backend.array(x), axis=1, mask=backend.array(mask))
    np.testing.assert_allclose(backend.numpy(result.mean), mean, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(backend.numpy(result.variance), variance, rtol=1e-5)


def test_mask_and_sample_weight_multiply(backend):
    x = np.random.default_rng(3).normal(size=(6, 2)).astype("float32")
    mask, weight = np.array([1, 1, 0, 1, 0, 1], bool), np.arange(6, dtype="float32")
    mean, variance, _ = oracle.moments(x, weights=(mask * weight)[:, None])
    result = ek.moments(backend.array(x), mask=backend.array(mask), sample_weight=backend.array(weight))
    np.testing.assert_allclose(backend.numpy(result.mean), mean, rtol=1e-5)
    np.testing.assert_allclose(backend.numpy(result.variance), variance, rtol=1e-5)


@pytest.mark.parametrize("mask", [np.array([2, 0, 1]), np.array([0.5, 0.0, 7.0], "float32")], ids=["integer", "float"])
def test_a_mask_is_yes_or_no(backend, mask):
    x = np.array([[1.0], [50.0], [3.0]], "float32")
    result = ek.moments(backend.array(x), mask=backend.array(mask))
    assert backend.numpy(result.mean)[0] == 2 and backend.numpy(result.variance)[0] == 1


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_masked_values_may_be_anything(backend, value):
    x = np.array([[1.0], [value], [3.0]], "float32")
    result = ek.moments(backend.array(x), mask=backend.array(np.array([True, False, True])))
    assert backend.numpy(result.mean)[0] == 2 and backend.numpy(result.variance)[0] == 1


@pytest.mark.parametrize("name", ["empty batch", "all masked"])
def test_moments_of_nothing_are_zero(backend, name):
    x, mask = hard_data.USELESS[name]
    result = ek.moments(backend.array(x), mask=None if mask is None else backend.array(mask))
    assert [float(np.max(backend.numpy(item))) for item in result] == [0, 0, 0]


def test_several_axes_keep_the_rank(backend):
    x = np.random.default_rng(4).normal(size=(6, 2, 3, 4)).astype("float32")
    result = ek.moments(backend.array(x), axis=[1, 2])
    np.testing.assert_allclose(backend.numpy(result.variance), x.var((0, 3), keepdims=True), rtol=1e-5)


matrices = arrays.arrays(
    "float64",
    st.tuples(st.integers(2, 12), st.integers(1, 4)),
    elements=st.floats(-1e3, 1e3, allow_subnormal=False).map(lambda v: round(v, 3)),
)


@given(x=matrices, cut=st.integers(0, 12))
def test_merging_parts_gives_the_whole(x, cut):
    merged = ek.merge_moments(ek.moments(x[:cut]), ek.moments(x[cut:]))
    whole = ek.moments(x)
    np.testing.assert_allclose(merged.mean, whole.mean, atol=1e-10)
    np.testing.assert_allclose(merged.variance, whole.variance, atol=1e-7)
    assert merged.count == whole.count


@given(x=matrices, cuts=st.lists(st.integers(0, 12), max_size=4))
def test_any_number_of_parts_in_any_order(x, cuts):
    parts = [ek.moments(part) for part in np.split(x, sorted(min(cut, len(x)) for cut in cuts))]
    forward, backward = ek.merge_moments(*parts), ek.merge_moments(*parts[::-1])
    np.testing.assert_allclose(forward.mean, backward.mean, atol=1e-10)
    np.testing.assert_allclose(forward.variance, backward.variance, atol=1e-7)


@given(x=matrices)
def test_weight_two_repeats(x):
    weight = np.arange(len(x)) % 3.0
    repeated = ek.moments(np.repeat(x, weight.astype(int), axis=0))
    weighted = ek.moments(x, sample_weight=weight)
    np.testing.assert_allclose(weighted.mean, repeated.mean, atol=1e-9)
    np.testing.assert_allclose(weighted.variance, repeated.variance, atol=1e-7)
    assert weighted.count == repeated.count


@given(x=matrices, shift=st.floats(-100, 100), scale=st.floats(0.1, 10))
def test_shift_and_scale(x, shift, scale):
    plain, changed = ek.moments(x), ek.moments(x * scale + shift)
    np.testing.assert_allclose(changed.mean, plain.mean * scale + shift, atol=1e-8)
    np.testing.assert_allclose(changed.variance, plain.variance * scale**2, atol=1e-5, rtol=1e-9)


@given(x=matrices, seed=st.integers(0, 100))
def test_the_order_of_the_batch_does_not_matter(x, seed):
    shuffled = np.random.default_rng(seed).permutation(x)
    np.testing.assert_allclose(ek.moments(shuffled).variance, ek.moments(x).variance, atol=1e-9)


def test_merging_in_float32_far_from_zero(backend):
    x = np.random.default_rng(5).normal(1e4, 1, (4096, 2)).astype("float32")
    parts = [ek.moments(backend.array(part)) for part in np.split(x, [100, 101, 101, 3000])]
    mean, variance, count = oracle.moments(x)
    check(backend, ek.merge_moments(*parts), mean, variance, count[0], "float32")


def test_a_part_without_values_may_hold_nan(backend):
    part = ek.moments(backend.array(np.array([[1.0], [3.0]], "float32")))
    nothing = ek.Moments(part.mean * float("nan"), part.variance * float("nan"), 0)
    assert backend.numpy(ek.merge_moments(nothing, part, nothing).variance)[0] == 1


@pytest.mark.parametrize("compiler", ["graph", "xla", "jit", "compile"])
def test_compiled_moments_far_from_zero(backend, compiler):
    if compiler not in backend.compilers:
        pytest.skip(f"{backend.name} has no {compiler}")
    x, axis = hard_data.FINITE["far from zero"]
    compiled = backend.compile(lambda x: ek.moments(x, axis=axis)[:2], compiler)
    mean, variance, count = oracle.moments(x, axis)
    check(backend, ek.Moments(*compiled(backend.array(x)), count[0]), mean, variance, count[0], "float32")


def test_shape_that_does_not_fit(backend):
    x = backend.array(np.zeros((6, 5, 3), "float32"))
    with pytest.raises(WeightShapeError, match=r"mask has shape \(4, 2\).*\(6, 5, 3\)"):
        ek.moments(x, mask=backend.array(np.ones((4, 2), bool)))


def test_axis_out_of_range(backend):
    with pytest.raises(AxisError, match="axis=3 is out of range for an input of 3 dimensions"):
        ek.moments(backend.array(np.zeros((6, 5, 3), "float32")), axis=3)


def test_no_parts():
    with pytest.raises(ArgumentError, match="no parts"):
        ek.merge_moments()


@pytest.mark.parametrize("value", [{"a": 1}, "text", np.array([1j])], ids=["dict", "string", "complex"])
def test_what_is_no_tensor_of_numbers(value):
    with pytest.raises(UnknownTensorError, match="arrived"):
        ek.moments(value)


def merged_by_messages(backend, parts, dtype):
    """`merge_across` in as many threads as there are parts; who sends waits for all."""
    from concurrent.futures import ThreadPoolExecutor
    from threading import Barrier

    from evenkeel.functional.moments import merge_across

    barrier, messages = Barrier(len(parts)), {}

    def merged(place):
        def all_reduce(message):
            messages[place] = backend.numpy(message)
            barrier.wait()
            total = sum(messages.values())
            barrier.wait()
            return backend.array(total)

        values = (parts[place].mean(0), parts[place].var(0))
        with backend.double():
            mean, variance = (backend.array(value.astype(dtype)) for value in values)
            count = backend.array(np.asarray(len(parts[place]), dtype))
            return [backend.numpy(value) for value in merge_across(all_reduce, mean, variance, count, count)]

    with ThreadPoolExecutor(len(parts)) as threads:
        return list(threads.map(merged, range(len(parts))))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("sizes", [(6, 6), (2, 10), (1, 4, 7)])
def test_what_replicas_merge_is_that_of_all_data(backend, sizes, dtype):
    x = np.random.default_rng(0).normal([300, 2, 1e4], [0.1, 1, 3], (12, 3))
    for mean, variance, count, _ in merged_by_messages(backend, np.split(x, np.cumsum(sizes)[:-1]), dtype):
        assert count == 12 and variance.dtype == dtype
        for channel in range(3):
            condition = tolerances.condition(x[:, channel].mean(), x[:, channel].var())
            error = tolerances.mean(dtype, 12, condition) * x[:, channel].std()
            np.testing.assert_allclose(mean[channel], x[:, channel].mean(), rtol=0, atol=error)
            # Each mean was rounded before it was sent, and the distances between them are as wrong.
            bound = tolerances.variance(dtype, 12, condition) + 8 * tolerances.UNIT_ROUNDOFF[dtype] * condition
            np.testing.assert_allclose(variance[channel], x[:, channel].var(), rtol=bound)


def test_virtual_batches_are_not_synchronized(backend):
    x, state = backend.array(np.ones((4, 2), "float32")), ek.State(*map(backend.array, np.zeros((2, 2), "float32")))
    with pytest.raises(ArgumentError, match=r"virtual_batch_size=2 .* leave one of them out"):
        ek.batch_norm(x, ek.Parameters(), state, training=True, synchronized=True, virtual_batch_size=2)
