# SPDX-License-Identifier: Apache-2.0
"""What torch does with whole modules: compile, export, trace, map, recompute, copy, cast and lay out in memory."""

import copy
import io
import pickle

import numpy as np
import pytest

from conftest import NAME

if NAME != "torch":
    pytest.skip("modules of torch", allow_module_level=True)
import keras
import torch
from torch.utils.checkpoint import checkpoint

import evenkeel as ek
import evenkeel.torch as ours
from layers.torch_steps import data, plain, started, state, step

import oracle
import tolerances

SHAPE = (6, 3, 4, 2)


@pytest.fixture(autouse=True)
def _nothing_compiled():
    torch.compiler.reset()


# torch.compile.

COMPILED = {
    "a module": ({"activation": torch.nn.PReLU()}, {}),
    "residual": ({"activation": "leaky_relu"}, {"residual": data(SHAPE, 5)}),
    "mask": ({}, {"mask": torch.arange(6) < 4}),
    "renorm": ({"renorm": True}, {}),
    "momentum None": ({"momentum": None}, {}),
    "frozen": ({"frozen": True}, {}),
    "memory": ({"memory": "recompute", "activation": "relu"}, {}),
}


def check_compiled(module, compiler, call, training=True):
    """Two steps in one graph each, as without the compiler; the second in the state that the first left."""
    eager = copy.deepcopy(started(module).train(training))
    compiled = torch.compile(module, fullgraph=True, backend=compiler)
    for seed in (1, 2):
        x, dy = data(SHAPE, seed), data(SHAPE, seed + 50)
        expected = step(eager, x, dy, **call)
        x = x.clone().requires_grad_()
        y = compiled(x, **call)
        got = torch.autograd.grad(y, [x, *module.parameters()], dy)
        np.testing.assert_allclose(plain(y), expected.y, rtol=1e-4, atol=1e-5)
        for mine, wanted in zip(got, expected.gradients, strict=True):
            np.testing.assert_allclose(plain(mine), wanted, rtol=1e-4, atol=1e-4)
        for name, wanted in state(eager).items():
            np.testing.assert_allclose(state(module)[name], wanted, rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("name", COMPILED)
def test_compiled(name):
    arguments, call = COMPILED[name]
    check_compiled(ours.BatchNorm2d(3, **arguments), "aot_eager", call)


def test_compiled_in_eval():
    check_compiled(ours.BatchNorm2d(3, activation="elu"), "aot_eager", {}, training=False)


def test_compiled_to_machine_code():
    check_compiled(ours.BatchNorm2d(3, activation="relu"), "inductor", {})


def test_steps_compile_nothing_more():
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return graph.forward

    module = ours.BatchNorm2d(3, momentum=None, renorm=True)
    compiled = torch.compile(module, fullgraph=True, backend=count)
    for seed in range(4):
        compiled(data(SHAPE, seed))
    assert len(graphs) == 1 and module.num_batches_tracked == 4
    module.eval()
    compiled(data(SHAPE))
    assert len(graphs) == 2 and module.num_batches_tracked == 4


def test_renorm_compiled_for_batches_of_any_size():
    module = ours.BatchNorm2d(3, renorm=True)
    eager, compiled = copy.deepcopy(module), torch.compile(module, fullgraph=True, backend="aot_eager", dynamic=True)
    for rows in (6, 9):
        x = data((rows, *SHAPE[1:]), rows)
        np.testing.assert_allclose(plain(compiled(x)), plain(eager(x)), rtol=1e-5, atol=1e-5)
    for name, wanted in state(eager).items():
        np.testing.assert_allclose(state(module)[name], wanted, rtol=1e-5, err_msg=name)


# torch.export, FX, torch.func.


@pytest.mark.parametrize("arguments", [{}, {"activation": "relu", "frozen": True}], ids=str)
def test_exported_for_a_batch_of_any_size(arguments):
    module = started(ours.BatchNorm2d(3, **arguments)).eval()
    rows = torch.export.Dim.DYNAMIC
    program = torch.export.export(module, (data(SHAPE),), dynamic_shapes=({0: rows},))
    x = data((9, *SHAPE[1:]), 1)
    np.testing.assert_allclose(plain(program.module()(x)), plain(module(x)), rtol=1e-5, atol=1e-6)


def test_exported_in_training_it_keeps_its_statistics():
    module = started(ours.BatchNorm2d(3))
    exported = torch.export.export(module, (data(SHAPE),)).module()
    x = data(SHAPE, 1)
    np.testing.assert_allclose(plain(exported(x)), plain(module(x)), rtol=1e-5, atol=1e-5)
    for name, wanted in state(module).items():
        np.testing.assert_allclose(plain(exported.state_dict()[name]), wanted, rtol=1e-6)


class Around(torch.nn.Module):
    """A network that gives all that `forward` takes."""

    def __init__(self):
        super().__init__()
        self.norm = started(ours.BatchNorm2d(3, activation="relu"))

    def forward(self, x, residual, mask):
        return 2 * self.norm(x, residual, mask=mask)


def test_a_leaf_of_a_traced_graph():
    network = Around()
    traced = torch.fx.symbolic_trace(network)
    called = [node for node in traced.graph.nodes if node.op == "call_module"]
    assert [(node.target, len(node.all_input_nodes)) for node in called] == [("norm", 3)]
    arguments = data(SHAPE), data(SHAPE, 1), torch.arange(6) < 4
    expected, before = copy.deepcopy(network), state(network)
    np.testing.assert_array_equal(plain(traced(*arguments)), plain(expected(*arguments)))
    assert all((now != before[name]).all() for name, now in state(traced).items())


def test_vmap_in_eval():
    module = started(ours.BatchNorm2d(3, activation="relu")).eval()
    x = data((4, *SHAPE))
    expected = torch.stack([module(part) for part in x])
    np.testing.assert_allclose(plain(torch.func.vmap(module)(x)), plain(expected), rtol=1e-5, atol=1e-6)


def test_models_side_by_side():
    """An ensemble: parameters and statistics are mapped over, as of `torch.func.stack_module_state`."""
    modules = [started(ours.BatchNorm1d(3)).eval(), ours.BatchNorm1d(3).eval()]
    parameters, buffers = torch.func.stack_module_state(modules)
    skeleton = copy.deepcopy(modules[0]).to("meta")
    x = data((8, 3))
    got = torch.func.vmap(lambda p, b: torch.func.functional_call(skeleton, (p, b), (x,)))(parameters, buffers)
    np.testing.assert_allclose(plain(got), plain(torch.stack([module(x) for module in modules])), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("arguments", [{}, {"activation": "relu"}, {"track_running_stats": False}], ids=str)
def test_models_train_side_by_side(arguments):
    modules = [ours.BatchNorm1d(3, **arguments) for _ in range(2)]
    for scale, module in enumerate(modules, 1):
        torch.nn.init.constant_(module.weight, scale)
    parameters, buffers = torch.func.stack_module_state(modules)
    x, dy = data((8, 3)), data((8, 3), 1)

    def loss(parameters, buffers):
        return (torch.func.functional_call(modules[0], (parameters, buffers), (x,)) * dy).sum()

    got = torch.func.vmap(torch.func.grad(loss))(parameters, buffers)
    for number, module in enumerate(modules):
        _, (_, *expected) = step(module, x, dy)
        for mine, wanted in zip(got.values(), expected, strict=True):
            np.testing.assert_allclose(plain(mine[number]), wanted, rtol=1e-5, atol=1e-5)
        for name, wanted in module.named_buffers():
            np.testing.assert_allclose(plain(buffers[name][number]), plain(wanted), rtol=1e-6)


def test_functional_call_and_grad():
    module, x, dy = started(ours.BatchNorm2d(3)), data(SHAPE), data(SHAPE, 1)
    parameters, buffers = dict(module.named_parameters()), {n: b.clone() for n, b in module.named_buffers()}
    before = state(module)

    def loss(parameters, buffers):
        return (torch.func.functional_call(module, (parameters, buffers), (x,)) * dy).sum()

    got = torch.func.grad(loss)(parameters, buffers)
    np.testing.assert_equal(state(module), before)
    _, (_, *expected) = step(module, x, dy)
    np.testing.assert_allclose([plain(value) for value in got.values()], expected, rtol=1e-5)
    for name, value in buffers.items():
        np.testing.assert_array_equal(plain(value), state(module)[name])


def test_per_example_gradients_in_eval():
    module, x = started(ours.BatchNorm1d(3)).eval(), data((5, 3))
    parameters = dict(module.named_parameters())

    def loss(parameters, row):
        return torch.func.functional_call(module, parameters, (row[None],)).square().sum()

    got = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, x)
    y = plain(module(x))
    np.testing.assert_allclose(plain(got["bias"]), 2 * y, rtol=1e-5)


# torch.utils.checkpoint.

RECOMPUTED = {
    "ours": lambda: ours.BatchNorm2d(3, activation="relu"),
    "momentum None": lambda: ours.BatchNorm2d(3, momentum=None),
    "renorm": lambda: ours.BatchNorm2d(3, renorm=True),
    "recompute": lambda: ours.BatchNorm2d(3, activation="relu", memory="recompute"),
    "of Keras": lambda: ek.BatchNormalization(axis=1, average="debiased"),
    "torch": lambda: torch.nn.BatchNorm2d(3),
}


def trained(make, x, around):
    """Gradient of the input, and the state afterwards; `around` is how the module is called."""
    keras.utils.clear_session(free_memory=False)
    module = make()
    if isinstance(module, keras.Layer):
        module.build(SHAPE)
        call = lambda x: module(x, training=True)  # noqa: E731
    else:
        call = module
    x = x.clone().requires_grad_()
    around(call, x).pow(3).sum().backward()
    return plain(x.grad), {name: plain(value) for name, value in module.state_dict().items()}


WAYS = {
    "reentrant": lambda call, x: checkpoint(call, x, use_reentrant=True),
    "not reentrant": lambda call, x: checkpoint(call, x, use_reentrant=False),
    "one in the other": lambda call, x: checkpoint(
        lambda x: checkpoint(call, x, use_reentrant=False) * 1.0, x, use_reentrant=False
    ),
    "one in the other, reentrant": lambda call, x: checkpoint(
        lambda x: checkpoint(call, x, use_reentrant=True) * 1.0, x, use_reentrant=True
    ),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", [name for name in RECOMPUTED if name != "torch"])
def test_what_is_computed_again_counts_once(name, way):
    x = data(SHAPE)
    expected, wanted = trained(RECOMPUTED[name], x, lambda call, x: call(x))
    gradient, got = trained(RECOMPUTED[name], x, WAYS[way])
    # The second time renorm corrects towards statistics that have moved by one of a hundred parts.
    share = 2e-2 if name == "renorm" else 1e-5
    np.testing.assert_allclose(gradient, expected, rtol=share, atol=share * np.abs(expected).max())
    np.testing.assert_equal(got, wanted)


def test_the_check_notices_that_torch_counts_twice():
    _, got = trained(RECOMPUTED["torch"], data(SHAPE), WAYS["not reentrant"])
    assert got["num_batches_tracked"] == 2


def test_two_calls_of_one_module_count_twice():
    _, got = trained(
        RECOMPUTED["ours"], data(SHAPE), lambda call, x: checkpoint(lambda x: call(call(x)), x, use_reentrant=False)
    )
    assert got["num_batches_tracked"] == 2


def test_after_a_backward_pass_the_next_batch_counts():
    module = ours.BatchNorm2d(3)
    for _ in range(2):
        checkpoint(module, data(SHAPE).requires_grad_(), use_reentrant=False).sum().backward()
    assert module.num_batches_tracked == 2


# Copies.

FULL = {
    "activation": "relu",
    "average": "debiased",
    "renorm": True,
    "renorm_clipping": {"rmax": 3.0, "dmax": 5.0},
    "virtual_batch_size": 3,
    "eps": 0.01,
}


def saved_and_loaded(module):
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda module: pickle.loads(pickle.dumps(module)),
    "save": saved_and_loaded,
}


@pytest.mark.parametrize(
    "arguments", [{}, FULL, {"frozen": "all", "activation": torch.nn.PReLU()}], ids=["plain", "full", "frozen"]
)
@pytest.mark.parametrize("how", COPIES)
def test_copies(how, arguments):
    module = started(ours.BatchNorm2d(3, **arguments))
    again = COPIES[how](module)
    assert repr(again) == repr(module) and type(again) is type(module)
    x, dy = data(SHAPE), data(SHAPE, 1)
    before = state(module)
    got = step(again, x, dy)
    np.testing.assert_equal(state(module), before)
    np.testing.assert_equal(got, step(module, x, dy))
    np.testing.assert_equal(state(again), state(module))
    again.frozen = module.frozen = False
    assert [p.requires_grad for p in again.parameters()] == [p.requires_grad for p in module.parameters()]


# Types.

CASTS = {
    "half": (lambda module: module.half(), torch.float16),
    "bfloat16": (lambda module: module.bfloat16(), torch.bfloat16),
    "to": (lambda module: module.to(torch.bfloat16), torch.bfloat16),
    "to, in a network": (lambda module: torch.nn.Sequential(module).to(torch.float16)[0], torch.float16),
}


@pytest.mark.parametrize("arguments", [{}, {"renorm": True}, {"average": "debiased"}, {"momentum": None}], ids=str)
@pytest.mark.parametrize("name", CASTS)
def test_statistics_stay_in_float32(name, arguments):
    cast, dtype = CASTS[name]
    module = started(ours.BatchNorm2d(3, **arguments))
    module.running_mean.add_(1e-4)
    before = state(module)
    module = cast(module)
    assert module.weight.dtype == dtype
    np.testing.assert_equal(state(module), before)
    x = data(SHAPE).to(dtype)
    assert module(x).dtype == dtype
    assert {b.dtype for b in module.buffers() if b.is_floating_point()} == {torch.float32}
    fresh = started(ours.BatchNorm2d(3, **arguments))
    fresh.running_mean.add_(1e-4)
    fresh(x.float())
    for statistic, wanted in state(fresh).items():
        np.testing.assert_allclose(state(module)[statistic], wanted, rtol=1e-5, err_msg=statistic)


def test_double_is_double():
    module = ours.BatchNorm2d(3, renorm=True).double()
    assert {b.dtype for b in module.buffers()} == {torch.float64, torch.long}
    x = data(SHAPE, dtype="float64")
    y = module(x)
    assert y.dtype == torch.float64
    np.testing.assert_allclose(plain(module.running_mean), 0.1 * x.numpy().mean((0, 2, 3)), rtol=1e-14)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_small_difference_still_moves_the_average(dtype):
    module = ours.BatchNorm1d(1, eps=0.0, momentum=0.01, bessel_correction=False).to(getattr(torch, dtype))
    module(torch.tensor([[0.0], [2.25]], dtype=getattr(torch, dtype)))  # variance 1.265625, exact in all types
    np.testing.assert_allclose(
        [plain(module.running_mean), plain(module.running_var)], [[0.01125], [1.00265625]], rtol=1e-6
    )


def test_made_with_16_bits():
    module = ours.BatchNorm2d(3, dtype=torch.bfloat16)
    assert (module.weight.dtype, module.running_var.dtype) == (torch.bfloat16, torch.float32)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_values_that_float16_cannot_square(dtype):
    x = data((64, 3), mean=0, std=300, dtype=dtype)
    module = ours.BatchNorm1d(3, momentum=1.0, bessel_correction=False).to(x.dtype)
    y = plain(module(x))
    mean, variance, _ = oracle.moments(plain(x), 1)
    np.testing.assert_allclose(plain(module.running_var), variance, rtol=1e-5)
    unit = tolerances.UNIT_ROUNDOFF[dtype]
    np.testing.assert_allclose(y, oracle.normalize(plain(x), mean, variance, axis=1), atol=8 * unit)


def test_autocast():
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 2), ours.BatchNorm2d(4, activation="relu"), torch.nn.Conv2d(4, 1, 1)
    )
    x = data(SHAPE)
    with torch.autocast("cpu", torch.bfloat16):
        between = network[0](x)
        y = network[1](between)
        assert between.dtype == y.dtype == torch.bfloat16
        network(x).float().square().sum().backward()
    assert network[1].running_var.dtype == network[1].weight.grad.dtype == torch.float32
    mean, variance, _ = oracle.moments(plain(between), 1)
    np.testing.assert_allclose(
        plain(y), np.maximum(oracle.normalize(plain(between), mean, variance, None, None, 1e-5, 1), 0), atol=0.04
    )


# Memory formats and places.


@pytest.mark.parametrize("memory", [None, "recompute", "inplace"])
@pytest.mark.parametrize("training", [True, False])
def test_channels_last_stays_channels_last(training, memory):
    module = started(ours.BatchNorm2d(3, activation="elu", memory=memory)).train(training)
    other, x, dy = copy.deepcopy(module), data(SHAPE), data(SHAPE, 1)
    last = x.to(memory_format=torch.channels_last)
    got, expected = step(module, last, dy), step(other, x, dy)
    assert module(last).is_contiguous(memory_format=torch.channels_last)
    np.testing.assert_allclose(got.y, expected.y, rtol=1e-4, atol=1e-5)
    for mine, wanted in zip(got.gradients, expected.gradients, strict=True):
        np.testing.assert_allclose(mine, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("arguments", [{}, FULL, {"momentum": None}], ids=["plain", "full", "momentum None"])
def test_without_memory_and_then_with(arguments):
    module = ours.BatchNorm2d(3, device="meta", **arguments)
    assert module(torch.empty(SHAPE, device="meta")).shape == SHAPE
    module = module.to_empty(device="cpu")
    module.reset_parameters()
    fresh = ours.BatchNorm2d(3, **arguments)
    np.testing.assert_equal(state(module), state(fresh))
    x, dy = data(SHAPE), data(SHAPE, 1)
    np.testing.assert_equal(step(module, x, dy), step(fresh, x, dy))
