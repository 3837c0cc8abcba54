# SPDX-License-Identifier: Apache-2.0
"""One framework a process: `KERAS_BACKEND` names it, `backend` speaks to it."""

import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import hypothesis
import numpy as np
import pytest

NAME = os.environ.setdefault("KERAS_BACKEND", "tensorflow")
GOLDENS = Path(os.environ.get("EVENKEEL_GOLDENS", Path(__file__).parent / "goldens"))

ROOMS_OF_MODELS = {"checkpoints", "doctor", "surgery"}

# Each shape is compiled anew on these.
EXAMPLES = 15 if NAME in {"jax", "tensorflow"} else 30
hypothesis.settings.register_profile("fixed", derandomize=True, deadline=None, max_examples=EXAMPLES)
hypothesis.settings.load_profile("fixed")


class NumpyBackend:
    """What tests need of a framework: arrays in and out, gradients, compilation."""

    name = "numpy"
    differentiates = False
    compilers = ()
    double = contextlib.nullcontext  # inside it, float64 is float64

    def array(self, value):
        return np.asarray(value)

    def numpy(self, value):
        return np.asarray(value)

    def float32(self, value):
        return value.astype("float32")


class TensorFlowBackend:
    name = "tensorflow"
    double = contextlib.nullcontext
    differentiates = True
    compilers = ("graph", "xla")

    def __init__(self):
        self.tf = importlib.import_module("tensorflow")

    def array(self, value):
        return self.tf.constant(value)

    def numpy(self, value):
        return value.numpy() if hasattr(value, "numpy") else np.asarray(value)

    def gradients(self, function, *arrays):
        """Of a scalar function, by each array."""
        with self.tf.GradientTape() as tape:
            tape.watch(arrays)
            result = function(*arrays)
        return tape.gradient(result, arrays)

    def float32(self, value):
        return self.tf.cast(value, "float32")

    def sum(self, value):
        return self.tf.reduce_sum(value)

    def compile(self, function, how):
        return self.tf.function(function, jit_compile=how == "xla")


class JaxBackend:
    name = "jax"
    differentiates = True
    compilers = ("jit",)

    def __init__(self):
        self.jax = importlib.import_module("jax")
        self.jax.config.update("jax_numpy_dtype_promotion", "strict")

    def double(self):
        return self.jax.enable_x64(True)

    def array(self, value):
        return self.jax.numpy.asarray(value)

    def numpy(self, value):
        return np.asarray(value)

    def gradients(self, function, *arrays):
        return self.jax.grad(function, tuple(range(len(arrays))))(*arrays)

    def float32(self, value):
        return value.astype("float32")

    def sum(self, value):
        return value.sum()

    def compile(self, function, how):
        return self.jax.jit(function)


class TorchBackend:
    name = "torch"
    double = contextlib.nullcontext
    differentiates = True
    compilers = ("compile",)

    def __init__(self):
        self.torch = importlib.import_module("torch")

    def array(self, value):
        value = np.asarray(value)
        if value.dtype.name == "bfloat16":
            return self.torch.tensor(value.astype("float32")).to(self.torch.bfloat16)
        return self.torch.tensor(value) if value.flags.c_contiguous else self.torch.as_tensor(value)

    def numpy(self, value):
        value = value.detach() if hasattr(value, "detach") else self.torch.as_tensor(value)
        return (value.float() if value.dtype == self.torch.bfloat16 else value).numpy()

    def gradients(self, function, *arrays):
        arrays = [array.detach().clone().requires_grad_() for array in arrays]
        return self.torch.autograd.grad(function(*arrays), arrays)

    def float32(self, value):
        return value.float()

    def sum(self, value):
        return value.sum()

    def compile(self, function, how):
        self.torch.compiler.reset()  # or the many cases of one test count as recompilations of one function
        return self.torch.compile(function, fullgraph=True)


BACKENDS = {item.name: item for item in (NumpyBackend, TensorFlowBackend, JaxBackend, TorchBackend)}


@pytest.fixture(scope="session")
def backend():
    try:
        return BACKENDS[NAME]()
    except ImportError:
        pytest.skip(f"{NAME} is not installed")


@pytest.fixture(scope="session")
def differentiable(backend):
    """The backend, where it has gradients."""
    if not backend.differentiates:
        pytest.skip(f"{backend.name} has no gradients")
    return backend


@pytest.fixture(scope="module", autouse=True)
def quick_compilation(request):
    """JAX leaves LLVM's passes out, which take longer than the models run. The formulas' own tests have them on."""
    if NAME != "jax" or request.path.relative_to(Path(__file__).parent).parts[0] not in ROOMS_OF_MODELS:
        yield
        return
    import jax

    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(params=["kernels", "formula"])
def path(request):
    """With kernels and without; nothing but speed and the last bits may differ."""
    from evenkeel import without_kernels

    if request.param == "kernels":
        yield request.param
    else:
        with without_kernels():
            yield request.param


# TensorFlow, which takes long to import, is; each line of JSON is a folder and arguments for a copy of that process.
WARM = """
import json, os, runpy, sys
import evenkeel.tf1.script
for line in sys.stdin:
    folder, arguments = json.loads(line)
    child = os.fork()
    if not child:
        os.chdir(folder)
        for descriptor, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), descriptor)
        sys.argv = ["evenkeel", "run", *arguments]
        runpy.run_module("evenkeel", run_name="__main__")
        sys.exit()
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture(scope="session")
def run_warm():
    """`evenkeel run` as a process that has imported TensorFlow already: how it ended."""
    warm = subprocess.Popen(
        [sys.executable, "-c", WARM],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1] / "src"), "TF_CPP_MIN_LOG_LEVEL": "3"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )

    def ended(*arguments, folder):
        print(json.dumps([str(folder), arguments]), file=warm.stdin, flush=True)
        code = int(warm.stdout.readline())
        texts = [(folder / name).read_text() for name in ("stdout", "stderr")]
        return subprocess.CompletedProcess(arguments, code, *texts)

    with warm:
        try:
            yield ended
        finally:
            os.killpg(warm.pid, signal.SIGKILL)


def pytest_report_header():
    return f"KERAS_BACKEND: {NAME}"
