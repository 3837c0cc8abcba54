# SPDX-License-Identifier: Apache-2.0
"""`slim.queues`: the threads that fill the queues of a graph, for the length of a block."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import tensorflow as tf

v1 = tf.compat.v1


@contextlib.contextmanager
def QueueRunners(session: Any) -> Iterator[None]:  # noqa: N802
    """Starts the queue runners of the graph with a session, and stops them at the end.

    Raises:
        ValueError: no session.
    """
    if session is None:
        raise ValueError("No session available; give one")
    coordinator = v1.train.Coordinator()
    threads = [
        thread
        for runner in v1.get_collection(v1.GraphKeys.QUEUE_RUNNERS)
        for thread in runner.create_threads(session, coord=coordinator, daemon=True, start=True)
    ]
    try:
        yield
    finally:
        coordinator.request_stop()
        coordinator.join(threads, stop_grace_period_secs=120)
