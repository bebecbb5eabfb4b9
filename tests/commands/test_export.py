"""Exported programs hold Kiln's operators, and after decomposition PyTorch's own, with the same results."""

import pytest
import torch
from torch import Tensor, nn

from engine import ops
from engine.kernels import _spec

CASES = [
    pytest.param(spec, sample, id=f"{name}: {sample.name}")
    for name, spec in _spec.specs().items()
    for sample in spec.samples
    if all(torch.Size(shape).numel() for shape in sample.shapes.values())
]


class Call(nn.Module):
    """One call of an operator with its options, as a module."""

    def __init__(self, function, names, options):
        super().__init__()
        self.function, self.names, self.options = function, names, options

    def forward(self, *tensors: Tensor):
        found = self.function(**dict(zip(self.names, tensors, strict=True)), **self.options)
        return tuple(found) if isinstance(found, tuple) else found


def operators_of(program: torch.export.ExportedProgram) -> set[str]:
    return {str(node.target) for node in program.graph.nodes if node.op == "call_function"}


@pytest.mark.parametrize("spec, sample", CASES)
def test_decompositions(spec, sample):
    made = _spec.tensors(sample, torch.float32)
    for name, tensor in made.items():
        # as parameters require gradients: operator calls that only autograd asks for must be decomposed too
        tensor.requires_grad_(sample.differentiable(name))
    call = Call(ops.OPERATORS[spec.operator].function, list(made), sample.options_in(torch.float32))
    program = torch.export.export(call, tuple(made.values()))
    if spec.operator != "linear" or "grad_scale" in made:
        assert f"kiln.{spec.operator}.default" in operators_of(program)
    plain = program.run_decompositions(ops.decompositions())
    assert not [name for name in operators_of(plain) if "kiln" in name]
    expected, found = call(*made.values()), plain.module()(*made.values())
    if isinstance(expected, Tensor):
        expected, found = (expected,), (found,)
    for one, other in zip(expected, found, strict=True):
        assert one.dtype == other.dtype and one.shape == other.shape
        assert _spec.relative_error(other, one) < 2e-5
