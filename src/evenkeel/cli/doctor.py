# SPDX-License-Identifier: Apache-2.0
"""`evenkeel doctor`: why evaluation is so much worse than training."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich import box
from rich.console import Console
from rich.markdown import Markdown
from rich.table import Table
from rich.text import Text

from evenkeel.doctor import Report, diagnose, pages, rules
from evenkeel.doctor.report import text
from evenkeel.doctor.report.groups import shown
from evenkeel.errors import ArgumentError, EvenkeelError, InputError, MissingLibraryError
from evenkeel.files import check_free, replacing

HELP = "Say what is wrong with the normalization of a checkpoint, a model, a graph or a Python program."

BACKENDS = ("tensorflow", "jax", "torch")
SUFFIXES = (".keras", ".h5", ".hdf5")
COLOURS = {"error": "bold red", "warning": "yellow", "note": "green"}
# What new statistics cure, and only that, is repaired; the remedy of a finding says it.
REMEDY = "recalibrate"


def run(
    subject: Annotated[
        Path | None,
        typer.Argument(help="A checkpoint, a Keras model, a graph of TensorFlow 1 (.meta, SavedModel, .pb), or a .py."),
    ] = None,
    after: Annotated[Path | None, typer.Argument(help="A checkpoint to compare the first with.")] = None,
    data: Annotated[
        Path | None, typer.Option(help="Inputs to run a Keras model on: .npy, or .npz with `x`, and labels as `y`.")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Rows of a batch; as in training.", min=1)] = 32,
    steps: Annotated[
        int | None, typer.Option(help="How many steps the optimizer has done, or is to do.", min=1)
    ] = None,
    backend: Annotated[
        Literal["tensorflow", "jax", "torch"] | None,
        typer.Option(help="What Keras computes with. [default: KERAS_BACKEND, or tensorflow]"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print all of it as one JSON document.")] = False,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a page with plots there.")] = None,
    sarif: Annotated[Path | None, typer.Option(metavar="FILE", help="Write SARIF there, for code hosts.")] = None,
    fix: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write the Keras model there, its statistics estimated anew from the data."),
    ] = None,
    explain: Annotated[
        str | None, typer.Option(metavar="RULE", help="Print the page of a rule, such as EK201.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace these files if they are there.")] = False,
) -> None:
    """Look, say what was found, write what was asked for.

    Raises:
        EvenkeelError: it could not be looked at, or an option cannot be honoured.
        typer.Exit: with code 1, where there is an error; after a repair, where one is left.
    """
    if explain is not None:
        _explain(explain)
        return
    if subject is None:
        raise ArgumentError("there is nothing to look at; give a SUBJECT, or --explain RULE")
    _check(subject, after, data, html, sarif, fix, overwrite=overwrite)
    # TensorFlow speaks of these when it is imported.
    os.environ.update(TF_CPP_MIN_LOG_LEVEL="3", TF_ENABLE_ONEDNN_OPTS="0")
    options = {"data": data, "batch_size": batch_size, "steps": steps, "backend": _backend(backend)}
    report = _report(subject if after is None else (subject, after), options)
    if html:
        report.to_html(html, overwrite=overwrite)
    if sarif:
        with replacing(sarif) as partial:
            partial.write_text(report.to_sarif() + "\n", encoding="utf-8")
    if not as_json:
        _show(report)
    left = _fixed(fix, subject, report, options, say=not as_json) if fix else None
    if as_json:
        repaired = left and {"file": str(fix), "left": left.document()}
        print(json.dumps(report.document() | {"fixed": repaired}, indent=1, allow_nan=False))
    if not (left or report).healthy:
        raise typer.Exit(1)


# What was asked for.


def _explain(identifier: str) -> None:
    page = pages.page(rules.rule(identifier))
    console = Console(highlight=False)
    if console.is_terminal:
        console.print(Markdown(page))
    else:
        print(page, end="")


def _check(
    subject: Path,
    after: Path | None,
    data: Path | None,
    html: Path | None,
    sarif: Path | None,
    fix: Path | None,
    *,
    overwrite: bool,
) -> None:
    inputs = [path for path in (subject, after, data) if path is not None]
    outputs = {option: path for option, path in (("html", html), ("sarif", sarif), ("fix", fix)) if path is not None}
    if data and not data.is_file():
        raise InputError(f"--data {data} is no file; give a .npy, or an .npz with `x`")
    for option, path in outputs.items():
        check_free(path, overwrite=overwrite)
        others = [*inputs, *(other for name, other in outputs.items() if name != option)]
        if any(path.resolve() == other.resolve() for other in others):
            raise ArgumentError(f"--{option} {path} would replace another file of this call; give another name")
    if html and data and importlib.util.find_spec("matplotlib") is None:
        raise MissingLibraryError('matplotlib is not installed; pip install "evenkeel[train]", or leave out --html')
    if fix:
        _check_fix(subject, after, data, fix)


def _check_fix(subject: Path, after: Path | None, data: Path | None, fix: Path) -> None:
    if after is not None:
        raise ArgumentError(f"--fix {fix} repairs one model, and {subject} and {after} are two; give that model alone")
    if data is None:
        raise ArgumentError(f"--fix {fix} estimates statistics from data; give --data too")
    if subject.suffix not in SUFFIXES:
        raise InputError(
            f"--fix {fix} repairs whole Keras models, {', '.join(SUFFIXES)}, and {subject} is none; "
            "evenkeel.recalibrate takes other models in Python"
        )
    if fix.suffix not in SUFFIXES:
        raise InputError(f"--fix {fix} ends with {fix.suffix or 'nothing'}; give one of {', '.join(SUFFIXES)}")


def _backend(asked: str | None) -> str:
    named = os.environ.get("KERAS_BACKEND")
    return asked or (named if named in BACKENDS else BACKENDS[0])


# What is looked at.


def _report(subject: Any, options: dict[str, Any]) -> Report:
    """
    Raises:
        EvenkeelError: it could not be looked at, whatever happened: code 1 is for what is ill.
    """
    console = Console(stderr=True)
    draws = options["data"] is not None and console.is_terminal
    try:
        if draws or not console.is_terminal:
            return diagnose(subject, **options, progress=draws)
        with console.status("looking"):
            return diagnose(subject, **options)
    except EvenkeelError:
        raise
    except Exception as error:
        raise InputError(
            f"{subject} could not be looked at: {type(error).__name__}: {error}; "
            "evenkeel.diagnose in Python shows where that happens"
        ) from error


def _fixed(fix: Path, subject: Path, report: Report, options: dict[str, Any], *, say: bool) -> Report | None:
    """What is left after the repair; None where nothing was to be repaired."""
    grave = (*report.errors, *report.warnings)
    curable = sorted({item.rule for item in grave if REMEDY in item.remedy})
    others = sorted({item.rule for item in grave} - set(curable))
    if not curable:
        if say:
            because = f"new statistics do not cure {', '.join(others)}" if others else "there is nothing to repair"
            print(f"{fix} was not written: {because}")
        return None
    from evenkeel.surgery.recalibrate import recalibrate
    from evenkeel.surgery.saved import load_model

    model = load_model(subject, options["backend"], SUFFIXES, "evenkeel.recalibrate(model, data)")
    done = recalibrate(
        model, options["data"], batch_size=options["batch_size"], progress=Console(stderr=True).is_terminal
    )
    with replacing(fix) as partial:
        model.save(partial)
    left = _report(fix, options)
    if say:
        print(f"\n{shown(str(fix))} has new statistics, for {', '.join(curable)}:\n{done}\n\nwhat is left there:")
        _show(left)
    return left


# What is shown.


def _show(report: Report) -> None:
    """A table on a terminal; elsewhere lines as long as they need to be."""
    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        print(report)
        return
    console.print(text.heading(report))
    for line in text.compared(report):
        console.print(line)
    if report.groups:
        console.print(_table(report))
    for line in text.unlooked(report):
        console.print(Text("not looked at: ", style="dim").append(line, style="not dim"))
    console.print(
        text.summary(report), style=COLOURS[report.findings[0].severity or "note"] if report.findings else "green"
    )


def _table(report: Report) -> Table:
    """An entry for each rule; what was seen, why it matters and the next step stand below each other."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 1, 0), show_edge=False)
    table.add_column("rule", no_wrap=True)
    table.add_column("where", overflow="fold", max_width=36)
    table.add_column("what was seen, why, next step", overflow="fold")
    for group in report.groups:
        what = Text("\n").join(
            [
                Text(rules.rule(group.rule).title, style="bold"),
                *map(Text, group.seen),
                Text(group.why, style="dim"),
                Text(f"→ {group.remedy}", style="cyan"),
            ]
        )
        rule = Text(f"{group.rule}\n{group.severity}", style=COLOURS[group.severity])
        table.add_row(rule, Text(group.where(report.normalizers)), what)
    return table
