"""Keeps the operator calls that a training step makes, with their tensors and upstream gradients."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from engine.kernels._observers import NativeCall, OperatorCall, observed

# arguments that have no gradient
CONSTANTS = {"grad_scale", "running_mean", "running_var"}


@dataclass
class Call:
    """One operator call in a training step.

    operator: its name
    tensors:  the arguments that are tensors, by name
    options:  the other arguments, by name
    upstream: number of an output -> the gradient that reached it
    """

    operator: str
    tensors: dict[str, torch.Tensor]
    options: dict[str, Any]
    upstream: dict[int, torch.Tensor] = field(default_factory=dict)

    def results(self, function: Callable, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        """The outputs and gradients of `function` when it is called with these arguments, floats as `dtype`."""
        floats = {name for name, tensor in self.tensors.items() if tensor.is_floating_point()}
        arguments = {name: (t.to(dtype) if name in floats else t).detach() for name, t in self.tensors.items()}
        leaves = {name: t.requires_grad_() for name, t in arguments.items() if name in floats - CONSTANTS}
        outputs = function(**arguments, **self.options)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        results = {f"output {i}": output.detach() for i, output in enumerate(outputs)}
        if self.upstream:
            reached, upstream = zip(*((outputs[i], g.to(dtype)) for i, g in self.upstream.items()), strict=True)
            gradients = torch.autograd.grad(reached, list(leaves.values()), upstream, allow_unused=True)
            by_name = zip(leaves, gradients, strict=True)
            results |= {f"gradient of {name}": gradient for name, gradient in by_name if gradient is not None}
        return results


@contextlib.contextmanager
def captured() -> Iterator[list[Call]]:
    """Keep every call of a public operator within the block, in the list that is yielded."""
    calls: list[Call] = []

    def keep(call: Call, output: int, gradient: torch.Tensor | None) -> None:
        if gradient is not None:
            call.upstream[output] = gradient.clone()

    def record(event: OperatorCall | NativeCall) -> None:
        if not isinstance(event, OperatorCall):
            return
        tensors = {name: v.detach().clone() for name, v in event.arguments.items() if isinstance(v, torch.Tensor)}
        call = Call(event.operator, tensors, {name: v for name, v in event.arguments.items() if name not in tensors})
        calls.append(call)
        for number, output in enumerate(event.results if isinstance(event.results, tuple) else (event.results,)):
            if output.requires_grad:
                output.register_hook(functools.partial(keep, call, number))

    with observed(record):
        yield calls
