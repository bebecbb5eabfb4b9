"""Under `make sanitize`: the extension that the other tests run is the instrumented one."""

import os
from pathlib import Path

import pytest

from engine.kernels import _native


@pytest.mark.skipif("libasan" not in os.environ.get("LD_PRELOAD", ""), reason="for `make sanitize`")
def test_the_extension_is_instrumented():
    extension = Path(_native.load().__file__)
    assert extension.is_relative_to(Path.cwd()), f"{extension} is not the build in {Path.cwd()}"
    mapped = Path("/proc/self/maps").read_text()
    assert "libasan" in mapped and "libubsan" in mapped
    assert b"__asan_report" in extension.read_bytes() and b"__ubsan_handle" in extension.read_bytes()
