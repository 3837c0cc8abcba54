# SPDX-License-Identifier: Apache-2.0
"""What a torch module says of its normalizers."""

from __future__ import annotations

import copy
import sys
from collections import Counter
from collections.abc import Hashable, Iterator
from typing import Any

import numpy as np

from evenkeel.checkpoints.names import KEPT
from evenkeel.doctor.evidence import Decay, Evidence, Neighbour, Normalizer, Phase, Place, Structure, Unseen
from evenkeel.doctor.neighbours import Call, neighbour, places
from evenkeel.doctor.options import Options
from evenkeel.errors import ArgumentError
from evenkeel.surgery.pinned import is_pinned
from evenkeel.surgery.walk import is_ours_of_torch, torch_normalizers

KIND = "torch module"
NO_DATA = Unseen("the statistics of batches", "no data was given", "evenkeel.diagnose(model, data)")
MEASURES = ("size", "dim", "numel", "getattr")
"""What a forward asks of a tensor that gives none."""
PASSING = ("Identity", "clone", "contiguous", "float", "to")
LINEAR = ("linear", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "matmul")
"""Functions, for whose bias nobody looks."""


def recognises(subject: Any) -> bool:
    module = getattr(getattr(sys.modules.get("torch"), "nn", None), "Module", None)
    return module is not None and isinstance(subject, module)


def evidence(subject: Any, options: Options) -> Iterator[Evidence]:
    wanted = set(map(id, torch_normalizers(subject)))
    layers = {name or type(part).__name__: part for name, part in subject.named_modules() if id(part) in wanted}
    if not layers:
        yield from _structure(subject, layers)  # a phase may be fixed in forward
        return
    if options.optimizer is not None and not hasattr(options.optimizer, "param_groups"):
        raise ArgumentError(
            f"optimizer={options.optimizer!r} is no torch optimizer; give the one that trained the module"
        )
    steps = _steps(options.optimizer) if options.steps is None else options.steps
    alone = any(layer is subject for layer in layers.values())  # and stands beside nothing
    structure = [] if alone else list(_structure(subject, layers))
    calls = {place.name: place.calls for item in structure if isinstance(item, Structure) for place in item.places}
    normalizers = {
        name: _normalizer(name, layer, subject, steps, options.batches_per_step * calls.get(name, 1))
        for name, layer in layers.items()
    }
    yield from normalizers.values()
    for name, layer in layers.items():
        trains = _trains(layer) is not False
        if layer.running_mean is None:
            yield Phase(name, "inference", True, "track_running_stats=False", trains)
        elif layer.training and not subject.training and not normalizers[name].frozen:
            yield Phase(name, "inference", True, "in training mode inside a module in eval mode", trains)
    yield from structure
    yield from _decays(layers, options.optimizer)
    if options.data is None:
        yield NO_DATA
    else:
        from evenkeel.doctor import observing

        yield from observing.evidence(subject, options, normalizers)


def _steps(optimizer: Any) -> int | None:
    """How many it has done, of an optimizer that counts."""
    counts = [int(state["step"]) for state in getattr(optimizer, "state", {}).values() if "step" in state]
    return max(counts, default=None)


def _normalizer(name: str, layer: Any, module: Any, steps: int | None, batches: int) -> Normalizer:
    ours, tracked = is_ours_of_torch(layer), layer.running_mean is not None
    told = is_pinned(layer) or (ours and layer.frozen)
    frozen: bool | str | None = None
    if told or (module.training and not layer.training):
        frozen = True if _trains(layer) else "all"
    elif module.training:
        frozen = False
    counted = layer.num_batches_tracked if tracked else None
    return Normalizer(
        name,
        _values(layer.running_mean),
        _values(layer.running_var),
        _values(layer.weight),
        _values(layer.bias),
        others={part: values for part in KEPT if (values := _values(getattr(layer, part, None))) is not None},
        library="torch",
        momentum=None if layer.momentum is None else 1 - layer.momentum,
        epsilon=layer.eps,
        average="cumulative" if layer.momentum is None else layer.average if ours else "exponential",
        bessel_correction=layer.bessel_correction if ours else True,
        frozen=frozen,
        trainable=_trains(layer),
        # A module in eval mode may be on its way to train.
        moves=False if frozen or not tracked else True if module.training else None,
        updates=None if counted is None else int(counted),
        steps=steps,
        batches_per_step=batches,
        virtual_batch_size=layer.virtual_batch_size if ours else None,
        replicas=_replicas(layer),
        raises=not ours,
    )


def _replicas(layer: Any) -> int:
    """How many processes its statistics are of, where these run."""
    import torch

    together = layer.synchronized if is_ours_of_torch(layer) else isinstance(layer, torch.nn.SyncBatchNorm)
    running = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size(layer.process_group) if together and running else 1


def _trains(layer: Any) -> bool | None:
    learned = [part for part in (layer.weight, layer.bias) if part is not None]
    return any(part.requires_grad for part in learned) if learned else None


def _values(tensor: Any) -> np.ndarray | None:
    """A copy, or it would change with the tensor."""
    import torch

    if tensor is None:
        return None
    tensor = tensor.detach().cpu()
    if tensor.dtype != torch.bfloat16:
        return tensor.numpy().copy()
    import ml_dtypes  # bfloat16 is nothing to NumPy itself

    return tensor.float().numpy().astype(ml_dtypes.bfloat16)


# How the modules follow each other.


def _structure(module: Any, layers: dict[str, Any]) -> Iterator[Evidence]:
    from evenkeel.surgery.fold.torch import traced

    try:
        # Of a copy, for a forward may leave something behind in its module.
        copied = copy.deepcopy(module).eval()
        nodes = list(traced(copied).nodes)
    except Exception as error:
        yield Unseen(
            "how the modules follow each other, and phases fixed in forward",
            " ".join(str(error.__cause__ or error).split()),
            "diagnose the parts that do not branch on values",
        )
        return
    constants = _constants(nodes)
    yield from _phases(nodes, constants)
    modules = dict(copied.named_modules(remove_duplicate=False))
    names = {id(modules[name]): name for name in layers if name in modules}
    times = Counter(id(modules[node.target]) for node in nodes if node.op == "call_module")
    (output,) = (node for node in nodes if node.op == "output")
    calls: dict[Hashable, Call] = {
        key: call
        for node in nodes
        if node not in {output, *constants}
        for key, call in _calls(node, modules, names, times, constants)
    }
    found = places(calls, [source for source in output.all_input_nodes if source not in constants])
    yield Structure(tuple({place.name: place for place in found}.values()))


def _constants(nodes: list[Any]) -> set[Any]:
    """What is not data: parameters, what is asked of a tensor's shape, and what comes of these."""
    found: set[Any] = set()
    for node in nodes:
        asked = node.op in ("call_method", "call_function") and _word(node) in MEASURES
        of_constants = node.op not in ("placeholder", "output") and found.issuperset(node.all_input_nodes)
        if node.op == "get_attr" or asked or of_constants:
            found.add(node)
    return found


def _word(node: Any) -> str:
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")


def _calls(
    node: Any, modules: Any, names: dict[int, str], times: Counter[int], constants: set[Any]
) -> Iterator[tuple[Hashable, Call]]:
    """The call of a node; two of a normalizer that adds a residual to what it has normalized."""
    from evenkeel.surgery.fold.torch import activation_name, normalized

    module: Any = modules[node.target] if node.op == "call_module" else None
    if id(module) not in names:
        yield node, _call(node, modules, constants)
        return
    inputs, added = (tuple({source} - {None} - constants) for source in normalized(node))
    step = neighbour(node.target, type(module).__name__)
    activation = activation_name(module.activation) if is_ours_of_torch(module) else ""
    last = (neighbour(node.target, activation),) if activation else ()
    scale, times_called = module.weight is not None, times[id(module)]
    place = Place(names[id(module)], scale=scale, calls=times_called, activation=bool(last))
    if added:
        yield (node, "normalized"), Call(inputs, (step,), place)
        yield node, Call(((node, "normalized"), *added), (Neighbour(node.name, "junction"), *last))
    else:
        yield node, Call(inputs, (step, *last), place)


def _call(node: Any, modules: Any, constants: set[Any]) -> Call:
    inputs = tuple(source for source in node.all_input_nodes if source not in constants)
    if node.op == "placeholder":
        return Call(inputs)
    if len(inputs) > 1:
        return Call(inputs, (Neighbour(node.name, "junction"),))
    if node.op != "call_module":
        word = _word(node)
        step = Neighbour(node.name, "linear") if word in LINEAR else neighbour(node.name, word)
        return Call(inputs, () if word in PASSING else (step,))
    module = modules[node.target]
    step = _layer(node.target, module)
    passes = type(module).__name__ in PASSING or getattr(module, "p", None) == 0
    return Call(inputs, () if passes else (step,))


def _layer(name: str, module: Any) -> Neighbour:
    import torch

    from evenkeel.surgery.fold.torch import LINEAR as KINDS

    kinds: tuple[Any, ...] = tuple(getattr(torch.nn, kind) for kind in KINDS)
    if isinstance(module, kinds):
        return Neighbour(name, "linear", bias=module.bias is not None)
    return neighbour(name, type(module).__name__)


def _phases(nodes: list[Any], constants: set[Any]) -> Iterator[Phase]:
    """Calls of the function with a phase that does not follow the module."""
    import torch

    for node in nodes:
        if node.op == "call_function" and node.target is torch.nn.functional.batch_norm:
            given = dict(zip(("x", "mean", "variance", "weight", "bias", "training"), node.args, strict=False))
            given |= node.kwargs
            # Some layers standardize their kernels with it, which is no phase.
            if given.get("training") is True and node.all_input_nodes[0] not in constants:
                mean = given.get("mean", given.get("running_mean"))
                name = str(getattr(mean, "target", "")).rpartition(".")[0] or node.name
                yield Phase(name, "inference", True, "torch.nn.functional.batch_norm with training=True")


# What pulls at gamma and beta.


def _decays(layers: dict[str, Any], optimizer: Any) -> Iterator[Decay]:
    learned = {
        id(part): f"{name}.{role}"
        for name, layer in layers.items()
        for role, part in layer.named_parameters(recurse=False)
        if part.requires_grad
    }
    for group in getattr(optimizer, "param_groups", ()):
        if group.get("weight_decay"):
            decayed = tuple(learned[id(part)] for part in group["params"] if id(part) in learned)
            yield Decay(type(optimizer).__name__, float(group["weight_decay"]), decayed)
