"""The recorded step against plain steps, bit for bit, with a tape in place of the CUDA graph."""

import copy
import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from engine import checkpoint
from engine.config import TrainConfig
from engine.data import Batch
from engine.errors import InputError
from engine.systems.base import System, approach
from engine.systems.registry import SYSTEMS, build
from engine.training.cuda_graph import WARM_UP, GraphedStep, no_waiting, recording
from engine.training.fused_share import fused_share
from engine.training.loop import Trainer
from engine.training.metrics import LossMeter
from engine.training.resolve import resolve
from engine.training.schedule import learning_rate
from engine.training.setup import mode, prepare_folder
from engine.verification import checks
from tests.support.pretended_cuda import PretendedCuda
from tests.support.tape import NoWaiting, Tape, rates_on_device
from tests.support.training_fakes import FakeLoader, assert_same, batch_of, everything, tiny_config

STEPS = 9
# a learning rate, an average's weight and a k that change with every step
CHANGING = ("--steps", str(STEPS), "--lr-schedule", "cosine", "--lr-warmup", "4", "--ema", "0.9", "--gamma", "0.9",
            "--lambda-k", "0.05")  # fmt: skip
LANDMARKS = ("--landmarks", "--landmark-weight", "0.3")
KINDS = pytest.mark.parametrize("flags", [(), LANDMARKS], ids=["plain", "landmarks"])
MODES = pytest.mark.parametrize("mode", ["--eager", "--fused"])


def system_of(config: TrainConfig) -> System:
    system = rates_on_device(build(config, "cpu"))
    system.k.fill_(0.3)
    return system


def train(config: TrainConfig, step, system: System, first: int = 1, last: int = STEPS, poison: bool = True) -> list:
    """Losses of steps first..last; with poison, a batch holds NaN as soon as its step is done."""
    found = []
    for number in range(first, last + 1):
        batch = batch_of(config, number)
        system.set_learning_rate(learning_rate(config, number))
        found.append({name: loss.clone() for name, loss in step(batch).items()})
        if poison:
            batch.images.fill_(float("nan"))
            batch.landmarks.fill_(float("nan"))
    return found


@MODES
@KINDS
def test_recorded_steps_are_the_plain_steps(mode: str, flags: tuple[str, ...]) -> None:
    config = tiny_config(*CHANGING, *flags, mode=mode)
    plain, recorded, tape = system_of(config), system_of(config), Tape()
    expected = train(config, plain.step, plain)
    assert_same(train(config, GraphedStep(recorded, tape), recorded), expected)
    assert_same(everything(recorded), everything(plain))
    assert (tape.recordings, tape.replays) == (1, STEPS - WARM_UP)
    assert 0 < expected[-1]["k"] != expected[-2]["k"]


def test_bf16_steps_are_recorded_too() -> None:
    config = tiny_config(*CHANGING, "--precision", "bf16", mode="--fused")
    plain, recorded = system_of(config), system_of(config)
    expected = train(config, plain.step, plain)
    assert_same(train(config, GraphedStep(recorded, Tape()), recorded), expected)
    assert_same(everything(recorded), everything(plain))


def test_what_python_changes_does_not_reach_a_recorded_step() -> None:
    """On the tape, as in a CUDA graph, a learning rate that is a Python number stays that of the recording."""
    config = tiny_config(*CHANGING, mode="--fused")
    plain, recorded = build(config, "cpu"), build(config, "cpu")
    train(config, plain.step, plain)
    train(config, GraphedStep(recorded, Tape()), recorded)
    assert any(not torch.equal(tensor, recorded.weights()[name]) for name, tensor in plain.weights().items())


def test_recording_changes_nothing() -> None:
    config = tiny_config(*CHANGING, mode="--fused")
    plain, recorded, tape = system_of(config), system_of(config), Tape()
    train(config, plain.step, plain, last=WARM_UP)
    train(config, GraphedStep(recorded, tape), recorded, last=WARM_UP)
    assert (tape.recordings, tape.replays) == (1, 0)
    assert_same(everything(recorded), everything(plain))


@KINDS
def test_a_resumed_run_goes_on_exactly(flags: tuple[str, ...]) -> None:
    config = tiny_config(*CHANGING, *flags, mode="--fused")
    whole, first, second = (system_of(config) for _ in range(3))
    expected = train(config, whole.step, whole)
    train(config, GraphedStep(first, Tape()), first, last=5)
    saved = everything(first)
    second.load_weights(saved["weights"])
    second.load_state_dict(saved["state"])
    assert_same(train(config, GraphedStep(second, Tape()), second, first=6), expected[5:])
    assert_same(everything(second), everything(whole))


@pytest.mark.parametrize("at", [0, 2, 5])
def test_state_may_be_loaded_after_the_recording(at: int) -> None:
    """A loaded state goes into the tensors that the recorded step knows; the state of step 0 has no moments."""
    config = tiny_config(*CHANGING, mode="--fused")
    plain, recorded, tape = system_of(config), system_of(config), Tape()
    train(config, plain.step, plain, last=at)
    saved = everything(plain)
    expected = train(config, plain.step, plain, first=at + 1)
    step = GraphedStep(recorded, tape)
    train(config, step, recorded)
    places = {name: tensor.data_ptr() for name, tensor in recorded.weights().items()}
    recorded.load_weights(saved["weights"])
    recorded.load_state_dict(saved["state"])
    assert {name: tensor.data_ptr() for name, tensor in recorded.weights().items()} == places
    assert_same(train(config, step, recorded, first=at + 1), expected)
    assert_same(everything(recorded), everything(plain))
    assert tape.recordings == 1


def test_saved_state_is_not_shared_with_the_system() -> None:
    config = tiny_config(mode="--fused")
    system, other = build(config, "cpu"), build(config, "cpu")
    train(config, system.step, system, last=2)
    state = system.state_dict()
    before = copy.deepcopy(state)
    other.load_state_dict(state)
    train(config, other.step, other, last=2)
    assert_same(state, before)


@pytest.mark.parametrize("landmarks", [False, True])
def test_batches_of_another_kind_are_refused(landmarks: bool) -> None:
    config = tiny_config(mode="--fused")
    system = system_of(config)
    step = GraphedStep(system, Tape())
    batch = batch_of(config)
    first = Batch(batch.images, batch.landmarks if landmarks else None, batch.indices)
    step(first)
    done = system.steps_done
    other = Batch(batch.images, None if landmarks else batch.landmarks, batch.indices)
    with pytest.raises(ValueError, match="landmarks none"):
        step(other)
    smaller = Batch(batch.images[:3], None if first.landmarks is None else first.landmarks[:3], batch.indices[:3])
    with pytest.raises(ValueError, match=r"images 4x3x16x16 float32.*not of images 3x3x16x16"):
        step(smaller)
    assert system.steps_done == done


def test_missing_landmarks_are_told_as_without_a_graph() -> None:
    config = tiny_config("--landmarks")
    batch = batch_of(config)
    batch.landmarks = None
    with pytest.raises(InputError, match="landmarks"):
        GraphedStep(system_of(config), Tape())(batch)


def test_a_step_that_cannot_be_recorded_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config(mode="--fused")
    system, settled = system_of(config), []
    step = GraphedStep(system, Tape(), settle=lambda: settled.append(system.steps_done))
    monkeypatch.setattr(system, "average", lambda name, of: torch.ones(()).item())
    with pytest.raises(RuntimeError, match=r"could not be recorded .*_local_scalar_dense.*--no-cuda-graph"):
        train(config, step, system)
    assert settled == [WARM_UP] and not step.recorded


@MODES
@KINDS
def test_no_step_waits_for_the_device(mode: str, flags: tuple[str, ...]) -> None:
    """Neither a step nor the meter waits. Adam's rate is a Python number here: its CPU kernel would read a tensor."""
    config = tiny_config(*CHANGING, *flags, mode=mode)
    system, meter = build(config, "cpu"), LossMeter(torch.device("cpu"))
    for number in range(1, 4):
        batch = batch_of(config, number)
        with NoWaiting():
            system.set_learning_rate(learning_rate(config, number))
            meter.add(number, system.step(batch))
    for wait in (lambda: meter._sums[0].item(), lambda: meter._sums[meter._sums > 0], lambda: torch.tensor(1.0)):
        with pytest.raises(AssertionError, match="the host would wait"), NoWaiting():
            wait()


class OnlyOn(TorchDispatchMode):
    """Raises AssertionError when an operator sees or makes a tensor on another device."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device = torch.device(device)

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        results = func(*args, **(kwargs or {}))
        for tensor in tree_leaves((args, kwargs, results)):
            if isinstance(tensor, torch.Tensor) and tensor.device != self.device:
                raise AssertionError(f"{func} and a tensor on {tensor.device}")
        return results


@MODES
@KINDS
def test_everything_a_step_takes_lies_on_the_device(mode: str, flags: tuple[str, ...]) -> None:
    """On the meta device, where a tensor of the host is found, as it is not on the CPU. Adam is left out."""
    config = tiny_config(*CHANGING, *flags, mode=mode)
    system, batch, meter = build(config, "meta"), batch_of(config), LossMeter(torch.device("meta"))
    for optimiser in system.optimisers.values():
        optimiser.step = lambda: None
    batch = Batch(batch.images.to("meta"), batch.landmarks.to("meta"), batch.indices)
    with OnlyOn("meta"):
        for number in (1, 2):
            meter.add(number, system.step(batch))
    assert all(p.grad is not None for network in system.networks().values() for p in network.parameters())
    with pytest.raises(AssertionError, match="a tensor on cpu"), OnlyOn("meta"):
        system.k.add_(torch.ones(()))


def test_both_ways_to_move_an_average() -> None:
    generator = torch.Generator().manual_seed(0)
    averages, towards = ([torch.randn(s, generator=generator) for s in ((3,), (4, 2, 3, 3))] for _ in range(2))
    for weight in (0.0, 0.001, 0.18, 0.82):
        exact = [a.double() + weight * (b.double() - a.double()) for a, b in zip(averages, towards, strict=True)]
        plain = [torch.lerp(a, b, weight) for a, b in zip(averages, towards, strict=True)]
        for few in (False, True):
            moved = [a.clone() for a in averages]
            approach(moved, towards, torch.tensor(weight), few_launches=few)
            for tensor, wanted, lerped in zip(moved, exact, plain, strict=True):
                torch.testing.assert_close(tensor, wanted.float(), rtol=1e-6, atol=1e-6)
                assert few or torch.equal(tensor, lerped)


def run(config: TrainConfig, recorded: bool, monkeypatch: pytest.MonkeyPatch) -> Trainer:
    """A run of the loop with learning rates as tensors.

    recorded: its steps go through a tape.
    """
    monkeypatch.setattr("engine.training.report.write", lambda run_dir: None)
    start = prepare_folder(config)
    trainer = Trainer(config, {}, system_of(config), FakeLoader(config), start)
    if recorded:
        trainer._train_on = GraphedStep(trainer.system, Tape())
    assert trainer.run() == 0
    return trainer


def test_a_run_through_the_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Samples, readings and checkpoints between recorded steps, an end and a resume, change nothing."""
    torch.set_num_threads(1)
    flags = (*CHANGING[2:], "--log-every", "2", "--sample-every", "4", "--checkpoint-every", "5")
    losses = {}
    for name in ("plain", "recorded"):
        out = tmp_path / name
        for last in ("6", "12"):
            config = tiny_config(*flags, "--steps", last, "--resume", mode="--fused", out=out)
            trainer = run(config, name == "recorded", monkeypatch)
        records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        losses[name] = [{k: v for k, v in r.items() if k.startswith(("step", "l", "k", "measure"))} for r in records]
        assert trainer.step == 12 and len(records) == 6
    assert losses["recorded"] == losses["plain"]
    plain, recorded = (checkpoint.load(tmp_path / name) for name in ("plain", "recorded"))
    assert_same(recorded.weights, plain.weights)
    assert_same(recorded.state["system"], plain.state["system"])


def test_verify_compares_recorded_with_plain_steps() -> None:
    row = checks.verify_captured(2, torch.device("cpu"), Tape())
    # the rates are Python numbers here, so recorded steps keep that of the recording
    assert not row.passed and row.worst == f"update of discriminator at step {WARM_UP + 1}"


def test_verify_passes_what_is_recorded_right(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = checks.build
    monkeypatch.setattr(checks, "build", lambda config, device: rates_on_device(honest(config, device)))
    row = checks.verify_captured(2, torch.device("cpu"), Tape())
    assert row.passed and row.error == 0 and row.variant == f"{WARM_UP} + 2 steps"
    # 7 losses, two moments of two optimisers, D, G and its average, k
    assert row.checks >= (7 + 4 + 3 + 1) * (WARM_UP + 2)


class Again:
    """A recorder whose replays run Python again."""

    def warm(self, work):
        return work()

    def record(self, work):
        self.work, self.losses = work, {}
        return self.losses

    def replay(self) -> None:
        self.losses.clear()
        self.losses.update(self.work())


def verify_with(change, system: str, monkeypatch: pytest.MonkeyPatch) -> checks.Row:
    """The row "captured" of a system whose recorded copy has each gradient changed by `change`."""
    honest, built = checks.build, []

    def hooked(config: TrainConfig, device: torch.device) -> System:
        built.append(honest(config, device))
        if len(built) == 2:
            for optimiser in built[-1].optimisers.values():
                optimiser.register_step_pre_hook(change)
        return built[-1]

    monkeypatch.setattr(checks, "build", hooked)
    return checks.verify_captured(2, torch.device("cpu"), Again(), system)


def gradients(optimiser: torch.optim.Optimizer) -> list[torch.Tensor]:
    return [p.grad for group in optimiser.param_groups for p in group["params"] if p.grad is not None]


@pytest.mark.parametrize("system", list(SYSTEMS))
def test_rounding_is_no_fault_of_a_recorded_step(system: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Biases before a norm too, whose gradient is nothing but rounding: Adam moves them by the whole rate."""
    numbers = torch.Generator().manual_seed(1)

    def rounding(optimiser: torch.optim.Optimizer, *_: object) -> None:
        largest = max(gradient.square().mean().sqrt() for gradient in gradients(optimiser))
        for gradient in gradients(optimiser):
            size = 1e-2 * largest + gradient.square().mean().sqrt()
            # what cancels exactly, as in the last bias of WGAN's critic, has no rounding
            gradient += 2e-6 * size * torch.randn(gradient.shape, generator=numbers) * gradient.any()

    row = verify_with(rounding, system, monkeypatch)
    assert row.passed and row.error > 0, row


@pytest.mark.parametrize("system", list(SYSTEMS))
def test_a_wrong_gradient_of_a_recorded_step_is_found(system: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(optimiser: torch.optim.Optimizer, *_: object) -> None:
        gradients(optimiser)[0].mul_(1.1)

    row = verify_with(wrong, system, monkeypatch)
    assert not row.passed and " of the " in row.worst, row


@pytest.mark.parametrize("faults, passed", [(1, True), (1000, False)])
def test_a_recorded_step_may_differ_at_a_kink_of_some_images(
    faults: int, passed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A difference as a kink makes it is no fault where other images have none; a fault is one on all images."""
    numbers = itertools.count()

    def differs(optimiser: torch.optim.Optimizer, *_: object) -> None:
        if 4 <= next(numbers) < 4 + faults:  # from the third step on
            for gradient in gradients(optimiser):
                gradient *= 1.01

    row = verify_with(differs, "refiner", monkeypatch)
    assert row.passed == passed, row


def test_the_mode_line_says_how_steps_are_launched() -> None:
    config = tiny_config(mode="--fused")
    assert mode(config) == f"fused operators ({fused_share(config)}), fp32, cpu"
    on_gpu = replace(config, device="cuda", precision="bf16")
    assert mode(on_gpu).endswith(" of a step's FLOPs), bf16, cuda, each step one CUDA graph")
    assert "kernel by kernel" in mode(TrainConfig(device="cuda", cuda_graph=False))


def test_a_graph_needs_a_gpu() -> None:
    with pytest.raises(InputError, match="--cuda-graph needs an NVIDIA GPU"):
        resolve(["--fused", "--device", "cpu", "--cuda-graph"])
    assert resolve(["--fused", "--device", "cpu", "--no-cuda-graph"])[0].cuda_graph is False


def test_a_failed_recording_spoils_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own error is raised, and stream, memory pool and random numbers are as before."""
    cuda = PretendedCuda().install(monkeypatch)
    with pytest.raises(RuntimeError, match="not permitted when stream is capturing"), recording(torch.cuda.CUDAGraph()):
        cuda.wait()
    assert (cuda.stream, cuda.pools, cuda.random_state) == ("default", [], "outside")
    with recording(torch.cuda.CUDAGraph()):
        assert cuda.pools and cuda.stream == "recording"
    assert (cuda.stream, cuda.pools, cuda.random_state) == ("default", [], "outside")


def test_waiting_raises_only_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[object] = []
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: 0)
    for device, value, expected in [("cuda", "1", ["error", 0]), ("cuda", "", []), ("cpu", "1", [])]:
        monkeypatch.setenv("KILN_SYNC_DEBUG", value)
        modes.clear()
        with pytest.raises(ZeroDivisionError), no_waiting(torch.device(device)):
            1 / 0  # noqa: B018
        assert modes == expected
