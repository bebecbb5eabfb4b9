"""The public API is typed: mypy is content with it as it is installed, and sees it from a user's file."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from engine import ops
from tests.support.places import ROOT

mypy = pytest.importorskip("mypy")
pytestmark = pytest.mark.slow  # `make lint` checks the same modules

USE = """
import torch
import engine
from engine.ops import gram, l1_autoencoder_loss, resize_conv_act
from engine.checkpoint import load

x = torch.ones(1, 8, 4, 4)
reveal_type(resize_conv_act(x, x, resize="up"))
reveal_type(l1_autoencoder_loss(x, x))
reveal_type(load("run").config.steps)
reveal_type(engine.ops.explain()[0].why)
reveal_type(engine.fuse(torch.nn.Linear(1, 1)).replaced[0].reason)
resize_conv_act(x, x, resize=2)
gram()
"""
SEEN = [
    'Revealed type is "torch._tensor.Tensor"',
    'Revealed type is "tuple[torch._tensor.Tensor, torch._tensor.Tensor]"',
    'Revealed type is "int"',
    'Revealed type is "str"',
    'Revealed type is "str"',
    'Argument "resize" to "resize_conv_act" has incompatible type "int"; expected "str"',
    'Missing positional argument "features" in call to "gram"',
]


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The package as a wheel installs it; its extension apart, which has no types."""
    folder = tmp_path_factory.mktemp("installed")
    build = [sys.executable, "setup.py", "--quiet", "build_py", "--build-lib", folder / "site"]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


def check(installed: Path, *words: str | Path, cwd: Path) -> tuple[int, str]:
    """mypy's exit status and what it says, with the installed package among the site packages."""
    command = [sys.executable, "-m", "mypy", "--cache-dir", installed / "cache", *words]
    environment = {**os.environ, "PYTHONPATH": str(installed / "site")}
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, env=environment)
    return done.returncode, done.stdout + done.stderr


def test_public_modules(installed):
    status, told = check(installed, "--config-file", ROOT / "pyproject.toml", cwd=installed / "site")
    assert status == 0, told


def test_from_a_users_file(installed, tmp_path):
    (tmp_path / "use.py").write_text(USE)
    names = (f"from engine.ops import {name}\nreveal_type({name})\n" for name in ops.OPERATORS)
    (tmp_path / "names.py").write_text("".join(names))
    (tmp_path / "mypy.ini").write_text("[mypy]\n")
    status, told = check(installed, "use.py", "names.py", cwd=tmp_path)
    lines = told.splitlines()
    used = [line.partition(": ")[2].partition(": ")[2] for line in lines if line.startswith("use.py")]
    named = [line for line in lines if line.startswith("names.py")]
    assert status == 1 and len(used) == len(SEEN), told
    assert all(line.startswith(seen) for line, seen in zip(used, SEEN, strict=True)), told
    # a new operator is entered in engine/ops.py for type checkers, and in pyproject.toml
    assert len(named) == len(ops.OPERATORS) and all('Revealed type is "def (' in line for line in named), told
    assert all(f'"engine.kernels.{name}"' in (ROOT / "pyproject.toml").read_text() for name in ops.OPERATORS)
