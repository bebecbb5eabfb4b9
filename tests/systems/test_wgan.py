"""The steps, the clipping and the gradient penalty of wgan against their definitions in plain torch."""

import pytest
import torch
import torch.nn.functional as F

from engine.errors import InputError
from engine.networks.dcgan import DcganCritic
from engine.networks.initialisation import normal
from engine.systems.registry import build
from engine.systems.wgan import WganSystem, gradient_penalty
from engine.training.resolve import resolve
from tests.support.generator_runs import (
    adam,
    assert_average_follows,
    assert_never_waits,
    assert_resumes_exactly,
    batch_for,
    configure,
    run_steps,
    twins,
)
from tests.support.training_fakes import worst

MODES = pytest.mark.parametrize("fused", [False, True], ids=["eager", "fused"])
LAYERS = pytest.mark.parametrize("layers", ["paper", "resize"])
PENALTY = {"gradient_penalty": 10.0, "critic_norm": "none", "optimiser": "adam"}


def tiny(**values):
    return configure("wgan", **{"noise": 5, "lr": 1e-3, "critic_steps": 2, "layers": "resize", **values})


def plain_penalty(critic, images, fake, share):
    """Compute the mean of (|gradient| - 1)^2 at points between two images, image by image."""
    penalties = []
    for x, y, a in zip(images, fake, share, strict=True):
        v = (a * x + (1 - a) * y).unsqueeze(0).requires_grad_()
        (gradient,) = torch.autograd.grad(critic(v).sum(), v, create_graph=True)
        penalties.append((gradient.square().sum().sqrt() - 1) ** 2)
    return sum(penalties) / len(penalties)


@pytest.mark.parametrize(
    "values",
    [{}, {"layers": "paper"}, PENALTY, {**PENALTY, "layers": "paper"}],
    ids=["clipped", "paper", "penalty", "penalty paper"],
)
@MODES
def test_steps_are_those_of_the_papers(fused, values):
    """Two steps, each of two critic updates and one of G, in plain torch on copies of the networks."""
    system = build(tiny(fused=fused, **values), "cpu")
    config, copies = system.config, twins(system)
    critic, g = copies["critic"], copies["generator"]
    optimisers = {name: adam(list(net.parameters()), system, name) for name, net in copies.items()}
    expected = torch.optim.Adam if "gradient_penalty" in values else torch.optim.RMSprop
    assert all(type(optimiser) is expected for optimiser in optimisers.values())
    for step in range(2):
        torch.manual_seed(step)
        losses = []
        for images in batch_for(system, step).images.split(4):
            if not config.gradient_penalty:
                for parameter in critic.parameters():
                    parameter.data.clamp_(-config.clip, config.clip)
            fake = g(torch.randn(4, 5)).detach()
            distance = critic(images).mean() - critic(fake).mean()
            loss = -distance
            if config.gradient_penalty:
                loss = loss + 10 * plain_penalty(critic, images, fake, torch.rand(4, 1, 1, 1))
            optimisers["critic"].zero_grad()
            loss.backward()
            optimisers["critic"].step()
            losses.append((loss.item(), distance.item()))
        loss_g = -critic(g(torch.randn(4, 5))).mean()
        g.zero_grad()
        loss_g.backward()
        optimisers["generator"].step()
        (found,) = run_steps(system, 1, first=step)
        loss_d, distance = (sum(column) / 2 for column in zip(*losses, strict=True))
        assert found["loss_d"] == pytest.approx(loss_d, rel=1e-3, abs=1e-6)
        assert found["distance"] == pytest.approx(distance, rel=1e-3, abs=1e-6)
        assert found["loss_g"] == pytest.approx(loss_g.item(), rel=1e-3, abs=1e-6)
        for name, network in system.networks().items():
            for (key, ours), theirs in zip(
                network.state_dict().items(), copies[name].state_dict().values(), strict=True
            ):
                torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=2e-4, msg=f"{name}.{key}")


def test_clipping_holds_in_every_critic_step():
    system = build(tiny(clip=0.005, critic_steps=3), "cpu")
    largest = []
    system.critic.register_forward_pre_hook(
        lambda critic, _: largest.append(max(p.abs().max().item() for p in critic.parameters()))
    )
    run_steps(system, 2)
    # the critic runs 7 times a step: on photos and on generated images in three critic steps, then for G
    in_critic_steps = [value for index, value in enumerate(largest) if index % 7 != 6]
    assert len(in_critic_steps) == 12 and max(in_critic_steps) <= 0.005
    assert max(largest[0], largest[6]) > 0.0049, "the limit was never reached"


def test_the_penalty_replaces_clipping():
    system = build(tiny(**PENALTY), "cpu")
    with torch.no_grad():
        system.critic.last.weight.fill_(0.5)
    losses = run_steps(system, 1)
    assert system.critic.last.weight.abs().max() > 0.4 and losses[0]["penalty"] > 0
    assert losses[0]["loss_d"] == pytest.approx(10 * losses[0]["penalty"] - losses[0]["distance"], rel=1e-5)


@pytest.mark.parametrize("norm", ["none", "layer"])
@MODES
def test_value_and_gradients_of_the_penalty(fused, norm):
    """Second derivatives through the operators against the same critic in float64, written out with torch."""
    critic = DcganCritic(16, 3, 2, norm=norm, layers="resize", fused=fused)
    normal(critic, 3)
    with torch.no_grad():
        for parameter in critic.parameters():
            parameter.mul_(8).add_(0.01)
    images, fake = torch.randn(5, 2, 16, 16), torch.randn(5, 2, 16, 16)
    torch.manual_seed(4)
    found = gradient_penalty(critic, images, fake)
    torch.manual_seed(4)
    share = torch.rand(5, 1, 1, 1).double()
    w = {name: p.detach().double().requires_grad_() for name, p in critic.named_parameters()}

    def plain(v):
        x = F.leaky_relu(F.conv2d(v, w["blocks.0.weight"], w["blocks.0.bias"], stride=2, padding=1), 0.2)
        x = F.conv2d(x, w["blocks.1.weight"], w["blocks.1.bias"], stride=2, padding=1)
        if norm == "layer":
            x = F.group_norm(x, 1, w["norms.1.weight"], w["norms.1.bias"])
        x = F.leaky_relu(x, 0.2).permute(0, 2, 3, 1).flatten(1)
        return F.linear(x, w["last.weight"], w["last.bias"])

    wanted = plain_penalty(plain, images.double(), fake.double(), share)
    assert found.item() == pytest.approx(wanted.item(), rel=1e-5)
    found.backward()
    wanted.backward()
    compared = 0
    for name, parameter in critic.named_parameters():
        if w[name].grad is not None and w[name].grad.abs().max() > 0:
            difference = (parameter.grad.double() - w[name].grad).norm() / w[name].grad.norm()
            assert difference < 1e-5, name
            compared += 1
        else:
            assert parameter.grad is None or parameter.grad.abs().max() == 0, name
    assert compared == {"none": 3, "layer": 6}[norm]


@pytest.mark.parametrize("values", [{}, PENALTY], ids=["clipped", "penalty"])
def test_fused_and_eager_agree_over_50_steps(values):
    runs = [run_steps(build(tiny(fused=fused, lr=5e-5, **values), "cpu"), 50) for fused in (True, False)]
    assert worst(*runs) < 1e-4


def test_a_step_takes_a_batch_for_each_critic_step():
    config = tiny(critic_steps=3)
    (need,) = WganSystem.needs(config)
    assert need.samples == 12
    system, seen = build(config, "cpu"), []
    system.critic.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    batch = batch_for(system, 0)
    system.step(batch)
    assert torch.equal(torch.cat([seen[0], seen[2], seen[4]]), batch.images)


@pytest.mark.parametrize("values", [{}, PENALTY], ids=["clipped", "penalty"])
def test_a_step_never_reads_from_the_device(values, monkeypatch):
    assert_never_waits(build(tiny(fused=True, **values), "cpu"), monkeypatch)


def test_moving_average_follows_the_generator():
    assert_average_follows(build(tiny(), "cpu"))


@pytest.mark.parametrize("values", [{"layers": "paper"}, PENALTY], ids=["rmsprop", "adam"])
def test_resume_is_exact(values, tmp_path):
    assert_resumes_exactly(tiny(fused=True, **values), tmp_path)


@pytest.mark.parametrize("values", [{}, PENALTY], ids=["clipped", "penalty"])
@LAYERS
@MODES
def test_bf16_trains(fused, layers, values):
    system = build(tiny(fused=fused, precision="bf16", **{**values, "layers": layers}), "cpu")
    batch = batch_for(system, 0)
    losses = [system.step(batch) for _ in range(10)]
    assert all(value.dtype == torch.float32 and value.isfinite() for value in losses[-1].values())
    assert losses[-1]["loss_d"] < losses[0]["loss_d"]


@pytest.mark.parametrize("channels", [1, 3])
def test_grey_and_colour_and_the_sample_rows(channels):
    system = build(tiny(fused=True, channels=channels), "cpu")
    run_steps(system, 1)
    rows = system.sample(batch_for(system, 0))
    assert list(rows) == ["generated", "average", "interpolation", "real"]
    assert all(row.shape == (8, channels, 16, 16) and row.abs().max() <= 1 for row in rows.values())


@LAYERS
def test_128_pixels(layers):
    config = tiny(fused=True, resolution=128, filters=1, batch_size=1, critic_steps=1, layers=layers)
    assert "distance" in run_steps(build(config, "cpu"), 1)[0]


def test_presets():
    paper = resolve(["--fused", "--system", "wgan", "--preset", "paper"])[0]
    assert (paper.lr, paper.clip, paper.critic_steps, paper.optimiser) == (5e-5, 0.01, 5, "rmsprop")
    assert (paper.gradient_penalty, paper.critic_norm, paper.layers, paper.batch_size) == (0, "batch", "paper", 64)


def test_the_penalty_chooses_a_norm_that_it_bears():
    words = ["--fused", "--system", "wgan", "--gradient-penalty", "10"]
    config, origins = resolve(words)
    assert (config.critic_norm, origins["critic_norm"]) == ("layer", "command line")
    assert resolve([*words, "--critic-norm", "none"])[0].critic_norm == "none"
    with pytest.raises(InputError, match="add --critic-norm none or layer"):
        resolve([*words, "--critic-norm", "batch"])


@pytest.mark.parametrize(
    ("values", "named"),
    [({"gradient_penalty": 10.0}, "--critic-norm"), ({"clip": 0.0}, "--clip"), ({"critic_steps": 0}, "--critic-steps"),
     ({"gradient_penalty": -1.0}, "--gradient-penalty")],
)  # fmt: skip
def test_values_that_cannot_train(values, named):
    with pytest.raises(InputError, match=named):
        tiny(**values).check()
