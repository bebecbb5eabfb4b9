"""Where Kiln keeps what it has made, also without a home folder."""

import os
import pwd
import tempfile
from pathlib import Path

import pytest

from engine import cli
from engine.data.__main__ import main
from engine.data.cache import cache_folder
from engine.errors import InputError
from engine.kernels import _cache_folder
from tests.support.data_images import write_pictures


@pytest.fixture
def nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A process without HOME and account, whose temporary folder is `tmp_path / "tmp"`."""

    def unknown(uid: int):
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    for name in ("KILN_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    _cache_folder._temporary.cache_clear()
    yield tmp_path / "tmp"
    _cache_folder._temporary.cache_clear()


@pytest.mark.parametrize(
    ("variables", "folder"),
    [
        ({"KILN_CACHE": "{here}/mine"}, "{here}/mine"),
        ({"KILN_CACHE": "mine"}, "{here}/mine"),
        ({"KILN_CACHE": "~/mine", "HOME": "{here}"}, "{here}/mine"),
        ({"HOME": "{here}"}, "{here}/.cache/kiln"),
        ({"HOME": "{here}", "XDG_CACHE_HOME": "{here}/xdg"}, "{here}/xdg/kiln"),
        ({"HOME": "{here}", "XDG_CACHE_HOME": "relative"}, "{here}/.cache/kiln"),
        ({}, "{here}/tmp/kiln-cache-{uid}"),
        ({"HOME": "{here}/file"}, "{here}/tmp/kiln-cache-{uid}"),
        ({"HOME": "{here}/closed"}, "{here}/tmp/kiln-cache-{uid}"),
    ],
)
def test_the_folder(
    nobody: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, variables: dict[str, str], folder: str
) -> None:
    here = nobody.parent
    (here / "file").touch()
    (here / "closed").mkdir()
    monkeypatch.chdir(here)
    # whoever runs the tests may write everywhere
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "closed")
    for name, value in variables.items():
        monkeypatch.setenv(name, value.format(here=here))
    for _ in range(2):
        assert str(cache_folder()) == folder.format(here=here, uid=os.getuid())
    told = capsys.readouterr().err
    if "tmp" in folder:
        assert told.count("kiln: ") == 1 and "KILN_CACHE names another folder" in told
        assert cache_folder().stat().st_mode & 0o777 == 0o700
    else:
        assert told == ""


def test_a_temporary_folder_that_another_user_made_is_not_taken(nobody: Path) -> None:
    (nobody.parent / "theirs").mkdir()
    (nobody / f"kiln-cache-{os.getuid()}").symlink_to(nobody.parent / "theirs")
    assert not cache_folder().is_symlink() and cache_folder().parent == nobody
    _cache_folder._temporary.cache_clear()
    (nobody / f"kiln-cache-{os.getuid()}").unlink()
    (nobody / f"kiln-cache-{os.getuid()}").mkdir()
    (nobody / f"kiln-cache-{os.getuid()}").chmod(0o777)
    assert cache_folder().stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("value", ["~/mine", "~no_such_user/mine"])
def test_a_cache_that_cannot_be(nobody: Path, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("KILN_CACHE", value)
    with pytest.raises(InputError, match="set KILN_CACHE to a folder that can be written"):
        cache_folder()


def test_validation_works_without_a_cache(
    nobody: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    pytest.importorskip("nvidia.dali")
    folder = write_pictures(nobody.parent / "set", 2)
    (folder / "bad.png").touch()
    assert cli.status_of("data", main, ["validate", str(folder)]) == 0
    (nobody.parent / "file").touch()
    monkeypatch.setenv("KILN_CACHE", str(nobody.parent / "file" / "below"))
    assert cli.status_of("data", main, ["validate", str(folder)]) == 0
    told = capsys.readouterr()
    assert "list         not written" in told.out and "KILN_CACHE names another folder" in told.err
