# SPDX-License-Identifier: Apache-2.0
"""One step after the other, against what TensorFlow 1.15 wrote down.

The cases that need no more than `functional` has: one layer, a Python training flag, 1.15's fused operation told apart
from the plain one by what it is: the sample variance, and epsilon raised to cuDNN's least.
"""

import json

import numpy as np
import pytest

import evenkeel as ek
from evenkeel.functional.renorm import Limits, Renorm

from conftest import GOLDENS, NAME

BASE = {"float32": 3e-6, "float64": 1e-12}
FLOOR = {"float32": 1e-9, "float64": 1e-14}
UNDERSTOOD = {
    "activation_fn", "adjustment", "axis", "batch_weights", "beta_constraint", "beta_initializer", "beta_regularizer",
    "center", "data_format", "decay", "dtype", "epsilon", "fused", "gamma_constraint", "gamma_initializer",
    "gamma_regularizer", "momentum", "moving_mean_initializer", "moving_variance_initializer", "outputs_collections",
    "param_initializers", "param_regularizers", "renorm", "renorm_clipping", "renorm_decay", "renorm_momentum", "scale",
    "updates_collections", "variables_collections",
}  # fmt: skip
APIS = {
    "tf.layers.batch_normalization",
    "tf.keras.layers.BatchNormalization",
    "tf.contrib.layers.batch_norm",
    "tf.contrib.slim.batch_norm",
}
# Where 1.15 does what this library is there to prevent: words of the case's name.
DIFFERENT = {
    "nan": "it lets NaN into the moving statistics",
    "inf": "it lets infinity into the moving statistics",
    "batch1": "it takes statistics of one value",
    "all_zero": "it divides by a weight of zero",
    "1e6": "its own statistics are wrong by 4 % there",
    "relu6": "functional has no such activation",
}


def cases():
    for case in json.loads((GOLDENS / "manifest.json").read_text())["cases"]:
        simple = case["kind"] == "layer_steps" and case["training"] is True and "batch_seq" not in case
        understood = case["api"] in APIS and case["dtype"] in BASE and set(case["kwargs"]) <= UNDERSTOOD
        if simple and understood and not any(f"_{word}_" in case["id"] for word in DIFFERENT):
            yield pytest.param(case, id=case["id"])


# JAX and PyTorch run the core; they differ from the others in nothing that the other 100 cases would show.
CASES = [case for case in cases() if NAME in ("numpy", "tensorflow") or case.values[0]["tier"] == "core"]


class Golden:
    """One recorded case: its arrays, and the options of `batch_norm` that mean the same."""

    def __init__(self, case, backend):
        self.case, self.backend = case, backend
        with np.load(GOLDENS / case["npz"]) as file:
            self.arrays = dict(file)
        self.variables = {name.rsplit("/", 1)[-1]: name for name in case["meta"]["variable_shapes"]}
        given = case["kwargs"]
        contrib = "contrib" in case["api"]
        fused = case["meta"]["fused_op"]
        epsilon = given.get("epsilon", 1e-3)
        self.axis = given.get("axis", 1 if given.get("data_format") == "NCHW" else -1)
        self.options = {
            "axis": self.axis,
            "epsilon": max(epsilon, 1.001e-5) if fused else epsilon,
            "bessel_correction": fused,
        }
        if "activation_fn" in given:
            self.options["activation"] = (given["activation_fn"] or {}).get("$activation")
        self.kept = given.get("decay" if contrib else "momentum", 0.999 if contrib else 0.99)
        if given.get("renorm"):
            self.momentum = given.get("renorm_decay", given.get("renorm_momentum", 0.99))

    def array(self, name):
        return self.backend.array(self.arrays[name])

    def at(self, step):
        """The options of one step: limits and adjustments may be fed."""
        options, given = dict(self.options), self.case["kwargs"]

        def value(item):
            if isinstance(item, dict):
                return self.array(item["$array"] if "$array" in item else f"{item['$feed']}_{step}")
            return item

        kept = self.arrays[f"{self.kept['$feed']}_{step}"] if isinstance(self.kept, dict) else self.kept
        # 1.15 rounds what is replaced to float32, for float64 variables too.
        options["momentum"] = 1 - float(np.float32(1 - kept))
        if given.get("renorm"):
            clipping = {name: value(item) for name, item in (given.get("renorm_clipping") or {}).items()}
            options["renorm"] = Renorm(Limits.of(clipping), self.momentum)
        if "batch_weights" in given:
            options["sample_weight"] = value(given["batch_weights"])
        if "adjustment" in given:
            spec = given["adjustment"]

            def adjustment(shape):
                if spec["$callable"] == "scale_shift_const":
                    return self.array(spec["scale"]), self.array(spec["bias"])
                dtype = self.case["dtype"]
                return tuple(self.backend.array(np.full(shape[-1:], spec[key], dtype)) for key in ("scale", "bias"))

            options["adjustment"] = adjustment
        return options

    def state(self, prefix):
        names = [name for name in ek.State._fields if name in self.variables]
        return ek.State(**{name: self.array(f"{prefix}/{self.variables[name]}") for name in names})

    def parameters(self):
        return ek.Parameters(
            *(
                self.array(f"state_init/{self.variables[name]}") if name in self.variables else None
                for name in ("gamma", "beta")
            )
        )

    def check(self, got, name, group):
        expected, got = self.arrays[name], self.backend.numpy(got)
        error = self.case["tf115_vs_float64"].get(group) or 0.0
        dtype = self.case["dtype"]
        bound = BASE[dtype] * np.nanmax(np.abs(expected), initial=0) + 4 * error + FLOOR[dtype]
        np.testing.assert_array_equal(np.isfinite(got), np.isfinite(expected))
        finite = np.isfinite(expected)
        assert np.abs(got[finite] - expected[finite]).max(initial=0) <= bound, name


@pytest.mark.parametrize("case", CASES)
def test_steps(backend, path, case):
    with backend.double():
        item = Golden(case, backend)
        state, params = item.state("state_init"), item.parameters()
        for step in range(case["n_steps"]):
            y, state = ek.batch_norm(item.array(f"x_{step}"), params, state, training=True, **item.at(step))
            item.check(y, f"y_train_{step}", "y")
            for name, value in state._asdict().items():
                if value is not None:
                    item.check(value, f"state_{step}/{item.variables[name]}", "state")
        y, _ = ek.batch_norm(item.array("x_test"), params, state, training=False, **item.at(0))
        item.check(y, "y_infer", "y_infer")


@pytest.mark.parametrize("case", CASES)
def test_gradients(differentiable, case):
    with differentiable.double():
        item = Golden(case, differentiable)
        state, params = item.state("state_init"), item.parameters()

        def loss(x):
            y, _ = ek.batch_norm(x, params, state, training=True, **item.at(0))
            return differentiable.sum(y * item.array("dy"))

        (dx,) = differentiable.gradients(loss, item.array("x_0"))
        item.check(dx, "dx_0", "dx")


def test_there_are_cases():
    assert len(CASES) > 50
