# SPDX-License-Identifier: Apache-2.0
"""What a Keras model says of its normalizers."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np

from evenkeel.doctor.evidence import Decay, Evidence, Neighbour, Normalizer, Phase, Place, Structure, Unseen
from evenkeel.doctor.neighbours import Call, neighbour, places
from evenkeel.doctor.options import Options
from evenkeel.errors import InputError
from evenkeel.surgery.walk import keras_names, keras_normalizers, parts

KIND = "Keras model"
NO_DATA = Unseen(
    "the statistics of batches",
    "no data was given",
    "evenkeel.diagnose(model, data), or evenkeel doctor MODEL --data DATA",
)


def recognises(subject: Any) -> bool:
    layer = getattr(getattr(sys.modules.get("keras"), "layers", None), "Layer", None)
    return layer is not None and isinstance(subject, layer)


def evidence(subject: Any, options: Options) -> Iterator[Evidence]:
    layers = keras_normalizers(subject)
    if not layers:
        return
    if options.data is not None and not all(layer.built for layer in layers):
        options = _built(subject, options)
    steps = _steps(subject) if options.steps is None else options.steps
    counted = any(getattr(layer, "updates", None) is not None for layer in layers)
    calls = _calls(_graphs(subject)) if counted else Counter()  # a shared one is updated at each place
    normalizers = {
        name: _normalizer(name, layer, steps, options.batches_per_step * max(calls[id(layer)], 1))
        for layer, name in zip(layers, keras_names(layers).values(), strict=True)
    }
    yield from normalizers.values()
    if unbuilt := [_name(layer) for layer in layers if not layer.built]:
        yield Unseen(
            f"the values of {', '.join(unbuilt)}", "it has no weights yet", "call the model once, or give data"
        )
    yield from _structure(subject, layers)
    yield from _decays(subject, layers)
    if options.data is None:
        yield NO_DATA
    else:
        from evenkeel.doctor import observing

        yield from observing.evidence(subject, options, normalizers)


def _built(model: Any, options: Options) -> Options:
    """Builds the model with the first batch; the data is all there afterwards."""
    from evenkeel.doctor.observing import same_random_numbers
    from evenkeel.surgery.recalibrate.feeding import batches
    from evenkeel.surgery.recalibrate.keras import KerasModel

    sample = options.data
    if isinstance(sample, Iterator):  # which gives each batch once
        first = list(itertools.islice(options.data, 1))
        options = dataclasses.replace(options, data=itertools.chain(first, options.data))
        sample = first.copy  # a list by itself would be several inputs
    with same_random_numbers():
        KerasModel(model, batches(sample, batch_size=options.batch_size, steps=1), include_frozen=True)
    return options


def _name(layer: Any) -> str:
    return layer.path or layer.name  # which has a path once it is built


def _steps(model: Any) -> int | None:
    """How many the optimizer of a compiled model has done."""
    optimizer = getattr(model, "optimizer", None)
    return None if optimizer is None else int(_values(optimizer.iterations))


def _normalizer(name: str, layer: Any, steps: int | None, batches_per_step: int) -> Normalizer:
    learned = [variable for variable in (layer.gamma, layer.beta) if variable is not None]
    frozen = getattr(layer, "frozen", False) if layer.trainable else "all"
    values = {variable.name: _values(variable).ravel() for variable in layer.weights}
    updates = values.get("updates")
    return Normalizer(
        name,
        values.pop("moving_mean", None),
        values.pop("moving_variance", None),
        values.pop("gamma", None),
        values.pop("beta", None),
        others=values,
        library="keras",
        momentum=layer.momentum,
        epsilon=layer.epsilon,
        average=getattr(layer, "average", "exponential"),
        bessel_correction=getattr(layer, "bessel_correction", False),
        frozen=frozen,
        trainable=any(variable.trainable for variable in learned) if learned else None,
        moves=not frozen,
        updates=None if updates is None else int(updates.max()),
        steps=steps,
        batches_per_step=batches_per_step,
        virtual_batch_size=getattr(layer, "virtual_batch_size", None),
    )


def _values(variable: Any) -> np.ndarray:
    """A copy, or it would change with the variable."""
    import keras

    return np.array(keras.ops.convert_to_numpy(variable.value))


# How the layers follow each other.


def _structure(model: Any, layers: list[Any]) -> Iterator[Evidence]:
    """What the graphs say of the functional and Sequential models in it."""
    graphs = _graphs(model)
    calls = _calls(graphs)
    found: dict[str, Place] = {}
    for part, nodes, outputs in graphs.values():
        described = {key: _call(node, calls) for key, node in nodes.items()}
        found |= {place.name: place for place in places(described, outputs)}
        yield from _phases(part)
    yield Structure(tuple(found.values()))
    if hidden := [_name(layer) for layer in layers if _name(layer) not in found]:
        yield Unseen(
            f"what stands round {', '.join(hidden)}",
            "Keras has the graph of functional and Sequential models only, of layers with a configuration",
            "see that no dropout stands before them, and no bias",
        )


def _graphs(model: Any) -> dict[int, tuple[Any, dict[Any, Any], list[Any]]]:
    """The models in it that have a graph: the model, its calls by key, the keys of its outputs."""
    import keras

    from evenkeel.surgery.fold.keras import calls_of, has_graph

    models = [part for part in parts(model) if isinstance(part, keras.Model) and part.built]
    chains = [set(map(id, part.layers)) for part in models if isinstance(part, keras.Sequential)]
    found = {}
    for part in models:
        layers = {id(layer) for layer in part.layers if not isinstance(layer, keras.layers.InputLayer)}
        if not isinstance(part, keras.Sequential) and layers in chains:
            continue  # what a Sequential model keeps inside
        with contextlib.suppress(Exception):  # of any kind: what has no configuration is somebody else's code
            if has_graph(part):
                found[id(part)] = part, *calls_of(part)
    return found


def _calls(graphs: dict[int, tuple[Any, dict[Any, Any], list[Any]]]) -> Counter[int]:
    """How often each layer is called, in all the models that contain it."""
    total: Counter[int] = Counter()

    def walk(graph: int, times: int) -> None:
        for node in graphs[graph][1].values():
            total[id(node.layer)] += node.calls * times
            if id(node.layer) in graphs:
                walk(id(node.layer), node.calls * times)

    inside = {id(node.layer) for _, nodes, _ in graphs.values() for node in nodes.values()}
    for graph in graphs.keys() - inside:
        walk(graph, 1)
    return total


def _call(node: Any, calls: Counter[int]) -> Call:
    import keras

    layer, inputs = node.layer, tuple(node.inputs)
    if isinstance(layer, keras.KerasTensor | keras.layers.InputLayer):
        return Call(inputs)
    steps = tuple(_steps_of(node.name, layer))
    if isinstance(layer, keras.layers.BatchNormalization):
        place = Place(_name(layer), scale=layer.scale, calls=calls[id(layer)], activation=len(steps) > 1)
        return Call(inputs, steps, place)
    return Call(inputs, (Neighbour(node.name, "junction"),) if len(inputs) > 1 else steps)


def _steps_of(name: str, layer: Any) -> Iterator[Neighbour]:
    """What a layer does, with the activation that many have."""
    import keras

    from evenkeel.surgery.fold.keras import LINEAR, activation_name

    if isinstance(layer, LINEAR):
        yield Neighbour(name, "linear", bias=layer.bias is not None)
    elif not isinstance(layer, keras.layers.Activation | keras.layers.Identity) and getattr(layer, "rate", True):
        found = neighbour(name, type(layer).__name__)
        # A leaky or shifted one is none of the name; a limit is no multiple.
        limits = [getattr(layer, limit, None) for limit in ("max_value", "threshold")]
        yield found._replace(homogeneous=False) if any(limits) else found
    activation = activation_name(getattr(layer, "activation", None))
    if activation:
        yield neighbour(name, activation)


def _phases(model: Any) -> Iterator[Phase]:
    """Phases that stand in calls. `fit`, `evaluate` and `predict` say theirs to every layer, and Keras heeds them."""
    import keras

    config = {} if isinstance(model, keras.Sequential) else model.get_config()
    layers = {operation.name: operation for operation in model.operations} if config else {}
    for entry in config.get("layers", ()):
        layer = layers[entry["name"]]
        told = [[call["kwargs"].get("training"), *call["args"][1:]] for call in entry["inbound_nodes"]]
        if isinstance(layer, keras.layers.Layer) and any(value is True for call in told for value in call):
            for normalizer in keras_normalizers(layer):
                inside = "" if normalizer is layer else f" of {layer.name}"
                because = f"training=True in the call{inside}, which model(x) obeys; predict and evaluate do not"
                batch = normalizer.trainable and not getattr(normalizer, "frozen", False)
                yield Phase(_name(normalizer), "inference", bool(batch), because, normalizer.trainable)


# What pulls at gamma and beta.


def _decays(model: Any, layers: list[Any]) -> Iterator[Evidence]:
    learned = {
        f"{_name(layer)}/{role}": variable
        for layer in layers
        for role in ("gamma", "beta")
        if (variable := getattr(layer, role)) is not None and variable.trainable
    }
    for name, variable in learned.items():
        regularizer = variable.regularizer
        if value := float(getattr(regularizer, "l2", 0) or 0):
            yield Decay(type(regularizer).__name__, value, (name,))
    optimizer: Any = getattr(model, "optimizer", None)
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)  # of one that scales the loss
    if not getattr(optimizer, "weight_decay", None) or not learned:
        return
    kind, value = type(optimizer).__name__, float(optimizer.weight_decay)
    try:
        decayed = _decayed(model, optimizer, list(learned.values()))
    except Exception as error:  # of any kind: an optimizer not built yet, one of somebody else's
        yield Unseen(
            f"which weights {kind} decays by {value:g}",
            " ".join(str(error).split()).partition(". ")[0],
            "optimizer.exclude_from_weight_decay(var_list=evenkeel.decay_exclusions(model)), or train a step",
        )
        return
    yield Decay(kind, value, tuple(name for name, found in zip(learned, decayed, strict=True) if found))


def _decayed(model: Any, optimizer: Any, variables: list[Any]) -> list[bool]:
    """Which of them a step with weight decay changes otherwise than one without; none is done, and nothing changes.

    Keras does not tell what `exclude_from_weight_decay` was given.
    """
    import keras

    if not optimizer.built:
        raise InputError(f"{type(optimizer).__name__} knows no weights before the first step")
    steps = _traced_writes if keras.config.backend() == "tensorflow" else _stateless_results
    results, set_by_user = [], optimizer.weight_decay
    try:
        for optimizer.weight_decay in (None, 1.0):
            results.append(steps(model, optimizer, variables))
    finally:
        optimizer.weight_decay = set_by_user
    return [without != with_decay for without, with_decay in zip(*results, strict=True)]


def _traced_writes(model: Any, optimizer: Any, variables: list[Any]) -> list[int]:
    """How often a step, traced and not run, writes to each."""
    import tensorflow as tf

    def step() -> None:
        optimizer.apply([tf.zeros(variable.shape, variable.dtype) for variable in variables], variables)

    traced = tf.function(step).get_concrete_function()
    inside = dict(zip(map(id, traced.captured_inputs), traced.inputs[-len(traced.captured_inputs) :], strict=True))
    written = Counter(
        operation.inputs[0].name for operation in traced.graph.get_operations() if "Assign" in operation.type
    )
    return [written[inside[id(variable.value.handle)].name] for variable in variables]


def _stateless_results(model: Any, optimizer: Any, variables: list[Any]) -> list[bytes]:
    """What a step makes of ones, where the gradients are zero."""
    import keras

    known = model.trainable_variables
    state = [keras.ops.convert_to_tensor(np.array(keras.ops.convert_to_numpy(item))) for item in optimizer.variables]
    zeros, ones = ([make(item.shape, item.dtype) for item in known] for make in (keras.ops.zeros, keras.ops.ones))
    after, _ = optimizer.stateless_apply(state, zeros, ones)
    made = dict(zip(map(id, known), after, strict=True))
    return [keras.ops.convert_to_numpy(made[id(variable)]).tobytes() for variable in variables]
