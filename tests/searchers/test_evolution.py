"""Regularised evolution: who is in the population, who is a parent, and what a child keeps of it."""

from __future__ import annotations

import math
from random import Random
from typing import Any

import optuna
import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from kdsearch import searchers
from kdsearch.searchers.evolution.population import best, finished, ranked, tournament
from kdsearch.searchers.evolution.seeded import Gene
from kdsearch.searchers.evolution.variation import another, cross, mutate

from .spaces import mixed, study

optuna.logging.set_verbosity(optuna.logging.ERROR)
X = FloatDistribution(0, 100)
KIND = CategoricalDistribution(("a", "b", "c"))


def done(value: float | None = None, state: TrialState = TrialState.COMPLETE, **params: Any) -> FrozenTrial:
    distributions: dict[str, BaseDistribution] = {name: KIND if name == "kind" else X for name in params}
    reports = {1: value} if state == TrialState.PRUNED and value is not None else {}
    complete = state == TrialState.COMPLETE
    return create_trial(
        params=params,
        distributions=distributions,
        state=state,
        value=value if complete else None,
        intermediate_values=reports,
    )


def flat(trial: Trial) -> dict[str, Any]:
    for name in ("x", "y", "z"):
        trial.suggest_float(name, 0, 100)
    return trial.params


def five(**options: Any) -> optuna.Study:
    """Five trials at x = y = z = 10, 20, ... worth 5, 4, ..., 1; the sampler's population holds three."""
    found = study(searchers.create("evolution", seed=1, **{"population": 3, "tournament": 30} | options))
    for k in range(5):
        at = 10.0 * (k + 1)
        found.add_trial(done(5.0 - k, x=at, y=at, z=at))
    return found


def children(found: optuna.Study, count: int = 12) -> list[dict[str, Any]]:
    return [flat(found.ask()) for _ in range(count)]


def kept(child: dict[str, Any], at: float) -> int:
    return sum(value == at for value in child.values())


def test_the_oldest_leave_even_if_they_are_the_best() -> None:
    assert all(kept(child, 30.0) == 2 for child in children(five()))


def test_the_worst_leave() -> None:
    assert all(kept(child, 10.0) == 2 for child in children(five(survival="worst")))


def test_as_many_decisions_are_redrawn_as_asked_for() -> None:
    for mutations in (1, 2, 3, 9):
        assert all(kept(child, 30.0) == max(0, 3 - mutations) for child in children(five(mutations=mutations)))


def test_numbers_move_a_step_or_anywhere() -> None:
    def moved(**options: Any) -> list[float]:
        found = five(**options)
        return [abs(value - 30.0) for child in children(found, 60) for value in child.values() if value != 30.0]

    near = moved(spread=0.02)
    assert len(near) == 60
    assert max(near) < 10
    assert max(moved(numbers="uniform")) > 50


def test_two_parents() -> None:
    found = five(crossover=1.0, tournament=1)
    for child in children(found, 40):
        assert sum(kept(child, at) for at in (30.0, 40.0, 50.0)) == 2
    assert any(kept(child, 30.0) == kept(child, 40.0) == 1 for child in children(found, 40))


def test_random_until_the_population_is_full() -> None:
    found = five(population=6)
    assert not any(kept(child, at) for child in children(found) for at in (10.0, 20.0, 30.0, 40.0, 50.0))


def test_a_new_branch_keeps_what_it_shares_with_the_parent() -> None:
    found = study(searchers.create("evolution", seed=0, population=2, tournament=9))
    parent: dict[str, Any] = {"kind": "a", "a.x": 5.0, "y": 7.0}
    for _ in range(2):
        found.add_trial(done(1.0, **parent))
    kinds = set()
    for _ in range(30):
        trial = found.ask()
        kind = trial.suggest_categorical("kind", KIND.choices)
        x, y = trial.suggest_float(f"{kind}.x", 0, 100), trial.suggest_float("y", 0, 100)
        kinds.add(kind)
        assert (kind != "a") + (kind == "a" and x != 5.0) + (y != 7.0) == 1
    assert kinds == {"a", "b", "c"}


def test_pruned_trials_stand_below_and_failures_outside() -> None:
    found = study(optuna.samplers.RandomSampler())
    found.add_trials(
        [
            done(0.1, x=1.0),
            done(9.0, TrialState.PRUNED, x=2.0),
            done(None, TrialState.PRUNED, x=3.0),
            done(None, TrialState.FAIL, x=4.0),
            done(0.2, x=5.0),
        ]
    )
    everyone = ranked(finished(found), found.directions)
    assert [one.trial.params["x"] for one in best(everyone, 9)] == [5.0, 1.0, 2.0, 3.0]
    assert [one.worth for one in best(everyone, 9)][-1] == 0
    assert [one.trial.number for one in everyone] == [0, 1, 2, 4]


def test_several_objectives_go_by_dominance() -> None:
    found = optuna.create_study(
        directions=["maximize", "minimize"],
        sampler=searchers.create("evolution", seed=0, population=3, tournament=30, survival="worst"),
    )
    for x, values in ((1.0, (1.0, 5.0)), (2.0, (2.0, 1.0)), (3.0, (1.5, 4.0))):
        found.add_trial(create_trial(params={"x": x, "y": x}, distributions={"x": X, "y": X}, values=list(values)))
    for _ in range(10):
        trial = found.ask()
        assert 2.0 in (trial.suggest_float("x", 0, 100), trial.suggest_float("y", 0, 100))


def test_a_tournament_of_one_is_a_draw_and_a_large_one_finds_the_best() -> None:
    found = five()
    members = ranked(finished(found), found.directions)
    assert {tournament(members, 1, Random(seed)).trial.number for seed in range(60)} == {0, 1, 2, 3, 4}
    assert {tournament(members, 60, Random(seed)).trial.number for seed in range(20)} == {0}


def test_crossover_takes_what_only_one_decided_from_it() -> None:
    first = {"x": Gene(X, 1.0), "y": Gene(X, 1.0)}
    second = {"x": Gene(X, 2.0), "z": Gene(X, 2.0)}
    drawn = [cross(first, second, Random(seed)) for seed in range(40)]
    assert all((child["y"].value, child["z"].value) == (1.0, 2.0) for child in drawn)
    assert 10 < sum(child["x"].value == 2.0 for child in drawn) < 30


def test_mutation_leaves_the_parent_alone() -> None:
    parent = {"x": Gene(X, 1.0), "y": Gene(X, 1.0)}
    child = mutate(parent, 1, lambda name, gene, rng: gene.value + 1, Random(0))
    assert sorted(gene.value for gene in child.values()) == [1.0, 2.0]
    assert [gene.value for gene in parent.values()] == [1.0, 1.0]


@pytest.mark.parametrize(
    ("distribution", "value"),
    [
        (KIND, "b"),
        (CategoricalDistribution((False, True)), False),
        (IntDistribution(2, 8, step=2), 4),
        (IntDistribution(1, 1000, log=True), 1),
        (FloatDistribution(0, 1, step=0.05), 0.35),
        (FloatDistribution(1e-4, 1, log=True), 1e-2),
    ],
    ids=str,
)
def test_another_value_is_legal_and_another(distribution: BaseDistribution, value: Any) -> None:
    for seed in range(40):
        for spread in (0.001, 0.5, None):
            new = another(Gene(distribution, value), Random(seed), spread)
            assert new != value
            assert distribution._contains(distribution.to_internal_repr(new))
            assert type(new) is type(value)


def test_it_beats_random_search() -> None:
    def regret(name: str, **options: Any) -> float:
        left = []
        for seed in range(3):
            found = study(searchers.create(name, seed=seed, **options))
            found.optimize(mixed, n_trials=70)
            left.append(2.0 - found.best_value)
        return math.fsum(left) / len(left)

    assert regret("evolution", population=12, tournament=4) < 0.75 * regret("random")
