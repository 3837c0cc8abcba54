# SPDX-License-Identifier: Apache-2.0
"""Where processes that a test starts may meet."""

import os
import socket


def free_ports(count):
    """The first of so many ports in a row that nobody listens on; another process of tests looks elsewhere."""
    for first in range(20000 + 10 * os.getpid() % 10000, 32000, 10):
        with socket.socket() as one, socket.socket() as last:
            try:
                one.bind(("127.0.0.1", first))
                last.bind(("127.0.0.1", first + count - 1))
            except OSError:
                continue
            return first
    raise OSError("no free ports")
