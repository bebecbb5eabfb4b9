"""What the training loop needs of each system: recorded steps, exact resuming, samples, a module for use, a dry run."""

import pytest
import torch

from engine import checkpoint
from engine.config import TrainConfig, saved_fields
from engine.errors import InputError
from engine.inference.trained import load_trained
from engine.systems.base import System
from engine.systems.kinds import GENERATE, KINDS
from engine.systems.registry import SYSTEMS, build, system_class
from engine.training.cuda_graph import GraphedStep
from engine.training.memory import describe
from engine.training.resolve import resolve
from engine.training.schedule import learning_rate
from tests.support.tape import NoWaiting, Tape, rates_on_device
from tests.support.training_fakes import assert_same, batch_of, everything, tiny_config

EVERY = pytest.mark.parametrize("name", list(SYSTEMS))
STEPS = 7
CHANGING = ("--steps", str(STEPS), "--lr-schedule", "cosine", "--lr-warmup", "3", "--ema", "0.9")


def train(
    config: TrainConfig, system: System, step, first: int = 1, last: int = STEPS
) -> list[dict[str, torch.Tensor]]:
    losses = []
    for number in range(first, last + 1):
        system.set_learning_rate(learning_rate(config, number))
        losses.append({key: loss.clone() for key, loss in step(batch_of(config, number)).items()})
    return losses


@EVERY
@pytest.mark.parametrize("mode", ["--eager", "--fused"])
def test_recorded_steps_are_the_plain_steps(name: str, mode: str) -> None:
    config = tiny_config(*CHANGING, mode=mode, system=name)
    results = []
    for recorded in (False, True):
        system = rates_on_device(build(config, "cpu"))
        torch.manual_seed(5)
        step = GraphedStep(system, Tape()) if recorded else system.step
        results.append((train(config, system, step), everything(system)))
    assert_same(results[1], results[0])


@EVERY
def test_a_step_never_waits_for_the_device(name: str) -> None:
    config = tiny_config(mode="--fused", system=name)
    system = rates_on_device(build(config, "cpu"))
    system.step(batch_of(config, 1))
    batch = batch_of(config, 2)
    system.advance()
    with NoWaiting():
        system.update(batch)


@EVERY
def test_a_resumed_system_goes_on_bit_for_bit(name: str) -> None:
    config = tiny_config(*CHANGING, mode="--fused", system=name)
    torch.manual_seed(5)
    whole = build(config, "cpu")
    train(config, whole, whole.step, last=4)
    state, chance = everything(whole), torch.get_rng_state()
    expected = train(config, whole, whole.step, first=5)
    resumed = build(config, "cpu")
    resumed.load_weights(state["weights"])
    resumed.load_state_dict(state["state"])
    torch.set_rng_state(chance)
    assert_same(train(config, resumed, resumed.step, first=5), expected)
    assert_same(everything(resumed), everything(whole))


@EVERY
def test_fused_and_eager_have_the_same_weights_at_the_start(name: str) -> None:
    fused, eager = (build(tiny_config(mode=mode, system=name), "cpu").weights() for mode in ("--fused", "--eager"))
    assert_same(dict(fused), dict(eager))


@EVERY
@pytest.mark.parametrize("channels", ["1", "3"])
def test_samples_are_images(name: str, channels: str) -> None:
    config = tiny_config("--channels", channels, mode="--fused", system=name)
    system = build(config, "cpu")
    rows = system.sample(batch_of(config).part(0, 3))
    assert len(rows) > 1
    for row in rows.values():
        assert row.shape == (3, int(channels), 16, 16) and row.dtype == torch.float32
        assert row.abs().max() <= 1 and not row.requires_grad


@EVERY
@pytest.mark.parametrize("ema", [True, False])
def test_a_trained_system_is_loaded_for_use(name: str, ema: bool, tmp_path) -> None:
    config = tiny_config("--ema", "0.5", mode="--fused", system=name)
    system = build(config, "cpu")
    train(config, system, system.step, last=2)
    checkpoint.save(tmp_path, 2, system.weights(), system.state_dict(), config)
    trained = load_trained(tmp_path, ema=ema, kind=system.kind)
    module, loaded = trained.module, trained.config
    assert loaded == config
    kept = module.generator.state_dict()
    network = system.averaged()["ema"] if ema else system.networks()["generator"]
    assert_same(dict(kept), dict(network.state_dict()))
    batch = batch_of(config, 3)
    if system.kind is GENERATE:
        given = (module.noise(4, torch.Generator().manual_seed(1)),)
        assert torch.equal(given[0], module.noise(4, torch.Generator().manual_seed(1)))
    else:
        given = (batch.images, batch.landmarks)
    made = module(*given)
    assert made.shape == (len(given[0]), 3, 16, 16) and made.abs().max() <= 1 and not made.requires_grad
    other = next(kind for kind in KINDS if kind != system.kind)
    with pytest.raises(InputError, match=f"is of the system {name}, which "):
        load_trained(tmp_path, kind=other)


@EVERY
@pytest.mark.parametrize("preset", ["quick", "good", "paper"])
def test_a_dry_run_of_each_preset(name: str, preset: str) -> None:
    text = describe(*resolve(["--fused", "--system", name, "--preset", preset, "--device", "cpu"]))
    assert f"system {name}" in text and "parameters" in text and "nothing was trained" in text


@EVERY
def test_bf16(name: str) -> None:
    config = tiny_config("--precision", "bf16", mode="--fused", system=name)
    system = build(config, "cpu")
    losses = train(config, system, system.step, last=3)
    assert all(value.isfinite() for value in losses[-1].values())
    assert all(weight.dtype != torch.bfloat16 for weight in system.weights().values())


@EVERY
def test_presets_name_options(name: str) -> None:
    kind = system_class(name).config_class
    assert set(kind.PRESETS) == {"quick", "good", "paper"}
    for values in kind.PRESETS.values():
        assert set(values) <= set(saved_fields(kind))


JUDGED = {
    "refiner": ("--critic-weight", "0.1", "--critic-filters", "8"),
    "began": ("--critic-weight", "0.1", "--critic-filters", "2", "--critic-sees", "whole"),
    "dcgan": (),
    "wgan": ("--gradient-penalty", "10", "--critic-norm", "layer"),
    "simgan": (),
    "cyclegan": (),
}


@EVERY
def test_discriminators_see_images_differently(name: str) -> None:
    """Fused and eager see the same changes; what was not built for them says so."""
    flags = ("--augment-judged", "0.7", *JUDGED.get(name, ()))
    if name not in JUDGED:
        with pytest.raises(InputError, match=f"--augment-judged is not for {name}"):
            tiny_config(*flags, system=name)
        return
    runs = []
    for mode, kept in (("--eager", flags), ("--fused", flags), ("--eager", flags[2:])):
        config = tiny_config(*kept, mode=mode, system=name)
        system = build(config, "cpu")
        torch.manual_seed(5)
        steps = train(config, system, system.step, last=3)
        runs.append([{key: value.item() for key, value in losses.items()} for losses in steps])
    for eager, fused in zip(*runs[:2], strict=True):
        assert fused == pytest.approx(eager, rel=1e-3, abs=1e-4)
    assert runs[0][0] != pytest.approx(runs[2][0], rel=1e-3)


def test_images_are_changed_for_a_critic_only() -> None:
    with pytest.raises(InputError, match="add --critic-weight"):
        tiny_config("--augment-judged", "0.5")
