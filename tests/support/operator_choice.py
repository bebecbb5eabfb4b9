"""Networks and losses that run the same operators whether they are built fused or eager."""

import sys

import pytest

from engine import ops


def always(monkeypatch: pytest.MonkeyPatch, way: str, *names: str) -> None:
    """For the test, `fused` no longer decides how these operators run: by "reference" or by "operator", both ways.

    What `ops.pick` gave to the modules of the engine is replaced in each of them.
    """
    picks = [ops.pick(name) for name in names]
    replaced = []
    for module in [m for name, m in sys.modules.items() if name.startswith("engine.")]:
        for attribute, value in list(vars(module).items()):
            if type(value) is tuple and value in picks:
                function = value[way == "operator"]
                monkeypatch.setattr(module, attribute, (function, function))
                replaced.append(value)
    assert all(pick in replaced for pick in picks), "an operator that no module has picked"
