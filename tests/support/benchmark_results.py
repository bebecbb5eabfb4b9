"""Saved results that tests of the benchmark's reports read."""

from tests.support.places import RESULTS

INTEL = RESULTS / "intel-xeon-2-cores_b379813.json"  # schema 2: every suite but systems
AMD = RESULTS / "amd-epyc-2-cores_cf8bbf7.json"  # schema 1
PREDICTED = RESULTS / "predict_h100_bf16_a1fbc31.json"  # schema 6: predictions, without times
