"""Priors of choices and of numbers."""

from __future__ import annotations

from collections import Counter
from random import Random
from typing import Any

import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from kdsearch.searchers import MCTSSampler
from kdsearch.searchers.mcts.domain import Domain
from kdsearch.searchers.mcts.priors import Belief, Prior

from .spaces import study

WIDE = FloatDistribution(0.01, 100, log=True)


def on(distribution: BaseDistribution, weights: Any) -> Belief:
    return Prior("x", weights).on(distribution, Domain(distribution), 0.05)


def test_choices_that_are_left_out_weigh_one() -> None:
    belief = on(CategoricalDistribution(("a", "b", "c")), {"b": 3.0, "absent": 9.0})
    assert [belief.weight(float(k)) for k in range(3)] == [1.0, 3.0, 1.0]


def test_numbers_spread_around_the_values_named() -> None:
    belief, rng = on(WIDE, {1.0: 3.0, 10.0: 1.0, 1e9: 5.0}), Random(0)
    assert belief.weight(1.0) > belief.weight(10.0) > belief.weight(100.0)
    drawn = [belief.draw(rng) for _ in range(400)]
    near = Counter("one" if 0.1 < value < 3.2 else "ten" if 3.2 <= value < 100 else "far" for value in drawn)
    assert 250 < near["one"] < 350
    assert near["far"] < 10


def test_a_list_weighs_equal_pieces_of_the_scale() -> None:
    belief, rng = on(WIDE, [0, 1, 3, 0]), Random(0)
    assert [belief.weight(v) for v in (0.02, 0.5, 5.0, 50.0)] == [0, 1, 3, 0]
    drawn = [belief.draw(rng) for _ in range(400)]
    assert all(0.1 <= value <= 10 for value in drawn)
    assert 260 < sum(value > 1 for value in drawn) < 340
    whole = on(IntDistribution(1, 10), [1, 0])
    assert {whole.draw(rng) for _ in range(99)} == {1, 2, 3, 4, 5}


def test_without_weight_anything_may_come() -> None:
    belief, rng = on(WIDE, [0, 0]), Random(0)
    assert min(belief.draw(rng) for _ in range(99)) < 0.1
    assert on(WIDE, {1e9: 1}).weight(2.0) == 1.0


@pytest.mark.parametrize("estimate", ["model", "prior", "rave"])
def test_first_proposals_follow_a_number_s_prior(estimate: str) -> None:
    found = []
    for seed in range(20):
        searched = study(MCTSSampler(seed=seed, estimate=estimate, priors={"x": {0.25: 1.0}}, prior_share=1.0))
        for _ in range(3):
            trial = searched.ask()
            found.append(trial.suggest_float("x", 0, 1))
            searched.tell(trial, 0.5)
    assert sum(abs(x - 0.25) < 0.25 for x in found) > 40


@pytest.mark.parametrize("weights", [3, "ab", [], {"a": -1}, {"a": float("inf")}, [1, None]])
def test_what_is_no_prior_is_refused(weights: Any) -> None:
    with pytest.raises(ValueError, match=r"priors\['a'\]"):
        MCTSSampler(seed=0, priors={"a": weights})
