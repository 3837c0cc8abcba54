# SPDX-License-Identifier: Apache-2.0
"""One of two processes fails in the middle of `synchronized=True`: how the other ends."""

import re

import pytest

from layers import test_synchronized

from conftest import NAME

if NAME == "numpy":
    pytest.skip("NumPy has no processes", allow_module_level=True)

# What the one that is left says, on each backend. JAX and gloo abort the process, with words of their own.
OURS = r"SynchronizationError: .*batch normalization of process 0 of 2 had 8 numbers .*made fewer steps"
SAYS = {
    "torch": dict.fromkeys(["killed", "ended", "behind"], OURS)
    | dict.fromkeys(["channels", "type"], f"{OURS}|Received data size doesn't match"),
    # TensorFlow takes some 10 s to notice that a process is gone, so there are fewer cases.
    "tensorflow": {
        "killed": "unhealthy|Collective has timed out",
        "behind": "Collective has timed out",
        "channels": "Shape mismatch|unhealthy",
    },
    "jax": dict.fromkeys(["killed", "ended"], "Gloo all-reduce failed|another task died|heartbeat timeout")
    | {"channels": "Received data size doesn't match|Gloo all-reduce failed|another task died"},
}[NAME]


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """Fault -> folder, and exit code and stderr of the process that is left."""
    parent = tmp_path_factory.mktemp("faults")
    folders = [parent / fault for fault in SAYS]
    found = test_synchronized.processes({folder: [2, folder.name] for folder in folders})
    return {folder.name: (folder, *first) for folder, (first, _) in zip(folders, found, strict=True)}


@pytest.mark.parametrize("fault", SAYS)
def test_the_other_ends_and_says_why(fault, ended):
    folder, code, error = ended[fault]
    assert code != 0
    assert re.search(SAYS[fault], error, re.DOTALL), error[-3000:]
    assert not (folder / "0.npz").exists()
