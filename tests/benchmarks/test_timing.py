"""How a time is taken, what the machine allows, and how rows and tables are made. No timing is asserted."""

import gc
import subprocess
import sys
import time
import weakref
from pathlib import Path

import pytest
import torch

from benchmarks.arguments import Arguments
from benchmarks.suites import latency, systems
from benchmarks.timing import measure, rows
from benchmarks.timing.measure import Limits, Timing, interleaved
from benchmarks.timing.table import Table
from engine.host import environment
from engine.host.tf32 import tf32_allowed
from tests.support.places import ROOT
from tests.support.pretended_cuda import PretendedCuda

ASKS_FOR_HUGE_PAGES = """
import os, torch
from benchmarks.timing.measure import steady_memory
steady_memory()
held = torch.ones(1 << 24)
flags = [line.split() for line in open("/proc/self/smaps") if line.startswith("VmFlags")]
print(any("hg" in words for words in flags), "THP_MEM_ALLOC_ENABLE" in os.environ)
"""


def test_interleaving():
    order = []
    calls = {name: lambda name=name: (order.append(name), time.sleep(0.001)) for name in "ab"}
    rounds = []
    timings = interleaved(calls, rounds=3, least_seconds=0, after_round=rounds.append)
    assert "".join(order) == "aabb" + "ab" + "ba" + "ab" and rounds == [1, 2, 3]
    assert Timing([1.0, 2.0, 3.0, 4.0]).to_json()["median"] == 2.5 and len(timings["a"].samples) == 3


def test_rounds_go_on_until_enough_is_sampled():
    rounds, calls = [], {"a": lambda: time.sleep(0.001)}
    timings = interleaved(calls, rounds=2, least_seconds=0, in_all=0.02, after_round=rounds.append)
    assert 2 < len(timings["a"].samples) <= 20 and rounds == [1, 2]


@pytest.mark.skipif(
    not Path("/sys/kernel/mm/transparent_hugepage/enabled").exists(),
    reason="the system has no transparent huge pages",
)
def test_steady_memory_asks_for_huge_pages():
    run = [sys.executable, "-c", ASKS_FOR_HUGE_PAGES]
    done = subprocess.run(run, cwd=ROOT, check=True, capture_output=True, text=True)
    # huge pages are asked for, and child processes inherit an environment without the variable
    assert done.stdout.split() == ["True", "False"]


def test_allocations():
    def call():
        first = torch.empty(1 << 20)
        del first
        return torch.empty(1 << 18)

    peak = measure.allocation_peak(call)
    assert 4 << 20 <= peak < (4 << 20) + 4096


def test_limits_of_this_machine():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "_floats", lambda device: 1 << 16)
        # processors without bfloat16 take minutes for products of the usual size
        patch.setattr(measure, "_product", lambda device: (64, 1))
        limits = measure.measure_limits("cpu", "bf16")
    assert min(vars(limits).values()) > 0


def test_a_graph_keeps_what_it_reads(monkeypatch):
    PretendedCuda().install(monkeypatch)
    tensor = torch.ones(3)
    still_there = weakref.ref(tensor)
    replay = measure.captured(lambda tensor=tensor: tensor.sum(), times=4)
    del tensor
    gc.collect()
    assert still_there() is not None and replay.times == 4
    del replay
    gc.collect()
    assert still_there() is None


def test_a_call_that_waits_is_refused_before_it_is_recorded(monkeypatch):
    cuda = PretendedCuda().install(monkeypatch)
    with pytest.raises(RuntimeError, match="synchronizing"):
        measure.captured(cuda.wait)
    assert cuda.recordings == 0 and not cuda.waiting_is_an_error


def test_a_replay_counts_as_all_its_calls(monkeypatch):
    PretendedCuda().install(monkeypatch)
    replay, clock = measure.captured(lambda: None, times=10), [0.0]
    monkeypatch.setattr(measure.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(measure.Replay, "__call__", lambda self: clock.__setitem__(0, clock[0] + 0.5))
    assert interleaved({"a": replay}, rounds=3)["a"].samples == pytest.approx([0.05] * 3)


def test_tf32_is_as_before():
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    with pytest.raises(ZeroDivisionError), tf32_allowed(not before[0]):
        assert torch.backends.cudnn.allow_tf32 is torch.backends.cuda.matmul.allow_tf32 is not before[0]
        1 / 0  # noqa: B018
    assert before == (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32)


@pytest.mark.parametrize("suite", [systems, latency])
def test_steps_are_measured_without_tf32(small, monkeypatch, suite):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    seen = []

    def look(*rest):
        seen.append(torch.backends.cudnn.allow_tf32)
        return {}, ["different"]

    monkeypatch.setattr(suite, "measure", look)
    suite.run(Arguments(quick=True), None)
    assert seen == [False] and torch.backends.cudnn.allow_tf32


def test_an_error_on_a_gpu_is_the_case_s_failure():
    arguments = Arguments(device="cuda")
    assert rows.guarded(arguments, lambda x: 1 / x, 0) == ({}, ["ZeroDivisionError: division by zero"])
    with pytest.raises(ZeroDivisionError):
        rows.guarded(Arguments(), lambda x: 1 / x, 0)


def test_the_better_layout_and_the_missing_baselines():
    timings = {"fused": 1.0, "eager channels_last": 6.0, "eager contiguous": 4.0}
    entry = rows.row("ops", "x", {name: Timing([value] * 3) for name, value in timings.items()}, [])
    # nothing is stronger than the reference, so strong is eager; compile did not run
    assert entry["speedup"] == {"eager": 4.0, "strong": 4.0}
    limits = Limits(matrix_flops=100.0, copy_bytes_per_s=10.0, fill_bytes_per_s=20.0)
    entry = rows.shares(entry, limits, 50.0, 2.0)
    assert (entry["share_of_matrix"], entry["share_of_copy"]) == (0.5, 0.2)
    assert rows.cells(entry)[3:] == ["4000", "4.00", "-", "-", "4000", "4.00", "50%", "20%"]


def test_bf16_is_beside_and_no_baseline():
    timings = {"fused": 1.0, "eager contiguous": 4.0, "bf16-eager contiguous": 3.0, "bf16-eager channels_last": 2.0}
    entry = rows.row(
        "systems", "x", {name: Timing([value] * 3) for name, value in timings.items()}, [], {"compile": "y"}
    )
    assert (
        entry["speedup"] == {"eager": 4.0} and entry["bf16"] == {"eager": 2.0} and entry["left_out"] == {"compile": "y"}
    )
    entry |= {"share_of_matrix": None, "share_of_copy": None}
    assert rows.cells(entry, bf16=True)[-3:] == ["2.00", "-", "-"] and len(rows.cells(entry)) == 11


def test_bf16_where_the_processor_multiplies_it(monkeypatch):
    for flags, beside in ((["avx512f"], False), (["avx512_bf16"], True), (["amx_bf16"], True)):
        monkeypatch.setattr(environment, "cpu", lambda flags=flags: {"flags": flags})
        assert Arguments().bf16_beside is beside and not Arguments(device="cuda").bf16_beside


def test_one_line_of_an_error():
    assert rows.one_line(ValueError("first\n\nsecond")) == "ValueError: first"
    assert rows.one_line(ValueError()) == "ValueError: "


def test_tables():
    table = Table("Title", [("name", 6), ("ms", 5)])
    assert table.add(["a", "1.00"]) == "a       1.00" and table.add(["wrong: all of it"]) == "wrong: all of it"
    assert table.head() == "\nTitle\n\nname      ms"
    assert table.markdown().splitlines()[2:5] == ["| name | ms |", "| --- | ---: |", "| a | 1.00 |"]
    table.note("name: something")
    assert table.markdown().endswith("| wrong: all of it |\n\nname: something.\n") and "something" not in str(table)
    assert len(rows.comparison("").head().splitlines()[-1]) <= 140
