"""Every operator's benchmark shapes: forward and backward, fused against eager in the better of both layouts."""

from collections.abc import Callable, Iterator

import torch

from benchmarks.measure import Timing, interleaved
from engine import ops
from engine.kernels import _spec


def cases(only: str) -> Iterator[tuple[_spec.Spec, _spec.Sample]]:
    """The shapes of every operator whose name or shape contains `only`."""
    for name, spec in _spec.specs().items():
        for sample in spec.benchmarks:
            if only in f"{name} {sample.name}":
                yield spec, sample


def measure(spec: _spec.Spec, sample: _spec.Sample, device: str, rounds: int) -> tuple[dict[str, Timing], list[str]]:
    """Timings of fused and both layouts of eager, and the results that failed the dtype rule (then no timings)."""
    failed = [
        f"{e.result}: error {e.fused:.1e}, allowed {e.allowed:.1e}"
        for e in _spec.compare(spec, sample, torch.float32, device)
        if not e.passed
    ]
    if failed:
        return {}, failed
    operator = ops.OPERATORS[spec.operator]
    made = _spec.tensors(sample, torch.float32, device)
    plain = {name: tensor.contiguous() for name, tensor in made.items()}
    return interleaved(
        {
            "fused": _both_passes(operator.function, made, sample),
            "eager channels_last": _both_passes(operator.reference, made, sample),
            "eager contiguous": _both_passes(operator.reference, plain, sample),
        },
        rounds=rounds,
    ), []


def _both_passes(function: Callable, made: dict[str, torch.Tensor], sample: _spec.Sample) -> Callable[[], object]:
    leaves = {n: t.detach().clone().requires_grad_(sample.differentiable(n)) for n, t in made.items()}
    wanted = [t for t in leaves.values() if t.requires_grad]
    with torch.no_grad():
        output = function(**leaves, **sample.options)
    output = output[-1] if isinstance(output, tuple) else output
    upstream = torch.ones_like(output)

    def call() -> object:
        y = function(**leaves, **sample.options)
        return torch.autograd.grad(y[-1] if isinstance(y, tuple) else y, wanted, upstream) if wanted else y

    return call
