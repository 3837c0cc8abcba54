# SPDX-License-Identifier: Apache-2.0
"""Rows on disk: whole lines whatever happens, nothing overwritten, and a message where nobody can write."""

import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pytest

import evenkeel
from evenkeel.doctor.monitor.records import Records
from evenkeel.errors import InputError, MissingLibraryError


class Row(NamedTuple):
    epoch: int
    normalizer: str
    kl: float


HEADER = "epoch,normalizer,kl"


def test_a_header_and_a_line_a_row(tmp_path):
    records = Records(Row, tmp_path / "bn.csv", None, append=False)
    records.write([Row(0, "a", 0.123456789), Row(0, 'b "c", d', float("nan"))])
    records.write([Row(1, "a", float("inf"))])
    assert (tmp_path / "bn.csv").read_text().splitlines() == [
        HEADER,
        "0,a,0.123457",
        '0,"b ""c"", d",',
        "1,a,inf",
    ]


@pytest.mark.parametrize("text", [None, "", f"{HEADER}\n0,a,1\n"])
def test_a_file_goes_on_when_asked(text, tmp_path):
    path = tmp_path / "bn.csv"
    if text is not None:
        path.write_text(text)
    Records(Row, path, None, append=True).write([Row(1, "a", 2.0)])
    assert path.read_text() == (text or f"{HEADER}\n") + "1,a,2\n"


@pytest.mark.parametrize("text", ["", f"{HEADER}\n"])
def test_a_file_that_is_there_stays(text, tmp_path):
    path = tmp_path / "bn.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=r"bn\.csv is there already; give append=True"):
        Records(Row, path, None, append=False)
    assert path.read_text() == text


@pytest.mark.parametrize("text", ["epoch,loss\n0,0.5\n", HEADER, "\0\xff"])
def test_a_file_of_something_else_does_not_go_on(text, tmp_path):
    path = tmp_path / "loss.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=r"loss\.csv is no CSV that goes on with the columns epoch,normalizer,kl"):
        Records(Row, path, None, append=True)
    assert path.read_text() == text


def test_half_a_last_line_is_not_gone_on_with(tmp_path):
    path = tmp_path / "bn.csv"
    path.write_text(f"{HEADER}\n0,a,1\n1,a")
    with pytest.raises(InputError, match=r"bn\.csv ends in the middle of a line"):
        Records(Row, path, None, append=True)


def test_a_folder_that_is_missing_is_named(tmp_path):
    with pytest.raises(InputError, match="is not a folder"):
        Records(Row, tmp_path / "none" / "bn.csv", None, append=False)


ENDLESS = """
import sys
sys.path[:0] = {path!r}
from typing import NamedTuple
from evenkeel.doctor.monitor.records import Records
class Row(NamedTuple):
    epoch: int
    normalizer: str
    kl: float
records = Records(Row, {file!r}, None, append=False)
while True:
    records.write([Row(epoch, "first/second/third", epoch / 7) for epoch in range(1000)])
"""


def test_a_process_that_is_killed_leaves_whole_lines(tmp_path):
    file = tmp_path / "bn.csv"
    source = [str(Path(evenkeel.__file__).parents[1]), *sys.path]
    process = subprocess.Popen([sys.executable, "-c", ENDLESS.format(path=source, file=str(file))])
    try:
        deadline = time.monotonic() + 60
        while not file.exists() or file.stat().st_size < 200_000:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        process.kill()
        process.wait()
    text = file.read_text()
    assert text.endswith("\n") and {line.count(",") for line in text.splitlines()} == {2}


def test_without_a_writer_the_message_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(MissingLibraryError, match="pip install tensorflow-cpu"):
        Records(Row, None, tmp_path, append=False)
