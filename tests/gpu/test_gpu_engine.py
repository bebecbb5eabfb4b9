"""The engine on a GPU: recorded steps, loaders there, and no waiting. Skipped where there is none."""

import copy
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from engine.config import TrainConfig
from engine.data import Batch, ImageSet, open_dataset, open_loader
from engine.data.decoding.upload import Uploads, send
from engine.data.shuffling import ShuffledStream
from engine.systems.base import System
from engine.systems.registry import SYSTEMS, build
from engine.train import main
from engine.training.cuda_graph import WARM_UP, GraphedStep, no_waiting
from engine.training.metrics import LossMeter
from engine.training.resolve import resolve
from engine.training.schedule import learning_rate
from engine.training.setup import set_machine
from engine.verification import checks
from engine.verification import machine as examined
from tests.support.data_images import picture, write_manifest_set
from tests.support.packages import needs
from tests.support.places import ROOT
from tests.support.training_fakes import batch_of

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
    pytest.mark.unpoisoned("waits for the GPU, its memory and bits are looked at as users have them"),
]
GPU = torch.device("cuda")
STEPS = 20
LANDMARKS = ("--landmarks", "--landmark-weight", "0.3")
# a library's choice of kernels may move a loss by this much; Kiln's own kernels give the same bits
TOLERANCE = {"fp32": 1e-4, "tf32": 1e-3, "bf16": 1e-2}


def gpu_config(*flags: str, mode: str = "--fused") -> TrainConfig:
    words = ["--device", "cuda", "--resolution", "32", "--filters", "16", "--hidden", "16", "--batch-size", "4",
             "--steps", str(STEPS), "--lr-schedule", "cosine", "--lr-warmup", "4", "--ema", "0.9", "--gamma", "0.9",
             "--lambda-k", "0.05"]  # fmt: skip
    return resolve([mode, *words, *flags])[0]


def on_gpu(batch: Batch) -> Batch:
    return Batch(batch.images.to(GPU), batch.landmarks.to(GPU), batch.indices)


def train(config: TrainConfig, step, system: System, first: int = 1, last: int = STEPS) -> list[dict[str, float]]:
    found = []
    for number in range(first, last + 1):
        system.set_learning_rate(learning_rate(config, number))
        found.append({name: loss.clone() for name, loss in step(on_gpu(batch_of(config, number))).items()})
    return [{name: loss.item() for name, loss in losses.items()} for losses in found]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch):
    """set_machine, undone afterwards."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32, torch.get_num_threads()
    yield set_machine
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before[:2]
    torch.set_num_threads(before[2])


@pytest.fixture
def faces(tmp_path: Path) -> ImageSet:
    """24 pictures with landmarks."""
    landmarks = np.random.default_rng(0).uniform(4, 36, (24, 68, 2))
    folder = write_manifest_set(tmp_path / "set", [picture(i) for i in range(24)], landmarks)
    return open_dataset(folder, channels=3, resolution=32)


@pytest.mark.parametrize("flags", [(), LANDMARKS], ids=["plain", "landmarks"])
@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
@pytest.mark.parametrize("mode", ["--fused", "--eager"])
def test_recorded_steps_are_the_plain_steps(machine, mode: str, precision: str, flags: tuple[str, ...]) -> None:
    config = gpu_config("--precision", precision, *flags, mode=mode)
    machine(config)
    plain, recorded = build(config, GPU), build(config, GPU)
    step = GraphedStep(recorded)
    expected, found = train(config, plain.step, plain), train(config, step, recorded)
    assert step.recorded
    for number, (a, b) in enumerate(zip(found, expected, strict=True), 1):
        assert a == pytest.approx(b, rel=TOLERANCE[precision], abs=1e-6), f"step {number}"
    assert expected[-1]["k"] > 0


def test_a_recorded_step_never_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KILN_SYNC_DEBUG", "1")
    config = gpu_config(*LANDMARKS)
    system, meter = build(config, GPU), LossMeter(GPU)
    step = GraphedStep(system)
    train(config, step, system, last=WARM_UP)
    meter.add(WARM_UP, {name: torch.zeros((), device=GPU) for name in ("a", "b")})
    batches = [on_gpu(batch_of(config, number)) for number in range(5)]
    with no_waiting(GPU):
        for number, batch in enumerate(batches, WARM_UP + 1):
            system.set_learning_rate(learning_rate(config, number))
            meter.add(number, step(batch))
    values, bad = meter.read()
    assert not bad and all(np.isfinite(value) for value in values.values())
    with pytest.raises(RuntimeError, match="synchroniz"), no_waiting(GPU):
        meter._sums[0].item()


def test_memory_does_not_grow() -> None:
    config = gpu_config()
    system, meter, batch = build(config, GPU), LossMeter(GPU), on_gpu(batch_of(gpu_config()))
    step = GraphedStep(system)
    for number in range(1, 2 * WARM_UP + 1):
        meter.add(number, step(batch))
    torch.cuda.synchronize()
    allocated, reserved = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
    for number in range(200):
        meter.add(number, step(batch))
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() == allocated and torch.cuda.memory_reserved() == reserved


@pytest.mark.parametrize("recorded_first", [False, True])
def test_a_resumed_run_goes_on(recorded_first: bool) -> None:
    """A state can be loaded before a recording and after it."""
    config = gpu_config()
    whole, resumed = build(config, GPU), build(config, GPU)
    train(config, whole.step, whole, last=8)
    saved = copy.deepcopy({"weights": whole.weights(), "state": whole.state_dict()})
    expected = train(config, whole.step, whole, first=9)
    step = GraphedStep(resumed)
    if recorded_first:
        train(config, step, resumed, last=WARM_UP + 2)
    resumed.load_weights(saved["weights"])
    resumed.load_state_dict(saved["state"])
    for a, b in zip(train(config, step, resumed, first=9), expected, strict=True):
        assert a == pytest.approx(b, rel=TOLERANCE["fp32"], abs=1e-6)
    for optimiser in resumed.optimisers.values():
        for moments in optimiser.state.values():
            assert all(tensor.is_cuda and tensor.dtype == torch.float32 for tensor in moments.values())


def test_uploads_from_pinned_memory() -> None:
    uploads, stream = Uploads(16, GPU), ShuffledStream(100, 1, mirror=True, slack=8)
    pairs = []
    for step in range(12):
        draw = stream.draw(16 * step, 16)
        pairs.append((uploads(draw), send(draw, torch.device("cpu"))))
    for sent, wanted in pairs:
        for name in ("indices", "offsets", "mirror"):
            assert torch.equal(getattr(sent, name).cpu(), getattr(wanted, name))


@needs("nvidia.dali")
@pytest.mark.parametrize("kind", ["resident", "dali"])
def test_loaders_on_the_gpu(faces: ImageSet, kind: str) -> None:
    """The CPU's batches, but for the rounding of the resize; no upload waits."""
    settings = {"batch_size": 6, "resolution": 32, "channels": 3, "seed": 3, "crop": "random", "loader": kind}
    there, here = (open_loader(faces, device=device, **settings) for device in ("cuda", "cpu"))
    for _ in range(9):
        batch, wanted = there.next(), here.next()
        assert batch.images.is_cuda and batch.images.is_contiguous(memory_format=torch.channels_last)
        assert batch.images.dtype == torch.float32 and torch.equal(batch.indices, wanted.indices)
        error = (batch.images.cpu() - wanted.images).abs()
        assert error.max() <= 3.01 / 127.5 and error.mean() <= 1 / 127.5
        torch.testing.assert_close(batch.landmarks.cpu(), wanted.landmarks)
    there.close()
    here.close()


@needs("nvidia.dali")
@pytest.mark.parametrize("kind", ["resident", "dali"])
@pytest.mark.parametrize("graph", ["--cuda-graph", "--no-cuda-graph"])
def test_the_command_without_waiting(
    faces: ImageSet,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    kind: str,
    graph: str,
) -> None:
    """The whole loop from files, then resumed; any wait of the host from the fourth step on raises."""
    monkeypatch.setenv("KILN_SYNC_DEBUG", "1")
    monkeypatch.setattr("engine.training.report.write", lambda run_dir: None)
    out = tmp_path / "run"
    words = ["--fused", "--device", "cuda", "--precision", "bf16", "--data", str(tmp_path / "set"), "--loader", kind,
             "--resolution", "32", "--filters", "16", "--batch-size", "6", "--log-every", "5", "--sample-every", "8",
             "--checkpoint-every", "10", graph, *LANDMARKS, "--out", str(out)]  # fmt: skip
    assert main([*words, "--steps", "15"]) == 0
    assert main(["--resume", "--out", str(out), "--steps", "30"]) == 0
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == list(range(5, 31, 5))
    assert all(np.isfinite(value) for record in records for value in record.values())
    assert ("each step one CUDA graph" in capsys.readouterr().out) == (graph == "--cuda-graph")


@pytest.mark.parametrize("system", list(SYSTEMS))
def test_recorded_steps_of_every_system(system: str) -> None:
    row = checks.verify_captured(5, GPU, system=system)
    assert row.passed, row


@pytest.mark.parametrize("system", list(SYSTEMS))
def test_fused_steps_are_the_eager_steps_of_every_system(system: str) -> None:
    for row in checks.verify_training(3, GPU, system):
        assert row.passed, row


FAILED_RECORDING = """
import torch
from engine.training.cuda_graph import recording

x = torch.ones(8, device="cuda")
for _ in range(2):
    try:
        with recording(torch.cuda.CUDAGraph()):
            (x * 2).sum().item()
    except RuntimeError as error:
        assert "captur" in str(error), error
    else:
        raise AssertionError("the host waited while a graph was recorded")
    assert torch.cuda.current_stream() == torch.cuda.default_stream()
    assert torch.randn(4, device="cuda").isfinite().all()
graph = torch.cuda.CUDAGraph()
with recording(graph):
    y = x + torch.randn(8, device="cuda")
graph.replay()
first = y.clone()
graph.replay()
assert not torch.equal(first, y), "each replay draws new numbers"
print("good")
"""


def test_a_failed_recording_spoils_nothing() -> None:
    """In a process of its own, because a recording that fails otherwise than expected spoils what comes later."""
    done = subprocess.run([sys.executable, "-c", FAILED_RECORDING], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "good", done.stderr[-2000:]


def test_doctor_records_a_step() -> None:
    found = {finding.subject: finding for finding in examined.check_training()}["training (cuda)"]
    assert found.state == examined.OK and "CUDA graph" in found.found
