"""Builds engine._native, torch-free: every kernels/*/cpu.cpp once per instruction set, linked with bindings/."""

import os
import platform
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pybind11.setup_helpers import Pybind11Extension
from setuptools import find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent
OPERATORS = sorted(str(p.relative_to(ROOT)) for p in (ROOT / "kernels").glob("*/cpu.cpp"))
SHARED = sorted(str(p.relative_to(ROOT)) for p in (ROOT / "kernels" / "_cpu").glob("*.h"))

# number in registry.h -> compiler flags; the best one a machine has is chosen at run time
INSTRUCTION_SETS = {0: []}
if platform.machine() in {"x86_64", "AMD64"}:
    INSTRUCTION_SETS |= {
        1: ["-mavx2", "-mfma", "-mf16c"],
        2: ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mfma", "-mprefer-vector-width=512"],
    }
FLAGS = ["-std=c++17", "-O3", "-fvisibility=hidden", "-Wall", "-fno-math-errno", "-fno-trapping-math", "-Wno-psabi"]
# OpenMP is compiled in but not linked: its symbols come from the runtime that torch has loaded, so there is only one
OPENMP = ["-fopenmp"]
SANITIZE = os.environ.get("KILN_SANITIZE", "").split()


class BuildPerInstructionSet(build_ext):
    """Compiles the operators in parallel, once per instruction set, before the extension is linked."""

    def build_extension(self, extension):
        folder = Path(self.build_temp)

        def compile_one(job):
            source, number, flags = job
            return self.compiler.compile(
                [source],
                output_dir=str(folder / f"isa{number}"),
                macros=[("KILN_ISA", str(number))],
                extra_postargs=FLAGS + OPENMP + flags + SANITIZE,
                depends=SHARED,
            )

        jobs = [(s, n, f) for n, f in INSTRUCTION_SETS.items() for s in OPERATORS]
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            extension.extra_objects = [o for objects in pool.map(compile_one, jobs) for o in objects]
        super().build_extension(extension)


extension = Pybind11Extension(
    "engine._native",
    ["bindings/module.cpp"],
    define_macros=[("KILN_ISA", "0")],
    extra_compile_args=FLAGS + OPENMP + SANITIZE,
    extra_link_args=SANITIZE,
    depends=OPERATORS + SHARED,
)
if sys.platform == "darwin":
    raise SystemExit("kiln-engine builds on Linux only for now: its operator table is an ELF linker section")

# the folder kernels/ is installed as engine.kernels: its own name belongs to another distribution
folders = [ROOT / "kernels", *(p for p in (ROOT / "kernels").iterdir() if p.is_dir() and p.name != "__pycache__")]
kernels = sorted("engine." + ".".join(folder.relative_to(ROOT).parts) for folder in folders)
setup(
    packages=find_packages(include=["engine", "engine.*"]) + kernels,
    package_dir={"engine": "engine", "engine.kernels": "kernels"},
    ext_modules=[extension],
    cmdclass={"build_ext": BuildPerInstructionSet},
)
