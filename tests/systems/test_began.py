"""The step of began against BEGAN's equations, written with torch.nn and plain autograd; what its options mean."""

import copy

import pytest
import torch
import torch.nn.functional as F

from engine import checkpoint
from engine.errors import InputError
from engine.inference.trained import load_trained
from engine.networks.autoencoder import Autoencoder
from engine.networks.began import BeganGenerator
from engine.networks.initialisation import initialise
from engine.networks.layers import Conv
from engine.systems.began import BeganSystem
from engine.systems.kinds import GENERATE
from engine.systems.registry import build
from engine.training.resolve import resolve
from engine.training.schedule import learning_rate
from tests.support.generator_runs import (
    assert_average_follows,
    assert_never_waits,
    assert_resumes_exactly,
    batch_for,
    configure,
    run_steps,
)
from tests.support.operator_choice import always
from tests.support.training_fakes import worst

MODES = pytest.mark.parametrize("fused", [False, True], ids=["eager", "fused"])
TEXT = {
    "activation": "relu",
    "generator_output": "tanh",
    "discriminator_output": "sigmoid",
    "upsample": "deconv",
    "downsample": "average",
}
OPTIONS = pytest.mark.parametrize("options", [{}, TEXT], ids=["began", "text"])


def tiny(**values):
    return configure("began", **{"hidden": 4, "lr": 1e-3, **values})


def equations(system: BeganSystem, batch, z: torch.Tensor, k: float):
    """Compute the losses, and the gradients of each network, by the equations."""
    d, g = system.discriminator, system.generator
    fake = g(z)
    l_real, l_fake = (batch.images - d(batch.images)).abs().mean(), (fake - d(fake)).abs().mean()
    loss_d = l_real - k * l_fake
    gradients = {
        "generator": torch.autograd.grad(l_fake, list(g.parameters()), retain_graph=True),
        "discriminator": torch.autograd.grad(loss_d, list(d.parameters())),
    }
    values = {"l_real": l_real, "l_fake": l_fake, "loss_d": loss_d, "loss_g": l_fake}
    return {name: value.item() for name, value in values.items()}, gradients


@MODES
@OPTIONS
def test_step_is_the_equations_with_adam(fused, options):
    config = tiny(fused=fused, gamma=0.8, lambda_k=0.5, lr=0.01, beta1=0.7, **options)
    system = build(config, "cpu")
    system.k.fill_(0.4)
    for step in range(1, 4):
        batch, k = batch_for(system, step), system.k.item()
        torch.manual_seed(step)
        wanted, gradients = equations(system, batch, torch.rand(4, 4) * 2 - 1, k)
        before = copy.deepcopy({name: list(net.parameters()) for name, net in system.networks().items()})
        moments = copy.deepcopy({name: opt.state_dict()["state"] for name, opt in system.optimisers.items()})
        (losses,) = run_steps(system, 1, first=step)
        assert {name: losses[name] for name in wanted} == pytest.approx(wanted, rel=1e-4)
        for name, network in system.networks().items():
            for index, after in enumerate(network.parameters()):
                old = moments[name].get(index, {"exp_avg": 0, "exp_avg_sq": 0})
                gradient = gradients[name][index]
                mean = (0.7 * old["exp_avg"] + 0.3 * gradient) / (1 - 0.7**step)
                square = (0.999 * old["exp_avg_sq"] + 0.001 * gradient**2) / (1 - 0.999**step)
                change = -0.01 * mean / (square.sqrt() + 1e-8)
                # where a gradient is nearly zero, Adam's first steps magnify rounding
                sure = gradient.abs() > 1e-5
                torch.testing.assert_close((after - before[name][index])[sure], change[sure], rtol=2e-2, atol=1e-5)
        balance = config.gamma * wanted["l_real"] - wanted["l_fake"]
        assert losses["k"] == pytest.approx(min(1.0, max(0.0, k + 0.5 * balance)), abs=1e-5)
        assert losses["k"] == pytest.approx(system.k.item())
        assert losses["measure"] == pytest.approx(wanted["l_real"] + abs(balance), rel=1e-4)


@OPTIONS
def test_fused_and_eager_agree_over_50_steps(options):
    runs = [run_steps(build(tiny(fused=fused, **options), "cpu"), 50) for fused in (True, False)]
    assert worst(*runs) < 1e-4


@OPTIONS
def test_one_pass_is_exact_where_fp32_is_chaotic(options, monkeypatch):
    """With a high k, training magnifies rounding, so the algebra is compared in float64, on the reference operators."""
    always(monkeypatch, "reference", "resize_conv_act", "linear", "l1_autoencoder_loss", "began_balance")
    runs = []
    for fused in (True, False):
        system = build(tiny(fused=fused, gamma=1.0, lambda_k=0.3, **options), "cpu")
        for network in (*system.networks().values(), system.ema):
            network.double()
        system.k, system.no_content = system.k.double(), system.no_content.double()
        losses = []
        for step in range(50):
            batch = batch_for(system, step)
            batch.images = batch.images.double()
            torch.manual_seed(step)
            z = torch.rand(4, 4, dtype=torch.float64) * 2 - 1
            monkeypatch.setattr(system, "generate", lambda count, z=z, system=system: system.generator(z))
            losses.append({name: value.item() for name, value in system.step(batch).items()})
        runs.append(losses)
    assert max(step["k"] for step in runs[0]) > 0.3
    assert worst(*runs) < 1e-6


def test_k_stays_between_0_and_1():
    assert run_steps(build(tiny(gamma=1.0, lambda_k=1000.0), "cpu"), 3)[-1]["k"] in (0, 1)
    assert run_steps(build(tiny(gamma=0.0, lambda_k=1000.0), "cpu"), 3)[-1]["k"] == 0


@MODES
def test_a_step_never_reads_from_the_device(fused, monkeypatch):
    assert_never_waits(build(tiny(fused=fused), "cpu"), monkeypatch)


def test_moving_average_follows_the_generator():
    assert_average_follows(build(tiny(), "cpu"))


@MODES
def test_resume_is_exact(fused, tmp_path):
    assert_resumes_exactly(tiny(fused=fused, gamma=0.9, lambda_k=0.1), tmp_path)


@MODES
def test_bf16_trains(fused):
    system = build(tiny(fused=fused, precision="bf16"), "cpu")
    batch = batch_for(system, 0)
    losses = [system.step(batch) for _ in range(20)]
    assert all(value.dtype == torch.float32 and value.isfinite() for value in losses[-1].values())
    assert losses[-1]["l_real"] < losses[0]["l_real"]
    assert all(p.dtype == torch.float32 for p in system.generator.parameters())


@pytest.mark.parametrize("channels", [1, 3])
@OPTIONS
def test_grey_and_colour_and_the_sample_rows(channels, options):
    system = build(tiny(fused=True, channels=channels, **options), "cpu")
    run_steps(system, 2)
    batch, state = batch_for(system, 0), torch.get_rng_state()
    rows = system.sample(batch)
    wanted = ["generated", "average", "interpolation", "D(generated)", "real", "D(real)"]
    assert list(rows) == wanted
    assert all(row.shape == (4, channels, 16, 16) and row.abs().max() <= 1 for row in rows.values())
    assert torch.equal(rows["interpolation"][0], rows["average"][0])
    torch.testing.assert_close(rows["interpolation"][-1], rows["average"][-1])
    assert all(torch.equal(row, rows[label]) for label, row in system.sample(batch).items())
    assert torch.equal(torch.get_rng_state(), state), "samples took random numbers from the training"


def test_without_an_average_there_is_no_row_of_it():
    system = build(tiny(ema=0.0), "cpu")
    run_steps(system, 2)
    assert "average" not in system.sample(batch_for(system, 0))
    pairs = zip(system.ema.parameters(), system.generator.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_generator_written_out():
    g = BeganGenerator(16, 3, 2, hidden=5, fused=False)
    initialise(g, 0)
    z, w = torch.rand(4, 5) * 2 - 1, dict(g.named_parameters())

    def conv(x, name):
        return F.conv2d(x, w[f"decoder.{name}.weight"], w[f"decoder.{name}.bias"], padding=1)

    x = F.linear(z, w["decode.weight"], w["decode.bias"]).view(4, 8, 8, 3).permute(0, 3, 1, 2)
    x = F.elu(conv(F.elu(conv(x, "blocks.0")), "blocks.1"))
    x = F.interpolate(x, scale_factor=2, mode="nearest")
    x = F.elu(conv(F.elu(conv(x, "blocks.2")), "blocks.3"))
    torch.testing.assert_close(g(z), conv(x, "last"))


def test_generator_is_the_decoder_of_the_discriminator_with_other_weights():
    system = build(tiny(), "cpu")
    d, g = system.discriminator.state_dict(), system.generator.state_dict()
    of_d = {name: tensor for name, tensor in d.items() if name.startswith("deco")}
    assert {name: tensor.shape for name, tensor in of_d.items()} == {name: tensor.shape for name, tensor in g.items()}
    assert not any(torch.equal(tensor, g[name]) for name, tensor in of_d.items() if name.endswith("weight"))


@pytest.mark.parametrize("fused", [False, True])
def test_a_transposed_layer_is_the_transposed_convolution_and_scales_the_gradients_of_its_parameters(fused):
    layer = Conv(3, 2, kernel_size=4, stride=2, transposed=True, activation="relu", fused=fused)
    x = torch.randn(4, 3, 5, 5, requires_grad=True)
    initialise(layer, 0)
    upstream, scale = torch.randn(4, 2, 10, 10), torch.tensor([1.0, -0.5, 0.0, 2.0])
    plain = torch.nn.ConvTranspose2d(3, 2, 4, stride=2, padding=1)
    plain.load_state_dict(layer.state_dict())
    wanted = [torch.autograd.grad((plain(x[i : i + 1]).relu() * upstream[i]).sum(), [x, *plain.parameters()])
              for i in range(4)]  # fmt: skip
    y = layer(x, grad_scale=scale)
    torch.testing.assert_close(y, plain(x).relu())
    found = torch.autograd.grad((y * upstream).sum(), [x, *layer.parameters()])
    torch.testing.assert_close(found[0], sum(one[0] for one in wanted))
    for index in (1, 2):
        torch.testing.assert_close(found[index], sum(s * one[index] for s, one in zip(scale, wanted, strict=True)))


def test_start_values_keep_the_scale_of_a_signal():
    for activation in ("elu", "relu"):
        for upsample in ("nearest", "deconv"):
            d = Autoencoder(32, 16, 3, hidden=32, activation=activation, upsample=upsample, fused=False)
            initialise(d, 0)
            assert 0.1 < d(torch.randn(8, 3, 32, 32)).std() < 10, (activation, upsample)


@pytest.mark.parametrize("output", ["tanh", "sigmoid"])
def test_outputs_reach_both_ends_of_the_range(output):
    g = BeganGenerator(16, 2, 1, hidden=3, output=output, fused=False)
    initialise(g, 0)
    with torch.no_grad():
        g.decoder.last.bias.fill_(100)
        assert g(torch.rand(2, 3)).min() == 1
        g.decoder.last.bias.fill_(-100)
        assert g(torch.rand(2, 3)).max() == -1


def test_average_downsampling_is_the_mean_after_each_level():
    d = Autoencoder(16, 2, 3, hidden=3, downsample="average", fused=False)
    initialise(d, 0)
    x = torch.randn(2, 3, 16, 16)
    level = d.encoder.blocks[1](d.encoder.blocks[0](d.encoder.first(x)))
    halved = F.interpolate(level, scale_factor=0.5, mode="bilinear")  # between two pixels: their mean
    wanted = d.encoder.blocks[3](d.encoder.blocks[2](halved))
    torch.testing.assert_close(d.encoder(x), wanted)


@MODES
def test_128_pixels(fused):
    system = build(tiny(fused=fused, resolution=128, batch_size=1, filters=1), "cpu")
    assert run_steps(system, 1)[0]["l_real"] > 0


def test_load_trained_gives_the_average_or_the_last_weights(tmp_path):
    system = build(tiny(ema=0.5), "cpu")
    run_steps(system, 3)
    checkpoint.save(tmp_path, 3, system.weights(), {}, system.config)
    for ema, network in ((True, system.ema), (False, system.generator)):
        model = load_trained(tmp_path, fused=False, ema=ema, kind=GENERATE).module
        z = model.noise(5, torch.Generator().manual_seed(1))
        assert z.shape == (5, 4) and z.dtype == torch.float32
        assert torch.equal(model(z), network(z).clamp(-1, 1).detach())
        assert torch.equal(model.noise(7, torch.Generator().manual_seed(1))[:5], z)
    many = model.noise(2000, torch.Generator().manual_seed(0))
    assert many.min() < -0.99 and many.max() > 0.99 and many.abs().max() <= 1
    assert many.std().item() == pytest.approx(3**-0.5, rel=0.03)


def test_paper_preset():
    config = resolve(["--eager", "--system", "began", "--preset", "paper"])[0]
    assert (config.resolution, config.lambda_k, config.gamma, config.beta1) == (64, 0.001, 0.5, 0.9)
    rates = [learning_rate(config, step) for step in (1, 2000, 2001, 4001)]
    assert rates == pytest.approx([1e-4, 1e-4, 0.9e-4, 0.81e-4])
    assert resolve(["--eager", "--system", "began", "--preset", "paper", "--resolution", "128"])[0].resolution == 128


@pytest.mark.parametrize(
    ("values", "named"), [({"gamma": 1.5}, "--gamma"), ({"hidden": 0}, "--hidden"), ({"beta1": 1.0}, "--beta1")]
)
def test_values_that_cannot_train(values, named):
    with pytest.raises(InputError, match=named):
        tiny(**values).check()
