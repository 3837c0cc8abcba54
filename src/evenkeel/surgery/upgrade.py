# SPDX-License-Identifier: Apache-2.0
"""How a model comes to have our batch normalization, or its library's own again."""

from __future__ import annotations

import sys
from copy import deepcopy
from typing import Any

from evenkeel import arguments
from evenkeel.errors import ArgumentError, InputError, UnknownTensorError
from evenkeel.surgery.walk import keras_normalizers, parts

ONLY_OURS = "{name} has what keras.layers.BatchNormalization lacks: {what}; leave it evenkeel's"
NO_COPY = """\
{name}, a {kind}, cannot be made from its configuration: {why}
Give its class get_config and from_config, and register what it is compiled with: \
keras.saving.register_keras_serializable"""
KERAS_INSIDE = """\
{name} is a torch module with Keras's normalizers in it, which only a Keras model can be upgraded with
Give upgrade the Keras model that they are in, and put the result in its place"""
OTHER_WEIGHTS = """\
the weights of the copy are not those of {name}:
    it has  {old}
    copied  {new}
get_config and from_config of its classes must give layers with the same weights in the same order"""


def upgrade(model: Any, to: str = "evenkeel", *, synchronized: bool | None = None) -> Any:
    """A copy of a model with our batch normalization for every one of its library: of Keras 3, or of torch.nn.

    Weights, names, configuration and trainable flags are the same, and so are the outputs. Classes that derive from the
    library's stay as they are: what they do is not known.

    A compiled Keras model is compiled alike, and its optimizer goes on where it was; only what Keras keeps in no
    configuration (`exclude_from_weight_decay`, functions of your own that are not registered) has to be said again. An
    optimizer of torch belongs to the parameters of the model that was given; `evenkeel.torch.convert` changes a module
    in place and lets it go on.

    Args:
        model: a Keras model, functional, Sequential or subclassed, however nested; subclassed ones, and layers with
            layers in them, are made anew from their configuration. Or a torch module. It is not changed.
        to: "evenkeel", or "keras" or "torch" for the way back.
        synchronized: what all of them are to be, those that are ours already too; None leaves each as it is. In torch,
            True and the way back give SyncBatchNorm.

    Raises:
        ArgumentError: for the way back, a normalizer with something that the library's does not have; all are named.
        InputError: a class that cannot be made from its configuration, or has other weights then.
        UnknownTensorError: neither a Keras 3 model nor a torch module.

    Example:
        >>> import keras
        >>> model = keras.Sequential([keras.Input((3,)), keras.layers.BatchNormalization(momentum=0.9)])
        >>> upgrade(model).layers[0]
        <BatchNormalization name=batch_normalization..., built=True>
        >>> upgrade(model).layers[0].momentum, upgrade(upgrade(model), to="keras").layers[0].momentum
        (0.9, 0.9)
    """
    keras, torch = sys.modules.get("keras"), sys.modules.get("torch")
    if keras and isinstance(model, keras.layers.Layer):
        return _keras_model(model, arguments.choice("to", to, ["evenkeel", "keras"]), synchronized)
    if torch and isinstance(model, torch.nn.Module):
        return _torch_module(model, arguments.choice("to", to, ["evenkeel", "torch"]), synchronized)
    kind = type(model)
    raise UnknownTensorError(
        f"model is a {kind.__module__}.{kind.__qualname__}; give a Keras 3 model or a torch.nn.Module"
    )


def _torch_module(model: Any, to: str, synchronized: bool | None) -> Any:
    from evenkeel.layers.torch import convert

    if keras_normalizers(model):
        raise InputError(KERAS_INSIDE.format(name=type(model).__name__))
    groups = {id(group): group for part in model.modules() if (group := getattr(part, "process_group", None))}
    return convert(deepcopy(model, groups), to, synchronized=synchronized)


def _keras_model(model: Any, to: str, synchronized: bool | None) -> Any:
    import keras

    from evenkeel.layers.keras import BatchNormalization

    old, new = keras.layers.BatchNormalization, BatchNormalization
    if to == "keras":
        old, new = new, old
    settings = {} if synchronized is None else {"synchronized": synchronized}
    layers = [
        part
        for part in parts(model)
        if type(part) is old
        or (type(part) is new and part.synchronized != settings.get("synchronized", part.synchronized))
    ]
    if to == "keras" and (
        found := [text for layer in layers if type(layer) is old and (text := _only_ours(layer, synchronized))]
    ):
        raise ArgumentError("\n".join(found))
    return _Copies(layers, new, settings).whole(model)


class _Copies:
    """The copies of the layers of a model, one for each, wherever and however often it stands.

    swapped: the layers that become one of `kind`, with these settings beside their own.
    """

    def __init__(self, swapped: list[Any], kind: Any, settings: dict[str, Any]) -> None:
        import keras

        self._swapped = frozenset(map(id, swapped))
        self._kind = kind
        self._words = frozenset(kind().get_config())
        self._settings = settings
        self._made: dict[int, Any] = {}
        x = keras.Input((1,))
        self._functional = type(keras.Model(x, x))  # which has no public name

    def whole(self, model: Any) -> Any:
        """Of the model itself, with its state."""
        copy = self.of(model)
        if model.built and not copy.built:
            copy.build_from_config(model.get_build_config())
            copy.built = True  # as Keras does when it loads a model
        for layer in parts(model):
            if (made := self._made.get(id(layer))) is not None and made.trainable != layer.trainable:
                made.trainable = layer.trainable  # parents come first, and set their children's too
        _take_over(model.name, model.variables, copy.variables)
        for old, new in zip(model.variables, copy.variables, strict=True):
            new.trainable = old.trainable
        if getattr(model, "compiled", False):
            copy.compile_from_config(model.get_compile_config())
            if model.optimizer.built:
                _take_over(model.optimizer.name, model.optimizer.variables, copy.optimizer.variables)
        return copy

    def of(self, layer: Any) -> Any:
        """Of one layer or operation, without its state."""
        if id(layer) not in self._made:
            try:
                self._made[id(layer)] = self._copy(layer)
            except (NotImplementedError, TypeError, ValueError) as error:
                if isinstance(error, InputError | ArgumentError):
                    raise
                text = NO_COPY.format(
                    name=layer.name, kind=type(layer).__name__, why=str(error).split("\n\n")[0].strip()
                )
                raise InputError(text) from error
        return self._made[id(layer)]

    def _copy(self, layer: Any) -> Any:
        import keras

        if isinstance(layer, keras.Sequential):
            return keras.models.clone_model(layer, clone_function=self.of)
        if isinstance(layer, self._functional):
            # Keras would name the copies after the tensors, not after the layers.
            names = {id(part.output): part.name for part in layer.layers if isinstance(part, keras.layers.InputLayer)}
            inputs = keras.tree.map_structure(
                lambda x: keras.Input(batch_shape=x.shape, dtype=x.dtype, name=names.get(id(x), x.name)), layer.input
            )
            return keras.models.clone_model(layer, input_tensors=inputs, clone_function=self.of)
        config = layer.get_config()
        if id(layer) in self._swapped:
            config = {name: value for name, value in config.items() if name in self._words} | self._settings
            if self._kind is keras.layers.BatchNormalization and isinstance(layer.axis, list):
                (config["axis"],) = layer.axis
            if not config.get("synchronized"):
                config.pop("axis_name", None)
            return _of_group(self._kind.from_config(config), layer)
        copy = _of_group(type(layer).from_config(config), layer)
        return self._filled(copy, layer) if isinstance(layer, keras.layers.Layer) else copy

    def _inside(self, old: Any, new: Any) -> Any:
        """What takes the place of `new`, which the copy of the parent of `old` made for itself."""
        import keras

        if id(old) in self._swapped or isinstance(old, (keras.Sequential, self._functional)):
            return self.of(old) if self._is_changed(old) else new
        return self._made.setdefault(id(old), self._filled(new, old))

    def _is_changed(self, layer: Any) -> bool:
        return not self._swapped.isdisjoint(map(id, parts(layer)))

    def _filled(self, copy: Any, layer: Any) -> Any:
        """A copy, not built yet, with the names, and the copies of the layers in its attributes, in their order."""
        copy.name = layer.name
        if not self._is_changed(layer):
            return copy
        mine, theirs = _attributes(copy), _attributes(layer)
        pairs = {id(old): (old, new) for name in theirs for old, new in _pairs(theirs[name], mine.get(name))}
        found = {key: self._inside(old, new) for key, (old, new) in pairs.items()}
        # What is taken out of a list of its own, the copy forgets; what is put in, it knows. Keras saves by this order.
        copy.evenkeel_upgrade = [new for _, new in pairs.values()]
        copy.evenkeel_upgrade.clear()
        place = {id(weight): number for number, weight in enumerate(layer.weights)}
        order = sorted(pairs, key=lambda key: min((place[id(item)] for item in pairs[key][0].weights), default=-1))
        for key in order:
            copy.evenkeel_upgrade.append(found[key])
        del copy.evenkeel_upgrade
        for name, value in theirs.items():
            if _pairs(value, mine.get(name)):
                setattr(copy, name, _with(value, found))
        return copy


def _of_group(copy: Any, layer: Any) -> Any:
    """The copy, which synchronizes with whom the layer does: that is of a run, and in no configuration."""
    if getattr(layer, "process_group", None) is not None and getattr(copy, "synchronized", False):
        copy.process_group = layer.process_group
    return copy


def _attributes(layer: Any) -> dict[str, Any]:
    """What people have set on it; torch keeps modules apart. Plain containers are Keras's own: it wraps people's."""
    children = dict(layer.named_children()) if hasattr(layer, "named_children") else {}
    own = {name: value for name, value in vars(layer).items() if type(value) not in (list, dict, set)}
    return {**own, **children}


def _pairs(old: Any, new: Any) -> list[tuple[Any, Any]]:
    """The layers in an attribute, beside those in the same one of another object."""
    import keras

    if isinstance(old, keras.layers.Layer):
        return [(old, new)]
    if isinstance(old, dict) and isinstance(new, dict):
        return [pair for key in old if key in new for pair in _pairs(old[key], new[key])]
    if isinstance(old, list | tuple) and isinstance(new, list | tuple):
        return [pair for items in zip(old, new, strict=False) for pair in _pairs(*items)]
    return []


def _with(value: Any, found: dict[int, Any]) -> Any:
    """An attribute with other layers."""
    if isinstance(value, dict):
        return {key: _with(item, found) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return (
            [_with(item, found) for item in value] if isinstance(value, list) else tuple(_with(i, found) for i in value)
        )
    return found.get(id(value), value)


def _take_over(name: str, old: list[Any], new: list[Any]) -> None:
    """The values of variables, where there are as many of the same shapes."""
    import keras

    shapes = [[tuple(variable.shape) for variable in variables] for variables in (old, new)]
    if shapes[0] != shapes[1]:
        raise InputError(OTHER_WEIGHTS.format(name=name, old=shapes[0], new=shapes[1]))
    for source, target in zip(old, new, strict=True):
        target.assign(keras.ops.copy(source.value))  # JAX's training steps give the memory of their state away


def _only_ours(layer: Any, synchronized: bool | None) -> str | None:
    """What a layer of ours has that Keras's lacks, in words."""
    import keras

    numbers = all(limit is None or not callable(limit) for limit in (layer.renorm_clipping or {}).values())
    lacking = {
        f"axis={layer.axis}": isinstance(layer.axis, list) and len(layer.axis) > 1,
        f"virtual_batch_size={layer.virtual_batch_size}": layer.virtual_batch_size is not None,
        "synchronized=True": (layer.synchronized if synchronized is None else synchronized)
        and keras.backend.backend() != "tensorflow",
        "an adjustment": layer.adjustment is not None,
        f"average={layer.average!r}": layer.average != "exponential",
        "bessel_correction=True": layer.bessel_correction,
        "an activation": layer.activation is not keras.activations.linear,
        "renorm_clipping that changes": not numbers,
        f"frozen={layer.frozen!r} (unfreeze does away with it)": layer.frozen,
        f"float32 statistics beside {layer.variable_dtype}": layer.variable_dtype in ("float16", "bfloat16"),
    }
    what = ", ".join(text for text, has in lacking.items() if has)
    return ONLY_OURS.format(name=layer.name, what=what) if what else None
