"""The step of refiner against equation (4) of the paper, written with torch.nn and plain autograd."""

import copy
import dataclasses
import math

import pytest
import torch

from engine.checkpoint import save
from engine.errors import InputError
from engine.inference.trained import load_trained
from engine.networks.landmarks import normalise
from engine.networks.refiner import landmark_maps, pyramid
from engine.systems.refiner import RefinerSystem
from engine.systems.registry import build
from engine.training.metrics import LossMeter
from engine.verification.training_steps import restore, saved_state
from tests.support.operator_choice import always
from tests.support.training_fakes import batch_of, tiny_config, worst

MODES = pytest.mark.parametrize("mode", ["--eager", "--fused"])
LANDMARKS = ("--landmarks", "--landmark-weight", "0.3")
CRITIC = ("--critic-weight", "0.2", "--critic-filters", "4", "--correct", "--d-filters", "3")
PACKED = (*CRITIC, "--critic-pack", "2")
FLAGS = pytest.mark.parametrize(
    "flags",
    [(), LANDMARKS, CRITIC, PACKED, (*PACKED, "--critic-sees", "whole"), ("--focus", "3")],
    ids=["plain", "landmarks", "critic", "packed critic", "whole images", "focus"],
)


def losses_of(mode: str, steps: int, *flags: str) -> list[dict[str, float]]:
    config = tiny_config(*flags, mode=mode)
    system = build(config, "cpu")
    return [{k: v.item() for k, v in system.step(batch_of(config, i)).items()} for i in range(steps)]


def equation_4(system: RefinerSystem, batch, k: float) -> tuple[dict[str, float], dict[str, list[torch.Tensor]]]:
    """Compute the losses, and the gradients of each network, by equation (4)."""
    config, d, g = system.config, system.discriminator, system.generator
    maps = landmark_maps(batch.landmarks, config.resolution) if config.landmarks else None
    fake = g(pyramid(batch.images, config.inject), maps)
    real_loss = (batch.images - d(batch.images)).abs().mean()
    fake_loss = (fake - d(fake)).abs().mean()
    content = ((batch.images - fake).abs() * importance(config.resolution, config.focus)).mean()
    loss_d = real_loss - k * fake_loss
    loss_g = (1 - config.lambda_r) * fake_loss + config.lambda_r * content
    values = {"l_real": real_loss, "l_fake": fake_loss, "l_content": content}
    gradients = {}
    if system.estimator:
        target = normalise(batch.landmarks, config.resolution)
        values["l_landmarks_real"] = (system.estimator(batch.images) - target).abs().mean()
        values["l_landmarks"] = (system.estimator(fake) - target).abs().mean()
        loss_g = loss_g + config.landmark_weight * values["l_landmarks"]
        gradients["estimator"] = torch.autograd.grad(
            values["l_landmarks_real"], list(system.estimator.parameters()), retain_graph=True
        )
    if system.critic:
        pack = config.critic_pack  # images that lie behind one another as channels
        packed = ([torch.cat(list(v[i : i + pack])) for i in range(0, len(v), pack)] for v in (batch.images, fake))
        of_photos, of_results = (system.critic(torch.stack(v)) for v in packed)
        if config.critic_sees == "whole":  # one logit of being a photo; else two, of which the first is for photos
            of_photos, of_results = (torch.stack([v, torch.zeros_like(v)], 1) for v in (of_photos, of_results))
        of_photos, of_results = of_photos.log_softmax(1), of_results.log_softmax(1)
        values["l_critic"] = -of_photos[:, 0].mean() - of_results[:, 1].mean()
        values["l_realism"] = -of_results[:, 0].mean()
        loss_g = loss_g + config.critic_weight * values["l_realism"]
        gradients["critic"] = torch.autograd.grad(
            values["l_critic"], list(system.critic.parameters()), retain_graph=True
        )
    gradients["generator"] = torch.autograd.grad(loss_g, list(g.parameters()), retain_graph=True)
    gradients["discriminator"] = torch.autograd.grad(loss_d, list(d.parameters()))
    values |= {"loss_d": loss_d, "loss_g": loss_g}
    return {name: value.item() for name, value in values.items()}, gradients


def importance(side: int, focus: float) -> torch.Tensor:
    """How much each pixel counts: more, the nearer to the middle it is; 1 on average."""
    middles = [(place + 0.5) / side - 0.5 for place in range(side)]
    rows = [[1 + focus * math.exp(-(x * x + y * y) / (2 * 0.22**2)) for x in middles] for y in middles]
    return torch.tensor(rows) * side**2 / sum(map(sum, rows))


@MODES
@FLAGS
def test_step_is_equation_4_with_adam(mode: str, flags: tuple[str, ...]) -> None:
    config = tiny_config("--gamma", "0.8", "--lambda-r", "0.3", "--lambda-k", "0.5", "--lr", "0.01", *flags, mode=mode)
    system = build(config, "cpu")
    system.k.fill_(0.4)
    for step in range(1, 4):
        batch, k = batch_of(config, step), system.k.item()
        wanted, gradients = equation_4(system, batch, k)
        before = copy.deepcopy({name: list(net.parameters()) for name, net in system.networks().items()})
        moments = copy.deepcopy({name: opt.state_dict()["state"] for name, opt in system.optimisers.items()})
        losses = system.step(batch)
        assert {name: losses[name].item() for name in wanted} == pytest.approx(wanted, rel=1e-4)
        for name, network in system.networks().items():
            for index, after in enumerate(network.parameters()):
                old = moments[name].get(index, {"exp_avg": 0, "exp_avg_sq": 0})
                gradient = gradients[name][index]
                beta1, beta2 = (0.5, 0.99) if name == "critic" else (0.9, 0.999)
                mean = (beta1 * old["exp_avg"] + (1 - beta1) * gradient) / (1 - beta1**step)
                square = (beta2 * old["exp_avg_sq"] + (1 - beta2) * gradient**2) / (1 - beta2**step)
                change = -0.01 * mean / (square.sqrt() + 1e-8)
                # where a gradient is nearly zero, Adam's first steps magnify rounding
                sure = gradient.abs() > 1e-5
                torch.testing.assert_close((after - before[name][index])[sure], change[sure], rtol=2e-2, atol=1e-5)
        balance = config.gamma * wanted["l_real"] - wanted["l_fake"]
        new_k = min(1.0, max(0.0, k + config.lambda_k * balance))
        assert losses["k"].item() == pytest.approx(new_k, abs=1e-5) == pytest.approx(system.k.item())
        assert losses["measure"].item() == pytest.approx(wanted["l_real"] + abs(balance), rel=1e-4)


@FLAGS
def test_fused_and_eager_agree_over_50_steps(flags: tuple[str, ...]) -> None:
    assert worst(losses_of("--fused", 50, *flags), losses_of("--eager", 50, *flags)) < 1e-4


@pytest.mark.parametrize("flags", [(), LANDMARKS], ids=["plain", "landmarks"])
def test_one_pass_is_exact_where_fp32_is_chaotic(flags: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """With a high k, training magnifies rounding, so the algebra is compared in float64, on the reference operators."""
    always(
        monkeypatch,
        "reference",
        "resize_conv_act",
        "linear",
        "l1_autoencoder_loss",
        "began_balance",
        "landmark_heatmap",
    )
    runs = {}
    for mode in ("--fused", "--eager"):
        config = tiny_config("--gamma", "1", "--lambda-k", "0.1", *flags, mode=mode)
        system = build(config, "cpu")
        for network in (*system.networks().values(), system.ema):
            network.double()
        for name in ("k", "lambda_r", "landmark_weight"):
            setattr(system, name, getattr(system, name).double())
        runs[mode] = []
        for step in range(50):
            batch = batch_of(config, step)
            batch.images, batch.landmarks = batch.images.double(), batch.landmarks.double()
            runs[mode].append({key: value.item() for key, value in system.step(batch).items()})
    assert runs["--fused"][-1]["k"] > 0.3
    assert worst(runs["--fused"], runs["--eager"]) < 1e-6


def test_k_stays_between_0_and_1() -> None:
    assert losses_of("--eager", 3, "--gamma", "1", "--lambda-k", "1000")[-1]["k"] in (0, 1)
    assert losses_of("--eager", 3, "--gamma", "0", "--lambda-k", "1000")[-1]["k"] == 0


@MODES
def test_a_step_never_reads_from_the_device(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config(*LANDMARKS, mode=mode)
    system, batch, meter = build(config, "cpu"), batch_of(config), LossMeter(torch.device("cpu"))

    def waits(*_: object) -> None:
        raise AssertionError("the step waits for the device")

    for name in ("item", "__float__", "__bool__", "__int__", "tolist", "numpy"):
        monkeypatch.setattr(torch.Tensor, name, waits)
    for number in range(1, 3):
        meter.add(number, system.step(batch))


def test_moving_average_follows_the_generator() -> None:
    config = tiny_config("--ema", "0.9")
    system = build(config, "cpu")
    average = [p.clone() for p in system.generator.parameters()]
    for step in range(1, 13):
        system.step(batch_of(config, step))
        decay = min(0.9, (1 + step) / (10 + step))
        average = [decay * a + (1 - decay) * p for a, p in zip(average, system.generator.parameters(), strict=True)]
        for kept, wanted in zip(system.ema.parameters(), average, strict=True):
            torch.testing.assert_close(kept, wanted.detach(), rtol=1e-5, atol=1e-6)
    assert not any(p.requires_grad for p in system.ema.parameters())


def test_estimator_learns_from_photos_only() -> None:
    """The estimator's weights after a step do not depend on what G produced."""
    results = []
    for shift in (0.0, 1.0):
        config = tiny_config(*LANDMARKS, mode="--fused")
        system = build(config, "cpu")
        with torch.no_grad():
            system.generator.decoder.last.bias.add_(shift)
        system.step(batch_of(config))
        results.append([p.clone() for p in system.estimator.parameters()])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_a_correction_starts_at_the_enlarged_copy_and_keeps_its_pixels() -> None:
    config = tiny_config("--correct", "--resolution", "32", "--inject", "8,16")
    images = batch_of(config).images
    with torch.no_grad():
        result = load_from(config)(images)
    # every second pixel is one that G was given
    assert (result[:, :, ::2, ::2] - images[:, :, ::2, ::2]).abs().max() < 0.1
    assert (result - images).abs().mean() < 0.1


def load_from(config) -> torch.nn.Module:
    module = RefinerSystem.trained(config)
    module.generator.load_state_dict(build(config, "cpu").generator.state_dict())
    return module


def test_a_correction_has_gradients_after_it_was_used_without() -> None:
    module, images = load_from(tiny_config("--correct")), batch_of(tiny_config()).images
    with torch.inference_mode():
        wanted = module(images)
    given = images.clone().requires_grad_()
    result = module(given)
    result.sum().backward()
    torch.testing.assert_close(result.detach(), wanted.clone())
    assert given.grad[:, :, ::2, ::2].any() and not given.grad[:, :, 1::2].any()


def test_packs_fill_the_batch() -> None:
    with pytest.raises(InputError, match="--critic-pack 3 does not divide the 4 images"):
        tiny_config("--critic-pack", "3")


def test_the_critic_starts_and_stops_with_the_run() -> None:
    plain, judged = tiny_config(), tiny_config(*CRITIC)
    with pytest.raises(InputError, match="critic cannot be switched on or off"):
        dataclasses.replace(plain, critic_weight=0.1).check_resumed(plain)
    with pytest.raises(InputError, match="--correct"):
        judged.check_resumed(dataclasses.replace(judged, correct=False))


def test_estimator_leaves_the_start_of_the_others_as_it_was() -> None:
    plain, with_estimator = build(tiny_config(), "cpu"), build(tiny_config("--landmark-weight", "1"), "cpu")
    assert all(torch.equal(tensor, with_estimator.weights()[name]) for name, tensor in plain.weights().items())


def test_landmarks_must_be_in_the_data() -> None:
    config = tiny_config("--landmarks")
    batch = batch_of(config)
    batch.landmarks = None
    with pytest.raises(InputError, match="landmarks"):
        build(config, "cpu").step(batch)


@MODES
def test_bf16_trains(mode: str) -> None:
    config = tiny_config("--precision", "bf16", mode=mode)
    system = build(config, "cpu")
    losses = [system.step(batch_of(config, 0)) for _ in range(20)]
    assert all(value.dtype == torch.float32 and value.isfinite() for value in losses[-1].values())
    assert losses[-1]["l_real"] < losses[0]["l_real"]
    assert all(p.dtype == torch.float32 for p in system.generator.parameters())


@pytest.mark.parametrize("channels", ["1", "3"])
def test_grey_and_colour(channels: str) -> None:
    config = tiny_config("--channels", channels, mode="--fused")
    system = build(config, "cpu")
    assert system.step(batch_of(config))["l_real"].isfinite()
    rows = system.sample(batch_of(config))
    assert list(rows) == ["input 8", "refined", "original", "D(refined)", "D(original)"]
    assert all(row.shape == (4, int(channels), 16, 16) and row.abs().max() <= 1 for row in rows.values())


@pytest.mark.parametrize(("first", "second"), [("--fused", "--eager"), ("--eager", "--fused")])
def test_fused_and_eager_go_on_from_each_others_state(first: str, second: str) -> None:
    config = tiny_config(mode=first)
    system = build(config, "cpu")
    for step in range(5):
        system.step(batch_of(config, step))
    twin = build(tiny_config(mode=second), "cpu")
    restore(twin, saved_state(system))
    for step in range(5, 10):
        a, b = system.step(batch_of(config, step)), twin.step(batch_of(config, step))
        assert {k: v.item() for k, v in a.items()} == pytest.approx({k: v.item() for k, v in b.items()}, rel=1e-4)


def test_load_trained_gives_the_average_or_the_last_weights(tmp_path) -> None:
    config = tiny_config("--ema", "0.5")
    system = build(config, "cpu")
    for step in range(3):
        system.step(batch_of(config, step))
    save(tmp_path, 3, system.weights(), {}, config)
    images = batch_of(config, 9).images
    for ema, network in ((True, system.ema), (False, system.generator)):
        trained = load_trained(tmp_path, fused=False, ema=ema)
        refiner, loaded = trained.module, trained.config
        wanted = network(pyramid(images, config.inject)).clamp(-1, 1)
        assert torch.equal(refiner(images), wanted.detach())
        assert loaded.resolution == 16


def test_load_trained_asks_for_landmarks(tmp_path) -> None:
    config = tiny_config("--landmarks")
    system, batch = build(config, "cpu"), batch_of(config)
    save(tmp_path, 0, system.weights(), {}, config)
    refiner = load_trained(tmp_path).module
    assert refiner(batch.images, batch.landmarks).shape == batch.images.shape
    with pytest.raises(InputError, match="needs the 68 landmarks"):
        refiner(batch.images)


def test_weights_of_another_shape_are_refused() -> None:
    system = build(tiny_config(), "cpu")
    with pytest.raises(InputError, match="another configuration"):
        system.load_weights(build(tiny_config("--filters", "3"), "cpu").weights())
