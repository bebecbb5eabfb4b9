"""Chains of the tests' small maps are replaced too; tests of the rules themselves set them again."""

import pytest

from engine.fusion.chains import normalisation, savings


@pytest.fixture(autouse=True)
def small_maps_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(savings, "speed", lambda *args: 2.0)
    # what torch computes in one pass runs as written unless it is large
    one_pass = {key for key in normalisation.LEAST_NUMBERS if key[0] == "stored" or key[:2] == ("group", True)}
    least = dict.fromkeys(normalisation.LEAST_NUMBERS.keys() - one_pass, (0, 0))
    monkeypatch.setattr(normalisation, "LEAST_NUMBERS", normalisation.LEAST_NUMBERS | least)
