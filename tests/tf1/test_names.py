# SPDX-License-Identifier: Apache-2.0
"""What an old program imports: each line gives TensorFlow 1's, and nobody else notices."""

import builtins
import collections
import sys

import numpy as np
import pytest
import tensorflow as tf

import evenkeel.tf1 as tf1
from evenkeel.tf1 import examples, names
from evenkeel.tf1.contrib import framework, layers, slim

v1 = tf.compat.v1


@pytest.fixture
def program(tmp_path):
    """Runs lines as the main module of a program, and gives the value of their last name."""

    def run(lines, name, module="__main__", file=None):
        world = {"__name__": module, "__file__": str(file or tmp_path / "main.py")}
        exec(lines, world)
        return eval(name, world)

    with names.as_in_tensorflow_1(tmp_path):
        yield run


IMPORTS = {
    "import tensorflow as tf": ("tf.layers.batch_normalization", tf1.layers.batch_normalization),
    "import tensorflow as tf ": ("tf.placeholder", v1.placeholder),
    "import tensorflow as tf  ": ("tf.python_io.TFRecordWriter", v1.python_io.TFRecordWriter),
    "import tensorflow.compat.v1 as tf": ("tf.contrib.layers.batch_norm", layers.batch_norm),
    "import tensorflow.contrib": ("tensorflow.contrib.layers.batch_norm", layers.batch_norm),
    "import tensorflow.contrib.slim as slim": ("slim.conv2d", slim.conv2d),
    "import tensorflow.contrib.layers as layers": ("layers.batch_norm", layers.batch_norm),
    "from tensorflow import contrib": ("contrib.slim.arg_scope", framework.arg_scope),
    "from tensorflow import layers": ("layers.Dense", tf1.layers.Dense),
    "from tensorflow.contrib import slim": ("slim.batch_norm", layers.batch_norm),
    "from tensorflow.contrib import layers": ("layers.l2_regularizer", layers.l2_regularizer),
    "from tensorflow.contrib.slim import *": ("fully_connected", layers.fully_connected),
    "from tensorflow.contrib.layers import batch_norm": ("batch_norm", layers.batch_norm),
    "from tensorflow.contrib.framework import arg_scope": ("arg_scope", framework.arg_scope),
    "from tensorflow.contrib.framework.python.ops import arg_scope": ("arg_scope", framework.arg_scope),
    "from tensorflow.contrib.layers.python.layers import initializers": (
        "initializers.xavier_initializer",
        layers.xavier_initializer,
    ),
    "from tensorflow.contrib.data import shuffle_and_repeat": (
        "shuffle_and_repeat",
        v1.data.experimental.shuffle_and_repeat,
    ),
    "from tensorflow.contrib.data import TFRecordDataset": ("TFRecordDataset", v1.data.TFRecordDataset),
    "import tensorflow as tf  # keras": ("tf.keras.layers.BatchNormalization", tf1.keras.layers.BatchNormalization),
    "import tensorflow as tf  # compat": (
        "tf.compat.v2.keras.layers.BatchNormalization",
        tf1.compat.v2.keras.layers.BatchNormalization,
    ),
    "import tensorflow.keras.backend as K": ("K.learning_phase", tf1.keras.backend.learning_phase),
    "from tensorflow.keras.layers import BatchNormalization": (
        "BatchNormalization",
        tf1.keras.layers.BatchNormalization,
    ),
    "from tensorflow.python.keras.layers import Dense": ("Dense", tf1.keras.layers.Dense),
    "from keras.layers.normalization import BatchNormalization": (
        "BatchNormalization",
        tf1.keras.layers.BatchNormalization,
    ),
    "from keras.models import Sequential": ("Sequential", tf1.keras.Sequential),
    "from keras.engine.topology import Layer, InputSpec": ("InputSpec", tf1.keras.layers.InputSpec),
    "from keras.utils.np_utils import to_categorical": ("to_categorical", tf1.keras.utils.to_categorical),
    "from tensorflow.contrib.keras.layers import BatchNormalization": (
        "BatchNormalization",
        tf1.keras.layers.BatchNormalization,
    ),
    "import tensorflow as tf  # contrib.keras": ("tf.contrib.keras.layers.Dense", tf1.keras.layers.Dense),
    "import keras": ("keras.layers.Dense", tf1.keras.layers.Dense),
    "import keras.backend as K": ("K.get_session", tf1.keras.backend.get_session),
    "from tensorflow.python.framework import ops": ("ops.get_default_graph", v1.get_default_graph),
    "from tensorflow.python.framework import ops ": ("ops.Tensor", tf.Tensor),
    "import tensorflow.python.framework.ops": ("tensorflow.python.framework.ops.RegisterGradient", tf.RegisterGradient),
    "from tensorflow.python.ops import control_flow_ops": ("control_flow_ops.cond", v1.cond),
    "from tensorflow.python.ops import array_ops": ("array_ops.identity", tf.identity),
    "from tensorflow.python.ops import variable_scope": ("variable_scope.get_variable", v1.get_variable),
    "from tensorflow.python.ops import math_ops": ("math_ops.reduce_mean", tf.math.reduce_mean),
    "from tensorflow.python.ops import init_ops": ("init_ops.zeros_initializer", v1.zeros_initializer),
    "from tensorflow.python.ops import nn_ops": ("nn_ops.bias_add", tf.nn.bias_add),
    "from tensorflow.python.training import moving_averages": (
        "moving_averages.assign_moving_average",
        tf1.train.assign_moving_average,
    ),
    "import tensorflow.python.training.moving_averages as averages": (
        "averages.ExponentialMovingAverage",
        tf.train.ExponentialMovingAverage,
    ),
    "from tensorflow.core.framework import graph_pb2": ("graph_pb2.GraphDef", v1.GraphDef),
    "from tensorflow.python.layers.normalization import BatchNormalization": (
        "BatchNormalization",
        tf1.layers.BatchNormalization,
    ),
    "from tensorflow.python.platform import gfile": ("gfile.Exists", v1.gfile.Exists),
    "from tensorflow.python.platform import app": ("app.run", v1.app.run),
    "from tensorflow.python.platform import flags": ("flags.DEFINE_string", v1.flags.DEFINE_string),
    "from tensorflow.python.client import device_lib": ("callable(device_lib.list_local_devices)", True),
    "from tensorflow.python.client import timeline": ("callable(timeline.Timeline)", True),
    "from tensorflow.examples.tutorials.mnist import input_data": (
        "input_data.read_data_sets",
        examples.read_data_sets,
    ),
    "import tensorflow.examples.tutorials.mnist.input_data as data": ("data.read_data_sets", examples.read_data_sets),
    "from tensorflow import VERSION": ("VERSION", "1.15.5"),
    "import tensorflow as tf   ": ("tf.__version__", "1.15.5"),
    "import numpy as np": ("np.float", float),
    "from collections import Mapping": ("Mapping", collections.abc.Mapping),
    "from fractions import gcd": ("gcd(4, 6)", 2),
}


@pytest.mark.parametrize(("line", "name", "wanted"), [(line, *rest) for line, rest in IMPORTS.items()], ids=IMPORTS)
def test_what_a_line_gives(program, line, name, wanted):
    got = program(line.strip(), name)
    # Not by identity: TensorFlow has wrapped some functions once more under their public names.
    assert got == wanted or got.__name__.removesuffix("_v1") == wanted.__name__.removesuffix("_v1")


MISSING = {
    "import tensorflow as tf\ntf.contrib.learn.Estimator": (
        AttributeError,
        "'tensorflow.contrib.learn' has no attribute 'Estimator'; use ",
    ),
    "import tensorflow as tf\ntf.nonsense": (AttributeError, "module 'tensorflow' has no attribute 'nonsense'"),
    "import tensorflow as tf\ntf.contrib.rnn": (
        AttributeError,
        "'tensorflow.contrib' has .* 'rnn'; use tf.nn.",
    ),
    "from tensorflow.contrib import rnn": (
        ImportError,
        "'tensorflow.contrib' has no attribute 'rnn'; use tf.nn.",
    ),
    "import tensorflow.contrib.rnn": (
        ModuleNotFoundError,
        "'tensorflow.contrib' has no attribute 'rnn'; use tf.nn.",
    ),
    "from tensorflow.contrib.layers import embed": (
        ImportError,
        "'tensorflow.contrib.layers' has no attribute 'embed'",
    ),
    "from tensorflow.python.ops import gone_ops": (ImportError, "'tensorflow.python.ops' has no attribute 'gone_ops'"),
}


@pytest.mark.parametrize(("lines", "kind", "said"), [(lines, *rest) for lines, rest in MISSING.items()], ids=MISSING)
def test_what_is_missing_is_named_where_it_is_used(program, lines, kind, said):
    with pytest.raises(kind, match=f"{said}.*; docs/how-to/run-old-programs.md says what there is"):
        program(lines, "None")


OTHERS = {
    "installed": (np.__file__, "numpy.x"),
    "tensorflow": (tf.__file__, "tensorflow.x"),
    "ours": (names.__file__, "evenkeel.x"),
    "the standard library": (collections.__file__, "collections.x"),
    "somewhere in site-packages": ("/opt/other/site-packages/package/x.py", "package.x"),
}


@pytest.mark.parametrize(("file", "module"), OTHERS.values(), ids=OTHERS)
def test_other_modules_see_tensorflow_2(program, file, module):
    assert program("import tensorflow as tf", "tf", module, file) is tf


def test_modules_of_the_program_see_tensorflow_1(program, tmp_path):
    assert program("import tensorflow as tf", "tf.__version__", "model.net", tmp_path / "model" / "net.py") == "1.15.5"


def test_a_program_in_site_packages_sees_tensorflow_1(tmp_path):
    folder = tmp_path / "site-packages" / "old"
    with names.as_in_tensorflow_1(folder):
        world = {"__name__": "old.net", "__file__": str(folder / "net.py")}
        exec("import tensorflow as tf", world)
    assert world["tf"].__version__ == "1.15.5"


def test_nothing_stays(tmp_path):
    before = builtins.__import__, set(vars(np)), set(vars(collections)), set(vars(tf))
    with names.as_in_tensorflow_1(tmp_path):
        assert builtins.__import__ is not before[0]
        assert "float" in vars(np)
    assert before == (builtins.__import__, set(vars(np)), set(vars(collections)), set(vars(tf)))
    assert not hasattr(tf, "contrib")


def test_without_tf_slim_the_networks_name_it(monkeypatch, program):
    monkeypatch.setattr(names, "_nets_folder", lambda: None)
    with pytest.raises(
        ImportError, match=r"contrib\.slim\.nets comes from tf_slim, which is not installed; pip install"
    ):
        program("from tensorflow.contrib.slim.nets import resnet_v1", "None")


NET = """
import tensorflow.compat.v1 as tf
import tf_slim as slim
from tf_slim.layers import initializers
from tf_slim.nets import tiny_utils
from tf_slim.ops import variables
from tf_slim.ops.arg_scope import arg_scope

@slim.add_arg_scope
def tiny(inputs, units=3):
    return tiny_utils.normalized(slim.fully_connected(inputs, units, scope="fc"))
"""
UTILS = """
from tf_slim import layers

def normalized(inputs):
    return layers.batch_norm(inputs, is_training=True, scope="bn")
"""


@pytest.fixture
def tf_slim(tmp_path_factory, monkeypatch):
    """An installed tf_slim whose own layers cannot even be imported."""
    site = tmp_path_factory.mktemp("environment") / "site-packages"
    (site / "tf_slim" / "nets").mkdir(parents=True)
    (site / "tf_slim" / "__init__.py").write_text("raise RuntimeError('Keras 2 is not here')")
    (site / "tf_slim" / "nets" / "__init__.py").write_text("from tf_slim.nets import tiny")
    (site / "tf_slim" / "nets" / "tiny.py").write_text(NET)
    (site / "tf_slim" / "nets" / "tiny_utils.py").write_text(UTILS)
    monkeypatch.syspath_prepend(site)


@pytest.mark.usefixtures("tf_slim", "graph")
def test_the_networks_of_tf_slim_stand_on_our_layers(tmp_path):
    world = {"__name__": "__main__"}
    with names.as_in_tensorflow_1(tmp_path):
        exec("import tensorflow.contrib.slim as slim\nfrom tensorflow.contrib.slim.nets import tiny", world)
        with world["slim"].arg_scope([world["tiny"].tiny], units=5):
            y = world["slim"].nets.tiny.tiny(v1.placeholder(tf.float32, [2, 4]))
    assert y.shape.as_list() == [2, 5]
    assert [variable.op.name for variable in v1.global_variables()] == [
        "fc/weights", "fc/biases", "bn/beta", "bn/moving_mean", "bn/moving_variance",
    ]  # fmt: skip
    assert not [name for name in sys.modules if name.startswith("tensorflow.contrib")]


@pytest.mark.usefixtures("tf_slim")
def test_a_network_that_tf_slim_does_not_have(tmp_path):
    with names.as_in_tensorflow_1(tmp_path), pytest.raises(ImportError, match="has no attribute 'resnet_v9'"):
        exec("from tensorflow.contrib.slim.nets import resnet_v9", {"__name__": "__main__"})
