# SPDX-License-Identifier: Apache-2.0
"""How a TensorFlow 1 program runs as it is, in a process of its own."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, TracebackType

import tensorflow as tf

from evenkeel.errors import InputError
from evenkeel.tf1 import names, unrun

v1 = tf.compat.v1

NEVER_UPDATED = (
    "evenkeel: trained, but the moving statistics of {normalizers} were never updated, for no session ran their "
    "operations in tf.GraphKeys.UPDATE_OPS: inference will not match training. Put "
    "`with tf.control_dependencies(tf.get_collection(tf.GraphKeys.UPDATE_OPS)):` round the minimize of the optimizer "
    "(Keras keeps them in model.updates)"
)
_SHOWN = 5


def run_script(script: Path, arguments: Sequence[str] = (), *, quiet: bool = False) -> None:
    """Runs a program as `python SCRIPT ARGUMENTS` would with TensorFlow 1.15 installed.

    For a process of its own: it leaves `tf.disable_v2_behavior()` behind, and a traceback on standard error.

    Args:
        script: a Python file.
        arguments: its `sys.argv[1:]`.
        quiet: do not say at the end which normalizers were trained and never updated.

    Raises:
        InputError: the file cannot be read.
        SystemExit: with the exit code of the program, where it is not 0.
    """
    code = _source(script)
    with _silent():
        v1.disable_v2_behavior()
    with names.as_in_tensorflow_1(script.resolve().parent), unrun.watched() as graphs, _main(script, arguments) as main:
        try:
            exec(compile(code, str(script), "exec", dont_inherit=True), vars(main))
        except SystemExit:
            _report(graphs, quiet)
            raise
        except BaseException as error:
            error = _shortened(error)
            sys.excepthook(type(error), error, error.__traceback__)
            raise SystemExit(130 if isinstance(error, KeyboardInterrupt) else 1) from None
        _report(graphs, quiet)


def _source(script: Path) -> bytes:
    try:
        return script.read_bytes()
    except OSError as error:
        raise InputError(f"{script} cannot be read ({error.strerror}); give the Python file of a program") from error


@contextmanager
def _silent() -> Iterator[None]:
    """TensorFlow calls it deprecated to be TensorFlow 1, once."""
    before = v1.logging.get_verbosity()
    v1.logging.set_verbosity(v1.logging.ERROR)
    try:
        yield
    finally:
        v1.logging.set_verbosity(before)


@contextmanager
def _main(script: Path, arguments: Sequence[str]) -> Iterator[ModuleType]:
    """An empty `__main__` for the program, with its `sys.argv` and `sys.path`, and Python's own report of errors."""
    main = ModuleType("__main__")
    vars(main).update(__file__=str(script), __builtins__=__builtins__, __cached__=None)
    before = sys.modules["__main__"], sys.argv, sys.path, sys.excepthook
    sys.modules["__main__"] = main
    sys.argv = [str(script), *arguments]
    # The first entry is the folder of `evenkeel`, or the current one after `python -m`: a program's is its own.
    sys.path = [str(script.resolve().parent), *sys.path[1:]]
    sys.excepthook = sys.__excepthook__
    try:
        yield main
    finally:
        sys.modules["__main__"], sys.argv, sys.path, sys.excepthook = before


def _shortened(error: BaseException) -> BaseException:
    """The error, and those behind it, without our frames."""
    for behind in (error.__cause__, error.__context__):
        if behind is not None:
            _shortened(behind)
    return error.with_traceback(_without_ours(error.__traceback__))


def _without_ours(traceback: TracebackType | None) -> TracebackType | None:
    """The traceback without the frames that ran the program, answered its imports and watched its sessions."""
    if traceback is None:
        return None
    after = _without_ours(traceback.tb_next)
    if traceback.tb_frame.f_code.co_filename in (__file__, names.__file__, unrun.__file__):
        return after
    traceback.tb_next = after
    return traceback


def _report(graphs: Sequence[unrun.Seen], quiet: bool) -> None:
    normalizers = sorted({name for seen in graphs for name in seen.never_updated()})
    if normalizers and not quiet:
        listed = ", ".join(normalizers[:_SHOWN])
        more = f" and {len(normalizers) - _SHOWN} more" if len(normalizers) > _SHOWN else ""
        print(NEVER_UPDATED.format(normalizers=listed + more), file=sys.stderr)
