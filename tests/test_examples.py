# SPDX-License-Identifier: Apache-2.0
"""The programs of examples/, each in a process of its own, and that their proof can fail."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import NAME

ROOT = Path(__file__).parents[1]
PROGRAMS = sorted(path.stem for path in (ROOT / "examples").glob("*.py") if path.stem != "proof")
UPDATES = "tf.get_collection(tf.GraphKeys.UPDATE_OPS)"
RESTORE = "saver.restore(session, path)"
SABOTAGE = {
    "saves what is trained only": {
        "tf.global_variables()": "tf.trainable_variables()",
        RESTORE: f"session.run(tf.global_variables_initializer()); {RESTORE}",
    },
    "never runs the updates": {UPDATES: "[]"},
}


def ended(program, folder, *options):
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "KERAS_BACKEND": NAME}
    environment["OMP_NUM_THREADS"] = "1"  # more of torch's threads take several times as long on cores that are shared
    return subprocess.run(
        [sys.executable, *options, program, folder],
        env=environment,
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("program", PROGRAMS)
def test_what_is_trained_is_what_is_served(program, tmp_path):
    if NAME == "numpy" or (NAME != "tensorflow" and program != "keras_today"):
        pytest.skip(f"does not train on {NAME}")
    # Nothing of ours has to warn of an update that is not run, or of a statistic that is not saved.
    process = ended(ROOT / "examples" / f"{program}.py", tmp_path, "-W", "error::UserWarning")
    assert process.returncode == 0, process.stdout + process.stderr
    proof = process.stdout.splitlines()[-1]
    assert proof.startswith("served: accuracy 0.9") and proof.endswith(": the same model")


@pytest.mark.skipif(NAME != "tensorflow", reason="tf1 is TensorFlow's")
@pytest.mark.parametrize("replaced", SABOTAGE.values(), ids=SABOTAGE)
def test_the_proof_can_fail(replaced, tmp_path):
    shutil.copy(ROOT / "examples" / "proof.py", tmp_path)
    text = (ROOT / "examples" / "layers_saver.py").read_text()
    for old, new in replaced.items():
        assert old in text
        text = text.replace(old, new)
    program = tmp_path / "layers_saver.py"
    program.write_text(text)
    process = ended(program, tmp_path)
    assert process.returncode == 1, process.stderr
    assert process.stdout.splitlines()[-1].endswith(": NOT the same model")
