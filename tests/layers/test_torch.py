# SPDX-License-Identifier: Apache-2.0
"""What torch's modules lack and ours have: numbers on hard data, properties, options, protection, mistakes."""

import copy

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from conftest import NAME

if NAME != "torch":
    pytest.skip("modules of torch", allow_module_level=True)
import torch

import evenkeel as ek
import evenkeel.torch as ours
from evenkeel.errors import ArgumentError, AxisError, RenormLimitError, WeightShapeError
from evenkeel.functional.renorm import Limits, Renorm
from layers.torch_steps import data, plain, started, state, step

import hard_data
import oracle
import tolerances

EPSILON = 1e-5


def tensor(x):
    return torch.tensor(x.astype("float32")).bfloat16() if x.dtype.name == "bfloat16" else torch.as_tensor(x)


def inferred(module, x, axis=1):
    """The formula, with the running statistics."""
    gamma, beta = (None if value is None else plain(value) for value in (module.weight, module.bias))
    return oracle.normalize(x, plain(module.running_mean), plain(module.running_var), gamma, beta, module.eps, axis)


# Numbers.


@pytest.mark.parametrize("name", hard_data.FINITE)
def test_hard_data(path, name):
    x, axis = hard_data.FINITE[name]
    mean, variance, (count, *_) = oracle.moments(x, axis)
    module = ours.BatchNorm(len(mean), axis=axis, momentum=1.0)
    y = module(tensor(x))
    assert y.dtype == tensor(x).dtype and y.shape == x.shape
    got, expected = (
        np.moveaxis(v, axis, 0) for v in (plain(y), oracle.normalize(x, mean, variance, None, None, EPSILON, axis))
    )
    for channel, (m, v) in enumerate(zip(mean, variance, strict=True)):
        condition = tolerances.condition(m, v + EPSILON)
        largest = np.abs(expected[channel]).max() + 1
        assert np.abs(got[channel] - expected[channel]).max() <= tolerances.output(
            x.dtype.name, count, condition, largest
        )
        sample, constant = v * count / (count - 1), (16 * 2.0**-24 * m) ** 2 * (v == 0) + 1.2e-38
        assert (
            abs(plain(module.running_mean)[channel] - m)
            <= tolerances.mean(x.dtype.name, count, condition) * (v + EPSILON) ** 0.5
        )
        error = tolerances.variance(x.dtype.name, count, tolerances.condition(m, v) if v else 1)
        assert abs(plain(module.running_var)[channel] - sample) <= error * sample + constant


@pytest.mark.parametrize("activation", [None, "relu", "leaky_relu", "elu"])
@pytest.mark.parametrize("name", ["dense", "plain", "channels first", "axis in the middle", "not contiguous", "volume"])
def test_gradients(path, name, activation):
    x, axis = hard_data.FINITE[name]
    mean, variance, _ = oracle.moments(x, axis)
    module = started(ours.BatchNorm(len(mean), axis=axis, activation=activation))
    gamma, beta = plain(module.weight), plain(module.bias)
    dy = np.random.default_rng(1).normal(size=x.shape)
    got = step(module, tensor(x), torch.tensor(dy))
    z = oracle.normalize(x, mean, variance, gamma, beta, EPSILON, axis)
    below = {
        None: (z, 1),
        "relu": (0, 0),
        "leaky_relu": (0.01 * z, 0.01),
        "elu": (np.expm1(np.minimum(z, 0)), np.exp(np.minimum(z, 0))),
    }
    y, slope = (np.where(z > 0, above, part) for above, part in zip((z, 1), below[activation], strict=True))
    np.testing.assert_allclose(got.y, y, rtol=1e-4, atol=1e-5)
    expected = oracle.gradients(x, dy * slope, gamma, EPSILON, axis)
    for mine, wanted in zip(got.gradients, expected, strict=True):
        np.testing.assert_allclose(mine, wanted, rtol=1e-3, atol=1e-3)


numbers = st.floats(-100, 100, width=32)


@hypothesis.given(st.integers(0, 99), st.permutations(range(8)))
def test_the_order_of_the_batch_does_not_matter(seed, order):
    x, (one, other) = data((8, 3, 4), seed), (ours.BatchNorm1d(3) for _ in range(2))
    np.testing.assert_allclose(plain(other(x[list(order)])), plain(one(x))[list(order)], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(plain(other.running_var), plain(one.running_var), rtol=1e-5)


@hypothesis.given(st.integers(0, 99), numbers, st.floats(0.125, 8, width=32))
def test_shift_and_scale_are_normalized_away(seed, shift, scale):
    x, (one, other) = data((16, 3), seed), (ours.BatchNorm1d(3, eps=0.0, momentum=1.0) for _ in range(2))
    np.testing.assert_allclose(plain(other(x * scale + shift)), plain(one(x)), atol=1e-3)
    np.testing.assert_allclose(plain(other.running_mean), plain(one.running_mean) * scale + shift, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(plain(other.running_var), plain(one.running_var) * scale**2, rtol=1e-3)


@hypothesis.given(
    st.integers(0, 99), st.lists(st.integers(0, 3), min_size=6, max_size=6).filter(lambda w: sum(map(bool, w)) > 1)
)
def test_a_weight_repeats_a_row(seed, weights):
    x, (one, other) = data((6, 3), seed), (ours.BatchNorm1d(3, momentum=1.0) for _ in range(2))
    repeated = torch.tensor([row for row, times in enumerate(weights) for _ in range(times)])
    y = plain(one(x, sample_weight=torch.tensor(weights).float()))
    np.testing.assert_allclose(y[repeated], plain(other(x[repeated])), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(plain(one.running_var), plain(other.running_var), rtol=1e-4)


@hypothesis.given(st.integers(0, 99))
def test_the_gradient_sums_to_zero_over_the_batch(seed):
    dx, *_ = step(ours.BatchNorm1d(3), data((8, 3, 4), seed), data((8, 3, 4), seed + 1)).gradients
    np.testing.assert_allclose(dx.sum((0, 2)), 0, atol=1e-4)


# Options.


@pytest.mark.parametrize("axis", [0, 1, 2, 3, -1, -2])
def test_any_axis(path, axis):
    x = data((4, 5, 3, 6))
    module = started(ours.BatchNorm(x.shape[axis], axis=axis))
    plain_module = started(ours.BatchNorm(x.shape[axis]))
    np.testing.assert_allclose(plain(module(x)), plain(plain_module(x.movedim(axis, 1)).movedim(1, axis)), atol=1e-5)
    np.testing.assert_allclose(plain(module.running_var), plain(plain_module.running_var), rtol=1e-5)


FITTING = {
    "batch": (6,),
    "batch and time": (6, 5),
    "time": (1, 5),
    "full": (6, 3, 5),
    "one for all channels": (6, 1, 5),
}


@pytest.mark.parametrize("kind", ["mask", "sample_weight"])
@pytest.mark.parametrize("name", FITTING)
def test_masks_and_weights(path, name, kind):
    shape, x = FITTING[name], data((6, 3, 5))
    rng = np.random.default_rng(5)
    weights = rng.random(shape) < 0.7 if kind == "mask" else rng.random(shape).astype("float32")
    module = ours.BatchNorm1d(3, momentum=1.0, bessel_correction=False)
    y = plain(module(x, **{kind: torch.tensor(weights)}))
    full = weights if len(shape) == 3 else weights.reshape(shape[0], 1, *shape[1:], *[1] * (2 - len(shape)))
    mean, variance, _ = oracle.moments(x, 1, full)
    np.testing.assert_allclose(plain(module.running_mean), mean, rtol=1e-5)
    np.testing.assert_allclose(plain(module.running_var), variance, rtol=1e-5)
    np.testing.assert_allclose(y, oracle.normalize(x, mean, variance, epsilon=EPSILON, axis=1), atol=1e-5)
    module.eval()
    np.testing.assert_array_equal(plain(module(x, **{kind: torch.tensor(weights)})), plain(module(x)))


def test_masked_nan_reaches_nothing():
    x = data((6, 3, 5))
    x[2] = float("nan")
    module = ours.BatchNorm1d(3)
    got = step(module, x, data((6, 3, 5), 1), mask=torch.arange(6) != 2)
    assert all(np.isfinite(value).all() for value in (*got.gradients, *state(module).values()))


RENORM = {
    "free": {"renorm": True},
    "limits": {"renorm": True, "renorm_clipping": {"rmin": 0.9, "rmax": 1.1, "dmax": 0.2}, "renorm_momentum": 0.3},
    "schedule": {
        "renorm": True,
        "renorm_clipping": {"rmax": lambda updates: 1.0 + updates, "dmax": lambda updates: 0.5 * updates},
    },
    "debiased": {"renorm": True, "average": "debiased", "bessel_correction": False},
}


@pytest.mark.parametrize("name", RENORM)
def test_renorm_is_that_of_the_function(path, name):
    """Three steps beside `ek.batch_norm`, of which the Keras layer is another shell."""
    arguments = RENORM[name]
    module = started(ours.BatchNorm1d(3, **arguments))
    kept = ek.State(
        *(
            getattr(module, n)
            for n in ("running_mean", "running_var", "moving_stddev", "renorm_mean", "renorm_stddev", "updates")
        )
    )
    kept = ek.State(*(None if value is None else value.clone() for value in kept))
    options = {
        "momentum": 0.9,
        "axis": 1,
        "epsilon": EPSILON,
        "average": arguments.get("average", "exponential"),
        "bessel_correction": arguments.get("bessel_correction", True),
        "renorm": Renorm(Limits.of(arguments.get("renorm_clipping")), 1 - arguments.get("renorm_momentum", 0.01)),
    }
    for seed in range(3):
        x = data((16, 3), seed)
        wanted, kept = ek.batch_norm(x, ek.Parameters(module.weight, module.bias), kept, training=True, **options)
        np.testing.assert_allclose(plain(module(x)), plain(wanted), rtol=1e-5, atol=1e-5)
    names = ("running_mean", "running_var", "moving_stddev", "renorm_mean", "renorm_stddev", "updates")
    for attribute, value in zip(names, kept, strict=True):
        assert (getattr(module, attribute) is None) == (value is None)
        assert value is None or torch.allclose(getattr(module, attribute), value)
    module.reset_running_stats()
    np.testing.assert_allclose(plain(module.renorm_stddev), [(1 + EPSILON) ** 0.5] * 3, rtol=1e-6)


@pytest.mark.parametrize("size", [1, 2, 3, 8, 20])
def test_virtual_batches(path, size):
    x = data((8, 3, 4))
    module, whole = (started(ours.BatchNorm1d(3, virtual_batch_size=rows)) for rows in (size, None))
    parts = [plain(whole(x[i : i + size])) for i in range(0, 8, size)]
    np.testing.assert_allclose(plain(module(x)), np.concatenate(parts), atol=1e-5)
    assert module.num_batches_tracked == 1


@pytest.mark.parametrize(
    ("average", "weight"),
    [
        ("exponential", lambda t: 0.1),
        ("debiased", lambda t: 0.1 / (1 - 0.9**t)),
        ("cumulative", lambda t: 1 / t),
    ],
)
def test_averages(average, weight):
    module = started(ours.BatchNorm1d(3, average=average))
    mean, variance = plain(module.running_mean), plain(module.running_var)
    for t in (1, 2, 3):
        x = data((20, 3), seed=t, std=t)
        module(x)
        new = oracle.moments(x, 1)
        mean, variance = (
            oracle.moved(old, v, 1 - weight(t)) for old, v in ((mean, new[0]), (variance, new[1] * 20 / 19))
        )
    np.testing.assert_allclose(plain(module.running_mean), mean, rtol=1e-5)
    np.testing.assert_allclose(plain(module.running_var), variance, rtol=1e-5)
    assert ("updates" in module.state_dict()) == (average != "exponential")
    assert module.num_batches_tracked == 3


ACTIVATIONS = {
    "relu": ("relu", torch.relu),
    "leaky_relu": ("leaky_relu", torch.nn.functional.leaky_relu),
    "elu": ("elu", torch.nn.functional.elu),
    "relu, a function": (torch.relu, torch.relu),
    "relu, a module": (torch.nn.ReLU(), torch.relu),
    "leaky, another slope": (torch.nn.LeakyReLU(0.3), torch.nn.LeakyReLU(0.3)),
    "elu, another alpha": (torch.nn.ELU(2.0), torch.nn.ELU(2.0)),
    "gelu": (torch.nn.functional.gelu, torch.nn.functional.gelu),
    "ours": (lambda y: 2 * y, lambda y: 2 * y),
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation(path, name, training):
    given, function = ACTIVATIONS[name]
    module, linear = (started(ours.BatchNorm1d(3, activation=a)).train(training) for a in (given, None))
    x, dy = data((8, 3), mean=0), data((8, 3), 1)
    got, expected = step(module, x, dy), step(torch.nn.Sequential(linear, *[]), x, dy)
    np.testing.assert_allclose(got.y, plain(function(torch.tensor(expected.y))), rtol=1e-5, atol=1e-6)
    other = step(lambda_module(linear, function), x, dy)
    for mine, wanted in zip(got.gradients, other.gradients, strict=True):
        np.testing.assert_allclose(mine, wanted, rtol=1e-4, atol=1e-5)


def lambda_module(first, function):
    class Both(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first = first

        def forward(self, x):
            return function(self.first(x))

    return Both()


def test_what_an_activation_learns_is_the_module_s():
    module = ours.BatchNorm1d(3, activation=torch.nn.PReLU())
    assert list(module.state_dict())[-1] == "activation.weight"
    got = step(module, data((8, 3), mean=0), data((8, 3), 1))
    assert len(got.gradients) == 4 and got.gradients[-1] != 0


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("activation", [None, "relu", torch.nn.functional.gelu], ids=["none", "relu", "gelu"])
def test_residual(path, activation, training):
    module, linear = (started(ours.BatchNorm2d(3, activation=a)).train(training) for a in (activation, None))
    function = {None: lambda y: y, "relu": torch.relu}.get(activation, activation)
    x, dy = data((4, 3, 2, 5)), data((4, 3, 2, 5), 1)
    mine, theirs = (data((4, 3, 2, 5), 2, mean=0).requires_grad_() for _ in range(2))
    got = step(module, x, dy, residual=mine)
    expected = step(lambda_module(linear, lambda y: function(y + theirs)), x, dy)
    np.testing.assert_allclose(got.y, expected.y, rtol=1e-5, atol=1e-5)
    for value, wanted in zip(got.gradients, expected.gradients, strict=True):
        np.testing.assert_allclose(value, wanted, rtol=1e-4, atol=1e-5)
    (module(x, residual=mine) * dy).sum().backward()
    (function(linear(x) + theirs) * dy).sum().backward()
    np.testing.assert_allclose(plain(mine.grad), plain(theirs.grad), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("given", [torch.arange(8) < 6, None], ids=["mask", "no mask"])
def test_residual_beside_a_mask(given):
    module = ours.BatchNorm1d(3, activation="relu", momentum=1.0)
    x, residual = data((8, 3)), data((8, 3), 1)
    y = module(x, residual, mask=given)
    mean, variance, _ = oracle.moments(x[:6] if given is not None else x, 1)
    expected = np.maximum(oracle.normalize(x, mean, variance, epsilon=EPSILON, axis=1) + plain(residual), 0)
    np.testing.assert_allclose(plain(y), expected, rtol=1e-4, atol=1e-5)


# What is kept for the backward pass.

LEAN = {
    "recompute": ("recompute", None),
    "recompute relu": ("recompute", "relu"),
    "recompute elu": ("recompute", "elu"),
    "inplace": ("inplace", None),
    "inplace leaky_relu": ("inplace", "leaky_relu"),
    "inplace elu": ("inplace", "elu"),
}


def kept(module, x, **call):
    """The result, and the bytes of each tensor kept for `backward` that has more than one value a channel."""
    found = {}

    def note(value):
        if value.numel() > x.shape[1]:
            found[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        return value

    with torch.autograd.graph.saved_tensors_hooks(note, lambda value: value):
        y = module(x, **call)
    return y, found


@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", LEAN)
def test_one_tensor_of_the_input_s_size_is_kept(name, form):
    memory, activation = LEAN[name]
    module = started(ours.BatchNorm2d(3, activation=activation, memory=memory))
    x = data((4, 3, 5, 2)).to(memory_format=form).requires_grad_()
    y, found = kept(module, x)
    assert found == {(x if memory == "recompute" else y).untyped_storage().data_ptr(): x.nbytes}


def test_the_check_notices_a_second_tensor():
    x = data((4, 3, 5, 2)).requires_grad_()
    assert len(kept(lambda_module(ours.BatchNorm2d(3), torch.nn.functional.gelu), x)[1]) == 2
    module = ours.BatchNorm2d(3, activation="relu", memory="recompute")
    y, found = kept(module, x, residual=data((4, 3, 5, 2), 1))
    assert set(found) == {x.untyped_storage().data_ptr(), y.untyped_storage().data_ptr()}


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
@pytest.mark.parametrize("shape", [(16, 3), (4, 3, 5, 2)])
@pytest.mark.parametrize("name", LEAN)
def test_less_memory_gives_the_same_numbers(name, shape, dtype):
    memory, activation = LEAN[name]
    kind = ours.BatchNorm1d if len(shape) == 2 else ours.BatchNorm2d
    lean, usual = (started(kind(3, activation=activation, memory=m)) for m in (memory, None))
    x, dy = data(shape, mean=1, dtype=dtype), data(shape, 1, dtype=dtype)
    if dtype == "float64":
        lean, usual = lean.double(), usual.double()
    got, expected = step(lean, x, dy), step(usual, x, dy)
    np.testing.assert_array_equal(got.y, expected.y)
    np.testing.assert_equal(state(lean), state(usual))
    unit = tolerances.UNIT_ROUNDOFF[dtype] * (100 if memory == "inplace" else 10)  # a slope of 0.01 is divided by
    for value, wanted in zip(got.gradients, expected.gradients, strict=True):
        np.testing.assert_allclose(value, wanted, rtol=0, atol=4 * unit * np.abs(wanted).max())


@pytest.mark.parametrize("activation", [None, "relu", "leaky_relu", "elu"])
def test_less_memory_beside_a_residual(activation):
    lean, usual = (started(ours.BatchNorm2d(3, activation=activation, memory=m)) for m in ("recompute", None))
    x, dy = data((4, 3, 5, 2)), data((4, 3, 5, 2), 1)
    residuals = [data((4, 3, 5, 2), 2, mean=-3).requires_grad_() for _ in range(2)]
    for module, residual in zip((lean, usual), residuals, strict=True):
        (module(x, residual) * dy).sum().backward()
    np.testing.assert_allclose(plain(residuals[0].grad), plain(residuals[1].grad), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(plain(lean.weight.grad), plain(usual.weight.grad), rtol=1e-4, atol=1e-5)


def test_inplace_with_a_gamma_of_zero_is_finite():
    module = ours.BatchNorm1d(3, memory="inplace", activation="elu")
    module.weight.data[1] = 0
    got = step(module, data((8, 3)), data((8, 3), 1))
    assert all(np.isfinite(value).all() for value in got.gradients)
    assert got.gradients[1][1] == 0 and (got.gradients[1][[0, 2]] != 0).all()


# Frozen.


def test_frozen_uses_and_keeps_the_running_statistics_while_weight_learns(path):
    module, x, dy = started(ours.BatchNorm1d(3, frozen=True)), data((16, 3)), data((16, 3), 1)
    before = state(module)
    got = step(module.train(), x, dy)
    np.testing.assert_allclose(got.y, inferred(module, x), rtol=1e-5, atol=1e-5)
    np.testing.assert_equal(state(module), before)
    x_hat = oracle.normalize(x, before["running_mean"], before["running_var"], epsilon=EPSILON, axis=1)
    np.testing.assert_allclose(got.gradients[1:], [(plain(dy) * x_hat).sum(0), plain(dy).sum(0)], rtol=1e-4, atol=1e-4)
    module.frozen = False
    module(x)
    assert all((now != before[name]).all() for name, now in state(module).items())


@pytest.mark.parametrize("held", [[], ["bias"]], ids=["both", "bias was held"])
def test_frozen_altogether_and_back(held):
    module = ours.BatchNorm1d(3)
    for name in held:
        getattr(module, name).requires_grad_(False)
    before = {name: value.requires_grad for name, value in module.named_parameters()}
    module.frozen = "all"
    assert module.frozen == "all"
    assert not any(value.requires_grad for value in module.parameters())
    module.frozen = True
    assert {name: value.requires_grad for name, value in module.named_parameters()} == before
    module.frozen = "all"
    module.train().frozen = False
    assert {name: value.requires_grad for name, value in module.named_parameters()} == before


@pytest.mark.parametrize("frozen", [True, "all"])
def test_a_lazy_one_may_start_frozen(frozen):
    module = ours.LazyBatchNorm1d(frozen=frozen)
    module(data((8, 3)))
    assert module.running_mean.tolist() == [0] * 3
    assert [value.requires_grad for value in module.parameters()] == [frozen is True] * 2


def test_lazy_with_all_of_ours():
    module = ours.LazyBatchNorm2d(renorm=True, average="debiased", axis=-1, activation="elu")
    x = data((4, 2, 5, 3))
    y = module(x, residual=x, mask=torch.arange(4) < 3)
    other = ours.BatchNorm2d(3, renorm=True, average="debiased", axis=-1, activation="elu")
    np.testing.assert_array_equal(plain(y), plain(other(x, residual=x, mask=torch.arange(4) < 3)))
    np.testing.assert_equal(state(module), state(other))
    again = ours.LazyBatchNorm2d(renorm=True, average="debiased", axis=-1, activation="elu")
    again.load_state_dict(module.state_dict())
    again.eval(), module.eval()
    np.testing.assert_array_equal(plain(again(x)), plain(module(x)))
    np.testing.assert_equal(state(again), state(module))


# Protection.

KINDS = {
    "plain": {},
    "renorm": {"renorm": True},
    "debiased": {"average": "debiased"},
    "momentum None": {"momentum": None},
    "virtual": {"virtual_batch_size": 4},
    "memory": {"memory": "inplace"},
}


@pytest.mark.parametrize(
    ("name", "kind"),
    # With a mask there is no kernel, and without a kernel no memory=.
    [(n, k) for n, (_, mask) in hard_data.USELESS.items() for k in KINDS if mask is None or k != "memory"],
)
def test_a_useless_batch_changes_nothing(name, kind):
    x, mask = hard_data.USELESS[name]
    module = started(ours.BatchNorm(3, axis=-1, **KINDS[kind]))
    before = state(module)
    y = module(torch.tensor(x), mask=None if mask is None else torch.tensor(mask))
    if mask is not None and module.updates is None:
        before["num_batches_tracked"] += 1  # only the data tells that no channel took anything in
    np.testing.assert_equal(state(module), before)
    np.testing.assert_allclose(plain(y), inferred(module, x, -1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", hard_data.NON_FINITE)
def test_a_channel_with_a_bad_value_keeps_its_state(name, kind):
    module = started(ours.BatchNorm(3, axis=-1, **KINDS[kind]))
    before = state(module)
    module(torch.tensor(hard_data.NON_FINITE[name]))
    changed = np.stack([now != before[name] for name, now in state(module).items() if now.ndim])
    assert changed[:, [0, 2]].all() and not changed[:, 1].any()
    assert module.num_batches_tracked == 1


def test_untracked_with_one_value_a_channel():
    with pytest.raises(ArgumentError, match=r"\(1, 3\) arrived"):
        ours.BatchNorm1d(3, track_running_stats=False)(torch.ones(1, 3))
    assert ours.BatchNorm1d(3, track_running_stats=False)(torch.ones(0, 3)).shape == (0, 3)


# Derivatives, in float64 against finite differences.

DERIVED = {
    "plain": ({}, {}),
    "no affine": ({"affine": False}, {}),
    "relu": ({"activation": "relu"}, {}),
    "leaky_relu": ({"activation": "leaky_relu"}, {}),
    "elu": ({"activation": "elu"}, {}),
    "gelu": ({"activation": torch.nn.functional.gelu}, {}),
    "residual": ({"activation": "elu"}, {"residual": data((5, 2, 3), 7, dtype="float64")}),
    "mask": ({}, {"mask": torch.arange(5) < 3}),
    "sample_weight": ({"activation": "relu"}, {"sample_weight": torch.linspace(0, 2, 5)}),
    "virtual": ({"virtual_batch_size": 2}, {}),
    "frozen": ({"frozen": True, "activation": "elu"}, {}),
    "untracked": ({"track_running_stats": False}, {}),
    "axis": ({"axis": -2}, {}),
}
LEAN_DERIVED = {
    "recompute": ({"memory": "recompute", "activation": "relu"}, {}),
    "recompute residual": (
        {"memory": "recompute", "activation": "elu"},
        {"residual": data((5, 2, 3), 7, dtype="float64")},
    ),
    "inplace": ({"memory": "inplace"}, {}),
    "inplace leaky_relu": ({"memory": "inplace", "activation": "leaky_relu"}, {}),
    "inplace elu": ({"memory": "inplace", "activation": "elu"}, {}),
}


def of_arrays(arguments, call):
    module = started(ours.BatchNorm1d(2, **arguments).double())
    names = [name for name, _ in module.named_parameters()]
    tensors = [value.detach().clone().requires_grad_() for value in module.parameters()]
    beside = [
        value.clone().requires_grad_() for value in call.values() if value.is_floating_point() and value.ndim == 3
    ]

    def function(x, *values):
        given = dict(zip(names, values, strict=False))
        more = {"residual": values[-1]} if beside else call
        return torch.func.functional_call(module, given, (x,), more)

    return function, [data((5, 2, 3), 3, dtype="float64").requires_grad_(), *tensors, *beside]


@pytest.mark.parametrize("name", DERIVED)
def test_first_derivatives(path, name):
    assert torch.autograd.gradcheck(*of_arrays(*DERIVED[name]))


@pytest.mark.parametrize("name", LEAN_DERIVED)
def test_first_derivatives_with_less_memory(name):
    assert torch.autograd.gradcheck(*of_arrays(*LEAN_DERIVED[name]))


@pytest.mark.parametrize("name", ["plain", "no affine", "leaky_relu", "elu", "residual", "mask", "frozen"])
def test_second_derivatives(path, name):
    assert torch.autograd.gradgradcheck(*of_arrays(*DERIVED[name]), fast_mode=True)


def test_less_memory_has_no_second_derivatives_and_says_so():
    function, arrays = of_arrays({"memory": "recompute"}, {})
    (first,) = torch.autograd.grad(function(*arrays).pow(3).sum(), arrays[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


# Mistakes.

MISTAKES = {
    "momentum": ({"momentum": 1.5}, ArgumentError, "momentum=1.5"),
    "momentum NaN": ({"momentum": float("nan")}, ArgumentError, "momentum=nan"),
    "eps": ({"eps": -1e-3}, ArgumentError, "eps=-0.001"),
    "renorm_momentum": ({"renorm_momentum": 2}, ArgumentError, "renorm_momentum=2"),
    "renorm key": ({"renorm": True, "renorm_clipping": {"rmaxx": 3}}, RenormLimitError, "rmaxx"),
    "renorm limits": ({"renorm": True, "renorm_clipping": {"rmin": 3.0, "rmax": 2.0}}, RenormLimitError, "rmin=3.0"),
    "renorm untracked": ({"renorm": True, "track_running_stats": False}, ArgumentError, "renorm=True"),
    "axis a float": ({"axis": 1.5}, AxisError, "axis=1.5"),
    "axis two": ({"axis": [1, 2]}, ArgumentError, r"axis=\[1, 2\]"),
    "virtual 0": ({"virtual_batch_size": 0}, ArgumentError, "virtual_batch_size=0"),
    "virtual of channels": ({"virtual_batch_size": 2, "axis": 0}, ArgumentError, "axis=0"),
    "virtual synchronized": ({"virtual_batch_size": 2, "synchronized": True}, ArgumentError, "virtual_batch_size=2"),
    "average": ({"average": "median"}, ArgumentError, "average='median'"),
    "activation": ({"activation": "gelu"}, ArgumentError, "activation='gelu'"),
    "activation a number": ({"activation": 3}, ArgumentError, "activation=3"),
    "activation a class": ({"activation": torch.nn.GELU}, ArgumentError, "activation=<class .*GELU'>"),
    "frozen": ({"frozen": "some"}, ArgumentError, "frozen='some'"),
    "frozen untracked": ({"frozen": True, "track_running_stats": False}, ArgumentError, "frozen=True"),
    "group": ({"process_group": 3}, ArgumentError, "process_group"),
    "memory": ({"memory": "less"}, ArgumentError, "memory='less'"),
    "memory relu": ({"memory": "inplace", "activation": "relu"}, ArgumentError, "activation='relu'"),
    "memory function": ({"memory": "inplace", "activation": torch.nn.functional.gelu}, ArgumentError, "gelu"),
    "memory renorm": ({"memory": "recompute", "renorm": True}, ArgumentError, "memory='recompute'"),
    "unknown": ({"momentun": 0.9}, TypeError, "momentun"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_told_in_the_constructor(name):
    arguments, error, message = MISTAKES[name]
    with pytest.raises(error, match=message):
        ours.BatchNorm(3, **arguments)


CALLS = {
    "channels": (lambda: ours.BatchNorm2d(4)(torch.ones(2, 3, 2, 2)), ArgumentError, r"\(2, 3, 2, 2\).*num_features=4"),
    "axis": (lambda: ours.BatchNorm(4, axis=2)(torch.ones(2, 4)), AxisError, "axis=2 .* 2 dimensions"),
    "axis of 1d": (lambda: ours.BatchNorm1d(4, axis=2)(torch.ones(2, 4)), AxisError, "axis=2 .* 2 dimensions"),
    "residual": (
        lambda: ours.BatchNorm1d(3)(torch.ones(4, 3), torch.ones(2, 3)),
        ArgumentError,
        r"residual has shape \(2, 3\).*\(4, 3\)",
    ),
    "mask": (lambda: ours.BatchNorm1d(3)(torch.ones(4, 3), mask=torch.ones(5)), WeightShapeError, r"\(5,\).*\(4, 3\)"),
    "memory": (
        lambda: ours.BatchNorm1d(3, memory="recompute")(torch.ones(4, 3), mask=torch.ones(4)),
        ArgumentError,
        "memory='recompute'.*a mask or weights",
    ),
    "inplace": (
        lambda: ours.BatchNorm1d(3, memory="inplace")(torch.ones(4, 3), torch.ones(4, 3)),
        ArgumentError,
        "memory='inplace'.*residual",
    ),
    "frozen": (lambda: setattr(ours.BatchNorm1d(3), "frozen", "some"), ArgumentError, "frozen='some'"),
}


@pytest.mark.parametrize("name", CALLS)
def test_mistakes_that_only_a_call_shows(name):
    call, error, message = CALLS[name]
    with pytest.raises(error, match=message):
        call()


def test_a_mistake_in_freezing_changes_nothing():
    module = ours.BatchNorm1d(3, frozen="all")
    with pytest.raises(ArgumentError):
        module.frozen = 2
    assert module.frozen == "all" and not module.weight.requires_grad


def test_a_network_with_ours_learns():
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(3, 8), ours.BatchNorm1d(8, activation="relu"), torch.nn.Linear(8, 1))
    optimizer = torch.optim.SGD(network.parameters(), 0.05)
    x = data((64, 3))
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = (network(x) - x[:, :1].sin()).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2
    served = copy.deepcopy(network).eval()
    np.testing.assert_allclose(plain(served(x[:1])), plain(served(x))[:1], rtol=1e-5)
