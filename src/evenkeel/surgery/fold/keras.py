# SPDX-License-Identifier: Apache-2.0
"""What a Keras model is made of, and how a copy of it is made in which normalizers are folded."""

from __future__ import annotations

import contextlib
import copy
import functools
import math
import statistics
import time
from collections.abc import Hashable, Iterator
from typing import Any, NamedTuple

import keras
import numpy as np

from evenkeel.errors import InputError
from evenkeel.layers.keras import BatchNormalization
from evenkeel.surgery.fold.algebra import Kernel, Linear
from evenkeel.surgery.fold.plan import Call, Normalizer, Plan, plan
from evenkeel.surgery.fold.report import Left

CONVOLUTIONS = (keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D)
TRANSPOSED = (keras.layers.Conv1DTranspose, keras.layers.Conv2DTranspose, keras.layers.Conv3DTranspose)
DEPTHWISE = (keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D)
SEPARABLE = (keras.layers.SeparableConv1D, keras.layers.SeparableConv2D)
LINEAR = (*CONVOLUTIONS, *TRANSPOSED, *DEPTHWISE, *SEPARABLE, keras.layers.Dense, keras.layers.EinsumDense)
NORMALIZERS = (keras.layers.BatchNormalization, BatchNormalization)
PASSING = (
    keras.layers.Identity,
    keras.layers.Dropout,
    keras.layers.SpatialDropout1D,
    keras.layers.SpatialDropout2D,
    keras.layers.SpatialDropout3D,
    keras.layers.AlphaDropout,
    keras.layers.GaussianDropout,
    keras.layers.GaussianNoise,
    keras.layers.ActivityRegularization,
)

EXAMPLES, UNKNOWN_SIZE = 2, 32


def check(model: Any, data: Any) -> None:
    """Raise where the graph of `model` is not known.

    Raises:
        InputError: a subclassed model, or one that was not built.
    """
    if not has_graph(model):
        raise InputError(
            f"{model.name} is a {type(model).__name__}, whose graph Keras does not know; give a functional or "
            "Sequential model, and fold the ones inside a subclassed model one by one"
        )
    if not model.built:
        raise InputError(f"{model.name} has no weights yet; call it once, or give it an Input, and fold it then")


def dtype(model: Any) -> str:
    """The narrowest floating point type that a layer computes in."""
    names = {layer.compute_dtype for layer in model.layers if layer.compute_dtype}
    return min(filter(keras.backend.is_float_dtype, names), key=_bits, default="float32")


def copied(model: Any, dtype: str) -> Any:
    """The same model, computing in `dtype`."""
    return _rebuilt(model, {}, set(), dtype)


def folded(model: Any, data: Any) -> tuple[Any, Plan]:
    """A copy of `model` without the normalizers that can be folded, and what was done.

    A layer takes the place and the name of each: Identity, or the activation of an `evenkeel.BatchNormalization`.
    """
    calls: dict[int, int] = {}
    _count_calls(model, calls, set())
    linears: dict[int, Linear] = {}
    gone: set[int] = set()
    total = Plan([], [], {}, [], 1.0)
    for part, path, fixed in _models(model, "", ""):
        nodes, outputs = calls_of(part)
        described = {key: _call(node, path, calls, fixed) for key, node in nodes.items()}
        found = plan(described, outputs)
        linears.update({id(nodes[key].layer): linear for key, linear in found.linears.items()})
        gone.update(id(nodes[key].layer) for key in found.gone)
        total.folded.extend(found.folded)
        total.left.extend(found.left)
        for node in nodes.values():
            total.left.extend(_hidden(node, path))
        total = total._replace(condition=max(total.condition, found.condition))
    return _rebuilt(model, linears, gone), total


def wide() -> contextlib.AbstractContextManager[Any]:
    """Inside it, float64 is float64."""
    if keras.backend.backend() == "jax":
        import jax

        return jax.enable_x64(True)
    return contextlib.nullcontext()


def narrow_inside(model: Any, data: Any) -> bool:
    """Whether an operation of a float64 model computes in float32, as Keras's mean does on JAX and torch.

    It shows: what goes out is not of that type, or does not need it though what came in does. Call it on a copy of
    your own.
    """
    found = []

    def watched(operation: Any) -> None:
        call = operation.call

        @functools.wraps(call)
        def watch(*arguments: Any, **options: Any) -> Any:
            result = call(*arguments, **options)
            lost = _needs_float64([arguments, options]) and not _needs_float64(result)
            found.append(lost or any("32" in str(tensor.dtype) for tensor in keras.tree.flatten(result)))
            return result

        operation.call = watch

    for part, *_ in _models(model, "", ""):
        for node in calls_of(part)[0].values():
            if isinstance(node.layer, keras.Operation) and not has_graph(node.layer):
                watched(node.layer)
    outputs(model, data)
    return any(found)


def random_data(model: Any, like: Any) -> Any:
    """Two examples, normally distributed; zeros and ones where integers are wanted.

    Args:
        model: says which shapes and types.
        like: not needed; a torch module has nothing else to say what it takes.
    """
    generator = np.random.default_rng(0)

    def example(tensor: Any) -> np.ndarray:
        shape = [EXAMPLES if tensor.shape[0] is None else tensor.shape[0]]
        shape += [UNKNOWN_SIZE if size is None else size for size in tensor.shape[1:]]
        if keras.backend.is_float_dtype(tensor.dtype):
            return generator.normal(size=shape).astype("float32")
        if tensor.dtype == "string":
            raise InputError(f"{model.name} takes strings, for which there are no random ones; give data")
        return generator.integers(0, 2, shape).astype(tensor.dtype)

    if isinstance(model, keras.Sequential):
        return example(model.inputs[0])
    return keras.tree.map_structure(example, model.input)


def outputs(model: Any, data: Any) -> list[np.ndarray]:
    """What the model gives at inference, in float64."""
    results = keras.tree.flatten(model(data, training=False))
    return [keras.ops.convert_to_numpy(result).astype("float64") for result in results]


def parameters(model: Any) -> int:
    return model.count_params()


def multiply_adds(model: Any, data: Any) -> int:
    """Of one example, in convolutions, dense layers and normalizers."""
    total = 0
    for node in calls_of(model)[0].values():
        if has_graph(node.layer):
            total += node.calls * multiply_adds(node.layer, data)
        elif isinstance(node.layer, keras.layers.BatchNormalization):
            total += _product(node.written[1:])
        elif type(node.layer) in LINEAR:
            total += _kernel_uses(node)
    return total


def seconds(model: Any, data: Any, runs: int) -> float:
    """The median of so many runs, after one that compiles."""
    times = []
    for _ in range(runs + 1):
        start = time.perf_counter()
        model.predict_on_batch(data)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


# The graph of a model, from its configuration.


class _Node(NamedTuple):
    """One call of a layer.

    inputs: keys of the calls whose results it takes.
    training: it is told to train, whatever the model does.
    read, written: shapes of its first input and its output; None is a size that is not known.
    calls: how many calls this stands for; more than one only for a model.
    """

    name: str
    layer: Any
    inputs: tuple[Hashable, ...]
    training: bool
    read: tuple[Any, ...]
    written: tuple[Any, ...]
    calls: int = 1


def has_graph(layer: Any) -> bool:
    return isinstance(layer, keras.Sequential) or (
        isinstance(layer, keras.Model) and {"layers", "input_layers"} <= layer.get_config().keys()
    )


def calls_of(model: Any) -> tuple[dict[Hashable, _Node], list[Hashable]]:
    """Every call in the model by its key, and the keys of those whose results are outputs."""
    return _chain(model) if isinstance(model, keras.Sequential) else _network(model)


def _chain(model: Any) -> tuple[dict[Hashable, _Node], list[Hashable]]:
    source, shape = (model.name, -1), model.input_shape
    nodes: dict[Hashable, _Node] = {source: _Node("the input", model.inputs[0], (), False, shape, shape)}
    for index, layer in enumerate(model.layers):
        written = layer.compute_output_shape(shape)
        nodes[layer.name, index] = _Node(layer.name, layer, (source,), False, shape, written)
        source, shape = (layer.name, index), written
    return nodes, [source]


def _network(model: Any) -> tuple[dict[Hashable, _Node], list[Hashable]]:
    config = model.get_config()
    layers = {operation.name: operation for operation in model.operations}

    def key(history: Any) -> Hashable:
        # All calls of a model are one here: Keras counts them from 0 or 1, and nothing is folded across its border.
        return history[0], 0 if isinstance(layers[history[0]], keras.Model) else history[1]

    nodes: dict[Hashable, _Node] = {}
    shapes: dict[Hashable, tuple[Any, ...]] = {}
    for entry in config["layers"]:
        name, layer = entry["name"], layers[entry["name"]]
        inbound = entry["inbound_nodes"] or [{"args": [], "kwargs": {}}]
        for index, call in enumerate(inbound):
            tensors = list(_tensors([call["args"], call["kwargs"]]))
            for tensor in tensors:
                shapes[key(tensor["keras_history"])] = tuple(tensor["shape"])
            training = bool(call["kwargs"].get("training")) or any(value is True for value in call["args"][1:])
            read = tuple(tensors[0]["shape"]) if tensors else ()
            sources = tuple(key(tensor["keras_history"]) for tensor in tensors)
            place, count = key((name, index)), 1
            if place in nodes:
                sources += nodes[place].inputs
                training |= nodes[place].training
                count += nodes[place].calls
            nodes[place] = _Node(name, layer, sources, training, read, (), count)
    ends = [key(history) for history in _histories(config["output_layers"])]
    shapes.update(zip(ends, (tuple(tensor.shape) for tensor in model.outputs), strict=True))
    return {place: node._replace(written=shapes.get(place, ())) for place, node in nodes.items()}, ends


def _tensors(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        if value.get("class_name") == "__keras_tensor__":
            yield value["config"]
            return
        value = list(value.values())
    if isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)


def _needs_float64(values: Any) -> bool:
    arrays = [keras.ops.convert_to_numpy(value) for value in keras.tree.flatten(values) if keras.ops.is_tensor(value)]
    return any(array.dtype == "float64" and (array.astype("float32") != array).any() for array in arrays)


def _histories(value: Any) -> Iterator[Any]:
    """The triples of name, node and tensor in a structure of any form."""
    if isinstance(value, dict):
        value = list(value.values())
    if len(value) == 3 and isinstance(value[0], str) and isinstance(value[1], int):
        yield value
    else:
        for item in value:
            yield from _histories(item)


def _models(model: Any, path: str, fixed: str) -> Iterator[tuple[Any, str, str]]:
    """The model and those in it, each with the path of its layers and why they train, if they always do."""
    seen = set()

    def walk(model: Any, path: str, fixed: str) -> Iterator[tuple[Any, str, str]]:
        if id(model) in seen:
            return
        seen.add(id(model))
        yield model, path, fixed
        for node in calls_of(model)[0].values():
            if has_graph(node.layer):
                inside = fixed or (
                    f"stands in {node.name}, which is called with training=True" if node.training else ""
                )
                yield from walk(node.layer, f"{path}{node.name}/", inside)

    return walk(model, path, fixed)


def _count_calls(model: Any, calls: dict[int, int], seen: set[int]) -> None:
    """How often each layer is called, over the model and all models in it; a model's own layers count once."""
    if id(model) in seen:
        return
    seen.add(id(model))
    for node in calls_of(model)[0].values():
        calls[id(node.layer)] = calls.get(id(node.layer), 0) + 1
        if has_graph(node.layer):
            _count_calls(node.layer, calls, seen)


# What the layers do.


def _call(node: _Node, path: str, calls: dict[int, int], fixed: str) -> Call:
    layer = node.layer
    call = Call(f"{path}{node.name}", _kind(layer), node.inputs)
    if isinstance(layer, keras.layers.BatchNormalization):
        return call._replace(part=_normalizer(node), refusal=_normalizer_refusal(node, calls, fixed))
    if len(node.inputs) != 1:
        return call
    if type(layer) in LINEAR:
        if refusal := _linear_refusal(layer, calls):
            # What such a layer keeps as its kernel may be anything.
            return call._replace(part=Linear((), np.zeros(0), "", {}, {}), refusal=refusal)
        activation = getattr(layer, "activation", None)
        return call._replace(part=_linear(node), activation=activation_name(activation))
    passes = type(layer) in PASSING or (
        type(layer) is keras.layers.Activation and not activation_name(layer.activation)
    )
    return call._replace(part="passes") if passes and not node.training else call


def _kind(layer: Any) -> str:
    return "Input" if isinstance(layer, keras.KerasTensor) else type(layer).__name__


def activation_name(function: Any) -> str:
    if function is None or function is keras.activations.linear:
        return ""
    return getattr(function, "__name__", type(function).__name__)


def _normalizer(node: _Node) -> Normalizer:
    layer = node.layer
    axis = layer.axis if isinstance(layer.axis, int) else layer.axis[0]
    gamma, beta = (None if value is None else _values(value).ravel() for value in (layer.gamma, layer.beta))
    mean, variance = _values(layer.moving_mean).ravel(), _values(layer.moving_variance).ravel()
    activation = activation_name(getattr(layer, "activation", None))
    return Normalizer.of(axis % len(node.read), mean, variance, gamma, beta, layer.epsilon, activation)


def _normalizer_refusal(node: _Node, calls: dict[int, int], fixed: str) -> str:
    layer = node.layer
    if type(layer) not in NORMALIZERS:
        return f"is a {type(layer).__name__}, which may compute something else than its parent class"
    if node.training:
        return "is called with training=True, so it has no fixed statistics"
    if fixed:
        return f"{fixed}, so it has no fixed statistics"
    if calls[id(layer)] > 1:
        return f"is shared: it is called {calls[id(layer)]} times"
    if len(node.inputs) != 1:
        return f"takes {len(node.inputs)} tensors"
    if not isinstance(layer.axis, int) and len(layer.axis) > 1:
        return f"has the channel axes {list(layer.axis)}, and only one can be folded"
    return ""


def _linear_refusal(layer: Any, calls: dict[int, int]) -> str:
    if calls[id(layer)] > 1:
        return f"is shared: it is called {calls[id(layer)]} times"
    if getattr(layer, "quantization_mode", None):
        return f"is quantized to {layer.quantization_mode}"
    if getattr(layer, "lora_enabled", False):
        return "has a LoRA beside its kernel; merge it first"
    return ""


def _values(variable: Any) -> np.ndarray:
    return keras.ops.convert_to_numpy(variable).astype("float64")


def _linear(node: _Node) -> Linear:
    layer = node.layer
    if type(layer) is keras.layers.EinsumDense:
        return _einsum(node)
    axis = len(node.read) - 1
    if getattr(layer, "data_format", None) == "channels_first":
        axis = 1
    kernels = [_values(variable) for variable in _kernels(layer)]
    pads = False
    if type(layer) is not keras.layers.Dense:
        one_by_one = set(layer.kernel_size) == {1}
        pads = not one_by_one and (layer.padding != "valid" or type(layer) in TRANSPOSED)
        # A transposed convolution leaves positions out where its stride is more than its kernel.
        pads |= type(layer) in TRANSPOSED and set(layer.strides) != {1}
    if type(layer) is keras.layers.Dense:
        parts, reads, writes = [Kernel(kernels[0], "io")], "i", "o"
    elif type(layer) in TRANSPOSED:
        outputs, inputs = kernels[0].shape[-2:]
        parts, reads, writes = [Kernel(kernels[0].reshape(-1, outputs, inputs), "toi")], "i", "o"
    elif type(layer) in CONVOLUTIONS:
        inputs, outputs = kernels[0].shape[-2:]
        shape = (-1, inputs, layer.groups, outputs // layer.groups)
        parts, reads, writes = [Kernel(kernels[0].reshape(shape), "tigo")], "gi", "go"
    else:
        inputs, multiplier = kernels[0].shape[-2:]
        depthwise = kernels[0].reshape(-1, inputs, multiplier)
        parts, reads, writes = [Kernel(depthwise, "tgo")], "g", "go"
        if type(layer) in SEPARABLE:
            pointwise = kernels[1].reshape(inputs, multiplier, -1)
            parts, writes = [Kernel(depthwise, "tgm"), Kernel(pointwise, "gmo")], "o"
    sizes = [parts[-1].values.shape[parts[-1].labels.index(label)] for label in writes]
    bias = np.zeros(sizes) if layer.bias is None else _values(layer.bias).reshape(sizes)
    return Linear(tuple(parts), bias, writes, {axis: reads}, {axis: writes}, pads)


def _einsum(node: _Node) -> Linear:
    layer = node.layer
    read, kernel, written = _terms(node)
    values = _values(layer.kernel)
    old = "".join(label for label in written if label in (layer.bias_axes or ""))
    labels = "".join(label for label in written if label in kernel or label in old)
    sizes = {**dict(zip(written, node.written, strict=True)), **dict(zip(kernel, values.shape, strict=True))}
    bias = np.zeros([sizes[label] for label in labels])
    if layer.bias is not None:
        values_of_bias = _values(layer.bias).reshape([sizes[label] for label in old])
        bias = np.einsum(f"{old},{labels}->{labels}", values_of_bias, np.ones_like(bias))
    # A sum over what the kernel does not have would count the offset as often as that is long.
    exact = set(read) <= set(written) | set(kernel)
    reads = {axis: label for axis, label in enumerate(read) if label in kernel and exact}
    writes = {axis: label for axis, label in enumerate(written) if label in kernel}
    return Linear((Kernel(values, kernel),), bias, labels, reads, writes)


def _terms(node: _Node) -> list[str]:
    """The labels of the input, the kernel and the output, with letters for the dots."""
    equation = node.layer.equation.replace(" ", "")
    read, kernel, written = equation.replace("->", ",").split(",")
    free = [letter for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ" if letter not in equation]
    dots = "".join(free[: len(node.read) - len(read.replace("...", ""))])
    return [term.replace("...", dots) for term in (read, kernel, written)]


def _kernels(layer: Any) -> list[Any]:
    if type(layer) in SEPARABLE:
        return [layer.depthwise_kernel, layer.pointwise_kernel]
    return [layer.kernel]


def _hidden(node: _Node, path: str) -> Iterator[Any]:
    """The normalizers that a layer keeps inside, where nobody can see what stands round them."""
    if has_graph(node.layer) or isinstance(node.layer, keras.layers.BatchNormalization):
        return
    seen: set[int] = set()

    def walk(value: Any) -> Iterator[Any]:
        if id(value) in seen:
            return
        seen.add(id(value))
        if isinstance(value, keras.layers.BatchNormalization):
            yield value
        elif isinstance(value, keras.Layer):
            yield from walk(vars(value))
        elif isinstance(value, dict):
            yield from walk(list(value.values()))
        elif isinstance(value, list | tuple):
            for item in value:
                yield from walk(item)

    for layer in walk(node.layer):
        reason = f"it stands in {node.name} ({_kind(node.layer)}), whose graph is not known"
        yield Left(f"{path}{node.name}/{layer.name}", reason)


def _kernel_uses(node: _Node) -> int:
    layer = node.layer
    if type(layer) is keras.layers.EinsumDense:
        read, kernel, written = _terms(node)
        sizes = dict(zip(read + written, node.read + node.written, strict=True))
        outside = [size for label, size in sizes.items() if label not in kernel and label != read[0]]
        return math.prod(layer.kernel.shape) * _product(outside)
    shape = list(node.read if type(layer) in TRANSPOSED else node.written)
    del shape[1 if getattr(layer, "data_format", None) == "channels_first" else -1]
    return sum(math.prod(variable.shape) for variable in _kernels(layer)) * _product(shape[1:])


def _product(sizes: Any) -> int:
    return math.prod(1 if size is None else size for size in sizes)


# How the copy is made.


def _rebuilt(model: Any, linears: dict[int, Linear], gone: set[int], dtype: str | None = None) -> Any:
    """A copy with other weights for some layers, without some, or in another type."""
    copies: dict[int, tuple[Any, Any]] = {}
    places: set[int] = set()

    def copied(layer: Any) -> Any:
        if id(layer) not in copies:
            make = rebuilt if has_graph(layer) else single
            copies[id(layer)] = layer, make(layer)
            if id(layer) in gone:
                places.add(id(copies[id(layer)][1]))
        return copies[id(layer)][1]

    def rebuilt(part: Any) -> Any:
        if isinstance(part, keras.Sequential):
            return keras.models.clone_model(part, clone_function=copied)
        return keras.models.clone_model(part, clone_function=copied, call_function=called)

    def called(layer: Any, *arguments: Any, **options: Any) -> Any:
        # What takes the place of a normalizer has none of its options, a mask among them.
        return layer(arguments[0]) if id(layer) in places else layer(*arguments, **options)

    def single(layer: Any) -> Any:
        if id(layer) in gone:
            config = {name: layer.get_config()[name] for name in ("name", "dtype")}
            activation = getattr(layer, "activation", None)
            if not activation_name(activation):
                return keras.layers.Identity.from_config(config)
            return keras.layers.Activation.from_config(config | {"activation": activation})
        config = layer.get_config()
        if id(layer) in linears:
            config |= _bias_config(layer, linears[id(layer)])
        if not dtype:
            return type(layer).from_config(config)
        kind, config = _that_obeys(layer, config)
        return kind.from_config(_in_type(config, dtype))

    result = rebuilt(model)
    for old, new in copies.values():
        if id(old) in linears:
            _write(new, linears[id(old)])
        elif isinstance(old, keras.Layer) and id(old) not in gone and not has_graph(old):
            new.set_weights(old.get_weights())
            if hasattr(new, "finalize_state"):  # Normalization keeps what it computes beside its weights.
                new.finalize_state()
    return result


def _bias_config(layer: Any, linear: Linear) -> dict[str, Any]:
    if layer.bias is None and not linear.bias.any():
        return {}
    return {"bias_axes": linear.bias_labels} if type(layer) is keras.layers.EinsumDense else {"use_bias": True}


def _write(layer: Any, linear: Linear) -> None:
    for variable, kernel in zip(_kernels(layer), linear.kernels, strict=True):
        variable.assign(kernel.values.reshape(variable.shape))
    if layer.bias is not None:
        layer.bias.assign(linear.bias.reshape(layer.bias.shape))


def _that_obeys(layer: Any, config: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """A layer that does the same, and in float64 if it is told to.

    Under a float64 policy Keras's normalizer computes in float32 on JAX and torch, and its dense layer on torch.
    """
    if type(layer) is keras.layers.BatchNormalization:
        return BatchNormalization, config
    if type(layer) is keras.layers.Dense and not layer.quantization_mode and not layer.lora_enabled:
        kept = {name: config[name] for name in ("name", "activation", "dtype")}
        axes = "y" if layer.use_bias else None
        return keras.layers.EinsumDense, kept | {
            "equation": "...x,xy->...y",
            "output_shape": layer.units,
            "bias_axes": axes,
        }
    return type(layer), config


def _in_type(config: Any, dtype: str) -> Any:
    """A configuration in which every floating point policy is `dtype`.

    All weights start as zeros: they are assigned later, and JAX takes a second to compile a random one in float64.
    """
    if isinstance(config, list | tuple):
        return type(config)(_in_type(item, dtype) for item in config)
    if not isinstance(config, dict):
        return copy.copy(config)
    result = {key: "zeros" if key.endswith("_initializer") else _in_type(value, dtype) for key, value in config.items()}
    if "dtype" in result and "batch_shape" not in result and _is_float(config["dtype"]):
        result["dtype"] = dtype
    return result


def _is_float(policy: Any) -> bool:
    name = policy["config"].get("name") if isinstance(policy, dict) else policy
    return isinstance(name, str) and "float" in name


def _bits(name: str) -> int:
    return int("".join(character for character in name if character.isdigit()))
