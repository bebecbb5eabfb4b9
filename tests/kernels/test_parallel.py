"""Native operators on teams of another size than they ask for: the results are those of the number they ask for."""

import ctypes
import json
import os
import random
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

import engine
from engine.kernels import _contract, _spec
from tests.support import operator_digests

THREADS = 3
ROOT = Path(__file__).parents[2]
# with these OpenMP gives a region two threads, one, and as many as are idle
SETTINGS = [
    "OMP_THREAD_LIMIT=2",
    pytest.param("OMP_MAX_ACTIVE_LEVELS=0", marks=pytest.mark.slow),
    pytest.param("OMP_DYNAMIC=true", marks=pytest.mark.slow),
]


@pytest.fixture(scope="module")
def whole_team() -> Iterator[dict[str, str]]:
    """The digest of every case, computed by as many threads as are asked for; within the module so many are."""
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield operator_digests.digests(operator_digests.cases())
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(before)


def test_the_whole_team_is_right(whole_team):
    """What the others are compared with fits the float64 reference; resize_conv_act's does in test_operators.py."""
    for name, (spec, sample) in operator_digests.cases().items():
        for error in _spec.compare(spec, sample, torch.float32) if spec.operator != "resize_conv_act" else ():
            assert error.passed, f"{name}, {error.result}: {error.fused:.2e} > {error.allowed:.2e}"


@pytest.mark.parametrize("setting", SETTINGS)
def test_settings_of_openmp_change_no_bit(whole_team, setting):
    command = [sys.executable, "-m", "tests.support.operator_digests", str(THREADS)]
    name, value = setting.split("=")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), name: value}
    printed = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, timeout=300, check=True).stdout
    found = json.loads(printed)
    assert found.keys() == whole_team.keys()
    assert not [name for name in found if found[name] != whole_team[name]]


def test_calls_within_a_parallel_region(whole_team, tmp_path):
    """In a region of another library each thread that calls an operator gets no further threads."""
    source = tmp_path / "region.c"
    source.write_text("void in_region(void (*call)(void)) {\n#pragma omp parallel num_threads(2)\ncall();\n}\n")
    compiler = shutil.which("gcc") or shutil.which("cc")
    assert compiler, "a C compiler builds Kiln"
    # compiled but not linked with OpenMP: its symbols come from torch's, as the extension's do
    subprocess.run([compiler, "-fopenmp", "-fPIC", "-c", source, "-o", tmp_path / "region.o"], check=True)
    subprocess.run([compiler, "-shared", tmp_path / "region.o", "-o", tmp_path / "region.so"], check=True)
    region = ctypes.CDLL(str(tmp_path / "region.so"))
    found = _in_order_of_their_own(whole_team, lambda call: region.in_region(ctypes.CFUNCTYPE(None)(call)))
    assert len(found) == 2 and all(each == whole_team for each in found)


def test_calls_of_several_threads_at_once(whole_team):
    """Scratch memory belongs to one thread: calls of different shapes at a time do not meet."""

    def on_four_threads(call: Callable[[], None]) -> None:
        threads = [threading.Thread(target=call) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    found = _in_order_of_their_own(whole_team, on_four_threads)
    assert len(found) == 4 and all(each == whole_team for each in found)


def _in_order_of_their_own(names: dict[str, str], calls: Callable[[Callable[[], None]], None]) -> list[dict[str, str]]:
    """The digests that each of the calls finds, which go through the cases in different orders."""
    found: list[dict[str, str]] = []
    seeds = iter(range(100))

    def call() -> None:
        shuffled = random.Random(next(seeds)).sample(list(names), len(names))
        found.append(operator_digests.digests(shuffled))

    calls(call)
    return found


def test_one_place_opens_parallel_regions():
    """Operators share their work out through kernels/_cpu/parallel.h, which takes no team's size for granted."""
    kernels = Path(engine.kernels.__path__[0])
    sources = [*kernels.glob("*/*.cpp"), *kernels.glob("_cpu/*.h")]
    assert len(sources) > len(_contract.discover())
    assert not [str(path) for path in sources if re.search(r"#\s*pragma\s+omp|\bomp_|<omp\.h>", path.read_text())]
