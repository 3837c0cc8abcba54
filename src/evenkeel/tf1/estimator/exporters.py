# SPDX-License-Identifier: Apache-2.0
"""Which of the models that were evaluated are exported, and which exports stay."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf

from evenkeel.errors import ArgumentError

v1 = tf.compat.v1


class Exporter:
    """What `train_and_evaluate` asks after each evaluation. A subclass has a `name`, and exports into `export_path`."""

    @property
    def name(self) -> str:
        """Of the directory below `model_dir/export`."""
        raise NotImplementedError(f"{type(self).__name__} has no name")

    def export(
        self,
        estimator: Any,
        export_path: str,
        checkpoint_path: str,
        eval_result: Mapping[str, Any],
        is_the_final_export: bool,
    ) -> bytes | None:
        """Path of the export; None where there is none this time."""
        raise NotImplementedError(f"{type(self).__name__} does not export")


class FinalExporter(Exporter):
    """Exports once, the last model.

    Args:
        name: of the directory below `model_dir/export`.
        serving_input_receiver_fn: as of `Estimator.export_saved_model`.
        assets_extra: path in the export -> file to copy there.
        as_text: a text file instead of a binary one.

    Raises:
        ValueError: no name.
    """

    def __init__(
        self,
        name: str,
        serving_input_receiver_fn: Callable[[], Any],
        assets_extra: Mapping[str, str] | None = None,
        as_text: bool = False,
    ) -> None:
        if not name:
            raise ArgumentError(f"an exporter needs a name, which is that of its directory; got {name!r}")
        self._name = name
        self._receiver = serving_input_receiver_fn
        self._how = {"assets_extra": assets_extra, "as_text": as_text}

    @property
    def name(self) -> str:
        return self._name

    def export(
        self,
        estimator: Any,
        export_path: str,
        checkpoint_path: str,
        eval_result: Mapping[str, Any],
        is_the_final_export: bool,
    ) -> bytes | None:
        if not is_the_final_export:
            return None
        return self._export(estimator, export_path, checkpoint_path)

    def _export(self, estimator: Any, export_path: str, checkpoint_path: str) -> bytes:
        return estimator.export_saved_model(export_path, self._receiver, checkpoint_path=checkpoint_path, **self._how)


class LatestExporter(FinalExporter):
    """Exports after every evaluation.

    Args:
        exports_to_keep: the newest that stay; None is all.
    """

    def __init__(
        self,
        name: str,
        serving_input_receiver_fn: Callable[[], Any],
        assets_extra: Mapping[str, str] | None = None,
        as_text: bool = False,
        exports_to_keep: int | None = 5,
    ) -> None:
        super().__init__(name, serving_input_receiver_fn, assets_extra, as_text)
        self._keep = _checked(exports_to_keep)

    def export(
        self,
        estimator: Any,
        export_path: str,
        checkpoint_path: str,
        eval_result: Mapping[str, Any],
        is_the_final_export: bool,
    ) -> bytes | None:
        path = self._export(estimator, export_path, checkpoint_path)
        _keep_newest(export_path, self._keep)
        return path


class BestExporter(FinalExporter):
    """Exports a model that is better than all before, those of earlier runs included.

    Args:
        compare_fn: `compare_fn(best_eval_result, current_eval_result)` says whether the current one is better; the
            smaller loss by default.
        event_file_pattern: below the model directory, where the results of earlier runs lie, such as
            `"eval/*.tfevents.*"`; None looks at this run only.
        exports_to_keep: the newest that stay; None is all.
    """

    def __init__(
        self,
        name: str = "best_exporter",
        serving_input_receiver_fn: Callable[[], Any] | None = None,
        event_file_pattern: str | None = None,
        compare_fn: Callable[..., bool] | None = None,
        assets_extra: Mapping[str, str] | None = None,
        as_text: bool = False,
        exports_to_keep: int | None = 5,
    ) -> None:
        if serving_input_receiver_fn is None:
            raise ArgumentError("`serving_input_receiver_fn` must be defined; it is None")
        super().__init__(name, serving_input_receiver_fn, assets_extra, as_text)
        self._better = compare_fn or _smaller_loss
        self._pattern = event_file_pattern
        self._keep = _checked(exports_to_keep)
        self._best: Mapping[str, Any] | None = None
        self._knows_the_past = event_file_pattern is None

    def export(
        self,
        estimator: Any,
        export_path: str,
        checkpoint_path: str,
        eval_result: Mapping[str, Any],
        is_the_final_export: bool,
    ) -> bytes | None:
        if not self._knows_the_past:
            self._best = self._best_of(os.path.join(estimator.model_dir, str(self._pattern)), eval_result)
            self._knows_the_past = True
        if self._best is not None and not self._better(best_eval_result=self._best, current_eval_result=eval_result):
            return None
        self._best = eval_result
        path = self._export(estimator, export_path, checkpoint_path)
        _keep_newest(export_path, self._keep)
        return path

    def _best_of(self, pattern: str, now: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """The best result in event files, but for the one of `now`, which has been written already."""
        best = None
        for path in sorted(glob.glob(pattern)):
            for event in v1.train.summary_iterator(path):
                result = {
                    value.tag: value.simple_value for value in event.summary.value if value.HasField("simple_value")
                }
                if not result or event.step == now.get("global_step"):
                    continue
                if best is None or self._better(best_eval_result=best, current_eval_result=result):
                    best = result
        return best


def _smaller_loss(best_eval_result: Mapping[str, Any], current_eval_result: Mapping[str, Any]) -> bool:
    for what, result in (("best", best_eval_result), ("current", current_eval_result)):
        if not result or "loss" not in result:
            raise ArgumentError(f"{what}_eval_result must have a loss to compare, and has {sorted(result or ())}")
    return best_eval_result["loss"] > current_eval_result["loss"]


def _checked(exports_to_keep: int | None) -> int | None:
    if exports_to_keep is not None and exports_to_keep <= 0:
        raise ArgumentError(f"`exports_to_keep`, if provided, must be a positive number. Got {exports_to_keep}")
    return exports_to_keep


def _keep_newest(export_path: str, count: int | None) -> None:
    names = sorted((name for name in os.listdir(export_path) if name.isdigit()), key=int)
    for name in names[: -count if count else 0]:
        tf.io.gfile.rmtree(os.path.join(export_path, name))
