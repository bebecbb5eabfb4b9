"""`python -m benchmarks.gpu.compiling`: fills Triton's cache with the kernels that the parts launch, on every core.

What the parts will launch is recorded on CPU tensors, and compiled for the GPU that is here, or without one for
--capability. What the cache holds is not compiled again.
"""

import concurrent.futures
import dataclasses
import functools
import hashlib
import importlib
import multiprocessing
import os
import sysconfig
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import triton
import tyro
from triton.runtime.cache import get_cache_manager

from benchmarks.gpu.samples import of_each_kind, smallest
from benchmarks.prediction import compiled, launches
from benchmarks.prediction.compiled import Shipped, Variant
from benchmarks.suites import operators, step, systems
from engine import cli, ops
from engine.data import Batch
from engine.errors import InputError
from engine.kernels import _spec
from engine.kernels._contract import find
from engine.kernels._gpu.launch import H100, Launch
from engine.systems.refiner import RefinerConfig
from engine.systems.registry import SYSTEMS, build
from engine.training.resolve import resolve
from engine.verification.training_steps import training_batch, training_config

THREE = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Options:
    """Options of the compilation."""

    groups: tuple[str, ...] = ()
    """Which kernels, in this order; without a name all: steps smoke quick training shapes samples exact systems."""
    capability: int = H100
    """Compute capability, times ten, of the GPU to compile for where none is here."""
    seconds: float = float("inf")
    """After which no further kernel begins."""
    folders: Path | None = None
    """Write the names of the cache's folders that hold these kernels to this file."""
    launchers: tyro.conf.FlagCreatePairsOff[bool] = False
    """Also what starts the kernels, which Triton otherwise compiles where they are started first."""


# what is launched


Recorded = Iterator[tuple[str, str, list[Launch]]]  # operator or step, mode of launches.MODES, launches


def _operator(spec: _spec.Spec, samples: list[_spec.Sample], modes: tuple[str, ...], capability: int) -> Recorded:
    """Launches of an operator as it is measured, and as it is compared, with gradients of all outputs."""
    function = find(spec.operator).function
    for sample in samples:
        for name in (name for name in modes if name in launches.modes(spec)):
            mode = launches.MODES[name]
            yield spec.operator, name, launches.of_operator(spec, sample, mode, "measured", capability)
            call = functools.partial(function, exact=True) if mode.exact else function
            tensors = launches.blank(spec, sample, mode)

            def compare(call=call, sample=sample, tensors=tensors, mode=mode) -> None:
                _spec.run(call, sample, tensors, mode.dtype)

            yield spec.operator, name, _noted(compare, mode.tf32, capability)


def _noted(work: Callable[[], object], tf32: bool, capability: int) -> list[Launch]:
    with launches.only_noted(tf32, "measured", capability) as recorded:
        work()
    return recorded


def _steps(capability: int) -> Recorded:
    """A fused step of the refiner, its samples, and the assembly of a batch."""
    wanted = [(setting, mode) for setting in step.SETTINGS for mode in ("bfloat16", "float32")]
    for setting, mode in wanted:
        system, batch = step.build("fused", step.SETTINGS[setting], "cpu", launches.STEP_MODES[mode])

        def work(system=system, batch=batch) -> None:
            system.step(batch)
            for count in (8, 16):
                system.sample(batch.part(0, count))

        yield setting, mode, _noted(work, launches.MODES[mode].tf32, capability)
    images = launches.specs()["image_batch"]
    yield from _operator(images, images.samples, THREE, capability)


def _smoke(capability: int) -> Recorded:
    for spec in launches.specs().values():
        yield from _operator(spec, smallest(spec), THREE, capability)


def _quick(capability: int) -> Recorded:
    for case in operators.cases("", quick=True):
        if case.spec.operator in launches.specs():
            yield from _operator(case.spec, [case.sample], THREE, capability)


def _training(capability: int) -> Recorded:
    """Steps of every system at the size that `kiln verify` and the GPU tests take, and the tests' own refiners."""
    device = torch.device("cpu")
    for name in SYSTEMS:
        config = dataclasses.replace(training_config(name), fused=True)
        system, batch = build(config, device), training_batch(config, 1, device)
        yield name, "float32", _noted(lambda system=system, batch=batch: system.step(batch), False, capability)
    words = ["--fused", "--device", "cpu", "--resolution", "32", "--filters", "16", "--hidden", "16"]
    for landmarks in ([], ["--landmarks", "--landmark-weight", "0.3"]):
        for mode, precision in (("float32", "fp32"), ("tf32", "fp32"), ("bfloat16", "bf16")):
            for size in (4, 6):
                config = resolve([*words, *landmarks, "--batch-size", str(size), "--precision", precision])[0]
                system, batch = build(config, device), training_batch(config, 1, device)

                def work(system=system, batch=batch) -> None:
                    system.step(batch)
                    system.sample(batch.part(0, 4))

                yield "refiner", mode, _noted(work, mode == "tf32", capability)
    # what `kiln doctor` trains
    config = RefinerConfig(fused=True, resolution=16, filters=4, hidden=8, batch_size=2, model="A", inject=(8,))
    images = torch.zeros(2, 3, 16, 16).contiguous(memory_format=torch.channels_last)
    system = build(config, device)
    batch = Batch(images=images, landmarks=None, indices=torch.arange(2))
    # as PyTorch starts: convolutions may take TF32
    yield "doctor", "tf32", _noted(lambda: system.step(batch), True, capability)
    yield "calls", "float32", _noted(_calls, False, capability)


def _systems(capability: int) -> Recorded:
    """Steps of the suite `systems` at the quick presets."""
    for label, config in systems.presets("", quick=False).items():
        config = dataclasses.replace(config, fused=True)
        system, batch = build(config, "cpu"), training_batch(config, 1, torch.device("cpu"))
        yield label, "float32", _noted(lambda system=system, batch=batch: system.step(batch), False, capability)


def _calls() -> None:
    """The calls of tests/gpu/test_gpu_operators.py that are no sample of an operator."""
    x = torch.zeros(2, 16, 8, 8).contiguous(memory_format=torch.channels_last)
    weight, target = torch.zeros(16, 16, 3, 3, requires_grad=True), torch.zeros(2, 16, 16, 16)
    target = target.contiguous(memory_format=torch.channels_last)
    y = ops.resize_conv_act(x, weight, resize="up", activation="elu")
    torch.autograd.grad(ops.l1_autoencoder_loss(target, y)[1] + ops.style_loss(y, target)[1], weight)
    small = torch.zeros(1, 16, 8, 8)
    for activation in ("none", "elu", "relu", "leaky_relu", "tanh", "sigmoid", "silu"):
        ops.resize_conv_act(small, weight.detach(), activation=activation)
    ops.gram(small)
    ops.gram(torch.ones(1, 2, 2, 2))
    ops.l1_autoencoder_loss(small, small)
    for resize in ("none", "up", "down"):
        x, w = torch.zeros(2, 8, 8, 8, dtype=torch.bfloat16), torch.zeros(8, 8, 3, 3, requires_grad=True)
        ops.resize_conv_act(x, w, resize=resize, activation="elu").float().sum().backward()


def _shapes(capability: int) -> Recorded:
    for spec in launches.specs().values():
        yield from _operator(spec, spec.benchmarks, ("bfloat16", "float32"), capability)


def _samples(capability: int) -> Recorded:
    for spec in launches.specs().values():
        yield from _operator(spec, spec.samples, THREE, capability)


def _exact(capability: int) -> Recorded:
    conv = launches.specs()["resize_conv_act"]
    yield from _operator(conv, of_each_kind(conv), ("exact", "tf32"), capability)


# by name, those that most parts need first
GROUPS: dict[str, Callable[[int], Recorded]] = {
    "steps": _steps,
    "smoke": _smoke,
    "quick": _quick,
    "training": _training,
    "shapes": _shapes,
    "samples": _samples,
    "exact": _exact,
    "systems": _systems,
}


def variants(groups: tuple[str, ...], capability: int) -> dict[str, list[Variant]]:
    """The codes that each group launches; a code is in the first group that has it."""
    shipped, by_group = Shipped(), {}
    for group in groups:
        before = set(shipped.variants)
        for where, mode, recorded in GROUPS[group](capability):
            shipped.add(recorded, where, mode)
        by_group[group] = [v for key, v in shipped.variants.items() if key not in before]
    return by_group


# compiling


def make(wanted: Variant, capability: int, launchers: bool) -> tuple[str, str]:
    """Compiles a kernel into the cache. Returns the name of its folder there, and what went wrong."""
    try:
        with compiled.target(capability):
            kernel = getattr(importlib.import_module(wanted.module), wanted.name)
            made = compiled.warm(kernel, wanted, capability)
        if launchers:
            make_launcher(made)
    except Exception as error:
        return "", f"{wanted.name}: {type(error).__name__}: {' '.join(str(error).split())[-300:]}"
    return Path(get_cache_manager(made.hash).cache_dir).name, ""


def make_launcher(made: object) -> None:
    """Compiles the C code that starts a kernel, for every name under which a machine may look for it.

    Its key holds what platform.architecture() says, which differs where the command `file` is not installed.
    """
    from triton.backends.nvidia import driver

    if not hasattr(driver, "make_launcher"):
        return  # since Triton 3.7 one module, that of make_utilities, starts them all
    build = driver.compile_module_from_src
    sources: list[tuple[str, str]] = []

    def keep(src: str, name: str, **options: object) -> object:
        sources.append((src, name))
        return build(src=src, name=name, **options)

    driver.compile_module_from_src = keep
    try:
        driver.CudaLauncher(made.src, made.metadata)
    finally:
        driver.compile_module_from_src = build
    for src, name in sources:
        name_twice(src, name)


def name_twice(src: str, name: str) -> None:
    """Keeps a compiled module under both keys that it can have."""
    from triton.runtime import build

    file = name + sysconfig.get_config_var("EXT_SUFFIX")
    here = get_cache_manager(hashlib.sha256((src + build.platform_key()).encode()).hexdigest())
    for key in ("x86_64,Linux,64bit,ELF", "x86_64,Linux,64bit,"):
        there = get_cache_manager(hashlib.sha256((src + key).encode()).hexdigest())
        if not there.has_file(file):
            there.put(Path(here.get_file(file)).read_bytes(), file, binary=True)


def make_utilities() -> None:
    """Compiles the module through which Triton talks to the driver."""
    from triton.backends.nvidia import driver

    src = Path(driver.dirname, "driver.c").read_text()
    options = {"library_dirs": driver.library_dirs(), "include_dirs": driver.include_dirs}
    driver.compile_module_from_src(src=src, name="cuda_utils", libraries=driver.libraries, **options)
    name_twice(src, "cuda_utils")


def compile_groups(options: Options) -> tuple[list[str], list[str]]:
    """Compiles the groups one after another; returns the cache's folders, and what went wrong."""
    begun = time.monotonic()
    capability = options.capability
    if torch.cuda.is_available():
        major, minor = torch.cuda.get_device_capability()
        capability = 10 * major + minor
    groups = options.groups or tuple(GROUPS)
    by_group = variants(groups, capability)
    counts = ", ".join(f"{group} {len(wanted)}" for group, wanted in by_group.items())
    print(f"for sm_{capability}, found in {time.monotonic() - begun:.0f} s: {counts}", flush=True)
    if options.launchers:
        make_utilities()
    folders, wrong = [], []
    spawned = multiprocessing.get_context("spawn")  # a fork of a process with torch's threads can hang
    workers = len(os.sched_getaffinity(0))
    with concurrent.futures.ProcessPoolExecutor(workers, mp_context=spawned) as pool:
        for group, wanted in by_group.items():
            running = [pool.submit(make, variant, capability, options.launchers) for variant in wanted]
            done = 0
            for future in concurrent.futures.as_completed(running):
                folder, problem = future.result()
                done += 1
                folders.append(folder)
                if problem:
                    wrong.append(problem)
                    print(problem, flush=True)
                if time.monotonic() - begun > options.seconds:
                    pool.shutdown(cancel_futures=True)
                    print(f"{group}: {done} of {len(wanted)}; the time is over", flush=True)
                    return folders, wrong
            print(f"{group}: {done} of {len(wanted)}, {time.monotonic() - begun:.0f} s", flush=True)
    return folders, wrong


def main(argv: list[str]) -> int:
    """Compiles; returns 1 if a kernel does not compile, else 0."""
    options = cli.parse(Options, argv, prog="python -m benchmarks.gpu.compiling", description=__doc__)
    unknown = sorted(set(options.groups) - set(GROUPS))
    if unknown:
        raise InputError(f"no group of kernels is called {', '.join(unknown)}; there are {', '.join(GROUPS)}")
    compiled.check_not_interpreted()
    folders, wrong = compile_groups(options)
    if options.folders:
        options.folders.write_text("\n".join(sorted({*filter(None, folders)})))
    print(f"{len({*filter(None, folders)})} kernels in {triton.knobs.cache.dir}, {len(wrong)} do not compile")
    return 1 if wrong else 0


if __name__ == "__main__":
    cli.run("benchmarks.gpu.compiling", main)
