"""What a run is said to take before it begins."""

from __future__ import annotations

from typing import Any

import pytest

from kdsearch.runs import config_file
from kdsearch.runs.forecast import searching

from .tiny import TINY


@pytest.mark.parametrize(
    ("budget", "seconds"),
    [
        ({"trials": 10}, 10 * 1.15 * 60),
        ({"trials": None, "seconds": "5h"}, 5 * 3600),
        ({"trials": 10, "seconds": "5h"}, 10 * 1.15 * 60),
        ({"trials": 10, "seconds": "2m"}, 120),
    ],
)
def test_a_search_ends_with_its_budget(budget: dict[str, Any], seconds: float) -> None:
    """A trial is a full training of a minute, and half the epochs on 30 % of the data before it."""
    assert searching(config_file.check({**TINY, "budget": budget}, "config"), 60.0) == pytest.approx(seconds)
