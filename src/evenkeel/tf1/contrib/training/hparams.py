# SPDX-License-Identifier: Apache-2.0
"""A set of hyperparameters with names and types: `HParams`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

_PARAMETER = re.compile(
    r"(?P<name>[a-zA-Z][\w.]*)(\[\s*(?P<index>\d+)\s*\])?\s*=\s*"
    r"((?P<list>\[[^\]]*\])|(?P<value>[^,\[]*))($|,\s*)"
)


class HParams:
    """Hyperparameters, as attributes; the type of each is that of its first value.

    Args:
        kwargs: name -> value: an integer, float, string, bool, or a list of one of these; None for no type yet.

    Example:
        >>> hparams = HParams(learning_rate=0.1, widths=[16, 12])
        >>> hparams.parse("learning_rate=0.3,widths=[8,8]").values()
        {'learning_rate': 0.3, 'widths': [8, 8]}
    """

    def __init__(self, model_structure: Any = None, **kwargs: Any) -> None:
        self._hparam_types: dict[str, tuple[type, bool]] = {}
        self._model_structure = model_structure
        for name, value in kwargs.items():
            self.add_hparam(name, value)

    def add_hparam(self, name: str, value: Any) -> None:
        """One more.

        Raises:
            ValueError: the name is taken, or the value is an empty list.
        """
        if getattr(self, name, None) is not None:
            raise ValueError(f"Hyperparameter name is reserved: {name}")
        if isinstance(value, list | tuple):
            if not value:
                raise ValueError(f"Multi-valued hyperparameters cannot be empty: {name}")
            self._hparam_types[name] = (type(value[0]), True)
        else:
            self._hparam_types[name] = (type(value), False)
        setattr(self, name, value)

    def del_hparam(self, name: str) -> None:
        """Takes one out, if it is there."""
        if hasattr(self, name):
            delattr(self, name)
            del self._hparam_types[name]

    def set_hparam(self, name: str, value: Any) -> None:
        """A new value, of the type there was.

        Raises:
            KeyError: an unknown name.
            ValueError: another type, or a list for a single value or the reverse.
        """
        kind, is_list = self._hparam_types[name]
        if isinstance(value, list):
            if not is_list:
                raise ValueError(f"Must not pass a list for single-valued parameter: {name}={value!r}")
            setattr(self, name, [_cast(name, kind, item) for item in value])
        elif is_list:
            raise ValueError(f"Must pass a list for multi-valued parameter: {name}={value!r}")
        else:
            setattr(self, name, _cast(name, kind, value))

    def override_from_dict(self, values_dict: Mapping[str, Any]) -> HParams:
        """`set_hparam` for each; returns itself."""
        for name, value in values_dict.items():
            self.set_hparam(name, value)
        return self

    def parse(self, values: str) -> HParams:
        """New values from text such as `"rate=0.1,widths=[8,8],widths[1]=4"`; returns itself.

        Raises:
            ValueError: text of another form, an unknown name, or a value of another type.
        """
        for name, index, value in _parsed(values):
            if name not in self._hparam_types:
                raise ValueError(f"Unknown hyperparameter: {name}; there are {', '.join(sorted(self.values()))}")
            kind, is_list = self._hparam_types[name]
            if index is not None:
                if not is_list:
                    raise ValueError(f"{name}[{index}] was given, and {name} is not a list")
                getattr(self, name)[index] = _from_text(name, kind, value)
            elif isinstance(value, list):
                self.set_hparam(name, [_from_text(name, kind, item) for item in value])
            elif is_list:
                # 1.15 takes one value for a list of one.
                self.set_hparam(name, [_from_text(name, kind, value)])
            else:
                self.set_hparam(name, _from_text(name, kind, value))
        return self

    def parse_json(self, values_json: str) -> HParams:
        """`override_from_dict` from JSON; returns itself."""
        return self.override_from_dict(json.loads(values_json))

    def values(self) -> dict[str, Any]:
        """Name -> value."""
        return {name: getattr(self, name) for name in self._hparam_types}

    def to_json(self, indent: int | None = None, separators: Any = None, sort_keys: bool = False) -> str:
        """The values as JSON, without those that are functions."""
        kept = {name: value for name, value in self.values().items() if not callable(value)}
        return json.dumps(kept, indent=indent, separators=separators, sort_keys=sort_keys)

    def get(self, key: str, default: Any = None) -> Any:
        """The value, or `default` where there is none of that name."""
        return getattr(self, key) if key in self._hparam_types else default

    def get_model_structure(self) -> Any:
        return self._model_structure

    def set_model_structure(self, model_structure: Any) -> None:
        self._model_structure = model_structure

    def __contains__(self, key: str) -> bool:
        return key in self._hparam_types

    def __str__(self) -> str:
        return str(sorted(self.values().items()))

    def __repr__(self) -> str:
        return f"HParams({', '.join(f'{name}={value!r}' for name, value in self.values().items())})"


def _parsed(text: str) -> Any:
    """`(name, index or None, text or list of texts)` for each `name=value` of a text."""
    position = 0
    while position < len(text):
        found = _PARAMETER.match(text, position)
        if not found:
            raise ValueError(f"Malformed hyperparameter value: {text[position:]}; write name=value")
        position = found.end()
        items = found["list"]
        value = found["value"] if items is None else [item for item in re.split(r"[ ,]+", items[1:-1].strip()) if item]
        yield found["name"], None if found["index"] is None else int(found["index"]), value


def _from_text(name: str, kind: type, text: str) -> Any:
    if kind is bool:
        known = {"true": True, "false": False, "1": True, "0": False}
        if text.lower() not in known:
            raise ValueError(f"Could not parse hparam '{name}' of type 'bool' with value '{text}'; write true or false")
        return known[text.lower()]
    if kind is type(None):
        return text
    try:
        return kind(text)
    except ValueError:
        raise ValueError(f"Could not parse hparam '{name}' of type '{kind.__name__}' with value '{text}'") from None


def _cast(name: str, kind: type, value: Any) -> Any:
    """`value` in the type of the hyperparameter, where nothing is lost."""
    if value is None or kind in (type(None), type(value)):
        return value
    if kind is not float or not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(
            f"Could not cast hparam '{name}' of type '{kind.__name__}' from value {value!r}; give a {kind.__name__}"
        )
    return kind(value)
