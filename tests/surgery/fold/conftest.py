# SPDX-License-Identifier: Apache-2.0
"""Small networks run on one thread: beside other processes, torch's threads wait for each other more than they work."""

import pytest

from conftest import NAME


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    if NAME != "torch":
        yield
        return
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
