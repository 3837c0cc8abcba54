# SPDX-License-Identifier: Apache-2.0
"""Modes of torch modules, and calls, that only training shows."""

import pytest

import evenkeel
from evenkeel.doctor.evidence import Normalizer, Phase
from evenkeel.doctor.options import Options
from evenkeel.doctor.subjects import torch as subject

torch = pytest.importorskip("torch")


def test_a_normalizer_left_in_training_mode():
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4)).eval()
    assert not [item for item in subject.evidence(module, Options()) if isinstance(item, Phase)]
    module[1].train()
    (found,) = (item for item in subject.evidence(module, Options()) if isinstance(item, Phase))
    assert (found.name, found.batch) == ("1", True)


def test_each_call_of_a_shared_normalizer_is_an_update():
    shared = torch.nn.BatchNorm1d(3)
    module = torch.nn.Sequential(shared, torch.nn.Linear(3, 3), shared)
    (found,) = (item for item in subject.evidence(module, Options(steps=10)) if isinstance(item, Normalizer))
    assert found.batches_per_step == 2


def test_one_row_is_no_sample():
    module = torch.nn.Sequential(torch.nn.BatchNorm2d(3), torch.nn.Conv2d(3, 2, 1))
    for _ in range(50):
        module(torch.randn(8, 3, 6, 6))
    report = evenkeel.diagnose(module.eval(), torch.randn(1, 3, 6, 6) + 0.9)
    assert not report.errors and not report.warnings
