# SPDX-License-Identifier: Apache-2.0
"""What a kernel owes beyond numbers: reasons, and the transformations of its library.

Its numbers are those of the formula: `tests/functional/test_batch_norm.py` runs every case with kernels and without.
"""

import numpy as np
import pytest

import evenkeel as ek
from evenkeel import backends
from evenkeel.backends.contract import Request
from evenkeel.functional.choice import choose

import oracle

X = np.random.default_rng(0).normal(1, 2, (6, 4, 3)).astype("float32")


def state(backend, dtype="float32"):
    return ek.State(*(backend.array(np.asarray(value, dtype)) for value in ([0.5, 1.0, 2.0], [1.0, 2.0, 3.0])))


def train(backend, x, old=None):
    return ek.batch_norm(x, ek.Parameters(), old or state(backend), training=True)[0]


def request_of(dtype="float32", shape=(6, 4, 3), axis=2, training=True, activation=None):
    return Request(training, dtype, shape, axis, activation)


def test_the_common_case_has_a_kernel(backend):
    choice = choose(backend.name, request_of())
    assert (choice.kernel is None) == (backend.name == "numpy")
    assert bool(choice.reason) == (choice.kernel is None)


@pytest.mark.parametrize("activation", [None, "relu"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("shape", [(8, 3), (8, 5, 3), (8, 5, 5, 3), (2, 3, 4, 5, 3)])
def test_channels_last_has_a_kernel(differentiable, shape, dtype, training, activation):
    request = request_of(dtype, shape, len(shape) - 1, training, activation)
    assert choose(differentiable.name, request).reason == ""


@pytest.mark.parametrize(
    "request_",
    [request_of("int32"), request_of("float8"), request_of(activation="gelu")],
    ids=["int", "float8", "gelu"],
)
def test_a_kernel_that_cannot_says_why(backend, request_):
    assert all(len(kernels.supports(request_)) > 10 for kernels in backends.kernels(backend.name))


@pytest.mark.parametrize("activation", [None, "relu", "leaky_relu", "elu"])
@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_a_kernel_that_normalizes_alone_leaves_the_rest_to_the_formula(differentiable, training, residual, activation):
    """Whatever follows, the normalization is served; torch's kernels do what follows too."""
    request = request_of(training=training, activation=activation)._replace(residual=residual)
    reason = choose(differentiable.name, request).reason
    if differentiable.name == "torch":
        assert reason == ""
    elif residual or activation not in (None, "relu"):
        assert len(reason) > 10
    assert choose(differentiable.name, request_of(training=training)).reason == ""


@pytest.mark.parametrize(
    ("activation", "residual", "memory"),
    [
        (None, False, "recompute"),
        ("relu", True, "recompute"),
        ("elu", False, "inplace"),
        ("leaky_relu", False, "inplace"),
    ],
)
def test_only_torch_keeps_less(backend, activation, residual, memory):
    request = request_of(activation=activation)._replace(residual=residual, memory=memory)
    choice = choose(backend.name, request)
    assert (choice.kernel is not None) == (backend.name == "torch")
    assert (choice.reason == "") == (backend.name == "torch")


@pytest.mark.parametrize(("activation", "residual"), [("relu", False), ("elu", True), (None, True)])
def test_what_cannot_be_inverted_is_told(backend, activation, residual):
    request = request_of(activation=activation)._replace(residual=residual, memory="inplace")
    assert len(choose(backend.name, request).reason) > 10


def test_obstacles_come_before_the_kernel(backend):
    assert choose(backend.name, request_of(), None, "a mask or weights").reason == "a mask or weights"


def test_the_switch_is_restored_after_an_error(backend):
    with pytest.raises(RuntimeError), ek.without_kernels():
        raise RuntimeError
    assert choose(backend.name, request_of()).reason != "kernels are switched off"


@pytest.mark.parametrize("activation", [None, "relu"])
def test_second_derivatives(differentiable, path, activation):
    """The gradient of a sum of squared gradients, against differences of gradients longhand."""
    backend = differentiable
    with backend.double():
        x, gamma = X.astype("float64"), np.array([0.5, 1.0, 2.0])
        weight = backend.array(np.random.default_rng(1).normal(size=x.shape))
        old = state(backend, "float64")

        def loss(x):
            y, _ = ek.batch_norm(x, ek.Parameters(backend.array(gamma)), old, training=True, activation=activation)
            return backend.sum(y * y * weight)

        def slope(x):
            if backend.name == "tensorflow":
                with backend.tf.GradientTape() as tape:
                    tape.watch(x)
                    value = loss(x)
                first = tape.gradient(value, x)
            elif backend.name == "jax":
                first = backend.jax.grad(loss)(x)
            else:
                (first,) = backend.torch.autograd.grad(loss(x), x, create_graph=True)
            return backend.sum(first * first)

        (got,) = backend.gradients(slope, backend.array(x))
        got = backend.numpy(got)
        for place in [(0, 0, 0), (5, 3, 2), (2, 1, 1)]:
            step = np.zeros_like(x)
            step[place] = 1e-5
            ends = []
            for moved in (x + step, x - step):
                (first,) = backend.gradients(loss, backend.array(moved))
                ends.append((backend.numpy(first) ** 2).sum())
            assert abs((ends[0] - ends[1]) / 2e-5 - got[place]) < 1e-4 * max(1, np.abs(got).max())


def test_a_recomputed_forward_gives_the_same_gradient(differentiable, path):
    backend = differentiable
    again = {
        "tensorflow": lambda f: backend.tf.recompute_grad(f),
        "jax": lambda f: backend.jax.checkpoint(f),
        "torch": lambda f: lambda x: backend.torch.utils.checkpoint.checkpoint(f, x, use_reentrant=False),
    }[backend.name]
    if backend.name == "torch":
        import torch.utils.checkpoint  # noqa: F401

    def step(x):
        y = train(backend, x)
        return y * y * y

    (plain,) = backend.gradients(lambda x: backend.sum(step(x)), backend.array(X))
    (recomputed,) = backend.gradients(lambda x: backend.sum(again(step)(x)), backend.array(X))
    np.testing.assert_allclose(backend.numpy(recomputed), backend.numpy(plain), rtol=1e-5, atol=1e-6)


def test_inference_is_vectorized(differentiable, path):
    backend = differentiable
    vmap = {
        "tensorflow": lambda f: lambda x: backend.tf.vectorized_map(f, x),
        "jax": lambda f: backend.jax.vmap(f),
        "torch": lambda f: backend.torch.vmap(f),
    }[backend.name]

    def serve(x):
        return ek.batch_norm(x, ek.Parameters(), state(backend), training=False)[0]

    got = vmap(serve)(backend.array(np.stack([X, X + 1])))
    mean, variance = map(backend.numpy, state(backend)[:2])
    np.testing.assert_allclose(
        backend.numpy(got), oracle.normalize(np.stack([X, X + 1]), mean, variance), rtol=1e-5, atol=1e-6
    )


def forward_mode(backend, function, x, direction):
    """The derivative of `function` at `x` along `direction`, in forward mode."""
    if backend.name == "tensorflow":
        with backend.tf.autodiff.ForwardAccumulator(x, direction) as accumulator:
            y = function(x)
        return accumulator.jvp(y)
    if backend.name == "jax":
        return backend.jax.jvp(function, (x,), (direction,))[1]
    return backend.torch.func.jvp(function, (x,), (direction,))[1]


def test_forward_mode_of_the_formula(differentiable):
    backend = differentiable
    direction = np.random.default_rng(2).normal(size=X.shape).astype("float32")
    with ek.without_kernels():
        got = forward_mode(backend, lambda x: train(backend, x), backend.array(X), backend.array(direction))
        ends = [
            backend.numpy(
                train(backend, backend.array((X.astype("float64") + sign * 1e-3 * direction).astype("float32")))
            )
            for sign in (1, -1)
        ]
    np.testing.assert_allclose(backend.numpy(got), (ends[0] - ends[1]) / 2e-3, atol=5e-3)


def test_forward_mode_of_a_kernel_is_right_or_refused_with_the_way_out(differentiable):
    backend = differentiable
    direction = np.random.default_rng(2).normal(size=X.shape).astype("float32")
    arrays = backend.array(X), backend.array(direction)
    with ek.without_kernels():
        expected = backend.numpy(forward_mode(backend, lambda x: train(backend, x), *arrays))
    if backend.name == "jax":
        with pytest.raises(TypeError, match="custom_vjp"):
            forward_mode(backend, lambda x: train(backend, x), *arrays)
    else:
        got = backend.numpy(forward_mode(backend, lambda x: train(backend, x), *arrays))
        np.testing.assert_allclose(got, expected, atol=1e-4)


def test_a_second_call_compiles_nothing(differentiable, path):
    backend = differentiable
    traces, old = [], state(backend)

    def step(x):
        traces.append(1)
        return train(backend, x, old)

    if backend.name == "torch":
        # Dynamo runs no Python that it traced; it counts the graphs it compiled instead.
        graphs = []

        def compiler(graph, inputs):
            graphs.append(1)
            return graph.forward

        compiled = backend.torch.compile(lambda x: train(backend, x, old), backend=compiler, fullgraph=True)
        compiled(backend.array(X))
        compiled(backend.array(X + 1))
        assert len(graphs) == 1
    else:
        compiled = backend.compile(step, backend.compilers[0])
        compiled(backend.array(X))
        compiled(backend.array(X + 1))
        assert len(traces) == 1


def test_no_gradient_flows_through_the_new_state(differentiable, path):
    backend = differentiable
    tensor = backend.array(X)

    def loss(x):
        y, new = ek.batch_norm(x, ek.Parameters(), state(backend), training=True)
        return backend.sum(y) * 0.0 + backend.sum(new.moving_mean) + backend.sum(new.moving_variance)

    (dx,) = backend.gradients(loss, tensor)
    np.testing.assert_allclose(backend.numpy(dx), 0, atol=1e-6)
