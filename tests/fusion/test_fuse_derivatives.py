"""Every way of differentiating and transforming gives of a fused model what it gives of the model before."""

import copy

import pytest
import torch
from torch import Tensor, func, nn

import engine
from tests.support.derivatives import WAYS


def sequence() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ELU(), nn.Upsample(scale_factor=2), nn.Conv2d(8, 4, 3, padding=1), nn.Tanh()
    )


class SkipConnections(nn.Module):
    """Halves, doubles and joins, as a UNet does."""

    def __init__(self):
        super().__init__()
        self.outer = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.LeakyReLU(0.2))
        self.inner = nn.Sequential(nn.Conv2d(8, 8, 3, stride=2, padding=1), nn.ELU())
        self.up = nn.Upsample(scale_factor=2)
        self.back = nn.Conv2d(8, 8, 3, padding=1)
        self.last = nn.Conv2d(16, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        outer = self.outer(x)
        back = torch.sigmoid(self.back(self.up(self.inner(outer))))
        return torch.tanh(self.last(torch.cat([outer, back], dim=1)))


def pair(make: type, frozen: bool) -> tuple[nn.Module, nn.Module]:
    plain = make().requires_grad_(not frozen)
    fused = copy.deepcopy(plain)
    assert engine.fuse(fused).replaced
    return fused, plain


@pytest.mark.parametrize("frozen", [False, True], ids=["trained", "frozen"])
@pytest.mark.parametrize("make", [sequence, SkipConnections])
def test_every_way(make, frozen):
    """Of the image, and of a weight through functional_call."""
    fused, plain = pair(make, frozen)
    image = torch.randn(2, 3, 8, 8)
    name, weight = next(iter(plain.named_parameters()))

    def of_weight(model: nn.Module):
        return lambda value: func.functional_call(model, {name: value}, (image,))

    for way in WAYS.values():
        for x, of in ((image, lambda model: model), (weight.detach(), of_weight)):
            direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(5))
            found, expected = (way(of(model), x, direction).detach() for model in (fused, plain))
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("randomness", ["same", "different"])
def test_ensembles(randomness):
    """vmap over stacked parameters, with draws in the model."""
    fused, _ = pair(SkipConnections, False)
    models = [copy.deepcopy(fused) for _ in range(3)]
    for i, model in enumerate(models):
        for parameter in model.parameters():
            parameter.data.mul_(1 + i / 4)
    state = func.stack_module_state(models)
    x = torch.randn(2, 3, 8, 8)

    def call(parameters, buffers):
        return func.functional_call(fused, (parameters, buffers), (x + 0 * torch.rand_like(x),))

    expected = torch.stack([model(x) for model in models])
    torch.testing.assert_close(func.vmap(call, randomness=randomness)(*state), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("way", ["dual", "jvp", "grad"])
def test_within_compiled_functions(way):
    fused, plain = pair(sequence, True)
    x = torch.randn(2, 3, 8, 8)
    compiled = torch.compile(lambda x: WAYS[way](fused, x, x), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), WAYS[way](plain, x, x), rtol=1e-4, atol=1e-5)
