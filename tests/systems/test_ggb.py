"""The step of ggb (an iteration in the paper) against the paper's equations in plain PyTorch."""

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.checkpoint import save
from engine.data import Batch
from engine.errors import InputError
from engine.inference.trained import load_trained
from engine.kernels.resize_conv_act import packed_weights
from engine.systems.ggb import ABLATION, GgbConfig, GgbSystem
from engine.systems.kinds import DRIVE
from engine.training.cuda_graph import GraphedStep
from engine.training.metrics import LossMeter
from engine.training.resolve import resolve
from engine.verification.training_steps import restore, saved_state
from tests.support.ggb_fakes import batch_of, config_of, heatmaps_of
from tests.support.tape import NoWaiting, Tape, rates_on_device

MODES = pytest.mark.parametrize("fused", [False, True], ids=["eager", "fused"])


def run(steps: int, **values) -> list[dict[str, float]]:
    config = config_of(**values)
    system = GgbSystem(config, "cpu")
    return [{k: v.item() for k, v in system.step(batch_of(config, i)).items()} for i in range(steps)]


# the iteration


class Adam:
    """Adam by its definition, betas 0.5 and 0.999."""

    def __init__(self, parameters: list[nn.Parameter], lr: float):
        self.parameters, self.lr, self.steps = parameters, lr, 0
        self.mean, self.square = ([torch.zeros_like(p) for p in parameters] for _ in range(2))

    def descend(self, loss: Tensor) -> None:
        self.steps += 1
        gradients = torch.autograd.grad(loss, self.parameters, retain_graph=True)
        for p, g, mean, square in zip(self.parameters, gradients, self.mean, self.square, strict=True):
            mean.mul_(0.5).add_(0.5 * g)
            square.mul_(0.999).add_(0.001 * g * g)
            change = (mean / (1 - 0.5**self.steps)) / ((square / (1 - 0.999**self.steps)).sqrt() + 1e-8)
            p.data = p.data - self.lr * change


class WrittenOut:
    """Equations (1) to (9) in the order of section 2.3, on copies of a system's networks."""

    def __init__(self, system: GgbSystem):
        self.config = system.config
        self.networks = copy.deepcopy(system.networks())
        self.g, self.d = self.networks["generator"], self.networks["discriminator"]
        self.blocks = self.networks.get("blocks", {})
        guided = [p for name, p in self.g.named_parameters() if not name.startswith("last.")]
        final = [p for name, p in self.g.named_parameters() if not name.startswith("to_image.")]
        lr = self.config.lr
        of_judges = lr * self.config.judge_rate
        self.adam_d, self.adam_g = Adam(list(self.d.parameters()), of_judges), Adam(final, lr)
        self.adam_levels = Adam(guided, lr) if self.config.levels else None
        self.adam_blocks = {size: Adam(list(block.parameters()), of_judges) for size, block in self.blocks.items()}

    def weights(self) -> dict[str, Tensor]:
        return {
            f"{name}.{key}": v for name, network in self.networks.items() for key, v in network.state_dict().items()
        }

    def judge(self, size: str, image: Tensor, source: Tensor) -> dict[str, Tensor]:
        """The probabilities that the judges of a level give an image of being real."""
        block, probabilities = self.blocks[size], {}
        if self.config.rapd:
            probabilities["rapd"] = torch.sigmoid(block.rapd(block.encoder(image)))
        if self.config.nvtd:
            probabilities["nvtd"] = torch.sigmoid(block.nvtd(block.encoder(image) - block.encoder(source)))
        return probabilities

    def iteration(self, x: Tensor, y: Tensor, c: Tensor, own: Tensor) -> dict[str, Tensor]:
        values = {}
        fake, levels = self.g(x, c, own)
        small = {n: [F.interpolate(v, size=(n, n), mode="area") for v in (x, y)] for n in levels}
        real, made = (torch.sigmoid(self.d(v)) for v in (y, fake.detach()))
        values["loss_d"] = -torch.log(real).mean() - torch.log(1 - made).mean()
        self.adam_d.descend(values["loss_d"])
        for n, image in levels.items():
            if str(n) not in self.blocks:
                continue
            real, made = (self.judge(str(n), v, small[n][0]) for v in (small[n][1], image.detach()))
            for name in real:
                values[f"{name}_{n}"] = -torch.log(real[name]).mean() - torch.log(1 - made[name]).mean()
            self.adam_blocks[str(n)].descend(sum(values[f"{name}_{n}"] for name in real))
        total = 0
        for n, image in levels.items():
            values[f"l1_{n}"] = (small[n][1] - image).abs().mean()
            total = total + values[f"l1_{n}"]
            if str(n) in self.blocks:
                weights = {"rapd": self.config.lambda_rapd, "nvtd": self.config.lambda_nvtd}
                judged = self.judge(str(n), image, small[n][0])
                total = total + sum(weights[name] * -torch.log(p).mean() for name, p in judged.items())
        if levels:
            values["loss_levels"] = total
            self.adam_levels.descend(total)
        _, guided = self.g.guide(x, c, own)
        fake = self.g.finish(x, guided)
        values["l1"] = (y - fake).abs().mean()
        values["adversarial"] = -torch.log(torch.sigmoid(self.d(fake))).mean()
        values["loss_g"] = self.config.lambda_real * values["adversarial"] + values["l1"]
        if self.config.lambda_halves:
            _, moved, painted = self.g.halves(x, guided)
            values["halves"] = (y - moved).abs().mean() + (y - painted).abs().mean()
            values["loss_g"] = values["loss_g"] + self.config.lambda_halves * values["halves"]
        self.adam_g.descend(values["loss_g"])
        return values


ROWS = [
    {},
    {"rapd": False},
    {"nvtd": False, "points": 68},
    {"levels": 1, "lambda_rapd": 0.5, "lambda_nvtd": 0.3, "judge_rate": 0.1},
]
ROWS += [
    {"levels": 0, "lambda_real": 0.4},
    {"rapd": False, "nvtd": False},
    {"norm": "instance"},
    {"norm": "none"},
    {"correct": True},
    {"correct": True, "lambda_halves": 0.3},
    {"correct": True, "source_points": True},
]


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_iteration_is_the_papers(row: dict) -> None:
    """The losses of five iterations and every weight after them agree, in float64."""
    system, written = follow(5, 1e-9, lambda tensor: tensor.double(), fused=False, **row)
    weights = system.weights()
    for name, wanted in written.weights().items():
        torch.testing.assert_close(weights[name], wanted, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("row", [*ROWS[:6], *ROWS[-2:]], ids=str)
def test_fused_iteration_is_the_papers(row: dict) -> None:
    follow(3, 1e-4, lambda tensor: tensor, fused=True, **row)


def follow(steps: int, tolerance: float, cast: Callable, **values) -> tuple[GgbSystem, "WrittenOut"]:
    """Train a system and the equations side by side, and check that all losses agree."""
    config = config_of(lr=1e-3, **values)
    system = GgbSystem(config, "cpu")
    for network in (*system.networks().values(), system.ema):
        network._apply(lambda tensor: cast(tensor) if tensor.is_floating_point() else tensor)
    written = WrittenOut(system)
    for step in range(steps):
        batch = batch_of(config, step)
        target = replace(batch.more[0], images=cast(batch.more[0].images), landmarks=cast(batch.more[0].landmarks))
        batch = replace(batch, images=cast(batch.images), more=(target,))
        wanted = written.iteration(batch.images, target.images, target.landmarks, batch.landmarks)
        judged = [value for name, value in wanted.items() if name.startswith(("rapd", "nvtd"))]
        wanted |= {"loss_guides": sum(judged)} if judged else {}
        losses = system.step(batch)
        assert set(losses) == set(wanted)
        for name, value in wanted.items():
            assert losses[name].item() == pytest.approx(value.item(), rel=tolerance), name
    return system, written


@MODES
def test_each_update_touches_its_own_weights_in_the_papers_order(fused: bool) -> None:
    config = config_of(fused=fused, resolution=32)
    system = GgbSystem(config, "cpu")
    system.step(batch_of(config, 0))
    parameters = {
        f"{name}.{key}": p for name, network in system.networks().items() for key, p in network.named_parameters()
    }
    touched: list[tuple[str, set[str]]] = []

    def watch(name: str, step):
        def watched() -> None:
            before = {key: p.detach().clone() for key, p in parameters.items()}
            step()
            changed = {key for key, p in parameters.items() if not torch.equal(p, before[key])}
            touched.append((name, changed))
            for p in parameters.values():
                p.grad = None

        return watched

    for name, optimiser in system.optimisers.items():
        optimiser.step = watch(name, optimiser.step)
    system.step(batch_of(config, 1))

    def starting(*prefixes: str) -> set[str]:
        return {key for key in parameters if key.startswith(prefixes)}

    body = ("generator.first", "generator.down", "generator.up")
    assert touched == [
        ("discriminator", starting("discriminator")),
        ("blocks", starting("blocks")),
        ("levels", starting(*body, "generator.to_image")),
        ("generator", starting(*body, "generator.last")),
    ]
    assert starting("blocks.16.encoder") and starting("blocks.4.rapd") and starting("blocks.8.nvtd")
    assert all(p.grad is None and p.requires_grad for p in parameters.values())


@MODES
def test_the_generators_updates_leave_no_gradient_in_their_judges(fused: bool) -> None:
    config = config_of(fused=fused)
    system = GgbSystem(config, "cpu")
    judges = [*system.discriminator.parameters(), *system.blocks.parameters()]

    def then_clear(step):
        def stepped() -> None:
            step()
            for p in judges:
                p.grad = None

        return stepped

    for name in ("discriminator", "blocks"):
        system.optimisers[name].step = then_clear(system.optimisers[name].step)
    system.step(batch_of(config))
    assert all(p.grad is None for p in judges)
    assert all(p.grad is not None for p in system.generator.image_parameters())


@pytest.mark.parametrize("row", list(ABLATION))
def test_rows_of_the_ablation_build_and_step(row: str) -> None:
    config = config_of(fused=True, resolution=32, **ABLATION[row])
    system = GgbSystem(config, "cpu")
    losses = [system.step(batch_of(config, i)) for i in range(2)][-1]
    assert all(value.isfinite() for value in losses.values())
    levels = {"without GGBs": (), "1 GGB": (16,), "2 GGBs": (8, 16)}.get(row, (4, 8, 16))
    assert {int(name[3:]) for name in losses if name.startswith("l1_")} == set(levels)
    assert set(system.generator.to_image) == set(system.blocks) == set(map(str, levels))
    kinds = {name[:4] for name in losses} & {"rapd", "nvtd"}
    assert kinds == {"without GGBs": set(), "without RAPD": {"nvtd"}, "without NVTD": {"rapd"}}.get(
        row, {"rapd", "nvtd"}
    )


def test_guiding_blocks_leave_the_start_of_the_discriminator_as_it_was() -> None:
    plain, guided = (GgbSystem(config_of(levels=levels), "cpu") for levels in (0, 3))
    for a, b in zip(plain.discriminator.parameters(), guided.discriminator.parameters(), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(plain.generator.up[1].conv.weight, guided.generator.up[1].conv.weight)


# maps of so few pixels make normalised float32 runs chaotic after some 30 steps; follow() checks the algebra in float64
FEW, MANY = 15, 50


@pytest.mark.parametrize(
    ("steps", "values"),
    [(MANY, {"norm": "none"}), (FEW, {"points": 68, "norm": "batch"}), (FEW, {"channels": 1, "norm": "instance"})],
    ids=str,
)
def test_fused_and_eager_agree(steps: int, values: dict) -> None:
    fused, eager = run(steps, fused=True, **values), run(steps, fused=False, **values)
    for a, b in zip(fused, eager, strict=True):
        assert a == pytest.approx(b, rel=1e-4)


@MODES
def test_a_step_never_reads_from_the_device(fused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    # on a CPU a frozen layer keeps its packed weights: that reads memory of the host, not of a device
    monkeypatch.setattr(packed_weights, "keep", lambda _weight: None)
    config = config_of(fused=fused)
    system, batch, meter = GgbSystem(config, "cpu"), batch_of(config), LossMeter(torch.device("cpu"))
    system.step(batch)

    def waits(*_: object) -> None:
        raise AssertionError("the step waits for the device")

    for name in ("item", "__float__", "__bool__", "__int__", "tolist", "numpy"):
        monkeypatch.setattr(torch.Tensor, name, waits)
    with NoWaiting():
        for number in range(1, 3):
            meter.add(number, system.step(batch))


@MODES
def test_recorded_steps_are_the_plain_steps(fused: bool) -> None:
    # instance norm, because PyTorch does not declare that batch norm writes its running means: the tape would miss that
    config = config_of(fused=fused, norm="instance")
    plain, recorded, tape = (*(rates_on_device(GgbSystem(config, "cpu")) for _ in range(2)), Tape())
    step = GraphedStep(recorded, tape)
    for number in range(6):
        losses, wanted = step(batch_of(config, number)), plain.step(batch_of(config, number))
        assert {k: v.item() for k, v in losses.items()} == {k: v.item() for k, v in wanted.items()}
    assert tape.replays == 3
    assert all(torch.equal(tensor, recorded.weights()[name]) for name, tensor in plain.weights().items())


@pytest.mark.parametrize(("first", "second"), [(True, True), (True, False), (False, True)])
def test_resume_goes_on_exactly(first: bool, second: bool) -> None:
    system = GgbSystem(config_of(fused=first), "cpu")
    for step in range(4):
        system.step(batch_of(system.config, step))
    twin = GgbSystem(config_of(fused=second, seed=9), "cpu")
    restore(twin, saved_state(system))
    for step in range(4, 8):
        a, b = ({k: v.item() for k, v in s.step(batch_of(system.config, step)).items()} for s in (system, twin))
        assert a == (b if first == second else pytest.approx(b, rel=1e-4))
    for name, tensor in system.weights().items():
        assert first != second or torch.equal(tensor, twin.weights()[name]), name


@pytest.mark.parametrize("points", [18, 68])
def test_missing_points_are_no_heatmaps(points: int) -> None:
    """Without any valid point the result is that of empty heatmaps; the weights of a missing point learn nothing."""
    config = config_of(points=points, fused=True)
    generator = GgbSystem(config, "cpu").generator
    batch = batch_of(config)
    outside = batch.more[0].landmarks.nan_to_num(-1000.0)
    image, _ = generator(batch.images, batch.more[0].landmarks)
    torch.testing.assert_close(image, generator(batch.images, outside)[0])
    image.sum().backward()
    of_maps = generator.first.weight.grad[:, 3:].abs().amax((0, 2, 3))
    assert (of_maps[::5] == 0).all() and of_maps[1::5].max() > 0 and of_maps.isfinite().all()


@MODES
def test_bf16_trains(fused: bool) -> None:
    config = config_of(fused=fused, precision="bf16", lr=2e-3)
    system = GgbSystem(config, "cpu")
    losses = [system.step(batch_of(config, 0)) for _ in range(20)]
    assert all(value.dtype == torch.float32 and value.isfinite() for value in losses[-1].values())
    assert losses[-1]["l1"] < losses[0]["l1"]
    assert all(p.dtype == torch.float32 for p in system.generator.parameters())


@pytest.mark.parametrize("channels", [1, 3])
def test_sample_rows_and_loading_for_use(channels: int, tmp_path: Path) -> None:
    config = config_of(channels=channels, fused=True, ema=0.5)
    system, batch = GgbSystem(config, "cpu"), batch_of(config, 3)
    for step in range(3):
        system.step(batch_of(config, step))
    rows = system.sample(batch)
    assert list(rows) == ["source", "points", "level 4", "level 8", "result", "target"]
    assert all(row.shape == (4, channels, 16, 16) and row.abs().max() <= 1 for row in rows.values())
    assert torch.equal(rows["source"], batch.images) and torch.equal(rows["target"], batch.more[0].images)
    drawn = heatmaps_of(batch.more[0].landmarks, 16, 0.5).amax(1, keepdim=True) * 2 - 1
    torch.testing.assert_close(rows["points"], drawn.expand_as(batch.images))
    save(tmp_path, 3, system.weights(), {}, config)
    for ema, network in ((False, system.generator), (True, system.ema)):
        trained = load_trained(tmp_path, ema=ema, kind=DRIVE)
        drive, loaded = trained.module, trained.config
        wanted = copy.deepcopy(network).eval()(batch.images, batch.more[0].landmarks)[0]
        result = drive(batch.images, batch.more[0].landmarks)
        assert loaded == config and torch.equal(result, wanted.detach())
    torch.testing.assert_close(rows["result"], result)


@pytest.mark.parametrize("preset", ["quick", "paper"])
def test_command_line(preset: str) -> None:
    words = ["--system", "ggb", "--fused", "--preset", preset, "--points", "68", "--levels", "1", "--no-rapd"]
    config, origins = resolve([*words, "--device", "cpu"])
    assert type(config) is GgbConfig and (config.points, config.levels, config.rapd, config.nvtd) == (
        68,
        1,
        False,
        True,
    )
    assert config.batch_size == 8 and origins["batch_size"] == f"preset {preset}"
    assert GgbConfig.from_json(config.to_json(origins)) == replace(config, eager=False)


def test_what_a_run_needs_and_refuses() -> None:
    (needs,) = GgbSystem.needs(config_of(points=68, batch_size=6))
    assert (needs.points, needs.members, needs.samples) == (68, 2, 6)
    config = config_of()
    batch = batch_of(config)
    with pytest.raises(InputError, match="pairs"):
        GgbSystem(config, "cpu").step(Batch(batch.images, batch.landmarks, batch.indices))
    for values in (
        {"lambda_real": -1.0},
        {"lambda_nvtd": float("nan")},
        {"heatmap": 0.3},
        {"lambda_halves": 0.3},
        {"source_points": True},
    ):
        with pytest.raises(InputError, match="--"):
            config_of(**values)
