"""From a saved result to words, figures and pages.

saved    reads a result of any schema as the newest one
compare  `python -m benchmarks compare`: what changed between two results beyond noise
merge    `python -m benchmarks merge`: one result of several suites that were measured apart
page     `python -m benchmarks html`: one page of a result; figures draws it
readme   `python -m benchmarks readme`: the measured tables of README.md and docs/
"""
