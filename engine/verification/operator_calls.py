"""The calls of operators that a training step makes, kept with their tensors and upstream gradients."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from engine.kernels._observers import NativeCall, OperatorCall, observed


@dataclass
class Call:
    """One call of an operator in a training step: its arguments, and the gradients that reached its outputs."""

    operator: str
    tensors: dict[str, torch.Tensor]
    options: dict[str, Any]
    upstream: dict[int, torch.Tensor] = field(default_factory=dict)

    def results(self, function: Callable, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        """Outputs and gradients of `function` on these tensors as `dtype`."""
        floats = {name for name, tensor in self.tensors.items() if tensor.is_floating_point()}
        given = {name: (t.to(dtype) if name in floats else t).detach() for name, t in self.tensors.items()}
        leaves = {name: t.requires_grad_() for name, t in given.items() if name in floats - {"grad_scale"}}
        outputs = function(**given, **self.options)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        found = {f"output {i}": output.detach() for i, output in enumerate(outputs)}
        if self.upstream:
            reached, upstream = zip(*((outputs[i], g.to(dtype)) for i, g in self.upstream.items()), strict=True)
            gradients = torch.autograd.grad(reached, list(leaves.values()), upstream, allow_unused=True)
            given = zip(leaves, gradients, strict=True)
            found |= {f"gradient of {name}": gradient for name, gradient in given if gradient is not None}
        return found


@contextlib.contextmanager
def captured() -> Iterator[list[Call]]:
    """Every call of a public operator within the block."""
    calls: list[Call] = []

    def keep(call: Call, output: int, gradient: torch.Tensor | None) -> None:
        if gradient is not None:
            call.upstream[output] = gradient.clone()

    def record(told: OperatorCall | NativeCall) -> None:
        if not isinstance(told, OperatorCall):
            return
        tensors = {name: v.detach().clone() for name, v in told.arguments.items() if isinstance(v, torch.Tensor)}
        call = Call(told.operator, tensors, {name: v for name, v in told.arguments.items() if name not in tensors})
        calls.append(call)
        for number, output in enumerate(told.results if isinstance(told.results, tuple) else (told.results,)):
            if output.requires_grad:
                output.register_hook(functools.partial(keep, call, number))

    with observed(record):
        yield calls
