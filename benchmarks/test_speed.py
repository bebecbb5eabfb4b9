"""`pytest benchmarks [-k TEXT] [--quick]`: the cases of the suites ops and step under pytest-benchmark.

A competitor is a test, a case a group. Equivalence comes first: where a case's results differ, its tests fail untimed.
"""

from collections.abc import Callable

import pytest

from benchmarks.arguments import Arguments
from benchmarks.suites import operators, step
from benchmarks.timing.measure import PRECISIONS, tf32_allowed

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
    found = [(case, prepare, name) for case, (names, prepare) in cases.items() for name in names]
    metafunc.parametrize("case, prepare, competitor", found, ids=[f"{case}: {name}" for case, _, name in found])


@pytest.fixture(scope="module")
def kept() -> dict[str, tuple[dict[str, Callable], list[str]]]:
    """The last case's competitors: they are made, compiled and checked once."""
    return {}


def test_speed(benchmark, request, kept, case: str, prepare: Prepare, competitor: str) -> None:
    """Seconds of forward and backward, or of a training step."""
    if case not in kept:
        kept.clear()
        kept[case] = prepare()
    calls, failed = kept[case]
    if failed:
        pytest.fail(f"{case}: {failed[0]}", pytrace=False)
    benchmark.group = case
    with tf32_allowed(PRECISIONS[request.config.getoption("--precision")].tf32):
        benchmark(calls[competitor])
