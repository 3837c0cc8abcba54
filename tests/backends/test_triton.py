# SPDX-License-Identifier: Apache-2.0
"""The Triton kernels against the formula of `functional/` in float64: on a GPU, or else in Triton's interpreter."""

import importlib
import os
import subprocess
import sys
import warnings
from typing import NamedTuple

import numpy as np
import pytest

import evenkeel as ek
from evenkeel import backends
from evenkeel.backends.contract import Request
from evenkeel.errors import ArgumentError

import hard_data
import oracle
import tolerances
from conftest import NAME

if NAME != "torch":
    pytest.skip(f"the kernels are for torch, not {NAME}", allow_module_level=True)
torch = pytest.importorskip("torch")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def interpret(patch):
    """Triton looks when a kernel is defined, and again when one runs; no other test does either."""
    if DEVICE == "cpu":
        patch.setenv("TRITON_INTERPRET", "1")


with pytest.MonkeyPatch.context() as during_import:
    interpret(during_import)
    triton = pytest.importorskip("triton")
    tl = pytest.importorskip("triton.language")
    kernels = importlib.import_module("evenkeel.backends.torch.triton")

    @triton.jit
    def offsets_of_a_tile(offsets, group, tile, rows, pitch, after, MERGED: tl.constexpr):  # noqa: N803
        one = tl.program_id(0) + 1
        found = kernels._tile(one * group, one * tile, rows, pitch, after, 1, MERGED, 2, 4)
        tl.store(offsets + tl.arange(0, 2)[:, None] * 4 + tl.arange(0, 4)[None, :], found[0])


@pytest.fixture(autouse=True)
def interpreted(monkeypatch):
    interpret(monkeypatch)


EPSILON = 1e-3
ACTIVATIONS = {
    None: lambda z: z,
    "relu": torch.relu,
    "leaky_relu": torch.nn.functional.leaky_relu,
    "elu": torch.nn.functional.elu,
}
# Of what is kept, only what serves: (activation, with a residual, memory).
SERVED = [(activation, residual, None) for activation in ACTIVATIONS for residual in (False, True)]
SERVED += [("relu", False, "recompute"), *((name, False, "inplace") for name in (None, "leaky_relu", "elu"))]


def normal(*shape, seed=0, mean=0.0, std=1.0):
    return torch.tensor(np.random.default_rng(seed).normal(mean, std, shape), dtype=torch.float32, device=DEVICE)


# With small tiles, each of these has several groups, several tiles in a group, several chunks, and tails everywhere.
LAYOUTS = {
    "channels last": (lambda: normal(70, 6, mean=3, std=2), 1),
    "channels first": (lambda: normal(5, 2, 37, mean=3, std=2), 1),
    "short rows": (lambda: normal(67, 2, 3, mean=3, std=2), 1),
    "one channel": (lambda: normal(9, 1, 31, mean=3, std=2), 1),
    "torch's channels last": (lambda: normal(3, 5, 6, 4, mean=3).to(memory_format=torch.channels_last), 1),
    "channels in the middle of a permutation": (lambda: normal(4, 3, 7, mean=3).permute(2, 0, 1), 2),
    "channels at the front": (lambda: normal(3, 50, mean=3), 0),
    "with gaps": (lambda: normal(70, 8, mean=3)[:, 1:6], 1),
    "one value a channel": (lambda: normal(1, 5), 1),
}
BASIC = ["channels last", "channels first"]


@pytest.fixture
def small_tiles(monkeypatch):
    monkeypatch.setattr(kernels, "_TILE", 128)
    monkeypatch.setattr(kernels, "_PROGRAMS", 4)


class Case(NamedTuple):
    x: torch.Tensor
    gamma: torch.Tensor
    beta: torch.Tensor
    residual: torch.Tensor | None
    dy: torch.Tensor
    axis: int
    activation: str | None

    @classmethod
    def of(cls, layout, dtype, activation, residual):
        x, axis = LAYOUTS[layout][0](), LAYOUTS[layout][1]
        x = x.to(getattr(torch, dtype))
        gamma = normal(x.shape[axis], seed=1).sign() * (0.5 + normal(x.shape[axis], seed=2).abs())
        residual = normal(*x.shape, seed=3).to(x.dtype) if residual else None
        dy = normal(*x.shape, seed=4).to(x.dtype)
        return cls(x, gamma, normal(x.shape[axis], seed=5), residual, dy, axis, activation)

    def inputs(self, dtype=None):
        values = (self.x, self.gamma, self.beta, self.residual)
        return [None if value is None else value.detach().to(dtype or value.dtype) for value in values]

    def differentiated(self, function, dtype=None):
        """What `function` gives of the inputs, and the gradients of y."""
        inputs = [None if value is None else value.requires_grad_() for value in self.inputs(dtype)]
        y, *others = function(*inputs)
        given = [value for value in inputs if value is not None]
        return [y.detach(), *others], torch.autograd.grad(y, given, self.dy.to(y.dtype))

    def formula(self, *statistics):
        """y and its gradients by the formula in float64; with the statistics of the batch where none are given."""
        state = ek.State(*(value.double() for value in statistics)) if statistics else ek.State(*zeros_and_ones(self))

        def function(x, gamma, beta, residual):
            y, new = ek.batch_norm(
                x,
                ek.Parameters(gamma, beta),
                state,
                training=not statistics,
                axis=self.axis,
                epsilon=EPSILON,
                momentum=0.0,
            )
            y = y if residual is None else y + residual
            return ACTIVATIONS[self.activation](y), *new[:2]

        with ek.without_kernels():
            return self.differentiated(function, torch.float64)

    def training(self, memory=None):
        def function(x, gamma, beta, residual):
            options = {"axis": self.axis, "epsilon": EPSILON, "activation": self.activation}
            return kernels.training(x, gamma, beta, residual=residual, memory=memory, **options)

        return self.differentiated(function)

    def inference(self, mean, variance):
        def function(x, gamma, beta, residual):
            options = {"axis": self.axis, "epsilon": EPSILON, "activation": self.activation}
            return (kernels.inference(x, gamma, beta, mean, variance, residual=residual, **options),)

        return self.differentiated(function)

    def compare(self, got, expected, rounded=False):
        """`rounded`: the backward pass knows the output only as it was rounded to the type of x."""
        (y, *_), gradients = got
        (expected_y, *_), expected_gradients = expected
        unit, few = tolerances.UNIT_ROUNDOFF[str(self.x.dtype)[6:]], 1e-5
        close(y, expected_y, few + 2 * unit * expected_y.abs().max())
        # A rounded result is off by up to 8 units, and so is x where it is computed back, by as much as gamma is small.
        lost = 32 * unit if rounded else 0.0
        largest, count = self.dy.double().abs().max(), self.x.numel() / self.x.shape[self.axis]
        for index, (gradient, right) in enumerate(zip(gradients, expected_gradients, strict=True)):
            if index in (1, 2):
                close(gradient, right, (few + lost / 4) * largest * count**0.5)
            else:
                close(gradient, right, (few + lost + 2 * unit) * max(right.abs().max(), largest / 4))


def zeros_and_ones(case):
    return torch.zeros_like(case.gamma, dtype=torch.float64), torch.ones_like(case.gamma, dtype=torch.float64)


def close(got, expected, tolerance):
    assert got.shape == expected.shape
    assert (got.double() - expected).abs().max() <= tolerance


def knows_only_rounded(activation, residual, memory):
    return memory == "inplace" or (residual and activation == "elu")


def check_training(layout, dtype, activation, residual, memory):
    case = Case.of(layout, dtype, activation, residual)
    (y, mean, variance), gradients = got = case.training(memory)
    (_, expected_mean, expected_variance), _ = expected = case.formula()
    case.compare(got, expected, knows_only_rounded(activation, residual, memory))
    assert not mean.requires_grad and not variance.requires_grad
    assert (y.dtype, gradients[0].dtype, mean.dtype) == (case.x.dtype, case.x.dtype, torch.float32)
    assert y.stride() == torch.empty_like(case.x).stride()
    if case.x.shape[0] > 1:  # the formula takes no statistics of single values
        close(mean, expected_mean, 1e-6 * expected_mean.abs().max())
        close(variance, expected_variance, 1e-6 * expected_variance.abs().max())


@pytest.mark.parametrize(("activation", "residual", "memory"), SERVED)
@pytest.mark.parametrize(
    ("layout", "dtype"), [*((layout, "float32") for layout in BASIC), *zip(BASIC, ("float16", "bfloat16"), strict=True)]
)
def test_training(small_tiles, layout, dtype, activation, residual, memory):
    check_training(layout, dtype, activation, residual, memory)


@pytest.mark.parametrize(("activation", "residual", "memory"), [("relu", True, None), ("elu", False, "inplace")])
@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name not in (*BASIC, "one value a channel")])
def test_training_in_other_layouts(small_tiles, layout, activation, residual, memory):
    check_training(layout, "float32", activation, residual, memory)


@pytest.mark.parametrize(("activation", "residual"), [served[:2] for served in SERVED[:8]])
@pytest.mark.parametrize("layout", BASIC)
def test_inference(small_tiles, layout, activation, residual):
    check_inference(layout, "float32", activation, residual)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_inference_in_other_layouts_and_types(small_tiles, layout, dtype):
    check_inference(layout, dtype, "relu", True)


def check_inference(layout, dtype, activation, residual):
    case = Case.of(layout, dtype, activation, residual)
    statistics = normal(len(case.gamma), seed=6, mean=3), 1 + normal(len(case.gamma), seed=7).abs()
    (y,), _ = got = case.inference(*statistics)
    case.compare(got, case.formula(*statistics), knows_only_rounded(activation, residual, None))
    assert y.dtype == case.x.dtype and y.stride() == torch.empty_like(case.x).stride()


def test_inference_of_nothing():
    x = torch.zeros(0, 3, device=DEVICE, requires_grad=True)
    gamma = torch.ones(3, device=DEVICE, requires_grad=True)
    options = {"axis": 1, "epsilon": EPSILON, "activation": "relu"}
    y = kernels.inference(x, gamma, gamma, gamma, gamma, **options)
    assert y.shape == (0, 3)
    assert torch.autograd.grad(y.sum(), gamma)[0].tolist() == [0, 0, 0]


def test_one_value_a_channel_has_no_spread(small_tiles):
    case = Case.of("one value a channel", "float32", None, False)
    (y, mean, variance), (dx, _, dbeta) = case.training()
    assert torch.equal(mean, case.x[0]) and not variance.any()
    assert torch.equal(y[0], case.beta) and torch.equal(dbeta, case.dy[0])
    assert not dx.any()


@pytest.mark.parametrize("name", hard_data.FINITE)
def test_hard_data(backend, monkeypatch, name):
    monkeypatch.setattr(kernels, "_PROGRAMS", 1)  # as many tiles as possible in one sum
    values, axis = hard_data.FINITE[name]
    axis %= values.ndim
    x = backend.array(values).to(DEVICE)
    gamma = torch.ones(x.shape[axis], device=DEVICE)
    y, mean, variance = (
        backend.numpy(value.cpu())
        for value in kernels.training(x, gamma, 0 * gamma, axis=axis, epsilon=EPSILON, activation=None)
    )
    means, variances, counts = oracle.moments(values, axis)
    expected = oracle.normalize(values, means, variances, epsilon=EPSILON, axis=axis)
    dtype, count = values.dtype.name, counts[0]
    for channel, (right_mean, right_variance) in enumerate(zip(means, variances, strict=True)):
        condition = tolerances.condition(right_mean, max(right_variance, EPSILON))
        deviation = max(right_variance, EPSILON) ** 0.5
        assert abs(mean[channel] - right_mean) <= deviation * tolerances.mean(dtype, count, condition)
        allowed = max(right_variance, EPSILON) * tolerances.variance(dtype, count, condition)
        assert abs(variance[channel] - right_variance) <= allowed
        ours, right = (np.moveaxis(value, axis, 0)[channel] for value in (y, expected))
        allowed = tolerances.output(dtype, count, condition, max(4.0, np.abs(right).max()))
        assert np.abs(ours.astype("float64") - right).max() <= allowed


def test_a_first_tile_unlike_the_rest(monkeypatch):
    """The variance is taken about the mean of the first tile: here it is 10000 standard deviations away."""
    monkeypatch.setattr(kernels, "_PROGRAMS", 1)
    monkeypatch.setattr(kernels, "_TILE", 128)
    x = normal(1024, 4, mean=1e4)
    x[:32] = 0
    gamma = torch.ones(4, device=DEVICE)
    _, mean, variance = kernels.training(x, gamma, gamma, axis=1, epsilon=EPSILON, activation=None)
    close(mean, x.double().mean(0), 1e4 * 1e-6)
    # Of what is added up, one part in 16 is left; what is left of 4 roundings is 16 times as much of it.
    allowed = 4 * 16 * tolerances.UNIT_ROUNDOFF["float32"]
    close(variance / x.double().var(0, correction=0), torch.ones_like(gamma).double(), allowed)


@pytest.mark.parametrize("name", hard_data.NON_FINITE)
def test_a_bad_value_stays_in_its_channel(small_tiles, name):
    x = torch.tensor(hard_data.NON_FINITE[name], device=DEVICE, requires_grad=True)
    gamma = torch.ones(3, device=DEVICE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # NumPy's, of which the interpreter is made
        y, mean, variance = kernels.training(x, gamma, gamma, axis=2, epsilon=EPSILON, activation="relu")
        (dx,) = torch.autograd.grad(y, x, torch.ones_like(y))
    for value in (y.detach().flatten(0, 1).sum(0), variance, dx.flatten(0, 1).sum(0)):
        assert value.isfinite().tolist() == [True, False, True]
    assert mean.isfinite().tolist()[::2] == [True, True]


@pytest.mark.parametrize("layout", BASIC)
def test_equal_inputs_give_equal_bits(small_tiles, layout):
    case = Case.of(layout, "float32", "relu", True)
    first, second = case.training(), case.training()
    for one, other in zip((*first[0], *first[1]), (*second[0], *second[1]), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("activation", [None, "elu"])
def test_a_gamma_of_zero_inplace(small_tiles, activation):
    """Nothing of x is left in y: no gradient, but no NaN either, and the other channels have theirs."""
    case = Case.of("channels last", "float32", activation, False)
    case.gamma[2] = 0
    case.gamma[3] = -1e-30
    (y, *_), gradients = case.training("inplace")
    (plain, *_), expected = case.training()
    assert torch.equal(y, plain)
    assert gradients[1][2] == 0 and gradients[1][3].isfinite() and not gradients[0][:, 2].any()
    others = [0, 1, 4, 5]
    close(gradients[0][:, others], expected[0][:, others].double(), 1e-5)
    close(gradients[1][others], expected[1][others].double(), 1e-4)


def test_an_elu_that_is_minus_one_inplace(small_tiles):
    """Where the output has no digits of x left, its gradient is 0, and nothing is NaN."""
    case = Case.of("channels last", "bfloat16", "elu", False)
    case.beta[0] = -100
    _, gradients = case.training("inplace")
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert not gradients[0][:, 0].any()


def kept(case, memory):
    """The tensors that a training step keeps with more than one number a channel."""
    found = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: found.append(tensor) or tensor, lambda tensor: tensor):
        x, gamma, beta, residual = (None if value is None else value.requires_grad_() for value in case.inputs())
        y, _, _ = kernels.training(
            x,
            gamma,
            beta,
            axis=case.axis,
            epsilon=EPSILON,
            activation=case.activation,
            residual=residual,
            memory=memory,
        )
    names = {x.data_ptr(): "x", y.data_ptr(): "y", 0 if residual is None else residual.data_ptr(): "residual"}
    return sorted(names.get(tensor.data_ptr(), "unknown") for tensor in found if tensor.numel() > len(gamma))


@pytest.mark.parametrize(
    ("activation", "residual", "memory", "expected"),
    [
        ("relu", False, None, ["x"]),
        ("elu", False, "recompute", ["x"]),
        (None, True, "recompute", ["x"]),
        ("relu", True, "recompute", ["x", "y"]),
        (None, False, "inplace", ["y"]),
        ("leaky_relu", False, "inplace", ["y"]),
        ("elu", False, "inplace", ["y"]),
    ],
)
def test_what_is_kept(small_tiles, activation, residual, memory, expected):
    assert kept(Case.of("channels last", "float32", activation, residual), memory) == expected


@pytest.mark.parametrize(
    ("layout", "activation", "residual", "memory"),
    [("channels last", "relu", True, None), ("with gaps", "elu", False, "inplace")],
)
def test_torch_finds_the_operations_in_order(small_tiles, layout, activation, residual, memory):
    """Schema, autograd, fake tensors, dynamic shapes: `torch.library.opcheck`."""
    case = Case.of(layout, "float32", activation, residual)
    inputs = [None if value is None else value.requires_grad_() for value in case.inputs()]
    torch.library.opcheck(kernels._train, (*inputs, 1, EPSILON, activation, memory))
    x, gamma, beta, _ = (None if value is None else value.detach() for value in inputs)
    beside = case.dy if residual else None
    parts = (case.dy, x, beside, gamma, beta, beta, gamma.abs(), 1, EPSILON, activation, memory == "inplace", True)
    torch.library.opcheck(kernels._gradients, parts)


def test_torch_finds_inference_in_order(small_tiles):
    case = Case.of("channels first", "float32", "relu", True)
    x, gamma, beta, residual = (value.requires_grad_() for value in case.inputs())
    statistics = beta.detach(), gamma.detach().abs()
    torch.library.opcheck(kernels._infer, (x, gamma, beta, *statistics, residual, 1, EPSILON, "relu"))


def test_compiled_in_one_graph(small_tiles):
    case = Case.of("channels first", "float32", "relu", True)
    expected = case.training()
    called = []

    def look(graph, inputs):
        called.extend(str(node.target) for node in graph.graph.nodes)
        return aot_eager(graph, inputs)

    aot_eager = torch._dynamo.lookup_backend("aot_eager")
    torch.compiler.reset()
    function = torch.compile(kernels.training, fullgraph=True, backend=look)
    options = {"axis": 1, "epsilon": EPSILON, "activation": "relu"}
    got = case.differentiated(lambda x, gamma, beta, r: function(x, gamma, beta, residual=r, **options))
    assert sum("triton_training" in name for name in called) == 1
    for one, other in zip((*got[0], *got[1]), (*expected[0], *expected[1]), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("axis", [1, 2])
def test_training_is_vectorized(small_tiles, axis):
    x, gamma = normal(2, 9, 3, 4), normal(x_shape := (9, 3, 4)[axis], seed=1)
    options = {"axis": axis, "epsilon": EPSILON, "activation": "relu"}
    got = torch.vmap(lambda x: tuple(kernels.training(x, gamma, gamma, **options)))(x)
    for index in (0, 1):
        for one, expected in zip(got, kernels.training(x[index], gamma, gamma, **options), strict=True):
            close(one[index], expected.double(), 1e-5)
    assert got[1].shape == (2, x_shape)


def test_inference_is_vectorized(small_tiles):
    x, gamma, residual = normal(9, 3), normal(3, 2, seed=1), normal(2, 9, 3, seed=2)
    beta, options = normal(3, seed=3), {"axis": 1, "epsilon": EPSILON, "activation": "elu"}

    def serve(gamma, residual):
        return kernels.inference(x, gamma, beta, beta, beta.abs(), residual=residual, **options)

    got = torch.vmap(serve, in_dims=(1, 0))(gamma, residual)
    for index in (0, 1):
        close(got[index], serve(gamma[:, index], residual[index]).double(), 1e-5)


def test_second_derivatives_are_refused(small_tiles):
    case = Case.of("channels last", "float32", None, False)
    x, gamma, beta, _ = case.inputs()
    x.requires_grad_()
    y, _, _ = kernels.training(x, gamma, beta, axis=1, epsilon=EPSILON, activation=None)
    (dx,) = torch.autograd.grad((y * case.dy).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="no autograd formula"):
        torch.autograd.grad(dx.sum(), x)


@pytest.mark.parametrize("merged", [True, False])
def test_offsets_have_64_bits(merged):
    """Of the tile in row 2^20 and column 8, of rows of 2^33 elements, and group 1 of 2^32."""
    offsets = torch.zeros(2, 4, dtype=torch.int64, device=DEVICE)
    group, tile, after = (2, 2**19, 1) if merged else (1, 2**30 * 2**19 + 2, 2**32)
    if not merged:
        tile, after = 2**19 * 16 + 2, 2**6  # 16 tiles of 4 columns to a row
    offsets_of_a_tile[(1,)](offsets, group, tile, 2**21, 2**33, after, MERGED=merged)
    column = 8 if merged else 8 + after
    expected = [[(2**20 + row) * 2**33 + column + place for place in range(4)] for row in range(2)]
    assert offsets.tolist() == expected


@pytest.mark.skipif(DEVICE == "cpu", reason="takes 18 GB of a GPU")
def test_more_than_two_to_the_31_elements():
    x = torch.full((2**25 + 1000, 64), 1.0, dtype=torch.bfloat16, device=DEVICE)
    x[::2] = 3.0
    x[-1] = 100.0
    gamma = torch.ones(64, device=DEVICE)
    y, mean, variance = kernels.training(x, gamma, 0 * gamma, axis=1, epsilon=EPSILON, activation=None)
    close(mean, torch.full_like(mean, 2).double(), 1e-4)
    expected = (x[-3:].double() - mean) / (variance.double() + EPSILON).sqrt()
    close(y[-3:], expected, 2 * tolerances.UNIT_ROUNDOFF["bfloat16"] * 100)


@pytest.mark.parametrize(
    ("dtype", "shape", "options", "said"),
    [
        ("float64", (4, 3), {}, "no float64 version"),
        ("float32", (4, 3), {"activation": "gelu"}, "activation='gelu'"),
        ("float32", (4, 3), {"memory": "little"}, "memory='little'"),
        ("float32", (4, 3), {"memory": "inplace", "activation": "relu"}, "memory='inplace' wants leaky_relu"),
        ("float32", (4, 3), {"memory": "inplace", "residual": True}, "a residual was added"),
        ("float32", (4, 0), {}, "one channel, got 0"),
        ("float32", (0, 3), {}, r"shape \(0, 3\)"),
    ],
)
def test_what_is_refused(dtype, shape, options, said):
    x = torch.ones(shape, dtype=getattr(torch, dtype), device=DEVICE)
    residual = x if options.pop("residual", False) else None
    gamma = torch.ones(shape[1], device=DEVICE)
    options = {"activation": None, "axis": 1, "epsilon": EPSILON} | options
    with pytest.raises(ArgumentError, match=said):
        kernels.training(x, gamma, gamma, residual=residual, **options)


def test_a_residual_of_another_shape_is_refused():
    gamma = torch.ones(3)
    options = {"axis": 1, "epsilon": EPSILON, "activation": None, "residual": torch.ones(3)}
    with pytest.raises(ArgumentError, match=r"residual has shape \(3,\); give one of the input's shape, \(4, 3\)"):
        kernels.training(torch.ones(4, 3), gamma, gamma, **options)


def test_a_residual_of_another_type_is_added_in_that_of_x(small_tiles):
    case = Case.of("channels last", "float16", "relu", True)
    same, expected = case.training()
    got, gradients = case._replace(residual=case.residual.double()).training()
    assert torch.equal(got[0], same[0])
    assert gradients[3].dtype == torch.float64 and torch.equal(gradients[3], expected[3].double())


def test_what_is_served_gives_no_reason():
    assert kernels.supports(Request(True, "bfloat16", (4, 3), 1, "elu", memory="inplace")) is None
    assert kernels.supports(Request(False, "float16", (0, 3), 1, "relu", residual=True)) is None
    assert kernels.supports(Request(True, "float32", (None, 3), 1, None)) is None


@pytest.mark.parametrize("training", [True, False])
def test_a_step_of_functional(small_tiles, monkeypatch, training):
    """As on a GPU, where `backends.kernels` has these first."""
    asked = []
    for name in ("training", "inference"):
        function = getattr(kernels, name)
        monkeypatch.setattr(
            kernels, name, lambda *args, f=function, **kept: asked.append(f.__name__) or f(*args, **kept)
        )
    monkeypatch.setattr(backends, "kernels", lambda name, device="": (kernels,))
    case = Case.of("channels first", "float32", "elu", True)
    options = {"axis": 1, "activation": "elu", "residual": case.residual, "training": training}
    params, state = ek.Parameters(case.gamma, case.beta), ek.State(0 * case.beta, 0 * case.beta + 1)
    got, new = ek.batch_norm(case.x, params, state, **options)
    assert asked == ["training" if training else "inference"]
    with ek.without_kernels():
        expected, expected_new = ek.batch_norm(case.x, params, state, **options)
    close(got, expected.double(), 1e-5)
    close(new.moving_variance, expected_new.moving_variance.double(), 1e-6)


COMPILE = '''
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile

from evenkeel.backends.torch import triton as kernels

SHAPES = {True: {"pitch": 16, "after": 1, "UNIT": 16}, False: {"pitch": 64 * 49, "after": 49, "UNIT": 4}}
RECOVERY = {"ACTIVATION": "elu", "FLOOR": 1e-7, "LEAST_GAMMA": 1e-7}
BIG = {"x", "y", "dy", "dx", "dz", "kept", "residual"}


def built(kernel, integers, **constants):
    """Loads and stores in the machine's language of a kernel for bfloat16, on a Hopper GPU."""
    signature, fixed, attributes = {}, {}, {}
    for place, name in enumerate(kernel.arg_names):
        if integers.get(name) == 1 or name in constants:
            signature[name], fixed[name] = "constexpr", constants.get(name, 1)
        elif name in ("epsilon", "share"):
            signature[name] = "fp32"
        else:
            signature[name] = "i32" if name in integers else "*bf16" if name in BIG else "*fp32"
            if name not in integers or integers[name] % 16 == 0:
                attributes[(place,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, fixed, attributes)
    options = {"num_warps": 8, "enable_fp_fusion": True}
    return compile(source, target=GPUTarget("cuda", 90, 32), options=options).asm["ptx"]


for merged, shape in SHAPES.items():
    integers = {"rows": 64, "groups": 64, "pitch": shape["pitch"], "after": shape["after"]}
    cut = {"UNIT": shape["UNIT"], "MERGED": merged, "ROWS": 16, "COLUMNS": 256, "STEPS": 4}
    built(kernels._moments, integers, **cut)
    built(kernels._sums, integers, INVERTED=False, **RECOVERY, **cut)
    built(kernels._sums, integers, INVERTED=True, y=None, **RECOVERY, **cut)
    built(kernels._to_x, integers, INVERTED=False, TRAINING=True, **RECOVERY, **cut)
    built(kernels._to_x, integers, INVERTED=True, TRAINING=False, **RECOVERY, **cut)
    code = built(kernels._normalize, integers, ACTIVATION="relu", **cut)
    wide = "ld.global.v4.b32" if merged else "ld.global.v2.b32"
    print(merged, code.count(wide) >= 4, f"st.{wide[3:]}" in code)
built(kernels._merge_moments, {"chunks": 8, "channels": 64, "inner": 1}, PARTS=128, CHANNELS=8)
'''


def test_every_kernel_compiles_for_a_gpu_and_loads_16_bytes_at_a_time(tmp_path):
    """The compiler wants types that the interpreter does not ask about. Channels of 14 x 14 halves allow 8 bytes."""
    environment = os.environ | {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    environment["TRITON_INTERPRET"] = "0"
    (tmp_path / "build.py").write_text(COMPILE)
    done = subprocess.run(
        [sys.executable, tmp_path / "build.py"], env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split() == ["True", "True", "True", "False", "True", "True"]
