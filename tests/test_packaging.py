"""What gets installed, under which names, and what importing it loads."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def python(code: str, cwd: Path, **environment: str) -> str:
    """Standard output of a fresh interpreter."""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, env={**os.environ, **environment}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("cwd", [ROOT, Path("/")], ids=["in the checkout", "elsewhere"])
def test_beside_the_other_kernels_package(cwd):
    """transformers and Hugging Face's `kernels`, whose import name is our folder's, import and work beside Kiln."""
    pytest.importorskip("transformers")
    pytest.importorskip("kernels")
    code = """
import sys
import engine.ops, kernels, transformers, torch
from transformers import BertConfig, BertModel
assert "site-packages" in kernels.__file__, kernels.__file__
assert kernels is not sys.modules["engine.kernels"]
sizes = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, vocab_size=9)
model = BertModel(BertConfig(**sizes))
print(model(torch.tensor([[1, 2]])).last_hidden_state.shape)
print(engine.ops.resize_conv_act(torch.ones(1, 8, 4, 4), torch.ones(8, 8, 3, 3), resize="up").shape)
"""
    assert python(code, cwd).splitlines() == ["torch.Size([1, 2, 16])", "torch.Size([1, 8, 8, 8])"]


def test_importing_is_light():
    loaded = "print(*{name.partition('.')[0] for name in sys.modules} & {'torch', 'triton', 'nvidia'})"
    assert python(f"import sys, engine, engine.data, engine.cli; {loaded}", ROOT) in ("", "torch")
    # torch may look for triton by itself, so the operators are held to what they add
    assert (
        python(
            "import sys, torch; before = set(sys.modules); import engine.ops; "
            "print(*[n for n in set(sys.modules) - before if n.startswith(('triton', 'nvidia'))])",
            ROOT,
        )
        == ""
    )


def test_wheel_holds_everything(tmp_path):
    """A wheel, unpacked away from the checkout, has the operators inside the package and runs them."""
    source = tmp_path / "source"  # a copy: what an earlier build left in the checkout must not get in
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(".*", "build", "*.so", "*.egg-info", "runs", "results"))
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q", "-w", tmp_path, source]
    done = subprocess.run(build, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("kiln_engine-*.whl")
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(site)
    assert not [n for n in names if n.startswith(("kernels/", "tests/", "benchmarks/", "bindings/"))]
    assert any(n.endswith(".j2") for n in names) and "engine/py.typed" in names
    code = """
import torch, engine
from engine import ops
import engine.kernels.linear
y = ops.resize_conv_act(torch.ones(1, 8, 4, 4), torch.ones(8, 8, 3, 3), resize="down")
print(engine.__file__, engine.kernels.linear.__file__, tuple(y.shape))
"""
    found = python(code, tmp_path, PYTHONPATH=str(site))
    assert found == f"{site}/engine/__init__.py {site}/engine/kernels/linear/__init__.py (1, 8, 2, 2)"


def test_missing_extension_says_what_to_do(tmp_path):
    """Without the compiled module everything imports; a fused call names the cure."""
    code = """
import sys
sys.modules["engine._native"] = None
from engine import ops
import torch
print(ops.explain("resize_conv_act")[0].kind)
try:
    ops.resize_conv_act(torch.ones(1, 8, 4, 4), torch.ones(8, 8, 3, 3))
except ImportError as error:
    print(error)
"""
    kind, message = python(code, ROOT).splitlines()
    assert kind == "none" and "pip install ." in message and "--eager" in message
