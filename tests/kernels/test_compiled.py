"""Every GPU kernel compiles ahead of time for Ampere, Hopper and Blackwell, without spills and onto the matrix units.

Triton compiles nothing in a process of its interpreter, so all of it runs in processes of its own.
"""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.prediction import compiled, launches
from benchmarks.prediction.compiled import Resources, Variant
from benchmarks.prediction.devices import DEVICES, programs_at_once
from engine.kernels._contract import find
from tests.support.places import ROOT

FINE = Resources(registers=128, shared=64 * 1024, threads=128, matrix={"wgmma": 8})


def outside_the_interpreter(what: str) -> object:
    """What compiled_kernels.py prints."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.support.compiled_kernels", what]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


TARGETS = ["sm_80", "sm_90", "sm_100"]


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    """Some 300 variants, in a minute."""
    return outside_the_interpreter("subset")


@pytest.mark.slow
def test_no_spills_and_matrix_instructions(rows):
    failed = [
        f"{r['target']} {r['name']} {r['form']} {r['tile']} {r['modes']}: {r['failed']}" for r in rows if "failed" in r
    ]
    assert not failed, "\n".join(failed)


@pytest.mark.slow
def test_every_kernel_in_every_arithmetic(rows):
    """Whatever a gpu.py defines is launched by its samples, and compiled for every target."""
    for name, spec in launches.specs().items():
        package = find(name).function.__module__
        folder = Path(importlib.import_module(package).__file__).parent
        kernels = set()
        for path in folder.glob("gpu*.py"):
            module = importlib.import_module(f"{package}.{path.stem}")
            own = {n for n, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__}
            kernels |= {n for n in own if n.endswith("_kernel")}
        here = [r for r in rows if name in r["launched_by"]]
        newer = {r["name"] for r in here if r["oldest"] > 80}
        for target in TARGETS:
            wanted = kernels - newer if target == "sm_80" else kernels
            assert wanted <= {r["name"] for r in here if r["target"] == target}, (name, target)
            assert set(launches.modes(spec)) == {m for r in here if r["target"] == target for m in r["modes"]}


@pytest.mark.slow
def test_matrix_kernels_use_the_generation_s_own_instructions(rows):
    """At least the largest tiles: wgmma on Hopper, tcgen05 on Blackwell."""
    found = {target: {kind for r in rows if r["target"] == target for kind in r["matrix"]} for target in TARGETS}
    assert found["sm_80"] == {"mma.sync"} and "wgmma" in found["sm_90"] and "tcgen05" in found["sm_100"]


def test_arguments_are_specialised_as_triton_does():
    found = outside_the_interpreter("signature")
    expected = {"source": "*fp32", "target": "*fp32", "one": "constexpr", "sixteen": "i32", "seventeen": "i32"}
    expected |= {"large": "i64", "scale": "fp32", "nothing": "constexpr", "SIZE": "constexpr"}
    signature = found["signature"]
    assert signature.pop("flag") in ("i1", "u1") and signature == expected
    # divisible by 16: the aligned pointer, 16 and 2^31; neither the view from the second element on nor 17
    divisible = {key for key, value in found["attributes"].items() if ["tt.divisibility", 16] in value}
    assert divisible == {"(1,)", "(3,)", "(5,)"}
    assert found["same"] and found["keys differ"]


def test_what_is_wrong_is_found():
    found = outside_the_interpreter("spilling")
    assert found["crowded_kernel"]["stack"] > 0 and "spills" in found["crowded_kernel"]["problems"][0]
    assert found["plain_kernel"]["problems"] == ["a matrix kernel without matrix instructions"]


@pytest.mark.parametrize(
    "change, words",
    [
        ({}, None),
        ({"stack": 8}, None),
        ({"stack": 8, "spills": 2}, "8 bytes of stack, 2 loads and stores in loops"),
        ({"local": 40}, "spills"),
        ({"matrix": {}}, "without matrix instructions"),
        ({"shared": 300 * 1024}, "does not fit"),
        ({"error": "PTXASError: no"}, "PTXASError: no"),
    ],
)
def test_problems(change, words):
    wanted = Variant("module", "kernel", {}, 4, 3, matrix=True)
    found = compiled.problems(wanted, 90, Resources(**(vars(FINE) | change)))
    assert (words in found[0] and len(found) == 1) if words else not found


def test_spills_are_told_by_their_loop():
    code = """
        STL [R1], R0 ;
    .L_x_1:
        LDL R2, [R1] ;
        STL [R1+0x8], R3 ;
        @P0 BRA `(.L_x_1) ;
        @P1 BRA `(.L_x_2) ;
        LDL R4, [R1] ;
    .L_x_2:
        EXIT ;
    """
    assert compiled.spills_in_loops(code) == 2


@pytest.mark.parametrize(
    "registers, threads, shared, programs",
    [
        (32, 128, 0, 16),  # 2048 threads
        (128, 128, 0, 4),  # 65536 registers
        (129, 128, 0, 3),  # registers go by eights
        (32, 128, 64 * 1024, 3),  # 228 KiB, and one for the system with each
        (32, 32, 0, 32),  # no more programs than that
        (32, 128, 228 * 1024, 0),
        (255, 1024, 0, 0),
    ],
)
def test_programs_at_once(registers, threads, shared, programs):
    assert programs_at_once(DEVICES["h100"], registers, threads, shared) == programs


def test_few_variants_cover_every_choice():
    class Named(Variant):
        constants = property(lambda self: self.arguments)

    made = [
        Named("m", "k", {"FORM": form, "BM": bm}, 4, 3, False, key=f"{form} {bm} {mode}", modes={mode})
        for form in (0, 1)
        for bm in (32, 64)
        for mode in ("a", "b")
    ]
    few = compiled.chosen(made, forms=True)
    assert few[0].arguments["BM"] == 64 and len(few) == 2
    assert {v.arguments["FORM"] for v in few} == {0, 1} and {m for v in few for m in v.modes} == {"a", "b"}
    assert {m for v in compiled.chosen(made, forms=False) for m in v.modes} == {"a", "b"}
