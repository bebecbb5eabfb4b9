"""Fused models with free batch sizes and sides: one compiled graph, one exported program, one ONNX file."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from engine.fusion import fuse
from tests.support.fuse_checks import image, seeded
from tests.support.fuse_models import conv

MODELS: dict[str, Callable[[], nn.Module]] = {
    "conv + elu": lambda: nn.Sequential(conv(3, 4), nn.ELU()),
    "up": lambda: nn.Sequential(nn.Upsample(scale_factor=2), conv(3, 8), nn.ELU(), conv(8, 3), nn.Tanh()),
    "convolution alone": lambda: nn.Sequential(conv(3, 64), nn.BatchNorm2d(64), conv(64, 64), nn.BatchNorm2d(64)),
    "nearest /2": lambda: nn.Sequential(conv(3, 4), nn.ReLU(), nn.Upsample(scale_factor=0.5)),
    "stride 2": lambda: nn.Sequential(conv(3, 4, stride=2), nn.SiLU()),
}
EVERY = pytest.mark.parametrize("name", MODELS)


def pair(name: str) -> tuple[nn.Module, nn.Module]:
    plain, fused = (seeded(MODELS[name]).eval() for _ in range(2))
    assert fuse(fused).replaced
    return plain, fused


def same(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


@EVERY
@pytest.mark.parametrize("dynamic", [None, True], ids=["by sizes", "dynamic"])
def test_compiles_to_one_graph(name: str, dynamic: bool | None) -> None:
    plain, fused = pair(name)
    made = []

    def backend(graph: torch.fx.GraphModule, inputs: list) -> Callable:
        made.append([node.target for node in graph.graph.nodes])
        return graph

    torch._dynamo.reset()
    compiled = torch.compile(fused, backend=backend, fullgraph=True, dynamic=dynamic)
    for batch in range(2, 7):
        x = image(batch, 3, 6 + batch, 7 + 2 * batch)
        same(compiled(x), plain(x))
    assert len(made) <= (1 if dynamic else 3)  # batch and sides may become free one after another
    assert all(torch.ops.kiln.resize_conv_act.default in targets for targets in made)


@EVERY
@pytest.mark.parametrize("strict", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_exports_as_one_program(name: str, strict: bool) -> None:
    plain, fused = pair(name)
    free = {axis: torch.export.Dim.DYNAMIC for axis in (0, 2, 3)}
    program = torch.export.export(fused, (image(2, 3, 8, 10),), dynamic_shapes=(free,), strict=strict)
    assert "kiln" not in str(program.graph)
    for shape in ((5, 3, 9, 12), (3, 3, 16, 8)):
        same(program.module()(image(*shape)), plain(image(*shape)))
