"""Chains of the tests' small maps are replaced too; tests of the rule itself set `speed` again."""

import pytest

from engine.fusion.chains import normalisation, savings


@pytest.fixture(autouse=True)
def small_maps_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(savings, "speed", lambda *args: 2.0)
    monkeypatch.setattr(normalisation, "LEAST_NUMBERS_OF_A_BATCH", 0)
