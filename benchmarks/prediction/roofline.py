"""The least time that a launch takes on a GPU, from its bytes, its FLOPs and the resources of its compiled kernel.

    seconds    = device.launch + max(compute, l2, hbm, waiting)
    compute    = flops * products / rate / efficiency
    l2         = gathered / device.l2_bytes / efficiency
    hbm        = moved / device.hbm_bytes
    waiting    = rounds * device.latency
    efficiency = programs / (processors * ceil(programs / processors))
    rounds     = ceil(programs / (processors * programs_at_once))

flops, moved and gathered are the launch's Cost. rate is that of the unit and the dtype: of matrix units for
Cost.matrix (bfloat16 and float16, or TF32), else of the ordinary float32 units; tf32x3 computes three products for
each. Hopper's and Blackwell's matrix units reach their rate only by their own instructions (wgmma, tcgen05): a kernel
compiled to mma.sync has MMA_SYNC_SHARE of it. efficiency is the quantisation into waves: the busiest multiprocessor
has ceil(programs / processors) of the programs; a grid of one program uses one multiprocessor. programs_at_once is
what registers, shared memory and threads of the compiled kernel allow: programs that cannot run together wait for
each other's first loads, each round for `latency` at least.

This is a bound, not a forecast: a kernel that reaches its peak rates has measured / predicted = 1; a well written one
has 1.2 to 2. A kernel whose inputs the kernel before it left in the L2 cache can be faster.

Eager PyTorch is predicted by the same rates from the operations that the reference runs (FLOPs by PyTorch's own
formulas, inputs read once, outputs written once). Each operation is one kernel that fills the GPU; its products are in
tiles of TILE x TILE, read through the L2 cache. This favours eager: its convolutions take any layout at the full rate.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from benchmarks.prediction import launches
from benchmarks.prediction.compiled import Pointer, Resources, Variant, residents
from benchmarks.prediction.devices import Device
from benchmarks.suites import operators, step
from engine.kernels._gpu.launch import Cost, Launch
from engine.systems.base import System

# published micro-benchmarks of the H100 reach 62 % of the wgmma peak with mma.sync; Blackwell is taken to have the same
MMA_SYNC_SHARE = 0.62
TILE = 128
HALF = (torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Prediction:
    """Seconds of one kernel on a GPU, and what they are spent on: "compute", "hbm", "l2" or "waiting"."""

    seconds: float
    bound: str


def predict(cost: Cost, programs: int, at_once: int, rate: float, device: Device) -> Prediction:
    """The formula of this module.

    programs: of the launch; at_once: programs that a multiprocessor holds
    rate:     FLOP/s of the whole GPU, already divided by the products that each FLOP of the cost takes
    Raises ValueError for a launch of no programs, or of programs that do not fit.
    """
    if programs < 1 or at_once < 1:
        raise ValueError(f"{programs} programs, {at_once} at once: a launch has at least one of each")
    efficiency = programs / (device.processors * math.ceil(programs / device.processors))
    parts = {
        "compute": cost.flops / rate / efficiency,
        "l2": max(cost.gathered, cost.moved) / device.l2_bytes / efficiency,
        "hbm": cost.moved / device.hbm_bytes,
        "waiting": math.ceil(programs / (device.processors * at_once)) * device.latency,
    }
    bound = max(parts, key=parts.__getitem__)
    return Prediction(device.launch + parts[bound], bound)


def rate(wanted: Variant, made: Resources, device: Device) -> float:
    """FLOP/s of the whole GPU for this kernel's products."""
    if not wanted.matrix:
        return device.float_flops
    dtype = next(a.dtype for a in wanted.arguments.values() if isinstance(a, Pointer))
    products = 3 if "tf32x3" in wanted.constants.values() else 1
    peak = device.half_flops if dtype in HALF else device.tf32_flops / products
    own_instructions = any(kind != "mma.sync" for kind in made.matrix)
    return peak if device.capability < 90 or own_instructions else peak * MMA_SYNC_SHARE


def of_launch(cost: Cost, grid: tuple[int, ...], wanted: Variant, made: Resources, device: Device) -> Prediction:
    """What a launch of this kernel takes. made: for the device's target. Raises ValueError if it cannot run."""
    return predict(cost, math.prod(grid), residents(device, made), rate(wanted, made, device), device)


# PyTorch's own operations


@dataclass(frozen=True)
class Operation:
    """One operation of PyTorch: FLOPs and bytes moved by its kernel. half: in bfloat16 or float16."""

    name: str
    flops: float
    moved: float
    half: bool

    def seconds(self, device: Device, tf32: bool = False) -> float:
        """Seconds as one kernel that fills the GPU. tf32: float32 products are TF32."""
        peak = device.half_flops if self.half else device.tf32_flops if tf32 else device.float_flops
        # a tile of T x T reads 2 T elements for 2 T^2 FLOPs
        gathered = max(self.moved, self.flops / TILE * (2 if self.half else 4))
        parts = self.flops / peak, self.moved / device.hbm_bytes, gathered / device.l2_bytes, device.latency
        return device.launch + max(parts)


class Counted(TorchDispatchMode):
    """Counts every operation of the block that starts a kernel of PyTorch.

    Kiln's operators are left out: their kernels are recorded where they are launched.
    """

    _NOTHING = (
        "empty",
        "detach",
        "new_empty",
        "_local_scalar_dense",
        "item",
        "lift",
        "scalar_tensor",
        "is_pinned",
        "sym_",
    )

    def __init__(self):
        super().__init__()
        self.operations: list[Operation] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func.namespace == "aten" and not _is_view(func) and not func.__name__.startswith(self._NOTHING):
            inputs = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
            outputs = [t for t in tree_leaves(result) if isinstance(t, Tensor)]
            formula = flop_registry.get(func.overloadpacket)
            flops = float(formula(*args, **(kwargs or {}), out_val=result)) if formula else 0.0
            # an operation in place writes what it reads
            moved = sum(map(_bytes, inputs)) + sum(map(_bytes, outputs or _written(func, args)))
            half = any(t.dtype in HALF for t in inputs)
            self.operations.append(Operation(func.__name__, flops, moved, half))
        return result


def _is_view(func: torch._ops.OpOverload) -> bool:
    return any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)


def _written(func: torch._ops.OpOverload, args: tuple) -> list[Tensor]:
    written = []
    for argument, value in zip(func._schema.arguments, args, strict=False):
        if argument.alias_info is not None and argument.alias_info.is_write:
            written += [t for t in tree_leaves(value) if isinstance(t, Tensor)]
    return written


def _bytes(tensor: Tensor) -> float:
    """Bytes in memory: an expanded tensor is as large as the tensor that it repeats."""
    sizes = (size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride)
    return float(math.prod(sizes) * tensor.element_size())


def counted(call: Callable[[], object]) -> list[Operation]:
    """PyTorch's own operations of one call."""
    with Counted() as counter:
        call()
    return counter.operations


def eager_operator(case: operators.Case, mode: launches.Mode) -> list[Operation]:
    """Operations of the reference's forward and backward on one shape; nothing is computed."""
    with FakeTensorMode():
        inputs = launches.blank(case.spec, case.sample, mode)
        return counted(operators.both_passes(case.reference, inputs, case.sample))


def eager_step(setting: dict, mode: str) -> list[Operation]:
    """Operations of one textbook step; the step runs on the CPU."""
    system, batch = step.build("eager channels_last", setting, "cpu", launches.STEP_MODES[mode])
    _make_moments(system)
    return counted(lambda: system.step(batch))


def fused_step(setting: dict, mode: str, capability: int) -> tuple[list[Launch], list[Operation]]:
    """Launches of one fused step on GPUs of a capability, and PyTorch's own operations in it."""
    system, batch = step.build("fused", setting, "cpu", launches.STEP_MODES[mode])
    _make_moments(system)
    with launches.only_noted(launches.MODES[mode].tf32, capability=capability) as recorded:
        return recorded, counted(lambda: system.step(batch))


def _make_moments(system: System) -> None:
    """Makes the state of the optimisers, which would otherwise be made in the first step and counted there."""
    for optimiser in system.optimisers.values():
        for parameter in (p for group in optimiser.param_groups for p in group["params"]):
            parameter.grad = torch.zeros_like(parameter)
        optimiser.step()


def total(operations: Iterable[Operation], device: Device, tf32: bool = False) -> float:
    """Seconds of the operations, one after the other."""
    return sum(operation.seconds(device, tf32) for operation in operations)
