"""Free batch sizes and sides stay free: each operator compiles to one graph and exports as one program."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from engine import ops

WEIGHT = torch.randn(8, 8, 3, 3, generator=torch.Generator().manual_seed(0)) / 8


def of_size(batch: int, height: int, width: int) -> dict[str, Tensor]:
    """Every tensor that the calls below take, by name."""
    generator = torch.Generator().manual_seed(1)
    x, other = (torch.randn(batch, 8, height, width, generator=generator) for _ in range(2))
    second = torch.randn(batch, 4, 2 * height, 2 * width, generator=generator)
    return {"x": x, "other": other, "second": second, "points": torch.rand(batch, 5, 2, generator=generator) * 8}


def conv(**options: object) -> Callable:
    return lambda x: ops.resize_conv_act(x, WEIGHT, **options)


def weighed(x: Tensor) -> Tensor:
    scale = x.new_ones(x.shape[0])
    return ops.resize_conv_act(x, WEIGHT, grad_scale=scale, input_grad_from=x.shape[0] // 2, activation="relu")


def stamped(points: Tensor, x: Tensor) -> Tensor:
    weight = x.new_ones(4, 13, 3, 3)
    return ops.landmark_conv(points, weight, image=x, padding=1, stride=2)


def balanced(x: Tensor) -> Tensor:
    losses = x.abs().mean((1, 2, 3)).repeat(2)
    return ops.began_balance(losses, x.mean(), x.new_full((), 0.5), gamma=0.5, lambda_k=0.1, lambda_r=0.1).k


def cut(x: Tensor) -> Tensor:
    store = (x[:, :3, :8, :8].permute(0, 2, 3, 1).contiguous() * 20).to(torch.uint8)
    rows = torch.arange(x.shape[0])
    return ops.image_batch(store, rows, rows.new_zeros(x.shape[0], 2), rows > 0, 8)


CALLS: dict[str, tuple[Callable, tuple[str, ...]]] = {
    "gram": (ops.gram, ("x",)),
    "style_loss": (ops.style_loss, ("x", "other")),
    "l1_autoencoder_loss": (ops.l1_autoencoder_loss, ("x", "other")),
    "resize_conv_act": (conv(activation="elu"), ("x",)),
    "resize_conv_act, up": (conv(resize="up", activation="silu"), ("x",)),
    "resize_conv_act, down": (conv(resize="down", activation="tanh"), ("x",)),
    "resize_conv_act, second": (
        lambda x, second: ops.resize_conv_act(x, x.new_ones(8, 12, 3, 3), resize="up", second=second),
        ("x", "second"),
    ),
    "resize_conv_act, weighed": (weighed, ("x",)),
    "landmark_heatmap": (lambda points, x: ops.landmark_heatmap(points, x.shape[2], x.shape[3]), ("points", "x")),
    "landmark_conv": (stamped, ("points", "x")),
    "norm_act": (lambda x, other: ops.norm_act(x, kind="batch", activation="silu", residual=other), ("x", "other")),
    "norm_act, instance": (lambda x: ops.norm_act(x, kind="instance", activation="relu"), ("x",)),
    "norm_act, group": (lambda x: ops.norm_act(x, kind="group", groups=2, activation="elu"), ("x",)),
    "linear": (lambda x: ops.linear(x.mean((2, 3)), WEIGHT[:, :, 0, 0], grad_scale=x.new_ones(x.shape[0])), ("x",)),
    "began_balance": (balanced, ("x",)),
    "image_batch": (cut, ("x",)),
}
EVERY = pytest.mark.parametrize("name", CALLS)
SOME = [pytest.param(name, marks=pytest.mark.slow if number % 3 else ()) for number, name in enumerate(CALLS)]


def test_every_operator_is_called() -> None:
    assert {name.split(",")[0] for name in CALLS} == ops.OPERATORS.keys()


def taken(names: tuple[str, ...], *size: int, grad: bool = False) -> list[Tensor]:
    return [of_size(*size)[name].requires_grad_(grad) for name in names]


def graphs(call: Callable, names: tuple[str, ...], sizes: list[tuple[int, ...]], grad: bool, **options: object) -> int:
    """How many graphs torch.compile makes of a call with these sizes; results are compared."""
    made = []
    torch._dynamo.reset()
    compiled = torch.compile(call, backend=lambda graph, inputs: made.append(graph) or graph, fullgraph=True, **options)
    for size in sizes:
        tensors = taken(names, *size, grad=grad)
        torch.testing.assert_close(compiled(*tensors), call(*tensors), rtol=1e-4, atol=1e-5)
    return len(made)


@EVERY
def test_compiles_to_one_graph(name: str) -> None:
    """The first size makes one graph, the second the one that serves all others."""
    call, names = CALLS[name]
    assert graphs(call, names, [(batch, 9, 10) for batch in range(2, 6)], grad=False) <= 2
    sizes = [(batch, 8 + batch, 9 + 2 * batch) for batch in range(6, 9)]  # none equal to another size of an input
    assert graphs(call, names, sizes, grad=name != "image_batch", dynamic=True) == 1


class Module(nn.Module):
    def __init__(self, call: Callable):
        super().__init__()
        self.call = call

    def forward(self, *tensors: Tensor) -> object:
        found = self.call(*tensors)
        return tuple(found) if isinstance(found, tuple) else found


@pytest.mark.parametrize("name", SOME)
def test_exports_as_one_program(name: str) -> None:
    call, names = CALLS[name]
    batch = torch.export.Dim.DYNAMIC
    free = tuple({0: batch} if n == "points" else {0: batch, 2: batch, 3: batch} for n in names)
    module = Module(call)
    program = torch.export.export(module, tuple(taken(names, 4, 9, 10)), dynamic_shapes=(free,), strict=False)
    plain = program.run_decompositions(ops.decompositions())
    assert "kiln" in str(program.graph) and "kiln" not in str(plain.graph)
    for size in ((5, 9, 10), (6, 12, 11)):
        tensors = taken(names, *size)
        expected = module(*tensors)
        for found in (program.module()(*tensors), plain.module()(*tensors)):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
