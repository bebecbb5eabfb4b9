"""engine.fuse on normalisations with an activation: results, gradients, statistics, modes, later changes."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn

import engine
from engine.fusion import fuse, unfuse
from engine.fusion.chains import normalisation
from engine.fusion.lookups import Onlooker
from tests.support.fuse_checks import assert_same, image, patterns, seeded
from tests.support.fuse_models import conv

SIDE = 32  # from so many pixels on a side all of them pay
NORMS: dict[str, Callable[[], nn.Module]] = {
    "batch": lambda: nn.BatchNorm2d(4),
    "batch, cumulative": lambda: nn.BatchNorm2d(4, momentum=None),
    "batch, no statistics": lambda: nn.BatchNorm2d(4, track_running_stats=False),
    "batch, not affine": lambda: nn.BatchNorm2d(4, affine=False),
    "instance": lambda: nn.InstanceNorm2d(4),
    "instance with statistics": lambda: nn.InstanceNorm2d(4, affine=True, track_running_stats=True),
    "group": lambda: nn.GroupNorm(2, 4),
}


class Calls(Onlooker):
    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function is torch.ops.kiln.norm_act.default
        return function(*args, **(kwargs or {}))


def norm_calls(model: nn.Module, x: Tensor) -> int:
    with Calls() as mode:
        model(x)
    return mode.count


def layers(name: str) -> nn.Module:
    model = nn.Sequential(nn.Identity(), NORMS[name](), nn.LeakyReLU(0.2, True), nn.Hardtanh(-9, 9))
    for parameter in model.parameters():
        nn.init.uniform_(parameter, 0.5, 1.5)
    return model


def maps(last: bool = True, seed: int = 0) -> Tensor:
    order = torch.channels_last if last else torch.contiguous_format
    return image(2, 4, SIDE, SIDE, seed=seed).contiguous(memory_format=order)


def pair(name: str) -> tuple[nn.Module, nn.Module]:
    plain, fused = (seeded(lambda: layers(name)) for _ in range(2))
    report = fuse(fused)
    assert [path for path, _ in patterns(report)] == ["1"] and report.refused == []
    return plain, fused


def assert_same_state(fused: nn.Module, plain: nn.Module) -> None:
    for (name, found), expected in zip(fused.state_dict().items(), plain.state_dict().values(), strict=True):
        torch.testing.assert_close(found, expected, msg=name)


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("name", NORMS)
def test_results_and_statistics(name: str, last: bool) -> None:
    plain, fused = pair(name)
    assert norm_calls(fused, maps(last)) == (last or name != "group")
    plain(maps(last))
    for step in range(3):
        assert_same(fused, plain, maps(last, step))
        assert_same_state(fused, plain)
    plain.eval()
    fused.eval()
    assert_same(fused, plain, maps(last))
    assert_same_state(fused, plain)
    measured = name in ("batch, no statistics", "instance") or (name == "group" and last)
    assert norm_calls(fused, maps(last)) == measured
    fused.train()
    plain.train()
    assert_same(fused, plain, maps(last))
    assert_same_state(fused, plain)


@pytest.mark.parametrize("name", NORMS)
def test_calls_that_run_as_written(name: str) -> None:
    plain, fused = pair(name)
    for x in (image(2, 4, 1, 1), image(0, 4, 8, 8), image(1, 4, 1, 1), image(2, 3, 8, 8), image(4, 8, 8)):
        outcomes = []
        for model in (plain, fused):
            try:
                outcomes.append(model(x))
            except Exception as error:
                # torch's layers refuse some of these
                outcomes.append((type(error), str(error)))
        if isinstance(outcomes[0], Tensor):
            assert outcomes[0].dtype == outcomes[1].dtype
            torch.testing.assert_close(outcomes[1], outcomes[0])
        else:
            assert outcomes[0] == outcomes[1]
    assert_same_state(fused, plain)
    plain, fused = plain.double(), fused.double()
    assert torch.equal(plain(maps().double()), fused(maps().double()))


CHANGES: dict[str, Callable[[nn.Module], object]] = {
    "eps": lambda model: setattr(model[1], "eps", 0.5),
    "momentum": lambda model: setattr(model[1], "momentum", 0.7),
    "slope": lambda model: setattr(model[2], "negative_slope", 0.9),
    "hook": lambda model: model[1].register_forward_hook(lambda module, args, y: 2 * y),
    "forward": lambda model: setattr(model[1], "forward", torch.tanh),
    "no statistics": lambda model: setattr(model[1], "track_running_stats", False),
    "another layer": lambda model: model.__setitem__(1, nn.GroupNorm(1, 4)),
    "frozen": lambda model: model[1].requires_grad_(False),
    "mode of the layer": lambda model: model[1].eval(),
    "parameters in place": lambda model: model[1].weight.data.mul_(3),
}


@pytest.mark.parametrize("name", CHANGES)
def test_later_changes_are_followed(name: str) -> None:
    plain, fused = pair("batch")
    for model in (plain, fused):
        model(maps())
        CHANGES[name](model)
        model(maps(seed=1))
    torch.testing.assert_close(fused(maps()), plain(maps()), rtol=1e-4, atol=1e-5)
    assert_same_state(fused, plain)


def test_shared_layer_counts_each_call() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.act = nn.BatchNorm2d(4), nn.SiLU()

        def forward(self, x: Tensor) -> Tensor:
            return self.act(self.norm(2 * self.act(self.norm(x))))

    plain, fused = seeded(Shared), seeded(Shared)
    assert len(fuse(fused).replaced) == 2 and norm_calls(fused, maps()) == 2
    plain(maps())
    assert_same(fused, plain, maps())
    assert_same_state(fused, plain)
    assert fused.norm.num_batches_tracked == 4


def test_a_result_that_is_read_twice_keeps_its_layers() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.act = nn.BatchNorm2d(4), nn.SiLU()

        def forward(self, x: Tensor) -> Tensor:
            y = self.norm(x)
            return self.act(y) + y

    assert fuse(Twice()).replaced == []


@pytest.mark.parametrize("write", [lambda x, y: x.add_(1), lambda x, y: y.mul_(2)], ids=["input", "result"])
def test_in_place_operations_outside(write: Callable[[Tensor, Tensor], object]) -> None:
    """Torch's instance normalisation copies channels_last maps, so these may be written to afterwards."""
    plain, fused = (nn.Sequential(nn.InstanceNorm2d(4), nn.ELU()) for _ in range(2))
    assert len(fuse(fused).replaced) == 1 and norm_calls(fused, maps()) == 1

    def gradient(model: nn.Module) -> Tensor:
        first = maps().requires_grad_()
        x = first * 1
        y = model(x)
        write(x, y)
        return torch.autograd.grad(y.square().sum(), first)[0]

    torch.testing.assert_close(gradient(fused), gradient(plain), rtol=1e-4, atol=1e-5)


def generator() -> nn.Module:
    """Convolutions, normalisations and activations as CycleGAN and DCGAN have them."""
    return nn.Sequential(
        *(nn.ReflectionPad2d(1), nn.Conv2d(4, 64, 3, bias=False), nn.InstanceNorm2d(64), nn.ReLU(True)),
        *(nn.ReflectionPad2d(1), nn.Conv2d(64, 64, 3, bias=False), nn.BatchNorm2d(64), nn.ELU()),
        *(conv(64, 64, bias=False), nn.GroupNorm(4, 64), nn.SiLU(), conv(64, 3), nn.Tanh()),
    )


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("last_weights", [False, True], ids=["contiguous weights", "channels_last weights"])
def test_chains_one_after_another(last: bool, last_weights: bool) -> None:
    plain = seeded(generator)
    plain = plain.to(memory_format=torch.channels_last) if last_weights else plain
    fused = copy.deepcopy(plain)
    report = fuse(fused)
    assert [pattern for _, pattern in patterns(report)] == [
        *("InstanceNorm2d + relu", "conv 3x3 reflect + BatchNorm2d + elu", "conv 3x3", "GroupNorm + silu"),
        "conv 3x3 + tanh",
    ]
    assert_same(fused, plain, maps(last))
    fused.eval()
    plain.eval()
    assert_same(fused, plain, maps(last))
    unfuse(fused)
    assert norm_calls(fused, maps()) == 0


def test_compiles_to_one_graph() -> None:
    plain, fused = seeded(generator), seeded(generator)
    fuse(fused)
    compiled = torch.compile(fused, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(maps()), plain(maps()), rtol=1e-3, atol=1e-4)
    assert_same_state(fused, plain)


def test_compiled_normalisations_are_the_operators() -> None:
    """Those by the statistics of their input: Inductor goes over memory more often."""
    fused, seen = seeded(generator), []
    fuse(fused)

    def backend(module: fx.GraphModule, inputs: list) -> Callable:
        seen.append(sum("kiln.norm_act" in str(node.target) for node in module.graph.nodes))
        return module.forward

    for training in (True, False):
        torch.compile(fused.train(training), fullgraph=True, backend=backend)(maps())
    batch, instance = (
        sum(isinstance(m, kind) for m in fused.modules()) for kind in (nn.BatchNorm2d, nn.InstanceNorm2d)
    )
    assert seen == [batch + instance, instance] and batch and instance


def test_example_inputs_leave_statistics() -> None:
    model = seeded(generator)
    before = copy.deepcopy(model.state_dict())
    report = engine.fuse(model, example_inputs=image(4, 4, SIDE, SIDE))
    assert len(report.replaced) == 5 and report.products and report.error[0] <= report.error[2]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_small_batches_in_training_run_as_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """Contiguous maps of fewer numbers than pay for a call are torch's layer's, whatever their sides."""
    monkeypatch.setitem(normalisation.LEAST_NUMBERS, ("batch", True, True), (1 << 20, 1 << 12))
    model = nn.Sequential(nn.BatchNorm2d(4), nn.ReLU())
    assert fuse(model).replaced
    assert norm_calls(model, torch.randn(3, 4, 16, 16)) == 0
    assert norm_calls(model, torch.randn(4, 4, 16, 16)) == 1
