"""Averages gradients over the ranks before an optimiser's step.

torch's DistributedDataParallel does not fit: it expects one backward pass for each forward pass of a network, with the
same parameters every time. A step of Kiln goes through D three times, freezes D in between, takes the generator's
gradient out of D's pass (backward with inputs, autograd.grad for a penalty), and drops gradients that nobody uses.
"""

import torch
from torch import Tensor

from engine import distributed


class GradientBucket:
    """One flat tensor for all gradients of an optimiser, averaged over the ranks before the optimiser's step.

    The gradients become views of the flat tensor with the strides of their parameters, as fused optimisers need them.
    The flat tensor stays at its address, so that a CUDA graph can hold copying, averaging and step. Every gradient is
    that of a mean over a rank's share of the batch, and all shares have one size: so the average over the ranks is the
    gradient of the mean over the global batch.
    """

    def __init__(self, optimiser: torch.optim.Optimizer) -> None:
        self._parameters: list[torch.nn.Parameter] = []
        self._flat = torch.empty(0)
        self._views: list[Tensor] = []
        optimiser.register_step_pre_hook(self._average)

    @torch.no_grad()
    def _average(self, optimiser: torch.optim.Optimizer, *_: object) -> None:
        """Copy the gradients into the flat tensor, average it over the ranks, and give its views to the parameters."""
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
        """Make the flat tensor and its views for these parameters."""
        self._parameters = parameters
        sizes = [
            -(-parameter.numel() // 16) * 16 for parameter in parameters
        ]  # every view starts at a multiple of 64 bytes
        like = parameters[0] if parameters else self._flat
        self._flat = torch.zeros(sum(sizes), dtype=like.dtype, device=like.device)
        self._views = [
            part.as_strided(parameter.shape, parameter.stride(), part.storage_offset())
            for part, parameter in zip(self._flat.split(sizes), parameters, strict=True)
        ]
