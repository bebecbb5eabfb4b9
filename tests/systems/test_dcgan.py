"""The networks and the step of dcgan against those of pytorch/examples, written with torch.nn."""

import pytest
import torch
from torch import nn

from engine import checkpoint
from engine.errors import InputError
from engine.inference.trained import load_trained
from engine.networks.dcgan import DcganCritic, DcganGenerator
from engine.networks.initialisation import normal
from engine.networks.layers import parameter_count
from engine.systems.kinds import GENERATE
from engine.systems.registry import build
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


def tiny(**values):
    return configure("dcgan", **{"noise": 5, "lr": 1e-3, **values})


def test_paper_networks_have_the_published_sizes():
    assert parameter_count(DcganGenerator(64, 64, 3, noise=100)) == 3_576_704
    assert parameter_count(DcganCritic(64, 64, 3)) == 2_765_568


def test_paper_networks_are_those_of_pytorch_examples():
    def up(a, b, stride=2, padding=1):
        return nn.ConvTranspose2d(a, b, 4, stride, padding, bias=False)

    def down(a, b, stride=2, padding=1):
        return nn.Conv2d(a, b, 4, stride, padding, bias=False)

    n, h = 3, 5
    g = nn.Sequential(
        *(up(h, 4 * n, 1, 0), nn.BatchNorm2d(4 * n), nn.ReLU()),
        *(up(4 * n, 2 * n), nn.BatchNorm2d(2 * n), nn.ReLU()),
        *(up(2 * n, n), nn.BatchNorm2d(n), nn.ReLU()),
        *(up(n, 2), nn.Tanh()),
    )
    d = nn.Sequential(
        *(down(2, n), nn.LeakyReLU(0.2)),
        *(down(n, 2 * n), nn.BatchNorm2d(2 * n), nn.LeakyReLU(0.2)),
        *(down(2 * n, 4 * n), nn.BatchNorm2d(4 * n), nn.LeakyReLU(0.2)),
        down(4 * n, 1, 1, 0),
    )
    own_g, own_d = DcganGenerator(32, n, 2, noise=h), DcganCritic(32, n, 2)
    normal(own_g, 0)
    normal(own_d, 1)
    for position, ours in ((0, own_g.first), (1, own_g.norms[0]), (3, own_g.blocks[0]), (4, own_g.norms[1]),
                           (6, own_g.blocks[1]), (7, own_g.norms[2]), (9, own_g.blocks[2])):  # fmt: skip
        g[position].load_state_dict(ours.state_dict())
    for position, ours in ((0, own_d.blocks[0]), (2, own_d.blocks[1]), (3, own_d.norms[1]), (5, own_d.blocks[2]),
                           (6, own_d.norms[2]), (8, own_d.last)):  # fmt: skip
        d[position].load_state_dict(ours.state_dict())
    for _ in range(2):
        z = torch.randn(4, h)
        torch.testing.assert_close(own_g(z), g(z[:, :, None, None]))
        torch.testing.assert_close(own_d(g(z[:, :, None, None])), d(own_g(z)).flatten())
    g.eval(), own_g.eval()
    torch.testing.assert_close(own_g(z), g(z[:, :, None, None]))


@LAYERS
@pytest.mark.parametrize("resolution", [16, 32, 64, 128, 256])
def test_every_resolution(layers, resolution):
    g, d = DcganGenerator(resolution, 1, 1, noise=3, layers=layers), DcganCritic(resolution, 1, 1, layers=layers)
    for network in (g, d):
        normal(network, 0)
    images = g(torch.randn(2, 3))
    assert images.shape == (2, 1, resolution, resolution) and images.abs().max() <= 1
    assert d(images).shape == (2,)
    assert len(g.blocks) == len(d.blocks) == resolution.bit_length() - 3


@pytest.mark.parametrize("norm", ["batch", "layer", "none"])
def test_resizing_layers_written_out(norm):
    d = DcganCritic(16, 2, 3, norm=norm, layers="resize")
    normal(d, 0)
    x, norms = torch.randn(4, 3, 16, 16), {"batch": nn.BatchNorm2d(4), "layer": nn.LayerNorm((4, 4, 4))}
    w = d.state_dict()

    def conv(x, name):
        return nn.functional.conv2d(x, w[f"{name}.weight"], w[f"{name}.bias"], stride=2, padding=1)

    y = conv(nn.functional.leaky_relu(conv(x, "blocks.0"), 0.2), "blocks.1")
    if norm in norms:
        with torch.no_grad():
            scale = w["norms.1.weight"]
            norms[norm].weight.copy_(scale if norm == "batch" else scale.view(4, 1, 1).expand(4, 4, 4))
        y = norms[norm](y)
    y = nn.functional.leaky_relu(y, 0.2).permute(0, 2, 3, 1).flatten(1)
    torch.testing.assert_close(d(x), nn.functional.linear(y, w["last.weight"], w["last.bias"])[:, 0])


def test_start_values_are_normal_and_of_the_seed_alone():
    networks = [DcganGenerator(32, 16, 3, noise=100) for _ in range(3)]
    for network, seed in zip(networks, (1, 1, 2), strict=True):
        torch.randn(7)
        normal(network, seed)
    first, again, other = (network.state_dict() for network in networks)
    assert all(torch.equal(tensor, again[name]) for name, tensor in first.items())
    assert not torch.equal(first["first.weight"], other["first.weight"])
    assert first["first.weight"].std().item() == pytest.approx(0.02, rel=0.05)
    assert first["norms.0.weight"].mean().item() == pytest.approx(1, abs=0.01)
    assert first["norms.0.weight"].std().item() == pytest.approx(0.02, rel=0.4)
    assert first["norms.0.bias"].abs().max() == 0


@LAYERS
@MODES
def test_steps_are_those_of_pytorch_examples(fused, layers):
    """Two steps: D on photos, D on generated images, D's update, then G on the same noise; weights agree after each."""
    system = build(tiny(fused=fused, layers=layers), "cpu")
    copies = twins(system)
    d, g = copies["discriminator"], copies["generator"]
    optimisers = {name: adam(list(net.parameters()), system, name) for name, net in copies.items()}
    criterion = nn.BCELoss()
    assert system.optimisers["generator"].param_groups[0]["betas"] == (0.5, 0.999)
    for step in range(2):
        torch.manual_seed(step)
        z = torch.randn(4, 5)
        d.zero_grad()
        real = d(batch_for(system, step).images).sigmoid()
        loss_real = criterion(real, torch.ones(4))
        loss_real.backward()
        fake = g(z)
        generated = d(fake.detach()).sigmoid()
        loss_fake = criterion(generated, torch.zeros(4))
        loss_fake.backward()
        optimisers["discriminator"].step()
        g.zero_grad()
        loss_g = criterion(d(fake).sigmoid(), torch.ones(4))
        loss_g.backward()
        optimisers["generator"].step()
        (losses,) = run_steps(system, 1, first=step)
        wanted = {"loss_d": loss_real + loss_fake, "loss_g": loss_g, "d_real": real.mean(), "d_fake": generated.mean()}
        assert losses == pytest.approx({name: value.item() for name, value in wanted.items()}, rel=1e-4)
        for name, network in system.networks().items():
            for (key, ours), theirs in zip(
                network.state_dict().items(), copies[name].state_dict().values(), strict=True
            ):
                torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=2e-4, msg=f"{name}.{key}")


def test_fused_and_eager_agree_over_50_steps():
    runs = [run_steps(build(tiny(fused=fused, layers="resize", lr=2e-4), "cpu"), 50) for fused in (True, False)]
    assert worst(*runs) < 1e-4


@LAYERS
def test_a_step_never_reads_from_the_device(layers, monkeypatch):
    assert_never_waits(build(tiny(fused=True, layers=layers), "cpu"), monkeypatch)


def test_biases_that_batchnorm_takes_away_stay_zero():
    system = build(tiny(fused=True, layers="resize"), "cpu")
    run_steps(system, 2)
    biases = {name: p for name, p in system.weights().items() if name.endswith("bias") and "norms" not in name}
    moved = {name for name, bias in biases.items() if bias.abs().max() > 0}
    assert moved == {"discriminator.blocks.0.bias", "discriminator.last.bias", "generator.blocks.1.bias",
                     "ema.blocks.1.bias"}  # fmt: skip


def test_moving_average_follows_the_generator_and_takes_the_statistics():
    system = build(tiny(), "cpu")
    assert_average_follows(system)
    assert system.ema.norms[0].num_batches_tracked == 5


@LAYERS
def test_resume_is_exact(layers, tmp_path):
    assert_resumes_exactly(tiny(fused=True, layers=layers), tmp_path)


@LAYERS
@MODES
def test_bf16_trains(fused, layers):
    system = build(tiny(fused=fused, precision="bf16", layers=layers), "cpu")
    batch = batch_for(system, 0)
    losses = [system.step(batch) for _ in range(20)]
    assert all(value.dtype == torch.float32 and value.isfinite() for value in losses[-1].values())
    assert losses[-1]["loss_d"] < losses[0]["loss_d"]


@pytest.mark.parametrize("channels", [1, 3])
def test_grey_and_colour_and_the_sample_rows(channels):
    system = build(tiny(fused=True, channels=channels), "cpu")
    run_steps(system, 2)
    batch, before = batch_for(system, 0), {name: tensor.clone() for name, tensor in system.weights().items()}
    state = torch.get_rng_state()
    rows = system.sample(batch)
    assert list(rows) == ["generated", "average", "interpolation", "real"]
    assert all(row.shape == (4, channels, 16, 16) and row.abs().max() <= 1 for row in rows.values())
    assert all(torch.equal(row, rows[label]) for label, row in system.sample(batch).items())
    assert all(torch.equal(tensor, before[name]) for name, tensor in system.weights().items())
    assert torch.equal(torch.get_rng_state(), state) and system.generator.training


def test_load_trained_runs_on_the_running_statistics(tmp_path):
    system = build(tiny(ema=0.5), "cpu")
    run_steps(system, 3)
    checkpoint.save(tmp_path, 3, system.weights(), {}, system.config)
    model = load_trained(tmp_path, kind=GENERATE).module
    z = model.noise(4, torch.Generator().manual_seed(0))
    torch.testing.assert_close(model(z)[:1], model(z[:1]), msg="an image depends on the others of its batch")
    torch.testing.assert_close(model(z), system.ema.eval()(z).detach())
    many = model.noise(2000, torch.Generator().manual_seed(0))
    assert many.mean().abs() < 0.05 and many.std().item() == pytest.approx(1, rel=0.03)


def test_paper_preset_and_values_that_cannot_train():
    config = resolve(["--fused", "--system", "dcgan", "--preset", "paper"])[0]
    assert (config.lr, config.batch_size, config.filters, config.noise, config.layers) == (2e-4, 64, 64, 100, "paper")
    with pytest.raises(InputError, match="--noise"):
        tiny(noise=0).check()
