"""Run folders with tiny untrained networks, for the tests of the commands."""

from pathlib import Path

from engine import checkpoint
from engine.cli import status_of
from engine.systems.refiner import RefinerConfig
from engine.systems.registry import build


def make_run(folder: Path, step: int = 7, **values) -> Path:
    """A run folder with one checkpoint of an untrained refiner (32 x 32, 4 filters, model B)."""
    chosen = {"resolution": 32, "filters": 4, "hidden": 8, "fused": False, "inject": (8, 16), "model": "B", **values}
    config = RefinerConfig(device="cpu", **chosen)
    system = build(config, "cpu")
    checkpoint.save(folder, step, system.weights(), system.state_dict(), config)
    return folder


def command(main, *words) -> int:
    """The exit status that `kiln COMMAND words` has; bugs come through as exceptions."""
    return status_of("test", main, [str(word) for word in words])
