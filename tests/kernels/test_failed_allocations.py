"""A native operator that finds no memory raises MemoryError, and the next call is right."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from engine.kernels import _contract
from tests.support.failing_allocations import preload

ROOT = Path(__file__).parents[2]
# those whose native code needs no memory beyond their tensors
WITHOUT_SCRATCH = {"began_balance", "linear", "skeleton"}


@pytest.mark.parametrize("every", [16, pytest.param(3, marks=pytest.mark.slow)])
def test_each_allocation_fails_in_turn(every, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "LD_PRELOAD": str(preload(tmp_path))}
    command = [sys.executable, "-m", "tests.support.failing_allocations", str(every)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    met = json.loads(done.stdout)
    assert met.keys() == {*_contract.discover(), "skeleton"}
    assert {name for name, kinds in met.items() if kinds.get("MemoryError")} == met.keys() - WITHOUT_SCRATCH
