# SPDX-License-Identifier: Apache-2.0
"""Whole programs: broken in one way, the first finding names the cause; their healthy twins have none.

A file of `programs/` holds both twins: a line that ends in `# sick` or `# healthy` is in one of them only.
"""

import ast
import re
from pathlib import Path

import pytest

from evenkeel.doctor import programs, rules
from evenkeel.doctor.evidence import Source
from evenkeel.doctor.programs import UNKNOWN

PROGRAMS = sorted((Path(__file__).parent / "programs").glob("*.txt"))
REPOSITORY = Path(__file__).parents[2]
RUNNING = sorted((REPOSITORY / "examples").glob("*.py")) + sorted(
    (REPOSITORY / "src/evenkeel/workloads/apis").glob("*.py")
)


def twin(path, health):
    other = {"sick": "healthy", "healthy": "sick"}[health]
    lines = path.read_text().splitlines(keepends=True)
    return Source.of("".join(line for line in lines if not line.rstrip().endswith(f"# {other}")), path.name)


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.stem)
def test_the_cause_is_found(path):
    found = list(rules.look(twin(path, "sick")))
    assert {finding.rule for finding in found} == {re.match("# (EK...)", path.read_text())[1]}


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.stem)
def test_the_healthy_twin_has_none(path):
    assert list(rules.look(twin(path, "healthy"))) == []


@pytest.mark.parametrize("path", RUNNING, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_our_own_programs_are_healthy(path):
    assert list(rules.look(Source.of(path.read_text(), path.name))) == []


def names(text):
    """What the last expression of a program stands for."""
    source = Source.of(text)
    return set(programs.of(source).names(source.tree.body[-1].value))


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("import tensorflow as tf\ntf.layers.dense", "tensorflow.layers.dense"),
        ("import tensorflow\ntensorflow.layers.dense", "tensorflow.layers.dense"),
        ("import tensorflow.compat.v1 as tf\ntf.layers.dense", "tensorflow.layers.dense"),
        ("from tensorflow.compat import v1\nv1.layers.dense", "tensorflow.layers.dense"),
        ("import evenkeel.tf1 as tf\ntf.layers.dense", "tensorflow.layers.dense"),
        ("from tensorflow import keras\nkeras.layers.Dense", "keras.layers.Dense"),
        ("import evenkeel.tf1 as tf\ntf.keras.layers.Dense", "keras.layers.Dense"),
        ("from tensorflow.python.keras import layers\nlayers.Dense", "keras.layers.Dense"),
        ("from keras.layers.normalization import BatchNormalization as B\nB", "keras.layers.BatchNormalization"),
        ("import evenkeel as ek\nek.BatchNormalization", "keras.layers.BatchNormalization"),
        ("from tensorflow.contrib import slim\nslim.batch_norm", "slim.batch_norm"),
        ("import tensorflow as tf\ntf.contrib.layers.batch_norm", "slim.batch_norm"),
        ("import torch.nn as nn\nnorm = nn.BatchNorm2d\nnorm", "torch.nn.BatchNorm2d"),
        ("import evenkeel.torch as ours\nours.BatchNorm2d", "torch.nn.BatchNorm2d"),
        ("from evenkeel.torch import BatchNorm\nBatchNorm", "torch.nn.BatchNorm"),
        ("import tensorflow as tf\nlayers, other = tf.layers, 3\nlayers.dense", "tensorflow.layers.dense"),
        ("from functools import partial\nimport tensorflow as tf\nd = partial(tf.layers.dense, units=3)\nd",
         "tensorflow.layers.dense"),
        ("import torch\nclass A:\n    def __init__(self): self.norm = torch.relu\n    def f(self): self.norm\nA",
         None),
        ("tf = unknown()\ntf.layers.dense", None),
        ("import tensorflow as tf\nfor tf in things: pass\ntf.layers.dense", "tensorflow.layers.dense"),
    ],
)  # fmt: skip
def test_names(text, name):
    assert names(text) == ({name} if name else set())


def test_a_name_from_a_star_is_tried():
    assert "torch.nn.BatchNorm1d" in names("from torch.nn import *\nBatchNorm1d")


def constants(text):
    source = Source.of(text)
    return programs.of(source).constants(source.tree.body[-1].value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("True", {True}),
        ("phase = True\nphase", {True}),
        ("phase = True if late else False\nphase", {True, False}),
        ("phase = mode == 'train'\nphase", {UNKNOWN}),
        ("phase: bool = True\nphase", {True}),
        ("phase = True\nphase &= late\nphase", {True, UNKNOWN}),
        ("a, b = 1, 2\nb", {2}),
        ("a, b = both\nb", {UNKNOWN}),
        ("a = b\nb = a\na", {UNKNOWN}),
        ("momentum = 1 - 0.75\nmomentum", {0.25}),
        ("import tensorflow as tf\ntf.constant(True)", {True}),
        ("not True", {False}),
    ],
)
def test_constants(text, expected):
    assert constants(text) == expected


def parameter(text):
    """What the parameter `phase` may be, where it stands in a call of `use`."""
    program = programs.of(Source.of(text))
    (call,) = [call for call in program.calls if getattr(call.func, "id", "") == "use"]
    return program.constants(call.args[0])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("def f(phase): use(phase)\nf(True)", {True}),
        ("def f(x, phase=False): use(phase)\nf(1); f(1, True)", {True, False}),
        ("def f(phase): use(phase)\ndef g(late): f(phase=late)\ng(1)", {1}),
        ("def f(phase=True): use(phase)", {UNKNOWN}),
        ("def f(phase): use(phase)\nf(True)\nlibrary(f)", {True, UNKNOWN}),
        ("def f(phase): use(phase)\nf(*all)", {UNKNOWN}),
        ("def f(phase): use(phase)\nf(**all)", {UNKNOWN}),
        ("class A:\n    def f(self, phase): use(phase)\nA().f(True)", {True}),
        ("class A:\n    def __init__(self, phase): self.phase = phase\n    def f(self): use(self.phase)\nA(False)",
         {False}),
        ("class A:\n    def forward(self, phase): use(phase)\nA().forward(True)", {UNKNOWN}),
        ("f = lambda phase: use(phase)\nf(True)", {UNKNOWN}),
    ],
)  # fmt: skip
def test_parameters(text, expected):
    assert parameter(text) == expected


def phase(text):
    program = programs.of(Source.of("import tensorflow as tf, keras, tf_slim as slim\n" + text))
    return program.phase(program.normalizations[0])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("tf.layers.batch_normalization(x)", {False}),
        ("tf.layers.batch_normalization(x, **more)", {UNKNOWN}),
        ("tf.layers.batch_normalization(x, **{'training': True})", {True}),
        ("bn = tf.layers.BatchNormalization()\nbn(x, training=True); bn.apply(x)", {True, False}),
        ("tf.layers.BatchNormalization()", {UNKNOWN}),
        ("keras.layers.BatchNormalization()(x, training=True)", {True}),
        ("keras.layers.BatchNormalization()(x)", {UNKNOWN}),
        ("slim.batch_norm(x)", {True}),
        ("slim.conv2d(x, 3, 3, normalizer_fn=slim.batch_norm, normalizer_params={'is_training': 0})", {False}),
        ("slim.conv2d(x, 3, 3, normalizer_fn=slim.batch_norm, normalizer_params=parameters)", {UNKNOWN}),
        ("with slim.arg_scope([slim.batch_norm], is_training=phase): slim.batch_norm(x)", {UNKNOWN}),
        ("with slim.arg_scope([slim.batch_norm], is_training=False): slim.batch_norm(x)", {False}),
        ("import nets\nwith slim.arg_scope(nets.resnet_arg_scope()): slim.batch_norm(x)", {UNKNOWN}),
    ],
)
def test_phases(text, expected):
    assert phase(text) == expected


def has(text):
    source = Source.of("import torch, torchvision\nfrom torch import nn\n" + text)
    return bool(programs.of(source).models(source.tree.body[-1].value, "torch"))


@pytest.mark.parametrize(
    "text",
    [
        "torchvision.models.resnet18()",
        "torchvision.models.__dict__['resnet18']()",
        "model = torchvision.models.__dict__[arguments.arch](pretrained=True)\nmodel",
        "model = nn.DataParallel(torchvision.models.vgg11_bn().to('cpu')).cuda()\nmodel",
        "nn.Sequential(nn.Linear(1, 2), nn.BatchNorm1d(2))",
        "from evenkeel import torch as ours\nnn.Sequential(nn.Linear(1, 2), ours.BatchNorm(2, momentum=0.9))",
        "import evenkeel.torch\nevenkeel.torch.convert(torchvision.models.resnet18())",
        "layers = [nn.Linear(1, 2)]\nlayers += [nn.BatchNorm1d(2), nn.ReLU()]\nnn.Sequential(*layers)",
        "layers = []\nlayers.append(nn.BatchNorm1d(2))\nmodel = nn.Sequential(*layers)\nmodel",
        "def norm(n): return nn.BatchNorm1d(n)\nclass Net(nn.Module):\n    def __init__(self): self.b = norm(3)\nNet()",
        "class Base(nn.Module):\n    def __init__(self): self.b = nn.BatchNorm1d(3)\nclass Net(Base): pass\nNet()",
    ],
)
def test_models_with_batch_normalization(text):
    assert has(text)


@pytest.mark.parametrize(
    "text",
    [
        "torchvision.models.vgg11()",
        "torchvision.models.__dict__['vgg11']()",
        "nn.Sequential(nn.Linear(1, 2), nn.LayerNorm(2))",
        "class Other(nn.Module):\n    def __init__(self): self.b = nn.BatchNorm1d(3)\nnn.Linear(1, 2)",
        "nn.BatchNorm1d(3, track_running_stats=False)",
        "unknown()",
    ],
)
def test_models_without(text):
    assert not has(text)


def test_a_keras_model_is_what_it_is_made_of_not_what_stands_beside_it():
    text = (
        "from keras import Input, Model, Sequential, layers\n"
        "with_it = Sequential([layers.Dense(3)])\nwith_it.add(layers.BatchNormalization())\n"
        "without = Sequential([layers.Dense(3)])\nwithout.add(layers.Dense(3))\n"
        "inputs = Input((3,))\nhidden = layers.BatchNormalization()(inputs)\nhidden_2 = layers.Dense(3)(hidden)\n"
        "functional, plain = Model(inputs, hidden_2), Model(inputs, layers.Dense(3)(inputs))\n"
        "(with_it, functional, without, plain)"
    )
    source = Source.of(text)
    program = programs.of(source)
    assert [bool(program.models(name, "keras")) for name in source.tree.body[-1].value.elts] == [1, 1, 0, 0]


def test_a_place_counts_characters_from_one():
    text = "import torch\nπ, bn = 3, torch.nn.BatchNorm1d(3, momentum=0.9)\n"
    (finding,) = rules.look(Source.of(text, "x.py"))
    assert (finding.where, finding.line) == ("x.py", 2)
    assert text.splitlines()[1][finding.column - 1 :].startswith("0.9")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("f(" * 90, ")" * 90),
        ("", "()" * 900),
        ("", ".to(1)" * 400),
        ("", "(1)" * 400),
        ("", ".a" * 900),
        ("1 + " * 900, ""),
    ],
)
def test_a_program_is_looked_through_however_deep(before, after):
    text = f"import torch\nx = {before}torch.nn.BatchNorm1d(3, momentum=0.9){after}\nx(1); x.train()"
    assert [finding.rule for finding in rules.look(Source.of(text))] == ["EK608"]


def test_names_in_a_circle_end():
    chain = "\n".join(f"a{i} = a{i + 1} if c else a{(i * 7) % 50}" for i in range(50))
    assert constants(f"{chain}\na0") == {UNKNOWN}


def test_aliases_of_any_length_end():
    chain = "\n".join(f"a{i} = a{i + 1}.x" for i in range(1000))
    assert names(f"import torch\n{chain}\na1000 = torch\na0") == set()


def test_attributes_in_a_circle_end():
    assert names("a = b.c\nb = a.d\na") == set()


def test_the_same_source_is_read_once():
    source = Source.of("x = 1")
    assert programs.of(source) is programs.of(source)
    assert isinstance(programs.of(source).nodes[0], ast.Module)


def test_a_form_feed_is_no_line():
    text = "import torch.nn as nn\n\x0c\nbn = nn.BatchNorm2d(8, momentum=0.99)\n"
    (finding,) = rules.look(Source.of(text))
    assert (finding.line, finding.column) == (3, text.splitlines()[-1].index("0.99") + 1)
