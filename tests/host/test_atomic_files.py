"""Files appear whole or not at all."""

import errno
import os
from pathlib import Path

import pytest

from engine.errors import InputError
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


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def test_rests_go_when_their_writer_is_gone(tmp_path):
    (tmp_path / ".writing-of-a-killed-process.png").write_text("half")
    (tmp_path / ".writing-folder" / "deep").mkdir(parents=True)
    with atomic_files.replacing(tmp_path / "b.png") as temporary:
        atomic_files.sweep(tmp_path)  # as another process does
        assert names(tmp_path) == [temporary.name] and temporary.exists()
        temporary.write_text("whole")
    assert names(tmp_path) == ["b.png"]


def test_without_locks_only_old_rests_go(tmp_path, monkeypatch):
    """A file system that has none cannot tell whether the writer on another machine still runs."""

    def none(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(atomic_files.fcntl, "flock", none)
    for name in (".writing-new", ".writing-old"):
        (tmp_path / name).write_text("half")
    os.utime(tmp_path / ".writing-old", (0, 0))
    atomic_files.sweep(tmp_path)
    assert names(tmp_path) == [".writing-new"]
    atomic_files.write_text(tmp_path / "a", "x")
    assert names(tmp_path) == [".writing-new", "a"] and atomic_files.contents(tmp_path) == ["a"]


def test_a_rest_that_was_swept_before_its_lock_is_made_again(tmp_path, monkeypatch):
    locked, swept = atomic_files._locked, []

    def slow(handle):
        if not swept:
            swept.extend(path.unlink() for path in tmp_path.iterdir())
        return locked(handle)

    monkeypatch.setattr(atomic_files, "_locked", slow)
    atomic_files.write_text(tmp_path / "a", "x")
    assert swept and names(tmp_path) == ["a"]


def test_a_folder_appears_whole(tmp_path):
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "new" / "folder", tmp_path / "empty"):
        with atomic_files.whole_folder(path) as temporary:
            (temporary / "deep").mkdir()
            (temporary / "deep" / "a").write_text("x")
            assert atomic_files.contents(path) == [] and atomic_files.is_rest(temporary.name)
        assert ((path / "deep" / "a").read_text() == "x" and names(path.parent) == [path.name]) or path.name == "empty"
    (tmp_path / "plain").mkdir()
    assert (tmp_path / "empty").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), OSError(errno.EIO, "Input/output error")])
def test_a_failed_folder_leaves_nothing(tmp_path, failure):
    with pytest.raises(type(failure)), atomic_files.whole_folder(tmp_path / "a") as temporary:
        (temporary / "half").write_text("x")
        raise failure
    assert names(tmp_path) == []


def test_a_removed_folder_is_never_seen_half(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "file").write_text("x")
    seen = []
    remove = atomic_files.shutil.rmtree
    monkeypatch.setattr(
        atomic_files.shutil, "rmtree", lambda path: (seen.append(atomic_files.contents(tmp_path)), remove(path))
    )
    atomic_files.remove_folder(tmp_path / "a")
    assert seen == [[]] and names(tmp_path) == []


def fill(folder: Path, *written: str, fail: bool = False) -> None:
    with atomic_files.filling(folder, "a*", "b"):
        for name in written:
            (folder / name).write_text("x")
        if fail:
            raise OSError(errno.ENOSPC, "No space left on device")


def test_a_folder_left_half_is_filled_again(tmp_path):
    out = tmp_path / "out"
    with pytest.raises(OSError, match="No space"):
        fill(out, "a1", "a2", "b", fail=True)
    fill(out, "a1")  # the rest of the first call must not look like a result of the second
    assert names(out) == ["a1"]
    with pytest.raises(InputError, match="not an empty folder"):
        fill(out, "a1")


@pytest.mark.parametrize("found", ["foreign", "a1"])
def test_a_foreign_folder_is_not_filled(tmp_path, found):
    (tmp_path / found).write_text("mine")
    with pytest.raises(InputError, match="not an empty folder"):
        fill(tmp_path, "b")
    assert names(tmp_path) == [found] and (tmp_path / found).read_text() == "mine"


def test_a_half_folder_with_something_foreign_is_not_touched(tmp_path):
    with pytest.raises(OSError, match="No space"):
        fill(tmp_path, "a1", fail=True)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="not an empty folder"):
        fill(tmp_path, "b")
    assert (tmp_path / "notes.txt").read_text() == "mine" and (tmp_path / "a1").exists()


def test_two_processes_do_not_fill_one_folder(tmp_path):
    with atomic_files.filling(tmp_path, "a*"), pytest.raises(InputError, match="another process"):
        fill(tmp_path, "a1")
    with pytest.raises(InputError, match="is a file"):
        (tmp_path / "file").write_text("x")
        fill(tmp_path / "file")
