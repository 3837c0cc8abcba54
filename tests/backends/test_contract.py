# SPDX-License-Identifier: Apache-2.0
"""Every array library offers the same primitives, and they mean the same."""

import ml_dtypes  # noqa: F401  (with it, NumPy knows the name "bfloat16")
import numpy as np
import pytest

from evenkeel import backends
from evenkeel.backends.contract import PRIMITIVES
from evenkeel.errors import UnknownTensorError


@pytest.fixture
def primitives(backend):
    return backends.primitives(backend.name)


@pytest.mark.parametrize("name", PRIMITIVES)
def test_every_primitive_is_there(primitives, name):
    assert hasattr(primitives, name)


def test_a_tensor_knows_its_library(backend, primitives):
    assert backends.of(backend.array(np.zeros(2, "float32"))) is primitives


@pytest.mark.parametrize("value", [[1.0], (1.0, 2.0), 1.0, np.float32(1)])
def test_plain_numbers_are_numpys(value):
    assert backends.of(value).NAME == "numpy"


def test_a_stranger_is_refused():
    with pytest.raises(UnknownTensorError, match=r"builtins\.dict arrived"):
        backends.of({})


@pytest.mark.parametrize("name", ["float16", "bfloat16", "float32", "int32", "bool"])
def test_names_of_types(backend, primitives, name):
    x = primitives.cast(backend.array(np.ones(2, "float32")), name)
    assert primitives.dtype(x) == name


UNARY = {
    "expm1": (np.expm1, [-1e-6, 0.0, -20.0]),
    "is_finite": (np.isfinite, [1.0, np.inf, np.nan]),
    "relu": (lambda x: np.maximum(x, 0), [-1.0, 0.0, 2.0]),
    "rsqrt": (lambda x: 1 / np.sqrt(x), [4.0, 0.25, 1.0]),
    "sqrt": (np.sqrt, [4.0, 0.0, 1.0]),
    "stop_gradient": (lambda x: x, [1.0, 2.0]),
}


@pytest.mark.parametrize("name", UNARY)
def test_unary(backend, primitives, name):
    expected, values = UNARY[name]
    x = np.array(values, "float32")
    np.testing.assert_allclose(backend.numpy(getattr(primitives, name)(backend.array(x))), expected(x), rtol=1e-6)


@pytest.mark.parametrize("name", ["maximum", "minimum"])
@pytest.mark.parametrize("other", [0.5, np.array([0.0, 3.0], "float32")], ids=["number", "tensor"])
def test_of_two(backend, primitives, name, other):
    x = np.array([1.0, -1.0], "float32")
    given = other if isinstance(other, float) else backend.array(other)
    got = getattr(primitives, name)(backend.array(x), given)
    np.testing.assert_array_equal(backend.numpy(got), getattr(np, name)(x, other))


@pytest.mark.parametrize("axes", [(), (0,), (0, 2), (0, 1, 2)])
def test_sum_keeps_dimensions(backend, primitives, axes):
    x = np.arange(24, dtype="float32").reshape(2, 3, 4)
    got = backend.numpy(primitives.sum(backend.array(x), axes))
    np.testing.assert_array_equal(got, x.sum(axes, keepdims=True) if axes else x)


def test_shapes(backend, primitives):
    x = backend.array(np.zeros((2, 3), "float32"))
    assert tuple(primitives.shape(x)) == (2, 3)
    assert [primitives.size(x, axis) for axis in (0, 1)] == [2, 3]
    assert primitives.reshape(x, [3, -1]).shape == (3, 2)
    assert primitives.broadcast_to(primitives.reshape(x, [2, 1, 3]), [2, 5, 3]).shape == (2, 5, 3)


def test_rows_are_padded_with_zeros(backend, primitives):
    got = backend.numpy(primitives.pad_rows(backend.array(np.ones((2, 3), "float32")), 2))
    np.testing.assert_array_equal(got, [[1] * 3, [1] * 3, [0] * 3, [0] * 3])


def test_largest(backend, primitives):
    assert int(backend.numpy(primitives.largest(backend.array(np.array([3, 9, 4], "int32"))))) == 9


@pytest.mark.parametrize("condition", [True, False])
def test_where_and_cond(backend, primitives, condition):
    one, two = (backend.array(np.float32(value)) for value in (1, 2))
    chosen = primitives.where(backend.array(np.array(condition)), one, two)
    assert float(backend.numpy(chosen)) == float(primitives.cond(condition, lambda: one, lambda: two)) == 2 - condition


def test_convert_keeps_or_sets_the_type(backend, primitives):
    like = backend.array(np.zeros(2, "float32"))
    assert primitives.dtype(primitives.convert(np.ones(2, "float32"), like=like)) == "float32"
    assert primitives.dtype(primitives.convert([1, 2], dtype="float32", like=like)) == "float32"


def test_concat(backend, primitives):
    parts = [backend.array(np.array(values, "float32")) for values in ([1, 2], [], [3])]
    np.testing.assert_array_equal(backend.numpy(primitives.concat(parts)), [1, 2, 3])


def test_the_kind_of_device(backend, primitives):
    """Where each tensor knows it; a library that places whole programs says nothing."""
    assert primitives.device(backend.array(np.zeros(2, "float32"))) == ("cpu" if backend.name == "torch" else "")


def test_nothing_is_recomputed_outside_a_backward_pass(primitives):
    assert not primitives.recomputing()


def test_a_backward_pass_is_noticed(backend, primitives):
    if backend.name != "torch":
        pytest.skip(f"{backend.name} recomputes whole functions, which return their state")
    seen = []
    x = backend.torch.ones(2, requires_grad=True)
    x.register_hook(lambda gradient: seen.append(primitives.recomputing()))
    x.sum().backward()
    assert seen == [True] and not primitives.recomputing()


def test_there_is_one_replica_here(primitives):
    assert primitives.all_reduce() is None
