# SPDX-License-Identifier: Apache-2.0
"""Values go from file to file: exactly, provably, or not at all."""

import os
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

import evenkeel as ek
from evenkeel.checkpoints import Checkpoint, Facts, Normalizer, Variable
from evenkeel.checkpoints.formats import safetensors
from evenkeel.checkpoints.matching import matched
from evenkeel.checkpoints.proof import largest_difference
from evenkeel.errors import ArgumentError, InputError, UnequalError

from conftest import GOLDENS

pytestmark = pytest.mark.skipif(os.environ.get("KERAS_BACKEND", "numpy") != "numpy", reason="no framework takes part")
SOURCE = Path(__file__).parents[2] / "src"
RANDOM = np.random.default_rng(0)


def values_of(shapes):
    """Random ones; variances are positive, counters are whole."""
    return {
        name: np.asarray(7)
        if name.endswith(("tracked", "step"))
        else np.abs(RANDOM.normal(size=shape)).astype("float32") + np.float32(0.1)
        for name, shape in shapes.items()
    }


def memory(values, convention, path="example", facts=None):
    variables = {name: Variable.of(value, f"{name} of {path}") for name, value in values.items()}
    return Checkpoint(path, "memory", convention, variables, facts or {})


def normalizer(name, channels=4, words=("gamma", "beta", "moving_mean", "moving_variance")):
    return {f"{name}/{word}": (channels,) for word in words}


NET = {
    "conv1/kernel": (3, 3, 2, 4),
    **normalizer("bn1"),
    "fc/kernel": (4, 5),
    "fc/bias": (5,),
    "global_step": (),
}
TORCH_WORDS = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def torch_normalizer(name, channels=4):
    return {f"{name}.{word}": (channels,) for word in TORCH_WORDS}


@pytest.fixture
def net(tmp_path):
    path = tmp_path / "net.npz"
    ek.write_checkpoint(path, memory(values_of(NET), "tensorflow"))
    return path


def written(path, shapes, convention):
    ek.write_checkpoint(path, memory(values_of(shapes), convention))
    return path


def bits(path):
    return {name: variable.read().tobytes() for name, variable in ek.read_checkpoint(path).variables.items()}


# Averages of weights.


SHADOW = "ExponentialMovingAverage"


def test_averages_take_the_place_of_weights(tmp_path):
    shadows = {f"{name}/{SHADOW}": shape for name, shape in NET.items() if name != "global_step"}
    source = written(tmp_path / "net.npz", {**NET, **shadows}, "tensorflow")
    report = ek.convert(source, tmp_path / "net.safetensors", averages=True)
    raw, result = bits(source), bits(tmp_path / "net.safetensors")
    assert set(result) == set(NET) and report.difference == 0.0
    assert all(result[name] == raw.get(f"{name}/{SHADOW}", raw[name]) for name in NET)
    ek.convert(source, tmp_path / "net.pt", averages=True)
    assert bits(tmp_path / "net.pt")["bn1.weight"] == raw[f"bn1/gamma/{SHADOW}"]


def test_averages_of_a_helper_class_are_its_statistics_anyway(tmp_path):
    shapes = normalizer("bn", words=("beta", "gamma", "mean", "variance", f"mean/{SHADOW}", f"variance/{SHADOW}"))
    source = written(tmp_path / "net.npz", {**shapes, "w": (2, 2), f"w/{SHADOW}": (2, 2)}, "tensorflow")
    ek.convert(source, tmp_path / "other.npz", averages=True)
    raw, result = bits(source), bits(tmp_path / "other.npz")
    assert set(result) == {*shapes, "w"} and result["w"] == raw[f"w/{SHADOW}"]
    assert result["bn/mean"] == raw["bn/mean"] and result[f"bn/mean/{SHADOW}"] == raw[f"bn/mean/{SHADOW}"]


def test_without_averages_there_are_none_to_take(net, tmp_path):
    with pytest.raises(ArgumentError, match="has no moving averages"):
        ek.convert(net, tmp_path / "other.npz", averages=True)


# Files there and back.


@pytest.mark.parametrize("ending", [".safetensors", ".h5", ".npz"])
@pytest.mark.parametrize("golden", ["a1_contrib_mlp", "b1_layers_conv", "e1_slim_resnet_block", "g1_v1_format_mlp"])
def test_tensorflow_1_there_and_back_is_exact(golden, ending, tmp_path):
    source = GOLDENS / "checkpoints" / golden / "model.ckpt-60"
    middle, end = tmp_path / f"middle{ending}", tmp_path / "end"
    there = ek.convert(source, middle)
    back = ek.convert(middle, end)
    assert bits(end) == bits(source)
    assert there.difference == back.difference == 0.0 and there.normalizers == back.normalizers >= 2
    assert there.left == back.left == ()


def test_keras_to_torch_and_back_is_exact(tmp_path):
    source = GOLDENS / "checkpoints" / "d1_keras_mlp" / "weights.h5"
    there = ek.convert(source, tmp_path / "middle.pt")
    ek.convert(tmp_path / "middle.pt", tmp_path / "end.h5")
    assert bits(tmp_path / "end.h5") == bits(source)
    assert there.renamed["bn_0/moving_variance"] == "bn_0.running_var"
    assert there.notes[0] == "num_batches_tracked of 2 normalizers is not in the source: 0, or what the target has"


# Like.


def test_like_takes_names_order_shapes_and_types(net, tmp_path):
    shapes = {"head.weight": (5, 4), "head.bias": (5,), "stem.weight": (4, 2, 3, 3), **torch_normalizer("norm")}
    values = {name: value.astype("float64") if value.ndim else value for name, value in values_of(shapes).items()}
    like = memory(values, "torch")
    ek.write_checkpoint(tmp_path / "like.npz", like)
    report = ek.convert(net, tmp_path / "out.npz", like=tmp_path / "like.npz")
    out = ek.read_checkpoint(tmp_path / "out.npz")
    assert {name: variable.shape for name, variable in out.variables.items()} == {
        name: () if name.endswith("tracked") else shape for name, shape in shapes.items()
    }
    assert {variable.dtype for variable in out.variables.values() if variable.shape} == {np.dtype("float64")}
    assert report.left == ("global_step",) and report.difference == 0.0
    expected = ek.read_checkpoint(net).variables["conv1/kernel"].read().transpose(3, 2, 0, 1)
    np.testing.assert_array_equal(out.variables["stem.weight"].read(), expected)


def pairs(source, target):
    """Layer of the target -> layer of the source, as `matched` finds them."""
    (_, origins), _ = matched(memory(values_of(source), "keras"), memory(values_of(target), "keras"))
    return {new.rpartition("/")[0]: old.rpartition("/")[0] for new, old in origins.items() if old is not None}


def chain(*names, kernel=(2, 2), base=normalizer):
    """Kernels and normalizers, one after the other."""
    shapes = {}
    for name in names:
        shapes |= base(name, 2) if "bn" in name or "batch" in name else {f"{name}/kernel": kernel}
    return shapes


@pytest.mark.parametrize(
    ("source", "target", "expected"),
    [
        (chain("b", "a"), chain("a", "b"), {"a": "a", "b": "b"}),
        (chain("Net/Conv_A", "other"), chain("x", "net/conv-a"), {"net/conv-a": "Net/Conv_A", "x": "other"}),
        (chain("conv", "conv_1"), chain("conv_9", "conv_10"), {"conv_9": "conv", "conv_10": "conv_1"}),
        (chain("conv", "conv_1"), chain("conv_1", "conv_2"), {"conv_1": "conv", "conv_2": "conv_1"}),
        (
            chain("b", "bn_b", "a", "bn_a"),
            chain("z", "bn_z", "y", "bn_y"),
            {"z": "b", "bn_z": "bn_b", "y": "a", "bn_y": "bn_a"},
        ),
        ({"a/kernel": (2, 3), "b/kernel": (3, 2)}, {"y/kernel": (3, 2), "x/kernel": (2, 3)}, {"y": "b", "x": "a"}),
    ],
    ids=["name", "signs", "number", "overlapping numbers", "order", "shape"],
)
def test_layers_find_their_partners(source, target, expected):
    assert pairs(source, target) == expected


@pytest.mark.parametrize(
    ("source", "target"),
    [
        (chain("a", "b"), chain("z", "y")),  # sorted by name: the order says nothing
        (chain("b", "a", "bn_b"), chain("z", "bn_z", "y")),  # another order
        (chain("b", "a", "c"), chain("z", "y")),  # one too many
        (chain("b"), chain("b", "bn_b")),  # one too few
        ({"b/kernel": (2, 3)}, {"b/kernel": (2, 4)}),
        ({"b/kernel": (2, 3), "b/bias": (3,)}, {"b/kernel": (2, 3)}),
        ({"b/kernel": (2, 3)}, {"b/kernel": (2, 3), "b/bias": (3,)}),
        (
            {"b/kernel": (2, 4), **normalizer("x/bn")},
            {"b/kernel": (2, 4), **normalizer("x/bn"), "x/bn/renorm_mean": (4,)},
        ),
    ],
)
def test_what_is_not_certain_is_refused(source, target):
    with pytest.raises(InputError, match=r"example has layers without a partner in example: .*rules old=new"):
        pairs(source, target)


def test_the_message_says_why_the_layer_of_the_same_name_does_not_fit():
    with pytest.raises(
        InputError, match=r"fc \(kernel \(2, 4\)\): that of the source .*\(2, 3\).* cannot become \(2, 4\)"
    ):
        pairs({"fc/kernel": (2, 3)}, {"fc/kernel": (2, 4)})


def test_absent_gamma_and_beta_are_written_and_said(tmp_path):
    source = written(tmp_path / "a.npz", normalizer("bn", words=("moving_mean", "moving_variance")), "tensorflow")
    like = written(tmp_path / "b.npz", torch_normalizer("bn"), "torch")
    report = ek.convert(source, tmp_path / "c.npz", like=like)
    out = ek.read_checkpoint(tmp_path / "c.npz").variables
    assert out["bn.weight"].read().tolist() == [1.0] * 4 and out["bn.bias"].read().tolist() == [0.0] * 4
    assert out["bn.num_batches_tracked"].read() == 7
    assert (
        "bn: no gamma in the source, 1 written" in report.notes
        and "bn: no beta in the source, 0 written" in report.notes
    )


def test_a_gamma_without_a_place_would_change_the_numbers(tmp_path):
    source = written(tmp_path / "a.npz", normalizer("bn"), "tensorflow")
    like = written(tmp_path / "b.npz", normalizer("bn", words=("beta", "moving_mean", "moving_variance")), "tensorflow")
    with pytest.raises(UnequalError, match="bn and bn differ by"):
        ek.convert(source, tmp_path / "c.npz", like=like)
    assert not (tmp_path / "c.npz").exists()


def test_many_layers_are_matched_in_seconds():
    shapes = {f"block_{i}/conv/kernel": (1, 1, 2, 2) for i in range(10**4)}
    assert len(pairs(shapes, {name.replace("block", "stage/Block"): shape for name, shape in shapes.items()})) == len(
        shapes
    )


@pytest.mark.parametrize("name", ["a/" * 10**4, f"a{'1' * 10**4}/", "²/٣/"])
def test_odd_names_are_matched(name):
    assert pairs({f"{name}b/kernel": (2, 2)}, {f"{name}c/kernel": (2, 2)}) == {f"{name}c": f"{name}b"}


# Rules.


@pytest.mark.parametrize(
    ("rules", "name"),
    [
        (["conv1=stem"], "stem/kernel"),
        (["conv1/=stem."], "stem.kernel"),
        (["conv1=a/b", "a="], "b/kernel"),  # the separator goes too
        (["conv1/kernel=w/kernel"], "w/kernel"),
        ([r"re:^conv(\d)=c\1"], "c1/kernel"),
        (["conv1=a", "a=b"], "b/kernel"),
        ([r"re:(?<=conv)1=9"], "conv9/kernel"),
    ],
)
def test_rules_rename(rules, name, net, tmp_path):
    assert ek.convert(net, tmp_path / "out.npz", rename=rules).renamed["conv1/kernel"] == name


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("conv=stem", "'conv=stem' changes no name"),  # conv1 is another
        ("conv1", "'conv1' is no rule"),
        ("=x", "'=x' is no rule"),
        ("re:(=x", r"'re:\(=x' is no rule for names: missing"),
        (r"re:conv=\7", "is no rule for names: invalid group"),
        ("re:^.*$=x", "8 variables of .* would be called x"),
    ],
)
def test_rules_that_cannot_be_followed(rule, message, net, tmp_path):
    with pytest.raises(ArgumentError, match=message):
        ek.convert(net, tmp_path / "out.npz", rename=[rule])


def test_what_cannot_be_written_is_said_of_the_file_that_was_asked_for(tmp_path):
    import ml_dtypes

    ek.write_checkpoint(tmp_path / "a.pt", memory({"fc.weight": np.ones((2, 3), ml_dtypes.bfloat16)}, "torch"))
    with pytest.raises(InputError) as caught:
        ek.convert(tmp_path / "a.pt", tmp_path / "b.npz")
    assert str(caught.value).startswith(f"{tmp_path / 'b.npz'}: fc.weight is of type bfloat16")


# Conventions that change numbers.


@pytest.mark.parametrize(("source", "to", "factor"), [("torch", "flax", 31 / 32), ("flax", "torch", 32 / 31)])
def test_variances_are_converted_for_a_number_of_examples(source, to, factor, tmp_path):
    words = {"torch": torch_normalizer("bn"), "flax": {"params/bn/scale": (4,), "params/bn/bias": (4,)}}
    words["flax"] |= {"batch_stats/bn/mean": (4,), "batch_stats/bn/var": (4,)}
    path = written(tmp_path / "a.npz", words[source], source)
    report = ek.convert(path, tmp_path / "b.npz", to=to, examples=32)
    before, after = (ek.read_checkpoint(file).normalizers[0].variance.read() for file in (path, tmp_path / "b.npz"))
    np.testing.assert_array_equal(after, (before.astype("float64") * factor).astype("float32"))
    assert any("converted for 32 values" in note for note in report.notes)
    assert 0 < report.difference < 1e-6


def test_without_a_number_variances_are_copied_and_it_is_said(tmp_path):
    path = written(tmp_path / "a.pt", torch_normalizer("bn"), "torch")
    report = ek.convert(path, tmp_path / "b.npz", to="flax")
    assert "1 normalizer: variances were divided by n - 1 and flax divides by n: copied as they are" in report.notes[1]
    assert report.difference == 0.0


def test_one_example_has_no_sample_variance(net, tmp_path):
    with pytest.raises(ArgumentError, match="examples=1"):
        ek.convert(net, tmp_path / "b.npz", examples=1)


def test_settings_for_the_target_are_said(tmp_path):
    source = GOLDENS / "checkpoints" / "d1_keras_mlp" / "model.h5"
    notes = ek.convert(source, tmp_path / "b.pt").notes
    assert "2 normalizers: give them eps=0.001; torch takes 1e-05" in notes


def test_missing_statistics_are_said(tmp_path):
    notes = ek.convert(GOLDENS / "checkpoints" / "h1_trainable_only_mlp", tmp_path / "b.npz").notes
    assert notes == ("bn1: no mean and variance in the source", "bn2: no mean and variance in the source")


def test_two_modules_become_a_separable_convolution(tmp_path):
    shapes = {"s.depthwise.weight": (4, 1, 3, 3), "s.pointwise.weight": (5, 4, 1, 1), "s.pointwise.bias": (5,)}
    source = written(tmp_path / "a.pt", shapes, "torch")
    kernels = {"s/depthwise_kernel": (3, 3, 2, 2), "s/pointwise_kernel": (1, 1, 4, 5), "s/bias": (5,)}
    like = written(tmp_path / "b.h5", kernels, "keras")
    rules = [r"re:\.(depth|point)wise\.weight$=.\1wise_kernel", r"re:\.pointwise\.bias$=.bias"]
    ek.convert(source, tmp_path / "c.h5", like=like, rename=rules)
    ek.convert(tmp_path / "c.h5", tmp_path / "d.pt")
    assert bits(tmp_path / "d.pt") == bits(source)


# The proof.


def record(facts=None, **parts):
    whole = {"gamma": [2.0], "beta": [1.0], "mean": [3.0], "variance": [4.0], **parts}
    four = {role: None if value is None else Variable.of(np.asarray(value)) for role, value in whole.items()}
    return Normalizer("bn", "keras", **four, others={}, missing=(), facts=facts or Facts())


@pytest.mark.parametrize(
    "other",
    [
        record(gamma=[2.0001]),
        record(beta=[1.0001]),
        record(mean=[3.0001]),
        record(variance=[4.0001]),
        record(gamma=None),
        record(variance=[np.nan]),
        record(gamma=[2.0] * 2, beta=[1.0] * 2, mean=[3.0] * 2, variance=[4.0] * 2),
        record(gamma=[1.0], beta=[2.0]),
        None,
    ],
)
def test_the_proof_can_fail(other):
    with pytest.raises(UnequalError, match="bn"):
        largest_difference([(record(), other, 1.0)])


def test_another_epsilon_is_another_normalizer():
    with pytest.raises(UnequalError, match=r"epsilon is 0\.001, and 1e-05 there"):
        largest_difference([(record(Facts(epsilon=1e-3)), record(Facts(epsilon=1e-5)), 1.0)])


@pytest.mark.parametrize(
    "one",
    [
        record(),
        record(mean=[np.nan]),
        record(variance=[-1.0]),
        record(variance=[np.inf]),
        record(mean=[np.inf]),
        record(gamma=None, beta=None),
        record(mean=None, variance=None),
        record(gamma=np.zeros(0), beta=np.zeros(0), mean=np.zeros(0), variance=np.zeros(0)),
    ],
)
def test_a_normalizer_equals_itself(one):
    assert largest_difference([(one, one, 1.0)]) == 0.0


def test_another_type_may_round():
    half = record(gamma=np.float16([2.1]), variance=np.float16([4.3]), mean=np.float16([3.3]), beta=np.float16([1.0]))
    double = record(gamma=[2.1], variance=[4.3], mean=[3.3])
    assert 0 < largest_difference([(double, half, 1.0)]) < 1e-2


# A target is as it was until all went well.


def failing(name):
    def load():
        raise InputError(f"{name} is damaged")

    return Variable((4,), np.dtype("float32"), name, load)


@pytest.mark.parametrize("ending", [".npz", ".safetensors", ".pt", ".h5", ""])
def test_an_exception_in_the_middle_leaves_the_target(ending, net, tmp_path, monkeypatch):
    target = tmp_path / "out" / f"target{ending}"
    target.parent.mkdir()
    ek.convert(net, target)
    before = {path.name: path.read_bytes() for path in target.parent.iterdir()}
    source = memory(values_of(NET), "tensorflow")
    broken = Checkpoint("a", "b", "tensorflow", {**source.variables, "zzz": failing("zzz")})
    monkeypatch.setattr("evenkeel.checkpoints.formats.npz.read", lambda path: broken)
    with pytest.raises(InputError, match="zzz is damaged"):
        ek.convert(net, target, overwrite=True)
    assert {path.name: path.read_bytes() for path in target.parent.iterdir()} == before


def test_a_file_that_does_not_prove_itself_is_not_kept(net, tmp_path, monkeypatch):
    write = safetensors.write

    def wrong(checkpoint, path):
        variables = dict(checkpoint.variables)
        variables["bn1/beta"], variables["bn1/gamma"] = variables["bn1/gamma"], variables["bn1/beta"]
        write(Checkpoint("a", "b", "tensorflow", variables), path)

    monkeypatch.setattr(safetensors, "write", wrong)
    with pytest.raises(UnequalError, match="bn1 and bn1 differ"):
        ek.convert(net, tmp_path / "out.safetensors")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.npz"]


KILLED = """
import os, signal, sys
import evenkeel as ek
def progress(done, total):
    if done == total - 1:
        os.kill(os.getpid(), signal.SIGKILL)
ek.convert(sys.argv[1], sys.argv[2], overwrite=True, progress=progress)
"""


@pytest.mark.parametrize("ending", [".npz", ".safetensors", ".h5"])
def test_a_killed_process_leaves_the_target(ending, net, tmp_path):
    target = tmp_path / f"target{ending}"
    ek.convert(net, target)
    before = target.read_bytes()
    other = written(tmp_path / "other.npz", NET, "tensorflow")
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    process = subprocess.run([sys.executable, "-c", KILLED, other, target], env=environment, capture_output=True)
    assert process.returncode == -signal.SIGKILL, process.stderr
    assert target.read_bytes() == before
    ek.convert(other, target, overwrite=True)
    assert bits(target) == bits(other)


def test_nothing_is_overwritten_unasked(net, tmp_path):
    (tmp_path / "out.npz").write_text("mine")
    with pytest.raises(InputError, match=r"out\.npz already exists"):
        ek.convert(net, tmp_path / "out.npz")
    assert (tmp_path / "out.npz").read_text() == "mine"


def test_a_file_can_take_its_own_place(net):
    before = bits(net)
    ek.convert(net, net, overwrite=True, rename=["conv1=stem"])
    assert bits(net) == {name.replace("conv1", "stem"): value for name, value in before.items()}


def test_a_dry_run_writes_nothing(net, tmp_path):
    report = ek.convert(net, tmp_path / "out.pt", dry_run=True)
    assert report.renamed["bn1/gamma"] == "bn1.weight" and report.normalizers == 1 and report.difference == 0.0
    assert [path.name for path in tmp_path.iterdir()] == ["net.npz"]


def test_progress_hears_of_every_variable(net, tmp_path):
    heard = []
    ek.convert(net, tmp_path / "out.safetensors", progress=lambda done, total: heard.append((done, total)))
    assert sorted(set(heard)) == [(done, len(NET)) for done in range(1, len(NET) + 1)]


@pytest.mark.parametrize(
    ("target", "options", "message"),
    [
        ("out.pt", {"to": "keras"}, r"out\.pt has names of torch \(a state_dict of .*\), not of keras"),
        ("out.npz", {"to": "caffe"}, "to='caffe' is unknown"),
        ("out.npz", {"to": "torch", "like": "net.npz"}, "has names of tensorflow; leave one of them out"),
        ("out.txt", {}, r"ends in \.txt"),
        ("missing/out.npz", {}, "out.npz cannot be written"),
        ("out.keras", {}, "does not say what model"),
    ],
)
def test_what_cannot_be_done(target, options, message, net, tmp_path):
    options = {key: tmp_path / value if key == "like" else value for key, value in options.items()}
    with pytest.raises((ArgumentError, InputError), match=message):
        ek.convert(net, tmp_path / target, **options)
    assert [path.name for path in tmp_path.iterdir()] == ["net.npz"]


def test_a_damaged_source_is_named(tmp_path):
    with zipfile.ZipFile(tmp_path / "bad.npz", "w") as archive:
        archive.writestr("bn/gamma.npy", b"no array")
    with pytest.raises(InputError, match=r"bad\.npz"):
        ek.convert(tmp_path / "bad.npz", tmp_path / "out.pt")
