# SPDX-License-Identifier: Apache-2.0
"""What an import loads, in a fresh process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src"
HEAVY = ["flax", "h5py", "jax", "keras", "matplotlib", "safetensors", "sklearn", "tensorflow", "tf_keras", "torch"]


def printed(code):
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    ).stdout.strip()


def loaded_after(code, names=HEAVY):
    return printed(f"{code}\nimport sys; print(sorted(set({names}) & set(sys.modules)))")


@pytest.mark.parametrize(
    "code", ["import evenkeel", "import evenkeel.cli", "import evenkeel.functional", "import evenkeel.dialects"]
)
def test_import_loads_no_framework(code):
    assert loaded_after(code) == "[]"


def test_the_check_itself_can_fail():
    assert loaded_after("import json", ["json"]) == "['json']"


def test_using_numpy_loads_no_framework():
    assert loaded_after("import evenkeel as ek, numpy as np; ek.moments(np.zeros((3, 2)))") == "[]"


def test_public_names_are_sorted_and_there():
    code = "import evenkeel as ek; print(ek.__all__ == sorted(ek.__all__), set(ek.__all__) <= set(dir(ek)))"
    assert printed(code) == "True True"


def test_every_public_name_has_a_home():
    assert printed("import evenkeel as ek; print(set(ek._HOME) == set(ek.__all__))") == "True"


def test_an_unknown_name_is_an_attribute_error():
    code = "import evenkeel\ntry:\n    evenkeel.nonsense\nexcept AttributeError as error:\n    print(error)"
    assert printed(code) == "module 'evenkeel' has no attribute 'nonsense'"
