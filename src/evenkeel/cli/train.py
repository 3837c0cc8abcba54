# SPDX-License-Identifier: Apache-2.0
"""`evenkeel train`: how well a small network with batch norm learns to read, in both phases."""

from __future__ import annotations

import atexit
import contextlib
import functools
import importlib
import importlib.util
import json
import math
import os
import sys
import textwrap
import threading
import zlib
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple, NoReturn

import numpy as np
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from evenkeel.errors import ArgumentError, EvenkeelError, InputError, MissingLibraryError, UnequalError
from evenkeel.files import remove, replacing
from evenkeel.workloads.launch import LOST_ANOTHER, follow_launcher, launch, launched
from evenkeel.workloads.processes import Process, ProcessEndedError
from evenkeel.workloads.training import ALONE, JOINING, SUFFIXES, Place, Settings, Trainer

if TYPE_CHECKING:
    from evenkeel.workloads.data import Dataset

HELP = "Train a small network with batch norm on handwritten digits, and show that what it saves predicts the same."

HISTORY, CURVES = "history.json", "curves.png"
LOST = "another process was lost, and this one ends too; the same command with --resume goes on ({reason})"
DIFFERENT = (
    "the processes were given different runs; start all with the same options, and with --resume where {out} is the "
    "same folder"
)
NOBODY_CAME = "waited {seconds} s for the other processes in vain; start all that the environment names"
HEADER = "epoch   train loss   train accuracy   test loss   test accuracy"


class Row(NamedTuple):
    """How well the network does after an epoch.

    train: the images it learned from, in the training phase: each batch normalized with its own statistics.
    test: the others, in the inference phase: normalized with the moving statistics.
    loss: mean softmax cross-entropy, in nats.
    accuracy: share of the images read right, in [0, 1].
    """

    epoch: int
    train_loss: float
    train_accuracy: float
    test_loss: float
    test_accuracy: float


class Saved(NamedTuple):
    """A run as its folder keeps it, in `history.json`.

    settings: of the run.
    checkpoint: name of what beside it has the network and its optimizer after the last of `epochs`.
    epochs: a row each, from the first on.
    """

    settings: Settings
    checkpoint: str
    epochs: list[Row]


def run(
    api: Annotated[
        Literal["evenkeel", "helper", "layers", "contrib", "estimator", "keras"],
        typer.Option(help="What the network is written with: ours, or one of TensorFlow 1's."),
    ] = "evenkeel",
    model: Annotated[Literal["mlp", "convnet", "resnet"], typer.Option(help="The network.")] = "mlp",
    data: Annotated[
        Path | None, typer.Option(help="Folder with the four IDX files of MNIST; without it, scikit-learn's digits.")
    ] = None,
    backend: Annotated[
        Literal["tensorflow", "jax", "torch"], typer.Option(help="What Keras computes with.", envvar="KERAS_BACKEND")
    ] = "tensorflow",
    epochs: Annotated[int, typer.Option(help="Times through the training images.", min=1)] = 30,
    batch_size: Annotated[int, typer.Option(help="Images a step.", min=1)] = 32,
    learning_rate: Annotated[float, typer.Option(help="Of plain gradient descent.", min=0)] = 0.1,
    momentum: Annotated[
        float, typer.Option(help="Share of the moving statistics that a step keeps.", min=0, max=1)
    ] = 0.9,
    renorm: Annotated[bool, typer.Option("--renorm", help="Batch renormalization.")] = False,
    virtual_batch_size: Annotated[
        int | None, typer.Option(help="Normalize groups of so many images, each by itself.", min=1)
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the split, the first weights, the order.", min=0, max=2**32 - 1)] = 0,
    out: Annotated[Path, typer.Option(help="Folder for the model, its history, its curves.")] = Path("evenkeel-train"),
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in that folder.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Remove the run in that folder first.")] = False,
    processes: Annotated[
        int, typer.Option(help="Train in so many processes of this machine, each with its share of every batch.", min=1)
    ] = 1,
) -> None:
    """Train, save after every epoch, and predict once more with what was saved.

    Where a launcher says that this process is one of several, it trains with the others.

    Raises:
        EvenkeelError: the data, the folder or an option cannot be used.
        typer.Exit: with code 1, where the saved model does not predict the same; with 75, where a process was lost.
    """
    settings = Settings(
        model=model,
        data="digits" if data is None else str(data.resolve()),
        backend=backend,
        batch_size=batch_size,
        learning_rate=learning_rate,
        momentum=momentum,
        renorm=renorm,
        virtual_batch_size=virtual_batch_size,
        seed=seed,
        api=api,
    )
    _check(settings, processes)
    if resume and overwrite:
        raise ArgumentError("--resume and --overwrite were given; give one of them")
    saved = _previous(out, settings, epochs) if resume else _nothing_yet(out, settings, overwrite=overwrite)
    dataset = _dataset(data, seed)
    with _resumable(settings, epochs, out):
        if processes > 1:
            _require(backend)
            _launch(settings, processes, epochs, out, resume=resume, overwrite=overwrite)
        else:
            _import_keras(backend)
            _train(settings, saved, dataset, epochs, out, resume=resume)


def _train(settings: Settings, saved: Saved, dataset: Dataset, epochs: int, out: Path, *, resume: bool) -> None:
    """Go on from `saved` until there are `epochs`, alone or with the processes that a launcher has started."""
    console = Console(highlight=False, markup=False, soft_wrap=True)
    with _joined(settings) as place:
        meet = functools.partial(_meet, place, settings, out, epochs, len(saved.epochs))
        meet()
        network = _new(settings, dataset.train_images, place)
        keep = functools.partial(_save, out, network) if place.rank == 0 else lambda saved: None
        if resume:
            network.restore(out / saved.checkpoint)
            meet()  # before the first removes what the others read
        elif place.rank == 0:
            _clear(out)
            keep(saved)

        console.quiet = place.rank > 0
        console.print(HEADER)
        for row in saved.epochs:
            console.print(_line(row))
        with _progress(console) as progress:
            steps = math.ceil(len(dataset.train_labels) / settings.batch_size)
            bar = progress.add_task("training", total=epochs * steps, completed=len(saved.epochs) * steps)
            advance = functools.partial(progress.advance, bar)
            remaining = range(len(saved.epochs) + 1, epochs + 1)
            for row in _epochs(remaining, network, dataset, settings, after_step=advance):
                saved = Saved(settings, _name(f"checkpoint-{row.epoch}", settings), [*saved.epochs, row])
                keep(saved)
                console.print(_line(row))
        model_name = _name("model", settings)
        keep(saved._replace(checkpoint=model_name))
    if place.rank == 0:
        _plot(out, saved.epochs)
        console.print(f"{out} has {model_name}, {HISTORY} and {CURVES}.")
        _compare(console, network, out / model_name, dataset.test_images, settings)


def _check(settings: Settings, processes: int) -> None:
    """Whether the API can do what was asked; ours can do all, but not all at once."""
    one_of_several = launched(settings.backend)
    if one_of_several and processes > 1:
        raise ArgumentError(f"--processes {processes} was given to one of several processes already; leave it out")
    if settings.api == "evenkeel":
        if settings.virtual_batch_size and (one_of_several or processes > 1):
            raise ArgumentError(
                f"--virtual-batch-size {settings.virtual_batch_size} splits the batch, of which several processes take "
                "the statistics together; leave it out, or train in one process"
            )
        return
    if one_of_several or processes > 1:
        given = f"--processes {processes}" if processes > 1 else "to be one of several processes"
        raise ArgumentError(f"{given} needs --api evenkeel, and --api {settings.api} was given; train in one process")
    for name, wanted in (("model", "mlp"), ("backend", "tensorflow"), ("renorm", False), ("virtual_batch_size", None)):
        value = getattr(settings, name)
        if value != wanted:
            option = f"--{name.replace('_', '-')}"
            given = option if value is True else f"{option} {value}"
            remedy = f"give {option} {wanted}" if wanted else "leave it out"
            raise ArgumentError(f"{given} needs --api evenkeel, and --api {settings.api} was given; {remedy}")


# Several processes.


def _launch(settings: Settings, processes: int, epochs: int, out: Path, *, resume: bool, overwrite: bool) -> None:
    """Run this command in `processes`; end as the first did that failed."""
    options = settings._asdict() | {"epochs": epochs, "out": out, "resume": resume, "overwrite": overwrite}
    if settings.data == "digits":
        del options["data"]
    failure = launch(settings.backend, processes, ["evenkeel", "train", *_as_arguments(options)])
    if failure is None:
        return
    own_words = [line for line in failure.said.splitlines() if line.startswith("evenkeel: ")]
    if own_words and failure.code != LOST_ANOTHER:
        print(own_words[-1], file=sys.stderr)
        raise typer.Exit(failure.code)
    print(f"evenkeel: {failure}, and the others with it; {_what_now(settings, epochs, out)}", file=sys.stderr)
    raise typer.Exit(LOST_ANOTHER)


def _as_arguments(options: dict[str, object]) -> list[str]:
    """
    Example:
        >>> _as_arguments({"batch_size": 32, "renorm": True, "resume": False, "virtual_batch_size": None})
        ['--batch-size', '32', '--renorm']
    """
    arguments = []
    for name, value in options.items():
        if value is not None and value is not False:
            arguments += [f"--{name.replace('_', '-')}"] + ([] if value is True else [str(value)])
    return arguments


@contextlib.contextmanager
def _resumable(settings: Settings, epochs: int, out: Path) -> Iterator[None]:
    """Ctrl-C inside says what the folder has, which is whole at any moment."""
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(_what_now(settings, epochs, out)) from None


def _what_now(settings: Settings, epochs: int, out: Path) -> str:
    try:
        done = len(_previous(out, settings, epochs).epochs)
    except InputError:
        return f"{out} has no epoch of this run; start again"
    return f"{out} has {done} of {epochs} epochs; the same command with --resume goes on"


@contextlib.contextmanager
def _joined(settings: Settings) -> Iterator[Place]:
    """The place of this process among those that train together, all of which are there inside."""
    if not launched(settings.backend):
        yield ALONE
        return
    follow_launcher()
    with _quiet():
        parallel = importlib.import_module(f"evenkeel.workloads.parallel.{settings.backend}")
    nobody_came = threading.Timer(JOINING, _end_at_once, (LOST_ANOTHER, NOBODY_CAME.format(seconds=JOINING)))
    nobody_came.daemon = True
    nobody_came.start()
    try:
        with _quiet(1):
            place = parallel.join()
        nobody_came.cancel()
        yield place
    except BaseException as error:
        if parallel.lost(error):
            _end_at_once(LOST_ANOTHER, LOST.format(reason=_reason(error)))
        bad_input = isinstance(error, EvenkeelError) and not isinstance(error, UnequalError)
        code = 130 if isinstance(error, KeyboardInterrupt) else 2 if bad_input else 1
        # When the interpreter ends, libraries would wait for processes that wait for this one.
        atexit.register(_end_at_once, getattr(error, "exit_code", code))
        raise


def _meet(place: Place, settings: Settings, out: Path, *given: int) -> None:
    """Wait for the others here, and see that all have the same settings and `given`."""
    if place.processes > 1:
        parallel = importlib.import_module(f"evenkeel.workloads.parallel.{settings.backend}")
        if len(set(parallel.gathered(zlib.crc32(repr((settings, given)).encode())))) > 1:
            raise InputError(DIFFERENT.format(out=out))


def _reason(error: BaseException) -> str:
    """What the library said at first, before layers and graphs have told where they were, in one line."""
    while (before := error.__cause__ or error.__context__) is not None:
        error = before
    return textwrap.shorten(str(error).split("\n\n")[-1], 300)


def _end_at_once(code: int, why: str = "") -> NoReturn:
    if why:
        print(f"evenkeel: {why}", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


# The folder of a run.


def _nothing_yet(out: Path, settings: Settings, *, overwrite: bool) -> Saved:
    """A run without epochs, if it may be written to `out`."""
    if not overwrite and (present := _files(out)):
        names = ", ".join(path.name for path in present)
        raise InputError(f"{out} already has {names}; give --resume, --overwrite or another --out")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{out} cannot be made a folder ({error.strerror}); give another --out") from error
    return Saved(settings, _name("checkpoint-0", settings), [])


def _previous(out: Path, settings: Settings, epochs: int) -> Saved:
    """The run in `out`, if it can go on under `settings` until it has `epochs`."""
    path = out / HISTORY
    if not path.exists():
        raise InputError(f"{out} has no {HISTORY}, so no run to go on with; leave --resume out or give another --out")
    try:
        content = json.loads(path.read_text())
        saved = Saved(Settings(**content["settings"]), content["checkpoint"], [Row(**row) for row in content["epochs"]])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(f"{path} cannot be read ({error}); start again with --overwrite") from error
    differing = [
        f"--{name.replace('_', '-')} was {then} and now is {now}"
        for name, then, now in zip(Settings._fields, saved.settings, settings, strict=True)
        if then != now
    ]
    if differing:
        raise InputError(f"{out}: {', '.join(differing)}; --resume needs the same settings")
    if len(saved.epochs) > epochs:
        raise InputError(f"{out} has {len(saved.epochs)} epochs, and {epochs} were asked; give more --epochs")
    return saved


def _name(stem: str, settings: Settings) -> str:
    return stem + SUFFIXES[settings.api]


def _files(out: Path) -> list[Path]:
    """What earlier runs left in `out`, some of it folders."""
    models = {f"model{suffix}" for suffix in SUFFIXES.values()}
    return [path for name in (HISTORY, *sorted(models), CURVES) if (path := out / name).exists()] + _checkpoints(out)


def _checkpoints(out: Path) -> list[Path]:
    """With those that a killed process left half written."""
    return sorted(path for suffix in set(SUFFIXES.values()) for path in out.glob(f"*checkpoint-*{suffix}"))


def _clear(out: Path) -> None:
    for path in _files(out):
        remove(path)


def _save(out: Path, network: Trainer, saved: Saved) -> None:
    """Write the network, then the history that names it, then remove older ones: the folder is whole at any moment."""
    with replacing(out / saved.checkpoint) as path, _quiet():  # Keras may import TensorFlow to save
        network.save(path)
    content = {
        "settings": saved.settings._asdict(),
        "checkpoint": saved.checkpoint,
        "epochs": [row._asdict() for row in saved.epochs],
    }
    with replacing(out / HISTORY) as path:
        path.write_text(json.dumps(content, indent=1) + "\n")
    for path in _checkpoints(out):
        if path.name != saved.checkpoint:
            remove(path)


# Data, network, training.


def _dataset(folder: Path | None, seed: int) -> Dataset:
    from evenkeel.workloads.data import digits, mnist

    return digits(seed=seed) if folder is None else mnist(folder)


def _require(backend: str) -> None:
    """
    Raises:
        MissingLibraryError: Keras, what it computes with, or Matplotlib is not installed.
    """
    for library, extra in ((backend, backend), ("keras", "train"), ("matplotlib", "train")):
        if importlib.util.find_spec(library) is None:
            raise MissingLibraryError(f'{library} is not installed; pip install "evenkeel[{extra}]"')


def _import_keras(backend: str) -> None:
    """Import Keras for `backend`.

    Raises:
        MissingLibraryError: it cannot be.
    """
    _require(backend)
    os.environ["KERAS_BACKEND"] = backend
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with _quiet():
        import evenkeel.workloads.models  # noqa: F401


@contextlib.contextmanager
def _quiet(*descriptors: int) -> Iterator[None]:
    """Drop what is written to these file descriptors, stderr by default.

    TensorFlow 2.21 talks about oneDNN there when it is imported, and Gloo on stdout about its peers.
    """
    with contextlib.ExitStack() as stack:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        stack.callback(os.close, nowhere)
        for descriptor in descriptors or (2,):
            kept = os.dup(descriptor)
            stack.callback(os.close, kept)
            stack.callback(os.dup2, kept, descriptor)
            os.dup2(nowhere, descriptor)
        yield


def _new(settings: Settings, images: np.ndarray, place: Place = ALONE) -> Trainer:
    """An untrained network for such images; the settings decide its weights."""
    name = f"apis.{settings.api}" if place.processes == 1 else f"parallel.{settings.backend}"
    with _quiet():  # TensorFlow may be imported only here, and Keras seeds it where it is installed
        module = importlib.import_module(f"evenkeel.workloads.{name}")
        network: Trainer = module.Network(settings, images.shape[1:])
    return network


def _epochs(
    numbers: range, network: Trainer, dataset: Dataset, settings: Settings, *, after_step: Callable[[], None]
) -> Iterator[Row]:
    """Train `network`, epoch after epoch. Each depends on the weights, the seed and its own number alone."""
    for epoch in numbers:
        order = np.random.default_rng([settings.seed, epoch]).permutation(len(dataset.train_labels))
        images, labels = dataset.train_images[order], dataset.train_labels[order]
        network.epoch(images, labels, after_step=after_step)
        train = network.evaluate(images, labels, training=True)
        test = network.evaluate(dataset.test_images, dataset.test_labels, training=False)
        row = Row(epoch, *train, *test)
        if not math.isfinite(row.train_loss + row.test_loss):
            raise ArgumentError(
                f"--learning-rate {settings.learning_rate} led to losses of {row.train_loss} and {row.test_loss} "
                f"in epoch {epoch}; give a smaller one"
            )
        yield row


# What is shown.


def _progress(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def _line(row: Row) -> str:
    return (
        f"{row.epoch:5}   {row.train_loss:10.4f}   {row.train_accuracy:14.4f}   "
        f"{row.test_loss:9.4f}   {row.test_accuracy:13.4f}"
    )


def _plot(out: Path, rows: list[Row]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    epochs = [row.epoch for row in rows]
    left.plot(epochs, [row.train_loss for row in rows], marker=".", label="training phase, train images")
    left.plot(epochs, [row.test_loss for row in rows], marker=".", label="inference phase, test images")
    left.set(xlabel="epoch", ylabel="cross-entropy (nats)", title="Loss")
    right.plot(epochs, [row.train_accuracy for row in rows], marker=".", label="training phase, train images")
    right.plot(epochs, [row.test_accuracy for row in rows], marker=".", label="inference phase, test images")
    right.set(xlabel="epoch", ylabel="share read right", title="Accuracy")
    for axes in (left, right):
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.legend()
    with replacing(out / CURVES) as path:
        figure.savefig(path)


def _compare(console: Console, network: Trainer, path: Path, images: np.ndarray, settings: Settings) -> None:
    """Predict with the network in memory and with `path` in a fresh process, and say whether any bit differs."""
    here = network.predict(images)
    try:
        with Process(_predictions, path, images, settings, environment={}) as fresh:
            (there,) = fresh
    except ProcessEndedError as error:
        raise UnequalError(f"{path} in a fresh process predicts nothing: {error}") from error
    if here.tobytes() != there.tobytes():
        difference = np.abs(here - there).max()
        print(f"evenkeel: {path} in a fresh process predicts logits up to {difference:.2g} apart", file=sys.stderr)
        raise typer.Exit(1)
    console.print(f"A fresh process loaded {path.name}: its {len(images)} predictions are identical, bit for bit.")


def _predictions(path: Path, images: np.ndarray, settings: Settings) -> Generator[np.ndarray, None, None]:
    _import_keras(settings.backend)
    network = _new(settings, images)
    network.restore(path)
    yield network.predict(images)
