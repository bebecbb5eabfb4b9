"""The share of a training step's FLOPs that Kiln's kernels compute: for the line `mode`, and for `kiln doctor`.

One step is taken on the meta device, where operators return shapes without computing. Every product is counted as it is
written: torch.utils.flop_counter knows the products of PyTorch's operations, and an operator of Kiln counts those of
its reference, however few it computes. So Winograd's tiles do not change the share. A convolution before nearest /2
counts as one of stride 2. What has no products (sums, activations, normalisations, optimisers) counts nothing.
"""

import inspect
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from engine import distributed, ops
from engine.config import TrainConfig
from engine.data import Batch
from engine.data.landmarks import POINTS
from engine.systems.registry import build, config_class, system_class

# operator -> the factors of its products, each by the arguments that hold it. The products are linear in each factor,
# so the gradient of a factor takes as many as the result
FACTORS: dict[str, tuple[tuple[str, ...], ...]] = {
    "gram": (("features",), ("features",)),
    "landmark_conv": (("landmarks", "image"), ("weight",)),
    "linear": (("x",), ("weight",)),
    "resize_conv_act": (("x", "second"), ("weight",)),
    "style_loss": (("a",), ("b",)),
}
LIBRARY = ("linear",)  # operators whose products PyTorch's matrix product computes


@dataclass(frozen=True)
class FusedShare:
    """Where the FLOPs of a step are.

    kiln: computed by Kiln's kernels
    rest: operation of PyTorch, or operator over one -> its FLOPs
    """

    kiln: int
    rest: dict[str, int]

    @property
    def share(self) -> float:
        """The share of Kiln's kernels, from 0 to 1; 1 for a step without products."""
        total = self.kiln + sum(self.rest.values())
        return self.kiln / total if total else 1.0

    def __str__(self) -> str:
        """The share in words, rounded down: 100 % means all."""
        return f"{math.floor(1000 * self.share) / 10:.1f} % of a step's FLOPs"


def fused_share(config: TrainConfig) -> FusedShare:
    """Count the FLOPs of one step of a rank; takes some tenths of a second, whatever the sizes.

    config: complete, as training takes it
    """
    # the meta device has no autocast, and no product depends on the precision or on what the files hold
    without = {field.name: None for field in fields(config) if isinstance(getattr(config, field.name), Path)}
    config = replace(config.of_rank(), precision="fp32", **without)
    with distributed.alone(), torch.random.fork_rng(devices=[]):
        with torch.device("meta"):  # draws no start values
            system = build(config, "meta")
        for optimiser in system.optimisers.values():
            optimiser.param_groups.clear()  # a step of an optimiser has no products, and takes long without a kernel
        with Products() as products:
            system.step(_batch(config))
    return FusedShare(products.kiln, dict(products.rest))


def preset_config(system: str, preset: str, **options: Any) -> TrainConfig:
    """The complete configuration of a preset with other options, fused."""
    kind = config_class(system)
    config = kind(**{**kind.PRESETS[preset], **options, "preset": preset, "fused": True})
    return config.completed(set(options), dict.fromkeys((field.name for field in fields(kind)), "default"))


def _batch(config: TrainConfig) -> Batch:
    """The batch of a step, on the meta device."""
    parts = []
    for need in system_class(config.system).needs(config):
        shape = (need.samples, config.channels, config.resolution, config.resolution)
        images = torch.empty(shape, device="meta", memory_format=torch.channels_last)
        points = torch.empty(need.samples, need.points or POINTS, 2, device="meta")
        parts += [Batch(images, points, torch.arange(need.samples))] * need.members
    return replace(parts[0], more=tuple(parts[1:]))


class Products(TorchDispatchMode):
    """Counts the FLOPs of products within its block, those of backward passes too. kiln, rest: as of FusedShare.

    FlopCounterMode cannot stand here: it fails where torch.autograd.grad passes by parameters.
    """

    def __init__(self) -> None:
        super().__init__()
        self.kiln = 0
        self.rest: Counter[str] = Counter()
        self._of_references: dict[tuple, int] = {}  # calls of the same shapes are counted once

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs, packet = kwargs or {}, function.overloadpacket
        if function.namespace == "aten" and packet not in flop_registry:
            with self:  # an operation that is made of others has the products of these
                result = function.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        result, name = function(*args, **kwargs), packet.__name__
        if packet in flop_registry:
            self.rest[name] += flop_registry[packet](*args, **kwargs, out_val=result)
        elif function.namespace == "kiln":
            self._note_operator(name.removesuffix("_backward"), name, _by_name(function, args))
        return result

    def _note_operator(self, operator: str, name: str, arguments: dict[str, Any]) -> None:
        """Add the FLOPs of a call. name: of the operator, or of its backward pass; arguments: by the schema's names."""
        if operator not in FACTORS:
            return
        flops = self._of_reference(operator, arguments)
        if name != operator:
            flops = round(flops * _gradients_formed(operator, arguments))
        if operator in LIBRARY:
            self.rest[name] += flops
        else:
            self.kiln += flops

    def _of_reference(self, operator: str, arguments: dict[str, Any]) -> int:
        """The FLOPs of an operator's reference, on the tensors of a call."""
        reference = ops.OPERATORS[operator].reference
        # grad_scale changes no product, but the reference takes a second pass for it
        names = inspect.signature(reference).parameters.keys() - {"grad_scale"}
        given = {name: value for name, value in arguments.items() if name in names}
        call = operator, *((name, _form(value)) for name, value in given.items())
        if call not in self._of_references:
            inputs = {name: _on_meta(value) for name, value in given.items()}
            with Products() as products, torch.no_grad():
                reference(**inputs)
            self._of_references[call] = sum(products.rest.values())
        return self._of_references[call]


def _gradients_formed(operator: str, arguments: dict[str, Any]) -> float:
    """How many factors a backward pass forms the gradient of; a part of one where some samples are left out."""
    if "need" not in arguments:
        return len(FACTORS[operator])
    # `need` has a value for each of the operator's first arguments
    names = _names(getattr(torch.ops.kiln, operator).default)
    needed = {name for name, need in zip(names, arguments["need"], strict=False) if need}
    formed = 0.0
    for factor in FACTORS[operator]:
        if needed.intersection(factor):
            left_out = arguments.get("input_grad_from", 0) if "x" in factor else 0
            formed += 1 - left_out / max(1, len(arguments[factor[0]]))
    return formed


def _by_name(function: Callable, args: Sequence[Any]) -> dict[str, Any]:
    return dict(zip(_names(function), args, strict=False))


def _names(function: Any) -> list[str]:
    """The names of an operator's arguments."""
    return [argument.name for argument in function._schema.arguments]


def _form(value: Any) -> Any:
    return tuple(value.shape) if isinstance(value, Tensor) else value


def _on_meta(value: Any) -> Any:
    return value.to("meta") if isinstance(value, Tensor) else value
