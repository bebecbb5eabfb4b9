"""Each chain of a model alone, on the shape that it has there: predicted speed and measured speed.

A chain with a batch normalisation is measured in evaluation, without gradients, for there it is folded; others forward
and backward. What a prediction left is measured too, fused in spite of it. A chain is measured once for all of its
convolutions that have the same sizes. Predictions are for maps of these sizes, on a CPU in float32.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks.timing.measure import interleaved
from engine import fuse
from engine.fusion import FuseReport
from engine.fusion.chains import savings
from engine.fusion.chains.classify import ACTIVATION_MODULES, classify_module
from engine.fusion.chains.convolutions import conv_name
from engine.fusion.chains.speed import speed
from engine.kernels.resize_conv_act.geometry import output_sides

ROUNDS = 3
ACTIVATIONS = {name: module for module, name in ACTIVATION_MODULES.items()}


class Summed(nn.Module):
    """after(before(x) + residual). residual: like the result of before"""

    def __init__(self, before: nn.Module, residual: Tensor, after: nn.Module):
        super().__init__()
        self.before, self.after = before, after
        self.register_buffer("residual", residual)

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.before(x) + self.residual)


@dataclass(frozen=True)
class Case:
    """One chain. layers: those of it; shape: of the convolution's input; predicted: how many times as fast.

    folded: whether it has a batch normalisation, so that it is measured without gradients
    """

    path: str
    pattern: str
    layers: nn.Module
    shape: tuple[int, ...]
    folded: bool
    predicted: float


def cases(model: nn.Module, report: FuseReport, run: Callable[[nn.Module], object]) -> list[Case]:
    """The chains of a report that have a prediction: a convolution, and perhaps BatchNorm2d, residual sum, activation.

    model: as it was before it was fused; run: calls it with its input
    """
    shapes: dict[str, tuple[int, ...]] = {}
    entries = [*report.replaced, *(entry for entry in report.skipped if "predicted" in entry.reason)]
    parts = dict(model.named_modules())
    convs = {e.path: parts[e.path] for e in entries if isinstance(parts.get(e.path), (nn.Conv2d, nn.ConvTranspose2d))}
    hooks = [conv.register_forward_pre_hook(_noting(shapes, path)) for path, conv in convs.items()]
    try:
        with torch.no_grad():
            run(model)
    finally:
        for hook in hooks:
            hook.remove()
    found: dict[tuple, Case] = {}
    for entry in entries:
        if entry.path in shapes and (case := _case(entry.path, entry.pattern, convs[entry.path], shapes[entry.path])):
            found.setdefault((case.pattern, tuple(convs[entry.path].weight.shape), case.shape), case)
    return list(found.values())


def _noting(shapes: dict[str, tuple[int, ...]], path: str) -> Callable[[nn.Module, tuple[Tensor]], None]:
    """A hook that enters the shape of a convolution's input."""

    def hook(module: nn.Module, args: tuple[Tensor]) -> None:
        shapes[path] = tuple(args[0].shape)

    return hook


def _case(path: str, pattern: str, conv: nn.Conv2d | nn.ConvTranspose2d, shape: tuple[int, ...]) -> Case | None:
    """The chain of a convolution; None for one that has more than these layers, or nothing that is predicted."""
    geometry, channels = classify_module(conv).geometry, conv.out_channels
    name, *after = pattern.split(" + ")
    if geometry is None or name != conv_name(conv.kernel_size[0], geometry) or not savings.is_predicted(conv.weight):
        return None  # nearest x2 or a padding lies before it
    layers: list[nn.Module] = [copy.deepcopy(conv)]
    for part in after:
        if part == "BatchNorm2d":
            layers.append(nn.BatchNorm2d(channels).eval())
        elif part in ACTIVATIONS:
            layers.append(ACTIVATIONS[part]())
        elif part != "residual":
            return None
    chain: nn.Module = nn.Sequential(*layers)
    if "residual" in after:
        place = 1 + after.index("residual")
        residual = torch.randn(shape[0], channels, *output_sides(shape, conv.kernel_size[0], geometry))
        chain = Summed(chain[:place], residual, chain[place:])
    folded = "BatchNorm2d" in after
    predicted = speed(shape, conv.weight.shape, geometry, len(after), training=not folded)
    return Case(path, pattern, chain, shape, folded, predicted)


def measured(case: Case) -> float:
    """How many times as fast as its layers as written one chain is."""
    x = torch.randn(case.shape).contiguous(memory_format=torch.channels_last)
    written = case.layers.to(memory_format=torch.channels_last)
    fused = copy.deepcopy(written)
    with everything_pays():
        fuse(fused)
        timings = interleaved(
            {name: _call(layers, x, case.folded) for name, layers in (("fused", fused), ("written", written))},
            rounds=ROUNDS,
        )
    return min(timings["written"].samples) / min(timings["fused"].samples)


def _call(layers: nn.Module, x: Tensor, inference: bool) -> Callable[[], object]:
    if inference:
        return torch.no_grad()(lambda: layers(x))
    upstream = torch.ones_like(layers(x))
    leaf, parameters = x.clone().requires_grad_(), list(layers.parameters())
    return lambda: torch.autograd.grad(layers(leaf), [leaf, *parameters], upstream)


@contextmanager
def everything_pays() -> Iterator[None]:
    """Within the block no chain is left for its predicted speed or its size."""
    patched = {"LEAST": 0.0, "LEAST_ALONE": 0.0}
    before = {name: getattr(savings, name) for name in patched}
    try:
        for name, value in patched.items():
            setattr(savings, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(savings, name, value)


def rows(model: nn.Module, report: FuseReport, run: Callable[[nn.Module], object]) -> list[dict]:
    """A record of each chain: path, pattern, shape, predicted and measured speed. Arguments: as of `cases`."""
    return [
        {
            "path": case.path,
            "pattern": case.pattern,
            "shape": list(case.shape),
            "predicted": round(case.predicted, 3),
            "measured": round(measured(case), 3),
        }
        for case in cases(model, report, run)
    ]
