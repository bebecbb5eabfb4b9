"""Gradients averaged over the ranks before an optimiser's step.

DistributedDataParallel does not fit: it counts on one backward pass for each forward pass of a network, with the same
parameters every time. Here a step goes through D three times, freezes it in between, takes the generator's gradient
out of D's pass (backward with inputs, autograd.grad for a penalty), and drops gradients that nobody uses.
"""

import torch
from torch import Tensor

from engine import distributed


class GradientBucket:
    """One flat tensor for all gradients of an optimiser: filled, averaged over the ranks, and read by its step.

    Gradients become views of it with their parameters' strides, as fused optimisers need them. It stays where it is, so
    that a CUDA graph may hold all of this. There is nothing to average but means over a rank's share of the batch, all
    of one size: so the result is the gradient of the mean over the global batch.
    """

    def __init__(self, optimiser: torch.optim.Optimizer) -> None:
        self._parameters: list[torch.nn.Parameter] = []
        self._flat = torch.empty(0)
        self._views: list[Tensor] = []
        optimiser.register_step_pre_hook(self._average)

    @torch.no_grad()
    def _average(self, optimiser: torch.optim.Optimizer, *_: object) -> None:
        parameters = [p for group in optimiser.param_groups for p in group["params"] if p.grad is not None]
        if list(map(id, parameters)) != list(map(id, self._parameters)):
            self._lay_out(parameters)
        if not parameters:
            return
        torch._foreach_copy_(self._views, [parameter.grad for parameter in parameters])
        distributed.mean_(self._flat)
        for parameter, view in zip(parameters, self._views, strict=True):
            parameter.grad = view

    def _lay_out(self, parameters: list[torch.nn.Parameter]) -> None:
        self._parameters = parameters
        sizes = [-(-parameter.numel() // 16) * 16 for parameter in parameters]  # each begins at 64 bytes
        like = parameters[0] if parameters else self._flat
        self._flat = torch.zeros(sum(sizes), dtype=like.dtype, device=like.device)
        self._views = [
            part.as_strided(parameter.shape, parameter.stride(), part.storage_offset())
            for part, parameter in zip(self._flat.split(sizes), parameters, strict=True)
        ]
