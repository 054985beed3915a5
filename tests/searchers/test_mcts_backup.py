"""Back-ups: each between the mean and the best, and each the formula it is named after."""

from __future__ import annotations

import numpy as np
import pytest

from kdsearch.parameters import Choices
from kdsearch.searchers.mcts import MCTS
from kdsearch.searchers.mcts.backup import BACKUPS, shrunk

REWARDS = np.array([0.1, 0.4, 0.4, 0.9])


def test_every_declared_backup_is_there() -> None:
    declared = MCTS.parameters["backup"]
    assert isinstance(declared, Choices)
    assert tuple(BACKUPS) == declared.options


@pytest.mark.parametrize("name", list(BACKUPS))
def test_lies_between_mean_and_best(name: str) -> None:
    rule = BACKUPS[name]
    for sharpness in (1.0, 4.0, 16.0):
        assert REWARDS.mean() - 1e-12 <= rule(REWARDS, sharpness) <= REWARDS.max() + 1e-12
    assert rule(np.array([0.3]), 4.0) == pytest.approx(0.3)
    assert rule(np.zeros(3), 4.0) == 0.0


def test_formulas() -> None:
    assert BACKUPS["power"](REWARDS, 2.0) == pytest.approx(np.sqrt(np.mean(REWARDS**2)))
    weights = np.exp(4.0 * REWARDS) / np.exp(4.0 * REWARDS).sum()
    assert BACKUPS["softmax"](REWARDS, 4.0) == pytest.approx(weights @ REWARDS)
    assert BACKUPS["top"](REWARDS, 2.0) == pytest.approx(0.65)
    assert BACKUPS["top"](REWARDS, 4.0) == BACKUPS["max"](REWARDS, 4.0) == 0.9


def test_what_was_seen_once_is_pulled_to_its_siblings() -> None:
    found = shrunk(np.array([1.0, 0.8]), np.array([1.0, 19.0]), 0.5, 1.0)
    assert found == pytest.approx([0.75, (19 * 0.8 + 0.5) / 20])
    assert shrunk(np.array([1.0]), np.array([1.0]), 0.5, 0.0) == pytest.approx([1.0])
