"""Optuna's own contract suite for samplers, run on Monte-Carlo tree search."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from optuna.samplers import BaseSampler

from kdsearch import searchers

suite = pytest.importorskip("optuna.testing.pytest_samplers")


class TestBasics(suite.BasicSamplerTestCase):  # type: ignore[name-defined]
    @pytest.fixture
    def sampler(self) -> Callable[[], BaseSampler]:
        return lambda: searchers.create("mcts", seed=0)


class TestSeveralObjectives(suite.MultiObjectiveSamplerTestCase):  # type: ignore[name-defined]
    @pytest.fixture
    def sampler(self) -> Callable[[], BaseSampler]:
        return lambda: searchers.create("mcts", seed=0)
