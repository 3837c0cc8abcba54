# SPDX-License-Identifier: Apache-2.0
"""How the statistics of a model are kept as they are, whatever trains it."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

from evenkeel.errors import ArgumentError
from evenkeel.surgery.pinned import pin, unpin
from evenkeel.surgery.walk import is_ours_of_torch, keras_normalizers, parts, torch_normalizers

NONE = "model has no batch normalization; give one that has, or the part of yours that does"
THEIRS = """\
{names} cannot be frozen: keras.layers.BatchNormalization has nothing to remember it by. Make them evenkeel's first:
    model = evenkeel.upgrade(model)
    evenkeel.freeze(model)"""
UNTRACKED = "{kind} keeps no running statistics to normalize with; give modules with track_running_stats=True"
AVERAGED = (
    "the optimizer of {name} averages weights (use_ema=True) and knows gamma and beta already; freeze with affine=True "
    "before it is compiled, or compile it again without use_ema first"
)


def freeze(model: Any, affine: bool = False) -> None:
    """Normalize with the moving statistics and keep them, in training too, until `unfreeze`.

    Neither `fit`, `train()` nor `trainable = True`, of the model or of a parent, changes a moving statistic then, and
    it does not matter whether `compile` comes before or after. A model that was compiled and trained obeys at once,
    with its optimizer, and so do all models that contain it. Weights learn on: gamma and beta too, unless `affine`.

    A saved Keras model is frozen when it is loaded. A `state_dict` of torch has no place for it: freeze again.

    Args:
        model: a Keras model or layer with `evenkeel.BatchNormalization`, or a `torch.nn.Module` with BatchNorm1d to
            3d or SyncBatchNorm of torch, or modules of `evenkeel.torch`. It is changed in place.
        affine: keep gamma and beta too. An optimizer that is compiled meanwhile does not know them; compile again
            after `unfreeze`.

    Raises:
        ArgumentError: nothing to freeze; Keras's own layers, which need `upgrade` first; modules without running
            statistics. Nothing is changed then.

    Example:
        >>> import evenkeel, keras
        >>> model = keras.Sequential([keras.Input((1,)), evenkeel.BatchNormalization()])
        >>> freeze(model)
        >>> _ = model(np.array([[1.0], [3.0]], "float32"), training=True)
        >>> keras.ops.convert_to_numpy(model.layers[0].moving_mean.value)
        array([0.], dtype=float32)
    """
    layers, modules = keras_normalizers(model), torch_normalizers(model)
    if not layers and not modules:
        raise ArgumentError(NONE)
    if theirs := [layer.name for layer in layers if not hasattr(layer, "frozen")]:
        raise ArgumentError(THEIRS.format(names=", ".join(theirs)))
    for module in modules:
        if module.running_mean is None:
            raise ArgumentError(UNTRACKED.format(kind=module))
    _set(layers, "all" if affine else True)
    for module in modules:
        _freeze_module(module, affine)


def unfreeze(model: Any) -> None:
    """Let the statistics follow the data again: the model trains as one that was never frozen.

    Momentum, flags and parameters are what they were; a torch module is in the mode that was last asked of it.

    Example:
        >>> import evenkeel, keras
        >>> model = keras.Sequential([keras.Input((1,)), evenkeel.BatchNormalization(frozen="all")])
        >>> unfreeze(model)
        >>> [weight.name for weight in model.trainable_weights]
        ['gamma', 'beta']
    """
    _set([layer for layer in keras_normalizers(model) if getattr(layer, "frozen", False)], False)
    for module in torch_normalizers(model):
        unpin(module)
        if is_ours_of_torch(module):
            module.frozen = False


def _freeze_module(module: Any, affine: bool) -> None:
    if not is_ours_of_torch(module):
        pin(module, affine=affine)
        return
    unpin(module)  # where it was torch's when it was frozen
    module.frozen = "all" if affine else True
    if affine:
        for parameter in module.parameters(recurse=False):
            parameter.grad = None  # or the next step of an optimizer would still apply it


def _set(layers: list[Any], frozen: bool | str) -> None:
    """Mark the layers, and have every model that contains one trace its steps anew.

    TensorFlow and JAX run what they have traced, where the mark of that time is a constant.
    """
    if not layers:
        return
    import keras

    on_jax = keras.config.backend() == "jax"
    models = _models_with(layers)
    built = [model for model in models if getattr(getattr(model, "optimizer", None), "built", False)]
    for model in built:
        if frozen == "all" and model.optimizer.use_ema:
            raise ArgumentError(AVERAGED.format(name=model.name))
        if on_jax:
            model.jax_state_sync()  # in the midst of fit, while its variables are those that fit goes by
            _learn_fewer(model)
    for layer in layers:
        layer.frozen = frozen
    for model in models:
        for step in ("train", "test", "predict"):
            if getattr(model, f"{step}_function", None) is not None:
                getattr(model, f"make_{step}_function")(force=True)
    if on_jax:
        import jax

        jax.clear_caches()  # the steps that people compiled themselves


def _models_with(layers: list[Any]) -> list[Any]:
    """All models of the process that have one of the layers; Keras keeps no list of parents."""
    import keras

    wanted = set(map(id, layers))
    # Not isinstance, which would wake lazy modules and proxies.
    models = [item for item in gc.get_objects() if issubclass(type(item), keras.Model)]
    return [model for model in models if not wanted.isdisjoint(map(id, parts(model)))]


def _learn_fewer(model: Any) -> None:
    """Let its optimizer take fewer variables than it was built with; in JAX, Keras's takes these or none."""
    optimizer, known = model.optimizer, list(model.trainable_variables)
    if "stateless_apply" in vars(optimizer):
        return
    whole: Callable[..., Any] = optimizer.stateless_apply

    def stateless_apply(optimizer_variables: Any, grads: Any, trainable_variables: Any) -> Any:
        import keras

        given = dict(zip(map(id, model.trainable_variables), zip(grads, trainable_variables, strict=True), strict=True))
        if not given.keys() <= set(map(id, known)):
            return whole(optimizer_variables, grads, trainable_variables)  # which says what is wrong
        nothing = {id(item): (keras.ops.zeros(item.shape, item.dtype),) * 2 for item in known}
        pairs = (nothing | given).values()  # in the order of known
        new, optimizer_variables = whole(optimizer_variables, *map(list, zip(*pairs, strict=True)))
        return [value for value, item in zip(new, known, strict=True) if id(item) in given], optimizer_variables

    optimizer.stateless_apply = stateless_apply
