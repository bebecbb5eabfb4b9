"""Whatever call a process dies at, or a disk refuses, nothing is lost and nothing half looks whole."""

import errno
import json
import os
import random
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from engine import checkpoint
from engine.host.atomic_files import is_rest
from engine.systems.registry import build
from engine.training.run_lock import FILE as LOCK
from tests.data.test_video import face, write_videos
from tests.support.data_images import picture
from tests.support.failpoints import COMPILER, FAIL, KILL, Commands, Outcome
from tests.support.generator_runs import configure
from tests.support.packages import installed
from tests.support.tiny_run import make_run
from tests.support.training_fakes import assert_same

pytestmark = pytest.mark.skipif(COMPILER is None, reason="failpoints.c needs gcc")
KILLS = int(os.environ.get("KILN_KILLS", "150"))
REFUSED = [errno.ENOSPC, errno.EIO, errno.EROFS, errno.EDQUOT, errno.EACCES, errno.ESTALE, errno.ETIMEDOUT]
READING = [errno.EIO, errno.ESTALE, errno.EACCES, errno.ENOMEM, errno.EMFILE]
VARYING = r"run/(checkpoints|tensorboard)/"  # files of a run that depend on where and when it was stopped
SHARES = (0, 25, 50, 75, 100)  # percent of a write that is done before the process dies


@dataclass(frozen=True)
class Writer:
    """A command that writes.

    words: the command, given the folder of what it reads and the folder that it writes in
    start: what it needs in the folder that it writes in
    """

    words: Callable[[Path, Path], list[str]]
    start: Callable[[Path, Path], object] = lambda given, root: None


WRITERS = {
    "train": Writer(lambda given, root: ["train", str(root / "run")]),
    "report": Writer(
        lambda given, root: ["report", str(root / "run")],
        lambda given, root: shutil.copytree(given / "run", root / "run"),
    ),
    "export": Writer(lambda given, root: ["export", str(given / "run"), str(root / "hub")]),
    "refine": Writer(
        lambda given, root: ["refine", str(given / "run"), str(given / "pictures"), str(root / "refined")]
    ),
    "sample": Writer(
        lambda given, root: ["sample", str(given / "began"), str(root / "made"), "-n", "2", "--interpolations", "1"]
    ),
    "reenact": Writer(
        lambda given, root: [
            "reenact",
            str(given / "driven"),
            str(given / "pictures" / "0.png"),
            str(given / "points.npy"),
            str(root / "out"),
        ],
    ),
    "avatars": Writer(lambda given, root: ["data", "avatars", str(root / "faces"), "-n", "1", "--size", "16"]),
    "verdicts": Writer(lambda given, root: ["data", "validate", str(given / "pictures")]),
    "videos": Writer(lambda given, root: ["data", "validate", str(given / "videos")]),
}


def files(root: Path) -> dict[str, bytes]:
    """The files below a folder that have their final names."""
    paths = [path.relative_to(root) for path in sorted(root.rglob("*")) if path.is_file() and path.name != LOCK]
    return {str(path): (root / path).read_bytes() for path in paths if not any(map(is_rest, path.parts))}


def rests(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if is_rest(path.name)]


def rows(data: bytes) -> dict[int, dict[str, float]]:
    """Step -> losses of each whole row of a metrics.jsonl."""
    read = [json.loads(line) for line in data.decode().split("\n")[:-1]]
    return {row["step"]: {key: value for key, value in row.items() if key.startswith(("l", "k", "m"))} for row in read}


def losses(data: bytes) -> dict[int, dict[str, float]]:
    return {step: {k: v for k, v in row.items() if k != "memory_mb"} for step, row in rows(data).items()}


def in_tensorboard(run: Path) -> set[int]:
    """The steps whose losses TensorBoard shows."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    shown = EventAccumulator(str(run / "tensorboard"))
    shown.Reload()
    return {event.step for event in shown.Scalars("l_real")}


def state(root: Path) -> dict:
    """The state that a run is resumed from, without the time that it took."""
    saved = checkpoint.load(root / "run").state
    return {name: value for name, value in saved.items() if name != "elapsed"}


class Lab:
    """The writers, what each of them writes undisturbed, and the calls that it takes for that."""

    def __init__(self, commands: Commands, folder: Path) -> None:
        self.run, self.folder, self.given = commands, folder, folder / "given"
        make_run(self.given / "run", resolution=16, inject=(8,), model="A")
        for place, system in {
            "began": build(configure("began"), "cpu"),
            "driven": build(configure("reenact", d_filters=2, vgg_width=2), "cpu"),
        }.items():
            checkpoint.save(self.given / place, 3, system.weights(), system.state_dict(), system.config)
        np.save(self.given / "points.npy", np.random.default_rng(0).uniform(0, 16, (2, 68, 2)).astype(np.float32))
        write_videos(self.given / "videos", {"001": [face(70, 60, 16), face(73, 60, 16)]})
        (self.given / "pictures").mkdir()
        for number in range(2):
            picture(number, 20, 20).save(self.given / "pictures" / f"{number}.png")
        (self.given / "run" / "metrics.jsonl").write_text('{"step": 1, "k": 0.5}\n')
        self.whole: dict[str, dict[str, bytes]] = {}
        self.calls: dict[str, str] = {}

    def fresh(self, name: str) -> Path:
        """An empty folder for a writer, with what it needs there."""
        root = self.folder / "roots" / name
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir(parents=True)
        WRITERS[name].start(self.given, root)
        return root

    def command(self, name: str, root: Path, *disturbance, **options) -> Outcome:
        return self.run(WRITERS[name].words(self.given, root), root, *disturbance, **options)

    def learn(self, name: str) -> None:
        """See what a writer writes when nothing disturbs it."""
        if name not in self.whole:
            root = self.fresh(name)
            outcome = self.command(name, root)
            assert outcome.status == 0, outcome.output
            assert not rests(root)
            self.whole[name], self.calls[name] = files(root), outcome.calls
            if name == "train":
                self.state = state(root)

    def check(self, name: str, root: Path) -> None:
        """Nothing half looks whole: each file that has its final name is what the undisturbed command writes."""
        whole = self.whole[name]
        for place, data in files(root).items():
            if place.endswith("metrics.jsonl") and name == "train":
                expected = losses(whole[place])
                assert all(row == expected[step] for step, row in losses(data).items()), place
            elif name == "videos" and "validated" in place:
                json.loads(data)  # the times of the files that this run has made
            elif not re.match(VARYING, place) and place != "run/config.json":
                assert data == whole[place], place
        for path in (root / "run" / "checkpoints").glob("step_*") if name == "train" else ():
            assert checkpoint.problem(path) is None, path
            same = whole.get(str((path / "weights.safetensors").relative_to(root)))
            assert same in (None, (path / "weights.safetensors").read_bytes())
            recorded = losses((root / "run" / "metrics.jsonl").read_bytes())
            done = set(range(1, checkpoint.load(path).step + 1))
            assert done <= set(recorded)
            if installed("tensorboard"):
                assert done <= in_tensorboard(root / "run")

    def is_done(self, name: str, root: Path) -> bool:
        """Whether a command came to its end before it died; some commands then refuse the folder, which is full."""
        return name != "train" and files(root).keys() == self.whole[name].keys() and not rests(root)

    def finish(self, name: str, root: Path) -> None:
        """The same command, undisturbed, ends with what it writes when nothing was disturbed before."""
        if self.is_done(name, root):
            return
        outcome = self.command(name, root)
        assert outcome.status == 0, outcome.output
        self.check(name, root)
        # an old checkpoint that could not be removed stays, and is told; each start has its own file of events
        others = {place for place in files(root).keys() ^ self.whole[name].keys() if not re.match(VARYING, place)}
        assert not others and not rests(root), (others, rests(root))
        if name == "train":
            assert_same(state(root), self.state)
            assert losses(files(root)["run/metrics.jsonl"]) == losses(self.whole[name]["run/metrics.jsonl"])


def newest(root: Path) -> int:
    """The step of the newest checkpoint that is whole; 0 for none."""
    if not (root / "run" / "checkpoints").is_dir():
        return 0
    path = checkpoint.latest(root / "run")
    return int(path.name.removeprefix("step_")) if path else 0


@pytest.fixture(scope="module")
def lab(tmp_path_factory) -> Iterator[Lab]:
    folder = tmp_path_factory.mktemp("lab")
    with Commands(folder) as commands:
        yield Lab(commands, folder)


def kill(lab: Lab, name: str, root: Path, draw: random.Random) -> str:
    """Run a command that is killed: at a call that is drawn, or a time; returns where, for a message."""
    if draw.random() < 0.2:
        seconds = draw.uniform(0, 0.6)
        lab.command(name, root, seconds=seconds)
        return f"after {seconds:.3f} s"
    at, share = draw.randrange(len(lab.calls[name])), draw.choice(SHARES)
    outcome = lab.command(name, root, KILL, at, share=share)
    assert outcome.status in (0, -9) or lab.is_done(name, root), outcome.output
    return f"at call {at} ({outcome.calls[-5:]}), {share} %"


@pytest.mark.parametrize("name", WRITERS)
def test_kills(lab: Lab, name: str) -> None:
    """Kills of one command after another, on what the one before left; then it runs to its end."""
    lab.learn(name)
    draw, root, before = random.Random(name), lab.fresh(name), 0
    for _ in range(4 if name == "train" else 2):
        where = kill(lab, name, root, draw)
        lab.check(name, root)
        assert newest(root) >= before, where
        before = newest(root)
    lab.finish(name, root)


@pytest.mark.slow
def test_many_kills(lab: Lab) -> None:
    """KILN_KILLS random kills (150 without it) of all writers, in chains that run to their end."""
    draw, done = random.Random(KILLS), 0
    while done < KILLS:
        name = draw.choices(list(WRITERS), [4, 2, 2, 2, 1, 2, 1, 0.3, 1])[0]
        lab.learn(name)
        root, before = lab.fresh(name), 0
        for _ in range(min(KILLS - done, draw.randrange(1, 12))):
            where = kill(lab, name, root, draw)
            done += 1
            lab.check(name, root)
            assert newest(root) >= before, (name, where)
            before = newest(root)
        lab.finish(name, root)


def refuse(lab: Lab, name: str, root: Path, draw: random.Random, at: int | None = None) -> None:
    """Run a command of which a call that changes something fails, as drawn."""
    at = draw.randrange(len(lab.calls[name])) if at is None else at
    number, share, lasting = draw.choice(REFUSED), draw.choice((0, 0, 50)), draw.random() < 0.3
    outcome = lab.command(name, root, FAIL, at, errno=number, share=share, lasting=lasting)
    in_order(outcome, name, at, os.strerror(number), share, lasting)


def in_order(outcome: Outcome, *about: object) -> None:
    """A command goes on without what a disk refused, or ends with one line."""
    assert outcome.status in (0, 2) and "Traceback" not in outcome.output, (about, outcome)
    assert outcome.status == 0 or outcome.output.count(": error: ") == 1, (about, outcome)


@pytest.mark.parametrize("name", WRITERS)
def test_refused_writes(lab: Lab, name: str) -> None:
    """No room, no rights, a failing disk, at calls drawn: one line, and the same command works when there is room."""
    lab.learn(name)
    draw = random.Random(name)
    for _ in range(2):
        root = lab.fresh(name)
        refuse(lab, name, root, draw)
        lab.check(name, root)
        lab.finish(name, root)


@pytest.mark.slow
@pytest.mark.parametrize("name", WRITERS)
def test_many_refused_writes(lab: Lab, name: str) -> None:
    """12 calls of a writer, drawn; where KILN_KILLS asks for more than in `make test-all`, each of its calls."""
    lab.learn(name)
    draw, total = random.Random(name), len(lab.calls[name])
    for at in draw.sample(range(total), total if KILLS > 150 else min(total, 12)):
        root = lab.fresh(name)
        refuse(lab, name, root, draw, at=at)
        lab.check(name, root)
        lab.finish(name, root)


@pytest.mark.parametrize("name", ["export", "refine", "sample", "reenact", "verdicts", "videos"])
def test_refused_reads(lab: Lab, name: str) -> None:
    """A disk that cannot read a file: one line, or a line for a picture, and nothing wrong is written."""
    lab.learn(name)
    draw, root = random.Random(name), lab.fresh(name)
    words = WRITERS[name].words(lab.given, root)
    calls = lab.run(words, lab.given, reads=True).calls
    for at in draw.sample(range(len(calls)), 2):
        root, number = lab.fresh(name), draw.choice(READING)
        in_order(lab.run(words, lab.given, FAIL, at, errno=number, reads=True), name, at, os.strerror(number))
        lab.check(name, root)
        lab.finish(name, root)
    shutil.rmtree(lab.given / "cache", ignore_errors=True)
