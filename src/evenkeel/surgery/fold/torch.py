# SPDX-License-Identifier: Apache-2.0
"""What a torch module is made of, and how a copy of it is made in which normalizers are folded."""

from __future__ import annotations

import contextlib
import copy
import statistics
import sys
import time
from collections import Counter
from typing import Any

import numpy as np

from evenkeel.errors import InputError
from evenkeel.surgery.fold.algebra import Kernel, Linear
from evenkeel.surgery.fold.plan import Call, Normalizer, Plan, plan
from evenkeel.surgery.fold.report import Left
from evenkeel.surgery.walk import OUR_TORCH_NORMALIZERS, TORCH_NORMALIZERS, is_ours_of_torch, is_torch_normalizer

CONVOLUTIONS = ("Conv1d", "Conv2d", "Conv3d")
TRANSPOSED = ("ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d")
LINEAR = (*CONVOLUTIONS, *TRANSPOSED, "Linear")
PASSING = ("Identity", "Dropout", "Dropout1d", "Dropout2d", "Dropout3d", "AlphaDropout", "FeatureAlphaDropout")


def check(model: Any, data: Any) -> None:
    """Raise where there is no data.

    Raises:
        InputError: no data; a module does not say which shapes it takes.
    """
    if data is None:
        raise InputError(f"data is missing, and {type(model).__name__} does not say what it takes; give fold a batch")


def dtype(model: Any) -> str:
    """The type of the first floating point parameter."""
    return next((_name(value.dtype) for value in model.parameters() if value.is_floating_point()), "float32")


def copied(model: Any, dtype: str) -> Any:
    """The same module in inference mode, in `dtype`."""
    import torch

    return copy.deepcopy(model).eval().to(getattr(torch, dtype))


def folded(model: Any, data: Any) -> tuple[Any, Plan]:
    """A copy of `model`, in inference mode, with `Identity` for the normalizers that can be folded, and what was done.

    Raises:
        InputError: `torch.fx` cannot trace it.
    """
    import torch

    result = copy.deepcopy(model).eval()
    graph = traced(result)
    modules = dict(result.named_modules())
    calls = Counter(node.target for node in graph.nodes if node.op == "call_module")
    users = Counter(id(value) for module in modules.values() for value in module.parameters(recurse=False))
    read = {node.target.rpartition(".")[0] for node in graph.nodes if node.op == "get_attr"}
    ndims = {module: output.ndim for module, _, output in _seen(result, data)}
    described: dict[Any, Call] = {}
    left = []
    for node in graph.nodes:
        described[node] = _call(node, modules, calls, users, read, ndims)
        if node.op == "call_function" and node.target in (torch.nn.functional.batch_norm, torch.batch_norm):
            left.append(Left(node.name, "it is called as a function, not as a module"))
    (output,) = (node for node in graph.nodes if node.op == "output")
    found = plan(described, output.all_input_nodes)
    for node, linear in found.linears.items():
        _write(modules[node.target], linear)
    for node in found.gone:
        result.set_submodule(node.target, _rest(node, modules[node.target]))
    never = set(modules) - set(calls)
    for name in sorted(never):
        if is_torch_normalizer(modules[name]) and not any(modules[name] is modules[other] for other in calls):
            left.append(Left(name, "the module is not called in what torch.fx traced"))
    return result, found._replace(left=found.left + left)


def wide() -> contextlib.AbstractContextManager[Any]:
    """Inside it, float64 is float64."""
    return contextlib.nullcontext()


def narrow_inside(model: Any, data: Any) -> bool:
    """Whether an operation of a float64 model computes in float32; torch's do not."""
    return False


def random_data(model: Any, like: Any) -> Any:
    """Normally distributed where `like` has floating point numbers, and `like` itself where it does not.

    Args:
        model: not needed.
        like: a batch, or a tuple of several arguments.
    """
    import torch

    generator = torch.Generator().manual_seed(0)
    return tuple(
        torch.randn(x.shape, generator=generator).to(x) if torch.is_tensor(x) and x.is_floating_point() else x
        for x in _arguments(like)
    )


def outputs(model: Any, data: Any) -> list[np.ndarray]:
    """What the module gives at inference, in float64."""
    import torch

    kind = getattr(torch, dtype(model))
    data = [x.to(kind) if torch.is_tensor(x) and x.is_floating_point() else x for x in _arguments(data)]
    with _inference(model):
        results = _tensors(model(*data))
    return [result.detach().cpu().double().numpy() for result in results]


def parameters(model: Any) -> int:
    """Of parameters and statistics; counters of batches are left out."""
    return sum(value.numel() for value in (*model.parameters(), *model.buffers()) if value.is_floating_point())


def multiply_adds(model: Any, data: Any) -> int:
    """Of one example, in convolutions, dense layers and normalizers."""
    total = 0
    for module, x, output in _seen(model, data):
        if is_torch_normalizer(module):
            total += output.numel()
        elif _kind(module) in LINEAR:
            used = x if _kind(module) in TRANSPOSED else output
            channels = used.shape[-1] if _kind(module) == "Linear" else used.shape[1]
            total += module.weight.numel() * (used.numel() // channels)
    return total // len(_arguments(data)[0])


def seconds(model: Any, data: Any, runs: int) -> float:
    """The median of so many runs, after one that does not count."""
    times = []
    with _inference(model):
        for _ in range(runs + 1):
            start = time.perf_counter()
            for result in _tensors(model(*_arguments(data))):
                result.cpu()  # a device may still be at work
            times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


@contextlib.contextmanager
def _inference(model: Any) -> Any:
    """Every module in inference mode, and as it was afterwards."""
    import torch

    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _seen(model: Any, data: Any) -> list[Any]:
    """Each call of a linear layer or a normalizer: the module, its input and its output."""
    calls: list[Any] = []
    modules = [module for module in model.modules() if is_torch_normalizer(module) or _kind(module) in LINEAR]

    def note(module: Any, arguments: tuple[Any, ...], options: dict[str, Any], output: Any) -> None:
        calls.append((module, arguments[0] if arguments else options["input"], output))

    hooks = [module.register_forward_hook(note, with_kwargs=True) for module in modules]
    try:
        outputs(model, data)
    finally:
        for hook in hooks:
            hook.remove()
    return calls


def _arguments(data: Any) -> tuple[Any, ...]:
    return tuple(data) if isinstance(data, tuple | list) else (data,)


def _tensors(value: Any) -> list[Any]:
    import torch

    if torch.is_tensor(value):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [tensor for item in value for tensor in _tensors(item)] if isinstance(value, list | tuple) else []


def _name(dtype: Any) -> str:
    return str(dtype).rpartition(".")[2]


# What the modules do.


def traced(model: Any) -> Any:
    import torch

    class Tracer(torch.fx.Tracer):
        def is_leaf_module(self, module: Any, name: str) -> bool:
            return is_torch_normalizer(module) or super().is_leaf_module(module, name)

    try:
        return Tracer().trace(model)
    except Exception as error:
        raise InputError(
            f"torch.fx cannot trace {type(model).__name__}: {error}; fold the parts that do not branch on values"
        ) from error


def _kind(module: Any) -> str:
    """The name of a class of torch itself or of ours, and empty for every other, which may do anything."""
    import torch

    name = type(module).__name__
    owners = (torch.nn, sys.modules.get("evenkeel.layers.torch"))
    return name if type(module) in [getattr(owner, name, None) for owner in owners] else ""


def _call(node: Any, modules: Any, calls: Any, users: Any, read: set[str], ndims: Any) -> Call:
    import torch

    inputs = tuple(node.all_input_nodes)
    if node.op != "call_module":
        kind = {"placeholder": "an input", "output": "the output"}.get(node.op, "a function")
        drops = node.op == "call_function" and node.target is torch.nn.functional.dropout
        trains = node.kwargs.get("training", node.args[2] if len(node.args) > 2 else True)
        return Call(node.name, kind, inputs, "passes" if drops and trains is False else "other")
    module = modules[node.target]
    call = Call(node.target, type(module).__name__, inputs)
    kind, refusal = _kind(module), ""
    if calls[node.target] > 1:
        refusal = f"is shared: it is called {calls[node.target]} times"
    elif node.target in read or any(users[id(value)] > 1 for value in module.parameters(recurse=False)):
        refusal = "shares its weights with others"
    if is_torch_normalizer(module):
        if kind not in (*TORCH_NORMALIZERS, *OUR_TORCH_NORMALIZERS):
            refusal = f"is a {type(module).__name__}, which may compute something else than its parent class"
        elif module.running_mean is None:
            refusal = "has no moving statistics: track_running_stats is False"
        given, residual = normalized(node)
        inputs = (given, *(source for source in inputs if source is not given), *[residual] * (residual is given))
        part = _normalizer(module, ndims[module], residual)
        return call._replace(inputs=inputs, part=part, refusal=refusal)
    if len(inputs) == 1 and kind in PASSING:
        return call._replace(part="passes")
    if len(inputs) == 1 and kind in LINEAR:
        if "weight" not in dict(module.named_parameters(recurse=False)):
            refusal = "computes its weight from others; make it a plain parameter first"
        return call._replace(part=_linear(module, ndims[module]), refusal=refusal)
    return call


def _values(tensor: Any) -> Any:
    return None if tensor is None else tensor.detach().cpu().double().numpy()


def normalized(node: Any) -> tuple[Any, Any]:
    """The node whose result a normalizer normalizes, and that whose result it adds, if there is one."""
    given = dict(zip(("input", "residual"), node.args, strict=False)) | node.kwargs
    return given["input"], given.get("residual")


def activation_name(activation: Any) -> str:
    """Of one of ours, for people; empty for none."""
    if activation is None or isinstance(activation, str):
        return activation or ""
    return getattr(activation, "__name__", type(activation).__name__)


def _rest(node: Any, module: Any) -> Any:
    """What does the work of a normalizer that was folded, but for the normalization."""
    import torch

    from evenkeel.surgery.fold.rest import Rest

    activation = module.activation if is_ours_of_torch(module) else None
    plain = {None: torch.nn.Identity, "relu": torch.nn.ReLU, "leaky_relu": torch.nn.LeakyReLU, "elu": torch.nn.ELU}
    known = activation is None or isinstance(activation, str)
    if known and len(node.args) + len(node.kwargs) == 1:
        return plain[activation]()
    return Rest(plain[activation]() if known else activation)


def _normalizer(module: Any, ndim: int, residual: Any) -> Normalizer:
    axis, ending = 1, []
    if is_ours_of_torch(module):
        ending = ["a sum" if residual is not None else "", activation_name(module.activation)]
        axis = module.axis % ndim
    mean, variance, gamma, beta = map(_values, (module.running_mean, module.running_var, module.weight, module.bias))
    if mean is None:
        mean, variance = np.zeros(module.num_features), np.ones(module.num_features)
    return Normalizer.of(axis, mean, variance, gamma, beta, module.eps, " and ".join(filter(None, ending)))


def _linear(module: Any, ndim: int) -> Linear:
    weight, kind = _values(module.weight), _kind(module)
    bias = np.zeros(module.out_features if kind == "Linear" else module.out_channels)
    if module.bias is not None:
        bias = _values(module.bias)
    if kind == "Linear":
        return Linear((Kernel(weight, "oi"),), bias, "o", {ndim - 1: "i"}, {ndim - 1: "o"})
    groups, axis = module.groups, ndim - 1 - len(module.kernel_size)
    if kind in TRANSPOSED:
        shape = (groups, module.in_channels // groups, module.out_channels // groups, -1)
        kernel = Kernel(weight.reshape(shape), "giot")
        pads = set(module.kernel_size) != {1} or set(module.stride) != {1}
    else:
        shape = (groups, module.out_channels // groups, module.in_channels // groups, -1)
        kernel = Kernel(weight.reshape(shape), "goit")
        one_by_one = set(module.kernel_size) == {1} and module.padding in ("same", (0,) * len(module.kernel_size))
        none = module.padding == "valid" or set(module.padding) == {0}
        pads = module.padding_mode == "zeros" and not one_by_one and not none
    return Linear((kernel,), bias.reshape(groups, -1), "go", {axis: "gi"}, {axis: "go"}, pads)


def _write(module: Any, linear: Linear) -> None:
    import torch

    weight, (kernel,) = module.weight, linear.kernels
    with torch.no_grad():
        weight.copy_(torch.from_numpy(np.ascontiguousarray(kernel.values)).reshape(weight.shape))
        bias = torch.from_numpy(linear.bias.ravel())
        if module.bias is not None:
            module.bias.copy_(bias)
        elif linear.bias.any():
            module.bias = torch.nn.Parameter(bias.to(weight), requires_grad=weight.requires_grad)
