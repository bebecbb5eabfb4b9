"""A copy of the skeleton operator under another name is an operator, built and found without a change anywhere else."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.places import ROOT

NAME = "brightness"

USE = """
import torch
from engine import ops
from engine.kernels import _spec

assert list(ops.OPERATORS) == ["brightness"], list(ops.OPERATORS)
x, scale = torch.randn(2, 3, 4, requires_grad=True), torch.randn(2, requires_grad=True)
print(*(row.operator for row in ops.explain()), *_spec.specs())
print(ops.brightness.__name__, torch.ops.kiln.brightness.default)
try:
    ops.brightness(x, scale[:1])
except ValueError as error:
    print(error)
"""
RUN = """
for sample in _spec.specs()["brightness"].samples:
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        errors = _spec.compare(_spec.specs()["brightness"], sample, dtype)
        assert errors and all(error.passed for error in errors), (sample.name, errors)
print(ops.explain("brightness")[0].kind)
"""


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """A checkout whose only operator is the copy."""
    root = tmp_path_factory.mktemp("checkout")
    for name in ("engine", "bindings"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, root / name)
    shared = [path for path in (ROOT / "kernels").iterdir() if path.name.startswith("_") and path.name != "_skeleton"]
    for path in shared:
        copy = shutil.copytree if path.is_dir() else shutil.copy
        (root / "kernels").mkdir(exist_ok=True)
        copy(path, root / "kernels" / path.name)
    folder = root / "kernels" / NAME
    shutil.copytree(ROOT / "kernels" / "_skeleton", folder, ignore=shutil.ignore_patterns("__pycache__"))
    for path in folder.iterdir():
        path.write_text(path.read_text().replace("skeleton", NAME))
    return root


def run(root: Path, *words: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([sys.executable, *words], cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_copy_is_found_and_registered(tree):
    told = run(tree, "-c", USE).splitlines()
    assert told[0].split() == [NAME, NAME, NAME] and told[1] == f"{NAME} kiln.{NAME}.default"
    assert told[2] == f"{NAME}: scale is (1,); it must be (2,)"


@pytest.mark.slow
def test_a_copy_is_built_and_keeps_the_dtype_rule(tree):
    run(tree, "setup.py", "--quiet", "build_ext", "--inplace")
    assert run(tree, "-c", USE + RUN).splitlines()[-1] == "native C++"
