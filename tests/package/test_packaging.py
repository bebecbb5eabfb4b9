"""What gets installed, under which names, and what importing it loads."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import engine
from tests.support.places import ROOT


def python(code: str, cwd: Path, **environment: str) -> str:
    """Standard output of a fresh interpreter."""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, env={**os.environ, **environment}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize(
    "cwd", [pytest.param(ROOT, id="in the checkout"), pytest.param(Path("/"), id="elsewhere", marks=pytest.mark.slow)]
)
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


def run(*command: str | Path, cwd: Path, **environment: str) -> None:
    environment = os.environ | environment
    done = subprocess.run([sys.executable, *command], cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def sdist(tmp_path_factory) -> Path:
    """The source distribution of a copy of this checkout."""
    folder = tmp_path_factory.mktemp("distribution")
    source = folder / "source"  # a copy: what an earlier build left in the checkout must not get in
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(".*", "build", "dist", "*.so", "*.egg-info", "runs"))
    run("setup.py", "-q", "sdist", "--dist-dir", folder, cwd=source)
    (made,) = folder.glob("kiln_engine-*.tar.gz")
    return made


@pytest.fixture(scope="module")
def wheel(sdist: Path) -> Path:
    """A wheel made of the source distribution alone, which compiles the extension for every instruction set."""
    folder = sdist.parent
    command = ("-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q", "-w", folder, sdist)
    run(*command, cwd=folder, KILN_SANITIZE="-O0")  # what is in it does not depend on how well it is optimised
    (made,) = folder.glob("kiln_engine-*.whl")
    return made


def test_sdist_holds_everything(sdist):
    """It holds the sources and what builds, tests and measures them."""
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    parts = ("engine", "kernels", "bindings", "tests", "benchmarks", "docs")
    files = {path.relative_to(ROOT) for part in parts for path in (ROOT / part).rglob("*") if path.is_file()}
    files = {str(path) for path in files if "__pycache__" not in path.parts and path.suffix not in (".so", ".pyc")}
    files |= {"setup.py", "Makefile", "constraints.txt", "README.md", "CHANGELOG.md", "LICENSE", "engine/py.typed"}
    unpacked = {name for name in files if "refiner_portraits" not in name}  # a run's records, which nothing reads
    assert not unpacked - names
    assert not [name for name in names if name.endswith(".so")]


@pytest.mark.slow
def test_wheel_holds_everything(wheel, tmp_path):
    """A wheel, unpacked away from the checkout, has the operators inside the package and runs them."""
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(site)
    assert not [n for n in names if n.startswith(("kernels/", "tests/", "benchmarks/", "bindings/"))]
    assert any(n.endswith(".j2") for n in names) and "engine/py.typed" in names
    assert "engine/shipped/portraits-b/model.safetensors" in names
    code = """
import torch, engine
from engine import ops
import engine.kernels.linear
y = ops.resize_conv_act(torch.ones(1, 8, 4, 4), torch.ones(8, 8, 3, 3), resize="down")
print(engine.__file__, engine.kernels.linear.__file__, tuple(y.shape))
"""
    found = python(code, tmp_path, PYTHONPATH=str(site))
    assert found == f"{site}/engine/__init__.py {site}/engine/kernels/linear/__init__.py (1, 8, 2, 2)"


@pytest.mark.slow
def test_wheel_is_manylinux(wheel):
    """The wheel asks for nothing but the C and C++ libraries; OpenMP comes from torch, neither linked nor bundled."""
    pytest.importorskip("auditwheel")
    show = [sys.executable, "-m", "auditwheel", "show", wheel]
    told = " ".join(subprocess.run(show, capture_output=True, text=True, check=True).stdout.split())
    assert 'is consistent with the following platform tag: "manylinux_2_' in told
    assert "gomp" not in told and "torch" not in told


def test_version_is_semantic_and_in_the_changelog():
    assert re.fullmatch(r"\d+\.\d+\.\d+", engine.__version__)
    told = re.findall(r"^## (\d+\.\d+\.\d+) - \d{4}-\d\d-\d\d$", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert told[0] == engine.__version__


MISSING = """
import importlib.abc, sys

class Blocked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name in BLOCKED or name.partition(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

EXTRAS = {"cv2", "torchmetrics", "torchvision", "torch_fidelity", "tensorboard", "dlib"}
BLOCKED = {"triton", "nvidia", "engine._native"} | EXTRAS
sys.meta_path.insert(0, Blocked())
"""


def test_everything_imports_without_what_is_optional():
    """No GPU, no extension, no DALI, no Triton, no extra: every module that is not itself a GPU kernel imports."""
    code = f"""{MISSING}
import importlib, pkgutil
import engine
from engine import kernels
packages = (engine, kernels)
names = [m.name for package in packages for m in pkgutil.walk_packages(package.__path__, package.__name__ + ".")]
names = [n for n in names if not n.rpartition(".")[2].startswith("gpu") and "._gpu." not in n and "_native" not in n]
for name in names:
    if not name.endswith("__main__"):
        importlib.import_module(name)
print(len(names), "engine.kernels.gram" in names, "engine.data.decoding.dali" in names)
"""
    count, *inside = python(code, ROOT).split()
    assert int(count) > 120 and inside == ["True", "True"]


@pytest.mark.parametrize(
    "words, status, says",
    [
        (["--help"], 0, ("usage: kiln COMMAND",)),
        (["train", "--help"], 0, ("usage: kiln train",)),
        (["doctor"], 1, ("pip install .", "pip install 'kiln-engine[dali-cu13]'")),
        (["train", "--fused", "--steps", "1"], 2, ("pip install .",)),
        (["train", "--eager", "--steps", "1", "--data", "docs"], 2, ("pip install kiln-engine[dali-cu13]",)),
        (["verify", "--operator", "gram", "--steps", "0"], 1, ("pip install .",)),
        (["evaluate", "nothing", "--data", "docs"], 2, ("pip install",)),
    ],
)
def test_commands_without_what_is_optional(words, status, says, tmp_path):
    """Help works, the doctor names every fix, and a command that lacks something says in one line how to get it."""
    code = f"{MISSING}\nfrom engine.cli import main\nmain({words!r})"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    shutil.copytree(ROOT / "docs", tmp_path / "docs", ignore=shutil.ignore_patterns("*.md", "*.svg"))
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment)
    told = done.stderr.splitlines()[-1] if status == 2 else done.stdout
    assert done.returncode == status and all(text in told for text in says), done
    assert "Traceback" not in done.stderr


def test_a_gpu_kernel_without_triton_says_what_to_install():
    code = f"""{MISSING}
from engine.kernels import _availability
try:
    _availability.gpu_function("engine.kernels.gram", "forward")()
except ImportError as error:
    print(error)
"""
    assert python(code, ROOT) == "the GPU kernels need Triton, which is not installed: pip install triton"


def test_missing_extension_says_what_to_do(tmp_path):
    """Without the compiled module everything imports; a fused call names the fix."""
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
