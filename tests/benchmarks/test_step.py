"""The suite `step`: every competitor trains alike, and what differs has no speed. No timing is asserted."""

import dataclasses

import pytest
import torch

from benchmarks.suites import step
from benchmarks.suites.strong import StrongConv, StrongRefiner
from engine.systems.refiner import RefinerSystem
from tests.support.benchmark_cases import TINY, needs_compiler
from tests.support.tape import NoWaiting, rates_on_device


def test_the_shared_step_is_the_textbook_step():
    """Losses and gradients of the strong step in float64, at a k that is not zero."""
    eager, batch = step.build("eager channels_last", TINY, "cpu")
    strong = StrongRefiner(eager.config, "cpu")
    assert all(type(m) is StrongConv for m in strong.generator.modules() if hasattr(m, "resize"))
    for system in (eager, strong):
        for network in {**system.networks(), **system.averaged()}.values():
            network.double()
        system.load_own_state({"k": torch.tensor(0.3)})
    batch = dataclasses.replace(batch, images=batch.images.double())
    expected, losses = eager.step(batch), strong.step(batch)
    for name, loss in expected.items():
        torch.testing.assert_close(losses[name], loss, rtol=1e-6, atol=1e-6)  # gamma and the lambdas are float32
    for name, network in eager.networks().items():
        for (key, a), b in zip(network.named_parameters(), strong.networks()[name].parameters(), strict=True):
            torch.testing.assert_close(b.grad, a.grad, rtol=1e-9, atol=1e-12, msg=lambda text, key=key: key + text)


@pytest.mark.parametrize("competitor", ["fused", "strong", "eager channels_last"])
def test_no_step_makes_the_host_wait(competitor):
    """On a GPU fused and strong are recorded as CUDA graphs, which refuse it; the host's waiting would slow eager."""
    system, batch = step.build(competitor, TINY, "cpu")
    rates_on_device(system).step(batch)
    with NoWaiting():
        system.step(batch)


@needs_compiler
@pytest.mark.slow
def test_a_step_against_every_competitor():
    timings, failed = step.measure(TINY, "cpu", 2, lambda _: None)
    assert not failed and tuple(timings) == step.COMPETITORS


def test_a_step_in_bfloat16():
    timings, failed = step.measure(TINY, "cpu", 2, lambda _: None, ("fused", "strong"), "bf16")
    assert not failed and timings.keys() == {"fused", "strong"}


@pytest.mark.parametrize("who", ["fused", "strong"])
def test_a_step_that_differs_has_no_speed(monkeypatch, who):
    honest = RefinerSystem.step

    def off(self, batch):
        losses = honest(self, batch)
        wrong = self.config.fused if who == "fused" else isinstance(self, StrongRefiner)
        return {**losses, "l_fake": losses["l_fake"] * 1.001} if wrong else losses

    monkeypatch.setattr(RefinerSystem, "step", off)
    timings, failed = step.measure(TINY, "cpu", 2, lambda _: None, ("fused", "strong"))
    assert not timings and len(failed) == step.CHECKED and all("l_fake is" in text and who in text for text in failed)


def test_peak_memory_of_a_fresh_process():
    assert step.peak_memory("fused", TINY, "cpu") > 100_000


def test_quick_takes_the_small_setting():
    assert list(step.cases("", quick=True)) == [step.QUICK]
