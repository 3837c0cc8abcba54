# SPDX-License-Identifier: Apache-2.0
"""Names that the examples in docstrings may use without importing them."""

import os

import numpy as np
import pytest

import evenkeel
from evenkeel import backends

if os.environ.get("KERAS_BACKEND") != "tensorflow":
    collect_ignore_glob = ["src/evenkeel/tf1/*", "src/evenkeel/workloads/sessions.py", "tests/tf1/*"]
    collect_ignore_glob += ["src/evenkeel/workloads/apis/*", "src/evenkeel/doctor/monitor/session.py"]
if os.environ.get("KERAS_BACKEND") == "numpy":
    collect_ignore_glob += ["src/evenkeel/doctor/monitor/keras.py"]


@pytest.fixture(autouse=True)
def names_of_examples(doctest_namespace):
    doctest_namespace.update(np=np, ek=evenkeel, backends=backends)
