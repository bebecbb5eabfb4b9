"""Ahead-of-time compilation of every kernel and shipped configuration, and what the compiler made of each.

Shipped is what is launched: forward and backward of every operator's samples and benchmark shapes in every arithmetic,
with every candidate of tuning, and one step of the refiner at the paper's setting. Launches that Triton would compile
to the same code are one. Triton's own launcher specialises the arguments (kernel.warmup), as on a GPU: a driver that
only names the target stands where the GPU's would be.
"""

import contextlib
import importlib
import multiprocessing
import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget

from benchmarks.prediction import devices, launches
from benchmarks.suites import step
from engine.errors import InputError
from engine.kernels._gpu.launch import INTERPRETED, OLDEST, Launch, register_bound

PARKED = 32  # bytes of a thread
CAPABILITIES = tuple(devices.OF_CAPABILITY)
PAPER = next(iter(step.SETTINGS))
# PTX of the matrix units by generation: mma.sync since Ampere, wgmma of Hopper, tcgen05 of Blackwell
MATRIX_INSTRUCTIONS = {"mma.sync": r"\bmma\.sync", "wgmma": r"\bwgmma\.mma_async", "tcgen05": r"\btcgen05\.mma"}
TILE = re.compile(r"B[A-Z0-9]+$|BLOCK")  # names of compile-time sizes, by the kernels' convention


@dataclass(frozen=True)
class Pointer:
    """A tensor argument as Triton's launcher looks at it."""

    dtype: torch.dtype
    aligned: bool

    def data_ptr(self) -> int:
        """An address of the same alignment."""
        return 0 if self.aligned else 4

    def ptr_range(self) -> int:
        """As triton's MockTensor."""
        return 0


@dataclass
class Variant:
    """One piece of code to compile, and where it is launched. key: Triton's own, of everything the code depends on."""

    module: str
    name: str
    arguments: dict[str, Any]
    num_warps: int
    num_stages: int
    matrix: bool
    oldest: int = OLDEST  # compute capability, times ten
    key: str = ""
    signature: dict[str, str] = field(default_factory=dict)
    modes: set[str] = field(default_factory=set)
    seen: dict[str, int] = field(default_factory=dict)  # operator or step -> launches

    @property
    def constants(self) -> dict[str, Any]:
        """The compile-time arguments that the kernel names so (those that an int equal to 1 became are not)."""
        kernel = getattr(importlib.import_module(self.module), self.name)
        named = {p.name for p in kernel.params if p.is_constexpr}
        return {n: v for n, v in self.arguments.items() if n in named}

    @property
    def form(self) -> str:
        """The compile-time choices without the tile: "FORM=2 ACTIVATION=1 HAS_BIAS"."""
        return _words({n: v for n, v in self.constants.items() if not TILE.match(n)})

    @property
    def tile(self) -> str:
        """Tile sizes, warps and pipeline stages."""
        sizes = _words({n: v for n, v in self.constants.items() if TILE.match(n)})
        return f"{sizes} warps={self.num_warps} stages={self.num_stages}".strip()


def _words(constants: dict[str, Any]) -> str:
    return " ".join(n if v is True else f"{n}={v}" for n, v in constants.items() if v is not False)


@dataclass(frozen=True)
class Resources:
    """What a variant takes on one target. Registers of a thread, bytes of a program's shared memory, bytes of stack.

    spills: loads and stores of local memory in loops. matrix: matrix instructions by kind. error: why it failed.
    """

    registers: int = 0
    stack: int = 0
    local: int = 0
    shared: int = 0
    threads: int = 0
    spills: int = 0
    matrix: dict[str, int] = field(default_factory=dict)
    error: str = ""


# what Triton would compile


class _StandIn:
    """As much of a Triton driver as compiling asks for."""

    def __init__(self, capability: int):
        self._capability = capability

    def get_current_device(self) -> str:
        return f"sm_{self._capability}"  # Triton keeps what it compiled by this

    def get_current_stream(self, device: str) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self._capability, 32)


@contextlib.contextmanager
def target(capability: int) -> Iterator[None]:
    """Triton compiles for this target within the block; no GPU is needed, and none is used."""
    driver = triton.runtime.driver
    before = driver._active  # not .active, which looks for a GPU
    driver.set_active(_StandIn(capability))
    try:
        yield
    finally:
        driver.set_active(before)


def variant(launch: Launch) -> Variant:
    """The launch's arguments as the compiler takes them, with the key and the signature that Triton gives them.

    To be called within `target`.
    """
    arguments = {
        n: Pointer(a.dtype, a.data_ptr() % 16 == 0) if isinstance(a, torch.Tensor) else a
        for n, a in launch.arguments.items()
    }
    found = Variant(
        launch.kernel.fn.__module__, launch.name, arguments, launch.num_warps, launch.num_stages, launch.cost.matrix,
        launch.oldest,
    )  # fmt: skip

    def look(key: object, compile: dict[str, Any], **_: object) -> bool:
        found.key, found.signature = f"{found.module} {found.name} {key}", compile["signature"]
        return True  # enough: nothing is compiled

    with triton.knobs.runtime.scope():
        triton.knobs.runtime.jit_cache_hook = look
        warm(launch.kernel, found)
    return found


def warm(kernel: Any, wanted: Variant, capability: int = CAPABILITIES[0]) -> Any:
    """Compiles for the current target, which has this capability, by Triton's launcher, which launches nothing.

    Returns its compiled kernel.
    """
    options = {"num_warps": wanted.num_warps, "num_stages": wanted.num_stages}
    options |= register_bound(wanted.arguments, lambda: capability)
    return kernel.warmup(grid=(1,), **options, **wanted.arguments)


class Shipped:
    """The variants of all launches given to it."""

    def __init__(self):
        self.variants: dict[str, Variant] = {}

    def add(self, found: Iterable[Launch], where: str, mode: str) -> list[str]:
        """Enters launches; returns the key of each."""
        keys = []
        with target(CAPABILITIES[0]):
            for launch in found:
                new = variant(launch)
                known = self.variants.setdefault(new.key, new)
                known.modes.add(mode)
                known.matrix |= new.matrix
                known.seen[where] = known.seen.get(where, 0) + 1
                keys.append(new.key)
        return keys


def shipped(only: str = "", samples: bool = False, tick: Callable[[str], None] = lambda _: None) -> Shipped:
    """Everything that is launched by operators whose name contains `only`, and by the refiner's step.

    samples: with the small, odd shapes of the operators' tests, whose tiles are others.
    """
    check_not_interpreted()
    found = Shipped()
    for name, spec in launches.specs().items():
        if only not in name:
            continue
        for mode_name, mode in launches.modes(spec).items():
            tick(f"{name} {mode_name}")
            for sample in [*spec.benchmarks, *(spec.samples if samples else [])]:
                found.add(launches.of_operator(spec, sample, mode, every_choice=True), name, mode_name)
    if only in PAPER:
        for mode_name in launches.STEP_MODES:
            tick(f"{PAPER} {mode_name}")
            made = launches.of_step(step.SETTINGS[PAPER], mode_name, every_choice=True)
            found.add(made, "refiner step", mode_name)
    return found


def check_not_interpreted() -> None:
    """Raises InputError under Triton's interpreter, where nothing can be compiled."""
    if INTERPRETED:
        raise InputError("TRITON_INTERPRET is set: kernels are interpreted and not compiled; unset it")


# compiling


def compile_one(wanted: Variant, capability: int) -> Resources:
    """Compiles (or takes from Triton's cache) and looks at the result."""
    try:
        with target(capability):
            made = warm(getattr(importlib.import_module(wanted.module), wanted.name), wanted, capability)
    except Exception as error:
        last = str(error).strip().splitlines()[-1:] or [""]
        return Resources(error=f"{type(error).__name__}: {last[0]}"[:300])
    ptx = made.asm["ptx"]
    matrix = {kind: len(re.findall(text, ptx)) for kind, text in MATRIX_INSTRUCTIONS.items()}
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(made.asm["cubin"])
        file.flush()
        usage = _output(triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name)
        figures = {k: int(v) for k, v in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", usage)}
        if missing := {"REG", "STACK", "LOCAL"} - figures.keys():
            return Resources(error=f"cuobjdump names no {', '.join(sorted(missing))}")
        spills = 0
        if figures["STACK"] or figures["LOCAL"]:
            code = _output(triton.knobs.nvidia.nvdisasm.path, "-c", file.name)
            spills = spills_in_loops(code)
    return Resources(
        registers=figures["REG"],
        stack=figures["STACK"],
        local=figures["LOCAL"],
        shared=made.metadata.shared,
        threads=32 * made.metadata.num_warps,
        spills=spills,
        matrix={kind: count for kind, count in matrix.items() if count},
    )


def spills_in_loops(code: str) -> int:
    """Loads and stores of local memory between a label and a jump back to it, in what nvdisasm -c prints."""
    labels: dict[str, int] = {}
    loops, spills = [], []
    for number, line in enumerate(code.splitlines()):
        if label := re.match(r"\s*(\.L_\w+):", line):
            labels[label[1]] = number
        elif (jump := re.search(r"\bBRA\b.*`\((\.L_\w+)\)", line)) and jump[1] in labels:
            loops.append((labels[jump[1]], number))
        elif re.search(r"\b(?:STL|LDL)\b", line):
            spills.append(number)
    return sum(any(first <= number <= last for first, last in loops) for number in spills)


def _output(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def compile_all(
    wanted: list[tuple[Variant, int]], tick: Callable[[], object] = lambda: None
) -> list[tuple[Variant, int, Resources]]:
    """Compiles each variant for its target, on every core; those that it has no use for are left out."""
    wanted = [(v, capability) for v, capability in wanted if capability >= v.oldest]
    workers = max(1, min(len(os.sched_getaffinity(0)), len(wanted)))
    spawned = multiprocessing.get_context("spawn")  # a fork of a process with torch's threads can hang
    found = []
    with ProcessPoolExecutor(workers, mp_context=spawned) as pool:
        running = [(v, c, pool.submit(compile_one, v, c)) for v, c in wanted]
        for v, capability, future in running:
            found.append((v, capability, future.result()))
            tick()
    return found


def problems(wanted: Variant, capability: int, made: Resources) -> list[str]:
    """What must not be shipped: spills, a matrix kernel without matrix instructions, more than the GPU has.

    A spill is one in a loop, or of more than PARKED bytes: to fit one more program on a multiprocessor ptxas parks a
    value or two outside of the loops, which costs nothing that can be measured.
    """
    if made.error:
        return [made.error]
    found = []
    if made.stack + made.local > PARKED or made.spills:
        found.append(f"spills: {made.stack} bytes of stack, {made.spills} loads and stores in loops")
    if wanted.matrix and not made.matrix:
        found.append("a matrix kernel without matrix instructions")
    if not residents(gpu(capability), made):
        found.append(f"does not fit: {made.shared} bytes of shared memory, {made.registers} registers")
    return found


def residents(device: devices.Device, made: Resources) -> int:
    """Programs that a multiprocessor holds at once; 0 where the kernel could not be compiled or does not fit."""
    return 0 if made.error else devices.programs_at_once(device, made.registers, made.threads, made.shared)


def gpu(capability: int) -> devices.Device:
    """The GPU that a target stands for."""
    return devices.DEVICES[devices.OF_CAPABILITY[capability]]


def chosen(variants: Iterable[Variant], thorough: bool) -> list[Variant]:
    """A few variants that have every kernel in every arithmetic and with every choice of its form, large tiles first.

    thorough: every choice of the form in every arithmetic that has it, and every tile size and number of warps.
    """
    largest: dict[frozenset, Variant] = {}
    for v in variants:
        aspects = frozenset(_aspects(v, thorough))
        known = largest.get(aspects)
        if known is None or _order(v) > _order(known):
            largest[aspects] = v
    left = {v.key: (set(aspects), v) for aspects, v in largest.items()}
    found = []
    while left:
        # the most that is new; of equals the one with the largest tile, where registers run out first
        covered, best = left.pop(max(left, key=lambda key: (len(left[key][0]), _order(left[key][1]))))
        if not covered:
            break
        found.append(best)
        for aspects, v in left.values():
            if v.name == best.name:
                aspects -= covered
    return found


def _aspects(v: Variant, thorough: bool) -> Iterator[tuple]:
    for name, choice in v.constants.items():
        if not TILE.match(name):
            yield from ((v.name, mode, name, choice) for mode in v.modes) if thorough else [(v.name, name, choice)]
        elif thorough:
            yield v.name, name, choice
    yield from ((v.name, mode) for mode in v.modes)
    if thorough:
        yield v.name, v.num_warps


def _order(v: Variant) -> tuple[int, str]:
    return _tile_size(v), v.key


def _tile_size(v: Variant) -> int:
    size = 1
    for name, value in v.constants.items():
        if TILE.match(name) and isinstance(value, int):
            size *= value
    return size
