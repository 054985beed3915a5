"""KD-Zero's evolution: parents from the better half, pairs, rejection, and choices that are no longer drawn."""

from __future__ import annotations

from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from kdsearch import searchers
from kdsearch.searchers.evolution.population import finished, ranked
from kdsearch.searchers.kdzero.sampler import KDZeroSampler
from kdsearch.searchers.kdzero.shrinkage import dropped

from .spaces import study

optuna.logging.set_verbosity(optuna.logging.ERROR)
KIND = CategoricalDistribution(("a", "b", "c", "d"))
X = FloatDistribution(0, 100)


def done(value: float | None, kind: str = "a", x: float = 0.0) -> FrozenTrial:
    return create_trial(
        params={"kind": kind, "x": x},
        distributions={"kind": KIND, "x": X},
        value=value,
        state=TrialState.PRUNED if value is None else TrialState.COMPLETE,
    )


def searched(trials: list[FrozenTrial], **options: Any) -> optuna.Study:
    found = study(searchers.create("kdzero", seed=2, **{"population": 4} | options))
    found.add_trials(trials)
    return found


def ask(found: optuna.Study) -> tuple[Any, float]:
    trial = found.ask()
    return trial.suggest_categorical("kind", KIND.choices), trial.suggest_float("x", 0, 100)


COPIES: dict[str, Any] = {"crossover": 0.0, "mutation": 0.0, "diversity": "none"}


def members(found: optuna.Study) -> list[int]:
    sampler = found.sampler
    assert isinstance(sampler, KDZeroSampler)
    return [one.trial.number for one in sampler._members(ranked(finished(found), found.directions))]


def test_only_the_better_half_has_children() -> None:
    found = searched([done(float(k), x=float(k)) for k in range(8)], **COPIES)
    assert {ask(found)[1] for _ in range(30)} == {7.0, 6.0}
    found = searched([done(float(k), x=float(k)) for k in range(8)], **COPIES | {"parents": 1.0})
    assert {ask(found)[1] for _ in range(60)} == {7.0, 6.0, 5.0, 4.0}


def test_rejected_trials_are_the_worst() -> None:
    found = searched([done(None, x=1.0), done(-9.0, x=2.0), done(None, x=3.0), done(-8.0, x=4.0)], **COPIES)
    assert {ask(found)[1] for _ in range(20)} == {2.0, 4.0}


def test_of_a_pair_the_better_joins() -> None:
    founders = [done(float(k)) for k in (1, 2, 3, 4)]
    found = searched([*founders, done(9.0), done(8.0), done(5.0), done(7.0), done(6.0)])
    # Of (9, 8) and (5, 7) the better; 6 is alone so far.
    assert members(found) == [4, 7, 8, 3]
    assert members(searched(found.trials, diversity="none")) == [4, 5, 7, 8]


def test_every_second_trial_is_random_in_pairs() -> None:
    trials = [done(1.0, x=50.0) for _ in range(4)]
    found = searched(trials, crossover=0.0, mutation=0.0)
    drawn = [ask(found)[1] for _ in range(20)]
    assert [x == 50.0 for x in drawn] == [True, False] * 10
    found = searched(trials, crossover=0.0, mutation=0.0, diversity="seldom")
    assert [ask(found)[1] == 50.0 for _ in range(8)] == [False, True, True, True] * 2


def test_mutation_redraws_its_share() -> None:
    trials = [done(1.0, "b", 50.0) for _ in range(4)]
    found = searched(trials, crossover=0.0, mutation=1.0, allele=0.5, diversity="none")
    same = [ask(found)[1] == 50.0 for _ in range(200)]
    assert 70 < sum(same) < 130
    found = searched(trials, crossover=0.0, mutation=1.0, allele=0.0, diversity="none")
    assert {ask(found) for _ in range(10)} == {("b", 50.0)}


def test_crossover_mixes_two_parents() -> None:
    found = searched([done(2.0, "b", 20.0), done(1.0, "c", 30.0), done(0.0), done(0.0)], **COPIES | {"crossover": 1.0})
    assert {ask(found) for _ in range(60)} == {(kind, x) for kind in "bc" for x in (20.0, 30.0)}


def test_a_choice_that_only_did_badly_is_dropped() -> None:
    trials = (
        [done(1.0, "a")] * 3 + [done(2.0, "b")] * 3 + [done(0.5, "c")] * 2 + [done(0.1, "d")] * 2 + [done(9.0, "d")]
    )
    everyone = ranked(finished(searched(trials)), [optuna.study.StudyDirection.MAXIMIZE])
    # The median is that of the trials worth 1; d has been lucky once, c has been tried twice.
    assert dropped(everyone, 3) == {}
    assert dropped(everyone, 2) == {"kind": frozenset({2.0})}
    assert dropped(everyone, 0) == {}


def test_the_last_choice_stays() -> None:
    everyone = ranked(finished(searched([done(1.0, "a")] * 9)), [optuna.study.StudyDirection.MAXIMIZE])
    assert dropped(everyone, 1) == {}


@pytest.mark.parametrize("options", [{}, {"crossover": 0.0, "mutation": 1.0, "allele": 1.0, "diversity": "none"}])
def test_dropped_choices_are_not_drawn(options: dict[str, Any]) -> None:
    trials = [done(0.0, "c")] * 4 + [done(0.1, "a")] * 4 + [done(5.0, "b"), done(6.0, "d")] * 6
    found = searched(trials, shrink_after=4, **options)
    assert {ask(found)[0] for _ in range(40)} == {"b", "d"}
    found = searched(trials, shrink_after=0, **options)
    assert {"a", "c"} <= {ask(found)[0] for _ in range(60)}
