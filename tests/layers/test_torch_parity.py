# SPDX-License-Identifier: Apache-2.0
"""What torch's modules do, ours do: output, gradients, buffers, files; where torch is wrong, the oracle is asked."""

import copy

import numpy as np
import pytest

from conftest import NAME

if NAME != "torch":
    pytest.skip("modules of torch", allow_module_level=True)
import torch

import evenkeel.torch as ours
from layers.torch_steps import data, plain, started, state, step

import hard_data
import oracle
import tolerances

ARGUMENTS = {
    "defaults": {},
    "eps": {"eps": 0.5},
    "momentum 0": {"momentum": 0.0},
    "momentum 0.5": {"momentum": 0.5},
    "momentum 1": {"momentum": 1.0},
    "momentum None": {"momentum": None},
    "affine": {"affine": False},
    "bias": {"bias": False},
    "neither": {"affine": False, "bias": False},
    "track_running_stats": {"track_running_stats": False},
    "track_running_stats, affine": {"track_running_stats": False, "affine": False},
    "dtype": {"dtype": torch.float64},
    "device": {"device": "cpu"},
}
RANKS = {
    "1d, two": ("BatchNorm1d", (24, 4)),
    "1d, three": ("BatchNorm1d", (6, 4, 5)),
    "2d": ("BatchNorm2d", (4, 4, 3, 5)),
    "3d": ("BatchNorm3d", (3, 4, 2, 3, 4)),
}
STEPS = 3


def pair(kind="BatchNorm2d", channels=4, **arguments):
    """torch's module and ours, with the same state."""
    theirs = started(getattr(torch.nn, kind)(channels, **arguments))
    module = getattr(ours, kind)(channels, **arguments)
    module.load_state_dict(theirs.state_dict())
    return theirs, module


def check_state(theirs, module, count):
    error = tolerances.mean("float32", count, 2) + tolerances.variance("float32", count, 2)
    now = module.state_dict()
    assert list(now) == list(theirs.state_dict())
    for name, wanted in theirs.state_dict().items():
        wanted, got = plain(wanted), plain(now[name])
        assert np.abs(got - wanted).max() <= 4 * error * (np.abs(wanted).max() + 1), name


def check_step(theirs, module, x, dy):
    """Both take the step; what comes out may be apart by twice the error of one."""
    expected, got = step(theirs, x, dy), step(module, x, dy)
    count, dtype = x.numel() // x.shape[1], str(x.dtype).removeprefix("torch.")
    condition = tolerances.condition(1.5, 1)
    assert np.abs(got.y - expected.y).max() <= 2 * tolerances.output(dtype, count, condition, np.abs(expected.y).max())
    for mine, wanted in zip(got.gradients, expected.gradients, strict=True):
        assert np.abs(mine - wanted).max() <= 2 * tolerances.gradient(dtype, count, condition, np.abs(wanted).max() + 1)
    check_state(theirs, module, count)


def check_inference(theirs, module, x):
    before = state(module)
    theirs.eval(), module.eval()
    np.testing.assert_allclose(plain(module(x)), plain(theirs(x)), rtol=1e-5, atol=1e-5)
    np.testing.assert_equal(state(module), before)
    theirs.train(), module.train()


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("name", ARGUMENTS)
def test_arguments(path, name, rank):
    kind, shape = RANKS[rank]
    theirs, module = pair(kind, **ARGUMENTS[name])
    dtype = str(ARGUMENTS[name].get("dtype", torch.float32)).removeprefix("torch.")
    for seed in range(STEPS):
        check_step(theirs, module, data(shape, seed, dtype=dtype), data(shape, seed + 50, dtype=dtype))
    check_inference(theirs, module, data(shape, 9, dtype=dtype))
    assert repr(module) == repr(theirs)


@pytest.mark.parametrize("shape", [(24, 4), (6, 4, 5), (4, 4, 3, 5)])
def test_any_rank_is_what_syncbatchnorm_is_in_one_process(shape):
    theirs, module = started(torch.nn.SyncBatchNorm(4)), ours.BatchNorm(4, synchronized=True)
    module.load_state_dict(theirs.state_dict())
    check_step(theirs, module, data(shape), data(shape, 1))
    check_inference(theirs, module, data(shape))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_narrow_inputs_of_a_float32_module(dtype):
    theirs, module = pair()
    for seed in range(STEPS):
        x, dy = data((4, 4, 3, 5), seed, dtype=dtype), data((4, 4, 3, 5), seed + 50, dtype=dtype)
        check_step(theirs, module, x, dy)
        assert module(x).dtype == theirs(x).dtype == x.dtype


FLIPS = {
    "track_running_stats": {"track_running_stats": False},
    "momentum": {"momentum": 0.7},
    "momentum None": {"momentum": None},
    "eps": {"eps": 0.2},
}


@pytest.mark.parametrize("name", FLIPS)
def test_attributes_that_are_changed_later(name):
    theirs, module = pair()
    shape = (4, 4, 3, 5)
    check_step(theirs, module, data(shape, 1), data(shape, 2))
    for attribute, value in FLIPS[name].items():
        before = getattr(module, attribute)
        setattr(theirs, attribute, value), setattr(module, attribute, value)
    for seed in (3, 4):
        check_step(theirs, module, data(shape, seed), data(shape, seed + 50))
    check_inference(theirs, module, data(shape, 9))
    setattr(theirs, attribute, before), setattr(module, attribute, before)
    check_step(theirs, module, data(shape, 5), data(shape, 55))


@pytest.mark.parametrize("momentum", [0.1, None])
def test_running_statistics_are_reset(momentum):
    theirs, module = pair(momentum=momentum)
    for module_ in (theirs, module):
        module_(data((4, 4, 3, 5)))
        module_.reset_running_stats()
    check_step(theirs, module, data((4, 4, 3, 5), 1), data((4, 4, 3, 5), 2))
    theirs.reset_parameters(), module.reset_parameters()
    check_state(theirs, module, 60)


def test_the_counter_of_torch_decides_how_much_the_next_batch_counts():
    theirs, module = pair(momentum=None)
    for module_ in (theirs, module):
        module_(data((4, 4, 3, 5)))
        module_.num_batches_tracked.zero_()
    check_step(theirs, module, data((4, 4, 3, 5), 1), data((4, 4, 3, 5), 2))


# Lazy ones.


@pytest.mark.parametrize("name", [name for name in ARGUMENTS if name != "track_running_stats, affine"])
def test_lazy_ones_become_the_same(name):
    theirs, module = (library.LazyBatchNorm2d(**ARGUMENTS[name]) for library in (torch.nn, ours))
    dtype = str(ARGUMENTS[name].get("dtype", torch.float32)).removeprefix("torch.")
    assert list(module.state_dict()) == list(theirs.state_dict())
    with torch.no_grad():
        theirs(data((4, 4, 3, 5), dtype=dtype)), module(data((4, 4, 3, 5), dtype=dtype))
    assert (type(module), type(theirs)) == (ours.BatchNorm2d, torch.nn.BatchNorm2d)
    check_state(theirs, module, 60)
    check_step(theirs, module, data((4, 4, 3, 5), 1, dtype=dtype), data((4, 4, 3, 5), 2, dtype=dtype))


def test_a_lazy_one_with_nothing_to_learn_or_keep():
    module = ours.LazyBatchNorm1d(affine=False, track_running_stats=False)
    theirs = torch.nn.BatchNorm1d(4, affine=False, track_running_stats=False)
    check_step(theirs, module, data((24, 4)), data((24, 4), 1))


@pytest.mark.parametrize("kind", ["LazyBatchNorm1d", "LazyBatchNorm2d", "LazyBatchNorm3d"])
def test_lazy_ones_load_what_torch_saved(kind):
    full = started(getattr(torch.nn, kind.removeprefix("Lazy"))(4))
    module = getattr(ours, kind)()
    module.load_state_dict(full.state_dict())
    check_state(full, module, 60)
    shape = (4, 4, 3, 5, 2)[: {"1d": 2, "2d": 4, "3d": 5}[kind[-2:]]]
    check_step(full, module, data(shape), data(shape, 1))


# Files.


@pytest.mark.parametrize("name", ARGUMENTS)
def test_files_go_both_ways(name, tmp_path):
    theirs, module = pair(**ARGUMENTS[name])
    x = data((4, 4, 3, 5)).to(ARGUMENTS[name].get("dtype", torch.float32))
    theirs(x), module(x)
    torch.save(module.state_dict(), tmp_path / "ours.pt")
    saved = torch.load(tmp_path / "ours.pt", weights_only=True)
    assert saved._metadata[""]["version"] == theirs.state_dict()._metadata[""]["version"] == 2
    again = torch.nn.BatchNorm2d(4, **ARGUMENTS[name])
    again.load_state_dict(saved, strict=True)
    check_state(theirs, again, 60)
    module.load_state_dict(theirs.state_dict(), strict=True)
    check_step(theirs, module, x, x)


@pytest.mark.parametrize("momentum", [0.1, None])
def test_files_from_before_torch_counted(momentum):
    """Version 1 had no `num_batches_tracked`; a plain dictionary has no version."""
    old = dict(started(torch.nn.BatchNorm2d(4)).state_dict())
    del old["num_batches_tracked"]
    theirs, module = (library.BatchNorm2d(4, momentum=momentum) for library in (torch.nn, ours))
    for module_ in (theirs, module):
        module_.load_state_dict(copy.copy(old), strict=True)
    check_step(theirs, module, data((4, 4, 3, 5)), data((4, 4, 3, 5), 1))


CHANGED = {
    "counter": (lambda file: file.pop("num_batches_tracked"), "num_batches_tracked"),
    "weight": (lambda file: file.pop("weight"), "weight"),
    "more": (lambda file: file.update(gamma=torch.ones(4)), "gamma"),
    "size": (lambda file: file.update(bias=torch.ones(5)), r"torch.Size\(\[5\]\)"),
}


@pytest.mark.parametrize("library", [torch.nn, ours], ids=["torch", "ours"])
@pytest.mark.parametrize("name", CHANGED)
def test_strict_is_as_strict(name, library):
    change, message = CHANGED[name]
    file = torch.nn.BatchNorm2d(4).state_dict()
    change(file)
    with pytest.raises(RuntimeError, match=message):
        library.BatchNorm2d(4).load_state_dict(file, strict=True)


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("arguments", [{}, {"momentum": None}, {"average": "debiased"}, {"renorm": True}], ids=str)
def test_half_precision_files_are_kept_in_float32(arguments, assign):
    file = started(torch.nn.BatchNorm2d(4)).half().state_dict()
    module = ours.BatchNorm2d(4, **arguments)
    module.load_state_dict(file, assign=assign)
    assert {
        name: buffer.dtype for name, buffer in module.named_buffers() if buffer.is_floating_point()
    } == dict.fromkeys(
        [name for name in state(module) if name not in ("num_batches_tracked", "updates")], torch.float32
    )
    np.testing.assert_array_equal(plain(module.running_var), plain(file["running_var"]))
    assert module.weight.dtype == (torch.float16 if assign else torch.float32)
    x = data((4, 4, 3, 5), dtype="float16")
    before = state(module)
    assert torch.isfinite(module(x)).all()
    assert all((state(module)[name] != old).all() for name, old in before.items())


@pytest.mark.parametrize(
    "arguments",
    [
        {"average": "debiased"},
        {"average": "cumulative"},
        {"renorm": True},
        {"renorm": True, "eps": 0.1},
        {"renorm": True, "dtype": torch.float64},
    ],
    ids=str,
)
def test_files_of_torch_fill_what_only_ours_have(arguments):
    theirs = started(torch.nn.BatchNorm2d(4, dtype=arguments.get("dtype")))
    theirs.num_batches_tracked.fill_(7)
    file = theirs.state_dict()
    module = ours.BatchNorm2d(4, **arguments)
    module.load_state_dict(file, strict=True)
    assert list(file) == list(theirs.state_dict())  # which is the caller's
    if "renorm" in arguments:
        deviation = np.sqrt(plain(theirs.running_var) + module.eps)
        for name, wanted in (
            ("moving_stddev", deviation),
            ("renorm_stddev", deviation),
            ("renorm_mean", plain(theirs.running_mean)),
        ):
            np.testing.assert_allclose(
                plain(getattr(module, name)), wanted, rtol=1e-12 if "dtype" in arguments else 1e-6
            )
    else:
        assert module.updates.tolist() == [7] * 4
    again = ours.BatchNorm2d(4, **arguments)
    module(data((4, 4, 3, 5)).to(module.weight.dtype))
    again.load_state_dict(module.state_dict(), strict=True)
    np.testing.assert_equal(state(again), state(module))


@pytest.mark.parametrize("arguments", [{}, {"momentum": None}, {"average": "debiased"}, {"renorm": True}], ids=str)
def test_a_module_without_memory_is_given_a_file(arguments):
    usual, module = (ours.BatchNorm2d(4, device=device, **arguments) for device in ("cpu", "meta"))
    for module_ in (usual, module):
        module_.load_state_dict(started(torch.nn.BatchNorm2d(4)).state_dict(), assign=module_ is module)
    x = data((4, 4, 3, 5))
    np.testing.assert_array_equal(plain(module(x)), plain(usual(x)))
    np.testing.assert_equal(state(module), state(usual))


# Mistakes, and what torch's tools ask.


@pytest.mark.parametrize("library", [torch.nn, ours], ids=["torch", "ours"])
@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        ("BatchNorm1d", (4, 3, 2, 2)),
        ("BatchNorm1d", (3,)),
        ("BatchNorm2d", (4, 3)),
        ("BatchNorm2d", (4, 3, 2)),
        ("BatchNorm3d", (4, 3, 2, 2)),
        ("LazyBatchNorm2d", (4, 3, 2)),
    ],
)
def test_ranks_that_are_refused(library, kind, shape):
    module = getattr(library, kind)(*[] if "Lazy" in kind else [3])
    with pytest.raises(ValueError, match=f"got {len(shape)}D input"):
        module(torch.ones(shape))


@pytest.mark.parametrize("phase", [True, False])
def test_one_value_a_channel_without_running_statistics(phase):
    for library in (torch.nn, ours):
        with pytest.raises(ValueError, match=r"\(1, 3\)|\[1, 3\]"):
            library.BatchNorm1d(3, track_running_stats=False).train(phase)(torch.ones(1, 3))


@pytest.mark.parametrize(
    "kind", ["BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "LazyBatchNorm1d", "LazyBatchNorm2d", "LazyBatchNorm3d"]
)
def test_ours_are_torch_s(kind):
    module = getattr(ours, kind)(*[] if "Lazy" in kind else [3])
    assert isinstance(module, getattr(torch.nn, kind))
    assert isinstance(module, torch.nn.BatchNorm1d.__base__ if "Lazy" not in kind else torch.nn.Module)
    assert not isinstance(ours.BatchNorm(3), torch.nn.BatchNorm1d)
    assert isinstance(ours.BatchNorm(3), torch.nn.BatchNorm1d.__base__)


@pytest.mark.parametrize("momentum", [0.1, None])
def test_update_bn(momentum):
    batches = [data((6, 4), seed) for seed in range(3)]
    theirs, module = pair("BatchNorm1d", momentum=momentum)
    for module_ in (theirs, module):
        torch.optim.swa_utils.update_bn(batches, torch.nn.Sequential(module_))
        assert module_.momentum == momentum
    check_state(theirs, module, 6)
    np.testing.assert_allclose(
        plain(module.running_mean), np.mean([plain(x).mean(0) for x in batches], axis=0), rtol=1e-5
    )
    check_step(theirs, module, data((6, 4), 7), data((6, 4), 8))


def test_update_bn_with_renorm_and_with_counts():
    batches = [data((6, 4), seed) for seed in range(3)]
    module = started(ours.BatchNorm1d(4, renorm=True, average="debiased"))
    torch.optim.swa_utils.update_bn(batches, torch.nn.Sequential(module))
    np.testing.assert_allclose(
        plain(module.running_mean), np.mean([plain(x).mean(0) for x in batches], axis=0), rtol=1e-5
    )
    assert module.updates.tolist() == [3] * 4


@pytest.mark.parametrize("kind", ["conv", "linear"])
def test_torch_folds_ours(kind):
    if kind == "conv":
        before, module, x = torch.nn.Conv2d(3, 4, 2), started(ours.BatchNorm2d(4)), data((4, 3, 5, 5))
        fuse = torch.nn.utils.fusion.fuse_conv_bn_eval
    else:
        before, module, x = torch.nn.Linear(3, 4), started(ours.BatchNorm1d(4)), data((4, 3))
        fuse = torch.nn.utils.fusion.fuse_linear_bn_eval
    before, module = before.eval(), module.eval()
    np.testing.assert_allclose(plain(fuse(before, module)(x)), plain(module(before(x))), rtol=1e-4, atol=1e-5)


def test_an_average_of_weights():
    module = started(ours.BatchNorm1d(4, average="debiased"))
    averaged = torch.optim.swa_utils.AveragedModel(module, use_buffers=True)
    averaged.update_parameters(module)
    np.testing.assert_equal(state(averaged.module), state(module))


def test_skip_init():
    module = torch.nn.utils.skip_init(ours.BatchNorm2d, 3, activation="relu", dtype=torch.float64)
    assert module.weight.device.type == "cpu" and module.weight.dtype == torch.float64
    module.reset_parameters()
    check_state(torch.nn.BatchNorm2d(3), module, 60)


def test_arguments_by_position():
    given = 4, 0.5, 0.7, True, True, "cpu", torch.float64
    assert repr(ours.BatchNorm2d(*given)) == repr(torch.nn.BatchNorm2d(*given))
    assert ours.BatchNorm2d(*given).weight.dtype == torch.float64


# Where torch is wrong.


@pytest.mark.parametrize(("library", "counted"), [(torch.nn, 1), (ours, 0)], ids=["torch", "ours"])
def test_an_empty_batch_is_no_batch(library, counted):
    module = library.BatchNorm1d(3)
    assert module(torch.zeros(0, 3)).shape == (0, 3)
    assert module.num_batches_tracked == counted


@pytest.mark.parametrize(("library", "spoilt"), [(torch.nn, True), (ours, False)], ids=["torch", "ours"])
@pytest.mark.parametrize("name", hard_data.NON_FINITE)
def test_a_bad_value_stays_in_the_statistics_of_torch(name, library, spoilt):
    module = library.BatchNorm1d(3)
    module(torch.tensor(hard_data.NON_FINITE[name]).movedim(-1, 1))
    finite = torch.isfinite(module.running_var)
    assert finite.tolist() == [True, not spoilt, True]


def test_one_value_a_channel_is_normalized():
    theirs, module = pair("BatchNorm1d")
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        theirs(data((1, 4)))
    before = state(module)
    got = plain(module(data((1, 4))))
    np.testing.assert_equal(state(module), before)
    np.testing.assert_allclose(got, plain(module.eval()(data((1, 4)))), rtol=1e-5)


def test_epsilon_zero():
    theirs, module = pair("BatchNorm1d", eps=0.0)
    x = data((24, 4))
    with pytest.raises(ValueError, match="eps"):
        theirs(x)
    mean, variance, _ = oracle.moments(x, 1)
    expected = oracle.normalize(x, mean, variance, plain(module.weight), plain(module.bias), 0.0, 1)
    np.testing.assert_allclose(plain(module(x)), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "given", [torch.arange(24).reshape(8, 3), torch.arange(24.0).double().reshape(8, 3)], ids=["int", "double"]
)
def test_types_that_torch_refuses(given):
    with pytest.raises((RuntimeError, NotImplementedError)):
        torch.nn.BatchNorm1d(3)(given)
    expected = oracle.normalize(given, *oracle.moments(given, 1)[:2], epsilon=1e-5, axis=1)
    np.testing.assert_allclose(plain(ours.BatchNorm1d(3)(given)), expected, atol=1e-5)


def test_no_channels():
    with pytest.raises(IndexError):
        torch.nn.BatchNorm1d(0)(torch.ones(4, 0))
    assert ours.BatchNorm1d(0)(torch.ones(4, 0)).shape == (4, 0)
