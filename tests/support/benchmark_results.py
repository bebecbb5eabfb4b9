"""Saved results that the tests of comparing and of pages read."""

from pathlib import Path

_RESULTS = Path(__file__).parent.parent / "benchmarks" / "results"
INTEL = _RESULTS / "intel-xeon-2-cores_b379813.json"  # schema 2: every suite but systems
AMD = _RESULTS / "amd-epyc-2-cores_cf8bbf7.json"  # schema 1
PREDICTED = _RESULTS / "predict_h100_bf16_3386849.json"  # schema 3: no times
