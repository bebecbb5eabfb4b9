"""The step of simgan against its equations in plain torch; its history, its order of training, and its options."""

import copy
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from engine.checkpoint import save
from engine.errors import InputError
from engine.inference.trained import load_trained
from engine.networks.initialisation import initialise
from engine.networks.patchgan import REAL, REFINED, LocalDiscriminator, patch_accuracy, patch_loss
from engine.systems.kinds import REFINE
from engine.systems.registry import build
from engine.systems.simgan import SimganSystem
from engine.training.metrics import LossMeter
from engine.training.resolve import resolve
from engine.verification.training_steps import restore, saved_state
from tests.support.tape import NoWaiting
from tests.support.training_fakes import assert_same, batch_of, tiny_config, worst
from tests.support.unpaired_runs import (
    assert_recorded_steps_are_the_plain_steps,
    assert_resumes_exactly,
    everything,
    train,
)

MODES = pytest.mark.parametrize("mode", ["--eager", "--fused"])
OWN = {"--pretrain-refiner": "0", "--pretrain-discriminator": "0", "--history": "16", "--lr": "0.001"}
CYCLE, PARTS = ("--cycle-weight", "0.7"), ("--part-weight", "0.3")
KINDS = pytest.mark.parametrize(
    "flags",
    [(), CYCLE, PARTS, (*CYCLE, *PARTS, "--reg", "features")],
    ids=["plain", "cycle", "parts", "everything"],
)


def tiny(*flags: str, mode: str = "--eager"):
    own = [word for pair in OWN.items() if pair[0] not in flags for word in pair]
    return tiny_config(*own, *flags, mode=mode, system="simgan")


# the equations


class Plain:
    """SimGAN as in the paper, on copies of a system's weights, by torch.nn.functional and torch.optim.Adam."""

    def __init__(self, system: SimganSystem):
        self.weights = {name: tensor.detach().clone() for name, tensor in system.weights().items()}
        self.config = system.config
        self.adam = {}
        for network in system.networks():
            mine = [t.requires_grad_() for name, t in self.weights.items() if name.startswith(network + ".")]
            self.adam[network] = torch.optim.Adam(mine, lr=system.config.lr)

    def conv(self, x: torch.Tensor, name: str, stride: int = 1) -> torch.Tensor:
        weight = self.weights[name + ".weight"]
        return F.conv2d(x, weight, self.weights[name + ".bias"], stride, padding=weight.shape[-1] // 2)

    def same(self, x: torch.Tensor, name: str) -> torch.Tensor:
        """A 3x3 convolution of R, on images with a border of zeros or reflected."""
        mode = {"zero": "constant", "reflect": "reflect"}[self.config.padding]
        return F.conv2d(F.pad(x, (1, 1, 1, 1), mode), self.weights[name + ".weight"], self.weights[name + ".bias"])

    def refine(self, x: torch.Tensor, name: str = "generator") -> torch.Tensor:
        y = F.relu(self.same(x, f"{name}.first"))
        for block in range(self.config.blocks):
            inner = F.relu(self.same(y, f"{name}.blocks.{block}.first"))
            y = F.relu(y + self.same(inner, f"{name}.blocks.{block}.second"))
        return torch.tanh(self.conv(y, f"{name}.last"))

    def refined_probability(self, x: torch.Tensor, name: str = "discriminator") -> torch.Tensor:
        """D of every patch: the probability that it is refined, (B, h, w)."""
        y = F.relu(self.conv(F.relu(self.conv(x, f"{name}.first", 2)), f"{name}.second", 2))
        y = F.relu(self.conv(F.max_pool2d(y, 3, 1, 1), f"{name}.third"))
        logits = self.conv(F.relu(self.conv(y, f"{name}.mix")), f"{name}.last")
        real, refined = logits[:, 0].exp(), logits[:, 1].exp()
        return refined / (real + refined)

    def step(self, network: str, loss: torch.Tensor) -> None:
        names = [name for name in self.weights if name.startswith(network + ".")]
        gradients = torch.autograd.grad(loss, [self.weights[name] for name in names], retain_graph=True)
        for name, gradient in zip(names, gradients, strict=True):
            self.weights[name].grad = gradient

    def apply(self, *networks: str) -> None:
        for network in networks:
            self.adam[network].step()

    def realism(self, x: torch.Tensor, refiner: str, judge: str) -> torch.Tensor:
        return -(1 - self.refined_probability(self.refine(x, refiner), judge)).log().mean()

    def judged(self, x: torch.Tensor, y: torch.Tensor, refiner: str, judge: str) -> torch.Tensor:
        refined = self.refine(x, refiner).detach()
        of_refined, of_real = self.refined_probability(refined, judge), self.refined_probability(y, judge)
        return -of_refined.log().mean() - (1 - of_real).log().mean()


def norm_1_over_n(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """||a - b||_1 / n of each pixel, averaged over pixels and images."""
    return ((a - b).abs().sum(1) / a.shape[1]).mean()


@MODES
@pytest.mark.parametrize("updates, padding", [((2, 1), "zero"), ((1, 2), "reflect")])
def test_steps_are_the_equations_with_adam(mode: str, updates: tuple[int, int], padding: str) -> None:
    counts = ("--refiner-steps", str(updates[0]), "--discriminator-steps", str(updates[1]), "--padding", padding)
    config = tiny("--history", "0", "--lambda-reg", "0.4", "--filters", "8", *counts, mode=mode)
    system = build(config, "cpu")
    plain = Plain(system)
    n = config.batch_size
    for number in range(4):
        batch = batch_of(config, number)
        synthetic, real = batch.more[0].images.split(n), batch.images.split(n)
        assert (len(synthetic), len(real)) == (sum(updates), updates[1])
        wanted = {}
        for x in synthetic[: updates[0]]:
            wanted["l_realism"] = plain.realism(x, "generator", "discriminator")
            wanted["l_regularisation"] = norm_1_over_n(x, plain.refine(x))
            wanted["l_refiner"] = wanted["l_realism"] + 0.4 * wanted["l_regularisation"]
            wanted["tone_change"] = (plain.refine(x) - x).mean((2, 3)).abs().mean()
            plain.step("generator", wanted["l_refiner"])
            plain.apply("generator")
        for x, y in zip(synthetic[updates[0] :], real, strict=True):
            wanted["l_discriminator"] = plain.judged(x, y, "generator", "discriminator")
            wanted["accuracy_real"] = (plain.refined_probability(y) < 0.5).float().mean()
            wanted["accuracy_refined"] = (plain.refined_probability(plain.refine(x)) >= 0.5).float().mean()
            plain.step("discriminator", wanted["l_discriminator"])
            plain.apply("discriminator")
        losses = system.step(batch)
        for name, value in wanted.items():
            assert losses[name].item() == pytest.approx(value.item(), rel=1e-3), name
    for network in system.networks():
        for name, tensor in system.weights().items():
            if name.startswith(network):
                torch.testing.assert_close(tensor, plain.weights[name], rtol=1e-2, atol=2e-4)


@MODES
def test_the_cycle_is_two_refiners_and_two_discriminators(mode: str) -> None:
    config = tiny("--history", "0", "--lambda-reg", "0.4", "--refiner-steps", "1", *CYCLE, mode=mode)
    system = build(config, "cpu")
    plain, batch, n = Plain(system), batch_of(config), config.batch_size
    (x, x2), (y, y2) = batch.more[0].images.split(n), batch.images.split(n)
    there, back = plain.refine(x), plain.refine(y, "back")
    cycle = norm_1_over_n(x, plain.refine(there, "back")) + norm_1_over_n(y, plain.refine(back))
    of_forth = plain.realism(x, "generator", "discriminator") + 0.4 * norm_1_over_n(x, there)
    of_back = plain.realism(y, "back", "back_discriminator") + 0.4 * norm_1_over_n(y, back)
    loss = of_forth + of_back + 0.7 * cycle
    for network in ("generator", "back"):
        plain.step(network, loss)
    plain.apply("generator", "back")
    wanted = {"l_refiner": loss, "l_cycle": cycle}
    wanted["l_discriminator"] = plain.judged(x2, y2, "generator", "discriminator")
    wanted["l_back_discriminator"] = plain.judged(y2, x2, "back", "back_discriminator")
    losses = system.step(batch)
    for name, value in wanted.items():
        assert losses[name].item() == pytest.approx(value.item(), rel=1e-4), name
    for name, tensor in system.weights().items():
        if name.startswith(("generator", "back.")):
            torch.testing.assert_close(tensor, plain.weights[name], rtol=1e-3, atol=1e-5)


def test_each_patch_has_its_own_two_classes() -> None:
    """Logits that are right in one corner and wrong elsewhere show that positions and classes do not mix."""
    logits = torch.zeros(2, 2, 3, 3)
    logits[:, REAL, 0, 0], logits[:, REFINED, 0, 1:] = 10, 10
    logits[1, REAL, 2, 2] = 10
    assert patch_accuracy(logits, REFINED) == pytest.approx(4 / 18)
    expected = F.cross_entropy(logits.permute(0, 2, 3, 1).reshape(-1, 2), torch.full((18,), REFINED))
    assert patch_loss(logits, REFINED).item() == pytest.approx(expected.item())
    assert patch_loss(logits.bfloat16(), REAL).dtype == torch.float32


def test_the_logits_are_linear_and_local() -> None:
    judge = LocalDiscriminator(16, 3, fused=False)
    initialise(judge, 0)
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    logits = judge(images)
    assert logits.shape == (2, 2, 16, 16) and logits.min() < 0
    logits[0, 1, 8, 8].backward()
    seen = images.grad.abs().sum((0, 1)).nonzero()
    assert images.grad[1].abs().sum() == 0
    assert seen.min() >= 32 - 12 and seen.max() <= 32 + 12


# fused and eager give the same numbers


@KINDS
def test_fused_and_eager_agree(flags: tuple[str, ...]) -> None:
    """The losses alone: an accuracy jumps when rounding changes the class of one patch."""
    runs = []
    for mode in ("--fused", "--eager"):
        torch.manual_seed(0)
        losses = train(build(tiny("--lr", "0.0002", *flags, mode=mode), "cpu"), 0, 6 if flags else 50)
        runs.append([{k: v for k, v in step.items() if k.startswith("l_")} for step in losses])
    assert worst(*runs) < 1e-4


def test_both_load_each_others_state() -> None:
    first, second = (build(tiny(mode=mode), "cpu") for mode in ("--fused", "--eager"))
    assert_same(first.weights(), second.weights())
    train(first, 0, 3)
    restore(second, saved_state(first))
    torch.manual_seed(5)
    expected = train(first, 3, 5)
    torch.manual_seed(5)
    assert worst(train(second, 3, 5), expected) < 1e-4


# history


@MODES
def test_half_of_the_refined_images_are_old_ones(mode: str) -> None:
    system = build(tiny(mode=mode), "cpu")
    shown, made = [], []
    system.discriminator.register_forward_hook(lambda _, inputs, __: shown.append(inputs[0].detach().clone()))
    for number in range(8):
        fill = system.step(batch_of(system.config, number))["history_fill"]
        assert fill == min(1, (number + 1) * 2 / 16)
        refined = shown[-1][4:]  # D sees the photos first
        assert (shown[-1][:4] == batch_of(system.config, number).images).all()
        if number:
            for image in refined[2:]:
                assert min((image - old).abs().max() for old in made) < 1e-3
                assert min((image - new).abs().max() for new in refined[:2]) > 1e-3
        made += list(refined[:2])


# the order of training


def test_first_the_refiner_alone_then_the_discriminator_alone() -> None:
    own = ("--pretrain-refiner", "3", "--pretrain-discriminator", "2", "--lambda-reg", "0.4")
    config = tiny(*own, mode="--fused")
    system = build(config, "cpu")
    alone = Plain(system)
    for number in range(6):
        before = everything(system)
        losses = system.step(batch_of(config, number))
        moved = {name.split(".")[0] for name, t in system.weights().items() if (t != before["weights"][name]).any()}
        steps = {name: {int(s["step"]) for s in o.state.values()} for name, o in system.optimisers.items()}
        # the moving average still moves towards R while R waits
        assert (
            moved - {"ema"}
            == ({"generator"}, {"discriminator"}, {"generator", "discriminator"})[(number >= 3) + (number >= 5)]
        )
        assert steps["generator"] == {2 * min(number + 1, 3) + 2 * (number == 5)}
        assert steps["discriminator"] == {max(0, number - 2)}
        assert losses["history_fill"] == max(0, number - 2) * 2 / 16
        if number < 3:
            for x in batch_of(config, number).more[0].images.split(4)[:2]:
                alone.step("generator", 0.4 * norm_1_over_n(x, alone.refine(x)))
                alone.apply("generator")
            for name, tensor in system.generator.state_dict().items():
                torch.testing.assert_close(tensor, alone.weights["generator." + name], rtol=1e-3, atol=1e-5)
        else:
            assert ("generator" in moved) == (number == 5)


def test_a_waiting_network_keeps_its_moments() -> None:
    config = tiny("--pretrain-refiner", "1", "--pretrain-discriminator", "2")
    system = build(config, "cpu")
    train(system, 0, 1)
    before = copy.deepcopy(system.optimisers["generator"].state_dict()["state"])
    train(system, 1, 3)
    assert_same(system.optimisers["generator"].state_dict()["state"], before)
    train(system, 3, 4)
    after = system.optimisers["generator"].state_dict()["state"]
    assert any(not torch.equal(after[key]["exp_avg"], before[key]["exp_avg"]) for key in after)


def test_the_average_follows_the_refiner() -> None:
    system = build(tiny("--ema", "0.5"), "cpu")
    train(system, 0, 1)
    before = [p.clone() for p in system.ema.parameters()]
    train(system, 1, 2)
    weight = 1 - min(0.5, 3 / 12)
    for old, now, towards in zip(before, system.ema.parameters(), system.generator.parameters(), strict=True):
        torch.testing.assert_close(now, old + weight * (towards - old))


# recording and resuming


@KINDS
def test_recorded_steps_are_the_plain_steps(flags: tuple[str, ...]) -> None:
    """R and D begin to learn after the recording."""
    config = tiny("--pretrain-refiner", "4", "--pretrain-discriminator", "1", *flags, mode="--fused")
    assert_recorded_steps_are_the_plain_steps(config, 8)


@MODES
@KINDS
def test_a_resumed_run_goes_on_exactly(mode: str, flags: tuple[str, ...]) -> None:
    config = tiny("--pretrain-refiner", "2", "--pretrain-discriminator", "1", *flags, mode=mode)
    whole = assert_resumes_exactly(config, 4, 7)
    assert whole.directions[0].history.count > 0


@MODES
@KINDS
def test_a_step_never_reads_from_the_device(mode: str, flags: tuple[str, ...], monkeypatch) -> None:
    config = tiny("--pretrain-refiner", "1", *flags, mode=mode)
    system, meter = build(config, "cpu"), LossMeter(torch.device("cpu"))

    def waits(*_: object) -> None:
        raise AssertionError("the step waits for the device")

    # on a CPU a frozen layer keeps its packed weights: that reads memory of the host, not of a device
    monkeypatch.setattr("engine.kernels.resize_conv_act.packed_weights.keep", lambda weight: None)
    for name in ("item", "__float__", "__bool__", "__int__", "tolist", "numpy"):
        monkeypatch.setattr(torch.Tensor, name, waits)
    for number in range(1, 3):
        batch = batch_of(config, number)
        with NoWaiting():
            meter.add(number, system.step(batch))


# options


@MODES
@pytest.mark.parametrize(
    ("flags", "by_hand"),
    [
        (("--reg", "l1"), norm_1_over_n),
        (("--reg", "l2"), lambda a, b: ((a - b) ** 2).mean()),
        (("--reg", "l1", "--reg-channels", "mean"), lambda a, b: (a.mean(1) - b.mean(1)).abs().mean()),
        (("--reg", "l2", "--reg-channels", "mean"), lambda a, b: ((a.mean(1) - b.mean(1)) ** 2).mean()),
    ],
    ids=["l1", "l2", "l1 mean", "l2 mean"],
)
def test_measures_of_the_self_regularisation(mode: str, flags: tuple[str, ...], by_hand) -> None:
    config = tiny("--refiner-steps", "1", *flags, mode=mode)
    system, batch = build(config, "cpu"), batch_of(config)
    x = batch.more[0].images[:4]
    wanted = by_hand(x, Plain(system).refine(x)).item()
    assert system.step(batch)["l_regularisation"].item() == pytest.approx(wanted, rel=1e-4)


@MODES
def test_features_of_a_fixed_network_regularise(mode: str) -> None:
    config = tiny("--reg", "features", "--refiner-steps", "1", mode=mode)
    system, batch = build(config, "cpu"), batch_of(config)
    fixed = copy.deepcopy(system.features.state_dict())
    x = batch.more[0].images[:4]
    refined = Plain(system).refine(x)
    pairs = zip(system.features(x), system.features(refined), strict=True)
    wanted = sum((a - b).abs().mean() for a, b in pairs).item() / 3
    losses = system.step(batch)
    assert losses["l_regularisation"].item() == pytest.approx(wanted, rel=1e-3)
    assert losses["change"].item() == pytest.approx((x - refined).abs().mean().item(), rel=1e-4)
    assert_same(dict(system.features.state_dict()), dict(fixed))
    assert not any("features" in name for name in system.weights())


@MODES
@pytest.mark.parametrize("channels", ["1", "3"])
def test_grey_and_colour(mode: str, channels: str) -> None:
    config = tiny("--channels", channels, *CYCLE, mode=mode)
    system, batch = build(config, "cpu"), batch_of(config)
    assert all(value.isfinite() for value in system.step(batch).values())
    rows = system.sample(batch)
    assert list(rows) == ["synthetic", "refined", "difference", "and back", "real", "as synthetic"]
    assert all(row.shape[1:] == (int(channels), 16, 16) and row.abs().max() <= 1 for row in rows.values())


@MODES
@KINDS
def test_bf16_trains(mode: str, flags: tuple[str, ...]) -> None:
    system = build(tiny("--precision", "bf16", *flags, mode=mode), "cpu")
    batch = batch_of(system.config)
    losses = [system.step(batch) for _ in range(12)]
    assert all(value.dtype == torch.float32 and value.isfinite() for value in losses[-1].values())
    assert losses[-1]["change"] < losses[0]["change"]
    assert all(p.dtype == torch.float32 for p in system.generator.parameters())


def test_parts_are_judged_and_teach_the_refiner() -> None:
    config = tiny("--filters", "8", *PARTS)
    system, batch = build(config, "cpu"), batch_of(config)
    losses = system.step(batch)
    assert {f"accuracy_{of}_{part}" for of in ("real", "refined") for part in ("eyes", "nose", "mouth")} <= set(losses)
    without = build(tiny("--filters", "8"), "cpu")
    assert_same(dict(without.generator.state_dict()), dict(build(config, "cpu").generator.state_dict()))
    without.step(batch)
    changed = [a != b for a, b in zip(system.generator.parameters(), without.generator.parameters(), strict=True)]
    assert any(c.any() for c in changed)
    assert all(judge.first.weight.grad.abs().sum() > 0 for judge in system.parts.judges.values())
    assert [tuple(kept.shape) for kept in system.directions[0].history.kept] == [(16, 3, 16, 16), (16, 68, 2)]


def test_parts_need_landmarks() -> None:
    config = tiny(*PARTS)
    assert [need.points for need in SimganSystem.needs(config)] == [68, 68]
    assert [need.points for need in SimganSystem.needs(tiny())] == [0, 0]
    batch = batch_of(config)
    batch.landmarks = None
    with pytest.raises(InputError, match="68 landmarks"):
        build(config, "cpu").step(batch)


def test_what_a_step_needs() -> None:
    counts = ("--refiner-steps", "3", "--discriminator-steps", "2")
    assert [(n.samples, n.look) for n in SimganSystem.needs(tiny(*counts))] == [(8, "photo"), (20, "game")]
    assert [n.samples for n in SimganSystem.needs(tiny(*counts, *CYCLE))] == [20, 20]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--history", "3"), "--history must be 0 or at least --batch-size"),
        (("--refiner-steps", "0"), "--refiner-steps must be at least 1"),
        (("--history", "-1"), "--history must not be negative"),
        (("--lambda-reg", "-1"), "--lambda-reg must not be negative"),
        (("--feature-weights", "w.pth"), "--feature-weights is for --reg features"),
        (("--reg", "features", "--feature-weights", "nowhere.pth"), "nowhere.pth: cannot be read"),
    ],
)
def test_bad_options_are_refused_in_one_line(flags: tuple[str, ...], message: str) -> None:
    with pytest.raises(InputError, match=message) as refused:
        build(tiny(*flags), "cpu")
    assert "\n" not in str(refused.value)


def test_presets_are_complete() -> None:
    for preset in ("quick", "paper"):
        config = resolve(["--eager", "--system", "simgan", "--preset", preset])[0]
        assert config.preset == preset and config.pretrain_refiner + config.pretrain_discriminator < config.steps
        assert (config.refiner_steps, config.discriminator_steps, config.blocks) == (2, 1, 4)


# use


@MODES
def test_a_trained_refiner_is_its_average_or_its_last_weights(tmp_path: Path, mode: str) -> None:
    config = tiny("--ema", "0.5", mode=mode)
    system = build(config, "cpu")
    train(system, 0, 2)
    save(tmp_path, 2, system.weights(), system.state_dict(), config)
    images = batch_of(config, 9).images
    for ema, network in ((True, system.ema), (False, system.generator)):
        trained = load_trained(tmp_path, fused=config.fused, ema=ema, kind=REFINE)
        refiner, loaded = trained.module, trained.config
        assert not refiner.needs_landmarks and loaded.system == "simgan"
        assert torch.equal(refiner(images), network(images).detach())


def test_a_dry_run_counts_every_network() -> None:
    system = build(tiny(*CYCLE, *PARTS, "--reg", "features"), "meta")
    for network, inputs, count in system.passes(fused=True):
        assert count >= 1 and network(*inputs) is not None
    assert {id(network) for network, *_ in system.passes(True)} >= {id(n) for n in system.networks().values()}
