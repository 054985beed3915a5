"""What every searcher of the table must do, whatever it is. A new entry is tested by registering."""

from __future__ import annotations

import random
import warnings
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.samplers import BaseSampler
from optuna.trial import TrialState, create_trial

from kdsearch import searchers
from kdsearch.searchers import SEARCHERS

from .spaces import mixed, proposals, study

optuna.logging.set_verbosity(optuna.logging.ERROR)
SMALL: dict[str, dict[str, Any]] = {
    "gp": {"n_startup_trials": 8},
    "tpe": {"n_startup_trials": 5},
    "nsga2": {"population_size": 5},
    "evolution": {"population": 5},
    "kdzero": {"population": 5},
    "nni": {"startup": 5},
}
every = pytest.mark.parametrize("name", searchers.names())


def make(name: str, seed: int = 0) -> BaseSampler:
    return searchers.create(name, seed=seed, **SMALL.get(name, {}))


@every
def test_is_an_optuna_sampler_and_is_quiet(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert isinstance(make(name), BaseSampler)


@every
def test_searches_a_conditional_space(name: str) -> None:
    found = study(make(name))
    found.optimize(mixed, n_trials=12)
    for trial in found.trials:
        assert trial.state == TrialState.COMPLETE
        for key, value in trial.params.items():
            distribution = trial.distributions[key]
            assert distribution._contains(distribution.to_internal_repr(value)), (key, value)
            assert type(value) in (bool, int, float, str), "no numpy scalars in a study"


@every
def test_a_seed_fixes_the_proposals(name: str) -> None:
    runs = []
    for seed in (3, 3, 4):
        found = study(make(name, seed))
        found.optimize(mixed, n_trials=10)
        runs.append(proposals(found))
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


@every
def test_leaves_the_global_random_state_alone(name: str) -> None:
    before, numpy_before = random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index]
    found = study(make(name))
    found.optimize(mixed, n_trials=10)
    assert random.getstate() == before
    assert np.random.get_state()[1].tolist() == numpy_before  # type: ignore[index]


@every
def test_copes_with_pruned_failed_and_running_trials(name: str) -> None:
    found = study(make(name))
    for k in range(14):
        trial = found.ask()
        value = mixed(trial)
        if k % 4 == 1:
            found.tell(trial, state=TrialState.FAIL)
        elif k % 4 == 2:
            found.tell(trial, state=TrialState.PRUNED)  # without a value: a deterministic failure
        elif k % 4 == 3 and k < 8:
            continue  # left running
        elif k % 4 == 3:
            trial.report(value, step=1)
            found.tell(trial, state=TrialState.PRUNED)
        else:
            found.tell(trial, value)
    states = [trial.state for trial in found.trials]
    assert {s: states.count(s) for s in set(states)} == {
        TrialState.COMPLETE: 4,
        TrialState.FAIL: 4,
        TrialState.PRUNED: 4,
        TrialState.RUNNING: 2,
    }


@every
def test_takes_enqueued_and_added_trials(name: str) -> None:
    found = study(make(name))
    found.enqueue_trial({"loss": "dkd", "dkd.weight": 1.0, "dkd.alpha": 0.35})
    found.add_trial(
        create_trial(
            params={"loss": "at", "at.weight": 2.0},
            distributions={
                "loss": CategoricalDistribution(("none", "kd", "dkd", "at", "rkd")),
                "at.weight": FloatDistribution(0.01, 100, log=True),
            },
            value=0.3,
        )
    )
    found.optimize(mixed, n_trials=5)
    assert found.trials[0].params["dkd.alpha"] == 0.35
    assert len(found.trials) == 6


@every
def test_several_objectives(name: str) -> None:
    found = optuna.create_study(directions=["maximize", "minimize"], sampler=make(name))

    def objective(trial: optuna.Trial) -> tuple[float, float]:
        value = mixed(trial)
        return value, float(trial.params["width"])

    if SEARCHERS[name].objectives == 1:
        with pytest.raises(ValueError, match="multi-objective"):
            found.optimize(objective, n_trials=12)
    else:
        found.optimize(objective, n_trials=12)
        assert found.best_trials


@every
def test_a_range_that_changed_is_respected(name: str) -> None:
    found = study(make(name))
    for low, high in ((0, 10), (5, 20)):
        for _ in range(5):
            trial = found.ask()
            x, k = trial.suggest_float("x", low, high), trial.suggest_int("k", low, high)
            assert low <= x <= high
            assert low <= k <= high
            found.tell(trial, -abs(x - k))
