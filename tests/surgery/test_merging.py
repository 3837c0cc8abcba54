# SPDX-License-Identifier: Apache-2.0
"""Statistics of several processes, merged; the processes are real in tests/layers/test_synchronized.py."""

import numpy as np
import pytest

from conftest import NAME

if NAME == "numpy":
    pytest.skip("Keras computes with a framework", allow_module_level=True)

import keras

import evenkeel as ek
from evenkeel.errors import ArgumentError, InputError

X = np.random.default_rng(0).normal([3, -1], [1, 4], (30, 2))
PARTS = [X[:6], X[6:10], X[10:]]


def model(**options):
    return keras.Sequential([keras.Input([2]), ek.BatchNormalization(**options)])


def others(*parts, updates=()):
    """What the other processes say, after this one."""
    rows = [np.concatenate([[len(part)], part.mean(0), part.var(0), updates]) for part in parts]
    return lambda mine: [mine, *rows] if mine.size > 1 else [mine, *[np.array([row.size]) for row in rows]]


def with_statistics(part, **options):
    made = model(**options)
    made.layers[0].moving_mean.assign(part.mean(0))
    made.layers[0].moving_variance.assign(part.var(0))
    return made


def plain(value):
    return keras.ops.convert_to_numpy(value)


def test_they_are_those_of_all_data():
    made = with_statistics(PARTS[0])
    report = ek.merge_statistics_across_processes(made, rows=6, gather=others(*PARTS[1:]))
    np.testing.assert_allclose(plain(made.layers[0].moving_mean.value), X.mean(0), rtol=1e-5)
    np.testing.assert_allclose(plain(made.layers[0].moving_variance.value), X.var(0), rtol=1e-5)
    wanted = [(np.abs(part.mean(0) - X.mean(0)) / X.std(0)).max() for part in PARTS]
    np.testing.assert_allclose(report.merged[0].shift, wanted, rtol=1e-4)
    assert "merged from 3 processes" in str(report)


def test_deviations_follow_and_the_largest_counter_stays():
    clipping = {"rmax": keras.optimizers.schedules.ExponentialDecay(2.0, 10, 1.1)}
    made = with_statistics(PARTS[0], renorm=True, renorm_clipping=clipping, average="debiased")
    layer = made.layers[0]
    layer.updates.assign([3.0, 9.0])
    ek.merge_statistics_across_processes(made, rows=6, gather=others(*PARTS[1:], updates=[5.0, 5.0]))
    np.testing.assert_allclose(plain(layer.renorm_stddev.value) ** 2, X.var(0) + layer.epsilon, rtol=1e-5)
    np.testing.assert_array_equal(plain(layer.updates.value), [5, 9])


def test_one_process_alone_keeps_its_own():
    made = with_statistics(PARTS[0])
    ek.merge_statistics_across_processes(made)
    np.testing.assert_allclose(plain(made.layers[0].moving_variance.value), PARTS[0].var(0), rtol=1e-6)


@pytest.mark.parametrize(
    ("made", "options", "error", "message"),
    [
        (lambda: keras.Sequential([keras.Input([2]), keras.layers.Dense(1)]), {}, InputError, "keeps no statistics"),
        (ek.BatchNormalization, {}, InputError, "was never called"),
        (lambda: 3, {}, ArgumentError, "a int has no statistics"),
        (model, {"rows": -1}, ArgumentError, "rows=-1 is no number"),
        (model, {"gather": lambda mine: [mine, mine + 1]}, InputError, "the processes hold 5, 6 numbers"),
    ],
)
def test_what_cannot_be_merged(made, options, error, message):
    with pytest.raises(error, match=message):
        ek.merge_statistics_across_processes(made(), **options)


@pytest.mark.skipif(NAME != "torch", reason="of torch")
def test_a_torch_module():
    import torch

    module = torch.nn.BatchNorm1d(2)
    module.running_mean.copy_(torch.tensor(PARTS[0].mean(0)))
    module.running_var.copy_(torch.tensor(PARTS[0].var(0)))
    ek.merge_statistics_across_processes(module, rows=6, gather=others(*PARTS[1:]))
    np.testing.assert_allclose(module.running_var.numpy(), X.var(0), rtol=1e-5)


@pytest.mark.skipif(NAME != "torch", reason="of torch")
def test_a_torch_module_of_ours():
    import torch

    from evenkeel import torch as ours

    module = ours.BatchNorm(2, renorm=True, average="debiased")
    module.running_mean.copy_(torch.tensor(PARTS[0].mean(0)))
    module.running_var.copy_(torch.tensor(PARTS[0].var(0)))
    ek.merge_statistics_across_processes(module, rows=6, gather=others(*PARTS[1:], updates=[7.0, 9.0]))
    np.testing.assert_allclose(module.running_var.numpy(), X.var(0), rtol=1e-5)
    torch.testing.assert_close(module.moving_stddev, (module.running_var + module.eps).sqrt())
    assert module.updates.tolist() == [7, 9] and module.num_batches_tracked == 9


def test_a_channel_that_one_process_lost_is_that_of_the_others():
    made = with_statistics(PARTS[0])
    made.layers[0].moving_variance.assign([np.nan, 16.0])
    report = ek.merge_statistics_across_processes(made, rows=6, gather=others(*PARTS[1:]))
    whole, rest = X.var(0)[1], np.concatenate(PARTS[1:]).var(0)[0]
    variance = plain(made.layers[0].moving_variance.value)
    np.testing.assert_allclose(variance[0], rest, rtol=1e-5)
    assert abs(variance[1] / whole - 1) < 0.3 and report.merged[0].shift[0] == np.inf


def test_a_process_without_rows_gets_what_the_others_have():
    made = model()
    ek.merge_statistics_across_processes(made, rows=0, gather=others(X))
    np.testing.assert_allclose(plain(made.layers[0].moving_variance.value), X.var(0), rtol=1e-5)
