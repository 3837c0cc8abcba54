# SPDX-License-Identifier: Apache-2.0
"""What a running TensorFlow 1 program finds under the names it imports."""

from __future__ import annotations

import builtins
import collections.abc
import functools
import importlib
import importlib.util
import os
import sys
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from evenkeel.errors import MissingLibraryError

VERSION = "1.15.5"  # what the program is promised; TensorFlow 2's own number would send it down other paths

# Modules that Keras kept its layers in; all are to be had from `layers` itself.
_KERAS_LAYERS = (
    *("advanced_activations", "convolutional", "core", "embeddings", "local", "merge", "noise", "normalization"),
    *("pooling", "recurrent", "wrappers"),
)
# A name of TensorFlow 1 -> the modules that answer for it, the first that knows wins. Names that are not here lie in
# the module above: as its attribute, or as a module below it.
_PLACES: dict[str, tuple[str, ...]] = {
    "tensorflow": ("evenkeel.tf1",),
    "tensorflow.compat.v1": ("evenkeel.tf1",),
    "tensorflow.contrib.autograph": ("tensorflow.autograph",),
    "tensorflow.contrib.data": ("tensorflow.compat.v1.data.experimental", "tensorflow.compat.v1.data"),
    "tensorflow.contrib.keras": ("evenkeel.tf1.keras",),
    "tensorflow.contrib.learn.datasets.mnist": ("evenkeel.tf1.examples",),
    "tensorflow.contrib.learn.python.learn.datasets.mnist": ("evenkeel.tf1.examples",),
    "tensorflow.contrib.saved_model": ("tensorflow.compat.v1.saved_model",),
    "tensorflow.contrib.signal": ("tensorflow.compat.v1.signal",),
    "tensorflow.core": ("tensorflow.core",),
    "tensorflow.examples.tutorials.mnist": ("evenkeel.tf1.examples",),
    "tensorflow.examples.tutorials.mnist.input_data": ("evenkeel.tf1.examples",),
    "tensorflow.keras.engine": ("evenkeel.tf1.keras.layers", "evenkeel.tf1.keras"),
    "tensorflow.keras.engine.topology": ("evenkeel.tf1.keras.layers", "evenkeel.tf1.keras"),
    "tensorflow.keras.engine.training": ("evenkeel.tf1.keras",),
    "tensorflow.keras.utils.np_utils": ("evenkeel.tf1.keras.utils",),
    "tensorflow.keras.utils.vis_utils": ("evenkeel.tf1.keras.utils",),
    **{f"tensorflow.keras.layers.{name}": ("evenkeel.tf1.keras.layers",) for name in _KERAS_LAYERS},
    "tensorflow.python": ("tensorflow.python",),
    "tensorflow.python.layers": ("evenkeel.tf1.layers",),
    "tensorflow.python.layers.layers": ("evenkeel.tf1.layers",),
    "tensorflow.python.layers.utils": ("evenkeel.tf1.contrib.layers.utils",),
    "tensorflow.python.training.moving_averages": ("evenkeel.tf1.train",),
}
# Functions have wandered between the modules below these since: what is not there is looked for in `tf`.
_WANDERED = ("tensorflow.python.framework.", "tensorflow.python.ops.")
_VERSIONS = {"tensorflow.VERSION", "tensorflow.__version__", "tensorflow.version.VERSION"}

_NETS = "tensorflow.contrib.slim.nets"
# What programs import by another name; a longer name counts before a shorter one. Keras by itself was Keras 2.
_RENAMED = {"keras": "tensorflow.keras", "tensorflow.python.keras": "tensorflow.keras"}
# The networks of tf_slim import its layers.
_TF_SLIM = {
    "tf_slim.layers": "tensorflow.contrib.layers.python.layers",
    "tf_slim.nets": _NETS,
    "tf_slim.ops": "tensorflow.contrib.framework.python.ops",
    "tf_slim": "tensorflow.contrib.slim",
}

# Module -> name -> what it was, exactly.
_GIVEN_BACK: dict[str, Mapping[str, str]] = {
    "collections": {name: f"collections.abc.{name}" for name in collections.abc.__all__},
    "fractions": {"gcd": "math.gcd"},
    "numpy": {
        **{name: f"builtins.{name}" for name in ("bool", "complex", "float", "int", "object", "str")},
        "Inf": "numpy.inf",
        "NaN": "numpy.nan",
        "alltrue": "numpy.all",
        "complex_": "numpy.complex128",
        "cumproduct": "numpy.cumprod",
        "float_": "numpy.float64",
        "infty": "numpy.inf",
        "long": "builtins.int",
        "product": "numpy.prod",
        "row_stack": "numpy.vstack",
        "sometrue": "numpy.any",
        "string_": "numpy.bytes_",
        "trapz": "numpy.trapezoid",
        "unicode": "builtins.str",
        "unicode_": "numpy.str_",
    },
    "time": {"clock": "time.process_time"},
}

_WHERE = "docs/how-to/run-old-programs.md says what there is"


@contextmanager
def as_in_tensorflow_1(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Inside, programs find TensorFlow 1 under its names, and what NumPy and Python took away under theirs.

    Args:
        folder: where the program lies. Its modules see TensorFlow 1, and so do those on `PYTHONPATH`; installed
            packages and Python's own go on seeing TensorFlow 2.

    Example:
        >>> program = {"__name__": "__main__"}
        >>> with as_in_tensorflow_1("."):
        ...     exec("from tensorflow.contrib.layers import batch_norm", program)
        >>> program["batch_norm"].__module__
        'evenkeel.tf1.contrib.layers.normalization'
    """
    # TensorFlow imports itself lazily, by the very names a program uses, so neither sys.modules nor a finder on
    # sys.meta_path will do: they do not know who asks. `__import__` is told, by the globals of the module that imports.
    imports = builtins.__import__
    places = _places(folder)

    def program_import(
        name: str,
        globals: Mapping[str, Any] | None = None,
        locals: Mapping[str, Any] | None = None,
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> Any:
        path = _old_name(name, globals or {}, places) if level == 0 else None
        if path is None:
            return imports(name, globals, locals, fromlist or (), level)
        module = _module(path)
        for wanted in fromlist or ():
            try:
                getattr(module, "__all__" if wanted == "*" else wanted)
            except AttributeError as error:
                if error.obj is not module:
                    raise
                raise ImportError(str(error), name=path) from None
        if fromlist:
            return module
        first = name.split(".")[0]
        return _module({**_RENAMED, **_TF_SLIM}.get(first, "tensorflow"))

    builtins.__import__ = program_import
    added = list(_give_back())
    try:
        yield
    finally:
        builtins.__import__ = imports
        for module, name in added:
            module.__dict__.pop(name, None)
        for name in [name for name in sys.modules if name.startswith(_NETS)]:
            del sys.modules[name]
        _module.cache_clear()


def _give_back() -> Iterator[tuple[ModuleType, str]]:
    """Adds what its module does not have any more, and says what that was."""
    for module_name, names in _GIVEN_BACK.items():
        module = importlib.import_module(module_name)
        for name, source in names.items():
            home, _, attribute = source.rpartition(".")
            # Not hasattr: some of NumPy's answer with a warning.
            if name not in vars(module) and hasattr(importlib.import_module(home), attribute):
                setattr(module, name, getattr(importlib.import_module(home), attribute))
                yield module, name


# Who imports.


def _places(folder: str | os.PathLike[str]) -> dict[Path, str]:
    """Folders -> what the modules below are: of the "program", "installed", or "nets" of tf_slim."""
    installed = {*sysconfig.get_paths().values(), str(Path(__file__).parents[1])}
    places = {Path(path).resolve(): "installed" for path in installed}
    places[Path(folder).resolve()] = "program"
    if nets := _nets_folder():
        places[nets.resolve()] = "nets"
    return places


def _old_name(name: str, importer: Mapping[str, Any], places: Mapping[Path, str]) -> str | None:
    """The name of TensorFlow 1 that a module asks for; None where it asks for something else, or is not to have it."""
    if name.partition(".")[0] not in ("keras", "tensorflow", "tf_slim"):
        return None
    kind = _kind(importer, places)
    if kind == "installed":
        return None
    renamed = {**_RENAMED, **(_TF_SLIM if kind == "nets" else {}), "tensorflow": "tensorflow"}
    start = next((start for start in renamed if f"{name}.".startswith(f"{start}.")), None)
    return start and renamed[start] + name[len(start) :]


def _kind(importer: Mapping[str, Any], places: Mapping[Path, str]) -> str:
    if importer.get("__name__", "__main__") == "__main__":
        return "program"
    file = importer.get("__file__")
    if not file:
        return "installed"
    # The innermost decides: a virtual environment may lie in the program's folder, or the program in an installed one.
    kinds = (places[folder] for folder in Path(file).resolve().parents if folder in places)
    return next(kinds, "installed" if {"site-packages", "dist-packages"} & set(Path(file).parts) else "program")


# What it gets.


class _View(ModuleType):
    """A module of TensorFlow 1, as a program sees it.

    targets: the modules that answer for it; the first that knows wins.
    """

    def __init__(self, name: str, targets: Sequence[ModuleType]) -> None:
        super().__init__(name, targets[0].__doc__ if targets else None)
        self.__path__: list[str] = []
        self.targets = targets

    def __getattr__(self, name: str) -> Any:
        path = f"{self.__name__}.{name}"
        if path in _VERSIONS:
            return VERSION
        if name == "__all__":
            return self._public()
        found = [] if _leads_to_a_place(path) else [target for target in self.targets if hasattr(target, name)]
        value = getattr(found[0], name) if found else None
        if found and not isinstance(value, ModuleType):
            return value
        if name.startswith("__"):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}", name=name, obj=self)
        try:
            return _module(path)
        except ModuleNotFoundError as error:
            if error.name != path:
                raise
        # Out here, for what the program was handling belongs into its traceback, and how we searched does not.
        raise AttributeError(_unknown(self.__name__, name), name=name, obj=self)

    def __dir__(self) -> list[str]:
        return sorted({name for target in self.targets for name in dir(target)})

    def _public(self) -> list[str]:
        names = getattr(self.targets[0], "__all__", None) if self.targets else []
        return [name for name in dir(self) if not name.startswith("_")] if names is None else list(names)


@functools.cache
def _module(path: str) -> ModuleType:
    """What a program gets that imports `path`.

    Raises:
        ModuleNotFoundError: there is no such module here; it says where to look.
        MissingLibraryError: it comes with a package that is not installed.
    """
    if path in _PLACES:
        targets = [_existing(place) for place in _PLACES[path]]
    elif path == _NETS or path.startswith(f"{_NETS}."):
        return _net(path)
    else:
        parent, _, name = path.rpartition(".")
        above = _module(parent)
        targets = [target for whole in getattr(above, "targets", [above]) if (target := _below(whole, name))]
        if not targets and not _leads_to_a_place(path):
            raise ModuleNotFoundError(_unknown(parent, name), name=path)
    if path.startswith(_WANDERED):
        targets.append(_existing("evenkeel.tf1"))
    return _View(path, targets)


def _existing(path: str) -> ModuleType:
    """A module, also one that can be had as an attribute only, as some of TensorFlow's."""
    parent, _, name = path.rpartition(".")
    try:
        return importlib.import_module(path)
    except ModuleNotFoundError as error:
        if not parent or error.name not in (path, parent):
            raise
        return getattr(_existing(parent), name)


def _below(module: ModuleType, name: str) -> ModuleType | None:
    """The module `name` below another, if there is one."""
    path = f"{module.__name__}.{name}"
    try:
        # Before the attribute: a function may have the name of the module that it comes from.
        return importlib.import_module(path)
    except ModuleNotFoundError as error:
        if error.name not in (path, module.__name__):
            raise
    found = getattr(module, name, None)
    return found if isinstance(found, ModuleType) else None


def _leads_to_a_place(path: str) -> bool:
    return path == _NETS or any(place == path or place.startswith(f"{path}.") for place in _PLACES)


def _unknown(path: str, name: str) -> str:
    """What is said of a name that is not there."""
    return f"module {path!r} has no attribute {name!r}{_hint(path, name)}; {_WHERE}"


def _hint(path: str, name: str) -> str:
    """What to use instead, from the message of a module that knows it."""
    parent, _, last = path.rpartition(".")
    targets = getattr(_module(path), "targets", [])
    if parent and not targets:
        return _hint(parent, last)
    for target in targets:
        try:
            getattr(target, name)
        except AttributeError as error:
            if hint := "".join(str(error).partition("; ")[1:]):
                return hint
    return ""


# The networks of tf_slim.


def _nets_folder() -> Path | None:
    """Where an installed tf_slim has its networks; it is not imported, for its own layers are Keras's."""
    found = importlib.util.find_spec("tf_slim")
    folders = list(found.submodule_search_locations or ()) if found else []
    return Path(folders[0]) / "nets" if folders else None


def _net(path: str) -> ModuleType:
    """A module of tf_slim's networks, loaded once more, on our layers: what it imports is answered like a program."""
    folder = _nets_folder()
    if folder is None:
        raise MissingLibraryError(f"{path} comes from tf_slim, which is not installed; pip install tf_slim")
    if path == _NETS:
        return _View(path, [])
    file = folder.joinpath(*path.removeprefix(f"{_NETS}.").split(".")).with_suffix(".py")
    if not file.exists():
        raise ModuleNotFoundError(f"{path} is not among the networks in {folder}; {_WHERE}", name=path)
    spec = importlib.util.spec_from_file_location(path, file)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    # As an import does: decorators and pickles look modules up.
    sys.modules[path] = module
    spec.loader.exec_module(module)
    return module
