"""pytest plugin of `python -m benchmarks.gpu`: keeps each result as it comes, and ends a process that CUDA has left.

The tests run in several processes (pytest-xdist), which replaces one that has ended. KILN_GPU_OUT names the folder for
rows.jsonl and failures.txt. Where pytest-timeout is, a test that hangs ends its process too.
"""

import json
import os
from pathlib import Path

import pytest

# after one of these nothing that the process does can be trusted: a lost context, a recording that was never ended
LOST = (
    "CUDA error",
    "Triton Error [CUDA]",
    "could not be recorded as a CUDA graph",
    "stream is capturing",
    "during capture",
    "CUBLAS_STATUS",
    "CUDNN_STATUS",
    "INTERNAL ASSERT",
)
# the longest first, so that no process is left with one at the end
FIRST = ("test_compiles_in_one_graph", "every_system", "test_benchmark_shapes", "test_gpu_engine")
LAST_FRAMES = 9000  # characters of a traceback; its end tells most
CRASHED = "???"  # how pytest-xdist calls the phase in which a process ended


class Results:
    """Writes results where the tests are led from, and ends its process where they run if CUDA has left it."""

    def __init__(self, out: Path, worker: bool):
        self._out, self._worker = out, worker
        self._lost = False
        self._failed: set[str] = set()

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Sorts the tests by FIRST, in every process alike."""
        items.sort(key=lambda item: next((n for n, words in enumerate(FIRST) if words in item.nodeid), len(FIRST)))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keeps what a test came to."""
        text = report.longreprtext if report.failed else ""
        self._lost = self._lost or any(words in text for words in LOST)
        if self._worker or (report.when != "call" and report.passed):
            return
        if report.when == CRASHED and report.nodeid in self._failed:
            return  # its process was ended because it had failed
        row = {"part": "tests", "test": report.nodeid, "outcome": report.outcome, "seconds": round(report.duration, 2)}
        if report.skipped:
            row["why"] = str(report.longrepr)[-200:]
        if report.failed:
            self._failed.add(report.nodeid)
            lines = [line[1:].strip() for line in text.splitlines() if line.startswith("E ")] or text.splitlines()
            row["why"] = next(iter(lines), "")[:400]
            output = "".join(f"\n--- {name}\n{content[-3000:]}" for name, content in report.sections)
            self._append("failures.txt", f"\n{'=' * 100}\n{report.nodeid}\n{text[-LAST_FRAMES:]}{output}\n")
        self._append("rows.jsonl", json.dumps(row) + "\n")

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logfinish(self) -> None:
        """Ends a process that CUDA has left, after its reports are sent."""
        if self._worker and self._lost:
            os._exit(13)

    def _append(self, name: str, text: str) -> None:
        with (self._out / name).open("a") as file:
            file.write(text)


def pytest_configure(config: pytest.Config) -> None:
    """Registers the results."""
    results = Results(Path(os.environ["KILN_GPU_OUT"]), hasattr(config, "workerinput"))
    config.pluginmanager.register(results, "kiln-gpu-results")
