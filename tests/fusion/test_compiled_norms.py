"""The pass for torch.compile on normalisations by the statistics of their input: results, gradients, statistics."""

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch._dynamo import lookup_backend

from engine.fusion import inductor_pass
from tests.support.fuse_checks import image, seeded
from tests.support.fuse_models import SumsInARow


class Summed(nn.Module):
    """A normalisation with a residual sum before the activation, or after it."""

    def __init__(self, after: bool) -> None:
        super().__init__()
        self.norm, self.after = nn.BatchNorm2d(4), after

    def forward(self, x: Tensor) -> Tensor:
        r = 2 * x
        return F.elu(self.norm(x)) + r if self.after else F.relu(r + self.norm(x))


class Again(nn.Module):
    """A normalisation that moves its statistics twice before the sum that follows the first call."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        first = self.norm(x)
        second = self.norm(3 * x)
        return (first + x) * second


MODELS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "batch": (lambda: nn.Sequential(nn.BatchNorm2d(4), nn.ReLU(True)), 1),
    "batch, no statistics": (lambda: nn.Sequential(nn.BatchNorm2d(4, track_running_stats=False), nn.Tanh()), 1),
    "batch, not affine": (lambda: nn.Sequential(nn.BatchNorm2d(4, affine=False), nn.SiLU()), 1),
    "batch alone": (lambda: nn.Sequential(nn.BatchNorm2d(4), nn.Hardtanh()), 0),
    "instance": (lambda: nn.Sequential(nn.InstanceNorm2d(4), nn.LeakyReLU(0.2)), 1),
    "instance with statistics": (lambda: nn.InstanceNorm2d(4, affine=True, track_running_stats=True), 1),
    "group": (lambda: nn.Sequential(nn.GroupNorm(2, 4), nn.SiLU()), 0),
    "residual before": (lambda: Summed(False), 1),
    "residual after": (lambda: Summed(True), 1),
    "residuals in a row": (SumsInARow, 2),
    "statistics moved in between": (Again, 0),
    "convolution": (lambda: nn.Sequential(nn.Conv2d(4, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ELU()), 1),
}


def compiled(model: nn.Module) -> tuple[Callable[[Tensor], Tensor], list[int]]:
    """The model through Dynamo, the pass and AOTAutograd, without Inductor; how many normalisations each graph has."""
    seen: list[int] = []

    def backend(module: fx.GraphModule, example_inputs: list) -> Callable:
        inductor_pass(module.graph)
        module.recompile()
        seen.append(sum(getattr(node.target, "__name__", "") == "run_norm_function" for node in module.graph.nodes))
        return lookup_backend("aot_eager")(module, example_inputs)

    torch._dynamo.reset()
    return torch.compile(model, fullgraph=True, backend=backend), seen


@pytest.mark.parametrize("last", [True, False], ids=["channels_last", "contiguous"])
@pytest.mark.parametrize("name", MODELS)
def test_results_gradients_and_statistics_are_those_of_eager(name: str, last: bool) -> None:
    make, expected = MODELS[name]
    plain = seeded(make)
    for parameter in plain.parameters():
        nn.init.uniform_(parameter, 0.5, 1.5)
    model = copy.deepcopy(plain)
    call, seen = compiled(model)
    order = torch.channels_last if last else torch.contiguous_format
    for seed in range(2):
        x = image(2, 4, 8, 6, seed=seed).contiguous(memory_format=order)
        ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
        y, wanted = call(ours), plain(theirs)
        assert y.stride() == wanted.stride()
        torch.testing.assert_close(y, wanted, rtol=1e-5, atol=1e-5)
        upstream = torch.randn_like(wanted)
        gradients = torch.autograd.grad(y, [ours, *model.parameters()], upstream)
        for found, of_eager in zip(
            gradients, torch.autograd.grad(wanted, [theirs, *plain.parameters()], upstream), strict=True
        ):
            torch.testing.assert_close(found, of_eager, rtol=1e-4, atol=1e-4)
    for (key, found), (_, of_eager) in zip(model.named_buffers(), plain.named_buffers(), strict=True):
        torch.testing.assert_close(found, of_eager, rtol=1e-5, atol=1e-6, msg=key)
    assert seen[0] == expected


def test_stored_statistics_are_left_to_inductor() -> None:
    model = seeded(MODELS["batch"][0]).eval()
    call, seen = compiled(model)
    torch.testing.assert_close(call(image(2, 4, 8, 6)), model(image(2, 4, 8, 6)))
    assert seen == [0]


def test_a_dtype_that_the_operator_has_not_runs_as_written() -> None:
    model = seeded(MODELS["residual before"][0]).double()
    call, seen = compiled(copy.deepcopy(model))
    x = image(2, 4, 8, 6).double()
    torch.testing.assert_close(call(x), model(x))
    assert seen == [1]


def test_one_value_for_a_channel_is_refused_as_torch_refuses_it() -> None:
    call, _ = compiled(seeded(MODELS["batch"][0]))
    with pytest.raises(Exception, match="more than 1 value per channel"):
        call(image(1, 4, 1, 1))


def test_inductor_compiles_what_lies_around() -> None:
    model, calls = seeded(MODELS["convolution"][0]), []
    options = {
        "pre_grad_custom_pass": inductor_pass,
        "post_grad_custom_post_pass": lambda graph: calls.extend(
            node.target.__name__ for node in graph.nodes if "kiln" in str(node.target)
        ),
    }
    plain = copy.deepcopy(model)
    torch._dynamo.reset()
    found = torch.compile(model, fullgraph=True, options=options)(image(2, 4, 8, 6))
    torch.testing.assert_close(found, plain(image(2, 4, 8, 6)), rtol=1e-5, atol=1e-5)
    assert [name.split(".")[0] for name in calls if "norm_act" in name and "backward" not in name] == ["norm_act"]
