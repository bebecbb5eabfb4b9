"""What a run leaves in its folder, and how it ends when something is wrong."""

import contextlib
import errno
import importlib
import io
import json
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

from engine import checkpoint
from engine.config import TrainConfig
from engine.data.pixel_values import picture_pixels
from engine.errors import InputError
from engine.inference.sample_grid import draw_grid
from engine.systems.refiner import RefinerConfig
from engine.systems.registry import build
from engine.train import main
from engine.training import random_state
from engine.training.loop import Trainer
from engine.training.memory import require_memory, step_bytes
from engine.training.metrics import LossMeter, MetricsLog, cut_after
from engine.training.setup import prepare_folder, require_fused, set_machine
from tests.support.packages import needs
from tests.support.tiny_run import command
from tests.support.training_fakes import FakeLoader, tiny_config

FLAGS = ("--steps", "12", "--log-every", "5", "--sample-every", "6", "--checkpoint-every", "4", "--keep", "2")


@pytest.fixture(autouse=True)
def quiet_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """No run writes a report: tests/commands/test_report.py tests it."""
    monkeypatch.setattr("engine.training.report.write", lambda run_dir: None)


def train(config: TrainConfig, loader: FakeLoader | None = None) -> tuple[int, Trainer]:
    start = prepare_folder(config)
    torch.set_num_threads(1)
    trainer = Trainer(config, {}, build(config, "cpu"), loader or FakeLoader(config), start)
    return trainer.run(), trainer


def lines(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_what_a_run_leaves(tmp_path: Path) -> None:
    run = tmp_path / "deep" / "run"
    config = tiny_config(*FLAGS, out=run)
    status, trainer = train(config)
    assert status == 0
    records = lines(run)
    assert [record["step"] for record in records] == [5, 10, 12]
    names = {"step", "since", "time", "loss_d", "loss_g", "l_real", "l_fake", "l_content", "k", "measure", "lr"}
    assert names | {"images_per_s", "data_wait", "memory_mb"} == set(records[0])
    assert all(np.isfinite(value) for record in records for value in record.values())
    assert sorted(os.listdir(run / "checkpoints")) == ["step_00000008", "step_00000012"]
    assert sorted(os.listdir(run / "samples")) == [f"step_{step:08d}.png" for step in (0, 6, 12)]
    assert checkpoint.read_config(run).steps == 12
    saved = checkpoint.load(run)
    assert all(torch.equal(saved.weights[name], tensor) for name, tensor in trainer.system.weights().items())


def test_losses_are_the_means_since_the_last_reading(tmp_path: Path) -> None:
    config = tiny_config(*FLAGS, out=tmp_path)
    train(config)
    system, loader = build(config, "cpu"), FakeLoader(config)
    system.set_learning_rate(config.lr)
    steps = [{k: v.item() for k, v in system.step(loader.next()).items()} for _ in range(10)]
    second = lines(tmp_path)[1]
    assert second["l_real"] == pytest.approx(np.mean([s["l_real"] for s in steps[5:]]), rel=1e-5)
    assert second["k"] == pytest.approx(steps[9]["k"])


def test_the_loss_that_fails_is_named_with_its_step(tmp_path: Path) -> None:
    config = tiny_config(*FLAGS, out=tmp_path)
    with pytest.raises(InputError) as caught:
        train(config, FakeLoader(config, poison=6))
    message = str(caught.value)
    assert "from step 7 on" in message and "l_real" in message and "step_00000004" in message
    assert "--resume" in message and "--lr 0.00025" in message
    assert [record["step"] for record in lines(tmp_path)] == [5]
    assert checkpoint.latest(tmp_path).name == "step_00000004"
    assert all(tensor.isfinite().all() for tensor in checkpoint.load(tmp_path).weights.values())


def test_a_diverged_run_goes_on_from_the_last_good_checkpoint(tmp_path: Path) -> None:
    config = tiny_config(*FLAGS, out=tmp_path)
    with pytest.raises(InputError):
        train(config, FakeLoader(config, poison=6))
    again = tiny_config(*FLAGS, "--resume", "--lr", "0.0001", out=tmp_path)
    status, trainer = train(again)
    assert (status, trainer.first_step, trainer.step) == (0, 4, 12)
    assert [record["step"] for record in lines(tmp_path)] == [5, 10, 12]


def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path) -> None:
    config = tiny_config("--steps", "3", "--log-every", "50", "--lr", "1e30", "--checkpoint-every", "1", out=tmp_path)
    with pytest.raises(InputError, match="finite"):
        train(config)
    for path in tmp_path.glob("checkpoints/step_*"):
        assert all(tensor.isfinite().all() for tensor in checkpoint.load(path).weights.values())


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.ESTALE], ids=errno.errorcode.get)
def test_a_full_disk_at_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    write, written = checkpoint._write, []

    def failing(path: Path, data: bytes) -> None:
        written.append(path.parent)
        if len(set(written)) == 2:  # the checkpoint of step 8
            path.write_bytes(data[:10])
            raise OSError(number, os.strerror(number))
        write(path, data)

    monkeypatch.setattr(checkpoint, "_write", failing)
    with pytest.raises(InputError, match=os.strerror(number)) as caught:
        train(tiny_config(*FLAGS, out=tmp_path))
    assert "step_00000004" in str(caught.value) and "--resume" in str(caught.value)
    assert os.listdir(tmp_path / "checkpoints") == ["step_00000004"]
    monkeypatch.undo()
    monkeypatch.setattr("engine.training.report.write", lambda run_dir: None)
    assert train(tiny_config(*FLAGS, "--resume", out=tmp_path))[0] == 0


def test_a_full_disk_for_the_metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(io.TextIOWrapper):
        def flush(self) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    log_init = MetricsLog.__init__

    def on_full_disk(log: MetricsLog, *arguments: object) -> None:
        log_init(log, *arguments)
        log._file.close()
        log._file = Full(io.BytesIO())

    monkeypatch.setattr(MetricsLog, "__init__", on_full_disk)
    monkeypatch.setattr(MetricsLog, "close", lambda log: None)
    with pytest.raises(InputError, match=r"metrics.jsonl could not be written \(No space left"):
        train(tiny_config(*FLAGS, out=tmp_path))


def test_a_run_folder_that_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "save", lambda run_dir, *_: os.rename(run_dir / "gone", run_dir / "away"))
    with pytest.raises(
        InputError, match=r"the checkpoint of step 4 could not be written \(No such file or directory\)"
    ):
        train(tiny_config(*FLAGS, out=tmp_path))


@pytest.mark.parametrize("existing", ["a file", "files in it", "another folder"])
def test_a_place_that_is_taken(tmp_path: Path, existing: str) -> None:
    out = tmp_path / "out"
    if existing == "a file":
        out.write_text("x")
    else:
        out.mkdir()
        (out / "notes.txt").write_text("x")
    flags = ["--resume"] if existing == "another folder" else []
    with pytest.raises(InputError, match=r"another --out|name a folder"):
        prepare_folder(tiny_config(*flags, out=out))
    assert out.is_file() or os.listdir(out) == ["notes.txt"]


def test_a_read_only_place() -> None:
    with pytest.raises(InputError, match="cannot write to /proc/kiln"):
        prepare_folder(tiny_config(out=Path("/proc/kiln")))


def test_resume_with_nothing_to_resume_starts(tmp_path: Path, capsys) -> None:
    assert train(tiny_config(*FLAGS, "--resume", out=tmp_path / "run"))[0] == 0
    assert "starting at step 0" in capsys.readouterr().out


def test_resume_never_starts_over_damaged_checkpoints(tmp_path: Path) -> None:
    train(tiny_config(*FLAGS, out=tmp_path))
    for path in tmp_path.glob("checkpoints/*/state.pt"):
        path.write_bytes(b"")
    with pytest.raises(InputError, match=r"every checkpoint in .* is damaged"):
        main(["--resume", "--out", str(tmp_path)])


def test_resume_of_a_finished_run_says_so(tmp_path: Path, capsys) -> None:
    train(tiny_config(*FLAGS, out=tmp_path))
    assert main(["--resume", "--out", str(tmp_path)]) == 0
    assert "raise --steps" in capsys.readouterr().out


def test_a_report_that_cannot_be_drawn_ends_nothing(tmp_path: Path, monkeypatch, capsys) -> None:
    def broken(run_dir: Path) -> None:
        raise RuntimeError("no fonts")

    monkeypatch.setattr("engine.training.report.write", broken)
    assert train(tiny_config(*FLAGS, out=tmp_path))[0] == 0
    assert capsys.readouterr().out.count("report.html could not be written: RuntimeError: no fonts") == 1


def test_training_without_tensorboard(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.delitem(importlib.sys.modules, "engine.training.events", raising=False)
    monkeypatch.setitem(importlib.sys.modules, "tensorboard.summary.writer.record_writer", None)
    assert train(tiny_config(*FLAGS, out=tmp_path))[0] == 0
    assert "TensorBoard is not installed" in capsys.readouterr().out


@needs("tensorboard")
def test_tensorboard_events(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(tiny_config(*FLAGS, out=tmp_path))
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("l_real")] == [5, 10, 12]


@needs("nvidia.dali")
def test_dry_run_writes_nothing(tmp_path: Path, monkeypatch, capsys) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for index in range(4):
        Image.new("RGB", (20, 20), (index, 0, 0)).save(images / f"{index}.png")
    out = tmp_path / "run"
    flags = ["--fused", "--dry-run", "--data", str(images), "--resolution", "16", "--out", str(out)]
    assert main([*flags, "--batch-size", "2"]) == 0
    text = capsys.readouterr().out
    assert "4 images" in text and "discriminator" in text and "activations" in text and "resolution 16" in text
    assert not out.exists()
    with pytest.raises(InputError, match="larger than the data set"):
        main([*flags, "--batch-size", "5"])


def test_fused_is_strict(tmp_path: Path, monkeypatch, capsys) -> None:
    class Row(NamedTuple):
        operator: str = "resize_conv_act"
        device: str = "cpu"
        kind: str = "none"
        why: str = "not built; use --eager"

    monkeypatch.setattr("engine.ops.explain", lambda: [Row("gram"), Row(device="cuda"), Row()])
    out = tmp_path / "run"
    with pytest.raises(InputError, match="resize_conv_act cannot run on cpu: not built; use --eager"):
        main(["--fused", "--device", "cpu", "--out", str(out)])
    assert not out.exists()
    require_fused(tiny_config(mode="--eager"))


GPU_FAILURES = [
    ("Triton Error [CUDA]: the provided PTX was compiled with an unsupported toolchain.", "update the driver"),
    ("CUDA error: no kernel image is available for execution on the device", "the torch build that has"),
    ("Failed to find C compiler. Please specify via CC environment variable", "install gcc or clang"),
    ("ptxas fatal: Value 'sm_120' is not defined for option 'gpu-name'", "pip install --upgrade triton"),
    ("something new", "a small one fails with RuntimeError: something new"),
]


@pytest.mark.parametrize(("raised", "says"), GPU_FAILURES)
def test_a_gpu_that_runs_no_kernel_is_found_before_any_work(raised: str, says: str, monkeypatch) -> None:
    def fails(*args: object, **options: object) -> None:
        raise RuntimeError(f"{raised}\nand more")

    monkeypatch.setattr("engine.ops.explain", lambda: [])
    monkeypatch.setattr(torch, "ones", fails)
    with pytest.raises(InputError, match="--fused: the GPU kernels cannot run here") as caught:
        require_fused(TrainConfig(fused=True, device="cuda"))
    assert says in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(("raised", "says"), GPU_FAILURES[:-1])
def test_a_kernel_that_fails_later_is_one_line_too(raised: str, says: str, capsys) -> None:
    def fails(argv: list[str]) -> int:
        raise RuntimeError(raised)

    assert command(fails) == 2
    complaint = capsys.readouterr().err
    assert says in complaint and complaint.count("\n") == 1


def test_a_gpu_with_too_little_memory_is_found_before_any_work(monkeypatch) -> None:
    config = RefinerConfig(fused=True, device="cuda", filters=64, batch_size=64, inject=(8, 16))
    needed = sum(step_bytes(config).values())
    for free, fits in ((needed, True), (needed - 1, False)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda free=free: (free, 80 << 30))
        with contextlib.nullcontext() if fits else pytest.raises(InputError, match="GiB are free; lower --batch-size"):
            require_memory(config)
    require_memory(TrainConfig(device="cpu"))


@pytest.mark.parametrize(("precision", "tf32"), [("fp32", False), ("tf32", True), ("bf16", False)])
def test_only_tf32_is_tf32(precision: str, tf32: bool) -> None:
    places = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before, threads = [place.allow_tf32 for place in places], torch.get_num_threads()
    try:
        for place in places:
            place.allow_tf32 = not tf32
        set_machine(TrainConfig(device="cuda", precision=precision, threads=1))
        assert [place.allow_tf32 for place in places] == [tf32, tf32]
    finally:
        for place, value in zip(places, before, strict=True):
            place.allow_tf32 = value
        torch.set_num_threads(threads)


def test_cut_after(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "x": 0.1}\n{"step": 2}\n{"step": 3}\n{"st')
    cut_after(path, 2)
    assert path.read_text() == '{"step": 1, "x": 0.1}\n{"step": 2}\n'
    cut_after(tmp_path / "none", 2)
    assert not (tmp_path / "none").exists()


def test_meter_finds_the_first_bad_step() -> None:
    meter = LossMeter(torch.device("cpu"))
    for step, value in enumerate([1.0, float("inf"), 2.0, float("nan")], 1):
        meter.add(step, {"a": torch.tensor(value), "b": torch.tensor(1.0)})
    values, bad = meter.read()
    assert bad == {"a": 2} and values["b"] == 1


def test_grid_has_labels_and_rounded_pixels() -> None:
    rows = {name: torch.full((2, 1, 16, 16), value) for name, value in (("input 8", -1.0), ("refined", 0.1))}
    grid = np.asarray(draw_grid(rows))
    assert (grid[:, -10] == 140).all(-1).any() and (grid[:, -10] == 0).all(-1).any()
    assert (grid[:, :60].min(), grid[:, :60].max()) == (0, 255)  # labels are black on white
    pixels = picture_pixels(torch.tensor([-2.0, -1, 0, 1, 2]).view(1, 1, 1, 5))
    assert pixels[0, 0, :, 0].tolist() == [0, 0, 128, 255, 255]


def test_random_state_round_trip() -> None:
    import random

    random_state.seed_all(5)
    saved = random_state.capture()
    drawn = (random.random(), np.random.randn(3).tolist(), torch.randn(3).tolist())
    random_state.restore(saved)
    assert drawn == (random.random(), np.random.randn(3).tolist(), torch.randn(3).tolist())


@pytest.mark.parametrize(
    "change",
    [
        lambda state: {},
        lambda state: state | {"system": [1]},
        lambda state: state | {"loader": 3},
        lambda state: state | {"random": {}},
        lambda state: state | {"meter": {"names": 1}},
        lambda state: state | {"system": state["system"] | {"optimisers": {"generator": {0: 7}}}},
    ],
)
def test_a_state_that_is_not_that_of_the_run(tmp_path: Path, change) -> None:
    train(tiny_config(*FLAGS, out=tmp_path))
    saved = checkpoint.load(tmp_path)
    checkpoint.save(tmp_path, 13, saved.weights, change(saved.state), saved.config)
    with pytest.raises(InputError, match="step_00000013 is not that of this run"):
        train(tiny_config(*FLAGS, "--resume", "--steps", "20", out=tmp_path))
