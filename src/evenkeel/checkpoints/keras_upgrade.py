# SPDX-License-Identifier: Apache-2.0
"""What Keras 3 must be told to build a model that an older Keras wrote."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import evenkeel
from evenkeel.checkpoints import keras_model
from evenkeel.checkpoints.contents import Checkpoint, Variable
from evenkeel.checkpoints.hdf5_survey import LONGEST_PATH
from evenkeel.checkpoints.meaning import replaced
from evenkeel.errors import InputError, MissingLibraryError

OURS = "evenkeel>BatchNormalization"
OUR_ENTRY = {"module": "evenkeel", "class_name": "BatchNormalization", "registered_name": OURS}
RUNS_CODE = ("Lambda", "__lambda__", "TFSMLayer", "TorchModuleWrapper", "JaxLayer", "FlaxLayer")
OPERATIONS = ("TFOpLambda", "SlicingOpLambda", "TensorFlowOpLayer", "AddLoss", "AddMetric", "ClassMethod")
"""Layers in which tf.keras keeps operations of TensorFlow between layers."""
MODELS = ("Model", "Functional", "Sequential")
CLASSES = {
    "BatchNormalizationV1": "BatchNormalization",
    "BatchNormalizationV2": "BatchNormalization",
    "SyncBatchNormalization": "BatchNormalization",
    "Convolution1D": "Conv1D",
    "Convolution2D": "Conv2D",
}
"""Old class -> Keras 3's."""
SETTINGS = {
    "alpha": "negative_slope",
    "batch_input_shape": "batch_shape",
    "beta_init": "beta_initializer",
    "bias": "use_bias",
    "border_mode": "padding",
    "b_constraint": "bias_constraint",
    "b_regularizer": "bias_regularizer",
    "dim_ordering": "data_format",
    "filter_length": "kernel_size",
    "gamma_init": "gamma_initializer",
    "init": "kernel_initializer",
    "nb_filter": "filters",
    "output_dim": "units",
    "p": "rate",
    "pool_length": "pool_size",
    "stride": "strides",
    "subsample": "strides",
    "subsample_length": "strides",
    "theta": "threshold",
    "W_constraint": "kernel_constraint",
    "W_regularizer": "kernel_regularizer",
}
"""Old argument -> Keras 3's, where the class has no such argument, and has that one."""
WITHOUT_EFFECT = {
    "batch_input_shape",
    "consume_less",
    "dim_ordering",
    "dtype",
    "fused",
    "implementation",
    "input_dim",
    "input_dtype",
    "input_length",
    "kernel_constraint",
    "kernel_initializer",
    "kernel_regularizer",
    "key_shape",
    "mode",
    "query_shape",
    "value_shape",
}
"""Old arguments that say nothing of what a layer without such an argument computes."""
WORDS = {"W": "kernel", "b": "bias"}
"""Variables of Keras 1."""
ATTENTION = {
    "/_key_dense": "/key",
    "/_query_dense": "/query",
    "/_value_dense": "/value",
    "/_output_dense": "/attention_output",
}
"""Layers in an attention layer, as they are called in files that name only groups -> as Keras calls them."""
PARTS = {"initializer": "initializers", "regularizer": "regularizers", "constraint": "constraints"}
LAYERS = ("layer", "backward_layer", "cell", "cells")

SAMPLE = (
    "kept the sample variance (n - 1) in training, and keras.layers.BatchNormalization keeps the population variance "
    "(n); the same until it is trained on"
)
OUR_LAYER = "became evenkeel.BatchNormalization; a program imports that before it loads the model"
VIRTUAL = "virtual batches are neighbouring rows now, and were every n-th row; the same until it is trained on"
SLASHES = "named with _ for /, which Keras 3 does not allow in names"
LISTED = 5

Notes = dict[str, list[str]]
"""What is to be known -> the layers of which it is true."""


def upgraded(checkpoint: Checkpoint) -> tuple[Checkpoint, list[str]]:
    """A checkpoint whose model Keras 3 builds, with its variables, in the same order, as that model has them.

    Args:
        checkpoint: with a configuration, of any Keras.

    Returns:
        The checkpoint, and what is to be known, a sentence each.

    Raises:
        InputError: the model has code or classes of others in it, or what Keras 3 has no equal for.
        MissingLibraryError: Keras is not installed.
    """
    model = checkpoint.model or {}
    try:
        new, notes = modernized(model)
        names = _names(checkpoint, model)
        variables = {new: _variable(checkpoint.variables[old], layer) for new, (old, layer) in names.items()}
        facts = keras_model.facts(new, "3", variables)
    except InputError as error:
        raise InputError(f"{checkpoint.path}: {error}") from error
    except (LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise InputError(
            f"{checkpoint.path}: the configuration of its model cannot be understood ({error!r}); the file is damaged"
        ) from error
    return dataclasses.replace(checkpoint, variables=variables, facts=facts, model=new), notes


def modernized(model: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The configuration of a model of Keras 1 to 3, as Keras 3 builds it without running anything that it names.

    A batch normalization of several axes, with virtual batches or tf.keras's renorm becomes
    `evenkeel.BatchNormalization`.

    Returns:
        The configuration, and what is to be known, a sentence each.

    Raises:
        InputError: a layer is of an unknown class, or says something that Keras 3 cannot do.
        MissingLibraryError: Keras is not installed.

    Example:
        >>> import keras
        >>> dense = {"name": "fc", "batch_input_shape": [None, 2], "dtype": "float32", "units": 3}
        >>> old = {"class_name": "Sequential", "config": [{"class_name": "Dense", "config": dense}]}
        >>> new, notes = modernized(old)
        >>> [layer["config"]["name"] for layer in new["config"]["layers"]], notes
        (['fc_input', 'fc'], [])
        >>> keras.saving.deserialize_keras_object(new).output_shape
        (None, 3)
    """
    notes: Notes = defaultdict(list)
    entry = dict(model)
    if entry.get("class_name") not in MODELS:
        raise InputError(f"the model is a {entry.get('class_name')!r}; only {', '.join(MODELS)} can be built here")
    new = _model(entry, notes, channels_first=_has_channels_first(entry))
    return new, [f"{_listed(names)}: {note}" for note, names in notes.items()]


def _has_channels_first(value: Any) -> bool:
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict):
            if item.get("data_format") == "channels_first":
                return True
            waiting += item.values()
        elif isinstance(item, list):
            waiting += item
    return False


def _listed(names: list[str]) -> str:
    return ", ".join(names[:LISTED]) + (f" and {len(names) - LISTED} more" if len(names) > LISTED else "")


def _plain(name: str) -> str:
    return name.replace("/", "_")


# Models.


def _model(entry: dict[str, Any], notes: Notes, *, channels_first: bool) -> dict[str, Any]:
    kind = "Sequential" if entry["class_name"] == "Sequential" else "Model"
    config = entry["config"]
    if isinstance(config, list):  # of Keras before 2.2.3
        config = {"name": entry.get("name", "sequential"), "layers": config}
    layers = [_layer(layer, notes, channels_first=channels_first) for layer in config["layers"]]
    new: dict[str, Any] = {"name": _plain(config["name"]), "layers": layers}
    if kind == "Sequential":
        layers[:0] = _input(config["layers"])
        if shape := config.get("build_input_shape"):
            new["build_input_shape"] = shape
    else:
        models = _models(config)
        new |= {"trainable": config.get("trainable", True), **_ends(config, models)}
        for layer, old in zip(layers, config["layers"], strict=True):
            layer |= {"name": _plain(old["name"]), "inbound_nodes": _nodes(old, models)}
    build = {"build_config": entry["build_config"]} if kind == "Sequential" and entry.get("build_config") else {}
    return {"module": "keras", "class_name": kind, "config": new, "registered_name": None, **build}


def _input(layers: list[Any]) -> list[dict[str, Any]]:
    """The layer before the first, where that says the shape of its input itself."""
    first: Any = layers[0] if layers else {"class_name": "InputLayer"}
    if first["class_name"] in ("InputLayer", *MODELS) or "batch_input_shape" not in first["config"]:
        return []
    settings = first["config"]
    config = {"batch_shape": settings["batch_input_shape"], "name": f"{_plain(settings['name'])}_input"}
    return [{"module": "keras.layers", "class_name": "InputLayer", "config": config, "registered_name": None}]


def _models(config: Mapping[str, Any]) -> dict[str, str] | None:
    """Name -> class of the models in a graph of before Keras 3; None for a graph of Keras 3.

    Before, the first call of a model counted as its second; in Keras 3 so only where it gives an output.
    """
    nodes = [node for layer in config["layers"] for node in layer["inbound_nodes"]]
    if all(isinstance(node, dict) and "args" in node for node in nodes):
        return None
    return {layer["name"]: layer["class_name"] for layer in config["layers"] if layer["class_name"] in MODELS}


def _is_tensor(value: Any) -> bool:
    """Whether this is `[layer, call, output]`, with or without the options of the call."""
    return isinstance(value, list) and len(value) in (3, 4) and [type(part) for part in value[:3]] == [str, int, int]


def _ends(config: Mapping[str, Any], models: Mapping[str, str] | None) -> dict[str, Any]:
    """Inputs and outputs."""
    ends = {key: config[key] for key in ("input_layers", "output_layers")}
    if models is None:
        return ends

    def place(value: Any) -> Any:
        if _is_tensor(value):
            return [_plain(value[0]), value[1] - (models.get(value[0]) == "Sequential"), value[2]]
        if isinstance(value, dict):
            return {key: place(item) for key, item in value.items()}
        return [place(item) for item in value]

    # Of a single tensor tf.keras made a list, and took it for the tensor.
    single = {key: value[0] for key, value in ends.items() if isinstance(value, list) and len(value) == 1}
    return {key: place(value) for key, value in {**ends, **single}.items()}


def _nodes(layer: Mapping[str, Any], models: Mapping[str, str] | None) -> list[Any]:
    """The calls of a layer."""
    if models is None:
        return list(layer["inbound_nodes"])

    def tensors(value: Any) -> Any:
        if _is_tensor(value):
            history = [_plain(value[0]), value[1] - (value[0] in models), value[2]]
            config = {"shape": [], "dtype": "float32", "keras_history": history}
            return {"class_name": "__keras_tensor__", "config": config}
        if isinstance(value, dict):
            return {key: tensors(item) for key, item in value.items()}
        return [tensors(item) for item in value] if isinstance(value, list) else value

    calls = []
    for node in layer["inbound_nodes"]:
        inputs = [node] if _is_tensor(node) else list(node.values()) if isinstance(node, dict) else node
        options = tensors(next((item[3] for item in inputs if len(item) == 4), {}))
        options = {key: value for key, value in options.items() if value is not None}
        given = tensors(inputs[0] if len(inputs) == 1 and not isinstance(node, dict) else node)
        if isinstance(given, list) and layer["class_name"] in ("LSTM", "GRU", "SimpleRNN", "Bidirectional"):
            given, options["initial_state"] = given[0], given[1:]
        calls.append({"args": [given], "kwargs": options})
    return calls


# Layers.


def _layer(entry: Any, notes: Notes, *, channels_first: bool) -> dict[str, Any]:
    name = entry["config"].get("name") if isinstance(entry["config"], dict) else None
    name, kind, module = name or entry.get("name"), entry["class_name"], str(entry.get("module"))
    if kind in MODELS:
        return _model(entry, notes, channels_first=channels_first)
    where = f"layer {name} is a {kind}" + (f" of {module}" if entry.get("module") else "")
    if kind in RUNS_CODE:
        raise InputError(
            f"{where}, and code that a file names is not run here; make the model in Python and load weights into it"
        )
    if kind in OPERATIONS:
        raise InputError(
            f"{where}, an operation of TensorFlow between layers ({entry['config'].get('function')}); make the model "
            "in Python with layers of Keras 3 and load weights into it"
        )
    if module.startswith(("keras.ops", "keras.src.ops")):
        return dict(entry)
    if OURS in (kind, entry.get("registered_name")):
        return {**entry, **OUR_ENTRY}
    found = _class(CLASSES.get(kind, kind), "layers")
    if found is None or not isinstance(entry["config"], dict):
        raise InputError(f"{where}, which Keras 3 does not have; make the model in Python and load weights into it")
    settings = entry["config"]
    if _is_modern(settings):
        return {**entry, "module": "keras.layers", "registered_name": None}
    settings = {key: _setting(key, value, where, notes, channels_first) for key, value in settings.items()}
    settings["name"] = _plain(str(name))
    if settings["name"] != name:
        notes[SLASHES].append(settings["name"])
    ours = found.__name__ == "BatchNormalization" and _normalization(
        entry, settings, notes, channels_first=channels_first
    )
    if settings.get("dim_ordering") == "th":
        raise InputError(
            f"{where} with kernels as Theano has them; make the model in Python with Keras 1 and TensorFlow"
        )
    if {"nb_row", "nb_col"} <= settings.keys():
        settings["kernel_size"] = [settings.pop("nb_row"), settings.pop("nb_col")]
    settings = _accepted(evenkeel.BatchNormalization if ours else found, settings, where)
    new = {"module": "keras.layers", "class_name": found.__name__, "config": settings, "registered_name": None}
    return {**new, **OUR_ENTRY} if ours else new


def _is_modern(settings: Mapping[str, Any]) -> bool:
    """Whether Keras 3 wrote it."""
    dtype = settings.get("dtype")
    return isinstance(dtype, dict) and "DTypePolicy" in str(dtype.get("class_name"))


def _normalization(entry: Mapping[str, Any], settings: dict[str, Any], notes: Notes, *, channels_first: bool) -> bool:
    """Put right what the layer was told; whether it is one of ours."""
    axes, rows = settings.get("axis", -1), settings.get("virtual_batch_size")
    built = isinstance(axes, list)  # by tf.keras, counted with one dimension more for virtual batches
    if built:
        axes = [axis - 1 if rows and axis > 0 else axis for axis in axes]
        settings["axis"] = axes[0] if len(axes) == 1 else axes
    if settings.get("mode"):
        raise InputError(
            f"layer {settings['name']} does not normalize as batch normalization does today (mode={settings['mode']} "
            "of Keras 1); make the model in Python and load weights into it"
        )
    if entry["class_name"] == "SyncBatchNormalization":
        settings["synchronized"] = True
    sample = next(iter(keras_model.facts({"config": [entry]}, "", ()).values())).bessel_correction
    if sample is None and built:
        sample = channels_first
    elif sample is None:  # Keras 2.0 to 2.3 kept it for every rank, and did not write a list as the axis
        sample = not {"mode", "synchronized"} & settings.keys() and "module" not in entry
    ours = bool(rows) or (built and bool(settings.get("renorm") or len(axes) > 1))
    if ours:
        notes[OUR_LAYER].append(settings["name"])
        settings["bessel_correction"] = bool(settings.pop("fused", False))
        if rows:
            notes[VIRTUAL].append(settings["name"])
    elif sample:
        notes[SAMPLE].append(settings["name"])
    return ours


def _setting(key: str, value: Any, where: str, notes: Notes, channels_first: bool) -> Any:
    """An argument in the words of Keras 3."""
    if key in LAYERS and value is not None:
        many = value if isinstance(value, list) else [value]
        new = [_layer(item, notes, channels_first=channels_first) for item in many]
        return new if isinstance(value, list) else new[0]
    if not isinstance(value, dict) or "class_name" not in value:
        return value
    kind = value["class_name"]
    if key == "dtype":
        policy = str(value["config"]["name"])
        return None if policy.startswith(("infer", "_infer")) else policy
    if key.endswith("activation"):
        return value["config"] if kind == "function" else _layer(value, notes, channels_first=channels_first)
    group = PARTS.get(key.rpartition("_")[2])
    if group is None:
        return value
    found = _class(CLASSES.get(kind, kind), group)
    if found is None:
        raise InputError(f"{where} with {key}={kind}, which Keras 3 does not have; make the model in Python")
    settings = _accepted(found, value["config"], f"{where} with {key}={kind}")
    return {"module": f"keras.{group}", "class_name": found.__name__, "config": settings, "registered_name": None}


def _class(name: Any, group: str) -> Any:
    """A class of Keras 3; None where it has none of this name."""
    try:
        import keras
    except ImportError as error:
        raise MissingLibraryError('keras is not installed; pip install "evenkeel[tensorflow]"') from error
    found = getattr(getattr(keras, group), name, None)
    return found if inspect.isclass(found) else None


def _accepted(kind: Any, settings: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Arguments that the class has; the others must be such as change nothing."""
    names = _arguments(kind)
    found = {}
    for key, value in settings.items():
        new = SETTINGS.get(key)
        if key in names:
            found[key] = value
        elif new in names:
            found[new] = ("channels_last" if value == "tf" else value) if key == "dim_ordering" else value
        elif value not in (None, False, [], {}) and key not in WITHOUT_EFFECT and (key, value) != ("groups", 1):
            raise InputError(f"{where} with {key}={value!r:.80}, which Keras 3 does not have; make the model in Python")
    return found


@functools.cache
def _arguments(kind: Any) -> frozenset[str]:
    """Names of the arguments of a class, those that it hands on included."""
    names: set[str] = set()
    for one in inspect.getmro(kind):
        if "__init__" in vars(one):
            parameters = inspect.signature(vars(one)["__init__"]).parameters.values()
            names |= {parameter.name for parameter in parameters}
            if all(parameter.kind != parameter.VAR_KEYWORD for parameter in parameters):
                break
    return frozenset(names - {"self", "args", "kwargs"})


# Variables.


def _names(checkpoint: Checkpoint, model: Mapping[str, Any]) -> dict[str, tuple[str, keras_model.Layer | None]]:
    """New name -> old name, and the layer where that is known."""
    known = keras_model.layers(model)
    paths = {"": ""}
    for path, inner in known.items():  # a model comes before the layers in it
        outer = path.removesuffix(inner.name).rstrip("/")
        paths[path] = f"{paths.get(outer, outer)}/{_plain(inner.name)}".lstrip("/")
    names: dict[str, tuple[str, keras_model.Layer | None]] = {}
    for old in checkpoint.variables:
        path = old[:LONGEST_PATH]
        while path not in paths:
            path = path.rpartition("/")[0]
        owner, _, word = old[len(path) :].rpartition("/")
        layer = known.get(path) if not owner else None
        new = f"{paths[path]}{ATTENTION.get(owner, owner)}/{_word(word, layer)}".lstrip("/")
        if new in names:
            raise InputError(f"{names[new][0]} and {old} would both be called {new}; rename one of them")
        names[new] = old, layer
    return names


def _word(word: str, layer: keras_model.Layer | None) -> str:
    if layer is None:
        return word
    return "embeddings" if (layer.kind, word) == ("embedding", "W") else WORDS.get(word, word)


def _variable(variable: Variable, layer: keras_model.Layer | None) -> Variable:
    """Virtual batches gave the variables of tf.keras a dimension more."""
    if layer is None or not isinstance(axes := layer.settings.get("axis"), list):
        return variable
    ours = OURS in (layer.entry.get("class_name"), layer.entry.get("registered_name"))
    if ours or not layer.settings.get("virtual_batch_size") or len(variable.shape) < 2:
        return variable
    shape = (variable.size,) if len(axes) == 1 else variable.shape[1:]
    return replaced(variable, lambda values: values.reshape(shape), shape)
