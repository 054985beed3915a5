"""Textbook UCT, against numbers worked out by hand."""

from __future__ import annotations

import math
from random import Random
from typing import Any

import optuna
import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from kdsearch import searchers
from kdsearch.searchers.autokd.sampler import levels, uct

from .spaces import study

optuna.logging.set_verbosity(optuna.logging.ERROR)
ARMS = CategoricalDistribution(("a", "b", "c"))
LEAVES = CategoricalDistribution(("x", "y"))


def done(arm: str, leaf: str, value: float | None, reports: dict[int, float] | None = None) -> FrozenTrial:
    return create_trial(
        params={"arm": arm, "leaf": leaf},
        distributions={"arm": ARMS, "leaf": LEAVES},
        value=value,
        state=TrialState.PRUNED if value is None else TrialState.COMPLETE,
        intermediate_values=reports,
    )


TREE = [
    done("a", "x", 0.2),
    done("a", "y", 0.4),
    done("b", "x", 0.6),
    done("b", "y", 0.5),
    done("c", "x", 0.7),
    done("c", "x", 0.5),
    done("c", "y", 0.3),
]
"""Visits and means: a 2, 0.3; b 2, 0.55 (x 0.6, y 0.5); c 3, 0.5 (x 2 visits, 0.6; y 0.3)."""


def walk(exploration: float, seed: int = 0, trials: list[FrozenTrial] = TREE) -> tuple[Any, Any]:
    found = study(searchers.create("autokd", seed=seed, exploration=exploration, reward="value"))
    found.add_trials(trials)
    trial = found.ask()
    return trial.suggest_categorical("arm", ARMS.choices), trial.suggest_categorical("leaf", LEAVES.choices)


def test_the_hand_worked_tree() -> None:
    # ln 7 = 1.9459: with c = 1, a .3 + .9864 = 1.286, b .55 + .9864 = 1.536, c .5 + .8054 = 1.305.
    # Below b, ln 2 = .6931: x .6 + .8326 = 1.433, y .5 + .8326 = 1.333.
    assert walk(1.0) == ("b", "x")
    # The tree with one more visit to (b, x) worth 0: b 3, .3667; ln 8 = 2.0794.
    # c = 1: a .3 + 1.0197 = 1.320, b .3667 + .8326 = 1.199, c .5 + .8326 = 1.333.
    # Below c, ln 3 = 1.0986: x .6 + .7412 = 1.341, y .3 + 1.0481 = 1.348.
    more = [*TREE, done("b", "x", 0.0)]
    assert walk(1.0, trials=more) == ("c", "y")
    # c = 3 prefers the least visited: a .3 + 3.059 = 3.359, b .3667 + 2.498 = 2.864, c .5 + 2.498 = 2.998;
    # below a, x and y have one visit each and y the better mean.
    assert walk(3.0, trials=more) == ("a", "y")
    assert walk(0.1, trials=more) == ("c", "x")


def test_untried_values_come_first_at_random() -> None:
    tried = [trial for trial in TREE if trial.params["arm"] == "a"]
    assert {walk(1.0, seed, tried)[0] for seed in range(20)} == {"b", "c"}
    assert {walk(1.0, seed, tried)[1] for seed in range(20)} == {"x", "y"}  # the rollout
    half = [trial for trial in TREE if trial.params != {"arm": "b", "leaf": "y"}]
    # b: one visit, .6 + sqrt(ln 6) = 1.94, in front; below it y has not been tried.
    assert {walk(1.0, seed, half) for seed in range(9)} == {("b", "y")}


def test_the_formula() -> None:
    rewards = {0.0: [0.2, 0.4], 1.0: [0.9], 2.0: [0.5, 0.1, 0.3]}
    for exploration in (0.0, 0.5, 2.0):
        scores = [
            sum(rewards[value]) / len(rewards[value]) + exploration * math.sqrt(math.log(6) / len(rewards[value]))
            for value in (0.0, 1.0, 2.0)
        ]
        assert uct([0.0, 1.0, 2.0], rewards, 6, exploration, Random(0)) == scores.index(max(scores))
    equal = {0.0: [0.5], 1.0: [0.5]}
    assert {uct([0.0, 1.0], equal, 2, 1.0, Random(seed)) for seed in range(20)} == {0.0, 1.0}


def test_nothing_is_shared_between_branches() -> None:
    trials = [done("a", "x", 1.0)] * 5 + [done("a", "y", 0.0), done("b", "x", 0.0), done("b", "y", 1.0)]
    found = study(searchers.create("autokd", seed=0, exploration=0.1, reward="value"))
    found.add_trials([*trials, done("c", "x", -5.0)])
    found.enqueue_trial({"arm": "b"})
    trial = found.ask()
    trial.suggest_categorical("arm", ARMS.choices)
    assert trial.suggest_categorical("leaf", LEAVES.choices) == "y"


def test_what_was_not_finished_is_worth_no_more_than_the_worst() -> None:
    trials = [done("a", "x", None, {1: 0.9}), done("b", "x", None), done("b", "y", -3.0)]

    def arm(reward: str) -> set[Any]:
        taken = set()
        for seed in range(12):
            found = study(searchers.create("autokd", seed=seed, exploration=0.1, reward=reward))
            found.add_trials([*trials, done("c", "x", -0.1)])
            taken.add(found.ask().suggest_categorical("arm", ARMS.choices))
        return taken

    assert arm("rank") == {"c"}
    assert arm("value") == {"c"}


@pytest.mark.parametrize(
    ("distribution", "count", "expected"),
    [
        (CategoricalDistribution(tuple("abcdefg")), 3, [0, 1, 2, 3, 4, 5, 6]),
        (IntDistribution(3, 6), 5, [3, 4, 5, 6]),
        (IntDistribution(0, 100), 3, [0, 50, 100]),
        (IntDistribution(1, 1000, log=True), 4, [1, 10, 100, 1000]),
        (FloatDistribution(0, 1), 5, [0, 0.25, 0.5, 0.75, 1]),
        (FloatDistribution(0.01, 100, log=True), 5, [0.01, 0.1, 1, 10, 100]),
        (FloatDistribution(0, 1, step=0.25), 3, [0, 0.5, 1]),
        (FloatDistribution(0, 1), 1, [0.5]),
    ],
    ids=str,
)
def test_numbers_are_cut_into_levels(distribution: BaseDistribution, count: int, expected: list[float]) -> None:
    assert levels(distribution, count) == pytest.approx(expected)


def test_a_number_off_the_levels_counts_above_only() -> None:
    found = study(searchers.create("autokd", seed=0, levels=3, exploration=0.1, reward="value"))
    for x in (0.3, 0.0, 0.5, 1.0):
        found.enqueue_trial({"x": x})
        trial = found.ask()
        found.tell(trial, -abs(trial.suggest_float("x", 0, 1) - 0.4))
    assert found.ask().suggest_float("x", 0, 1) == 0.5


def test_the_raw_value_takes_one_objective() -> None:
    found = optuna.create_study(
        directions=["maximize", "minimize"], sampler=searchers.create("autokd", seed=0, reward="value")
    )
    with pytest.raises(ValueError, match="takes one objective"):
        found.ask().suggest_float("x", 0, 1)
