"""Files appear whole or not at all."""

import errno
import os
from pathlib import Path

import pytest

from engine.host import atomic_files


def test_a_file_appears_whole_with_the_rights_of_any_new_file(tmp_path):
    atomic_files.write_text(tmp_path / "new" / "a.txt", "größe")
    assert (tmp_path / "new" / "a.txt").read_text(encoding="utf-8") == "größe"
    (tmp_path / "plain").write_text("x")
    assert (tmp_path / "new" / "a.txt").stat().st_mode == (tmp_path / "plain").stat().st_mode
    assert os.listdir(tmp_path / "new") == ["a.txt"]


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), ValueError("x"), OSError(errno.ENOSPC, "No space left")])
def test_a_failure_leaves_what_was_there(tmp_path, failure):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(type(failure)), atomic_files.replacing(path) as temporary:
        temporary.write_text("half")
        assert temporary.parent == tmp_path and temporary.suffix == ".txt" and path.read_text() == "old"
        raise failure
    assert os.listdir(tmp_path) == ["a.txt"] and path.read_text() == "old"


def test_a_full_disk_says_where(tmp_path):
    with pytest.raises(OSError) as error, atomic_files.replacing(tmp_path / "a.txt"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert error.value.filename == str(tmp_path / "a.txt")


def test_places_that_take_no_folder(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(NotADirectoryError):
        atomic_files.write_text(tmp_path / "file" / "folder" / "a.txt", "x")
    if Path("/proc/self").exists():
        with pytest.raises(PermissionError, match="/proc/nothing"):
            atomic_files.write_text(Path("/proc/nothing/a.txt"), "x")
