"""The normalisation layers: PyTorch's with a residual and an activation, fused or not, in one process or several."""

import copy

import pytest
import torch
from torch import Tensor, nn

from engine.networks import global_batch
from engine.networks.global_batch import BatchNorm
from engine.networks.norms import GroupNorm, InstanceNorm

LAYERS = {
    "batch": (lambda **o: BatchNorm(6, **o), lambda **o: nn.BatchNorm2d(6, **o)),
    "batch, average": (lambda **o: BatchNorm(6, momentum=None, **o), lambda **o: nn.BatchNorm2d(6, momentum=None, **o)),
    "batch, untracked": (
        lambda **o: BatchNorm(6, track_running_stats=False, **o),
        lambda **o: nn.BatchNorm2d(6, track_running_stats=False, **o),
    ),
    "instance": (lambda **o: InstanceNorm(6, **o), lambda **o: nn.InstanceNorm2d(6, **o)),
    "instance, affine": (
        lambda **o: InstanceNorm(6, affine=True, **o),
        lambda **o: nn.InstanceNorm2d(6, affine=True, **o),
    ),
    "instance, tracked": (
        lambda **o: InstanceNorm(6, track_running_stats=True, **o),
        lambda **o: nn.InstanceNorm2d(6, track_running_stats=True, **o),
    ),
    "group": (lambda **o: GroupNorm(2, 6, **o), lambda **o: nn.GroupNorm(2, 6, **o)),
}


def images(seed: int) -> Tensor:
    return torch.randn(3, 6, 5, 4, generator=torch.Generator().manual_seed(seed))


def after(norm: nn.Module, x: Tensor, residual: Tensor | None, place: str) -> Tensor:
    """PyTorch's module, then what the layers add to it."""
    y = norm(x)
    if residual is not None and place == "before":
        y = y + residual
    y = nn.functional.elu(y)
    return y + residual if residual is not None and place == "after" else y


@pytest.mark.parametrize("place", ["before", "after"])
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_layers_are_pytorch_s(name, fused, place):
    """Over steps of training and then in evaluation: results, gradients, buffers; and they take its checkpoints."""
    make, make_plain = LAYERS[name]
    layer, plain = make(activation="elu", fused=fused, residual_place=place, eps=1e-4), make_plain(eps=1e-4)
    for parameter in plain.parameters():
        nn.init.normal_(parameter)
    layer.load_state_dict(plain.state_dict())
    for step in range(4):
        if step == 3:
            layer.eval(), plain.eval()
        x, residual = images(step).requires_grad_(), images(10 + step).requires_grad_() if step else None
        leaves = [x, *([] if residual is None else [residual])]
        found, expected = layer(x, residual), after(plain, x, residual, place)
        torch.testing.assert_close(found, expected)
        found, expected = (
            torch.autograd.grad(y.square().sum(), [*leaves, *norm.parameters()])
            for y, norm in ((found, layer), (expected, plain))
        )
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(layer.state_dict(), plain.state_dict())


def test_what_a_layer_is_can_be_read():
    text = str(BatchNorm(6, activation="relu", fused=True)) + str(GroupNorm(2, 6)) + str(InstanceNorm(6))
    assert "activation=relu, residual_place=before, fused=True" in text and text.count("fused=False") == 2


class Ranks:
    """Two ranks of one process, which compute in turn: what one asks of both is a sum or stack that the test fills."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.shares: list[Tensor] = []
        self.others: list[Tensor] = []
        monkeypatch.setattr(global_batch.distributed, "size", lambda: 2, raising=False)
        monkeypatch.setattr(global_batch.distributed, "stacked", self.stacked, raising=False)
        monkeypatch.setattr(global_batch.distributed, "mean_", self.mean_, raising=False)

    def stacked(self, tensor: Tensor) -> Tensor:
        return torch.stack([tensor, self.others.pop(0)]) if self.others else self.note(tensor)[None].repeat(2, 1, 1)

    def mean_(self, tensor: Tensor) -> Tensor:
        return tensor.add_(self.others.pop(0)).div_(2) if self.others else self.note(tensor)

    def note(self, tensor: Tensor) -> Tensor:
        self.shares.append(tensor.clone())
        return tensor


@pytest.mark.parametrize("place", ["before", "after"])
@pytest.mark.parametrize("fused", [False, True])
def test_two_shares_of_a_batch_are_normalised_as_one(fused, place, monkeypatch):
    """Each rank's output and gradients are those of the whole batch, whose loss is the sum of both ranks' losses."""
    x, residual, grad = images(1) * 2 + 3, images(2), images(3)
    x, residual, grad = (torch.cat([t, t.flip(0) * 0.5]) for t in (x, residual, grad))
    whole, layer = (BatchNorm(6, activation="elu", fused=False, residual_place=place) for _ in range(2))
    nn.init.normal_(whole.weight), nn.init.normal_(whole.bias)
    layer.load_state_dict(whole.state_dict())
    layer.fused = fused

    def run(norm: nn.Module, part: slice) -> list[Tensor]:
        leaves = [x[part].clone().requires_grad_(), residual[part].clone().requires_grad_()]
        y = norm(*leaves)
        return [y.detach(), *torch.autograd.grad(y, [*leaves, norm.weight, norm.bias], grad[part])]

    expected, halves = run(whole, slice(None)), [slice(0, 3), slice(3, 6)]
    ranks = Ranks(monkeypatch)
    # the statistics of both shares, then their sums by the statistics of the whole batch, then all that follows
    statistics = [_noted(ranks, copy.deepcopy(layer), run, half)[0] for half in halves]
    sums = [_noted(ranks, copy.deepcopy(layer), run, halves[i], statistics[1 - i])[0] for i in (0, 1)]
    found = []
    for i in (0, 1):
        ranks.others = [statistics[1 - i], sums[1 - i]]
        norm = copy.deepcopy(layer)
        found.append(run(norm, halves[i]))
        torch.testing.assert_close(norm.state_dict(), whole.state_dict())
    for number, one in enumerate(expected):
        both = [part[number] for part in found]
        # each rank has its own share of the parameters' gradients
        joined = torch.cat(both) if number < 3 else both[0] + both[1]
        torch.testing.assert_close(joined, one, rtol=1e-4, atol=1e-5)


def _noted(ranks: Ranks, norm: nn.Module, run, half: slice, *others: Tensor) -> list[Tensor]:
    """What a rank gives to the exchanges that nothing of the other rank is known for."""
    ranks.shares, ranks.others = [], list(others)
    run(norm, half)
    return ranks.shares
