"""Two processes started by torchrun train as one does."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from engine import checkpoint
from engine.data import open_dataset
from engine.distributed import group, torchrun
from engine.errors import InputError, SharedError
from engine.systems.registry import SYSTEMS, build
from engine.train import main
from engine.training import report
from engine.training.resolve import resolve
from engine.training.setup import prepare_folder
from tests.support.data_images import write_pictures
from tests.support.packages import installed
from tests.support.ranks_worker import CASES, STEPS, TRAINING, configure, interrupted, load
from tests.support.training_fakes import batch_of, tiny_config

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with pictures and, where DALI reads them, the run "one" of one process and "from-one", its beginning."""
    folder = tmp_path_factory.mktemp("ranks")
    write_pictures(folder / "images", 12)
    write_pictures(folder / "fewer", 11)
    if installed("nvidia.dali"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(report, "write", lambda run_dir: None)
            assert main([*TRAINING, "--data", str(folder / "images"), "--out", str(folder / "one")]) == 0
        interrupted(folder / "one", folder / "from-one")
    return folder


@pytest.fixture(scope="module")
def ranks(folder: Path) -> list[dict]:
    """What each of two ranks found; without DALI nothing of "batches" and "trained"."""
    words = [*TORCHRUN, "-m", "tests.support.ranks_worker", str(folder)]
    done = subprocess.run(words, env=environment(), capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(2)]


@pytest.fixture(scope="module")
def runs(folder: Path) -> Path:
    """The folder, for what needs its pictures."""
    pytest.importorskip("nvidia.dali")
    return folder


# case -> how many steps are compared. Sums over ranks round differently. Adam makes a full step of a gradient that is
# nothing but rounding, and in networks of two filters with a norm over a few pixels such a difference grows quickly
DRIFTING = {"cyclegan": 6, "ggb": 4, "reenact dropout": 6}


@pytest.mark.parametrize("case", CASES)
def test_losses_are_those_of_one_process(ranks: list[dict], case: str) -> None:
    config = configure(case)
    torch.manual_seed(5)
    system = build(config, "cpu")
    one = [{k: v.item() for k, v in system.step(batch_of(config, number)).items()} for number in range(STEPS)]
    two = ranks[0]["losses"][case]
    assert ranks[1]["losses"][case] == two and len(two) == STEPS
    for a, b in list(zip(one, two, strict=True))[: DRIFTING.get(case.rsplit(" ", 1)[0])]:
        assert a.keys() == b.keys()
        for name in a:
            # untrained judges of face parts give logits that differ only by rounding: their accuracy means nothing
            if not name.startswith("accuracy"):
                assert b[name] == pytest.approx(a[name], rel=1e-4, abs=1e-6), name


def test_every_system_is_here() -> None:
    assert {system for system, *_ in CASES.values()} == set(SYSTEMS)


@pytest.mark.parametrize("kind", ["resident", "dali"])
def test_ranks_take_disjoint_shares_of_what_one_would_take(runs: Path, ranks: list[dict], kind: str) -> None:
    images = open_dataset(runs / "images", channels=3, resolution=16)
    loader, seen = load(images, kind, 0, 1), []
    for number in range(3):
        whole = loader.next()
        # a global batch is two batches of two images: each rank has one image of each
        for rank in range(2):
            indices, sums = ranks[rank]["batches"][kind][0][number]
            assert indices == whole.indices[rank::2].tolist()
            assert sums == whole.images.sum((1, 2, 3))[rank::2].tolist()
            seen += indices
    assert sorted(seen) == list(range(12))
    loader.close()
    # a rank decodes its half of the files; the streaming loader is up to two batches ahead
    read = [rank["batches"][kind][1] for rank in ranks]
    assert read == [6, 6] if kind == "resident" else max(read) <= 10


def test_an_error_of_one_rank_is_that_of_all(ranks: list[dict]) -> None:
    for rank in ranks:
        assert rank["errors"]["first"] == "of the first" and rank["errors"]["second"] == "of the second"
        assert "have come apart" in rank["errors"]["apart"]


def test_ranks_that_differ_are_named_on_all(ranks: list[dict]) -> None:
    for rank in ranks:
        assert rank["errors"]["same"] is None
        assert rank["errors"]["different"] == "rank 0 has number 0, but rank 1 has number 1: take one"
        assert "rank 1 has Kiln 0.0.1 with torch" in rank["errors"]["versions"]


@pytest.mark.parametrize("many", [2, 3, 40])
def test_many_ranks_that_differ_are_one_line(monkeypatch, many: int) -> None:
    values = ["a"] + ["b"] * (many - 1)
    monkeypatch.setattr(group, "of_all", lambda mine: values)
    with pytest.raises(SharedError) as caught:
        group.require_alike("a", "take a")
    expected = {
        2: "rank 0 has a, but rank 1 has b: take a",
        3: "rank 0 has a, but rank 1 has b (rank 2 differs from rank 0 too): take a",
        40: "rank 0 has a, but rank 1 has b (ranks 2, 3, 4, 5, 6, 7, 8, 9, ... differ from rank 0 too): take a",
    }
    assert str(caught.value) == expected[many]


def test_gradients_are_averaged_where_they_are(ranks: list[dict]) -> None:
    for *steps, without in (rank["gradients"] for rank in ranks):
        assert without
        for gradient, same, strides in steps:
            assert gradient == [2.0 * number for number in range(24)] and same and all(strides)


def test_a_batch_that_does_not_divide_is_told_once(runs: Path, ranks: list[dict]) -> None:
    status, text = ranks[0]["trained"]["uneven"]
    assert status == 2 and text.count("\n") == 1 and "does not divide among them; take 6" in text
    assert ranks[1]["trained"]["uneven"] == [2, ""]


def test_a_folder_that_is_taken_is_refused_on_all_ranks(runs: Path, ranks: list[dict]) -> None:
    assert "is not empty" in ranks[0]["trained"]["taken"][1]
    assert ranks[0]["trained"]["taken"][0] == 2 and ranks[1]["trained"]["taken"] == [2, ""]


def test_a_signal_to_one_rank_stops_all_after_the_same_step(runs: Path, ranks: list[dict]) -> None:
    assert [rank["trained"]["stopped"] for rank in ranks] == [143, 143]
    assert 3 <= checkpoint.load(runs / "stopped").step < 3000


def test_a_closed_terminal_of_one_rank_stops_all(runs: Path, ranks: list[dict]) -> None:
    assert [rank["trained"]["hung up"] for rank in ranks] == [129, 129]
    assert 3 <= checkpoint.load(runs / "hung up").step < 3000


@pytest.mark.parametrize(
    ("case", "says"),
    [
        ("other pictures", ("12 images in the data set", "rank 1 has 11 images", "give all machines the same files")),
        ("other options", ("--seed 0", "rank 1 has the options", "--seed 1", "the same command")),
    ],
)
def test_ranks_that_do_not_fit_are_refused_at_once(runs: Path, ranks: list[dict], case: str, says: tuple) -> None:
    status, text = ranks[0]["trained"][case]
    assert status == 2 and text.count("\n") == 1 and all(part in text for part in says)
    assert ranks[1]["trained"][case] == [2, ""]
    assert not (runs / "refused").exists()


def same_end(a: Path, b: Path) -> bool:
    files = [checkpoint.latest(run) / "weights.safetensors" for run in (a, b)]
    records = [records_of(run) for run in (a, b)]
    return files[0].read_bytes() == files[1].read_bytes() and records[0] == records[1]


def records_of(run: Path) -> list[dict]:
    """The records of a run without the values that depend on time."""
    own = {"time", "images_per_s", "data_wait", "memory_mb"}
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in own} for line in lines]


def assert_close(a: Path, b: Path) -> None:
    one, other = records_of(a), records_of(b)
    assert len(one) == len(other) == 10
    for x, y in zip(one, other, strict=True):
        assert x == pytest.approx(y, rel=1e-4, abs=1e-6)


def test_a_run_of_two_ranks_is_that_of_one(runs: Path, ranks: list[dict]) -> None:
    assert ranks[0]["trained"]["whole"] == 0
    assert_close(runs / "whole", runs / "one")
    one, two = (json.loads((runs / run / "config.json").read_text()) for run in ("one", "whole"))
    assert two["ranks"] == {"value": 2, "origin": "launcher"} and one["ranks"]["value"] == 1
    states = [checkpoint.load(runs / run).state for run in ("one", "whole")]
    assert states[0]["loader"] == states[1]["loader"]
    assert torch.equal(states[0]["random"]["torch"], states[1]["random"]["torch"])


def test_resumed_with_as_many_ranks_it_ends_with_the_same_bits(runs: Path, ranks: list[dict]) -> None:
    assert ranks[0]["trained"]["resumed"] == 0 and same_end(runs / "resumed", runs / "whole")


def test_resumed_with_another_number_of_ranks(runs: Path, ranks: list[dict], monkeypatch) -> None:
    assert ranks[0]["trained"]["from one"] == 0
    assert_close(runs / "from-one", runs / "one")
    monkeypatch.setattr(report, "write", lambda run_dir: None)
    interrupted(runs / "whole", runs / "from-two")
    assert main(["--resume", "--out", str(runs / "from-two")]) == 0
    assert_close(runs / "from-two", runs / "one")


def worker(launcher: int, rank: int) -> int | None:
    """The process that torchrun started as that rank, from /proc."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((process / "stat").read_text().rsplit(") ", 1)[1].split()[1])
            if parent == launcher and f"RANK={rank}".encode() in (process / "environ").read_bytes().split(b"\0"):
                return int(process.name)
        except (OSError, IndexError):
            continue
    return None


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds the process in /proc")
def test_a_killed_rank_is_started_again_and_the_run_goes_on(runs: Path, ranks: list[dict]) -> None:
    out = runs / "killed"
    words = [*TORCHRUN, "--max-restarts", "1", "-m", "engine.train", *TRAINING, "--data", str(runs / "images")]
    with subprocess.Popen(
        [*words, "--out", str(out)], env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        while process.poll() is None and not (out / "checkpoints" / "step_00000010").exists():
            time.sleep(0.002)
        # the first checkpoint is written; rank 1 waits while rank 0 writes the report
        os.kill(worker(process.pid, 1), signal.SIGKILL)
        text, _ = process.communicate(timeout=120)
    assert process.returncode == 0, text
    assert "going on from step" in text and "error: the connection to another rank broke" in text
    assert text.count("Traceback") == 0
    assert same_end(out, runs / "whole")


def test_a_restart_goes_on_only_with_the_run_of_its_launch(tmp_path: Path, monkeypatch) -> None:
    flags = ["--eager", "--out", str(tmp_path / "run")]
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "1")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")
    torchrun.mark(tmp_path / "run")
    assert not resolve(flags)[0].resume  # this is the first start
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert resolve(flags)[0].resume
    # a folder that the first start refused is refused after a restart too
    with pytest.raises(InputError, match="not empty"):
        prepare_folder(replace(resolve(flags)[0], resume=False))
    assert not resolve(flags)[0].resume
    torchrun.mark(tmp_path / "run")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "another's")
    assert not resolve(flags)[0].resume
    # torchrun counts no restart when machines come or go, but its store keeps the word of the launch
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    monkeypatch.setattr(torchrun, "_token", "word")
    torchrun.mark(tmp_path / "run")
    assert resolve(flags)[0].resume
    monkeypatch.setattr(torchrun, "_token", "of a later launch of that name")
    assert not resolve(flags)[0].resume
    with pytest.raises(InputError, match="add --out"):
        resolve(["--eager"])


def test_one_process_has_no_launcher_and_no_hook(monkeypatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    assert (torchrun.rank(), torchrun.size(), torchrun.local_rank(), torchrun.local_size()) == (0, 1, 0, 1)
    system = build(tiny_config(), "cpu")
    assert not any(optimiser._optimizer_step_pre_hooks for optimiser in system.optimisers.values())
    assert not torch.distributed.is_initialized()


def test_what_torchrun_says(monkeypatch) -> None:
    said = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "a"}
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MASTER_PORT", raising=False)
    assert torchrun.size() == 1  # without MASTER_PORT the variables are not those of torchrun
    monkeypatch.setenv("MASTER_PORT", "1")
    assert (torchrun.rank(), torchrun.size(), torchrun.local_rank(), torchrun.local_size()) == (5, 8, 1, 2)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(6))
    assert torchrun.cores() == 3
    config, origins = resolve(["--eager", "--batch-size", "16"])
    assert (config.ranks, config.threads, origins["ranks"], config.of_rank().batch_size) == (8, 3, "launcher", 2)
    with pytest.raises(InputError, match="does not divide"):
        resolve(["--eager", "--batch-size", "20"])


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("graph", ["--cuda-graph", "--no-cuda-graph"])
@pytest.mark.parametrize("system", ["refiner", "dcgan"])
def test_two_gpus_train_as_one(runs: Path, tmp_path: Path, system: str, graph: str) -> None:
    """NCCL, inside and outside the CUDA graph, which takes over after the third step."""
    flags = ["--fused", "--system", system, "--device", "cuda", "--data", str(runs / "images"), "--batch-size", "6"]
    flags += ["--resolution", "16", "--filters", "4", "--steps", "8", "--log-every", "1", "--sample-every", "0"]
    starts = {"one": [sys.executable], "two": TORCHRUN}
    for name, start in starts.items():
        words = [*start, "-m", "engine.train", *flags, graph, "--out", str(tmp_path / name)]
        done = subprocess.run(words, env=environment(), capture_output=True, text=True, timeout=280)
        assert done.returncode == 0, done.stderr
    for x, y in zip(*(records_of(tmp_path / name) for name in starts), strict=True):
        assert x == pytest.approx(y, rel=1e-3, abs=1e-5)
