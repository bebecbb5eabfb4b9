"""What the operators and the refiner's step launch on a GPU, noted on the CPU: kernels are asked for and not started.

Every operator with a gpu.py is found by itself. Outputs stay unset, so nothing here may look at a value.
"""

import contextlib
import importlib.util
import inspect
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.suites import operators, step
from benchmarks.timing.measure import tf32_allowed
from engine.kernels import _spec
from engine.kernels._contract import find
from engine.kernels._dispatch import gpu_kernels_on_cpu
from engine.kernels._gpu.launch import H100, Launch, noted


@dataclass(frozen=True)
class Mode:
    """One arithmetic that is shipped: the tensors' dtype and, for float32, how products are formed."""

    dtype: torch.dtype
    tf32: bool = False
    exact: bool = False


MODES = {
    "float32": Mode(torch.float32),  # three TF32 products
    "tf32": Mode(torch.float32, tf32=True),
    "exact": Mode(torch.float32, exact=True),
    "bfloat16": Mode(torch.bfloat16),
    "float16": Mode(torch.float16),
}
# what --precision of a training step comes to
STEP_MODES = {"float32": "fp32", "tf32": "tf32", "bfloat16": "bf16"}


def specs() -> dict[str, _spec.Spec]:
    """The specs of the operators that have GPU kernels, the skeleton among them."""
    found = _spec.specs_with_skeleton()
    package = {name: find(name).function.__module__ for name in found}
    return {name: spec for name, spec in found.items() if importlib.util.find_spec(f"{package[name]}.gpu")}


def modes(spec: _spec.Spec) -> dict[str, Mode]:
    """The arithmetics that an operator has."""
    parameters = inspect.signature(find(spec.operator).function).parameters
    return {n: m for n, m in MODES.items() if m.dtype in spec.floor and (not m.exact or "exact" in parameters)}


@contextlib.contextmanager
def only_noted(tf32: bool, every_choice: bool = False, capability: int = H100) -> Iterator[list[Launch]]:
    """Launches of the block's calls on CPU tensors, none of which runs, for GPUs of a capability."""
    with tf32_allowed(tf32), gpu_kernels_on_cpu(), noted(False, every_choice, capability) as found:
        yield found


def of_operator(
    spec: _spec.Spec, sample: _spec.Sample, mode: Mode, every_choice: bool = False, capability: int = H100
) -> list[Launch]:
    """Launches of forward and backward on one sample."""
    function = find(spec.operator).function
    fixed = {"exact": True} if mode.exact else {}
    call = operators.both_passes(lambda **inputs: function(**inputs, **fixed), blank(spec, sample, mode), sample)
    with only_noted(mode.tf32, every_choice, capability) as found:
        call()
    return found


def of_step(setting: dict, mode: str, every_choice: bool = False) -> list[Launch]:
    """Launches of one fused training step in a mode of STEP_MODES."""
    system, batch = step.build("fused", setting, "cpu", STEP_MODES[mode])
    with only_noted(MODES[mode].tf32, every_choice) as found:
        system.step(batch)
    return found


def blank(spec: _spec.Spec, sample: _spec.Sample, mode: Mode) -> dict[str, torch.Tensor]:
    """The sample's tensors; for the large ones of the benchmark, that nobody reads, zeros of the same kind."""
    if sample in spec.samples:
        return _spec.tensors(sample, mode.dtype)
    with FakeTensorMode():
        kinds = _spec.tensors(sample, mode.dtype)
    return {name: _zeros(kind) for name, kind in kinds.items()}


def _zeros(like: torch.Tensor) -> torch.Tensor:
    """Memory that the system gives only where it is written."""
    elements = 1 + sum((size - 1) * stride for size, stride in zip(like.shape, like.stride(), strict=True))
    return torch.zeros(max(0, elements), dtype=like.dtype).as_strided(like.shape, like.stride())
