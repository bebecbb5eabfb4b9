"""Options of `pytest benchmarks`."""

import pytest

from benchmarks.timing.measure import PRECISIONS, steady_memory


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds the options of `python -m benchmarks` that say what to measure."""
    group = parser.getgroup("kiln")
    group.addoption("--quick", action="store_true", help="a few shapes of each operator, and the small step")
    group.addoption("--device", choices=("cpu", "cuda"), default="cpu", help="where to measure")
    group.addoption("--precision", choices=tuple(PRECISIONS), default="fp32", help="tf32 and bf16 need --device cuda")


def pytest_configure(config: pytest.Config) -> None:
    """Groups the competitors of a case, and sets memory as `python -m benchmarks` does."""
    if config.option.device == "cpu":
        steady_memory()
    config.option.benchmark_group_by = config.option.benchmark_group_by or "group"
