# SPDX-License-Identifier: Apache-2.0
"""Pairs of checkpoints: which normalizer is which, and what a training or a conversion did to it."""

import numpy as np
import pytest

from evenkeel.checkpoints import Checkpoint, Facts, Variable, convert, write_checkpoint
from evenkeel.checkpoints.meaning import translated
from evenkeel.doctor import diagnose
from evenkeel.doctor.evidence import Pair
from evenkeel.doctor.options import Options
from evenkeel.doctor.report import examined
from evenkeel.doctor.subjects import pair as subject

from conftest import GOLDENS, NAME

without_framework = pytest.mark.skipif(NAME != "numpy", reason="no framework takes part")


def model(*names, seed=0, channels=16):
    """Values of convolutions, each with the normalizer of that name behind it."""
    numbers = np.random.default_rng(seed)
    values = {}
    for index, name in enumerate(names):
        values[f"conv_{index}/kernel"] = numbers.normal(size=(3, 3, 2, channels))
        values[f"{name}/gamma"] = numbers.normal(1, 0.1, channels)
        values[f"{name}/beta"] = numbers.normal(0, 0.3, channels)
        values[f"{name}/moving_mean"] = numbers.normal(0, 1, channels)
        values[f"{name}/moving_variance"] = numbers.uniform(0.1, 2, channels)
    return {name: value.astype("float32") for name, value in values.items()}


def trained(values, *parts):
    """The same, where the names end in one of `parts`, a little later in the training."""
    numbers = np.random.default_rng(9)
    return {
        name: (value * numbers.uniform(1.01, 1.1, value.shape)).astype(value.dtype) if name.endswith(parts) else value
        for name, value in values.items()
    }


ALL = ("kernel", "gamma", "beta", "moving_mean", "moving_variance")


def holding(values, convention="tensorflow", path="example", **facts):
    variables = {name: Variable.of(value) for name, value in values.items()}
    scopes = {name.rpartition("/")[0] for name in values if name.endswith("gamma")} if facts else ()
    checkpoint = Checkpoint(path, "memory", "tensorflow", variables, {scope: Facts(**facts) for scope in scopes})
    return translated(checkpoint, convention)


def pairs(before, after, **options):
    found = [item for item in subject.evidence((before, after), Options(**options)) if isinstance(item, Pair)]
    return {pair.after.name: pair.before.name for pair in found}


def report(before, after):
    return examined((before, after), subject.KIND, subject.evidence((before, after), Options()))


@without_framework
class TestTraining:
    before = model("bn", "last_bn")

    def test_a_healthy_one(self):
        found = report(holding(self.before), holding(trained(self.before, *ALL)))
        assert found.findings == () and found.normalizers == ("bn", "last_bn") and found.unseen == ()

    @pytest.mark.parametrize("frozen", [True, "all"])
    def test_frozen_but_moved(self, frozen):
        before, after = self.before, trained(self.before, "kernel", "moving_mean")
        found = report(holding(before, frozen=frozen), holding(after, frozen=frozen))
        assert [(finding.rule, finding.severity, finding.where) for finding in found.findings] == [
            ("EK151", "error", "bn"),
            ("EK151", "error", "last_bn"),
        ]

    def test_how_far_it_moved(self):
        before = model("bn") | {"bn/moving_mean": np.zeros(16, "float32"), "bn/moving_variance": np.full(16, 4.0)}
        after = before | {"bn/moving_mean": np.full(16, 1.0), "bn/moving_variance": np.full(16, 2.0)}
        (finding,) = report(holding(before, frozen=True), holding(after, frozen=True)).findings
        assert finding.seen == (
            "frozen, and the mean moved by up to 0.5 standard deviations, the variance by a factor of up to 2"
        )

    @pytest.mark.parametrize("part", ["moving_mean", "moving_variance"])
    @pytest.mark.parametrize("value", [np.nan, np.inf, -1.0, 0.0])
    def test_any_value_may_have_come_of_it(self, part, value):
        after = self.before | {f"bn/{part}": np.full(16, value, "float32")}
        found = report(holding(self.before, frozen=True), holding(after, frozen=True)).findings
        assert "EK151" in [finding.rule for finding in found]

    def test_infinity_that_stayed(self):
        before = model("bn") | {"bn/moving_mean": np.full(16, np.inf, "float32")}
        found = report(holding(before, frozen=True), holding(trained(before, "variance"), frozen=True)).findings
        assert [finding.rule for finding in found] == ["EK103", "EK151"]

    def test_frozen_and_left_alone(self):
        after = trained(self.before, "kernel", "gamma", "beta")
        assert report(holding(self.before, frozen=True), holding(after, frozen=True)).findings == ()

    def test_moved_but_frozen(self):
        found = report(holding(self.before), holding(trained(self.before, "kernel", "gamma", "beta")))
        assert [finding.rule for finding in found.warnings] == ["EK152", "EK152"] and found.errors == ()

    def test_a_backbone_that_was_frozen_below_a_new_head(self):
        after = {
            name: value if name.startswith("bn") else trained({name: value}, *ALL)[name]
            for name, value in self.before.items()
        }
        assert report(holding(self.before), holding(after)).findings == ()

    def test_a_cast_is_no_training(self):
        after = {name: value.astype("float16") for name, value in self.before.items()}
        found = report(holding(self.before), holding(after))
        assert {finding.rule for finding in found.findings} == {"EK107"}

    def test_updates_that_never_ran(self):
        start = {
            name: np.zeros_like(value) if name.endswith("mean") else np.ones_like(value)
            for name, value in self.before.items()
            if "moving" in name
        }
        before, after = self.before | start, trained(self.before, "kernel", "gamma", "beta") | start
        found = report(holding(before), holding(after))
        assert [finding.rule for finding in found.findings] == ["EK152", "EK152", "EK101", "EK101"]

    @pytest.mark.parametrize(("parts", "result"), [(("kernel",), True), (("gamma", "moving_mean"), False)])
    def test_whether_weights_changed(self, parts, result):
        found = subject.evidence((holding(self.before), holding(trained(self.before, *parts))), Options())
        assert {item.trained for item in found if isinstance(item, Pair)} == {result}

    def test_whether_weights_changed_cannot_be_told_across_libraries(self):
        found = subject.evidence((holding(self.before), holding(self.before, "torch")), Options())
        assert {item.trained for item in found if isinstance(item, Pair)} == {None}

    def test_it_stops_at_the_first_difference(self):
        def unread():
            raise AssertionError("read in vain")

        before, after = holding(self.before), holding(trained(self.before, "kernel"))
        shape = before.variables["conv_1/kernel"].shape
        variables = dict(before.variables) | {"conv_1/kernel": Variable(shape, np.dtype("float32"), "x", unread)}
        assert pairs(Checkpoint("a", "memory", "tensorflow", variables), after) == {"bn": "bn", "last_bn": "last_bn"}


@without_framework
class TestConversion:
    before = model("bn")

    @pytest.mark.parametrize(("epsilon", "severity"), [(1e-5, "error"), (0.99e-3, "warning")])
    def test_another_epsilon(self, epsilon, severity):
        values = self.before | {"bn/moving_variance": np.full(16, 0.01, "float32")}
        found = report(holding(values, epsilon=1e-3), holding(values, epsilon=epsilon))
        assert [(finding.rule, finding.severity) for finding in found.findings] == [("EK153", severity)]

    def test_the_effect_of_another_epsilon(self):
        values = self.before | {"bn/moving_variance": np.array([0.01] * 15 + [0.0], "float32")}
        found = report(holding(values, epsilon=6e-3), holding(values, epsilon=0.0)).errors
        assert found[0].seen == "epsilon 0, and 0.006 before: 1.3 times the scale"  # sqrt(0.016 / 0.01)

    @pytest.mark.parametrize(("kind", "severity"), [(None, "warning"), ("keras.layers.BatchNormalization", "note")])
    def test_another_variance(self, tmp_path, kind, severity):
        """Of TensorFlow 1 nobody knows which it was; Keras and torch do keep different ones."""
        source = holding(self.before, **({"kind": kind, "bessel_correction": False} if kind else {}))
        scaled = self.before | {"bn/moving_variance": self.before["bn/moving_variance"] * np.float32(200 / 199)}
        (finding,) = report(source, holding(scaled, "torch")).findings
        assert (finding.rule, finding.severity) == ("EK154", severity)
        assert finding.seen == "variance times 200 / 199 in all channels"

    @pytest.mark.parametrize(("count", "severity"), [(2, "warning"), (500, "warning"), (501, "note")])
    def test_a_large_batch_makes_little_difference(self, count, severity):
        shrunk = self.before["bn/moving_variance"] * np.float32((count - 1) / count)
        (finding,) = report(holding(self.before), holding(self.before | {"bn/moving_variance": shrunk})).findings
        assert (finding.severity, finding.seen) == (severity, f"variance times {count - 1} / {count} in all channels")

    @pytest.mark.parametrize(("ending", "convention"), [("npz", "flax"), ("safetensors", "torch")])
    def test_what_convert_writes_is_healthy(self, tmp_path, ending, convention):
        source, target = tmp_path / "source.npz", tmp_path / f"target.{ending}"
        write_checkpoint(source, holding(model("net/bn", "net/head/norm")))
        convert(source, target, to=convention)
        found = diagnose((source, target))
        assert found.kind == "pair of checkpoints" and len(found.normalizers) == 2
        assert found.findings == () and found.unseen == ()

    def test_a_momentum_that_was_copied(self):
        kind = "keras.layers.BatchNormalization"
        after = holding(self.before, "torch", momentum=0.01)
        found = report(holding(self.before, kind=kind, momentum=0.99), after).errors
        assert found[0].rule == "EK155" and found[0].remedy == "give the layer momentum=0.01"
        assert found[0].seen == "momentum 0.99 in keras and in torch: 0.99 of the old was kept, and 0.01 is"

    def test_a_momentum_that_was_translated(self):
        kind = "keras.layers.BatchNormalization"
        after = holding(self.before, "torch", momentum=0.99)
        assert report(holding(self.before, kind=kind, momentum=0.99), after).findings == ()


@without_framework
class TestPartners:
    @pytest.mark.parametrize("convention", ["torch", "flax"])
    def test_by_name_across_libraries(self, convention):
        values = model("a/bn", "b/bn")
        separator = "." if convention == "torch" else "/"
        expected = {f"{scope}{separator}bn": f"{scope}/bn" for scope in "ab"}
        assert pairs(holding(values), holding(values, convention)) == expected

    def test_by_order_across_libraries(self):
        assert pairs(holding(model("second", "first")), holding(model("layer1", "layer0"), "torch")) == {
            "layer1": "second",
            "layer0": "first",
        }

    def test_by_the_numbers_that_keras_gave(self):
        before, after = model("bn", "bn_1"), model("bn_1", "bn_2")
        assert pairs(holding(before), holding(after)) == {"bn_1": "bn", "bn_2": "bn_1"}

    def test_by_shape(self):
        before, after = model("x", channels=8) | model("y"), model("q") | model("p", channels=8)
        assert pairs(holding(before), holding(after)) == {"q": "y", "p": "x"}

    def test_a_new_head(self):
        before, after = holding(model("bn"), path="old"), holding(model("bn", "head_bn"), path="new")
        assert pairs(before, after) == {"bn": "bn"}
        assert [item.what for item in report(before, after).unseen] == ["what became of head_bn"]

    def test_a_head_that_is_gone(self):
        before, after = holding(model("bn", "head_bn")), holding(model("bn"))
        assert pairs(before, after) == {"bn": "bn"}
        assert [item.what for item in report(before, after).unseen] == ["what became of head_bn"]

    def test_another_number_of_channels(self):
        before, after = holding(model("bn")), holding(model("bn", channels=8))
        assert pairs(before, after) == {}
        assert [item.what for item in report(before, after).unseen] == ["what became of bn"] * 2

    def test_many_without_partners_are_one_line(self):
        before, after = model("x"), model(*(f"bn{n}" for n in range(9)), channels=8)
        unseen = report(holding(before), holding(after)).unseen
        assert unseen[0].what == "what became of bn0, bn1, bn2, bn3, bn4 and 4 more" and len(unseen) == 2

    def test_statistics_that_one_has_not(self):
        after = {name: value for name, value in model("bn").items() if "moving" not in name}
        found = report(holding(model("bn")), holding(after))
        assert [finding.rule for finding in found.findings] == ["EK102"] and found.unseen == ()

    def test_variables_may_share_their_values(self):
        shared = Variable.of(np.full(16, 0.5, "float32"))
        names = [f"{scope}/{part}" for scope in ("a", "b") for part in ALL[1:]]
        checkpoint = Checkpoint("x", "memory", "tensorflow", dict.fromkeys(names, shared))
        assert pairs(checkpoint, checkpoint) == {"a": "a", "b": "b"}


@without_framework
class TestRecognised:
    @pytest.mark.parametrize("kind", [("a.npz", "b.npz"), ["a", "b"], (holding(model("bn")), "b")])
    def test_pairs(self, kind):
        assert subject.recognises(kind)

    @pytest.mark.parametrize("kind", ["ab", ("a",), ("a", "b", "c"), ("a", 2), {"a": 1, "b": 2}])
    def test_what_is_none(self, kind):
        assert not subject.recognises(kind)


@pytest.mark.skipif(NAME != "tensorflow", reason="TensorFlow reads them")
class TestGoldens:
    def test_two_steps_of_one_training(self):
        folder = GOLDENS / "checkpoints/c1_estimator_mlp/model_dir"
        found = diagnose((folder / "model.ckpt-50", folder / "model.ckpt-100"))
        assert found.normalizers == ("bn0", "bn1") and found.findings == () and found.unseen == ()

    def test_the_steps_are_those_of_each(self):
        folder = GOLDENS / "checkpoints/c1_estimator_mlp/model_dir"
        found = subject.evidence((folder / "model.ckpt-50", folder / "model.ckpt-100"), Options())
        assert {(item.before.steps, item.after.steps) for item in found if isinstance(item, Pair)} == {(50, 100)}

    @pytest.mark.parametrize("name", ["a1_contrib_mlp", "e1_slim_resnet_block", "g1_v1_format_mlp/model.ckpt-60"])
    def test_what_convert_writes_is_healthy(self, tmp_path, name):
        source = GOLDENS / "checkpoints" / name
        convert(source, tmp_path / "model.safetensors", to="torch")
        found = diagnose((source, tmp_path / "model.safetensors"))
        assert len(found.normalizers) >= 2 and found.findings == () and found.unseen == ()


class TestWhatIsNotSaid:
    def test_normalizers_of_other_names_are_taken_by_their_place_and_it_says_so(self):
        found = report(holding(model("first", "second")), holding(model("one", "two")))
        assert [item.why for item in found.unseen] == ["first as one, second as two: taken by their order and shapes"]

    def test_another_separator_is_no_other_name(self):
        assert report(holding(model("a/b")), holding(model("a/b"), "torch")).unseen == ()

    @pytest.mark.parametrize("which", [0, 1])
    def test_an_epsilon_that_one_of_them_does_not_say(self, which):
        files = [holding(model("bn"), path="silent"), holding(model("bn"), path="telling", epsilon=1e-3)]
        found = report(*files[:: 1 if which else -1])
        assert [(item.why, item.remedy) for item in found.unseen] == [
            ("silent does not say what it is", "see that its model has 0.001")
        ]
