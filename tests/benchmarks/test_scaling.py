"""The suite `scaling`: laws that are fitted, threads and processes that are counted. No timing is asserted."""

import pytest
import torch

from benchmarks.suites import processes, sweeps, threads
from benchmarks.timing.measure import Timing
from engine.kernels import _spec


@pytest.mark.parametrize("fixed, power", [(0.0, 2.0), (3e-4, 1.0), (2e-3, 1.37)])
def test_a_law_is_recovered_from_its_times(fixed, power):
    by = {x: Timing([fixed + 1e-5 * x**power] * 3) for x in (8, 16, 32, 64, 128)}
    law = sweeps.fit(by)
    assert law.fixed == pytest.approx(fixed, abs=1e-7) and law.power == pytest.approx(power, abs=0.005)
    assert law(32) == pytest.approx(by[32].median, rel=1e-3) and law.worst < 1e-3


def test_a_law_has_no_negative_part():
    """Times that grow faster than in proportion, as when only small sizes fit the caches."""
    law = sweeps.fit({1: Timing([1.0]), 2: Timing([4.0]), 4: Timing([9.0])})
    assert law.fixed == 0 and law.unit > 0 and 0.05 < law.worst < 0.3


def test_every_operator_s_sweep_grows_what_it_says():
    seen = {(sweep.name, sweep.axis) for sweep in sweeps.cases("", False, "cpu")}
    assert {("refiner step", axis) for axis in ("side", "channels", "batch")} <= seen and len(seen) >= 18
    for operator, spec in _spec.specs().items():
        for kind, sized in spec.sweeps.items():
            costs = [spec.flops(sized(*at)) for at in ((2, 16, 32), (4, 16, 32), (2, 32, 32), (2, 16, 64))]
            assert min(costs[1:]) > costs[0] and costs[1] == 2 * costs[0], (operator, kind)


def test_a_sweep_that_differs_has_no_time():
    sweep = sweeps.Sweep("x", "batch", (1, 2), lambda value: ({"fused": lambda: None}, ["off"] if value == 2 else []))
    timings, failed = sweeps.measure(sweep, 2, lambda: None)
    assert timings == {} and failed == ["batch 2: off"]
    assert sweeps.row(sweep, timings, failed) == {
        "suite": "scaling", "name": "x by batch", "axis": "batch", "failed": failed
    }  # fmt: skip


def test_the_share_that_threads_do_not_shorten():
    by = {n: Timing([0.2 + 0.8 / n]) for n in (1, 2, 4)}
    assert threads.serial_share(by) == pytest.approx(0.2) and threads.serial_share({1: Timing([1.0])}) is None


def test_thread_counts():
    counts = {1: [1], 2: [1, 2], 4: [1, 2, 3, 4], 6: [1, 2, 3, 4, 6], 64: [1, 2, 3, 4, 8, 16, 32, 64]}
    assert {most: threads.counts(most) for most in counts} == counts


def test_threads_are_left_as_they_were():
    before, seen = torch.get_num_threads(), set()
    torch.set_num_threads(2)
    try:
        timings = threads.measure({"fused": lambda: seen.add(torch.get_num_threads())}, rounds=2)
        assert torch.get_num_threads() == 2 and seen == {1, 2} and timings["fused"].keys() == {1, 2}
    finally:
        torch.set_num_threads(before)


def test_processes_whose_losses_differ_have_no_time():
    losses = {"fused, 1": {"l_real": 0.5, "l_fake": 0.25}, "fused, 2": {"l_real": 0.5, "l_fake": 0.2501}}
    (message,) = processes.disagreements(losses)
    assert message == "l_fake is 0.2501 (fused, 2) and 0.25 (fused, 1)"
    assert processes.counts(1) == [1] and processes.counts(2) == [1, 2] and processes.counts(6) == [1, 2, 4]
