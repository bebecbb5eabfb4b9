"""Options of `pytest benchmarks`."""

import pytest

from benchmarks.timing.measure import PRECISIONS, steady_memory


def pytest_addoption(parser: pytest.Parser) -> None:
    """What to measure, as `python -m benchmarks` takes it."""
    group = parser.getgroup("kiln")
    group.addoption("--quick", action="store_true", help="a few shapes of each operator, and the small step")
    group.addoption("--device", choices=("cpu", "cuda"), default="cpu", help="where to measure")
    group.addoption("--precision", choices=tuple(PRECISIONS), default="fp32", help="tf32 and bf16 need --device cuda")


def pytest_configure(config: pytest.Config) -> None:
    """One competitor beside another, and the fastest first; memory as `python -m benchmarks` has it."""
    if config.option.device == "cpu":
        steady_memory()
    config.option.benchmark_group_by = config.option.benchmark_group_by or "group"
