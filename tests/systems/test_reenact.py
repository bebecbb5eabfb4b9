"""The step of reenact against the paper's equations, written with torch.nn.functional and plain autograd."""

import copy
import hashlib
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from engine import checkpoint
from engine.config import table
from engine.data import Batch
from engine.errors import InputError
from engine.inference.trained import load_trained
from engine.kernels.resize_conv_act import packed_weights
from engine.networks.layers import parameter_count
from engine.networks.vgg import LAYERS, VGG19
from engine.systems.kinds import DRIVE, REFINE
from engine.systems.reenact import ABLATION, ReenactSystem
from engine.systems.registry import build
from engine.training import random_state
from engine.training.metrics import LossMeter
from engine.training.resolve import resolve
from engine.verification.training_steps import restore, saved_state, step_differences
from tests.support.gram_matrix import gram
from tests.support.operator_choice import always
from tests.support.training_fakes import smooth_images

MODES = pytest.mark.parametrize("mode", ["--eager", "--fused"])
LOSSES = ("adv", "pix", "self", "triple", "pp", "id")
SMALL = {"--resolution": "16", "--filters": "3", "--d-filters": "2", "--vgg-width": "2", "--batch-size": "3"}
SMALL |= {f"--{loss}-weight": str(weight) for loss, weight in zip(LOSSES, (1, 10, 100, 100, 10, 1), strict=True)}
SMALL |= {"--threads": "1", "--lr-schedule": "constant", "--lr": "0.001"}


def config_of(*flags: str, mode: str = "--eager"):
    words = [word for flag, value in SMALL.items() if flag not in flags for word in (flag, value)]
    words += [] if "--correct" in flags else ["--no-correct"]
    return resolve([mode, "--system", "reenact", *words, *flags])[0]


def batch_of(config, seed: int = 0) -> Batch:
    """Make a batch of source, target and in-between; some landmarks lie outside the image."""
    random = torch.Generator().manual_seed(seed)
    parts = []
    for place in range(3):
        images = smooth_images(3 * seed + place, config.batch_size, config.resolution, config.channels)
        points = torch.rand(config.batch_size, 68, 2, generator=random) * 1.2 * config.resolution - 2
        parts.append(Batch(images, points, torch.arange(config.batch_size)))
    return replace(parts[0], more=tuple(parts[1:]))


# the paper and the authors' code, written with torch.nn.functional


def heatmaps(points: torch.Tensor, side: int) -> torch.Tensor:
    """Draw exp(-d^2 / 2) in a window of 7 pixels around the truncated landmark, clipped at the borders."""
    maps = torch.zeros(*points.shape[:2], side, side, dtype=points.dtype)
    for image, landmarks in enumerate(points):
        for channel, point in enumerate(landmarks):
            x, y = (int(v) for v in point)
            for row in range(max(0, y - 3), min(side, y + 4)):
                for column in range(max(0, x - 3), min(side, x + 4)):
                    maps[image, channel, row, column] = math.exp(-((row - y) ** 2 + (column - x) ** 2) / 2)
    return maps


def generator(system: ReenactSystem, images: torch.Tensor, own: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    return halves(system, images, own, points)[0]


def halves(
    system: ReenactSystem, images: torch.Tensor, own: torch.Tensor, points: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """The result, and with --correct what it is mixed of; own: the landmarks of the images."""
    net = system.generator

    def normal(x: torch.Tensor) -> torch.Tensor:
        if system.config.norm == "none":
            return x
        return (x - x.mean((2, 3), keepdim=True)) / (x.var((2, 3), keepdim=True, unbiased=False) + 1e-5).sqrt()

    def conv(layer, x: torch.Tensor, **options) -> torch.Tensor:
        return normal(F.conv2d(x, layer.weight, layer.bias, **options))

    seen, start = images, 0
    if system.config.source_points:
        start = along(own, points, images.shape[-1])
        seen = taken_at(images, slopes(start))
    x = torch.cat([seen, heatmaps(points, images.shape[-1]).to(images.dtype)], 1)
    x = F.leaky_relu(conv(net.first, x, padding=2), 0.2)
    skips = []
    for level in net.down:
        skips.append(x)
        x = F.leaky_relu(conv(level.conv, x, stride=2, padding=1), 0.2)
    x = x + conv(net.middle.second, F.leaky_relu(conv(net.middle.first, x, padding=1), 0.2), padding=1)
    for level in net.up:
        x = F.leaky_relu(conv(level.conv, x.repeat_interleave(2, 2).repeat_interleave(2, 3), padding=1), 0.2)
        x = x + skips.pop()
    made = F.conv2d(x, net.last.weight, net.last.bias, padding=3)
    if not system.config.correct:
        return (torch.tanh(made),)
    channels = images.shape[1]
    share, painted = torch.sigmoid(made[:, channels + 2 :]), torch.tanh(made[:, :channels])
    shift = made[:, channels : channels + 2].unfold(2, 2, 2).unfold(3, 2, 2).mean((4, 5))  # of squares of 2x2 pixels
    moved = taken_at(images, slopes(torch.tanh(shift) * images.shape[-1] / 2 + start))
    return share * moved + (1 - share) * painted, moved, painted


def along(own: torch.Tensor, points: torch.Tensor, side: int) -> torch.Tensor:
    """From where squares of 2x2 pixels come when landmarks go from `own` to `points`, in pixels: the mean of the
    landmarks' ways, each with the weight 1 / (d^2 + (0.02 side)^2)^2, and of as many that stay at d = 0.45 side."""
    shifts = torch.zeros(len(own), 2, side // 2, side // 2)
    for image in range(len(own)):
        for row in range(side // 2):
            for column in range(side // 2):
                ways, weights = torch.zeros(2), len(own[image]) / 0.45**4
                for a, b in zip(own[image], points[image], strict=True):
                    d = ((b[0] - 2 * column - 0.5) ** 2 + (b[1] - 2 * row - 0.5) ** 2) / side**2
                    weight = 1 / (d + 0.02**2) ** 2
                    ways, weights = ways + weight * (a - b), weights + weight
                shifts[image, :, row, column] = ways / weights
    return shifts


def slopes(values: torch.Tensor) -> torch.Tensor:
    """Values of pixels from those of squares of 2x2: three quarters of the pixel's own and a quarter of the next."""
    for axis in (2, 3):
        low, last = values, values.shape[axis] - 1
        before, after = (low.index_select(axis, torch.arange(last + 1).add(d).clamp(0, last)) for d in (-1, 1))
        values = torch.stack([0.75 * low + 0.25 * before, 0.75 * low + 0.25 * after], axis + 1).flatten(axis, axis + 1)
    return values


def taken_at(images: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """The images' pixels at x, y + shift, between four pixels by their distance; beyond a border the border goes on."""
    side, places = images.shape[-1], torch.arange(images.shape[-1], dtype=images.dtype)
    x = (places[None, None, :] + shift[:, 0]).clamp(0, side - 1)
    y = (places[None, :, None] + shift[:, 1]).clamp(0, side - 1)
    left, top = (v.detach().floor().clamp(max=side - 2).long() for v in (x, y))
    rows = torch.arange(len(images))[:, None, None]

    def pixel(down: int, right: int) -> torch.Tensor:
        return images.permute(0, 2, 3, 1)[rows, top + down, left + right].permute(0, 3, 1, 2)

    a, b = (x - left)[:, None], (y - top)[:, None]
    upper = (1 - a) * pixel(0, 0) + a * pixel(0, 1)
    return (1 - b) * upper + b * ((1 - a) * pixel(1, 0) + a * pixel(1, 1))


def discriminator(system: ReenactSystem, images: torch.Tensor, points: torch.Tensor, training: bool) -> torch.Tensor:
    """The mean over patches of D's probability that an image is real, (B,)."""
    net = system.discriminator
    x = torch.cat([images, heatmaps(points, images.shape[-1]).to(images.dtype)], 1)
    x = F.leaky_relu(F.conv2d(x, net.first.weight, net.first.bias, stride=2, padding=1), 0.2)
    for index, (layer, norm) in enumerate(zip(net.convolutions, net.norms, strict=True)):
        stride = 2 if index < len(net.convolutions) - 1 else 1
        x = F.conv2d(x, layer.weight, layer.bias, stride=stride, padding=1)
        mean, variance = norm.running_mean, norm.running_var
        if training:
            mean, variance = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
        x = (x - mean.view(-1, 1, 1)) / (variance.view(-1, 1, 1) + 1e-5).sqrt()
        x = F.leaky_relu(x * norm.weight.view(-1, 1, 1) + norm.bias.view(-1, 1, 1), 0.2)
    x = F.conv2d(x, net.last.weight, net.last.bias, padding=1)
    return torch.sigmoid(x).mean((1, 2, 3))


def vgg(system: ReenactSystem, images: torch.Tensor) -> dict[str, torch.Tensor]:
    mean, deviation = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    x, found = ((images + 1) / 2 - mean) / deviation, {}
    for name in system.vgg.convolutions:
        if name in ("relu2_1", "relu3_1", "relu4_1"):
            x = F.max_pool2d(x, 2)
        layer = system.vgg.convolutions[name]
        found[name] = x = F.relu(F.conv2d(x, layer.weight, layer.bias, padding=1))
    return found


def equations(system: ReenactSystem, batch: Batch) -> tuple[dict[str, float], dict[str, list[torch.Tensor]]]:
    """Compute the losses, and the gradients of G and D, by the equations, with four calls of G."""
    config = system.config
    source, target, _ = (one.images for one in (batch, *batch.more))
    e_s, e_t, e_m = (one.landmarks for one in (batch, *batch.more))

    def distance(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        if config.distance == "l2":
            return ((a - b) ** 2).mean()
        return torch.stack([(x - y).abs().mean() ** 2 for x, y in zip(a, b, strict=True)]).mean()

    fake, *mixed = halves(system, source, e_s, e_t)
    real_features, features = vgg(system, target), vgg(system, fake)
    style = [(gram(a) - gram(b)).norm() for a, b in zip(real_features["relu3_3"], features["relu3_3"], strict=True)]
    content = [(real_features[n] - features[n]).abs().mean() for n in ("relu1_2", "relu2_2", "relu3_3", "relu4_3")]
    found = {
        "l_adv": -discriminator(system, fake, e_t, training=False).log().mean(),
        "l_pix": distance(fake, target),
        "l_self": distance(generator(system, fake, e_t, e_s), source),
        "l_triple": distance(generator(system, generator(system, source, e_s, e_m), e_m, e_t), fake),
        "l_pp": sum(content) + torch.stack(style).mean(),
        "l_id": (real_features[config.id_layer] - features[config.id_layer]).abs().mean(),
    }
    if config.halves_weight:
        found["l_halves"] = sum(distance(half, target) for half in mixed)
    loss_g = sum(getattr(config, f"{name[2:]}_weight") * value for name, value in found.items())
    real_d = discriminator(system, target, e_t, training=True)
    fake_d = discriminator(system, fake.detach(), e_t, training=True)
    probability, label = torch.cat([real_d, fake_d]), torch.cat([torch.ones(len(real_d)), torch.zeros(len(fake_d))])
    loss_d = F.binary_cross_entropy(probability, label.to(probability.dtype))
    gradients = {}
    for loss, (name, network) in zip((loss_g, loss_d), system.networks().items(), strict=True):
        parameters = list(network.parameters())
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        found_for = dict(zip(map(id, trained), torch.autograd.grad(loss, trained), strict=True))
        gradients[name] = [found_for.get(id(parameter), torch.zeros_like(parameter)) for parameter in parameters]
    values = {"loss_g": loss_g, "loss_d": loss_d, **found}
    return {name: value.item() for name, value in values.items()}, gradients


OPTIONS = {
    "paper": ("--norm", "instance"),
    "options": (
        "--norm",
        "none",
        "--distance",
        "l2",
        "--id-layer",
        "relu3_2",
        "--d-optimiser",
        "sgd",
        "--pix-weight",
        "3",
    ),
    "correct": ("--norm", "none", "--correct"),
    "source points": ("--norm", "none", "--correct", "--source-points", "--triple-weight", "30"),
    "halves": ("--norm", "none", "--correct", "--widest", "8", "--halves-weight", "30"),
    "grey": ("--norm", "instance", "--channels", "1", "--triple-weight", "7", "--id-weight", "40"),
}


@MODES
@pytest.mark.parametrize("flags", OPTIONS.values(), ids=OPTIONS)
def test_step_is_the_papers_equations(mode: str, flags: tuple[str, ...]) -> None:
    config = config_of(*flags, mode=mode)
    system = build(config, "cpu")
    system.set_learning_rate(0.002)
    for step in range(1, 3):
        batch = batch_of(config, step)
        wanted, gradients = equations(system, batch)
        before = copy.deepcopy({name: list(net.parameters()) for name, net in system.networks().items()})
        moments = copy.deepcopy({name: opt.state_dict()["state"] for name, opt in system.optimisers.items()})
        losses = system.step(batch)
        assert set(losses) == set(wanted)
        assert {name: losses[name].item() for name in wanted} == pytest.approx(wanted, rel=2e-4)
        for name, network in system.networks().items():
            lr = 0.002 if name == "generator" else 0.0005
            # below this gradient, Adam's first steps magnify rounding
            least = 1e-3 * max(gradient.abs().max() for gradient in gradients[name])
            for index, after in enumerate(network.parameters()):
                gradient = gradients[name][index]
                if name == "discriminator" and config.d_optimiser == "sgd":
                    change, sure = -lr * gradient, gradient.abs() >= 0
                else:
                    old = moments[name].get(index, {"exp_avg": 0, "exp_avg_sq": 0})
                    mean = (0.9 * old["exp_avg"] + 0.1 * gradient) / (1 - 0.9**step)
                    square = (0.999 * old["exp_avg_sq"] + 0.001 * gradient**2) / (1 - 0.999**step)
                    change = -lr * mean / (square.sqrt() + 1e-8)
                    sure = gradient.abs() > least
                torch.testing.assert_close((after - before[name][index])[sure], change[sure], rtol=2e-2, atol=1e-6)


def losses_of(mode: str, steps: int) -> list[dict[str, float]]:
    config = config_of("--norm", "none", mode=mode)
    system = build(config, "cpu")
    return [{k: v.item() for k, v in system.step(batch_of(config, i)).items()} for i in range(steps)]


def test_fused_and_eager_agree_over_50_steps() -> None:
    fused, eager = losses_of("--fused", 50), losses_of("--eager", 50)
    assert max(abs(x[k] - y[k]) / max(abs(y[k]), 1e-6) for x, y in zip(fused, eager, strict=True) for k in y) < 1e-4


def test_fused_and_eager_agree_on_the_steps_of_a_run_with_norms() -> None:
    """Each step starts from the same weights and moments. Otherwise one value on the other side of a kink (LeakyReLU,
    L1) would be enough to part two runs of so small a network."""
    flags = ("--norm", "instance")
    eager, fused = build(config_of(*flags), "cpu"), build(config_of(*flags, mode="--fused"), "cpu")
    apart = []
    for step in range(15):
        restore(fused, saved_state(eager))
        batch = batch_of(eager.config, step)
        wanted, found = eager.step(batch), fused.step(batch)
        assert {k: v.item() for k, v in found.items()} == pytest.approx({k: v.item() for k, v in wanted.items()}, 1e-5)
        for name, network in eager.networks().items():
            a, b = (
                torch.cat([p.grad.flatten() for p in net.parameters() if p.requires_grad])
                for net in (network, fused.networks()[name])
            )
            apart.append(((a - b).norm() / a.norm()).item())
    assert sorted(apart)[24] < 1e-5 and max(apart) < 0.05


@pytest.mark.parametrize("name", ABLATION)
def test_ablated_losses_are_not_computed(name: str) -> None:
    values = ABLATION[name]
    config = replace(config_of(mode="--fused"), **values)
    config.check()
    system = build(config, "cpu")
    faces, judged = [], []
    system.generator.register_forward_hook(lambda _, inputs, __: faces.append(len(inputs[0])))
    system.discriminator.register_forward_hook(lambda _, inputs, __: judged.append(len(inputs[0])))
    losses = system.step(batch_of(config))
    kept = [loss for loss in LOSSES if f"{loss}_weight" not in values]
    assert set(losses) == {"loss_g", "loss_d", *(f"l_{loss}" for loss in kept)}
    assert sum(faces) == 3 * (1 + ("self" in kept) + 2 * ("triple" in kept))
    assert len(judged) == 3
    assert (system.vgg is None) == (name == "without pp and id")


def test_without_an_adversarial_loss_no_discriminator_is_trained() -> None:
    config = config_of("--adv-weight", "0", "--self-weight", "0", "--triple-weight", "0", "--pp-weight", "0")
    system = build(config, "cpu")
    before = copy.deepcopy(system.discriminator.state_dict())
    losses = system.step(batch_of(config))
    assert set(losses) == {"loss_g", "l_pix", "l_id"}
    assert all(torch.equal(before[key], tensor) for key, tensor in system.discriminator.state_dict().items())
    assert list(system.vgg.convolutions)[-1] == "relu2_2"


def test_biases_that_a_norm_takes_away_stay_as_they_are() -> None:
    system = build(config_of("--norm", "instance"), "cpu")
    system.step(batch_of(system.config))
    still = [name for name, p in system.generator.named_parameters() if name.endswith("bias") and not p.any()]
    assert len(still) == 7 and "last.bias" not in still


@MODES
def test_a_step_never_reads_from_the_device(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of("--dropout", mode=mode)
    system, batch, meter = build(config, "cpu"), batch_of(config), LossMeter(torch.device("cpu"))
    # on a CPU a frozen layer keeps its packed weights: that reads memory of the host, not of a device
    monkeypatch.setattr(packed_weights, "packed", lambda *_: None)

    def waits(*_: object) -> None:
        raise AssertionError("the step waits for the device")

    if mode == "--eager":  # the reference of the heatmaps is plain Python, which reads values
        always(monkeypatch, "operator", "landmark_conv")
    for name in ("item", "__float__", "__bool__", "__int__", "tolist", "numpy"):
        monkeypatch.setattr(torch.Tensor, name, waits)
    for number in range(1, 3):
        meter.add(number, system.step(batch))


def test_dropout_is_random_in_training_and_absent_in_use() -> None:
    config = config_of("--dropout", mode="--fused")
    system, batch = build(config, "cpu"), batch_of(config)
    of = (batch.images, batch.more[0].landmarks)
    assert not torch.equal(system.generator(*of), system.generator(*of))
    assert torch.equal(system.ema(*of), system.ema(*of))
    plain = build(config_of(mode="--fused"), "cpu")
    assert torch.equal(plain.generator(*of), system.ema(*of))


def test_fused_and_eager_drop_the_same_elements() -> None:
    """Eager's instance normalisation gives another order of memory than the fused one."""
    flags = ("--dropout", "--norm", "instance")
    fused, eager = (build(config_of(*flags, mode=mode), "cpu") for mode in ("--fused", "--eager"))
    eager.load_state_dict(fused.state_dict())
    differences = step_differences(fused, eager, 1, 1)
    assert differences.pop("gradient of the generator") < 1e-2
    assert all(value < 1e-4 for name, value in differences.items() if not name.startswith("gradient"))


@MODES
@pytest.mark.parametrize("flags", [("--dropout",), ("--d-optimiser", "sgd")], ids=["dropout", "sgd"])
def test_resume_is_exact(mode: str, flags: tuple[str, ...]) -> None:
    config = config_of(*flags, mode=mode)
    system = build(config, "cpu")
    random_state.seed_all(3)
    for step in range(2):
        system.step(batch_of(config, step))
    weights = {name: tensor.clone() for name, tensor in system.weights().items()}
    state, random = copy.deepcopy(system.state_dict()), random_state.capture()
    wanted = [system.step(batch_of(config, step)) for step in (2, 3)]
    twin = build(config, "cpu")
    twin.load_weights(weights)
    twin.load_state_dict(state)
    random_state.restore(random)
    for step, losses in zip((2, 3), wanted, strict=True):
        found = twin.step(batch_of(config, step))
        assert all(torch.equal(found[name], losses[name]) for name in losses)
    assert all(torch.equal(tensor, twin.weights()[name]) for name, tensor in system.weights().items())


def test_fused_goes_on_from_an_eager_run() -> None:
    config = config_of()
    system = build(config, "cpu")
    for step in range(2):
        system.step(batch_of(config, step))
    twin = build(config_of(mode="--fused"), "cpu")
    restore(twin, saved_state(system))
    a, b = system.step(batch_of(config, 2)), twin.step(batch_of(config, 2))
    assert {k: v.item() for k, v in a.items()} == pytest.approx({k: v.item() for k, v in b.items()}, rel=1e-4)


def test_resume_keeps_the_features() -> None:
    state = build(config_of(), "cpu").state_dict()
    with pytest.raises(InputError, match="width 2"):
        build(config_of("--vgg-width", "4"), "cpu").load_state_dict(state)


@MODES
@pytest.mark.parametrize("channels", ["1", "3"])
def test_bf16_trains(mode: str, channels: str) -> None:
    config = config_of("--precision", "bf16", "--channels", channels, mode=mode)
    system = build(config, "cpu")
    losses = [system.step(batch_of(config, 0)) for _ in range(12)]
    assert all(value.dtype == torch.float32 and value.isfinite() for value in losses[-1].values())
    assert losses[-1]["loss_g"] < losses[0]["loss_g"]
    assert all(p.dtype == torch.float32 for p in system.generator.parameters())


@pytest.mark.parametrize("channels", ["1", "3"])
def test_samples(channels: str) -> None:
    config = config_of("--channels", channels, mode="--fused")
    system, batch = build(config, "cpu"), batch_of(config)
    rows = system.sample(batch)
    assert list(rows) == ["source", "landmarks", "result", "target", "back to source"]
    assert all(row.shape == (3, int(channels), 16, 16) and row.abs().max() <= 1 for row in rows.values())
    assert torch.equal(rows["source"], batch.images) and torch.equal(rows["target"], batch.more[0].images)
    with torch.no_grad():
        torch.testing.assert_close(rows["result"], system.ema(batch.images, batch.more[0].landmarks))
    x, y = batch.more[0].landmarks[0, 0].clamp(0, 15).round().long().tolist()
    inside = batch.more[0].landmarks[0, 0].sub(7.5).abs().max() < 7
    assert not inside or rows["landmarks"][0, 0, y, x] > 0


def test_trained_model_drives_a_face(tmp_path: Path) -> None:
    config = config_of("--ema", "0.5", mode="--fused")
    system = build(config, "cpu")
    for step in range(2):
        system.step(batch_of(config, step))
    checkpoint.save(tmp_path, 2, system.weights(), system.state_dict(), config)
    batch = batch_of(config, 5)
    for ema, network in ((True, system.ema), (False, system.generator)):
        trained = load_trained(tmp_path, fused=False, ema=ema, kind=DRIVE)
        model, loaded = trained.module, trained.config
        found = model(batch.images, batch.more[0].landmarks)
        wanted = network(batch.images, batch.more[0].landmarks)
        torch.testing.assert_close(found, wanted.detach(), rtol=1e-4, atol=1e-5)
        assert loaded.system == "reenact" and not found.requires_grad
    with pytest.raises(InputError, match="reenact"):
        load_trained(tmp_path, kind=REFINE)


def test_needs_three_frames_with_68_landmarks() -> None:
    config = config_of()
    (need,) = ReenactSystem.needs(config)
    assert (need.points, need.members, need.samples) == (68, 3, 3)
    system, batch = build(config, "cpu"), batch_of(config)
    five = [replace(one, landmarks=one.landmarks[:, :5]) for one in batch.more]
    for wrong in (
        replace(batch, landmarks=None),
        replace(batch, more=batch.more[:1]),
        replace(batch, more=tuple(five)),
    ):
        with pytest.raises(InputError, match="68 landmarks"):
            system.step(wrong)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--pix-weight", "-1"), "--pix-weight must not be negative"),
        (tuple(w for loss in LOSSES for w in (f"--{loss}-weight", "0")), "every loss has weight 0"),
        (("--d-rate", "0"), "--d-rate must be positive"),
        (("--halves-weight", "1"), "--correct"),
        (("--source-points",), "--correct"),
        (("--widest", "-1"), "--widest must not be negative"),
        (("--vgg-digest", "dcbb9e9d"), "give both"),
        (("--vgg", "vgg19.pth", "--vgg-width", "8"), "leave out --vgg-width"),
        (("--d-filters", "0"), "--d-filters must be at least 1"),
    ],
)
def test_values_that_cannot_train(flags: tuple[str, ...], says: str) -> None:
    with pytest.raises(InputError, match=says):
        config_of(*flags)


def test_a_file_of_weights_has_its_own_width(tmp_path: Path) -> None:
    config, origins = resolve(["--fused", "--system", "reenact", "--vgg", str(tmp_path / "vgg19.pth")])
    assert (config.vgg_width, origins["vgg_width"]) == (64, "command line")
    with pytest.raises(InputError, match="cannot be read"):
        build(config, "cpu")


def test_features_of_a_file(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = tmp_path / "vgg19.pth"
    vgg = VGG19(["relu4_3"])
    vgg.randomise()
    torch.save(
        {
            f"features.{LAYERS[name][2]}.{kind}": 2 * getattr(conv, kind)
            for name, conv in vgg.convolutions.items()
            for kind in ("weight", "bias")
        },
        path,
    )
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    flags = ("--vgg", str(path), "--vgg-width", "64")
    with pytest.raises(InputError, match=f"begins with {digest[:8]}, not dcbb9e9d"):
        build(config_of(*flags), "cpu")
    config = config_of(*flags, "--vgg-digest", digest[:12])
    system = build(config, "cpu")
    assert digest in capsys.readouterr().out
    assert torch.equal(system.vgg.convolutions["relu1_2"].weight, 2 * vgg.convolutions["relu1_2"].weight)
    assert not any(key.startswith("vgg") for key in system.weights())
    losses = system.step(batch_of(config))
    assert losses["l_pp"].isfinite() and losses["l_pp"] > 0
    with pytest.raises(InputError, match=digest):
        build(config_of(), "cpu").load_state_dict(system.state_dict())


def test_the_table_names_what_is_not_given() -> None:
    shown = " ".join(table(*resolve(["--fused", "--system", "reenact"])).split())
    assert "vgg none" in shown and "data embedded" in shown and 'split ""' in shown


def test_presets_are_the_papers_and_a_small_one() -> None:
    paper, _ = resolve(["--fused", "--system", "reenact", "--preset", "paper"])
    assert (paper.resolution, paper.filters, paper.d_filters, paper.batch_size, paper.lr) == (64, 64, 32, 8, 2e-4)
    assert paper.lr * paper.d_rate == pytest.approx(5e-5) and paper.steps * paper.batch_size == 57_200
    assert [getattr(paper, f"{loss}_weight") for loss in LOSSES] == [1, 10, 100, 100, 10, 1]
    quick, _ = resolve(["--fused", "--system", "reenact"])
    assert parameter_count(build(replace(quick, fused=False), "meta").generator) < 5e6
