"""`python -m benchmarks.gpu.rehearsal MODULE ARGUMENTS`: runs `python -m MODULE ARGUMENTS` as on a GPU machine.

For example `benchmarks.gpu OUT --parts steps-bf16` or `pytest tests/gpu -k recorded`. Torch must be a CUDA build; its
CUDA libraries may be absent (pip install --no-deps torch). A C compiler, binutils and the headers of a CUDA toolkit are
needed. Everything runs that Python, torch's C++ and Triton do on a GPU: streams, recordings, memory, compiling,
launching. The results are meaningless, because no kernel computes.
"""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
# libraries of NVIDIA whose functions need only succeed
FAMILIES = re.compile(r"(__)?(cuda|cu[A-Z]|cu(blas|dnn|fft|file|rand|solver|sparse)|nccl|nvrtc|nvshmem|nvJitLink)")
DRIVER_FUNCTION = re.compile(r"\bcu[A-Z]\w*(?=\()")


class NotHere(Exception):
    """One line that says what a rehearsal lacks."""


def output(*command: str) -> str:
    """What a command prints. Raises NotHere with its last line if it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        raise NotHere(f"{command[0]} is not installed") from None
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["?"])[-1]
        raise NotHere(f"`{' '.join(command[:3])} ...` failed: {last}")
    return done.stdout


def headers() -> Path:
    """The folder of the CUDA toolkit's headers."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    for home in homes:
        if home and (Path(home) / "include" / "cuda_runtime.h").is_file():
            return Path(home) / "include"
    raise NotHere("the headers of a CUDA toolkit are not found; name its folder by CUDA_HOME")


def package(name: str) -> Path:
    """The folder of an installed package, which is not imported."""
    spec = importlib.util.find_spec(name)
    if spec is None:
        raise NotHere(f"{name} is not installed")
    return Path(spec.submodule_search_locations[0])


def build(folder: Path) -> Path:
    """Makes the null GPU for this Python's torch and Triton in the folder; returns the library."""
    libraries = sorted((package("torch") / "lib").glob("*.so"))
    if not any(library.name == "libtorch_cuda.so" for library in libraries):
        raise NotHere("this torch is built for the CPU; install a CUDA build (pip install --no-deps torch)")
    folder.mkdir(parents=True, exist_ok=True)
    include = headers()
    library, extra, compiler = folder / "libcuda.so.1", folder / "extra.c", os.environ.get("CC", "cc")
    options = ["-shared", "-fPIC", "-O1", "-w", f"-I{include}", f"-Wl,-soname,{library.name}", "-o", str(library)]
    sources, linked = [str(HERE / "null_gpu.c")], ["-ldl", "-lpthread"]
    output(compiler, *options, *sources, *linked)
    wanted = {name for one in libraries for name in undefined(one) if FAMILIES.match(name)}
    wanted |= {name for text in driver_sources(include) for name in DRIVER_FUNCTION.findall(text)}
    made = {line.split()[-1].split("@")[0] for line in output("nm", "-D", "--defined-only", str(library)).splitlines()}
    extra.write_text("".join(f"long {name}(void) {{ return 0; }}\n" for name in sorted(wanted - made)))
    output(compiler, *options, *sources, str(extra), *linked)
    versions = wanted_versions(libraries)
    for absent in absent_libraries(libraries, folder):
        stub(absent, versions.get(absent, set()), folder, compiler)
    return library


def undefined(library: Path) -> set[str]:
    """Names of the functions that a library takes from others."""
    lines = output("nm", "-D", "--undefined-only", str(library)).splitlines()
    return {line.split()[-1].split("@")[0] for line in lines}


def driver_sources(include: Path) -> list[str]:
    """What names the functions of the driver: its header, and how Triton talks to it."""
    triton = package("triton") / "backends" / "nvidia"
    return [path.read_text() for path in (include / "cuda.h", triton / "driver.c", triton / "driver.py")]


def absent_libraries(libraries: list[Path], folder: Path) -> set[str]:
    """Names of the libraries that torch's need and that are not on this machine."""
    environment = os.environ | {"LD_LIBRARY_PATH": search_path(folder)}
    absent: set[str] = set()
    for library in libraries:
        printed = subprocess.run(["ldd", str(library)], capture_output=True, text=True, env=environment).stdout
        absent.update(re.findall(r"(\S+) => not found", printed))
    return absent


def wanted_versions(libraries: list[Path]) -> dict[str, set[str]]:
    """The versions of symbols that torch's libraries ask of others: library -> versions."""
    versions: dict[str, set[str]] = {}
    for library in libraries:
        name = ""
        for line in output("readelf", "-W", "-V", str(library)).splitlines():
            if file := re.search(r"\bFile: (\S+)", line):
                name = file[1]
            elif version := re.search(r"\bName: (\S+)\s+Flags", line):
                versions.setdefault(name, set()).add(version[1])
    return versions


def stub(name: str, versions: set[str], folder: Path, compiler: str) -> None:
    """Makes an empty library: its functions are those of the null GPU, which is loaded before."""
    script, source = folder / "version.map", folder / "empty.c"
    script.write_text("".join(f"{version} {{ }};\n" for version in sorted(versions or {name})))
    source.write_text("int of_no_use;\n")
    options = ["-shared", "-fPIC", f"-Wl,-soname,{name}", f"-Wl,--version-script={script}"]
    output(compiler, *options, str(source), "-o", str(folder / name))


def search_path(folder: Path) -> str:
    """LD_LIBRARY_PATH with the folder first."""
    return os.pathsep.join(filter(None, [str(folder), os.environ.get("LD_LIBRARY_PATH")]))


def environment(library: Path) -> dict[str, str]:
    """The environment of what is rehearsed."""
    folder = str(library.parent)
    python_path = [str(HERE / "site"), str(ROOT), os.environ.get("PYTHONPATH")]
    return os.environ | {
        "LD_PRELOAD": str(library),
        "LD_LIBRARY_PATH": search_path(library.parent),
        "TRITON_LIBCUDA_PATH": folder,
        "PYTHONPATH": os.pathsep.join(filter(None, python_path)),
    }


def main(argv: list[str]) -> int:
    """Builds the null GPU and runs the module under it; returns its exit status, or 2 with one line."""
    if not argv or argv[0].startswith("-"):
        print("usage: python -m benchmarks.gpu.rehearsal MODULE ARGUMENTS", file=sys.stderr)
        return 2
    try:
        library = build(ROOT / "build" / "rehearsal" / f"{sys.implementation.cache_tag}")
    except NotHere as error:
        print(f"benchmarks.gpu.rehearsal: error: {error}", file=sys.stderr)
        return 2
    return subprocess.run([sys.executable, "-m", *argv], env=environment(library)).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
