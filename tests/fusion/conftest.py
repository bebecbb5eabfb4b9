"""Chains of the tests' small maps are replaced too; tests of the rule itself set it."""

import pytest

from engine.fusion.chains import normalisation, savings


@pytest.fixture(autouse=True)
def calls_cost_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(savings, "PRODUCTS_OF_A_CALL", float("-inf"))
    monkeypatch.setattr(normalisation, "LEAST_NUMBERS_OF_A_BATCH", 0)
