# SPDX-License-Identifier: Apache-2.0
"""`evenkeel convert`: the values of a checkpoint in a file of another library, with a proof."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from evenkeel.checkpoints.convert import Report, convert

HELP = "Write a checkpoint as another library has it, and prove that its normalizers compute the same."


def run(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="File, folder or prefix of a checkpoint.")],
    target: Annotated[Path, typer.Argument(metavar="DST", help="The file to write; its ending says the format.")],
    like: Annotated[
        Path | None,
        typer.Option(help="A file of the model that is to load DST: names, order, shapes are taken from it."),
    ] = None,
    rename: Annotated[
        list[str] | None,
        typer.Option(
            "--map", metavar="OLD=NEW", help="New start of names in SRC, or re:PATTERN=REPLACEMENT. Repeatable."
        ),
    ] = None,
    to: Annotated[
        Literal["tensorflow", "keras", "torch", "flax"] | None,
        typer.Option(help="Whose names and layouts, where DST may have any."),
    ] = None,
    examples: Annotated[
        int | None,
        typer.Option(help="Values of a channel in a batch of the training, to convert between n and n - 1.", min=2),
    ] = None,
    averages: Annotated[
        bool, typer.Option("--averages", help="Moving averages of weights (EMA shadows) for the weights.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Take the place of what is at DST.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show the name of each variable in SRC and DST.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say all, and write nothing.")] = False,
) -> None:
    """Convert, and say what was done.

    Raises:
        EvenkeelError: a file, a rule or an option cannot be used, or a normalizer of DST does not compute what that of
            SRC does; nothing is written then.
    """
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    os.environ["TF_ENABLE_ONEDNN_OPTS"] = "0"  # or TensorFlow speaks of it when it is imported
    console = Console(highlight=False, markup=False, soft_wrap=True)
    columns = (TextColumn("writing"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        bar = bars.add_task("writing", total=None)
        report = convert(
            source,
            target,
            like=like,
            rename=rename or (),
            to=to,
            examples=examples,
            averages=averages,
            overwrite=overwrite,
            dry_run=dry_run,
            progress=lambda done, total: bars.update(bar, completed=done, total=total),
        )
    _show(console, report, verbose=verbose, dry_run=dry_run)


def _show(console: Console, report: Report, *, verbose: bool, dry_run: bool) -> None:
    if verbose:
        width = max(map(len, report.renamed), default=0)
        for old, new in report.renamed.items():
            console.print(f"{old:{width}}  {new}")
    if report.left:
        console.print(f"not in {report.target}: {', '.join(report.left)}")
    for note in report.notes:
        console.print(note)
    done = "would get" if dry_run else "has"
    names = f"{len(report.renamed)} variables of {report.source} under names of {report.convention}"
    compared = f"Normalizers compared on random data, in float64: {report.normalizers}"
    console.print(f"{report.target} {done} {names}. {compared}; largest difference {report.difference:.2g}.")
