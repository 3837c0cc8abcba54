# SPDX-License-Identifier: Apache-2.0
"""torch modules, trained, each broken in one way: the first error names the cause, and the healthy twin has none."""

import copy

import numpy as np
import pytest

from conftest import NAME

if NAME != "torch":
    pytest.skip("of torch", allow_module_level=True)

import torch
from torch import nn

import evenkeel as ek

ROWS, FEATURES, CLASSES = 512, 12, 4


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def data(rows=ROWS):
    generator = np.random.default_rng(0)
    labels = generator.integers(0, CLASSES, rows)
    centres = np.random.default_rng(1).normal(0, 2, (CLASSES, FEATURES))
    return (centres[labels] + generator.normal(size=(rows, FEATURES)) + 1).astype("float32"), labels


def network(**options):
    return nn.Sequential(
        nn.Linear(FEATURES, 16, bias=False),
        nn.BatchNorm1d(16, **options),
        nn.ReLU(),
        nn.Linear(16, 16, bias=False),
        nn.BatchNorm1d(16, **options),
        nn.ReLU(),
        nn.Linear(16, CLASSES),
    )


def trained(model, scale=1.0, epochs=5):
    inputs, labels = map(torch.tensor, data())
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 1e-2)
    model.train()
    for _ in range(epochs):
        for start in range(0, ROWS, 32):
            loss = nn.functional.cross_entropy(model(scale * inputs[start : start + 32]), labels[start : start + 32])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.eval()


class Inside(nn.Module):
    """Normalizes by the batch in every phase."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(16)

    def forward(self, x):
        norm = self.norm
        return nn.functional.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, training=True)


def never_updated():
    model = trained(network())
    model[1].reset_running_stats()
    return model, "EK101"


def poisoned():
    model = trained(network())
    model[4].running_var[3] = float("inf")
    return model, "EK103"


def epsilon_taken_away():
    """As a loader of another version did, detectron2#2413."""
    model = trained(network())
    model[4].running_var[:2] = -1e-3
    return model, "EK104"


def momentum_of_keras():
    return trained(network(momentum=0.99)), "EK202"


def momentum_too_slow():
    return trained(network(momentum=0.001)), "EK201"


def without_statistics():
    return trained(network(track_running_stats=False)), "EK303"


def phase_fixed_in_forward():
    model = network()
    model[4] = Inside()
    return trained(model), "EK303"


def other_preprocessing():
    return trained(network(), scale=100.0), "EK401"


SICK = [
    never_updated,
    poisoned,
    epsilon_taken_away,
    momentum_of_keras,
    momentum_too_slow,
    without_statistics,
    phase_fixed_in_forward,
    other_preprocessing,
]


@pytest.mark.parametrize("patient", SICK, ids=lambda patient: patient.__name__)
def test_the_first_error_names_the_cause(patient):
    model, cause = patient()
    report = ek.diagnose(model, data())
    assert report.errors and report.errors[0].rule == cause, str(report)


@pytest.mark.parametrize("options", [{}, {"momentum": None}, {"momentum": 0.05, "eps": 1e-3}, {"affine": False}])
def test_the_healthy_twin_has_no_error_and_no_warning(options):
    report = ek.diagnose(trained(network(**options)), data())
    assert not report.errors + report.warnings, str(report)


def test_healthy_twin_frozen_by_evenkeel(tmp_path):
    model = trained(network())
    ek.freeze(model)
    before = copy.deepcopy(model.state_dict())
    trained(model, epochs=1)
    torch.save(before, tmp_path / "before.pt")
    torch.save(model.state_dict(), tmp_path / "after.pt")
    report = ek.diagnose((tmp_path / "before.pt", tmp_path / "after.pt"))
    assert not report.errors, str(report)


def test_half_frozen_is_a_warning():
    model = trained(network())
    for parameter in model[:2].parameters():
        parameter.requires_grad = False
    report = ek.diagnose(model.train(), data())
    assert [finding.where for finding in report.findings if finding.rule == "EK205"] == ["1"], str(report)


def test_weights_that_trained_beside_statistics_that_did_not(tmp_path):
    """A converter, or a target network, that copies parameters and no buffers."""
    model = trained(network())
    torch.save(model.state_dict(), tmp_path / "before.pt")
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    trained(model)
    torch.save(model.state_dict() | buffers, tmp_path / "after.pt")
    report = ek.diagnose((tmp_path / "before.pt", tmp_path / "after.pt"))
    assert report.findings[0].rule == "EK152", str(report)


def test_a_loader_whose_last_batch_is_one_row():
    inputs, labels = map(torch.tensor, data(ROWS + 1))
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(inputs, labels), batch_size=32)
    report = ek.diagnose(trained(network()), loader)
    assert report.errors[0].rule == "EK405", str(report)
