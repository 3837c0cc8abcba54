# SPDX-License-Identifier: Apache-2.0
"""Checkpoints looked at: faults in files of each format, healthy files, and what becomes of their facts."""

import dataclasses
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from evenkeel.checkpoints import Checkpoint, Facts, Variable, write_checkpoint
from evenkeel.checkpoints.meaning import translated
from evenkeel.doctor import diagnose
from evenkeel.doctor.options import Options
from evenkeel.doctor.report import examined
from evenkeel.doctor.subjects import checkpoint as subject
from evenkeel.errors import InputError

from conftest import GOLDENS, NAME

CHANNELS = 16
NUMBERS = np.random.default_rng(7)
HEALTHY = {
    "conv/kernel": NUMBERS.normal(size=(3, 3, 2, CHANNELS)),
    "bn/gamma": NUMBERS.normal(1.0, 0.2, CHANNELS),
    "bn/beta": NUMBERS.normal(0.0, 0.3, CHANNELS),
    "bn/moving_mean": NUMBERS.normal(0.0, 1.0, CHANNELS),
    "bn/moving_variance": NUMBERS.uniform(0.1, 2.0, CHANNELS),
}
HEALTHY = {name: values.astype("float32") for name, values in HEALTHY.items()}


def with_value(name, value, channel=3):
    changed = HEALTHY[name].copy()
    changed[channel] = value
    return HEALTHY | {name: changed}


def in_order_of(*names):
    """The four arrays in other places."""
    places = ("bn/gamma", "bn/beta", "bn/moving_mean", "bn/moving_variance")
    return HEALTHY | {place: HEALTHY[f"bn/{name}"] for place, name in zip(places, names, strict=True)}


FAULTS = {
    "EK101": HEALTHY
    | {"bn/moving_mean": np.zeros(CHANNELS, "float32"), "bn/moving_variance": np.ones(CHANNELS, "float32")},
    "EK102": {name: values for name, values in HEALTHY.items() if "moving" not in name},
    "EK103": with_value("bn/moving_variance", np.nan),
    "EK104": with_value("bn/moving_variance", -0.2),
    "EK105": HEALTHY
    | {
        "bn/moving_mean": np.full(CHANNELS, 3000, "float32"),
        "bn/moving_variance": np.zeros(CHANNELS, "float32"),
    },
    "EK106": in_order_of("moving_mean", "moving_variance", "gamma", "beta"),
}
FORMATS = {
    "numpy": [("tensorflow", "model.npz"), ("flax", "model.npz"), ("torch", "model.safetensors")],
    "tensorflow": [("tensorflow", "model.ckpt"), ("keras", "model.h5")],
    "torch": [("torch", "model.pt")],
    "jax": [],
}[NAME]
KINDS = [pytest.param(*item, id="-".join(item)) for item in FORMATS]


def holding(values, **options):
    variables = {name: Variable.of(value) for name, value in values.items()}
    return Checkpoint("example", "memory", "tensorflow", variables, **options)


def written(folder, values, convention, name):
    path = folder / name
    write_checkpoint(path, translated(holding(values), convention))
    return path


def report(looked_at, **options):
    return examined(looked_at, subject.KIND, subject.evidence(looked_at, Options(**options)))


def normalizer(values, options=None, **facts):
    (found,) = subject.normalizers(holding(values, facts={"bn": Facts(**facts)}), options or Options())
    return found


class TestFiles:
    @pytest.mark.parametrize("rule", FAULTS)
    @pytest.mark.parametrize(("convention", "name"), KINDS)
    def test_the_first_error_names_the_fault(self, tmp_path, convention, name, rule):
        found = report(written(tmp_path, FAULTS[rule], convention, name))
        assert found.findings[0].rule == rule and found.findings[0].severity == "error"
        assert found.findings[0].where == found.normalizers[0] and not found.healthy

    @pytest.mark.parametrize(("convention", "name"), KINDS)
    def test_the_healthy_twin_has_nothing(self, tmp_path, convention, name):
        found = report(written(tmp_path, HEALTHY, convention, name))
        assert len(found.normalizers) == 1 and found.findings == () and found.unseen == ()


@pytest.mark.skipif(NAME != "tensorflow", reason="TensorFlow reads them")
class TestGoldens:
    @pytest.mark.parametrize(
        "path",
        [
            "a1_contrib_mlp",
            "b1_layers_conv",
            "c1_estimator_mlp/model_dir",
            "d1_keras_mlp/model.h5",
            "d1_keras_mlp/tf_weights",
            "d1_keras_mlp/weights.h5",
            "e1_slim_resnet_block",
            "f1_saved_model_mlp/saved_model",
            "g1_v1_format_mlp/model.ckpt-60",
        ],
    )
    def test_healthy(self, path):
        found = report(GOLDENS / "checkpoints" / path)
        assert len(found.normalizers) >= 2 and found.errors == () and found.warnings == ()

    @pytest.mark.parametrize(
        ("path", "rule"), [("h1_trainable_only_mlp", "EK102"), ("i1_updates_never_run_mlp", "EK101")]
    )
    def test_ill(self, path, rule):
        found = report(GOLDENS / "checkpoints" / path)
        assert [finding.rule for finding in found.errors] == [rule, rule]

    def test_global_step_is_the_number_of_steps(self):
        first, *_ = subject.evidence(GOLDENS / "checkpoints/i1_updates_never_run_mlp", Options())
        assert first.steps == 60


@pytest.mark.skipif(NAME != "numpy", reason="no framework takes part")
class TestWithoutFramework:
    @pytest.mark.parametrize("dtype", ["float16", ml_dtypes.bfloat16])
    def test_narrow_statistics_are_a_note(self, dtype):
        found = report(holding({name: values.astype(dtype) for name, values in HEALTHY.items()}))
        assert [(finding.rule, finding.severity) for finding in found.findings] == [("EK107", "note")]

    def test_narrow_statistics_say_what_the_momentum_cannot_move(self):
        values = HEALTHY | {"bn/moving_variance": np.full(CHANNELS, 3.6, ml_dtypes.bfloat16)}
        variables = {name: Variable.of(value) for name, value in values.items()}
        facts = {"bn": Facts(momentum=0.999)}
        (finding,) = report(Checkpoint("example", "memory", "tensorflow", variables, facts)).findings
        # bfloat16 has 2^-6 between 2 and 4; half of that over 1 - 0.999.
        assert finding.seen.endswith(
            "3.59 changes by 0.0078 or not at all, so with momentum 0.999 a batch within 7.8 of it is not noticed"
        )

    def test_averages_are_a_note(self):
        averages = {f"bn/{part}/ExponentialMovingAverage": HEALTHY[f"bn/{part}"] for part in ("gamma", "beta")}
        found = report(holding(HEALTHY | averages))
        assert [(finding.rule, finding.seen) for finding in found.findings] == [("EK108", "averages of gamma, beta")]

    @pytest.mark.parametrize(
        ("dead", "mean", "severity"),
        [(1, 0, "note"), (8, 0, "note"), (9, 0, "warning"), (1, 500, "warning"), (16, -500, "error")],
    )
    def test_dead_channels(self, dead, mean, severity):
        values = {name: array.copy() for name, array in HEALTHY.items()}
        values["bn/moving_variance"][:dead] = 0
        values["bn/moving_mean"][:dead] = mean
        found = report(holding(values)).findings
        assert [(finding.rule, finding.severity) for finding in found] == [("EK105", severity)]

    @pytest.mark.parametrize("seed", range(20))
    def test_random_healthy_values_are_never_shuffled(self, seed):
        numbers = np.random.default_rng(seed)
        values = {
            "bn/gamma": numbers.normal(numbers.uniform(0, 1.5), numbers.uniform(0.01, 0.5), CHANNELS),
            "bn/beta": numbers.normal(numbers.uniform(-1, 0.5), numbers.uniform(0.01, 0.5), CHANNELS),
            "bn/moving_mean": np.abs(numbers.normal(0, 1, CHANNELS)),
            "bn/moving_variance": numbers.uniform(0.01, 1, CHANNELS) ** 2,
        }
        assert report(holding(values)).findings == ()

    @pytest.mark.parametrize(
        ("order", "severity"),
        [
            (("moving_mean", "moving_variance", "gamma", "beta"), "error"),
            (("gamma", "beta", "moving_variance", "moving_mean"), "error"),
            (("beta", "gamma", "moving_mean", "moving_variance"), "warning"),
        ],
    )
    def test_exchanged_weights(self, order, severity):
        found = report(holding(in_order_of(*order))).findings
        assert (found[0].rule, found[0].severity) == ("EK106", severity)

    @pytest.mark.parametrize(("epsilon", "severity"), [(1e-3, "warning"), (1e-5, "error"), (None, "error")])
    def test_a_negative_variance_that_epsilon_lifts(self, epsilon, severity):
        values = with_value("bn/moving_variance", -5e-4)
        found = examined("example", "memory", [normalizer(values, epsilon=epsilon)]).findings
        assert [(finding.rule, finding.severity) for finding in found] == [("EK104", severity)]

    def test_narrow_statistics_that_training_moves_are_a_warning(self):
        narrow = normalizer({name: values.astype("float16") for name, values in HEALTHY.items()})
        found = examined("example", "memory", [dataclasses.replace(narrow, moves=True)]).findings
        assert [(finding.rule, finding.severity) for finding in found] == [("EK107", "warning")]

    def test_statistics_of_the_last_batch_are_no_moving_ones(self):
        values = {f"bn/{part}": HEALTHY["bn/gamma"] for part in ("beta", "mean", "variance")}
        found = report(holding(values)).errors
        assert [finding.seen for finding in found] == [
            "mean and variance missing; only that of the last batch is there"
        ]

    @pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
    @pytest.mark.parametrize("part", ["gamma", "beta", "moving_mean", "moving_variance"])
    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, -1.0, 0.0, 6e4])
    def test_any_value_is_looked_at(self, part, value, dtype):
        """Warnings of NumPy would be errors here."""
        found = report(holding({name: array.astype(dtype) for name, array in with_value(f"bn/{part}", value).items()}))
        assert ("EK103" in [finding.rule for finding in found.findings]) == (not np.isfinite(value))

    def test_no_channels(self):
        assert report(holding({name: array[..., :0] for name, array in HEALTHY.items()})).findings == ()

    def test_the_cause_comes_before_its_consequence(self):
        found = report(holding(FAULTS["EK106"])).errors
        assert [finding.rule for finding in found] == ["EK106", "EK104"]

    def test_a_thousand_normalizers(self, tmp_path):
        values = {f"block_{n}/{name}": array for n in range(1000) for name, array in HEALTHY.items() if "bn" in name}
        values["block_500/bn/gamma"] = with_value("bn/gamma", np.inf)["bn/gamma"]
        write_checkpoint(tmp_path / "model.npz", holding(values))
        found = diagnose(tmp_path / "model.npz")
        assert found.kind == "checkpoint" and len(found.normalizers) == 1000
        (finding,) = found.findings
        assert (finding.rule, finding.where, finding.seen) == (
            "EK103",
            "block_500/bn",
            "infinity in 1 of 16 channels of gamma",
        )

    def test_one_normalizer_is_read_at_a_time(self):
        read = []

        def variable(name):
            def load():
                read.append(name)
                return np.ones(2)

            return Variable((2,), np.dtype("float64"), name, load)

        names = [
            f"{scope}/{part}" for scope in ("a", "b") for part in ("gamma", "beta", "moving_mean", "moving_variance")
        ]
        checkpoint = Checkpoint("example", "memory", "tensorflow", {name: variable(name) for name in names})
        next(subject.normalizers(checkpoint, Options()))
        assert sorted(read) == sorted(names[:4])

    @pytest.mark.parametrize("kind", ["model.npz", Path("model"), holding(HEALTHY)], ids=["str", "path", "object"])
    def test_paths_and_checkpoints_are_recognised(self, kind):
        assert subject.recognises(kind)

    @pytest.mark.parametrize("kind", [3, None, {"bn/gamma": np.ones(2)}, ["a", "b"]])
    def test_what_is_no_checkpoint(self, kind):
        assert not subject.recognises(kind)

    def test_a_file_that_is_not_there(self):
        with pytest.raises(InputError, match=r"nowhere\.npz does not exist"):
            diagnose("nowhere.npz")

    def test_without_normalizers(self):
        found = report(holding({"fc/kernel": np.ones((2, 3))}))
        assert found.findings == () and [item.what for item in found.unseen] == ["normalizers"]
        assert found.unseen[0].why == "none was found among the 1 variables of example"

    def test_data_need_a_model(self):
        found = report(holding(HEALTHY), data=np.ones((4, 2)))
        assert [item.what for item in found.unseen] == ["the model on the data"]
        assert report(holding(HEALTHY)).unseen == ()


@pytest.mark.skipif(NAME != "numpy", reason="no framework takes part")
class TestFacts:
    def test_settings(self):
        found = normalizer(HEALTHY, kind="keras.layers.BatchNormalization", momentum=0.9, epsilon=1e-5, frozen="all")
        assert (found.library, found.momentum, found.epsilon, found.frozen) == ("keras", 0.9, 1e-5, "all")
        assert found.bessel_correction is False and found.moves is None

    def test_what_is_not_said_is_not_invented(self):
        found = normalizer(HEALTHY)
        assert [found.momentum, found.epsilon, found.bessel_correction, found.frozen] == [None] * 4
        assert [found.trainable, found.updates, found.steps] == [None] * 3

    @pytest.mark.parametrize(
        ("counter", "value", "updates"),
        [
            ("mean/local_step", np.float32(40), 40),
            ("updates", np.array([7] * 15 + [6], "int32"), 7),
            ("updates", np.zeros(16, "int32"), None),
            ("updates", np.full(16, np.nan), None),
        ],
    )
    def test_updates(self, counter, value, updates):
        name = "bn/moving_mean/local_step" if "local_step" in counter else f"bn/{counter}"
        assert normalizer(HEALTHY | {name: value}).updates == updates

    def test_no_update_yet(self):
        assert normalizer(FAULTS["EK101"] | {"bn/updates": np.zeros(16, "int32")}).updates == 0

    def test_batches_of_torch(self):
        variables = {
            "bn.weight": np.ones(2),
            "bn.bias": np.zeros(2),
            "bn.running_mean": np.array([0.5, 1]),
            "bn.running_var": np.array([0.5, 1]),
            "bn.num_batches_tracked": np.int64(123),
        }
        checkpoint = Checkpoint("x", "memory", "torch", {name: Variable.of(value) for name, value in variables.items()})
        (found,) = subject.normalizers(checkpoint, Options())
        assert (found.library, found.updates, found.bessel_correction) == ("torch", 123, True)

    @pytest.mark.parametrize(("told", "steps"), [(None, 60), (500, 500)])
    def test_steps(self, told, steps):
        assert normalizer(HEALTHY | {"global_step": np.int64(60)}, Options(steps=told)).steps == steps

    def test_values_that_are_no_numbers_are_left_out(self):
        found = normalizer(HEALTHY | {"bn/gamma": np.full(16, 1j)})
        assert found.gamma is None and found.beta is not None

    def test_values_are_flat(self):
        values = {name: array.reshape(1, 1, 1, -1) for name, array in HEALTHY.items() if "bn" in name}
        assert normalizer(values).moving_mean.shape == (CHANNELS,)


@pytest.mark.skipif(NAME != "tensorflow", reason="one backend writes it")
class TestKerasFile:
    """What the configuration of a whole model says."""

    @pytest.fixture
    def model(self):
        import keras

        import evenkeel

        layers = [
            evenkeel.BatchNormalization(average="debiased", momentum=0.9, epsilon=1e-5, frozen=True, name="ours"),
            keras.layers.BatchNormalization(trainable=False, name="theirs"),
        ]
        return keras.Sequential([keras.Input((3,)), *layers])

    def test_settings(self, model, tmp_path):
        model.save(tmp_path / "model.keras")
        ours, theirs = subject.normalizers(subject.read(tmp_path / "model.keras"), Options())
        assert (ours.average, ours.momentum, ours.epsilon, ours.frozen) == ("debiased", 0.9, 1e-5, True)
        assert (ours.updates, ours.library) == (0, "keras")
        assert (theirs.average, theirs.momentum, theirs.frozen, theirs.trainable) == ("exponential", 0.99, "all", False)

    @pytest.mark.parametrize("name", ["model.keras", "model.weights.h5"])
    def test_an_untrained_model(self, model, tmp_path, name):
        save = model.save_weights if "weights" in name else model.save
        save(tmp_path / name)
        assert {finding.rule for finding in report(tmp_path / name).errors} == {"EK101"}
