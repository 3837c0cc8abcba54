# SPDX-License-Identifier: Apache-2.0
"""What takes the place of what."""

import pytest

from evenkeel.files import replacing


def test_a_folder_takes_the_place_of_a_folder(tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "old").touch()
    with replacing(tmp_path / "x") as partial:
        partial.mkdir()
        (partial / "new").touch()
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == ["x", "x/new"]


def test_a_file_takes_no_folders_place(tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "old").touch()
    with pytest.raises(OSError, match="x"), replacing(tmp_path / "x") as partial:
        partial.touch()
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == ["x", "x/old"]


def test_what_a_killed_process_left_is_gone(tmp_path):
    (tmp_path / "partial-x").mkdir()
    (tmp_path / "partial-x" / "half").touch()
    with replacing(tmp_path / "x") as partial:
        partial.write_text("whole")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
