# SPDX-License-Identifier: Apache-2.0
"""What is measured on a GPU: right and wrong answers, what is kept, who fails; on the CPU, with small tensors."""

import importlib.util

import pytest

from evenkeel.workloads import gpu
from evenkeel.workloads.gpu import Found, GpuCase, Result
from evenkeel.workloads.timing import Quartiles

from conftest import NAME

torch = pytest.importorskip("torch")
if NAME not in ("torch", "jax"):
    pytest.skip(f"a GPU is measured with torch and JAX, not {NAME}", allow_module_level=True)
only_torch = pytest.mark.skipif(NAME != "torch", reason="this part is for torch")
only_jax = pytest.mark.skipif(NAME != "jax", reason="this part is for JAX")

SMALL = GpuCase((4, 3, 5, 6), "float32", True, True, compiled=False)
DTYPES = ["float32", "bfloat16", "float16"]


def test_the_largest_case_fits_twice():
    largest = max(gpu.CASES, key=lambda case: case.size)
    assert (largest.size, largest.steps, largest.passes) == (411_041_792, 2, 8)


@pytest.mark.parametrize(
    ("shape", "steps"), [((64, 256, 56, 56), 2), ((64, 2048, 7, 7), 7), ((64, 512, 7, 7), 16), ((2, 8, 5, 5), 16)]
)
def test_small_tensors_take_more_steps(shape, steps):
    assert GpuCase(shape, "bfloat16", True, True).steps == steps


def test_cases_are_of_resnet_50_and_differ():
    assert len(set(gpu.CASES)) == len(gpu.CASES) == 21
    assert {case.shape[0] for case in gpu.CASES} == {64, 256}
    assert {case.passes for case in gpu.CASES} == {8, 10}


@pytest.mark.parametrize("missing", ["torch", "triton"])
def test_what_is_missing_is_named(missing, monkeypatch):
    monkeypatch.setattr(gpu.importlib.util, "find_spec", lambda name: None if name == missing else "found")
    assert gpu.available() == f"{missing} is not installed"


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
@pytest.mark.parametrize("there", [False, True])
def test_a_gpu_is_there_or_not(there, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    assert gpu.available() == ("" if there else f"torch {torch.__version__} finds no CUDA GPU")


def answers(case):
    """That of torch's own layer, and the exact one."""
    given = gpu._data(case, 0, "cpu")
    (answer,) = gpu._native(case, "cpu").take([given])
    return [value.detach().clone() for value in answer], gpu._exact(case, given)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("residual", [False, True])
def test_torch_is_right(dtype, channels_last, residual):
    case = GpuCase((16, 4, 28, 28), dtype, channels_last, residual)
    assert gpu._wrong(*answers(case), case) == ""


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("place", "name"), list(enumerate(["y", "dx", "dgamma", "dbeta", "dresidual"])))
@pytest.mark.parametrize(
    "spoil", [lambda value: 1.3 * value + 1, lambda value: value * float("nan")], ids=["off", "NaN"]
)
def test_a_wrong_answer_is_named(dtype, place, name, spoil):
    case = GpuCase((16, 4, 14, 14), dtype, True, True)
    answer, wanted = answers(case)
    # A sum of so many values is wrong by what a share of them adds up to.
    answer[place] = spoil(answer[place]) + (200 if name in ("dgamma", "dbeta") else 0)
    assert gpu._wrong(answer, wanted, case).startswith(f"{name} is off by ")


def test_one_value_of_y_is_enough():
    answer, wanted = answers(SMALL)
    answer[0][-1, -1, -1, -1] += 0.01
    assert gpu._wrong(answer, wanted, SMALL).startswith("y is off by ")


@pytest.mark.parametrize(("more", "wrong"), [(100, False), (2000, True)])
def test_relu_may_decide_the_other_way_for_a_few(more, wrong):
    case = GpuCase((16, 4, 28, 28), "bfloat16", True, True)
    answer, wanted = answers(case)
    answer[4].permute(0, 2, 3, 1).view(-1)[:more] += 3
    assert bool(gpu._wrong(answer, wanted, case)) == wrong


def test_all_go_forward_before_one_goes_back():
    order = []

    def forward(x, residual):
        order.append("forward")
        y = x * weight
        y.register_hook(lambda _: order.append("backward"))
        return y

    weight = torch.ones((), requires_grad=True)
    inputs = [(torch.ones(2, requires_grad=True), torch.full((2,), number), None) for number in (1.0, 2.0)]
    answers = gpu._Step(forward, [weight]).take(inputs)
    assert order == ["forward"] * 2 + ["backward"] * 2
    assert [[value.tolist() for value in answer] for answer in answers] == [
        [[1.0, 1.0], [1.0, 1.0], 2.0],
        [[1.0, 1.0], [2.0, 2.0], 4.0],
    ]


@pytest.mark.parametrize(
    ("forward", "tensors"),
    [
        (lambda x, residual: x + residual, 0),
        (lambda x, residual: x * x, 1),
        (lambda x, residual: x[:2] * x[2:], 1),
        (lambda x, residual: x * residual, 2),
        (lambda x, residual: (x * residual).exp(), 3),
    ],
    ids=["nothing", "twice the same", "two parts of one", "two", "the result too"],
)
def test_memory_that_is_kept_counts_once(forward, tensors):
    given = gpu._data(SMALL, 0, "cpu")
    assert gpu._kept(gpu._Step(forward, []), given) == tensors * SMALL.size


@only_torch
def test_on_the_cpu_no_peak_is_known():
    assert gpu._peak(gpu._ours(SMALL, "cpu"), gpu._data(SMALL, 0, "cpu"), "cpu") is None


def fails(case, device):
    raise RuntimeError("no such layer\nand much more")


@pytest.fixture
def found(monkeypatch):
    monkeypatch.setattr(gpu, "_keras", fails)
    return gpu._measure_case(SMALL, 0.01, 1e9, "cpu")


@only_torch
def test_who_fails_does_not_stop_the_others(found):
    failed = found.fastest("keras")
    assert (failed.seconds, failed.fault) == (None, "RuntimeError: no such layer")
    assert [(it.role, it.fault) for it in found.results if it.seconds] == [("ours", ""), ("eager", "")]
    assert set(found.beside) == {"eager"} and found.rounds >= 5


@only_torch
def test_seconds_are_of_a_step(found):
    ours = found.fastest("ours")
    assert found.of_copy == pytest.approx(10 * SMALL.size / ours.seconds.median / 1e9)
    assert ours.seconds.median < 0.005  # a turn is as long as that, and has many


def a_result(role, *seconds):
    return Result(role, role, Quartiles(*seconds) if seconds else None, True, None, None, "")


def test_who_joins_stands_beside_the_median():
    found = Found(SMALL, 5, [a_result("ours", 3, 4, 6), a_result("ours", 1, 2, 3)], {}, 0.5)
    joined = found.joined_by(a_result("jax", 4, 5, 6))
    assert joined.beside == {"jax": Quartiles(2, 2.5, 3)} and joined.results[-1].name == "jax"
    assert found.beside == {}


@pytest.mark.parametrize("joins", [a_result("jax"), a_result("jax", 1, 2, 3)], ids=["without time", "with time"])
def test_beside_nobody_there_is_no_ratio(joins):
    found = Found(SMALL, 5, [a_result("ours")] if joins.seconds else [a_result("ours", 1, 1, 1)], {}, None)
    assert found.joined_by(joins).beside == {}


@only_jax
@pytest.mark.parametrize(("dtype", "channels_last", "residual"), [("bfloat16", True, True), ("float32", False, False)])
def test_jax_is_right_and_timed(dtype, channels_last, residual, monkeypatch):
    monkeypatch.setattr(gpu, "MOST_STEPS", 2)
    case = GpuCase((4, 11, 3, 5), dtype, channels_last, residual)
    versions, result = gpu.measure_jax([case], 0.01)
    assert set(versions) == {"jax", "device"}
    assert (result.role, result.fault) == ("jax", "")
    assert 0 < result.seconds.first <= result.seconds.median and result.kept >= case.size


@only_jax
def test_jax_is_told_when_wrong(monkeypatch):
    monkeypatch.setattr(gpu, "MOST_STEPS", 2)
    exact = gpu._exact
    monkeypatch.setattr(gpu, "_exact", lambda *given: [value + 1 for value in exact(*given)])
    _, result = gpu.measure_jax([SMALL], 0.01)
    assert result.fault.startswith("y is off by 1")


@only_jax
def test_a_case_that_jax_cannot_do_is_told(monkeypatch):
    monkeypatch.setattr(gpu, "MOST_STEPS", 2)
    monkeypatch.setattr(gpu, "_exact", fails)
    _, first, second = gpu.measure_jax([SMALL, SMALL], 0.01)
    assert first.fault == second.fault == "RuntimeError: no such layer"
