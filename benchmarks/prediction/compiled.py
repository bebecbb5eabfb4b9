"""Ahead-of-time compilation of every kernel and shipped configuration, and what the compiler made of each.

A configuration is shipped if it is launched by forward or backward of an operator's samples and benchmark shapes, in
any arithmetic and with any candidate of tuning, or by one step of the refiner at the paper's setting. Launches that
Triton compiles to the same code count as one variant. Triton's own launcher specialises the arguments (kernel.warmup),
as it does on a GPU; a driver that only names the target takes the place of the GPU's driver.
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
from engine.kernels._gpu.launch import INTERPRETED, OLDEST, Launch, register_bound, settle_key

PARKED = 32  # bytes of a thread that may spill outside of loops
CAPABILITIES = tuple(devices.OF_CAPABILITY)
PAPER = next(iter(step.SETTINGS))
# PTX of the matrix units by generation: mma.sync since Ampere, wgmma of Hopper, tcgen05 of Blackwell
MATRIX_INSTRUCTIONS = {"mma.sync": r"\bmma\.sync", "wgmma": r"\bwgmma\.mma_async", "tcgen05": r"\btcgen05\.mma"}
TILE = re.compile(r"B[A-Z0-9]+$|BLOCK")  # names of compile-time sizes, by the kernels' convention


@dataclass(frozen=True)
class Pointer:
    """The part of a tensor argument that Triton's launcher looks at."""

    dtype: torch.dtype
    aligned: bool

    def data_ptr(self) -> int:
        """An address with the tensor's alignment."""
        return 0 if self.aligned else 4

    def ptr_range(self) -> int:
        """What Triton's own MockTensor returns."""
        return 0


@dataclass
class Variant:
    """One piece of code to compile, and where it is launched.

    arguments: by parameter name, tensors as Pointer
    matrix:    whether its launches count their FLOPs on matrix units
    oldest:    compute capability, times ten, of the oldest GPUs that it is for
    key:       Triton's own, of everything that the code depends on
    signature: Triton's type of each argument
    modes:     arithmetics of launches.MODES that launch it
    seen:      number of launches by operator or step
    """

    module: str
    name: str
    arguments: dict[str, Any]
    num_warps: int
    num_stages: int
    matrix: bool
    oldest: int = OLDEST
    key: str = ""
    signature: dict[str, str] = field(default_factory=dict)
    modes: set[str] = field(default_factory=set)
    seen: dict[str, int] = field(default_factory=dict)

    @property
    def constants(self) -> dict[str, Any]:
        """The arguments that the kernel declares as compile-time; an int specialised to 1 is not declared so."""
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
    """What a variant takes on one target.

    registers: of a thread
    stack:     bytes of a thread; local: bytes of its local memory beside the stack
    shared:    bytes of a program's shared memory
    threads:   of a program
    spills:    loads and stores of local memory in loops
    matrix:    number of matrix instructions by kind
    error:     why compiling failed; "" if it did not
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


class _NamedTarget:
    """The part of a Triton driver that compiling asks for: it names the target."""

    def __init__(self, capability: int):
        self._capability = capability

    def get_current_device(self) -> str:
        return f"sm_{self._capability}"  # the key by which Triton caches compiled code

    def get_current_stream(self, device: str) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self._capability, 32)


@contextlib.contextmanager
def target(capability: int) -> Iterator[None]:
    """Makes Triton compile for this target in the block; no GPU is needed, and none is used."""
    driver = triton.runtime.driver
    before = driver._active  # the property .active would look for a GPU
    driver.set_active(_NamedTarget(capability))
    try:
        yield
    finally:
        driver.set_active(before)


def variant(launch: Launch) -> Variant:
    """The launch's arguments as the compiler takes them, with the key and the signature that Triton gives them.

    Must be called in a block of `target`.
    """
    arguments = {
        n: Pointer(a.dtype, a.data_ptr() % 16 == 0) if isinstance(a, torch.Tensor) else a
        for n, a in launch.arguments.items()
    }
    made = Variant(
        launch.kernel.fn.__module__, launch.name, arguments, launch.num_warps, launch.num_stages, launch.cost.matrix,
        launch.oldest,
    )  # fmt: skip

    def look(key: object, compile: dict[str, Any], **_: object) -> bool:
        made.key, made.signature = f"{made.module} {made.name} {key}", compile["signature"]
        return True  # tells Triton to compile nothing

    with triton.knobs.runtime.scope():
        triton.knobs.runtime.jit_cache_hook = look
        warm(launch.kernel, made)
    return made


def warm(kernel: Any, wanted: Variant, capability: int = CAPABILITIES[0]) -> Any:
    """Compiles by Triton's launcher, without a launch, for the current target; returns Triton's compiled kernel.

    capability: of the current target
    """
    options = {"num_warps": wanted.num_warps, "num_stages": wanted.num_stages}
    options |= register_bound(wanted.arguments, lambda: capability)
    settle_key(kernel)
    return kernel.warmup(grid=(1,), **options, **wanted.arguments)


class Shipped:
    """The variants of all launches given to it."""

    def __init__(self):
        self.variants: dict[str, Variant] = {}

    def add(self, recorded: Iterable[Launch], where: str, mode: str) -> list[str]:
        """Enters launches; returns the key of each. where: operator or step; mode: of launches.MODES."""
        keys = []
        with target(CAPABILITIES[0]):
            for launch in recorded:
                new = variant(launch)
                known = self.variants.setdefault(new.key, new)
                known.modes.add(mode)
                known.matrix |= new.matrix
                known.seen[where] = known.seen.get(where, 0) + 1
                keys.append(new.key)
        return keys


def shipped(only: str = "", samples: bool = False, tick: Callable[[str], None] = lambda _: None) -> Shipped:
    """Everything that is launched by operators whose name contains `only`, and by the refiner's step.

    samples: also by the small, odd shapes of the operators' tests, which have other tiles
    tick:    called with what comes next
    """
    check_not_interpreted()
    everything = Shipped()
    for name, spec in launches.specs().items():
        if only not in name:
            continue
        for mode_name, mode in launches.modes(spec).items():
            tick(f"{name} {mode_name}")
            for sample in [*spec.benchmarks, *(spec.samples if samples else [])]:
                recorded = launches.of_operator(spec, sample, mode, choices="all")
                everything.add(recorded, name, mode_name)
    if only in PAPER:
        for mode_name in launches.STEP_MODES:
            tick(f"{PAPER} {mode_name}")
            recorded = launches.of_step(step.SETTINGS[PAPER], mode_name, choices="all")
            everything.add(recorded, "refiner step", mode_name)
    return everything


def check_not_interpreted() -> None:
    """Raises InputError under Triton's interpreter, where nothing can be compiled."""
    if INTERPRETED:
        raise InputError("TRITON_INTERPRET is set: kernels are interpreted and not compiled; unset it")


# compiling


def compile_one(wanted: Variant, capability: int) -> Resources:
    """Compiles, or takes from Triton's cache, and reads from the result what it takes on the GPU."""
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
    """Counts loads and stores of local memory between a label and a jump back to it. code: what nvdisasm -c prints."""
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
    """Compiles each variant for its target, on every core; variants for newer GPUs than their target are left out."""
    wanted = [(v, capability) for v, capability in wanted if capability >= v.oldest]
    workers = max(1, min(len(os.sched_getaffinity(0)), len(wanted)))
    spawned = multiprocessing.get_context("spawn")  # a fork of a process with torch's threads can hang
    results = []
    with ProcessPoolExecutor(workers, mp_context=spawned) as pool:
        running = [(v, c, pool.submit(compile_one, v, c)) for v, c in wanted]
        for v, capability, future in running:
            results.append((v, capability, future.result()))
            tick()
    return results


def problems(wanted: Variant, capability: int, made: Resources) -> list[str]:
    """What must not be shipped: spills, a matrix kernel without matrix instructions, more than the GPU has.

    Only a spill in a loop, or of more than PARKED bytes, is a problem: to fit one more program on a multiprocessor,
    ptxas moves a value or two to the stack outside of loops, at a cost too small to measure.
    """
    if made.error:
        return [made.error]
    wrong = []
    if made.stack + made.local > PARKED or made.spills:
        wrong.append(f"spills: {made.stack} bytes of stack, {made.spills} loads and stores in loops")
    if wanted.matrix and not made.matrix:
        wrong.append("a matrix kernel without matrix instructions")
    if not residents(gpu(capability), made):
        wrong.append(f"does not fit: {made.shared} bytes of shared memory, {made.registers} registers")
    return wrong


def residents(device: devices.Device, made: Resources) -> int:
    """Programs that a multiprocessor holds at once; 0 if the kernel could not be compiled or does not fit."""
    return 0 if made.error else devices.programs_at_once(device, made.registers, made.threads, made.shared)


def gpu(capability: int) -> devices.Device:
    """The GPU that is taken as an example of a target."""
    return devices.DEVICES[devices.OF_CAPABILITY[capability]]


def chosen(variants: Iterable[Variant], forms: bool) -> list[Variant]:
    """A few variants that together cover every kernel and arithmetic, those with large tiles first.

    forms: and every choice of form
    """
    largest: dict[frozenset, Variant] = {}
    for v in variants:
        aspects = frozenset(_aspects(v, forms))
        known = largest.get(aspects)
        if known is None or _order(v) > _order(known):
            largest[aspects] = v
    left = {v.key: (set(aspects), v) for aspects, v in largest.items()}
    few = []
    while left:
        # the variant with the most new aspects; of equals the one with the largest tile, where registers run out first
        covered, best = left.pop(max(left, key=lambda key: (len(left[key][0]), _order(left[key][1]))))
        if not covered:
            break
        few.append(best)
        for aspects, v in left.values():
            if v.name == best.name:
                aspects -= covered
    return few


def _aspects(v: Variant, forms: bool) -> Iterator[tuple]:
    if forms:
        yield from ((v.name, name, choice) for name, choice in v.constants.items() if not TILE.match(name))
    yield from ((v.name, mode) for mode in v.modes)


def _order(v: Variant) -> tuple[int, str]:
    return _tile_size(v), v.key


def _tile_size(v: Variant) -> int:
    size = 1
    for name, value in v.constants.items():
        if TILE.match(name) and isinstance(value, int):
            size *= value
    return size
