# SPDX-License-Identifier: Apache-2.0
"""One of the processes of torch.distributed, as `torchrun` starts them."""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import torch

from evenkeel.errors import SynchronizationError
from evenkeel.workloads.parallel.sharing import Sharing, losses, right, rows_of
from evenkeel.workloads.training import JOINING, WAITING, Place

__all__ = ["Network", "gathered", "join", "lost"]


def join() -> Place:
    devices, local_rank = torch.cuda.device_count(), int(os.environ.get("LOCAL_RANK", 0))
    if devices:
        torch.cuda.set_device(local_rank % devices)
    own_device = devices >= int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # NCCL takes no device twice
    with _together():
        store, rank, count = next(torch.distributed.rendezvous("env://", timeout=datetime.timedelta(seconds=JOINING)))
        torch.distributed.init_process_group(
            "nccl" if own_device else "gloo",
            store=store,
            rank=rank,
            world_size=count,
            timeout=datetime.timedelta(seconds=WAITING),
        )
        torch.distributed.barrier()
    return Place(rank, count)


def gathered(value: int) -> list[int]:
    values = [0] * torch.distributed.get_world_size()
    with _together():
        torch.distributed.all_gather_object(values, value)
    return values


def lost(error: BaseException) -> bool:
    return isinstance(error, SynchronizationError)


@contextlib.contextmanager
def _together() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # of Gloo it is no class of its own
        raise SynchronizationError(f"processes that train together lost each other ({error})") from error


class Network(Sharing):
    """A `Trainer` that sums the gradients of all processes in one message."""

    def _learn(self, images: np.ndarray, labels: np.ndarray) -> None:
        variables = self.model.trainable_variables
        mine = _my_rows(len(labels))
        loss = losses(self.model(images[mine], training=True), labels[mine]).sum() / len(labels)
        gradients = torch.autograd.grad(loss, [variable.value for variable in variables])
        message = _summed(torch.cat([gradient.flatten() for gradient in gradients]))
        parts = message.split([gradient.numel() for gradient in gradients])
        with torch.no_grad():
            whole = [part.view_as(gradient) for part, gradient in zip(parts, gradients, strict=True)]
            self.model.optimizer.apply(whole, variables)

    @torch.no_grad()
    def _measure(self, images: np.ndarray, labels: np.ndarray, training: bool) -> Any:
        mine = _my_rows(len(labels))
        logits = (self._in_training_phase if training else self.model)(images[mine], training=False)
        mine_of_labels = keras.ops.convert_to_tensor(labels[mine])
        sums = torch.stack([losses(logits, mine_of_labels).sum(), right(logits, mine_of_labels).sum()])
        return _summed(sums).tolist()


def _my_rows(count: int) -> slice:
    return rows_of(count, torch.distributed.get_rank(), torch.distributed.get_world_size())


def _summed(message: torch.Tensor) -> torch.Tensor:
    with _together():
        torch.distributed.all_reduce(message)
    return message
