"""Runs commands in processes that die, or whose disk fails, at a chosen call that changes or reads a file.

A process that has done the imports is started under failpoints.c, which counts such calls; each command then runs in a
fork of it, which takes a tenth of the time of a new process.
"""

import contextlib
import ctypes
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any, NamedTuple

from tests.support.places import ROOT

COMPILER = shutil.which("gcc")
SOURCE = Path(__file__).with_suffix(".c")
COUNT, KILL, FAIL = 1, 2, 3  # modes of failpoints.c
SECONDS = 120  # in which a command ends


class Outcome(NamedTuple):
    """How a command ended.

    status: its exit status; negative: the signal that killed it
    calls:  a letter for each call that was counted: o(pen) w(rite) s(ync) c(hmod) n: rename m(kdir) u(nlink) r(ead)
    output: what it printed
    """

    status: int
    calls: str
    output: str


class Commands:
    """A process whose forks run commands. Closes with the block."""

    def __init__(self, folder: Path) -> None:
        """folder: for the library and what commands print; it exists"""
        library = folder / "failpoints.so"
        words = [COMPILER, "-O1", "-shared", "-fPIC", "-o", str(library), str(SOURCE), "-ldl"]
        subprocess.run(words, check=True)
        self._printed = folder / "printed"
        environment = os.environ | {"LD_PRELOAD": str(library), "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.failpoints"],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> "Commands":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.stdin.close()
        self._process.wait(SECONDS)

    def __call__(
        self,
        words: list[str],
        root: Path,
        mode: int = COUNT,
        at: int = -1,
        *,
        errno: int = 0,
        share: int = 0,
        lasting: bool = False,
        reads: bool = False,
        seconds: float = SECONDS,
    ) -> Outcome:
        """Run a command, of which the calls under `root` count; its cache is root/cache.

        mode:    KILL or FAIL at call number `at`; FAIL with `errno`, all later calls too where `lasting`
        share:   percent of its bytes that a write writes before that; 100: the call is done, then the process dies
        reads:   count what reads instead of what changes something
        seconds: after so long the process is killed, wherever it is
        """
        job = {
            "words": words,
            "arm": [str(root.resolve()), mode, at, errno, share, lasting, reads],
            "printed": str(self._printed),
            "seconds": seconds,
        }
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        status, calls = json.loads(self._process.stdout.readline())
        return Outcome(status, calls, self._printed.read_text(errors="replace"))


def train(words: list[str]) -> int:
    """Train a tiny refiner in the folder words[0] on random images, as `kiln train --resume` does.

    Its page is not drawn: that takes longer than the training.
    """
    from engine.training import loop, report
    from tests.support.training_fakes import FakeLoader, tiny_config

    report.render = lambda run_dir, **_: f"<html>{run_dir.name}{'.' * 5000}</html>"
    loop.image_sets = lambda config: []
    loop.open_loaders = lambda config, datasets, device: FakeLoader(config)
    flags = (
        "--steps",
        "8",
        "--checkpoint-every",
        "2",
        "--log-every",
        "1",
        "--sample-every",
        "4",
        "--keep",
        "2",
        "--resume",
    )
    return loop.train(tiny_config(*flags, mode="--fused", out=Path(words[0])), {})


def _run(words: list[str]) -> int:
    """The exit status of a command in this process."""
    from engine import cli
    from engine.training import report

    # the time of writing stands on the page
    report.time = type("Noon", (), {"strftime": staticmethod(lambda form: "noon")})
    name, *rest = words
    main = train if name == "train" else __import__(cli.COMMANDS[name][0], fromlist=["main"]).main
    return cli.status_of(name, main, rest)


def _child(job: dict[str, Any], library: ctypes.CDLL) -> None:
    """Run a job's command in this process, which then ends."""
    printed = os.open(job["printed"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(printed, 1)
    os.dup2(printed, 2)
    folder, *numbers = job["arm"]
    os.environ["KILN_CACHE"] = f"{folder}/cache"
    try:
        library.fp_arm(folder.encode(), *map(int, numbers))
        status = _run(job["words"])
    except BaseException:
        traceback.print_exc()
        status = 1
    finally:
        library.fp_disarm()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _wait(child: int, seconds: float) -> int:
    """The status of a child, which is killed after so many seconds; negative: the signal that ended it."""
    end = time.monotonic() + seconds
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > end:
            os.kill(child, signal.SIGKILL)
            end = float("inf")
        time.sleep(0.002)


def main() -> None:
    """Run the jobs that standard input names, one a line, each in a fork of this process."""
    import torch
    import torch._dynamo

    import engine.data
    import engine.data.avatars.writing
    import engine.inference.refining
    import engine.inference.sampling
    import engine.systems.began
    import engine.systems.refiner
    import engine.training.loop
    import tests.support.training_fakes

    del engine, tests
    torch.set_num_threads(1)
    library = ctypes.CDLL(None)
    quiet = io.StringIO()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
        _run(["train", f"{folder}/run"])  # imports and compiles what else the forks would, each of them
    for line in sys.stdin:
        job = json.loads(line)
        child = os.fork()
        if not child:
            _child(job, library)
        status = _wait(child, job["seconds"])
        count = library.fp_count()
        print(json.dumps([status, "".join(chr(library.fp_kind(i)) for i in range(min(count, 1 << 16)))]), flush=True)


if __name__ == "__main__":
    main()
