# SPDX-License-Identifier: Apache-2.0
"""Programs as files: what is read, and how what cannot be read is refused."""

import json
from pathlib import Path

import pytest

import evenkeel as ek
from evenkeel.doctor import subjects
from evenkeel.doctor.evidence import Source
from evenkeel.errors import InputError

SICK = "import torch\nbn = torch.nn.BatchNorm1d(3, momentum=0.9)\n"


def write(folder, data, name="program.py"):
    path = folder / name
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


@pytest.mark.parametrize("kind", [str, Path])
def test_a_path_is_a_program(tmp_path, kind):
    report = ek.diagnose(kind(write(tmp_path, SICK)))
    assert [(finding.rule, finding.line, finding.column) for finding in report.findings] == [("EK608", 2, 39)]
    assert report.kind == "Python program" and report.unseen == () and not report.healthy


def test_a_source_is_a_program():
    assert [finding.where for finding in ek.diagnose(Source.of(SICK, "x.py")).findings] == ["x.py"]


@pytest.mark.parametrize("name", ["folder.py", "folder.ipynb"])
def test_a_folder_is_no_program(tmp_path, name):
    (tmp_path / name).mkdir()
    assert subjects.of(str(tmp_path / "program.py")).KIND == "Python program"
    assert not subjects.importlib.import_module("evenkeel.doctor.subjects.source").recognises(tmp_path / name)


def test_a_program_without_batch_normalization_is_said_to_have_none(tmp_path):
    report = ek.diagnose(write(tmp_path, "print('nothing')"))
    assert report.findings == () and "no call in this file" in report.unseen[0].why


def test_a_missing_file(tmp_path):
    with pytest.raises(InputError, match=r"missing\.py cannot be read: No such file"):
        ek.diagnose(tmp_path / "missing.py")


@pytest.mark.parametrize(
    ("encoding", "first"),
    [("latin-1", "# -*- coding: latin-1 -*-"), ("utf-8-sig", ""), ("utf-8", ""), ("gbk", "# coding: gbk")],
)
def test_the_declared_encoding_is_honoured(tmp_path, encoding, first):
    comment = "# 批" if encoding == "gbk" else "# é"
    path = write(tmp_path, f"{first}\n{comment}\n{SICK}".encode(encoding))
    assert [finding.line for finding in ek.diagnose(path).findings] == [4]


def test_lines_of_windows(tmp_path):
    assert [finding.line for finding in ek.diagnose(write(tmp_path, SICK.replace("\n", "\r\n"))).findings] == [2]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("import torch\nprint 'loss', loss\n", 2),
        ("try:\n    pass\nexcept IOError, e:\n    pass\n", 3),
        ("if a <> b:\n    pass\n", 1),
        ("x = 0777\n", 1),
        ("if a:\n\tx = 1\n        y = 2\n", 3),
    ],
    ids=["print", "except", "unequal", "octal", "tabs"],
)
def test_a_program_for_python_2(tmp_path, text, line):
    with pytest.raises(InputError, match=rf"line {line} is not Python 3.*2to3 -w"):
        ek.diagnose(write(tmp_path, text))


@pytest.mark.parametrize(
    "data",
    [
        b"x = 1\0\n",
        b"\xff\xfe\x00\x01",
        b"# coding: no-such-encoding\nx = 1\n",
        b"# coding: ascii\nx = '\xc3\xa9'\n",
        b"x = '\xc3'\n",
        b"x = " + b"(" * 5000 + b")" * 5000,
        b"x = " + b"[" * 150000,
        b"x = " + b"-" * 100000 + b"1",
        b"x = " + b"not " * 100000 + b"1",
        b"x = " + b"1+" * 100000 + b"1",
        b"x = a" + b".a" * 100000,
        b"x = a" + b"()" * 100000,
        b"x = " + b"9" * 5000,
        b"x = 'a" + b"\n" * 10,
        b"# " + b"x" * (5 << 20),
        b"if 1:\n" + b"".join(b" " * i + b"if 1:\n" for i in range(1, 200)),
    ],
    ids=range(16),
)
def test_a_hostile_file_is_one_error(tmp_path, data):
    with pytest.raises(InputError, match=r"program\.py"):
        ek.diagnose(write(tmp_path, data))


def test_warnings_about_the_text_are_not_ours(tmp_path):
    assert ek.diagnose(write(tmp_path, "import torch\nx = '\\d' is 'y'\n" + SICK)).errors


def notebook(*cells):
    return json.dumps({"cells": [{"cell_type": kind, "source": text} for kind, text in cells]})


def test_a_notebook(tmp_path):
    text = notebook(
        ("markdown", ["# print 'no code'"]),
        ("code", ["%matplotlib inline\n", "!pip install torch\n", "if True:\n", "    %time 3"]),
        ("code", "%%bash\nls"),
        ("code", SICK),
    )
    assert [finding.rule for finding in ek.diagnose(write(tmp_path, text, "program.ipynb")).findings] == ["EK608"]


@pytest.mark.parametrize("text", ["[]", "{}", "no JSON", '{"cells": [3]}', "[" * 100000, '{"cells": 3}'])
def test_no_notebook(tmp_path, text):
    with pytest.raises(InputError, match=r"program\.ipynb"):
        ek.diagnose(write(tmp_path, text, "program.ipynb"))


def test_cells_that_are_timed_and_lines_that_go_on_with_an_operator(tmp_path):
    cells = [
        "%%time\nimport torch.nn as nn\nbn = nn.BatchNorm2d(8, momentum=0.99)",
        "name = 'x'\ntext = ('%s'\n    % name)\nother = (text\n    != name)",
        "%matplotlib inline\n!ls\n%%bash is no cell here",
    ]
    text = notebook(*(("code", cell) for cell in cells))
    assert [finding.rule for finding in ek.diagnose(write(tmp_path, text, "program.ipynb")).findings] == ["EK608"]
