"""What holds in every test: the same random numbers in every run, memory that nobody wrote is NaN, caches apart."""

import os
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

# where Kiln keeps faces, verdicts and tile choices; where Triton and torch.compile keep what they compiled
CACHES = ("KILN_CACHE", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR")
# names a folder of kernels compiled before, which the tests are to use: Triton's key of a kernel holds all that it
# depends on
COMPILED_BEFORE = "KILN_TEST_TRITON_CACHE"
# one that no test takes for a generator of its own, whose numbers would be the same
SEED = 271_828


@pytest.fixture(scope="session", autouse=True)
def caches(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One folder for each cache in this run of pytest: all tests, their processes and all workers of xdist share it."""
    session = tmp_path_factory.getbasetemp()
    if hasattr(request.config, "workerinput"):  # a worker of xdist: its folder lies in that of the whole run
        session = session.parent
    with pytest.MonkeyPatch.context() as patch:
        for name in CACHES:
            patch.setenv(name, str(session / name.lower()))
        if folder := os.environ.get(COMPILED_BEFORE):
            patch.setenv("TRITON_CACHE_DIR", folder)
        yield


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """KILN_CACHE is a folder of this test alone, `tmp_path / "cache"`, which does not exist yet."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("KILN_CACHE", str(folder))
    return folder


@pytest.fixture(autouse=True)
def seeds() -> None:
    """A test draws the same numbers alone, after others and in every run, so that what failed once fails again."""
    random.seed(SEED)
    np.random.seed(SEED)
    torch.manual_seed(SEED)


@pytest.fixture(autouse=True)
def poisoned_memory(request: pytest.FixtureRequest) -> Iterator[None]:
    """torch.empty gives NaN, or the largest integer, so that an element that no kernel wrote cannot pass.

    A test that cannot have it says why: @pytest.mark.unpoisoned("reason").
    """
    if marker := request.node.get_closest_marker("unpoisoned"):
        assert marker.args, f"{request.node.nodeid}: unpoisoned needs a reason"
        yield
        return
    before = torch.utils.deterministic.fill_uninitialized_memory
    # PyTorch fills memory only where it is asked to be deterministic
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = before
