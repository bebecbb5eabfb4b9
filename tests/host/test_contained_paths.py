"""No name of an archive, a table or a run file leads out of the folder that it is for."""

from pathlib import Path

import pytest

from engine.errors import InputError
from engine.host.contained_paths import contained


@pytest.mark.parametrize("name", ["a.png", "a/b.png", "..a/b...png", "a..", "C:/x", "a\\..\\b", "", "a/./b"])
def test_names_that_stay(tmp_path: Path, name: str) -> None:
    assert contained(tmp_path, name).resolve().is_relative_to(tmp_path.resolve())


@pytest.mark.parametrize("name", ["/etc/x", "//x", "..", "../x", "a/../../x", "a/..", "a\0b"])
def test_names_that_lead_out(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="neither read nor written"):
        contained(tmp_path, name)
