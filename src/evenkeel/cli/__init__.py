# SPDX-License-Identifier: Apache-2.0
"""Which verbs there are, and how a verb ends.

A verb is a file in this folder. It has `HELP`, one line, and `run`, whose annotated parameters are its options; and
`CONTEXT`, settings of the command line, where it needs any.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
import sys
from collections.abc import Callable

import typer

from evenkeel.errors import EvenkeelError, UnequalError

__all__ = ["application", "main"]


def main() -> None:
    """Run the verb on the command line and end the process.

    The exit code is 0 when all went well, 1 when what the verb checks did not hold, 2 for bad input, 75 where another
    process was lost, 130 after Ctrl-C.
    """
    application()()


def application() -> typer.Typer:
    """The command line with every verb in this folder."""
    result = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_show_locals=False)
    result.callback(help="Batch normalization you can trust.")(lambda: None)
    for module in pkgutil.iter_modules(__path__):
        verb = importlib.import_module(f"{__name__}.{module.name}")
        settings = getattr(verb, "CONTEXT", None)
        result.command(module.name, help=verb.HELP, context_settings=settings)(_one_line_at_the_end(verb.run))
    return result


def _one_line_at_the_end(run: Callable[..., None]) -> Callable[..., None]:
    """`run`, with an expected error as a line on stderr instead of a traceback."""

    @functools.wraps(run)
    def verb(**options: object) -> None:
        try:
            run(**options)
        except EvenkeelError as error:
            print(f"evenkeel: {error}", file=sys.stderr)
            raise typer.Exit(1 if isinstance(error, UnequalError) else 2) from error
        except KeyboardInterrupt as interrupt:
            print("; ".join(["evenkeel: interrupted", *map(str, interrupt.args)]), file=sys.stderr)
            raise typer.Exit(130) from interrupt

    return verb
