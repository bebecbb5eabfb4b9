"""Processes of the benchmark's own: their answer, and why there is none."""

import time

import pytest

from benchmarks.suites import own_process


def test_the_last_line_is_the_answer():
    assert own_process.answer("timeit", "-n", "1", "-r", "1", "print('noise')").startswith("1 loop")


def test_a_process_that_takes_too_long():
    begun = time.monotonic()
    with pytest.raises(own_process.Failed, match="longer than 0"):
        own_process.answer("timeit", "-n", "1", "import time; time.sleep(600)", seconds=0.5)
    assert time.monotonic() - begun < 300


def test_a_process_that_crashes():
    with pytest.raises(own_process.Failed, match="signal 6"):
        own_process.answer("timeit", "-n", "1", "import os; os.abort()")


def test_an_error_in_one_line():
    with pytest.raises(own_process.Failed, match=r"^InputError: [^\n]+$"):
        own_process.answer("benchmarks.suites.systems", "fused", "{}", "cpu", "1")
