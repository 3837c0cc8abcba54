# SPDX-License-Identifier: Apache-2.0
"""How an Estimator runs: when it saves, what it keeps, how often it reports, where it is in a cluster."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from evenkeel.errors import ArgumentError
from evenkeel.tf1.estimator.arguments import argument_names

v1 = tf.compat.v1

_DEFAULT = object()
_DEFAULT_SECONDS = 600
_DISTRIBUTED = ("train_distribute", "eval_distribute", "experimental_distribute")


@dataclasses.dataclass(frozen=True, eq=False)
class RunConfig:
    """Settings of an Estimator. Fields about a cluster come from the environment variable TF_CONFIG.

    Args:
        model_dir: where checkpoints and summaries lie; that of the Estimator, or a temporary one, by default.
        tf_random_seed: seed of each graph.
        save_summary_steps: steps between summaries.
        save_checkpoints_steps: steps between checkpoints. None and no seconds either: only what hooks save.
        save_checkpoints_secs: seconds between checkpoints; 600 if nothing is said about steps.
        session_config: a `tf.ConfigProto`.
        keep_checkpoint_max: how many of the last checkpoints stay; 0 or None is all.
        keep_checkpoint_every_n_hours: one checkpoint of as many hours stays for ever.
        log_step_count_steps: steps between lines in the log with the loss and the speed; None is none.
        device_fn: from an operation to its device.
        protocol: None, `"grpc"` or `"grpc+verbs"`.
        session_creation_timeout_secs: seconds to wait for a session.
        train_distribute, eval_distribute, experimental_distribute: only None.
        run_update_ops: run the operations in UPDATE_OPS with each training step. Ours; in 1.15 the train_op must.

    Raises:
        ValueError: steps and seconds between checkpoints, a value out of range, a distribution strategy, a TF_CONFIG
            whose task is not in its cluster.

    Example:
        >>> config = RunConfig(save_checkpoints_steps=50)
        >>> config.save_checkpoints_secs, config.keep_checkpoint_max, config.task_type, config.is_chief
        (None, 5, 'worker', True)
    """

    model_dir: str | None = None
    tf_random_seed: int | None = None
    save_summary_steps: int | None = 100
    save_checkpoints_steps: Any = _DEFAULT
    save_checkpoints_secs: Any = _DEFAULT
    session_config: Any = None
    keep_checkpoint_max: int | None = 5
    keep_checkpoint_every_n_hours: float = 10000
    log_step_count_steps: int | None = 100
    train_distribute: None = None
    device_fn: Callable[[Any], Any] | None = None
    protocol: str | None = None
    eval_distribute: None = None
    experimental_distribute: None = None
    experimental_max_worker_delay_secs: float | None = None
    session_creation_timeout_secs: float = 7200
    run_update_ops: bool = False

    cluster_spec: Any = dataclasses.field(init=False)
    task_type: str = dataclasses.field(init=False)
    task_id: int = dataclasses.field(init=False)
    is_chief: bool = dataclasses.field(init=False)
    master: str = dataclasses.field(init=False)
    evaluation_master: str = dataclasses.field(init=False)
    num_ps_replicas: int = dataclasses.field(init=False)
    num_worker_replicas: int = dataclasses.field(init=False)
    global_id_in_cluster: int | None = dataclasses.field(init=False)
    service: dict[str, Any] | None = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        steps, seconds = self.save_checkpoints_steps, self.save_checkpoints_secs
        if seconds is _DEFAULT:
            seconds = _DEFAULT_SECONDS if steps is _DEFAULT else None
        environment = json.loads(os.environ.get("TF_CONFIG") or "{}")
        self._set(
            save_checkpoints_steps=None if steps is _DEFAULT else steps,
            save_checkpoints_secs=seconds,
            model_dir=_model_dir(environment.get("model_dir"), self.model_dir),
            service=environment.get("service"),
            **_place(environment),
        )
        self._check()

    def replace(self, **changes: Any) -> RunConfig:
        """A copy with other values. Seconds between checkpoints take the place of steps, and steps of seconds.

        Raises:
            ValueError: an unknown name, or a value that the constructor refuses.

        Example:
            >>> RunConfig().replace(save_checkpoints_steps=10).save_checkpoints_secs is None
            True
        """
        allowed = [field.name for field in dataclasses.fields(self) if field.init]
        for name in changes:
            if name not in allowed:
                raise ArgumentError(f"Replacing {name} is not supported. Allowed properties are {allowed}.")
        other = {"save_checkpoints_steps": "save_checkpoints_secs", "save_checkpoints_secs": "save_checkpoints_steps"}
        changes = {**{other[name]: None for name in changes if name in other}, **changes}
        replaced = copy.copy(self)
        replaced._set(**changes)
        replaced._check()
        return replaced

    def _set(self, **values: Any) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def _check(self) -> None:
        if self.save_checkpoints_steps and self.save_checkpoints_secs:
            raise ArgumentError(
                f"Can not provide both save_checkpoints_steps={self.save_checkpoints_steps} and "
                f"save_checkpoints_secs={self.save_checkpoints_secs}; give one"
            )
        for name in _DISTRIBUTED:
            if getattr(self, name) is not None:
                raise ArgumentError(
                    f"{name}={getattr(self, name)!r}: distribution strategies are not supported; leave it None. The "
                    "whole batch is then normalized on one device, with no statistics to bring together"
                )
        for name, right, wanted in (
            ("model_dir", lambda it: it != "", "non-empty"),
            ("tf_random_seed", lambda it: isinstance(it, int | np.integer), "an integer"),
            ("save_summary_steps", lambda it: it >= 0, ">= 0"),
            ("save_checkpoints_steps", lambda it: it >= 0, ">= 0"),
            ("save_checkpoints_secs", lambda it: it >= 0, ">= 0"),
            ("session_config", lambda it: isinstance(it, v1.ConfigProto), "an instance of tf.ConfigProto"),
            ("keep_checkpoint_max", lambda it: it >= 0, ">= 0"),
            ("keep_checkpoint_every_n_hours", lambda it: it > 0, "> 0"),
            ("log_step_count_steps", lambda it: it > 0, "> 0"),
            ("device_fn", lambda it: callable(it) and argument_names(it) == ["op"], 'a function of one argument "op"'),
            ("protocol", lambda it: it in ("grpc", "grpc+verbs"), "grpc or grpc+verbs"),
            ("session_creation_timeout_secs", lambda it: it > 0, "> 0"),
            ("run_update_ops", lambda it: isinstance(it, bool), "True or False"),
        ):
            value = getattr(self, name)
            if value is not None and not right(value):
                raise ArgumentError(f"{name} should be {wanted}, got {value!r}")


def _model_dir(environment: str | None, given: str | None) -> str | None:
    if environment == "":
        raise ArgumentError("model_dir in TF_CONFIG should be non-empty; leave it out, or name a directory")
    if environment and given and environment != given:
        raise ArgumentError(
            f"`model_dir` provided in RunConfig must have the same value as the model_dir in TF_CONFIG; they are "
            f"{given!r} and {environment!r}"
        )
    return given if given is not None else environment


def _place(environment: dict[str, Any]) -> dict[str, Any]:
    """Where in a cluster this process is."""
    cluster = v1.train.ClusterSpec(environment.get("cluster", {}))
    task = environment.get("task", {})
    if not cluster.jobs:
        kind, index = task.get("type", "worker"), int(task.get("index", 0))
        if kind != "worker":
            raise ArgumentError(f'If "cluster" is not set in TF_CONFIG, task type must be worker; it is {kind!r}')
        if index != 0:
            raise ArgumentError(f'If "cluster" is not set in TF_CONFIG, task index must be 0; it is {index}')
        alone = {"is_chief": True, "num_ps_replicas": 0, "num_worker_replicas": 1, "global_id_in_cluster": 0}
        return {"cluster_spec": cluster, "task_type": kind, "task_id": index, **_MASTERS, **alone}
    chief = "master" if "master" in cluster.jobs else "chief"
    if cluster.as_dict().keys() >= {"chief", "master"}:
        raise ArgumentError('If "master" is set in TF_CONFIG, "chief" must not be; name one of them')
    if len(cluster.as_dict().get(chief, ())) != 1:
        raise ArgumentError(
            f'If "cluster" is set in TF_CONFIG, it must have one "chief" node; it has {sorted(cluster.jobs)}'
        )
    if "type" not in task or "index" not in task:
        raise ArgumentError(f'If "cluster" is set in TF_CONFIG, task type and index must be set; "task" is {task}')
    kind, index = task["type"], int(task["index"])
    if kind == "evaluator":
        outside = {"is_chief": False, "num_ps_replicas": 0, "num_worker_replicas": 0, "global_id_in_cluster": None}
        return {"cluster_spec": v1.train.ClusterSpec({}), "task_type": kind, "task_id": index, **_MASTERS, **outside}
    if kind not in cluster.jobs or not 0 <= index < cluster.num_tasks(kind):
        raise ArgumentError(f"task {kind}:{index} of TF_CONFIG is not in its cluster {cluster.as_dict()}")
    order = [(job, number) for job in (chief, "worker", "ps") for number in range(len(cluster.as_dict().get(job, ())))]
    servers = len(cluster.as_dict().get("ps", ()))
    address = f"grpc://{cluster.task_address(kind, index)}" if len(order) > 1 else ""
    return {
        "cluster_spec": cluster,
        "task_type": kind,
        "task_id": index,
        "is_chief": kind == chief,
        "master": address,
        "evaluation_master": "",
        "num_ps_replicas": servers,
        "num_worker_replicas": len(order) - servers,
        "global_id_in_cluster": order.index((kind, index)) if (kind, index) in order else None,
    }


_MASTERS = {"master": "", "evaluation_master": ""}
