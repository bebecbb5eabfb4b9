"""What every spec.py is made of: samples, the dtype rule, and the comparison that tests and commands share."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from . import _contract
from ._observers import NativeCall


@dataclass(frozen=True)
class Sample:
    """One call of an operator: shapes of its tensors by argument name, and its options.

    integers: the values are small whole numbers, not Gaussian: none lies next to a kink of the activation
    layout:   of the first tensor: "channels_last", "contiguous", "sliced" (a view into a larger one) or "expanded"
              (one sample repeated)
    uniform:  tensors that are drawn evenly from [low, high)
    fixed:    tensors the operator gives no gradient of
    drawn:    tensors of whole numbers or truth values, each by what draws it from a generator and its shape. They keep
              their dtype and have no gradient. Where all tensors are such, the option `dtype` is that of the result
    """

    name: str
    shapes: dict[str, tuple[int, ...]]
    options: dict[str, Any] = field(default_factory=dict)
    layout: str = "channels_last"
    integers: bool = False
    uniform: dict[str, tuple[float, float]] = field(default_factory=dict)
    fixed: tuple[str, ...] = ()
    drawn: dict[str, Callable[[torch.Generator, tuple[int, ...]], Tensor]] = field(default_factory=dict)

    def differentiable(self, name: str) -> bool:
        """Whether the operator gives a gradient of this tensor."""
        return name != "grad_scale" and name not in self.fixed and name not in self.drawn

    def options_in(self, dtype: torch.dtype) -> dict[str, Any]:
        """The options of a call in this dtype."""
        return self.options if self.shapes.keys() - self.drawn.keys() else self.options | {"dtype": dtype}


@dataclass(frozen=True)
class Work:
    """What one call of a native function does: shape in words, FLOPs of the form it takes, least traffic."""

    shape: str
    flops: float
    bytes: float


@dataclass(frozen=True)
class Spec:
    """An operator's samples, the floors of its dtype rule, and the costs that the benchmark divides by."""

    operator: str
    samples: list[Sample]
    benchmarks: list[Sample]
    floor: dict[torch.dtype, float]  # relative error allowed beyond twice that of eager PyTorch in the same dtype
    flops: Callable[[Sample], float]  # of forward and backward, as written
    bytes: Callable[[Sample, torch.dtype], float]  # least traffic of forward and backward
    strong: Callable | None = None  # the same function by the best known library parts; None: the reference
    work: Callable[[NativeCall], Work] | None = None  # of a call of one of its native functions; None: unknown
    # what the benchmark's sweeps grow, by kind: the sample of (batch, channels, side)
    sweeps: dict[str, Callable[[int, int, int], Sample]] = field(default_factory=dict)


@dataclass(frozen=True)
class Error:
    """The norm-wise relative error of one result against float64, that of eager PyTorch, and what is allowed."""

    result: str
    fused: float
    eager: float
    allowed: float

    @property
    def passed(self) -> bool:
        return self.fused <= self.allowed


def specs() -> dict[str, Spec]:
    """The spec of every operator."""
    return {name: importlib.import_module(f"{__package__}.{name}.spec").SPEC for name in _contract.discover()}


def specs_with_skeleton() -> dict[str, Spec]:
    """The spec of every operator, and that of the skeleton which new ones are copied from: what tests run."""
    skeleton = importlib.import_module(f"{__package__}._skeleton.spec").SPEC
    return {**specs(), skeleton.operator: skeleton}


def tensors(sample: Sample, dtype: torch.dtype, device: str = "cpu", seed: int = 0) -> dict[str, Tensor]:
    """The sample's tensors, rounded to dtype; weights are scaled so outputs are near one. grad_scale is float32."""
    generator = torch.Generator().manual_seed(seed)
    made = {}
    for position, (name, shape) in enumerate(sample.shapes.items()):
        if name in sample.drawn:
            made[name] = sample.drawn[name](generator, shape).to(device)
            continue
        if name in sample.uniform:
            low, high = sample.uniform[name]
            value = low + (high - low) * torch.rand(shape, generator=generator, dtype=torch.float64)
        elif sample.integers:
            value = torch.randint(-2, 3, shape, generator=generator).double()
            value = value + 0.5 if name == "bias" else value
        else:
            value = torch.randn(shape, generator=generator, dtype=torch.float64)
        if name == "weight" and not sample.integers:
            value = value / max(1, value[0].numel()) ** 0.5
        kept = torch.float32 if name == "grad_scale" else dtype
        made[name] = _laid_out(value.to(device, kept), sample.layout if position == 0 else "channels_last")
    return made


def _laid_out(value: Tensor, layout: str) -> Tensor:
    if layout == "expanded":
        return value[:1].expand(value.shape)
    if value.dim() != 4:
        return value
    if layout == "sliced":
        larger = value.new_full((value.shape[0], value.shape[1] + 2, value.shape[2] + 1, value.shape[3] + 3), torch.nan)
        view = larger[:, 1:-1, 1:, 2:-1]
        return view.copy_(value)
    return value.contiguous(memory_format=torch.channels_last) if layout == "channels_last" else value


def run(function: Callable, sample: Sample, made: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Outputs and gradients of one call, the tensors as `dtype` (grad_scale stays); the upstream gradient is fixed."""
    inputs = {}
    for name, tensor in made.items():
        if name in sample.drawn:
            inputs[name] = tensor
        elif name == "grad_scale":
            inputs[name] = tensor.to(torch.float64) if dtype == torch.float64 else tensor
        else:
            # a fresh leaf with the same strides
            leaf = (tensor if tensor.dtype == dtype else tensor.to(dtype)).detach()
            inputs[name] = leaf.requires_grad_(sample.differentiable(name))
    outputs = function(**inputs, **sample.options_in(dtype))
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    generator = torch.Generator().manual_seed(1)
    upstream = [_upstream(o, sample, generator) for o in outputs]
    leaves = {name: leaf for name, leaf in inputs.items() if leaf.requires_grad}
    gradients = torch.autograd.grad(outputs, list(leaves.values()), upstream) if leaves else ()
    results = {f"output {i}" if len(outputs) > 1 else "output": o.detach() for i, o in enumerate(outputs)}
    return results | {f"gradient of {name}": g for name, g in zip(leaves, gradients, strict=True)}


def _upstream(output: Tensor, sample: Sample, generator: torch.Generator) -> Tensor:
    if sample.integers:
        value = torch.randint(-2, 3, output.shape, generator=generator).double()
    else:
        value = torch.randn(output.shape, generator=generator, dtype=torch.float64)
    return value.to(torch.bfloat16).to(output)  # the same numbers in every dtype


def relative_error(value: Tensor, exact: Tensor, least: float = 0.0) -> float:
    """||value - exact|| / ||exact|| in float64, infinite where it is not a number; 0 for tensors without elements.

    least: the smallest norm to divide by; where it and the norm are 0, the difference itself is returned.
    """
    if not exact.numel():
        return 0.0
    difference = (value.double() - exact.double()).norm().item()
    scale = max(exact.double().norm().item(), least)
    return float("inf") if difference != difference else difference / scale if scale else difference


def compare(spec: Spec, sample: Sample, dtype: torch.dtype, device: str = "cpu", **options: Any) -> list[Error]:
    """The dtype rule on one sample: fused and eager in `dtype` against the reference in float64 on the same numbers.

    `options` go to the fused operator only (exact=True, for one). Tensors are moved to `device`.
    """
    operator = _contract.find(spec.operator)
    made = tensors(sample, dtype, device)
    exact = run(operator.reference, sample, made, torch.float64)
    eager = run(operator.reference, sample, made, dtype)
    fused = run(lambda **inputs: operator.function(**inputs, **options), sample, made, dtype)
    return judge(exact, eager, fused, spec.floor[dtype])


def judge(exact: dict[str, Tensor], eager: dict[str, Tensor], fused: dict[str, Tensor], floor: float) -> list[Error]:
    """The dtype rule on results by name: fused may have twice eager's error plus the floor."""
    errors = []
    for name, truth in exact.items():
        of_eager = relative_error(eager[name], truth)
        errors.append(Error(name, relative_error(fused[name], truth), of_eager, 2 * of_eager + floor))
    return errors
