"""What several tests of the benchmark share: the command over tiny cases."""

import pytest

from benchmarks import run
from benchmarks.arguments import Arguments
from benchmarks.suites import fuse, fuse_models, loading, operators, step, sweeps, systems
from benchmarks.timing.measure import Limits, Timing
from tests.support.benchmark_cases import TINY, conv, tiny
from tests.support.training_fakes import tiny_config

TIMED = Timing([0.1] * 10)
LOADED = loading.row("dali", loading.SETTINGS[0], dict.fromkeys(("dali", "step", *loading.PEERS), TIMED), 0.5)


@pytest.fixture
def small(monkeypatch):
    """The command over one tiny setting and three tiny shapes, without compiling."""
    monkeypatch.setattr(step, "SETTINGS", {"refiner tiny": TINY})
    monkeypatch.setattr(step, "QUICK", "refiner tiny")
    monkeypatch.setattr(step, "peak_memory", lambda name, *setting: 2**20 * (1 if name == "fused" else 2))
    chosen = [conv("up"), conv("down"), tiny("linear")]
    monkeypatch.setattr(operators, "cases", lambda only, quick=False: [c for c in chosen if only in c.spec.operator])
    monkeypatch.setattr(systems, "peak_memory", lambda name, *rest: 2**20 * (1 if name == "fused" else 2))
    monkeypatch.setattr(systems, "cases", lambda only, quick: {"dcgan tiny": tiny_config(system="dcgan")})
    monkeypatch.setattr(sweeps, "BASE", {"batch": 1, "channels": 8, "side": 8})
    monkeypatch.setattr(sweeps, "VALUES", {"batch": (1, 2, 3)})
    monkeypatch.setattr(sweeps, "STEP_BASE", TINY)
    monkeypatch.setattr(sweeps, "STEP_VALUES", {"batch": ("batch_size", (2, 3))})
    monkeypatch.setattr(loading, "measure", lambda setting, rounds, tick: [LOADED | {"name": setting.name}])
    tiny_model = fuse_models.Architecture("tiny", "", lambda: fuse_models.DCGAN(8), (2, 64))
    monkeypatch.setattr(fuse, "ARCHITECTURES", [tiny_model])
    monkeypatch.setattr(Arguments, "can_compile", False)
    monkeypatch.setattr(Arguments, "bf16_beside", False)
    monkeypatch.setattr(run, "measure_limits", lambda device, precision: Limits(1e11, 1e10, 2e10))
