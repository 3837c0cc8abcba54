# SPDX-License-Identifier: Apache-2.0
"""What a pickle of PyTorch says, without doing what it says.

A pickle is a program. Python's reader calls whatever the program names; this one knows the few instructions and the
few names that files of tensors are made of, builds dicts, lists, tuples and `Tensor`s, and refuses the rest.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from typing import IO, Any, NamedTuple

from evenkeel.checkpoints import raw
from evenkeel.errors import InputError

REFUSED = (
    "it holds an object of {name}, and making that would run code of the file; where you trust the file, load it with "
    "torch and save its tensors: torch.save(model.state_dict(), 'weights.pt')"
)
STORAGES = {
    "BoolStorage": "bool",
    "ByteStorage": "uint8",
    "CharStorage": "int8",
    "ShortStorage": "int16",
    "IntStorage": "int32",
    "LongStorage": "int64",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "FloatStorage": "float32",
    "DoubleStorage": "float64",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
    "UntypedStorage": "uint8",
}
"""Class of a storage -> type of its values."""
TYPES = (
    *(name for name in STORAGES.values() if name not in ("bool", "uint8")),
    *("bool", "uint8", "uint16", "uint32", "uint64", "float8_e4m3fn", "float8_e5m2"),
)


class Name(NamedTuple):
    """Something of a module that the pickle speaks of."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


class Storage(NamedTuple):
    """Where values of tensors lie.

    key: its name in the file.
    dtype: of its values.
    """

    key: str
    dtype: str


class Tensor(NamedTuple):
    """Values of a storage, which need not have them.

    key: of the storage.
    dtype: of the values.
    offset: the first, in values.
    shape, stride: as torch has them; in values.
    """

    key: str
    dtype: str
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class Pickle(NamedTuple):
    """What a pickle builds, and the storages that it names, by key."""

    value: Any
    storages: dict[str, Storage]


def load(stream: IO[bytes]) -> Pickle:
    """What the pickle that begins here says; the stream stands behind it afterwards.

    Raises:
        InputError: it holds something other than tensors, numbers, texts, dicts, lists and tuples of them.
        Exception: of any kind, where the pickle is damaged.

    Example:
        >>> import io, pickle
        >>> load(io.BytesIO(pickle.dumps({"bn.weight": [1, 2.0, "x", None]}))).value
        {'bn.weight': [1, 2.0, 'x', None]}
        >>> load(io.BytesIO(pickle.dumps(print)))
        Traceback (most recent call last):
        evenkeel.errors.InputError: it holds an object of builtins.print, and making that would run code of the ...
    """
    machine = _Machine()
    for opcode, argument, _ in pickletools.genops(stream):
        step = STEPS.get(opcode.name)
        if step is None:
            raise InputError(REFUSED.format(name=f"a kind that pickles with {opcode.name}"))
        step(machine, argument)
    return Pickle(machine.stack.pop(), machine.storages)


class _Machine:
    """The stack of a pickle, what lies below its marks, and what it has set aside.

    No value is compared, hashed or shown before its type is known: a few bytes can say a tuple that takes forever.
    """

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.storages: dict[str, Storage] = {}

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def since_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.below.pop()
        return items

    def mark(self, _: Any) -> None:
        self.below.append(self.stack)
        self.stack = []

    def take(self, count: int) -> list[Any]:
        if count > len(self.stack):
            raise IndexError("the stack is empty")
        items = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        return items

    def remember(self, key: int) -> None:
        self.memo[key] = self.stack[-1]

    def set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not dict or len(items) % 2:
            raise TypeError("items for what is no dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, str | int | float | bool | None):
                raise TypeError(f"{type(key).__name__} as a key")
            target[key] = value

    def append(self, items: list[Any]) -> None:
        if type(self.stack[-1]) is not list:
            raise TypeError("items for what is no list")
        self.stack[-1].extend(items)

    def name(self, module: Any, name: Any) -> None:
        if not (isinstance(module, str) and isinstance(name, str)):
            raise TypeError("a name that is no text")
        known = Name(module, name)
        is_type = module in ("torch", "torch.storage") and (name in STORAGES or name in TYPES)
        if not is_type and known not in CALLS:
            raise InputError(REFUSED.format(name=known))
        self.push(known)

    def call(self) -> None:
        function, arguments = self.take(2)
        if not isinstance(function, Name) or function not in CALLS or type(arguments) is not tuple:
            raise TypeError(f"a call of {type(function).__name__}")
        self.push(CALLS[function](*arguments))

    def build(self) -> None:
        """An attribute of a dict, such as `_metadata` of a state_dict, is left away."""
        target, _ = self.take(2)
        if type(target) is not dict:
            raise InputError(REFUSED.format(name=f"{type(target).__name__} with a state"))
        self.push(target)

    def storage(self) -> None:
        (identity,) = self.take(1)
        kind, storage_type, key, _, _, *view = identity
        if not (isinstance(kind, str) and kind == "storage" and isinstance(key, str)) or view not in ([], [None]):
            raise TypeError("a reference to something other than a storage")
        self.storages[key] = Storage(key, STORAGES[storage_type.name])
        self.push(self.storages[key])


STEPS: dict[str, Callable[[_Machine, Any], None]] = {
    **dict.fromkeys(("PROTO", "FRAME", "STOP"), lambda machine, value: None),
    **dict.fromkeys(
        ("BININT", "BININT1", "BININT2", "INT", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"), _Machine.push
    ),
    **dict.fromkeys(("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"), _Machine.push),
    **dict.fromkeys(("STRING", "BINSTRING", "SHORT_BINSTRING"), _Machine.push),
    "NONE": lambda machine, _: machine.push(None),
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "EMPTY_LIST": lambda machine, _: machine.push([]),
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    "TUPLE1": lambda machine, _: machine.push(tuple(machine.take(1))),
    "TUPLE2": lambda machine, _: machine.push(tuple(machine.take(2))),
    "TUPLE3": lambda machine, _: machine.push(tuple(machine.take(3))),
    "MARK": _Machine.mark,
    "TUPLE": lambda machine, _: machine.push(tuple(machine.since_mark())),
    "LIST": lambda machine, _: machine.push(machine.since_mark()),
    "SETITEM": lambda machine, _: machine.set_items(machine.take(2)),
    "SETITEMS": lambda machine, _: machine.set_items(machine.since_mark()),
    "APPEND": lambda machine, _: machine.append(machine.take(1)),
    "APPENDS": lambda machine, _: machine.append(machine.since_mark()),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), _Machine.remember),
    "MEMOIZE": lambda machine, _: machine.remember(len(machine.memo)),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), lambda machine, key: machine.push(machine.memo[key])),
    "GLOBAL": lambda machine, text: machine.name(*text.split(" ", 1)),
    "STACK_GLOBAL": lambda machine, _: machine.name(*machine.take(2)),
    "REDUCE": lambda machine, _: machine.call(),
    "BUILD": lambda machine, _: machine.build(),
    "BINPERSID": lambda machine, _: machine.storage(),
}
"""Name of an instruction -> what it does."""


def _tensor(storage: Storage, offset: Any, shape: Any, stride: Any, *_: Any) -> Tensor:
    if not (raw.is_shape((offset,)) and raw.is_shape(shape) and raw.is_shape(stride) and len(shape) == len(stride)):
        raise TypeError("a tensor whose shape is none")
    return Tensor(storage.key, storage.dtype, offset, tuple(shape), tuple(stride))


def _typed_tensor(storage: Storage, offset: Any, shape: Any, stride: Any, grad: Any, hooks: Any, kind: Name) -> Tensor:
    return _tensor(Storage(storage.key, kind.name), offset, shape, stride)


CALLS: dict[Name, Callable[..., Any]] = {
    Name("collections", "OrderedDict"): lambda items=(): _dict(items),
    Name("torch", "Size"): lambda items=(): tuple(items),
    Name("torch", "device"): lambda *of: None,
    Name("torch._utils", "_rebuild_tensor_v2"): _tensor,
    Name("torch._utils", "_rebuild_tensor_v3"): _typed_tensor,
    Name("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
}
"""What a pickle may call -> what that is here."""


def _dict(items: Any) -> dict[Any, Any]:
    machine = _Machine()
    machine.push({})
    machine.set_items([value for key, value in items for value in (key, value)])
    return machine.stack.pop()
