"""`python -m benchmarks.gpu.kit`: fills a folder with what a GPU machine lacks that has no network and little time.

Such a machine has Python, torch and Triton, and compiling three thousand kernels takes it minutes. The folder `.gpu`
of the checkout, made elsewhere by a Python with the same versions of torch and Triton, holds:

site/          Python packages that the machine lacks
native/        the compiled extension for its Python
triton.tar.xz  kernels, compiled, and what starts them; triton.json says for which Triton and GPU
pictures/      pictures to train on, if some were given
run            sh .gpu/run OUT [--parts ...] [--seconds S]: `python3 -m benchmarks.gpu` with all of this
"""

import functools
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.checkout import ROOT, commit
from engine import cli
from engine.errors import InputError

FOLDER = ROOT / ".gpu"
# pure Python: what the parts import, and what runs the tests in several processes
PACKAGES = ("tyro", "docstring-parser", "typeguard", "pytest-xdist", "execnet", "pytest-timeout")
RUN = """#!/bin/sh
# Runs the parts of `python -m benchmarks.gpu` with the packages, the extension and the kernels of this folder.
here=$(cd "$(dirname "$0")" && pwd)
cd "$here/.." || exit 2
cp -n "$here"/native/*.so engine/ 2>/dev/null
PYTHONPATH="$here/site${PYTHONPATH:+:$PYTHONPATH}" exec "${PYTHON:-python3}" -m benchmarks.gpu "$@"
"""


@dataclass(frozen=True)
class Kit:
    """A folder as above; one that does not exist is a kit with nothing in it."""

    folder: Path

    @staticmethod
    def here() -> "Kit":
        """The kit of this checkout."""
        return Kit(FOLDER)

    @property
    def commit(self) -> str | None:
        """The commit that it was made from."""
        return self._facts().get("commit")

    @property
    def pictures(self) -> Path | None:
        """The folder of pictures to train on."""
        place = self.folder / "pictures"
        return place if place.is_dir() else None

    @property
    def triton_cache(self) -> Path:
        """Where Triton keeps what it compiles: a folder of the kit's own, or without kernels in it the user's."""
        if (self.folder / "triton.tar.xz").exists():
            return Path(tempfile.gettempdir()) / "kiln-gpu-triton"
        return Path(os.environ.get("TRITON_HOME") or Path.home()) / ".triton" / "cache"

    def unpack(self) -> None:
        """Unpacks the kernels into TRITON_CACHE_DIR, once for each kit."""
        archive, cache = self.folder / "triton.tar.xz", Path(os.environ.get("TRITON_CACHE_DIR") or self.triton_cache)
        if not archive.exists():
            return
        mark, this_kit = cache / "unpacked", f"{self._facts()} {archive.stat().st_size} bytes"
        if mark.exists() and mark.read_text() == this_kit:
            return
        with tarfile.open(archive) as file:
            file.extractall(cache, filter="data")
        for group in cache.glob("*/__grp__*.json"):
            # Triton keeps whole paths, which are those of the machine that compiled
            files = json.loads(group.read_text())["child_paths"]
            here = {name: str(group.parent / name) for name in files if (group.parent / name).exists()}
            group.write_text(json.dumps({"child_paths": here}))
        mark.write_text(this_kit)

    def kernels_that_fit(self) -> int:
        """How many of its kernels this machine's Triton finds and this GPU runs; 0 where they were made for others."""
        facts = self._facts()
        if not facts or facts["triton"] != triton_key() or facts["capability"] != gpu_capability():
            return 0
        return facts["kernels"]

    def _facts(self) -> dict:
        file = self.folder / "triton.json"
        return json.loads(file.read_text()) if file.exists() else {}


def triton_key() -> str:
    """What Triton's cache depends on beside a kernel: a digest of its own sources and libraries."""
    from triton.runtime import cache

    return hashlib.sha256(cache.triton_key().encode()).hexdigest()


def gpu_capability() -> int:
    """Compute capability, times ten, of the GPU here."""
    import torch

    major, minor = torch.cuda.get_device_capability()
    return 10 * major + minor


# making one


@dataclass(frozen=True)
class Options:
    """Options of the kit."""

    capability: int = 90
    """Compute capability, times ten, of the GPU that kernels are compiled for."""
    groups: tuple[str, ...] = ()
    """Which kernels, as `python -m benchmarks.gpu.compiling` names them; without a name all."""
    packages: tuple[str, ...] = PACKAGES
    """Python packages that the other machine lacks; those that they need are not added by themselves."""
    pictures: Path | None = None
    """A folder of pictures to train on; they are cut square and made 64 pixels wide."""


def make(options: Options, folder: Path, cache: Path) -> None:
    """Fills the folder. cache: where what was compiled stays for the next kit."""
    extension = ROOT / "engine" / f"_native{sysconfig.get_config_var('EXT_SUFFIX')}"
    if not extension.exists():
        raise InputError(f"{extension} is missing; build it with `python setup.py build_ext --inplace`")
    folder.mkdir(exist_ok=True)
    for name in ("site", "native", "pictures"):
        shutil.rmtree(folder / name, ignore_errors=True)
    (folder / "native").mkdir()
    shutil.copy(extension, folder / "native")
    if options.packages:
        pinned = ["--constraint", str(ROOT / "constraints.txt"), "--target", str(folder / "site")]
        _run(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", *pinned, *options.packages)
    if options.pictures:
        pack_pictures(options.pictures, folder / "pictures")
    (folder / "run").write_text(RUN)
    kernels = compile_kernels(options, cache, folder / "triton.tar.xz")
    facts = {"triton": triton_key(), "capability": options.capability, "kernels": kernels, "commit": commit()}
    (folder / "triton.json").write_text(json.dumps(facts))


def compile_kernels(options: Options, cache: Path, archive: Path) -> int:
    """Compiles the kernels into Triton's cache and packs them into the archive; returns how many they are."""
    cache.mkdir(parents=True, exist_ok=True)
    groups = ["--groups", *options.groups] if options.groups else []
    with tempfile.TemporaryDirectory() as scratch:
        wanted_file, env = Path(scratch) / "folders.txt", {"TRITON_CACHE_DIR": str(cache)}
        if not os.environ.get("TRITON_LIBCUDA_PATH"):
            # what starts a kernel is linked with the driver's library, which only a machine with a GPU has
            folder = env["TRITON_LIBCUDA_PATH"] = str(stub_driver(Path(scratch)))
            env["LD_LIBRARY_PATH"] = os.pathsep.join(filter(None, [folder, os.environ.get("LD_LIBRARY_PATH")]))
        command = [sys.executable, "-m", "benchmarks.gpu.compiling", "--launchers", "--folders", str(wanted_file)]
        _run(*command, *groups, "--capability", str(options.capability), env=env)
        wanted, kernels = set(wanted_file.read_text().split()), 0
    with tarfile.open(archive, "w:xz", preset=6) as file:
        for place in sorted(path for path in cache.iterdir() if path.is_dir()):
            for path in sorted(place.glob("*")):
                # of a kernel only what is loaded; the modules that start kernels are a few, in folders of their own
                if path.suffix == ".so" or (place.name in wanted and path.suffix in (".cubin", ".json")):
                    file.add(path, f"{place.name}/{path.name}")
                    kernels += path.suffix == ".cubin"
    return kernels


def stub_driver(folder: Path) -> Path:
    """Makes a libcuda.so.1 in which every function that Triton calls returns an error; returns its folder."""
    import triton.backends.nvidia.driver as driver

    places = Path(driver.__file__).parent
    sources = "".join(path.read_text() for path in (places / "driver.c", places / "driver.py"))
    functions = sorted(set(re.findall(r"\bcu[A-Z]\w*(?=\()", sources)))
    source, library = folder / "cuda.c", folder / "libcuda.so.1"
    source.write_text("\n".join(f"int {name}(void) {{ return 999; }}" for name in functions))
    options = ["-shared", "-fPIC", "-w", "-Wl,-soname,libcuda.so.1"]
    _run(os.environ.get("CC", "cc"), *options, str(source), "-o", str(library))
    return folder


def pack_pictures(source: Path, folder: Path, side: int = 64) -> None:
    """Cuts every picture of a folder square in its middle, scales it to `side` pixels and keeps it as PNG."""
    from PIL import Image, ImageOps

    folder.mkdir(parents=True)
    paths = sorted(path for path in source.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png", ".webp"))
    if not paths:
        raise InputError(f"{source} has no picture; give --pictures a folder of JPEG or PNG files")
    for number, path in enumerate(paths):
        with Image.open(path) as picture:
            upright = ImageOps.exif_transpose(picture).convert("RGB")
            ImageOps.fit(upright, (side, side), Image.Resampling.LANCZOS).save(folder / f"{number:06}.png")


def _run(*command: str, env: dict[str, str] | None = None) -> None:
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": _path()} | (env or {}))
    if done.returncode:
        raise InputError(f"`{' '.join(command[:5])} ...` ended with exit status {done.returncode}; its output says why")


@functools.cache
def _path() -> str:
    return os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))


def size(folder: Path) -> int:
    """Bytes of the files of a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def main(argv: Sequence[str]) -> int:
    """Makes the kit of this checkout."""
    options = cli.parse(Options, argv, prog="python -m benchmarks.gpu.kit", description=__doc__)
    make(options, FOLDER, ROOT / "build" / "gpu-triton" / triton_key()[:16])
    print(f"{FOLDER}: {size(FOLDER) / 2**20:.0f} MiB. On the machine with the GPU, in this checkout with this folder:")
    print("  sh .gpu/run OUT")
    return 0


if __name__ == "__main__":
    cli.run("benchmarks.gpu.kit", main)
