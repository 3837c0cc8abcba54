# SPDX-License-Identifier: Apache-2.0
"""How a model function becomes training, evaluation, prediction and an exported model, in a directory."""

from __future__ import annotations

import copy
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import tensorflow as tf

from evenkeel.errors import ArgumentError
from evenkeel.tf1.contrib.training.evaluation import StopAfterNEvalsHook
from evenkeel.tf1.estimator import evaluation, feeding, updates
from evenkeel.tf1.estimator.arguments import accepted, argument_names, check_positive, hooks_of, listeners_of
from evenkeel.tf1.estimator.config import RunConfig
from evenkeel.tf1.estimator.export import signatures
from evenkeel.tf1.estimator.spec import EstimatorSpec, ModeKeys
from evenkeel.tf1.estimator.warm_start import settings_of, warm_start

v1 = tf.compat.v1

_MODEL_FN_ARGUMENTS = {"features", "labels", "mode", "params", "config", "self"}
_NO_END = (
    "Input graph does not use tf.data.Dataset or contain a QueueRunner. That means predict yields forever. This is "
    "probably a mistake."
)


class Estimator:
    """A model, its directory, and what is done with both. Each call builds a graph of its own.

    It never runs UPDATE_OPS by itself: in training, `train_op` must depend on them, and a warning names the layers
    where it does not. `RunConfig(run_update_ops=True)` runs them.

    Args:
        model_fn: from `features` and any of `labels`, `mode`, `params`, `config` to an `EstimatorSpec`.
        model_dir: where checkpoints and summaries lie; that of `config`, or a new temporary one, by default.
        config: `RunConfig`.
        params: dict, of which `model_fn` gets a copy.
        warm_start_from: checkpoint, directory or `WarmStartSettings` to start from where `model_dir` has no checkpoint.

    Raises:
        ValueError: arguments that `model_fn` lacks or has too many of, `params` it does not take, two directories.

    Example:
        >>> def model_fn(features, labels, mode):
        ...     weight = v1.get_variable("weight", [], initializer=v1.zeros_initializer())
        ...     loss = tf.reduce_mean(tf.square(features * weight - labels))
        ...     step = v1.train.get_global_step()
        ...     train_op = v1.train.GradientDescentOptimizer(0.5).minimize(loss, step)
        ...     return EstimatorSpec(mode, predictions=features * weight, loss=loss, train_op=train_op)
        >>> estimator = Estimator(model_fn, tempfile.mkdtemp())
        >>> _ = estimator.train(lambda: (tf.ones([4]), 3 * tf.ones([4])), steps=10)
        >>> float(estimator.get_variable_value("weight"))
        3.0
    """

    def __init__(
        self,
        model_fn: Callable[..., EstimatorSpec],
        model_dir: str | None = None,
        config: RunConfig | None = None,
        params: Any = None,
        warm_start_from: Any = None,
    ) -> None:
        _check_model_fn(model_fn, params)
        self._model_fn = model_fn
        self._params = copy.deepcopy(params or {})
        self._config = _settled(config, model_dir)
        self._warm_start = settings_of(warm_start_from)
        self._warned = False

    @property
    def config(self) -> RunConfig:
        return copy.copy(self._config)

    @property
    def params(self) -> Any:
        return copy.deepcopy(self._params)

    @property
    def model_dir(self) -> str:
        return str(self._config.model_dir)

    @property
    def model_fn(self) -> Callable[[Any, Any, str, RunConfig], EstimatorSpec]:
        """The model function, as a function of features, labels, mode and config."""
        return self._call_model_fn

    def eval_dir(self, name: str | None = None) -> str:
        """Where the summaries of an evaluation lie."""
        return os.path.join(self.model_dir, f"eval_{name}" if name else "eval")

    def latest_checkpoint(self) -> str | None:
        """Path of the last checkpoint; None where there is none."""
        return v1.train.latest_checkpoint(self.model_dir)

    def get_variable_names(self) -> list[str]:
        """Names of the variables in the last checkpoint.

        Raises:
            ValueError: no checkpoint.
        """
        return [name for name, _ in v1.train.list_variables(self._trained())]

    def get_variable_value(self, name: str) -> Any:
        """Value of a variable in the last checkpoint, as an array.

        Raises:
            ValueError: no checkpoint.
        """
        return v1.train.load_variable(self._trained(), name)

    def train(
        self,
        input_fn: Callable[..., Any],
        hooks: Iterable[Any] | None = None,
        steps: int | None = None,
        max_steps: int | None = None,
        saving_listeners: Iterable[Any] | None = None,
    ) -> Estimator:
        """Go on from the last checkpoint, to the end of the data or for a number of steps.

        Args:
            input_fn: from any of `mode`, `params`, `config` to features, `(features, labels)` or a `tf.data.Dataset`.
            hooks: SessionRunHooks.
            steps: how many more.
            max_steps: the global step to stop at; nothing is done if the checkpoint is there.
            saving_listeners: CheckpointSaverListeners, called round each checkpoint.

        Returns:
            This Estimator.

        Raises:
            ValueError: both numbers of steps, or one that is not positive.
            TypeError: a hook or a listener is none.
            NanLossDuringTrainingError: the loss is not a number.
        """
        if steps is not None and max_steps is not None:
            raise ArgumentError(f"Can not provide both steps={steps} and max_steps={max_steps}; give one")
        check_positive("steps", steps)
        check_positive("max_steps", max_steps)
        if max_steps is not None and max_steps <= self._saved_step():
            v1.logging.info("Skipping training since max_steps has already saved.")
            return self
        hooks = list(hooks_of(hooks))
        if steps or max_steps:
            hooks.append(v1.train.StopAtStepHook(steps, max_steps))
        listeners = listeners_of(saving_listeners)
        device = self._config.device_fn
        if device is None and self._config.num_ps_replicas:
            device = v1.train.replica_device_setter(cluster=self._config.cluster_spec)
        with self._graph(), v1.device(device):
            spec, batch = self._build(input_fn, ModeKeys.TRAIN)
            loss = self._run_training(spec, [*hooks, *batch.hooks], listeners)
        v1.logging.info("Loss for final step: %s.", loss)
        return self

    def evaluate(
        self,
        input_fn: Callable[..., Any],
        steps: int | None = None,
        hooks: Iterable[Any] | None = None,
        checkpoint_path: str | None = None,
        name: str | None = None,
    ) -> dict[str, Any]:
        """The metrics of a checkpoint, also written as summaries into `eval_dir(name)`.

        Args:
            input_fn: as in `train`.
            steps: batches; None is until the data end.
            hooks: SessionRunHooks.
            checkpoint_path: the last one by default; without any, variables have their initial values.
            name: of the evaluation, where there are several.

        Returns:
            name -> value, with `loss`, the mean over batches whatever their size, and `global_step`.

        Raises:
            ValueError: `steps` that is not positive, or a metric of the model called `loss` or `global_step`.
        """
        check_positive("steps", steps)
        hooks = list(hooks_of(hooks))
        checkpoint = checkpoint_path or self._latest_or_say("evaluate")
        with self._graph():
            spec, batch = self._build(input_fn, ModeKeys.EVAL)
            values, update = evaluation.metrics_of(spec)
            self._warm_start_unless(checkpoint)
            final = v1.train.FinalOpsHook(values)
            stop = [] if steps is None else [StopAfterNEvalsHook(steps)]
            creator = self._creator(
                evaluation.with_local_variables(spec.scaffold), checkpoint, self._config.evaluation_master
            )
            v1.logging.info("Starting evaluation at %s", time.strftime("%Y-%m-%dT%H:%M:%S"))
            with v1.train.MonitoredSession(
                creator, [*batch.hooks, *hooks, *stop, *spec.evaluation_hooks, final]
            ) as session:
                while not session.should_stop():
                    session.run(update)
            v1.logging.info("Finished evaluation at %s", time.strftime("%Y-%m-%dT%H:%M:%S"))
            results = dict(final.final_ops_values)
            evaluation.write(self.eval_dir(name), results, checkpoint)
        return results

    def predict(
        self,
        input_fn: Callable[..., Any],
        predict_keys: Iterable[str] | None = None,
        hooks: Iterable[Any] | None = None,
        checkpoint_path: str | None = None,
        yield_single_examples: bool = True,
    ) -> Iterator[Any]:
        """The predictions of a checkpoint, one example after the other; nothing is done before the first is asked for.

        Args:
            input_fn: as in `train`; labels are left aside.
            predict_keys: only these, of predictions that are a dict.
            hooks: SessionRunHooks.
            checkpoint_path: the last one by default; without any, variables have their initial values.
            yield_single_examples: False gives whole batches.

        Yields:
            name -> array without the batch dimension, or an array where predictions are one tensor.

        Raises:
            ValueError: no prediction has one of `predict_keys`; batches of different length.
        """
        hooks = hooks_of(hooks)
        checkpoint = checkpoint_path or self._latest_or_say("predict")
        with self._graph() as graph:
            spec, batch = self._build(input_fn, ModeKeys.PREDICT)
            if not feeding.ends(batch):
                v1.logging.warning(_NO_END)
            self._warm_start_unless(checkpoint)
            wanted = _chosen(spec.predictions, predict_keys)
            creator = self._creator(spec.scaffold, checkpoint, self._config.master)
            session = v1.train.MonitoredSession(creator, [*batch.hooks, *hooks, *spec.prediction_hooks])
        with session:
            while not session.should_stop():
                # The graph is the default only while it runs, not in the caller's code between two examples.
                with graph.as_default():
                    values = session.run(wanted)
                if yield_single_examples:
                    yield from _examples(values)
                else:
                    yield values

    def export_saved_model(
        self,
        export_dir_base: str,
        serving_input_receiver_fn: Callable[[], Any],
        assets_extra: Mapping[str, str] | None = None,
        as_text: bool = False,
        checkpoint_path: str | None = None,
        experimental_mode: str = ModeKeys.PREDICT,
    ) -> bytes:
        """Write the model as a SavedModel, built for prediction, so with moving statistics.

        Args:
            export_dir_base: a directory named by the time, in seconds, is made in it.
            serving_input_receiver_fn: makes a `ServingInputReceiver`.
            assets_extra: path below `assets.extra` -> file to copy there.
            as_text: a text file instead of a binary one.
            checkpoint_path: the last one by default.
            experimental_mode: only PREDICT.

        Returns:
            Path of the new directory.

        Raises:
            ValueError: no checkpoint, or another mode.
        """
        if experimental_mode != ModeKeys.PREDICT:
            raise ArgumentError(f"experimental_mode={experimental_mode!r} is not supported; export ModeKeys.PREDICT")
        checkpoint = checkpoint_path or self.latest_checkpoint()
        if not checkpoint:
            raise ArgumentError(
                f"Couldn't find trained model at {self.model_dir}; train it first, or give checkpoint_path"
            )
        with self._graph():
            receiver = serving_input_receiver_fn()
            spec = self._call_model_fn(
                receiver.features, getattr(receiver, "labels", None), ModeKeys.PREDICT, self.config
            )
            saver = spec.scaffold.saver or v1.train.Saver(sharded=True)
            final = _directory_of_now(export_dir_base)
            partial = os.path.join(export_dir_base, f"temp-{os.path.basename(final)}")
            builder = v1.saved_model.Builder(partial)
            with v1.Session(config=self._config.session_config) as session:
                saver.restore(session, checkpoint)
                builder.add_meta_graph_and_variables(
                    session,
                    [v1.saved_model.SERVING],
                    signatures(receiver, spec.export_outputs),
                    assets_collection=v1.get_collection(v1.GraphKeys.ASSET_FILEPATHS),
                    main_op=spec.scaffold.local_init_op or v1.train.Scaffold.default_local_init_op(),
                    saver=saver,
                    strip_default_attrs=True,
                )
            builder.save(as_text)
        for name, source in (assets_extra or {}).items():
            target = os.path.join(partial, "assets.extra", name)
            tf.io.gfile.makedirs(os.path.dirname(target))
            tf.io.gfile.copy(source, target)
        tf.io.gfile.rename(partial, final)
        return os.fsencode(final)

    def export_savedmodel(
        self,
        export_dir_base: str,
        serving_input_receiver_fn: Callable[[], Any],
        assets_extra: Mapping[str, str] | None = None,
        as_text: bool = False,
        checkpoint_path: str | None = None,
        strip_default_attrs: bool = False,
    ) -> bytes:
        """The old name of `export_saved_model`; attributes that have their defaults are left out in any case."""
        return self.export_saved_model(
            export_dir_base, serving_input_receiver_fn, assets_extra, as_text, checkpoint_path
        )

    # Graphs.

    @contextmanager
    def _graph(self) -> Iterator[Any]:
        with tf.Graph().as_default() as graph:
            v1.set_random_seed(self._config.tf_random_seed)
            v1.train.create_global_step()
            yield graph

    def _build(self, input_fn: Callable[..., Any], mode: str) -> tuple[EstimatorSpec, feeding.Batch]:
        batch = feeding.call(input_fn, {"mode": mode, "params": self.params, "config": self.config})
        labels = None if mode == ModeKeys.PREDICT else batch.labels
        return self._call_model_fn(batch.features, labels, mode, self.config), batch

    def _call_model_fn(self, features: Any, labels: Any, mode: str, config: RunConfig) -> EstimatorSpec:
        offered = {"labels": labels, "mode": mode, "params": self.params, "config": config}
        arguments = accepted(self._model_fn, offered)
        if labels is not None and "labels" not in arguments:
            raise ArgumentError(
                "model_fn does not take labels, but input_fn returns labels; add the argument, or leave them"
            )
        v1.logging.info("Calling model_fn.")
        spec = self._model_fn(features=features, **arguments)
        v1.logging.info("Done calling model_fn.")
        if not isinstance(spec, EstimatorSpec):
            raise ArgumentError(f"model_fn should return an EstimatorSpec, and returned {spec!r}")
        return spec

    def _run_training(self, spec: EstimatorSpec, hooks: list[Any], listeners: tuple[Any, ...]) -> Any:
        config = self._config
        if self._warm_start:
            warm_start(self._warm_start)
        train_op = self._with_updates(spec.train_op)
        step = v1.train.get_global_step()
        if not any(summary.op.name == "loss" for summary in v1.get_collection(v1.GraphKeys.SUMMARIES)):
            v1.summary.scalar("loss", spec.loss)
        v1.add_to_collection(v1.GraphKeys.LOSSES, spec.loss)
        hooks = [*hooks, v1.train.NanTensorHook(spec.loss)]
        if config.log_step_count_steps:
            shown = {"loss": spec.loss, "step": step}
            hooks.append(v1.train.LoggingTensorHook(shown, every_n_iter=config.log_step_count_steps))
        hooks += spec.training_hooks
        if not (spec.scaffold.saver or v1.get_collection(v1.GraphKeys.SAVERS)):
            saver = v1.train.Saver(
                sharded=True,
                max_to_keep=config.keep_checkpoint_max,
                keep_checkpoint_every_n_hours=config.keep_checkpoint_every_n_hours,
                defer_build=True,
                save_relative_paths=True,
            )
            v1.add_to_collection(v1.GraphKeys.SAVERS, saver)
        with v1.train.MonitoredTrainingSession(
            master=config.master,
            is_chief=config.is_chief,
            checkpoint_dir=self.model_dir,
            scaffold=spec.scaffold,
            hooks=hooks,
            chief_only_hooks=[*self._saving(spec, hooks, listeners), *spec.training_chief_hooks],
            save_checkpoint_secs=0,
            save_summaries_steps=config.save_summary_steps,
            config=config.session_config,
            max_wait_secs=config.session_creation_timeout_secs,
            log_step_count_steps=config.log_step_count_steps,
        ) as session:
            loss = None
            while not session.should_stop():
                _, loss = session.run([train_op, spec.loss])
        if loss is None:
            v1.logging.warning("Training with estimator made no steps. Perhaps input is empty or misspecified.")
        return loss

    def _with_updates(self, train_op: Any) -> Any:
        missing = updates.not_run(train_op)
        if self._config.run_update_ops:
            return tf.group(train_op, *missing)
        if missing and not self._warned:
            self._warned = True
            updates.warn_of(missing)
        return train_op

    def _saving(self, spec: EstimatorSpec, hooks: list[Any], listeners: tuple[Any, ...]) -> list[Any]:
        """The hook that saves, if the program has none of its own."""
        config = self._config
        own = [hook for hook in (*hooks, *spec.training_chief_hooks) if isinstance(hook, v1.train.CheckpointSaverHook)]
        if own and listeners:
            raise ArgumentError(
                "saving_listeners, which train_and_evaluate needs too, are called by the CheckpointSaverHook of the "
                f"Estimator, and the program brings its own, {own[0]!r}; give the listeners to that one, "
                "CheckpointSaverHook(..., listeners=[...]), or leave it to RunConfig.save_checkpoints_steps"
            )
        if own:
            return []
        if not (config.save_checkpoints_secs or config.save_checkpoints_steps):
            if listeners:
                raise ArgumentError(
                    "There should be a CheckpointSaverHook to use saving_listeners. Please set one of the "
                    "RunConfig.save_checkpoints_steps or RunConfig.save_checkpoints_secs; both are None."
                )
            return []
        return [
            v1.train.CheckpointSaverHook(
                self.model_dir,
                save_secs=config.save_checkpoints_secs or None,
                save_steps=config.save_checkpoints_steps or None,
                scaffold=spec.scaffold,
                listeners=list(listeners),
            )
        ]

    # Checkpoints.

    def _creator(self, scaffold: Any, checkpoint: str | None, master: str) -> Any:
        return v1.train.ChiefSessionCreator(
            scaffold=scaffold,
            master=master,
            config=self._config.session_config,
            checkpoint_filename_with_path=checkpoint,
        )

    def _warm_start_unless(self, checkpoint: str | None) -> None:
        if self._warm_start and not checkpoint:
            warm_start(self._warm_start)

    def _latest_or_say(self, verb: str) -> str | None:
        checkpoint = self.latest_checkpoint()
        if not checkpoint:
            v1.logging.info(
                "Could not find trained model in model_dir: %s, running initialization to %s.", self.model_dir, verb
            )
        return checkpoint

    def _trained(self) -> str:
        checkpoint = self.latest_checkpoint()
        if not checkpoint:
            raise ArgumentError(f"Could not find trained model at {self.model_dir}; train it first")
        return checkpoint

    def _saved_step(self) -> int:
        checkpoint = self.latest_checkpoint()
        return int(v1.train.load_variable(checkpoint, v1.GraphKeys.GLOBAL_STEP)) if checkpoint else 0


def _check_model_fn(model_fn: Any, params: Any) -> None:
    if model_fn is None:
        raise ArgumentError("model_fn must be provided to Estimator; it is None")
    names = argument_names(model_fn)
    if "features" not in names:
        raise ArgumentError(f"model_fn ({model_fn}) must include features argument; it has {names}")
    if params is not None and "params" not in names:
        raise ArgumentError(
            f"model_fn ({model_fn}) does not include params argument, but params ({params}) is passed to Estimator."
        )
    if params is None and "params" in names:
        v1.logging.warning(
            "Estimator's model_fn (%s) includes params argument, but params are not passed to Estimator.", model_fn
        )
    if unknown := sorted(set(names) - _MODEL_FN_ARGUMENTS):
        raise ArgumentError(
            f"model_fn ({model_fn}) has following not expected args: {unknown}; bind them with functools.partial, or "
            "pass them in params"
        )


def _settled(config: Any, model_dir: Any) -> RunConfig:
    """The configuration with a directory and session settings."""
    if config is None:
        config = RunConfig()
    if not isinstance(config, RunConfig):
        raise ArgumentError(f"config must be an instance of `RunConfig`, but provided {config!r}.")
    model_dir = None if model_dir is None else os.fsdecode(model_dir)
    if model_dir is not None and config.model_dir is not None and os.fsdecode(config.model_dir) != model_dir:
        raise ArgumentError(
            "`model_dir` are set both in constructor and `RunConfig`, but with different values. In constructor: "
            f"'{model_dir}', in `RunConfig`: '{config.model_dir}'"
        )
    if model_dir is None and config.model_dir is None:
        model_dir = tempfile.mkdtemp()
        v1.logging.warning("Using temporary folder as model directory: %s", model_dir)
    return config.replace(
        model_dir=model_dir or os.fsdecode(str(config.model_dir)),
        session_config=config.session_config or v1.ConfigProto(allow_soft_placement=True),
    )


def _chosen(predictions: Any, keys: Iterable[str] | None) -> Any:
    if not keys:
        return predictions
    if not isinstance(predictions, dict):
        raise ArgumentError(f"predict_keys argument is not valid in case of non-dict predictions: {predictions}")
    keys = [keys] if isinstance(keys, str) else list(keys)
    chosen = {key: value for key, value in predictions.items() if key in keys}
    if not chosen:
        raise ArgumentError(f"Expected to run at least one output from {sorted(predictions)}, provided {keys}.")
    return chosen


def _examples(values: Any) -> Iterator[Any]:
    if not isinstance(values, dict):
        yield from values
        return
    lengths = {key: len(value) for key, value in values.items()}
    if len(set(lengths.values())) > 1:
        raise ArgumentError(
            f"Batch length of predictions should be same, and is {lengths}; yield_single_examples=False gives batches"
        )
    for index in range(next(iter(lengths.values()), 0)):
        yield {key: value[index] for key, value in values.items()}


def _directory_of_now(base: str) -> str:
    """A directory below `base`, named by the second, that is not there yet."""
    for _ in range(10):
        path = os.path.join(os.fsdecode(base), str(int(time.time())))
        if not tf.io.gfile.exists(path):
            return path
        time.sleep(1)
    raise RuntimeError(f"Failed to obtain a unique export directory name in {base!r}; ten in a row are there already")
