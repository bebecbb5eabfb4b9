"""What the operators and the refiner's step launch on a GPU, recorded on the CPU: no kernel is started.

Every operator folder with a gpu.py takes part. Outputs stay unset, so nothing here may look at a value.
"""

import contextlib
import importlib.util
import inspect
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.suites import operators, step
from engine.host.tf32 import tf32_allowed
from engine.kernels import _spec
from engine.kernels._contract import find
from engine.kernels._dispatch import gpu_kernels_on_cpu
from engine.kernels._gpu.launch import H100, Choices, Launch, noted


@dataclass(frozen=True)
class Mode:
    """One arithmetic that is shipped: the tensors' dtype and, for float32, how products are formed.

    tf32: in TF32; exact: by the operator's option `exact`
    """

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
# --precision of a training step, by the mode that it computes in
STEP_MODES = {"float32": "fp32", "tf32": "tf32", "bfloat16": "bf16"}


def specs() -> dict[str, _spec.Spec]:
    """The specs of the operators that have GPU kernels, the skeleton among them."""
    every = _spec.specs_with_skeleton()
    package = {name: find(name).function.__module__ for name in every}
    return {name: spec for name, spec in every.items() if importlib.util.find_spec(f"{package[name]}.gpu")}


def modes(spec: _spec.Spec) -> dict[str, Mode]:
    """The arithmetics that an operator has."""
    parameters = inspect.signature(find(spec.operator).function).parameters
    return {n: m for n, m in MODES.items() if m.dtype in spec.floor and (not m.exact or "exact" in parameters)}


@contextlib.contextmanager
def only_noted(tf32: bool, choices: Choices = "likely", capability: int = H100) -> Iterator[list[Launch]]:
    """Records the launches of the block's calls on CPU tensors, for GPUs of a capability; none of them runs."""
    with tf32_allowed(tf32), gpu_kernels_on_cpu(), noted(False, choices, capability) as recorded:
        yield recorded


def of_operator(
    spec: _spec.Spec, sample: _spec.Sample, mode: Mode, choices: Choices = "likely", capability: int = H100
) -> list[Launch]:
    """Launches of forward and backward on one sample."""
    function = find(spec.operator).function
    fixed = {"exact": True} if mode.exact else {}
    call = operators.both_passes(lambda **inputs: function(**inputs, **fixed), blank(spec, sample, mode), sample)
    with only_noted(mode.tf32, choices, capability) as recorded:
        call()
    return recorded


def of_step(setting: dict, mode: str, choices: Choices = "likely") -> list[Launch]:
    """Launches of one fused training step in a mode of STEP_MODES."""
    system, batch = step.build("fused", setting, "cpu", STEP_MODES[mode])
    with only_noted(MODES[mode].tf32, choices) as recorded:
        system.step(batch)
    return recorded


def blank(spec: _spec.Spec, sample: _spec.Sample, mode: Mode) -> dict[str, torch.Tensor]:
    """The sample's tensors; for a large sample of the benchmark zeros of the same kind, because nobody reads them."""
    if sample in spec.samples:
        return _spec.tensors(sample, mode.dtype)
    with FakeTensorMode():
        kinds = _spec.tensors(sample, mode.dtype)
    return {name: _zeros(kind) for name, kind in kinds.items()}


def _zeros(like: torch.Tensor) -> torch.Tensor:
    """Zeros of the same shape, strides and dtype; the system gives their memory only where it is written."""
    elements = 1 + sum((size - 1) * stride for size, stride in zip(like.shape, like.stride(), strict=True))
    return torch.zeros(max(0, elements), dtype=like.dtype).as_strided(like.shape, like.stride())
