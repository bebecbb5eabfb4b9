"""The examples of docs/embedding.md, run as they stand: each command with the files of the page."""

import os
import re
import shutil
import subprocess
import sys

import pytest

from tests.support.places import ROOT

PAGE = (ROOT / "docs" / "embedding.md").read_text()
FILES = dict(re.findall(r"^```python\n# (\w+\.py)\n(.*?)^```$", PAGE, re.M | re.S))
COMMANDS = {
    block.split()[-1]: block.strip().splitlines() for block in re.findall(r"^```sh\n(.*?)^```$", PAGE, re.M | re.S)
}
PROGRAMS = {"python": [], "torchrun": ["-m", "torch.distributed.run"], "kiln": ["-m", "engine.cli"]}
# gloo's threads can outlive the interpreter, with and without Kiln: the rank then exits with these words, and torchrun
# ends the other ranks
GLOO_ENDS = "terminate called without an active exception"
ATTEMPTS = 4
NEEDS = {
    "lightning_gan.py": ["pytorch_lightning"],
    "accelerate_gan.py": ["accelerate"],
    "exported.py": ["onnx", "onnxscript", "onnxruntime"],
    "hub.py": ["huggingface_hub"],
    "published.py": ["nvidia.dali"],
}


@pytest.fixture(scope="module")
def printed(tmp_path_factory):
    """Name of a file -> what its commands print; each is run once, on one thread, in a folder with the page's files."""
    folder = tmp_path_factory.mktemp("embedding")
    for name, text in FILES.items():
        (folder / name).write_text(f"# {name}\n{text}")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done: dict[str, str] = {}

    def run(name: str) -> str:
        for package in NEEDS.get(name, []):
            pytest.importorskip(package)
        if name == "compiled.py" and not (shutil.which("g++") or shutil.which("clang++")):
            pytest.skip("torch.compile needs a C++ compiler")
        if name not in done:
            done[name] = ""
            for line in COMMANDS[name]:
                program, *words = line.split()
                command = [sys.executable, *PROGRAMS[program], *words]
                for _ in range(ATTEMPTS):
                    found = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
                    if program != "torchrun" or GLOO_ENDS not in found.stderr:
                        break
                assert found.returncode == 0, found.stderr
                done[name] += found.stdout
        return done[name]

    return run


def losses(text: str) -> list[float]:
    return [float(line.split()[1]) for line in text.splitlines() if line.startswith("loss ")]


def test_every_file_has_a_command():
    assert FILES.keys() - {"gan.py"} == COMMANDS.keys() and len(FILES) >= 12
    fences = len(re.findall(r"^```python$", PAGE, re.M))
    assert fences == len(FILES)


def test_plain_loop(printed):
    text = printed("plain.py")
    found = losses(text)
    assert "3 chains fused" in text and "2 chains fused" in text
    assert len(found) == 100 and found[-2] < 0.9 * found[0]  # lines alternate; this is the last of the critic


def slow(*values: object) -> object:
    """Parameters of an example that starts a large library, or compiles."""
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize("name", [slow("lightning_gan.py"), "accelerate_gan.py"])
def test_the_same_losses_for_50_steps(printed, name):
    assert losses(printed(name)) == losses(printed("plain.py"))


@pytest.mark.parametrize(
    "name, tolerance", [("autocast.py", 3e-2), slow("compiled.py", 1e-4), ("ddp.py", 1e-4), slow("fsdp.py", 1e-4)]
)
def test_the_same_losses_but_for_rounding(printed, name, tolerance):
    """These examples train the generator alone, as checkpointing.py does, bit for bit as without checkpointing."""
    expected = losses(printed("checkpointing.py"))
    assert len(expected) == 50 and expected[-1] < 0.9 * expected[0]
    assert losses(printed(name)) == pytest.approx(expected, rel=tolerance)


@pytest.mark.parametrize("name, count", [slow("exported.py", 2), ("hub.py", 1)])
def test_the_same_images_elsewhere(printed, name, count):
    found = [float(line.split()[-1]) for line in printed(name).splitlines() if line.startswith("differs by")]
    assert len(found) == count and max(found) < 1e-5


@pytest.mark.slow
def test_a_published_model(printed):
    assert "refined (1, 3, 32, 32)" in printed("published.py")
