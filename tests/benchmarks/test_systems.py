"""The suite `systems`: its sizes, its competitors, and who is left out of a row. No timing is asserted."""

import json

import pytest
import torch

import benchmarks.__main__ as bench
from benchmarks.arguments import Arguments
from benchmarks.suites import own_process, systems
from engine.systems.registry import SYSTEMS
from engine.verification.training_steps import ATTEMPTS
from tests.support.benchmark_cases import needs_compiler
from tests.support.tiny_run import command
from tests.support.training_fakes import tiny_config

CRITIC = ("--gradient-penalty", "10", "--critic-norm", "layer")


def test_every_system_at_its_paper_s_width():
    configs = systems.papers("")
    assert {config.system for config in configs.values()} == set(SYSTEMS)
    assert len(configs) == len(systems.PAPERS) and all("64 filters" in label for label in configs)
    for config in configs.values():
        config.check()
    sizes = {(c.system, c.resolution, c.batch_size) for c in configs.values()}
    assert sizes == {
        *(("refiner", 64, 25), ("began", 64, 16), ("simgan", 64, 16), ("dcgan", 64, 64), ("wgan", 64, 64)),
        *(("cyclegan", 128, 1), ("ggb", 128, 4), ("reenact", 64, 8)),
    }
    cyclegan = next(c for c in configs.values() if c.system == "cyclegan")
    assert (cyclegan.padding, cyclegan.upsample, cyclegan.blocks) == ("reflect", "transposed", 9)
    assert {c.layers for c in configs.values() if hasattr(c, "layers")} == {"paper"}
    assert sorted(c.gradient_penalty for c in configs.values() if c.system == "wgan") == [0, 10]


def test_the_filter_chooses_from_both_tables():
    assert systems.cases("", quick=False) == systems.presets("", False) | systems.papers("")
    assert systems.cases("64 filters", quick=False) == systems.papers("")
    quick = systems.cases("", quick=True)
    assert len(quick) == len(SYSTEMS) - 1 and all(c.resolution == 32 for c in quick.values())


def test_competitors():
    assert systems.names(False, False) == ("fused", "eager channels_last", "eager contiguous")
    assert systems.names(True, True)[4:] == (*("bf16-eager channels_last", "bf16-eager contiguous", "bf16-compile"),)
    config = tiny_config(system="dcgan")
    timings, failed = systems.measure(config, "cpu", 2, lambda _: None, systems.names(False, True))
    assert not failed and tuple(timings) == systems.names(False, True)


@pytest.mark.parametrize("name", systems.names(True, True))
def test_what_a_competitor_is(name):
    system, batch = systems.prepared(name, tiny_config(system="cyclegan"), "cpu")
    assert system.config.fused is (name == "fused")
    assert system.config.precision == ("bf16" if name.startswith("bf16") else "fp32")
    weight = next(p for p in system.networks()["generator"].parameters() if p.dim() == 4 and p.shape[1] > 1)
    images = [part.images for part in (batch, *batch.more)]
    laid_out = torch.contiguous_format if name.endswith("contiguous") else torch.channels_last
    assert all(x.is_contiguous(memory_format=laid_out) for x in images) and len(images) == 2
    assert name == "fused" or weight.is_contiguous(memory_format=laid_out)


def test_who_is_left_out(monkeypatch):
    def peak(name, config, device):
        if "compile" in name:
            raise own_process.Failed("it took longer than 900 s")
        return 7

    monkeypatch.setattr(systems, "peak_memory", peak)
    eager = {"fused": 7, "eager channels_last": 7, "eager contiguous": 7}
    late = {"compile": "it took longer than 900 s", "bf16-compile": "it took longer than 900 s"}
    assert systems.apart(tiny_config(system="dcgan"), "cpu", systems.names(True, True)) == (eager, late)
    penalised = tiny_config(*CRITIC, system="wgan")
    assert systems.apart(penalised, "cuda", ("fused", "compile")) == (
        {},
        {"compile": "torch.compile has no second derivatives"},
    )


def test_a_row_says_who_is_left_out_and_why(small, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(systems, "cases", lambda only, quick: {"wgan tiny": tiny_config(*CRITIC, system="wgan")})
    monkeypatch.setattr(Arguments, "can_compile", True)
    monkeypatch.setattr(Arguments, "bf16_beside", True)
    file, markdown = tmp_path / "x.json", tmp_path / "x.md"
    assert command(bench.main, "systems", "--json", file, "--markdown", markdown) == 0
    (row,) = json.loads(file.read_text())["rows"]
    assert row["speedup"].keys() == {"eager"} == row["bf16"].keys()
    assert row["left_out"].keys() == {"compile", "bf16-compile"}
    assert row["memory"] == {"fused": 2**20, "eager": 2**21, "compile": None}
    line = "wgan tiny: compile left out: torch.compile has no second derivatives"
    assert line in capsys.readouterr().out and f"{line}." in markdown.read_text()


def test_a_step_that_differs_has_no_speed(small, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(systems, "disagreements", lambda config, device: ["loss_d differs by 1.0e+00"])
    assert command(bench.main, "systems", "--json", tmp_path / "x.json") == 1
    (row,) = json.loads((tmp_path / "x.json").read_text())["rows"]
    assert "memory" not in row and "speedup" not in row and "DIFFERENT: loss_d" in capsys.readouterr().out


def test_peak_memory_of_a_fresh_process():
    assert systems.peak_memory("fused", tiny_config(system="dcgan"), "cpu") > 0


@needs_compiler
@pytest.mark.slow
def test_compiling_in_a_process_of_its_own(monkeypatch):
    config = tiny_config(system="began")
    assert systems.peak_memory("compile", config, "cpu") > 0
    monkeypatch.setattr(systems, "COMPILE_SECONDS", 0.5)
    with pytest.raises(own_process.Failed, match="longer than"):
        systems.peak_memory("compile", config, "cpu")


@pytest.mark.parametrize(
    ("batches", "fails"),
    [
        ([(9e-4, None)], False),
        ([(1.1e-3, 9e-4)], False),
        ([(1.4e-3, 5e-4), (2.4e-3, 1.6e-3)], False),  # one batch on which rounding decides few signs
        ([(1.1e-3, 5e-4)] * ATTEMPTS, True),
        ([(6e-2, 1e-3)], True),  # more than a few signs explain
        ([(float("nan"), 1.0)], True),
    ],
)
def test_how_far_a_gradient_may_be_from_eager_s(monkeypatch, batches, fails):
    """A fixed tolerance, or twice what eager's own layouts differ by, which are asked only where it is broken."""
    found = iter([difference for batch in batches for difference in batch if difference])
    monkeypatch.setattr(systems, "differences_on", lambda *_: ({"loss_d": 0.0}, {"gradient": next(found)}))
    failed = systems.disagreements(tiny_config(system="dcgan"), "cpu")
    fused, of_eager = batches[-1]
    assert failed == ([f"gradient differs by {fused:.1e}, eager's two layouts by {of_eager:.1e}"] if fails else [])
    assert next(found, "all asked") == "all asked"


@pytest.mark.parametrize("factor", [1.0, 1.01])
def test_a_gradient_wrong_by_a_hundredth_is_found(monkeypatch, factor):
    honest = systems.prepared

    def prepared(name, config, device):
        system, batch = honest(name, config, device)
        for parameter in system.networks()["generator"].parameters() if name == "fused" else ():
            parameter.register_hook(lambda gradient: gradient * factor)
        return system, batch

    monkeypatch.setattr(systems, "prepared", prepared)
    failed = systems.disagreements(tiny_config(system="dcgan"), "cpu")
    assert [line.split(" differs")[0] for line in failed] == ["gradient of the generator"] * (factor != 1)
