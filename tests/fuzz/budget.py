"""How many examples a fuzz test tries: a short, seeded share in `make test`, all of them in `make fuzz`."""

import os
from collections.abc import Callable
from typing import TypeVar

from hypothesis import HealthCheck, Phase, settings

Test = TypeVar("Test", bound=Callable)
FULL = os.environ.get("KILN_FUZZ") == "1"


def examples(short: int, full: int) -> Callable[[Test], Test]:
    """Settings of Hypothesis for a test: `full` random examples in `make fuzz`, else the same `short` ones each time.

    A failure is shrunk to the smallest input that fails, and printed; `make fuzz` prints the seed that gives it again.
    """
    return settings(
        max_examples=full if FULL else short,
        derandomize=not FULL,
        database=None,
        deadline=None,  # a machine that is busy is no failure; pytest-timeout ends a test that hangs
        print_blob=True,
        phases=(Phase.explicit, Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
