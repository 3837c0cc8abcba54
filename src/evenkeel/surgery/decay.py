# SPDX-License-Identifier: Apache-2.0
"""Which weights weight decay should skip."""

from __future__ import annotations

import sys
from typing import Any

from evenkeel import arguments
from evenkeel.errors import ArgumentError
from evenkeel.surgery.walk import is_torch_normalizer, parts

NAMES = frozenset({"gamma", "beta", "bias", "scale"})
"""Of variables that are no weights of a sum, in Keras's words and in Flax's."""
OTHER_NORMS = ("InstanceNorm1d", "InstanceNorm2d", "InstanceNorm3d", "LayerNorm", "GroupNorm", "RMSNorm")
"""Classes of torch.nn that are no batch normalization."""
UNBUILT = "model {name} has no weights yet; build it, or call it on data, before"


def decay_exclusions(model: Any, form: str | None = None) -> Any:
    """What weight decay should skip: scales and offsets of normalizers of any kind, and biases.

    Before a normalizer, decay of a kernel only changes its learning rate; decay of gamma, beta or a bias pulls the
    outputs towards zero, and is no regularization.

    Args:
        model: a Keras model or layer; a torch module; or parameters in a tree of JAX, as Flax and optax have them.
        form: "variables" or "mask" for Keras; None is the first.

    Returns:
        Keras: the list of variables, for `optimizer.exclude_from_weight_decay(var_list=...)`, called before `compile`
        has anything built; as "mask" True for each of `model.trainable_variables` that decays, in a list.
        torch: two groups for an optimizer, the second with `weight_decay=0`; all other options are the optimizer's.
        JAX: a tree of bools of the same structure, True where decay applies: `optax.adamw(..., mask=...)` takes it,
        or this function.

    Raises:
        ArgumentError: a Keras model without weights yet, or a form that it does not come in.

    Example:
        >>> import keras
        >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2), keras.layers.BatchNormalization()])
        >>> [variable.name for variable in decay_exclusions(model)]
        ['bias', 'gamma', 'beta']
        >>> decay_exclusions(model, form="mask")
        [True, False, False, False]
    """
    keras, torch = sys.modules.get("keras"), sys.modules.get("torch")
    if keras is not None and isinstance(model, keras.layers.Layer):
        return _of_keras(model, arguments.choice("form", form or "variables", ["variables", "mask"]))
    if form is not None:
        raise ArgumentError(f"form={form!r} is for Keras models, and this is a {type(model).__name__}; leave it out")
    return _groups(model, torch) if torch is not None and isinstance(model, torch.nn.Module) else _mask(model)


def _of_keras(model: Any, form: str) -> list[Any]:
    if not model.weights:
        raise ArgumentError(UNBUILT.format(name=model.name))
    if form == "mask":
        return [variable.name not in NAMES for variable in model.trainable_variables]
    return [variable for variable in model.weights if variable.name in NAMES]


def _groups(model: Any, torch: Any) -> list[dict[str, Any]]:
    others = tuple(getattr(torch.nn, name) for name in OTHER_NORMS)
    skipped = {
        parameter
        for module in parts(model)
        for name, parameter in module.named_parameters(recurse=False)
        if "bias" in name or is_torch_normalizer(module) or isinstance(module, others)
    }
    decayed = [parameter for parameter in model.parameters() if parameter not in skipped]
    kept = [parameter for parameter in model.parameters() if parameter in skipped]
    return [{"params": decayed}, {"params": kept, "weight_decay": 0.0}]


def _mask(parameters: Any) -> Any:
    import jax

    def decays(path: Any, _: Any) -> bool:
        # flax.nnx ends a path with the attribute of its variable.
        names = [name for key in path if (name := getattr(key, "key", getattr(key, "name", None))) != "value"]
        return not names or names[-1] not in NAMES

    return jax.tree_util.tree_map_with_path(decays, parameters)
