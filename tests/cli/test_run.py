# SPDX-License-Identifier: Apache-2.0
"""`evenkeel run`, as a process: argv, exit codes, tracebacks and what is said at the end are the program's."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src"
needs_tensorflow = pytest.mark.skipif(os.environ["KERAS_BACKEND"] != "tensorflow", reason="runs on TensorFlow")


def run(*arguments, folder):
    return subprocess.run(
        [sys.executable, "-m", "evenkeel", "run", *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(SOURCE), "TF_CPP_MIN_LOG_LEVEL": "3"},
        cwd=folder,
        capture_output=True,
        text=True,
    )


SEES = """
from __future__ import print_function
import json, os, sys
import helpers
import tensorflow as tf

FLAGS = tf.app.flags.FLAGS
tf.app.flags.DEFINE_float("rate", 0.5, "of learning")

def main(_):
    print(json.dumps({
        "argv": sys.argv, "file": __file__, "name": __name__, "folder": sys.path[0], "rate": FLAGS.rate,
        "child": helpers.tf is tf, "graphs": not tf.executing_eagerly(), "main": sys.modules["__main__"].main is main,
        "reference variables": type(tf.get_variable("v", [])).__name__,
    }))
    return 7

if __name__ == "__main__":
    tf.app.run()
"""


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """What a program in a subfolder sees, that is run from above it."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "old").mkdir()
    (folder / "old" / "main.py").write_text(SEES)
    (folder / "old" / "helpers.py").write_text("import tensorflow as tf\n")
    ended = run("old/main.py", "--rate", "0.25", "--", "--quiet", folder=folder)
    return ended, json.loads(ended.stdout), folder


@needs_tensorflow
@pytest.mark.parametrize(
    ("what", "wanted"),
    [
        ("argv", ["old/main.py", "--rate", "0.25", "--", "--quiet"]),
        ("file", "old/main.py"),
        ("name", "__main__"),
        ("rate", 0.25),
        ("child", True),
        ("graphs", True),
        ("main", True),
        ("reference variables", "RefVariable"),
    ],
)
def test_what_the_program_sees(seen, what, wanted):
    assert seen[1][what] == wanted


@needs_tensorflow
def test_its_folder_is_where_it_imports_from(seen):
    assert seen[1]["folder"] == str((seen[2] / "old").resolve())


@needs_tensorflow
def test_its_exit_code_is_ours(seen):
    assert seen[0].returncode == 7


TRAINS = """
import numpy as np
import tensorflow as tf

x = tf.placeholder(tf.float32, [None, 3])
h = tf.layers.batch_normalization(x, training=True, name="forgotten")
updates = tf.get_collection(tf.GraphKeys.UPDATE_OPS)
h = tf.layers.batch_normalization(h, training=True, name="kept")
updates = [op for op in tf.get_collection(tf.GraphKeys.UPDATE_OPS) if op not in updates]
with tf.control_dependencies(updates):
    train = tf.train.AdamOptimizer().minimize(tf.reduce_mean(h ** 2, keep_dims=True))
with tf.Session() as session:
    session.run(tf.global_variables_initializer())
    session.run(train, {x: np.ones([4, 3], np.float)})
print("trained")
"""


@needs_tensorflow
@pytest.mark.parametrize(("options", "said"), [([], 1), (["--quiet"], 0)], ids=["said", "quiet"])
def test_normalizers_never_updated(run_warm, tmp_path, options, said):
    (tmp_path / "main.py").write_text(TRAINS)
    ended = run_warm(*options, "main.py", folder=tmp_path)
    lines = [line for line in ended.stderr.splitlines() if line.startswith("evenkeel: ")]
    assert (ended.returncode, ended.stdout, len(lines)) == (0, "trained\n", said)
    assert all("moving statistics of forgotten were never updated" in line for line in lines)


FAILS = """
import tensorflow as tf

def build():
    try:
        return {}["nothing"]
    except KeyError:
        return tf.contrib.rnn.LSTMCell(3)

build()
"""
TRACEBACK = """\
Traceback (most recent call last):
  File "main.py", line 6, in build
    return {}["nothing"]
           ~~^^^^^^^^^^^
KeyError: 'nothing'

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "main.py", line 10, in <module>
    build()
  File "main.py", line 8, in build
    return tf.contrib.rnn.LSTMCell(3)
           ^^^^^^^^^^^^^^
AttributeError: module 'tensorflow.contrib' has no attribute 'rnn'; use tf.nn.\
"""


def without_marks(text):
    """Python marks what failed in a line from one version on."""
    return [line for line in text.splitlines() if set(line) - set(" ~^")]


@needs_tensorflow
def test_a_traceback_is_the_program_s_alone(run_warm, tmp_path):
    (tmp_path / "main.py").write_text(FAILS)
    ended = run_warm("main.py", folder=tmp_path)
    at = ended.stderr.index("Traceback")
    assert ended.returncode == 1
    got, wanted = without_marks(ended.stderr[at:]), without_marks(TRACEBACK)
    assert got[:-1] == wanted[:-1]
    assert got[-1].startswith(wanted[-1])


@needs_tensorflow
@pytest.mark.parametrize(
    ("program", "code", "said"),
    [
        ("raise KeyboardInterrupt", 130, "KeyboardInterrupt"),
        ("print 'python 2'", 1, "SyntaxError: Missing parentheses"),
        (
            "from evenkeel.errors import InputError; raise InputError('its own')",
            1,
            "evenkeel.errors.InputError: its own",
        ),
    ],
    ids=["Ctrl-C", "Python 2", "our error"],
)
def test_how_it_ends(run_warm, tmp_path, program, code, said):
    (tmp_path / "main.py").write_text(program)
    ended = run_warm("main.py", folder=tmp_path)
    assert ended.returncode == code
    assert said in ended.stderr


@needs_tensorflow
def test_a_file_that_is_not_there_is_one_line(run_warm, tmp_path):
    ended = run_warm("nowhere.py", folder=tmp_path)
    assert ended.returncode == 2
    assert ended.stderr.splitlines()[-1] == (
        "evenkeel: nowhere.py cannot be read (No such file or directory); give the Python file of a program"
    )


def test_without_a_program_it_says_what_is_missing(tmp_path):
    ended = run(folder=tmp_path)
    assert ended.returncode == 2
    assert "Missing argument" in ended.stderr and "SCRIPT" in ended.stderr
