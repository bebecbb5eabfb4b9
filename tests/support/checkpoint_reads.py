"""Counts how often files of checkpoints are hashed, and how often their weights and states are loaded."""

from collections import Counter

import pytest
import safetensors.torch
import torch

from engine import checkpoint


def count_reads(monkeypatch: pytest.MonkeyPatch) -> Counter:
    """From now on in this test: "hashed", "weights" and "state", the number of files that were read so."""
    counts: Counter = Counter()
    for module, name, what in (
        (checkpoint, "digest", "hashed"),
        (safetensors.torch, "load", "weights"),
        (torch, "load", "state"),
    ):
        read = getattr(module, name)

        def counting(*args, read=read, what=what, **options):
            counts[what] += 1
            return read(*args, **options)

        monkeypatch.setattr(module, name, counting)
    return counts
