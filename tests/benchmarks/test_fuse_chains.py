"""The suite `fuse` measures each chain of a model alone beside its prediction."""

import copy

import pytest
import torch
from torch import Tensor, nn

from benchmarks.suites import fuse_chains
from engine import fuse
from engine.fusion.chains import savings
from engine.fusion.chains.speed import speed


def model() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ELU()]
    layers += [nn.Conv2d(16, 16, 3, padding=1), nn.ELU(), nn.Conv2d(16, 8, 1), nn.Tanh()]
    return nn.Sequential(*layers, nn.Upsample(scale_factor=2), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()).eval()


class Block(nn.Module):
    """Two residual sums, one after a normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(16, 16, 3, padding=1) for _ in range(2))
        self.norm = nn.BatchNorm2d(16)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.first(x) + x)
        return torch.relu(self.norm(self.second(y)) + y)


def test_chains_with_a_sum_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Block().eval()
    report = fuse(copy.deepcopy(plain))
    seen = []
    measured = fuse_chains.measured
    monkeypatch.setattr(fuse_chains, "measured", lambda case: (seen.append(case), measured(case))[1])
    rows = fuse_chains.rows(plain, report, lambda model: model(torch.randn(1, 16, 20, 20)))
    patterns = ["conv 3x3 + residual + relu", "conv 3x3 + BatchNorm2d + residual + relu"]
    assert [row["pattern"] for row in rows] == patterns
    for case, pattern in zip(seen, patterns, strict=True):
        layers = copy.deepcopy(case.layers)
        with fuse_chains.everything_pays():
            assert [entry.pattern for entry in fuse(layers).replaced] == [pattern]
            x = torch.randn(case.shape)
            with torch.no_grad():
                torch.testing.assert_close(layers(x), case.layers(x), rtol=1e-4, atol=1e-4)


def test_every_chain_with_a_prediction_is_measured_once() -> None:
    plain = model()
    report = fuse(copy.deepcopy(plain))
    before = {name: getattr(savings, name) for name in ("LEAST", "LEAST_ALONE")}
    rows = fuse_chains.rows(plain, report, lambda model: model(torch.randn(1, 8, 12, 12)))
    assert [(row["path"], row["pattern"], row["shape"]) for row in rows] == [
        ("0", "conv 3x3 + BatchNorm2d + relu", [1, 8, 12, 12]),
        ("3", "conv 3x3 + elu", [1, 16, 12, 12]),
        ("7", "conv 1x1 + tanh", [1, 16, 12, 12]),  # left, and measured too
    ]
    expected = [1 + 1, 1, 1]
    for row, operations in zip(rows, expected, strict=True):
        conv = plain.get_submodule(row["path"])
        geometry = fuse_chains.classify_module(conv).geometry
        of_chain = tuple(row["shape"]), conv.weight.shape, geometry, operations
        assert row["predicted"] == pytest.approx(speed(*of_chain, training=operations == 1), abs=1e-3)
        assert row["measured"] > 0
    assert all(getattr(savings, name) == value for name, value in before.items())
    assert not any(module._forward_pre_hooks for module in plain.modules())
