"""Which files are decoded together, and by which versions of DALI."""

import pytest

from engine.data.decoding.dali import require_dali, runs_that_fit, too_old
from engine.errors import InputError
from engine.verification import machine
from tests.support.packages import needs

LARGE = 30_000_000


@pytest.mark.parametrize(
    ("pixels", "files", "runs"),
    [
        ([], 4, []),
        ([1] * 4, 4, [range(0, 4)]),
        ([1] * 9, 4, [range(0, 4), range(4, 8), range(8, 9)]),
        ([LARGE, LARGE, 1, 1, LARGE], 4, [range(0, 1), range(1, 4), range(4, 5)]),
        ([3 * LARGE, 1, 3 * LARGE], 4, [range(0, 1), range(1, 2), range(2, 3)]),
    ],
)
def test_runs_hold_few_files_and_few_pixels(pixels: list[int], files: int, runs: list[range]) -> None:
    assert list(runs_that_fit(pixels, files)) == runs


@pytest.mark.parametrize(
    ("version", "refused"), [("1.53.0", True), ("2.1.1", True), ("2.2.0", False), ("10.0", False), ("", False)]
)
def test_versions_that_show_turned_files_unturned(version: str, refused: bool) -> None:
    assert ("for 2.2 or newer" in too_old(version)) == refused


@needs("nvidia.dali")
def test_an_old_dali_is_refused_before_any_file_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nvidia.dali.__version__", "2.1.1")
    with pytest.raises(InputError, match=r"NVIDIA DALI 2\.1\.1 shows some turned JPEG files unturned"):
        require_dali()
    monkeypatch.setattr(machine.environment, "version_of", lambda name: "2.1.1")
    (finding,) = machine.check_loading()
    assert finding.state == machine.BROKEN and "2.1.1" in finding.found and "--upgrade" in finding.fix
