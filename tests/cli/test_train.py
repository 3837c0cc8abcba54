# SPDX-License-Identifier: Apache-2.0
"""`evenkeel train`: what it learns, keeps, survives and refuses."""

import contextlib
import gzip
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from evenkeel.cli import application, train
from evenkeel.errors import EvenkeelError, MissingLibraryError
from evenkeel.files import replacing

SOURCE = Path(__file__).parents[2] / "src"
BACKEND = os.environ["KERAS_BACKEND"]
EPOCHS = 8
MODEL = "model.keras"
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")
needs_keras = pytest.mark.skipif(BACKEND == "numpy", reason="Keras trains on TensorFlow, JAX and PyTorch")


def python(*arguments):
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), "KERAS_BACKEND": "tensorflow"}
    return subprocess.Popen(
        [sys.executable, *arguments],
        # Two trainings run side by side here, and PyTorch's threads wait by spinning: 4 times slower on 2 cores.
        env={**environment, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def started(*arguments):
    return python("-m", "evenkeel", "train", *map(str, arguments))


class Ended(NamedTuple):
    code: int
    out: str
    err: str


def ended(process):
    out, err = process.communicate()
    return Ended(process.returncode, out, err)


def run(*arguments):
    with started(*arguments) as process:
        return ended(process)


def history(folder):
    return json.loads((folder / train.HISTORY).read_text())


def wait_for_an_epoch(process, folder):
    """Until `process` has saved one; what is left goes on after that."""
    while process.poll() is None:
        with contextlib.suppress(FileNotFoundError):
            if history(folder)["epochs"]:
                return
        time.sleep(0.005)
    raise AssertionError(f"ended before it could be killed: {ended(process)}")


class Runs(NamedTuple):
    """The same training in one go, and killed and resumed.

    killed: how many epochs there were after `kill -9`.
    """

    whole: Ended
    whole_folder: Path
    killed: int
    resumed: Ended
    resumed_folder: Path


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("train")
    arguments = ["--backend", BACKEND, "--epochs", EPOCHS, "--seed", 5]
    parts = folder / "parts"
    with started(*arguments, "--out", folder / "whole") as whole:
        with started(*arguments, "--out", parts) as process:
            wait_for_an_epoch(process, parts)
            process.kill()
        killed = len(history(parts)["epochs"])
        resumed = run(*arguments, "--out", parts, "--resume")
        return Runs(ended(whole), folder / "whole", killed, resumed, parts)


@needs_keras
def test_it_learns(runs):
    assert runs.whole.code == 0, runs.whole.err
    assert history(runs.whole_folder)["epochs"][-1]["test_accuracy"] >= 0.96


@needs_keras
def test_a_row_an_epoch(runs):
    head, *lines = runs.whole.out.splitlines()
    assert head == train.HEADER
    rows = [train.Row(**row) for row in history(runs.whole_folder)["epochs"]]
    assert [row.epoch for row in rows] == list(range(1, EPOCHS + 1))
    assert lines[:EPOCHS] == [train._line(row) for row in rows]


@needs_keras
def test_the_saved_model_predicts_the_same(runs):
    assert runs.whole.out.splitlines()[-1] == (
        "A fresh process loaded model.keras: its 360 predictions are identical, bit for bit."
    )


@needs_keras
def test_nothing_else_is_said(runs):
    assert runs.whole.err == ""


@needs_keras
def test_the_folder_holds_what_was_promised(runs):
    assert sorted(path.name for path in runs.resumed_folder.iterdir()) == [train.CURVES, train.HISTORY, MODEL]


@needs_keras
def test_the_curves_are_a_picture(runs):
    assert (runs.whole_folder / train.CURVES).read_bytes().startswith(b"\x89PNG")


@needs_keras
def test_the_run_was_killed_in_the_middle(runs):
    assert 1 <= runs.killed < EPOCHS


@needs_keras
def test_resumed_runs_have_the_numbers_of_one_run(runs):
    assert runs.resumed.code == 0, runs.resumed.err
    assert history(runs.resumed_folder) == history(runs.whole_folder)


@needs_keras
def test_another_seed_would_have_been_noticed(runs):
    other = train.Settings(**history(runs.whole_folder)["settings"])._replace(seed=6)
    with pytest.raises(EvenkeelError, match="--seed was 5 and now is 6; --resume needs the same settings"):
        train._previous(runs.whole_folder, other, EPOCHS)


@needs_keras
def test_fewer_epochs_than_there_are_is_refused(runs):
    settings = train.Settings(**history(runs.whole_folder)["settings"])
    with pytest.raises(EvenkeelError, match=f"has {EPOCHS} epochs, and 3 were asked"):
        train._previous(runs.whole_folder, settings, 3)


@needs_keras
def test_more_epochs_than_there_are_go_on(runs):
    settings = train.Settings(**history(runs.whole_folder)["settings"])
    assert len(train._previous(runs.whole_folder, settings, EPOCHS + 1).epochs) == EPOCHS


@needs_keras
def test_a_model_that_predicts_otherwise_is_noticed(runs, capsys):
    images = np.ones((3, 8, 8, 1), "float32")
    settings = train.Settings(**history(runs.whole_folder)["settings"])
    network = train._new(settings, images)
    network.restore(runs.whole_folder / MODEL)
    network.model.set_weights([weights + 1e-6 for weights in network.model.get_weights()])
    with pytest.raises(typer.Exit) as ended:
        train._compare(Console(), network, runs.whole_folder / MODEL, images, settings)
    assert ended.value.exit_code == 1
    assert "in a fresh process predicts logits up to" in capsys.readouterr().err


@pytest.fixture
def settings():
    return train.Settings("mlp", "digits", BACKEND, 8, 0.02, 0.9, False, None, 0)


@pytest.fixture
def dataset():
    """41 images to train on and as many to test on, so that the last batch of 8 is a batch of one."""
    whole = train._dataset(None, 0)
    return type(whole)(*(part[:41] for part in whole))


@needs_keras
@pytest.mark.parametrize(
    "changed",
    [{"model": "convnet", "virtual_batch_size": 3}, {"model": "resnet", "renorm": True}],
    ids=["convnet", "resnet"],
)
def test_models_and_options_train(settings, dataset, changed):
    settings = settings._replace(**changed)
    steps = []
    network = train._new(settings, dataset.train_images)
    rows = list(train._epochs(range(1, 4), network, dataset, settings, after_step=lambda: steps.append(1)))
    assert len(steps) == 3 * 6
    assert rows[-1].train_loss < rows[0].train_loss


@needs_keras
def test_measuring_changes_nothing(settings, dataset):
    network, trained_only = train._new(settings, dataset.train_images), train._new(settings, dataset.train_images).model
    assert len(list(train._epochs(range(1, 2), network, dataset, settings, after_step=lambda: None))) == 1
    order = np.random.default_rng([0, 1]).permutation(41)
    trained_only.fit(dataset.train_images[order], dataset.train_labels[order], 8, shuffle=False, verbose=0)
    for one, other in zip(network.model.get_weights(), trained_only.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.fixture
def in_both_ways(settings, dataset):
    """A network that was asked in the training phase to measure, and the same one as training asks it."""
    from evenkeel.workloads.models import InTrainingPhase

    measured, trained = (train._new(settings, dataset.train_images).model for _ in range(2))
    return (
        measured,
        InTrainingPhase(measured)(dataset.train_images),
        trained,
        trained(dataset.train_images, training=True),
    )


@needs_keras
def test_measuring_sees_what_training_sees(backend, in_both_ways):
    _, one, _, other = in_both_ways
    np.testing.assert_array_equal(backend.numpy(one), backend.numpy(other))


@needs_keras
def test_measuring_drops_the_new_statistics_and_training_keeps_them(settings, dataset, in_both_ways):
    measured, _, trained, _ = in_both_ways
    new = train._new(settings, dataset.train_images).model.get_weights()
    assert all(map(np.array_equal, new, measured.get_weights()))
    assert not all(map(np.array_equal, new, trained.get_weights()))


@needs_keras
def test_a_loss_that_is_no_number_names_the_learning_rate(settings, dataset):
    settings = settings._replace(learning_rate=1e30)
    network = train._new(settings, dataset.train_images)
    with pytest.raises(EvenkeelError, match=r"--learning-rate 1e\+30 led to losses of"):
        list(train._epochs(range(1, 3), network, dataset, settings, after_step=lambda: None))


def idx(values):
    return bytes([0, 0, 8, values.ndim]) + np.asarray(values.shape, ">i4").tobytes() + values.astype("uint8").tobytes()


@needs_keras
def test_a_folder_of_idx_files_trains(monkeypatch, tmp_path, dataset):
    for part, images, labels in (("train", *dataset[:2]), ("t10k", *dataset[2:])):
        larger = np.kron(images[..., 0] * 255, np.ones((1, 3, 3)))
        (tmp_path / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(larger)))
        (tmp_path / f"{part}-labels-idx1-ubyte").write_bytes(idx(labels))
    monkeypatch.setattr(train, "_compare", lambda *_: None)
    train.run(data=tmp_path, backend=BACKEND, epochs=1, out=tmp_path / "out")
    assert history(tmp_path / "out")["settings"]["data"] == str(tmp_path)
    import keras

    assert keras.saving.load_model(tmp_path / "out" / MODEL).input_shape == (None, 24, 24, 1)


@pytest.fixture
def interruptible():
    # A process that a script starts in the background ignores Ctrl-C, and so would its tests.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@needs_keras
@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_keeps_the_epochs_and_is_one_line(monkeypatch, tmp_path, dataset):
    def interrupted(*arguments, **options):
        yield train.Row(1, 0.5, 0.9, 0.6, 0.8)
        os.kill(os.getpid(), signal.SIGINT)
        yield train.Row(2, 0.5, 0.9, 0.6, 0.8)

    monkeypatch.setattr(train, "_dataset", lambda folder, seed: dataset)
    monkeypatch.setattr(train, "_epochs", interrupted)
    result = CliRunner().invoke(application(), ["train", "--backend", BACKEND, "--out", str(tmp_path)])
    assert result.exit_code == 130
    assert result.stderr == (
        f"evenkeel: interrupted; {tmp_path} has 1 of 30 epochs; the same command with --resume goes on\n"
    )
    assert [row["epoch"] for row in history(tmp_path)["epochs"]] == [1]


@needs_keras
@pytest.mark.parametrize("content", [b"", b"PK\3\4 and then something else"], ids=["empty", "no archive"])
def test_a_checkpoint_that_is_none(tmp_path, settings, dataset, content):
    (tmp_path / "checkpoint-3.keras").write_bytes(content)
    network = train._new(settings, dataset.train_images)
    with pytest.raises(EvenkeelError, match=r"checkpoint-3.keras cannot be loaded .*; start again with --overwrite"):
        network.restore(tmp_path / "checkpoint-3.keras")


@needs_keras
@pytest.mark.parametrize(("library", "extra"), [(BACKEND, BACKEND), ("keras", "train"), ("matplotlib", "train")])
def test_a_missing_library_names_the_extra(monkeypatch, library, extra):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == library else found(name))
    with pytest.raises(MissingLibraryError, match=rf'{library} is not installed; pip install "evenkeel\[{extra}\]"'):
        train._import_keras(BACKEND)


needs_tensorflow = pytest.mark.skipif(BACKEND != "tensorflow", reason="the old APIs are TensorFlow's")
without_tf_keras = pytest.mark.skipif(importlib.util.find_spec("tf_keras") is None, reason="tf_keras is not installed")
OLD = ["helper", "layers", "contrib", "estimator", pytest.param("keras", marks=without_tf_keras)]
RESUMED = {"layers": ".saver", "estimator": ".estimator", "keras": ".h5"}  # one for each way to save
DAMAGED = {
    "layers": "model.saver/model.ckpt.index",
    "estimator": "model.estimator/model.ckpt-90.data-00000-of-00001",
    "keras": "model.h5",
}
# TensorFlow is imported once, and each training is a copy of that process. After it come its exit code on stdout,
# between two zeros, and a zero on stderr.
IN_TURN = """
import json, os, sys
from evenkeel.cli import application, train
train._import_keras("tensorflow")
import evenkeel.tf1
if sys.argv[1] == "unproved":
    train._compare = lambda *_: None
for command in json.loads(sys.argv[2]):
    child = os.fork()
    if not child:
        application()(["train", *command])
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(end=f"\\0{code}\\0", flush=True)
    print(end="\\0", file=sys.stderr, flush=True)
"""


def run_in_turn(*commands, proof="proved"):
    """How each training ended; `unproved`, without the fresh process that predicts once more."""
    with python("-c", IN_TURN, proof, json.dumps([[*map(str, command)] for command in commands])) as process:
        whole = ended(process)
    assert whole.code == 0, whole.err
    out, err = whole.out.split("\0"), whole.err.split("\0")
    return [Ended(int(code), *texts) for code, *texts in zip(out[1::2], out[:-1:2], err[:-1], strict=True)]


class OldRuns(NamedTuple):
    """Of each old API. Those in `RESUMED` had two epochs in one process, and the third in another.

    damaged: the second part, where the first part's file was cut.
    diverged: with a learning rate that is too large.
    """

    ended: dict[str, Ended]
    folder: dict[str, Path]
    damaged: dict[str, Ended]
    diverged: dict[str, Ended]


@pytest.fixture(scope="module")
def old_runs(tmp_path_factory):
    parent = tmp_path_factory.mktemp("old")
    resumed = [api for api in RESUMED if api != "keras" or importlib.util.find_spec("tf_keras")]
    once, diverging = ["helper", "contrib"], ["layers", "estimator"]
    folder = {api: parent / api for api in [*once, *resumed]}
    first = [["--api", api, "--epochs", 2, "--out", folder[api]] for api in resumed]
    for part in run_in_turn(*first, proof="unproved"):
        assert part.code == 0, part.err
    for api in resumed:
        shutil.copytree(folder[api], parent / f"damaged-{api}")
        path = parent / f"damaged-{api}" / DAMAGED[api]
        path.write_bytes(path.read_bytes()[:100])
    commands = [
        *(["--api", api, "--epochs", 3, "--out", folder[api]] for api in once),
        *(["--api", api, "--epochs", 3, "--out", folder[api], "--resume"] for api in resumed),
        *(["--api", api, "--epochs", 3, "--out", parent / f"damaged-{api}", "--resume"] for api in resumed),
        *(
            ["--api", api, "--epochs", 2, "--out", parent / f"1e30-{api}", "--learning-rate", "1e30"]
            for api in diverging
        ),
    ]
    ends = iter(run_in_turn(*commands))
    groups = [{api: next(ends) for api in apis} for apis in ([*once, *resumed], resumed, diverging)]
    return OldRuns(groups[0], folder, *groups[1:])


def numbers(folder):
    return np.array([list(row.values()) for row in history(folder)["epochs"]])


def our_rows(epochs, momentum):
    settings = train.Settings("mlp", "digits", "tensorflow", 32, 0.1, momentum, False, None, 0)
    dataset = train._dataset(None, 0)
    network = train._new(settings, dataset.train_images)
    return np.array(list(train._epochs(range(1, epochs + 1), network, dataset, settings, after_step=lambda: None)))


@pytest.fixture(scope="module")
def our_numbers():
    return our_rows(3, momentum=0.9)


# From the same first weights and batches: what is left is rounding, 1e-7 where this was written.
SAME = 1e-5


@needs_tensorflow
@pytest.mark.parametrize("api", OLD)
def test_all_apis_learn_the_same(old_runs, our_numbers, api):
    assert old_runs.ended[api].code == 0, old_runs.ended[api].err
    np.testing.assert_allclose(numbers(old_runs.folder[api]), our_numbers, rtol=0, atol=SAME)


@needs_tensorflow
def test_another_average_would_have_been_noticed(our_numbers):
    row = train.Row(*our_rows(1, momentum=0.9 * 32 / 31)[0])
    assert abs(row.train_loss - our_numbers[0, 1]) <= SAME
    assert abs(row.test_loss - our_numbers[0, 3]) > 100 * SAME


@needs_tensorflow
@pytest.mark.parametrize("api", OLD)
def test_an_old_api_prints_the_same_table(old_runs, api):
    ended, folder = old_runs.ended[api], old_runs.folder[api]
    saved = next(folder.glob("model.*")).name
    assert ended.err == ""
    assert ended.out.splitlines() == [
        train.HEADER,
        *(train._line(train.Row(**row)) for row in history(folder)["epochs"]),
        f"{folder} has {saved}, history.json and curves.png.",
        f"A fresh process loaded {saved}: its 360 predictions are identical, bit for bit.",
    ]


@needs_tensorflow
@pytest.mark.parametrize("api", OLD)
def test_an_old_api_leaves_what_it_saved_and_no_more(old_runs, api):
    saved = f"model{RESUMED.get(api, '.saver')}"
    assert sorted(path.name for path in old_runs.folder[api].iterdir()) == [train.CURVES, train.HISTORY, saved]


@needs_tensorflow
@pytest.mark.parametrize("api", ["layers", "estimator", pytest.param("keras", marks=without_tf_keras)])
def test_what_an_old_api_cannot_read_is_named(old_runs, api):
    ended = old_runs.damaged[api]
    assert ended.code == 2
    assert len(ended.err.splitlines()) == 1
    assert f"model{RESUMED[api]} cannot be loaded (" in ended.err


@needs_tensorflow
def test_overwriting_removes_folders_too(old_runs, tmp_path):
    shutil.copytree(old_runs.folder["layers"], tmp_path / "run")
    train._clear(tmp_path / "run")
    assert list((tmp_path / "run").iterdir()) == []


@needs_tensorflow
@pytest.mark.parametrize("api", ["layers", "estimator"])
def test_an_old_api_names_the_learning_rate_too(old_runs, api):
    ended = old_runs.diverged[api]
    assert ended.code == 2
    assert len(ended.err.splitlines()) == 1
    assert "--learning-rate 1e+30 led to" in ended.err


def test_a_file_is_replaced_as_a_whole(tmp_path):
    path = tmp_path / "history.json"
    path.write_text("old")
    with replacing(path) as partial:
        partial.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def half_written(path):
    with replacing(path) as partial:
        partial.write_text("ne")
        raise KeyboardInterrupt


def test_a_file_half_written_never_takes_the_name(tmp_path):
    path = tmp_path / "history.json"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt):
        half_written(path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


SAVED = {
    "settings": train.Settings("mlp", "digits", "tensorflow", 32, 0.1, 0.9, False, None, 0)._asdict(),
    "checkpoint": "checkpoint-1.keras",
    "epochs": [train.Row(1, 0.5, 0.9, 0.6, 0.8)._asdict()],
}
HERE = "{folder}"
REFUSED = {
    "no such data": (["--data", HERE + "/nowhere"], "", "nowhere is not a folder"),
    "no data in the folder": (["--data", HERE], "", "has neither train-images-idx3-ubyte nor"),
    "a run is there": (["--out", HERE], json.dumps(SAVED), "already has history.json; give --resume, --overwrite or"),
    "no run is there": (["--out", HERE + "/new", "--resume"], "", "has no history.json, so no run to go on with"),
    "out is a file": (["--out", HERE + "/history.json"], "", "cannot be made a folder"),
    "resume and overwrite": (["--resume", "--overwrite"], "", "--resume and --overwrite were given; give one of them"),
    "other settings": (
        ["--out", HERE, "--resume", "--batch-size", "64", "--renorm"],
        json.dumps(SAVED),
        "--batch-size was 32 and now is 64, --renorm was False and now is True; --resume needs the same settings",
    ),
    "another API": (
        ["--out", HERE, "--resume", "--api", "layers"],
        json.dumps(SAVED),
        "--api was evenkeel and now is layers; --resume needs the same settings",
    ),
    "a network of ours alone": (
        ["--api", "layers", "--model", "convnet"],
        "",
        "--model convnet needs --api evenkeel, and --api layers was given; give --model mlp",
    ),
    "a backend of ours alone": (
        ["--api", "keras", "--backend", "jax"],
        "",
        "--backend jax needs --api evenkeel, and --api keras was given; give --backend tensorflow",
    ),
    "renorm of ours alone": (
        ["--api", "contrib", "--renorm"],
        "",
        "--renorm needs --api evenkeel, and --api contrib was given; leave it out",
    ),
    "virtual batches of ours alone": (
        ["--api", "estimator", "--virtual-batch-size", "8"],
        "",
        "--virtual-batch-size 8 needs --api evenkeel, and --api estimator was given; leave it out",
    ),
    "half a history": (["--out", HERE, "--resume"], json.dumps(SAVED)[:40], "history.json cannot be read"),
    "another history": (["--out", HERE, "--resume"], '{"epochs": []}', "history.json cannot be read ('settings')"),
}


@pytest.fixture
def invoked(monkeypatch):
    """The command in this process, told of no backend but the one it is given."""
    monkeypatch.setenv("KERAS_BACKEND", "tensorflow")
    return lambda *arguments: CliRunner().invoke(application(), ["train", *arguments])


@pytest.mark.parametrize(("arguments", "content", "said"), REFUSED.values(), ids=REFUSED)
def test_refused_in_one_line_with_exit_code_2(invoked, tmp_path, arguments, content, said):
    (tmp_path / train.HISTORY).write_text(content)
    result = invoked(*(argument.format(folder=tmp_path) for argument in arguments))
    assert result.exit_code == 2
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith("evenkeel: ")
    assert said in result.stderr


@pytest.mark.parametrize("arguments", [["--model", "transformer"], ["--epochs", "0"], ["--learning-rate", "nan"]])
def test_an_option_out_of_range_ends_with_exit_code_2(invoked, arguments):
    result = invoked(*arguments)
    assert result.exit_code == 2
    assert arguments[0] in result.stderr
    assert "Traceback" not in result.stderr
