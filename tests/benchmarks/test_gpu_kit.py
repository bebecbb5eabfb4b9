"""The kit for a GPU machine without a network, and compiling before kernels are launched; no GPU is needed."""

import json
import os
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.gpu import compiling, kit, parts
from benchmarks.gpu.kit import Kit, Options
from benchmarks.gpu.place import OK, Place
from engine.errors import InputError
from engine.kernels import _availability, _spec
from tests.support.tiny_run import command

compiled_only = pytest.mark.skipif(_availability.INTERPRETED, reason="the interpreter compiles nothing")


@pytest.fixture
def one_operator(monkeypatch):
    """The groups of kernels, of which only `gram`'s smallest sample is left."""
    spec = compiling.launches.specs()["gram"]
    few = {"smoke": lambda capability: compiling._operator(spec, spec.samples[:1], ("float32",), capability)}
    monkeypatch.setattr(compiling, "GROUPS", few)
    return few


@compiled_only
def test_kernels_are_found_by_what_launches_them(one_operator):
    found = compiling.variants(("smoke",), 90)
    assert {variant.name for variant in found["smoke"]} >= {"gram_kernel"} or found["smoke"]
    assert compiling.variants(("smoke", "smoke"), 90)["smoke"] == [], "a code is in the first group that has it"


@compiled_only
@pytest.mark.parametrize("group", ["steps", "smoke", "quick"])
def test_each_group_has_kernels(group):
    for _, _, recorded in compiling.GROUPS[group](90):
        if recorded:
            return
    pytest.fail("no launch was recorded")


@compiled_only
@pytest.mark.parametrize("spec", compiling.launches.specs().values(), ids=compiling.launches.specs())
def test_nothing_that_the_tests_launch_is_missing(spec, monkeypatch):
    """As it is compared in tests/gpu: each output with a gradient of its own, and its layout."""
    sample = next(s for s in spec.samples if all(0 not in shape for shape in s.shapes.values()))
    few = {"some": lambda capability: compiling._operator(spec, [sample], ("float32",), capability)}
    monkeypatch.setattr(compiling, "GROUPS", few)
    known = {variant.key for variant in compiling.variants(("some",), 90)["some"]}
    function, made = compiling.find(spec.operator).function, _spec.tensors(sample, torch.float32)
    with compiling.launches.only_noted(False, "likely", 90) as recorded:
        _spec.run(function, sample, made, torch.float32)
    assert recorded and {*compiling.Shipped().add(recorded, "", "float32")} <= known


@compiled_only
def test_what_is_compiled_before_is_found_where_it_is_launched(one_operator, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    (variant, *_) = compiling.variants(("smoke",), 90)["smoke"]
    folder, problem = compiling.make(variant, 90, launchers=False)
    assert not problem and list((tmp_path / "cache" / folder).glob("*.cubin"))
    # as a launch looks for it: nothing is compiled again
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*")}
    assert compiling.make(variant, 90, launchers=False) == (folder, "")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*")} == before
    assert compiling.make(variant, 100, launchers=False)[0] != folder, "another GPU has another kernel"


def test_a_kernel_that_does_not_compile_is_named(one_operator, monkeypatch):
    def breaks(*args: object, **more: object) -> None:
        raise ValueError("no such register")

    monkeypatch.setattr(compiling.compiled, "warm", breaks)
    variant = compiling.Variant("engine.kernels.gram.gpu", "gram_sum_kernel", {}, 4, 2, False)
    assert compiling.make(variant, 90, launchers=False) == ("", "gram_sum_kernel: ValueError: no such register")


def test_wrong_groups(capsys):
    assert command(compiling.main, "--groups", "steps", "others") == 2
    assert "no group of kernels is called others; there are steps, smoke" in capsys.readouterr().err


@pytest.fixture
def packed(tmp_path, monkeypatch) -> Kit:
    """A kit with one kernel, which Triton on another machine has kept under that machine's path."""
    elsewhere = tmp_path / "elsewhere" / "ABC"
    elsewhere.mkdir(parents=True)
    (elsewhere / "gram.cubin").write_bytes(b"code")
    (elsewhere / "gram.json").write_text("{}")
    files = {name: f"/another/machine/ABC/{name}" for name in ("gram.cubin", "gram.json", "gram.ptx")}
    (elsewhere / "__grp__gram.json").write_text(json.dumps({"child_paths": files}))
    made = Kit(tmp_path / "kit")
    made.folder.mkdir()
    with tarfile.open(made.folder / "triton.tar.xz", "w:xz") as file:
        file.add(elsewhere, "ABC")
    facts = {"triton": kit.triton_key(), "capability": 90, "kernels": 1, "commit": "abc"}
    (made.folder / "triton.json").write_text(json.dumps(facts))
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(kit, "gpu_capability", lambda: 90)
    return made


def test_kernels_are_unpacked_where_triton_finds_them(packed, tmp_path):
    packed.unpack()
    group = json.loads((tmp_path / "cache" / "ABC" / "__grp__gram.json").read_text())["child_paths"]
    # what was not packed, as the PTX, is not named
    assert group == {name: str(tmp_path / "cache" / "ABC" / name) for name in ("gram.cubin", "gram.json")}
    (tmp_path / "cache" / "ABC" / "gram.cubin").write_bytes(b"newer")
    packed.unpack()
    assert (tmp_path / "cache" / "ABC" / "gram.cubin").read_bytes() == b"newer", "it is unpacked once"
    facts = json.loads((packed.folder / "triton.json").read_text())
    (packed.folder / "triton.json").write_text(json.dumps(facts | {"commit": "def"}))
    packed.unpack()
    assert (tmp_path / "cache" / "ABC" / "gram.cubin").read_bytes() == b"code", "another kit is unpacked over it"
    (packed.folder / "triton.json").write_text(json.dumps(facts))
    assert packed.commit == "abc" and packed.triton_cache.name == "kiln-gpu-triton"


def test_kernels_for_others_are_not_counted(packed, monkeypatch):
    assert packed.kernels_that_fit() == 1
    monkeypatch.setattr(kit, "gpu_capability", lambda: 80)
    assert packed.kernels_that_fit() == 0
    monkeypatch.setattr(kit, "gpu_capability", lambda: 90)
    monkeypatch.setattr(kit, "triton_key", lambda: "another Triton")
    assert packed.kernels_that_fit() == 0
    assert Kit(packed.folder / "nowhere").kernels_that_fit() == 0 and Kit(packed.folder / "nowhere").commit is None


def test_a_kit_that_fits_spares_the_compiling(packed, monkeypatch, tmp_path):
    monkeypatch.setattr(kit, "FOLDER", packed.folder)
    outcome = parts.compiling("smoke")(Place("compile", tmp_path, tmp_path, 20.0))
    assert (outcome.status, outcome.line) == (OK, "1 kernels came with the kit and fit this machine")


ONE_KERNEL = """
import sys
from benchmarks.gpu import compiling
spec = compiling.launches.specs()["gram"]
compiling.GROUPS = {"smoke": lambda capability: compiling._operator(spec, spec.samples[:1], ("float32",), capability)}
sys.exit(compiling.main(sys.argv[1:]))
"""


@pytest.mark.slow
@compiled_only
def test_the_whole_kit(monkeypatch, tmp_path):
    """Made here, of one operator's kernels; its script runs the parts with its packages and its extension."""
    honest, installed = kit._run, []

    def run(*words: str, env: dict[str, str] | None = None) -> None:
        if "pip" in words:
            installed.extend(words)
        elif "benchmarks.gpu.compiling" in words:
            honest(words[0], "-c", ONE_KERNEL, *words[3:], env=env)
        else:
            honest(*words, env=env)

    monkeypatch.setattr(kit, "_run", run)
    pictures, made = tmp_path / "pictures", tmp_path / "checkout" / ".gpu"
    pictures.mkdir()
    made.parent.mkdir()
    Image.fromarray(np.full((40, 80, 3), 128, np.uint8)).save(pictures / "wide.jpg")
    kit.make(Options(pictures=pictures), made, tmp_path / "cache")
    assert "pytest-xdist" in installed and str(made / "site") in installed
    with Image.open(made / "pictures" / "000000.png") as picture:
        assert picture.size == (64, 64)
    # what travels is found by a Triton elsewhere: nothing is compiled there
    facts = json.loads((made / "triton.json").read_text())
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "there"))
    Kit(made).unpack()
    groups = list((tmp_path / "there").glob("*/__grp__*.json"))
    assert facts["kernels"] == len(groups) > 0 and facts["triton"] == kit.triton_key() and facts["capability"] == 90
    for group in groups:
        names = {Path(path).suffix: Path(path) for path in json.loads(group.read_text())["child_paths"].values()}
        assert names.keys() == {".cubin", ".json"} and all(path.parent == group.parent for path in names.values())
    # its script
    (made.parent / "engine").mkdir()
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "$PYTHONPATH" "$@"; ls engine\n')
    python.chmod(0o755)
    env = {**os.environ, "PYTHON": str(python), "PYTHONPATH": "before"}
    done = subprocess.run(["sh", str(made / "run"), "OUT", "--seconds", "5"], env=env, capture_output=True, text=True)
    assert done.stdout.splitlines()[0] == f"{made / 'site'}:before -m benchmarks.gpu OUT --seconds 5", done
    assert "_native" in done.stdout.splitlines()[1]


def test_what_a_kit_cannot_be_made_of(monkeypatch, tmp_path):
    with pytest.raises(InputError, match="has no picture"):
        kit.pack_pictures(tmp_path, tmp_path / "out")
    monkeypatch.setattr(kit, "ROOT", tmp_path)
    with pytest.raises(InputError, match=r"setup\.py build_ext --inplace"):
        kit.make(Options(), tmp_path / ".gpu", tmp_path)
    with pytest.raises(InputError, match="exit status 3"):
        kit._run("sh", "-c", "exit 3")
