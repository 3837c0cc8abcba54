# SPDX-License-Identifier: Apache-2.0
"""Names that the examples in docstrings may use without importing them."""

import contextlib
import importlib
import os

import numpy as np
import pytest

import evenkeel
from evenkeel import backends

NAME = os.environ.get("KERAS_BACKEND")
# Workaround: Triton 3.9 aborts the process if it is loaded after TensorFlow 2.21, as torch._dynamo does. And it looks
# only then for its interpreter, which the tests of our kernels need where there is no GPU.
with contextlib.suppress(ImportError), pytest.MonkeyPatch.context() as during_import:
    if NAME == "torch" and not importlib.import_module("torch").cuda.is_available():
        during_import.setenv("TRITON_INTERPRET", "1")
    import triton.language  # noqa: F401
OF = {
    "tensorflow": [
        "src/evenkeel/tf1/*",
        "src/evenkeel/workloads/sessions.py",
        "src/evenkeel/workloads/apis/*",
        "src/evenkeel/workloads/parallel/tensorflow.py",
        "src/evenkeel/doctor/monitor/session.py",
        "tests/tf1/*",
    ],
    "jax": ["src/evenkeel/flax.py", "src/evenkeel/layers/flax.py", "src/evenkeel/workloads/parallel/jax.py"],
    "torch": [
        "src/evenkeel/torch.py",
        "src/evenkeel/layers/torch.py",
        "src/evenkeel/backends/torch/*",
        "src/evenkeel/workloads/parallel/torch.py",
    ],
}
"""What is collected with one backend only."""
collect_ignore_glob = [path for name, paths in OF.items() if name != NAME for path in paths]
if NAME == "numpy":
    collect_ignore_glob += ["src/evenkeel/doctor/monitor/keras.py"]


@pytest.fixture(autouse=True)
def names_of_examples(doctest_namespace):
    doctest_namespace.update(np=np, ek=evenkeel, backends=backends)
