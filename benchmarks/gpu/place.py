"""Where a part of `python -m benchmarks.gpu` works: how it runs programs, and keeps what they find as it comes."""

import concurrent.futures
import contextlib
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.checkout import ROOT

OK, FAILED, NOT_RUN = "ok", "FAILED", "not run"
LAST_WORDS = 8000  # characters of a failing program's output that failures.txt gets
_writing = threading.Lock()


@dataclass
class Outcome:
    """What a part came to.

    status:  OK, FAILED or NOT_RUN
    line:    one line about it
    figures: rows for the table of speed-ups
    results: everything for gpu.json
    """

    status: str
    line: str
    figures: list[list[str]] = field(default_factory=list)
    results: object = None


@dataclass(frozen=True)
class Ended:
    """A program that has ended: its exit status (None: it was ended after its time), and what it printed."""

    status: int | None
    printed: str
    seconds: float

    @property
    def last_line(self) -> str:
        """The last line that is not empty."""
        return next((line.strip() for line in reversed(self.printed.splitlines()) if line.strip()), "")

    @property
    def why(self) -> str:
        """Why it is a failure, in one line."""
        how = f"ended after {self.seconds:.0f} s" if self.status is None else f"exit status {self.status}"
        return f"{how}: {self.last_line[:200]}"

    def last_json(self) -> dict:
        """The last line that is a JSON object; {} where there is none."""
        for line in reversed(self.printed.splitlines()):
            if line.startswith("{"):
                return json.loads(line)
        return {}


@dataclass(frozen=True)
class Place:
    """A part's name, the user's folder, a folder that is deleted afterwards, and the seconds that the part has."""

    part: str
    out: Path
    scratch: Path
    seconds: float
    begun: float = field(default_factory=time.monotonic)

    @property
    def left(self) -> float:
        """Seconds that are left to the part."""
        return self.seconds - (time.monotonic() - self.begun)

    def write(self, name: str, text: str) -> None:
        """Appends to a file of the user's folder."""
        with _writing, (self.out / name).open("a") as file:
            file.write(text)

    def row(self, values: Mapping[str, object]) -> None:
        """Appends a row to rows.jsonl."""
        self.write("rows.jsonl", json.dumps({"part": self.part, **values}, default=str) + "\n")

    def failure(self, title: str, text: str) -> None:
        """Appends what failed to failures.txt."""
        self.write("failures.txt", f"\n{'=' * 100}\n{self.part}: {title}\n{text[-LAST_WORDS:].rstrip()}\n")

    def run(self, *command: str, env: Mapping[str, str] | None = None, seconds: float | None = None) -> str:
        """`attempt`, whose output is returned. Raises RuntimeError if the program fails or is ended."""
        ended = self.attempt(*command, env=env, seconds=seconds)
        if ended.status != 0:
            raise RuntimeError(ended.why)
        return ended.printed

    def attempt(
        self,
        *command: str,
        env: Mapping[str, str] | None = None,
        seconds: float | None = None,
        fails: Sequence[int] | None = None,
        tag: str = "",
    ) -> Ended:
        """Runs a program in the root of the checkout; each line that it prints goes to gpu.log at once.

        env:     added to the environment
        seconds: after which it is ended with every process that it started; the part's seconds end it too
        fails:   exit statuses that go to failures.txt with the program's last words; None: all but 0
        tag:     before each line in gpu.log, for programs that run side by side
        """
        started = time.monotonic()
        seconds = max(1.0, min(self.left, self.left if seconds is None else seconds))
        self.write("gpu.log", f"\n$ {' '.join(command)}\n")
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            cwd=ROOT,
            env=os.environ
            | {"PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}", "PYTHONUNBUFFERED": "1"}
            | dict(env or {}),
            start_new_session=True,
        )
        lines: list[str] = []

        def read() -> None:
            for line in child.stdout:
                lines.append(line)
                self.write("gpu.log", f"[{tag}] {line}" if tag else line)

        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        try:
            status = child.wait(seconds)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            _end(child)
        reader.join(5.0)
        ended = Ended(status, "".join(lines), time.monotonic() - started)
        if status != 0 and (fails is None or status is None or status in fails):
            self.failure(" ".join(command), f"{ended.why}\n{ended.printed}")
        return ended

    def together(
        self,
        programs: Mapping[str, Sequence[str]],
        at_once: int,
        seconds: float,
        then: Callable[[str, Ended], None] = lambda name, ended: None,
        **options: object,
    ) -> dict[str, Ended]:
        """Runs programs by name, so many at once, each for so many seconds; those not begun in time are left out.

        then: called with each as it ends, one at a time; options: of `attempt`
        """
        ended: dict[str, Ended] = {}
        telling = threading.Lock()

        def one(name: str) -> None:
            if self.left > 1:
                ended[name] = self.attempt(*programs[name], seconds=seconds, tag=name, **options)
                with telling:
                    then(name, ended[name])

        with concurrent.futures.ThreadPoolExecutor(at_once) as pool:
            list(pool.map(one, programs))
        return {name: ended[name] for name in programs if name in ended}


def _end(child: subprocess.Popen) -> None:
    """Ends a program and every process that it has started and left."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


@dataclass(frozen=True)
class Part:
    """A part: its name, the seconds that it may take, what it shows, and the function that does it."""

    name: str
    seconds: float
    shows: str
    run: Callable[[Place], Outcome]
