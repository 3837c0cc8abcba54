# SPDX-License-Identifier: Apache-2.0
"""Which function of `tf.layers` goes with a layer."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from inspect import Parameter
from typing import Any

from evenkeel.tf1.layers.base import Layer, snake_case

_TEXT = """`{layer}` made and called: the first argument is the input, the others are those of the class.

Args:
    inputs: what the layer is called on.
    name: of the variable scope, as it is; made from the default name, and unique, if None.
    reuse: where the layer has variables: use those that are there under that name; True, None or tf.AUTO_REUSE.

Raises:
    ValueError: what the class refuses; a name used before without reuse; reuse of what is not there.
"""


def function_of(layer: type[Layer], *, reuse: bool = True) -> Callable[..., Any]:
    """The function that makes a layer and calls it: `dense(x, 10)` for `Dense(10)(x)`.

    Args:
        layer: its constructor's arguments are those of the function.
        reuse: the layer has variables. Its name is then that of the variable scope, and `reuse` is the last argument.

    Example:
        >>> class Scale(Layer):
        ...     def __init__(self, factor, name=None, **options):
        ...         super().__init__(name=name, **options)
        ...         self.factor = factor
        ...
        ...     def call(self, inputs):
        ...         return inputs * self.factor
        >>> scale = function_of(Scale)
        >>> scale.__name__, inspect.signature(scale)
        ('scale', <Signature (inputs, factor, name=None, reuse=None)>)
    """
    own = [each for each in inspect.signature(layer).parameters.values() if each.kind is not Parameter.VAR_KEYWORD]
    first = Parameter("inputs", Parameter.POSITIONAL_OR_KEYWORD)
    last = [Parameter("reuse", Parameter.POSITIONAL_OR_KEYWORD, default=None)] if reuse else []
    signature = inspect.Signature([first, *own, *last])

    def function(*args: Any, **kwargs: Any) -> Any:
        given = signature.bind(*args, **kwargs).arguments
        inputs = given.pop("inputs")
        scope = {"_scope": given.get("name"), "_reuse": given.pop("reuse", None)} if reuse else {}
        return layer(**given, **scope)(inputs)

    function.__signature__ = signature  # type: ignore[attr-defined]
    function.__name__ = function.__qualname__ = snake_case(layer.__name__)
    function.__module__ = layer.__module__
    function.__doc__ = _TEXT.format(layer=layer.__name__)
    return function
