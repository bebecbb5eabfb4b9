"""The step of cyclegan against its equations in plain torch; its pools and its options."""

import copy
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from engine.checkpoint import save
from engine.errors import InputError
from engine.inference.trained import load_trained
from engine.networks import layers
from engine.networks.patchgan import PatchDiscriminator
from engine.networks.resnet import ResnetGenerator
from engine.systems.cyclegan import CycleganSystem
from engine.systems.kinds import REFINE
from engine.systems.registry import build
from engine.training.metrics import LossMeter
from engine.training.resolve import resolve
from engine.verification.training_steps import restore, saved_state
from tests.support.operator_choice import always
from tests.support.tape import NoWaiting
from tests.support.training_fakes import assert_same, batch_of, tiny_config
from tests.support.unpaired_runs import assert_recorded_steps_are_the_plain_steps, assert_resumes_exactly, train

MODES = pytest.mark.parametrize("mode", ["--eager", "--fused"])
OWN = {"--blocks": "2", "--halvings": "2", "--patch-layers": "2", "--pool": "0", "--lr": "0.001"}
PAPER, FAST = ("--padding", "reflect", "--upsample", "transposed"), ("--padding", "zero", "--upsample", "nearest")
FORMS = pytest.mark.parametrize("form", [PAPER, FAST], ids=["paper", "fast"])


def tiny(*flags: str, mode: str = "--eager"):
    own = [word for pair in OWN.items() if pair[0] not in flags for word in pair]
    return tiny_config(*own, *flags, mode=mode, system="cyclegan")


# the networks, written with torch.nn.functional


def plain_generator(weights: dict[str, torch.Tensor], x: torch.Tensor, halvings: int, form: tuple[str, ...]):
    """Run CycleGAN's generator of two blocks by torch.nn.functional."""

    def conv(x: torch.Tensor, name: str, pad: int, reflect: bool, stride: int = 1) -> torch.Tensor:
        x = F.pad(x, (pad,) * 4, mode="reflect" if reflect else "constant")
        return F.conv2d(x, weights[name + ".weight"], weights[name + ".bias"], stride)

    def norm(x: torch.Tensor) -> torch.Tensor:
        mean, var = x.mean((2, 3), keepdim=True), x.var((2, 3), unbiased=False, keepdim=True)
        return (x - mean) / (var + 1e-5).sqrt()

    x = F.relu(norm(conv(x, "first", 3, True)))
    for level in range(halvings):
        x = F.relu(norm(conv(x, f"down.{level}", 1, False, stride=2)))
    for block in range(2):
        inner = F.relu(norm(conv(x, f"blocks.{block}.first", 1, form == PAPER)))
        x = x + norm(conv(inner, f"blocks.{block}.second", 1, form == PAPER))
    for level in range(halvings):
        weight, bias = weights[f"up.{level}.weight"], weights[f"up.{level}.bias"]
        if form == PAPER:
            x = F.conv_transpose2d(x, weight, bias, stride=2, padding=1, output_padding=1)
        else:
            x = F.conv2d(x.repeat_interleave(2, 2).repeat_interleave(2, 3), weight, bias, padding=1)
        x = F.relu(norm(x))
    return torch.tanh(conv(x, "last", 3, True))


@MODES
@FORMS
@pytest.mark.parametrize("halvings", [0, 1, 2])
def test_the_generator_is_the_resnet_of_the_paper(mode: str, form: tuple[str, ...], halvings: int) -> None:
    system = build(tiny(*form, "--filters", "4", "--halvings", str(halvings), mode=mode), "cpu")
    x = batch_of(system.config).images
    expected = plain_generator(system.generator.state_dict(), x, halvings, form)
    torch.testing.assert_close(system.generator(x), expected, rtol=1e-4, atol=1e-4)


def test_the_paper_size() -> None:
    with torch.device("meta"):
        generator, judge = ResnetGenerator(64, 3, fused=False), PatchDiscriminator(64, 3)
    assert layers.parameter_count(generator) == 11_378_179  # resnet_9blocks of the authors' code
    assert layers.parameter_count(judge) == 2_764_737  # basic, n_layers 3, of the authors' code
    assert judge(torch.empty(1, 3, 256, 256, device="meta")).shape == (1, 1, 30, 30)


@pytest.mark.parametrize(("depth", "patch"), [(3, 70), (2, 34)])
def test_a_patch_sees_so_many_pixels(depth: int, patch: int) -> None:
    """The convolutions run without the normalisation, which reads the whole image."""
    judge = PatchDiscriminator(2, 1, layers=depth)
    x = torch.zeros(1, 1, 128, 128, requires_grad=True)
    y = x
    for layer in [*judge.blocks, judge.last]:
        y = F.conv2d(y, torch.ones_like(layer.weight), stride=layer.stride, padding=1)
    y[0, 0, y.shape[2] // 2, y.shape[3] // 2].backward()
    seen = x.grad[0, 0].abs().sum(0).nonzero()
    assert seen.max() - seen.min() + 1 == patch


def test_start_values_are_normal_and_a_network_has_its_own() -> None:
    system = build(tiny("--filters", "8", *FAST), "cpu")
    weights = system.generator.blocks[0].first.weight
    assert weights.std().item() == pytest.approx(0.02, rel=0.1) and weights.mean().abs() < 0.002
    assert (system.generator.last.bias == 0).all()
    assert not torch.equal(weights, system.back.blocks[0].first.weight)


# the equations


def gan_losses(system: CycleganSystem, kind: str, scores: torch.Tensor, wanted: int) -> torch.Tensor:
    if kind == "lsgan":
        return ((scores - wanted) ** 2).mean()
    probability = torch.sigmoid(scores)
    return -(probability if wanted else 1 - probability).log().mean()


@MODES
@pytest.mark.parametrize("kind", ["lsgan", "log"])
@pytest.mark.parametrize("identity", ["0.5", "0"])
def test_a_step_is_the_equations_with_adam(mode: str, kind: str, identity: str) -> None:
    flags = ("--adversarial", kind, "--identity", identity, "--lambda-cycle", "7", *FAST, "--filters", "4")
    system = build(tiny(*flags, mode=mode), "cpu")
    train(system, 0, 1)
    batch = batch_of(system.config, 5)
    x, y = batch.more[0].images, batch.images
    g, f, d_y, d_x = (copy.deepcopy(network) for network in system.networks().values())
    l_gan, l_back = gan_losses(system, kind, d_y(g(x)), 1), gan_losses(system, kind, d_x(f(y)), 1)
    cycle = (f(g(x)) - x).abs().mean() + (g(f(y)) - y).abs().mean()
    loss = l_gan + l_back + 7 * cycle
    wanted = {"l_gan": l_gan, "l_gan_back": l_back, "l_cycle": cycle}
    if identity != "0":
        wanted["l_identity"] = (g(y) - y).abs().mean() + (f(x) - x).abs().mean()
        loss = loss + 7 * 0.5 * wanted["l_identity"]
    of_d = {
        name: (gan_losses(system, kind, d(real), 1) + gan_losses(system, kind, d(made.detach()), 0)) / 2
        for name, d, real, made in (("l_discriminator", d_y, y, g(x)), ("l_back_discriminator", d_x, x, f(y)))
    }
    wanted |= {"l_generators": loss, **of_d, "score_real": d_y(y).mean(), "score_fake": d_y(g(x)).mean()}
    wanted |= {"change": (g(x) - x).abs().mean(), "tone_change": (g(x) - x).mean((2, 3)).abs().mean()}
    generators = [*g.parameters(), *f.parameters()]
    gradients = dict(zip(("generators", "discriminators"), (
        torch.autograd.grad(loss, generators),
        torch.autograd.grad(sum(of_d.values()), [*d_y.parameters(), *d_x.parameters()]),
    ), strict=True))  # fmt: skip
    before = {name: [p.detach().clone() for p in o.param_groups[0]["params"]] for name, o in system.optimisers.items()}
    moments = copy.deepcopy({name: o.state_dict()["state"] for name, o in system.optimisers.items()})
    losses = system.step(batch)
    assert {"l_identity"} & set(losses) == {"l_identity"} & set(wanted)
    for name, value in wanted.items():
        assert losses[name].item() == pytest.approx(value.item(), rel=1e-3, abs=1e-5), name
    for name, optimiser in system.optimisers.items():
        for index, after in enumerate(optimiser.param_groups[0]["params"]):
            old, gradient = moments[name][index], gradients[name][index]
            mean = (0.5 * old["exp_avg"] + 0.5 * gradient) / (1 - 0.5**2)
            square = (0.999 * old["exp_avg_sq"] + 0.001 * gradient**2) / (1 - 0.999**2)
            change = -0.001 * mean / (square.sqrt() + 1e-8)
            # the gradient of a bias before a normalisation is mere rounding
            sure = gradient.abs() > 1e-4
            torch.testing.assert_close((after - before[name][index])[sure], change[sure], rtol=2e-2, atol=1e-5)


# fused and eager give the same numbers


@FORMS
def test_fused_and_eager_agree_at_first(form: tuple[str, ...]) -> None:
    """Only at first: Adam turns the rounding of tiny gradients into whole steps, so float32 runs drift apart."""
    runs = [train(build(tiny(*form, "--lr", "0.00001", mode=mode), "cpu"), 0, 5) for mode in ("--fused", "--eager")]
    for a, b in zip(*runs, strict=True):
        assert a == pytest.approx(b, rel=1e-3, abs=1e-4)


@FORMS
def test_the_algebra_is_the_same_over_50_steps(form: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Compared in float64, on the reference operators, each step from the same state: Adam lets rounding grow."""
    always(monkeypatch, "reference", "resize_conv_act", "norm_act", "l1_autoencoder_loss")
    monkeypatch.setattr(CycleganSystem, "_run", lambda self, network, images: network(images))
    fused, eager = (
        build(tiny(*form, "--pool", "8", "--blocks", "1", "--batch-size", "2", mode=mode), "cpu")
        for mode in ("--fused", "--eager")
    )
    for network in (*fused.networks().values(), fused.ema, *eager.networks().values(), eager.ema):
        network.double()
    for step in range(50):
        batch = batch_of(fused.config, step)
        batch.images = batch.images.double()
        batch.more[0].images = batch.more[0].images.double()
        losses = []
        for system in (fused, eager):
            torch.manual_seed(step)
            losses.append({key: value.item() for key, value in system.step(batch).items()})
        assert losses[0] == pytest.approx(losses[1], rel=1e-6)
        restore(eager, saved_state(fused))
    assert losses[0]["pool_fill"] == 1


def test_both_load_each_others_state() -> None:
    first, second = (build(tiny(*FAST, "--lr", "0.0001", mode=mode), "cpu") for mode in ("--fused", "--eager"))
    assert_same(first.weights(), second.weights())
    train(first, 0, 3)
    restore(second, saved_state(first))
    assert train(second, 3, 4)[0] == pytest.approx(train(first, 3, 4)[0], rel=1e-3, abs=1e-4)


# pools, recording, resuming


def test_discriminators_see_earlier_results() -> None:
    system = build(tiny(*FAST, "--pool", "4"), "cpu")
    shown = []
    system.discriminator.register_forward_hook(lambda _, inputs, __: shown.append(inputs[0].detach().clone()))
    torch.manual_seed(0)
    made, old, fills = [], 0, []
    for number in range(20):
        fills.append(system.step(batch_of(system.config, number))["pool_fill"].item())
        fresh, judged = (
            shown[-2],
            shown[-1][4:],
        )  # shown in G's update, then in D's: after four photos, what the pool returned
        assert torch.equal(shown[-1][:4], batch_of(system.config, number).images)
        for image, new in zip(judged, fresh, strict=True):
            if not torch.equal(image, new):
                assert any(torch.equal(image, one) for one in made)
                old += 1
        made += list(fresh)
    assert fills == [1.0] * 20 and 25 < old < 55


@MODES
@FORMS
def test_recorded_steps_are_the_plain_steps(mode: str, form: tuple[str, ...]) -> None:
    config = tiny(*form, "--pool", "6", mode=mode)
    assert_recorded_steps_are_the_plain_steps(config, 6)


@MODES
def test_a_resumed_run_goes_on_exactly(mode: str) -> None:
    config = tiny(*FAST, "--pool", "6", mode=mode)
    assert_resumes_exactly(config, 3, 6)


@MODES
@FORMS
def test_a_step_never_reads_from_the_device(mode: str, form: tuple[str, ...], monkeypatch) -> None:
    config = tiny(*form, "--pool", "6", mode=mode)
    system, meter = build(config, "cpu"), LossMeter(torch.device("cpu"))
    # weights that nobody trains are kept packed on the CPU alone, which may look at them
    monkeypatch.setattr("engine.kernels.resize_conv_act.packed_weights.keep", lambda weight: None)

    def waits(*_: object) -> None:
        raise AssertionError("the step waits for the device")

    for name in ("item", "__float__", "__bool__", "__int__", "tolist", "numpy"):
        monkeypatch.setattr(torch.Tensor, name, waits)
    for number in range(1, 3):
        batch = batch_of(config, number)
        with NoWaiting():
            meter.add(number, system.step(batch))


# options


@MODES
@pytest.mark.parametrize("channels", ["1", "3"])
def test_grey_and_colour(mode: str, channels: str) -> None:
    system = build(tiny("--channels", channels, *FAST, mode=mode), "cpu")
    batch = batch_of(system.config)
    assert all(value.isfinite() for value in system.step(batch).values())
    rows = system.sample(batch)
    assert list(rows) == ["synthetic", "as real", "and back", "real", "as synthetic", "and back again"]
    assert all(row.shape == (4, int(channels), 16, 16) and row.abs().max() <= 1 for row in rows.values())


@MODES
@FORMS
def test_bf16_trains(mode: str, form: tuple[str, ...]) -> None:
    system = build(tiny("--precision", "bf16", *form, mode=mode), "cpu")
    batch = batch_of(system.config)
    losses = [system.step(batch) for _ in range(15)]
    assert all(value.dtype == torch.float32 and value.isfinite() for value in losses[-1].values())
    assert losses[-1]["l_generators"] < losses[0]["l_generators"]
    assert all(p.dtype == torch.float32 for p in system.generator.parameters())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--pool", "3"), "--pool must be 0 or at least --batch-size"),
        (("--patch-layers", "3"), "--patch-layers 3 does not fit 16x16 images; choose 1 to 2"),
        (("--patch-layers", "0"), "choose 1 to 2"),
        (("--blocks", "0"), "--blocks must be at least 1"),
        (("--halvings", "4"), "--halvings must be at most 3"),
        (("--pool", "-1"), "--pool must not be negative"),
        (("--lambda-cycle", "-1"), "--lambda-cycle must not be negative"),
    ],
)
def test_bad_options_are_refused_in_one_line(flags: tuple[str, ...], message: str) -> None:
    with pytest.raises(InputError, match=message) as refused:
        tiny(*flags)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("resolution", ["16", "32", "64"])
def test_the_most_layers_that_fit_train(resolution: str) -> None:
    most = {"16": "2", "32": "3", "64": "4"}[resolution]
    system = build(tiny(*FAST, "--resolution", resolution, "--patch-layers", most, "--batch-size", "1"), "cpu")
    assert system.step(batch_of(system.config))["l_discriminator"].isfinite()
    with pytest.raises(InputError, match=f"choose 1 to {most}"):
        tiny(*FAST, "--resolution", resolution, "--patch-layers", str(int(most) + 1))


def test_presets_are_complete() -> None:
    paper = resolve(["--eager", "--system", "cyclegan", "--preset", "paper"])[0]
    assert (paper.blocks, paper.halvings, paper.patch_layers, paper.pool, paper.lambda_cycle) == (9, 2, 3, 50, 10)
    assert (paper.padding, paper.upsample, paper.lr, paper.batch_size) == ("reflect", "transposed", 2e-4, 1)
    assert paper.lr_schedule == "linear" and paper.adversarial == "lsgan"
    assert resolve(["--eager", "--system", "cyclegan"])[0].preset == "quick"


def test_what_a_step_needs() -> None:
    assert [(n.samples, n.look) for n in CycleganSystem.needs(tiny())] == [(4, "photo"), (4, "game")]


@MODES
def test_a_trained_generator_is_its_average_or_its_last_weights(tmp_path: Path, mode: str) -> None:
    config = tiny(*FAST, "--ema", "0.5", mode=mode)
    system = build(config, "cpu")
    train(system, 0, 2)
    save(tmp_path, 2, system.weights(), system.state_dict(), config)
    images = batch_of(config, 9).images
    for ema, network in ((True, system.ema), (False, system.generator)):
        trained = load_trained(tmp_path, fused=config.fused, ema=ema, kind=REFINE)
        module, loaded = trained.module, trained.config
        assert not module.needs_landmarks and loaded.system == "cyclegan"
        assert torch.equal(module(images), network(images).detach())


def test_a_dry_run_counts_every_network() -> None:
    system = build(tiny(), "meta")
    for network, inputs, count in system.passes(fused=True):
        assert count >= 1 and network(*inputs) is not None
    assert {id(network) for network, *_ in system.passes(True)} == {id(n) for n in system.networks().values()}
