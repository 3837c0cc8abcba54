# SPDX-License-Identifier: Apache-2.0
"""Statistics of raw data that come back to the same bits in every epoch are no stopped ones."""

import keras
import numpy as np
import pytest

import evenkeel

if keras.backend.backend() == "numpy":
    pytest.skip("NumPy does not train", allow_module_level=True)


def test_batches_in_the_same_order():
    x = np.random.default_rng(0).normal(size=(32, 3)).astype("float32")
    model = keras.Sequential([keras.Input([3]), keras.layers.BatchNormalization(momentum=0.1), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    found = []
    monitor = evenkeel.NormalizationMonitor(on_finding=found.append)
    model.fit(x, x[:, :1], batch_size=4, epochs=6, shuffle=False, verbose=0, callbacks=[monitor])
    assert monitor.history[-1].updates == 8 and monitor.history[-1].moved_kl == 0
    assert "EK152" not in {finding.rule for finding in found}


def test_a_model_that_the_first_epoch_builds():
    class Network(keras.Model):
        def __init__(self):
            super().__init__()
            self.normalizer, self.last = keras.layers.BatchNormalization(), keras.layers.Dense(1)

        def call(self, x, training=None):
            return self.last(self.normalizer(x, training=training))

    x = np.random.default_rng(0).normal(size=(16, 3)).astype("float32")
    model = Network()
    model.compile("sgd", "mse")
    monitor = evenkeel.NormalizationMonitor(on_finding=lambda finding: None)  # so few batches are sick
    model.fit(x, x[:, :1], batch_size=8, epochs=2, verbose=0, callbacks=[monitor])
    assert monitor.history[-1].updates == 2
