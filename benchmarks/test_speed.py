"""`pytest benchmarks [-k TEXT] [--quick]`: the cases of the suites `ops` and `step` under pytest-benchmark.

A competitor is a test, a case is a group. If the results of a case differ, its tests fail and are not timed.
"""

from collections.abc import Callable

import pytest

from benchmarks.arguments import Arguments
from benchmarks.suites import operators, step
from benchmarks.timing.measure import PRECISIONS
from engine.host.tf32 import tf32_allowed

Prepare = Callable[[], tuple[dict[str, Callable], list[str]]]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test for each competitor of each case."""
    option = metafunc.config.getoption
    cases: dict[str, tuple[tuple[str, ...], Prepare]] = {}
    compiled = Arguments().can_compile
    device, precision = option("--device"), option("--precision")
    for case in operators.cases("", option("--quick")):
        names = operators.names(case, compiled)
        cases[case.label] = names, lambda case=case: operators.prepared(case, device, compiled, precision)
    for name, setting in step.cases("", option("--quick")).items():
        names = tuple(n for n in step.COMPETITORS if compiled or n != "compile")
        cases[name] = names, lambda s=setting, n=names: step.prepared(s, device, n, precision)
    tests = [(case, prepare, name) for case, (names, prepare) in cases.items() for name in names]
    metafunc.parametrize("case, prepare, competitor", tests, ids=[f"{case}: {name}" for case, _, name in tests])


@pytest.fixture(scope="module")
def last() -> dict[str, tuple[dict[str, Callable], list[str]]]:
    """The competitors of the last case, so that its tests make, compile and check them once."""
    return {}


def test_speed(benchmark, request, last, case: str, prepare: Prepare, competitor: str) -> None:
    """Seconds of forward and backward, or of a training step."""
    if case not in last:
        last.clear()
        last[case] = prepare()
    calls, failed = last[case]
    if failed:
        pytest.fail(f"{case}: {failed[0]}", pytrace=False)
    benchmark.group = case
    with tf32_allowed(PRECISIONS[request.config.getoption("--precision")].tf32):
        benchmark(calls[competitor])
