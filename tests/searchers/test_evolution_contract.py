"""What evolution, kdzero, autokd and nni promise together: their state is the study's, whoever asks."""

from __future__ import annotations

import pickle
from typing import Any

import optuna
import pytest
from optuna.samplers import BaseSampler
from optuna.trial import TrialState

from kdsearch import searchers

from .spaces import mixed, proposals, study

optuna.logging.set_verbosity(optuna.logging.ERROR)
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "evolution": ("evolution", {"population": 6, "tournament": 3, "crossover": 0.5}),
    "evolution-worst": ("evolution", {"population": 6, "tournament": 1, "mutations": 2, "survival": "worst"}),
    "kdzero": ("kdzero", {"population": 6, "shrink_after": 3}),
    "autokd": ("autokd", {"levels": 3}),
    "nni-tpe": ("nni", {"tuner": "tpe", "startup": 6}),
    "nni-evolution": ("nni", {"tuner": "evolution", "population": 6}),
    "nni-gp": ("nni", {"tuner": "gp", "cold_start": 12, "warm_up": 20}),
    "nni-random": ("nni", {"tuner": "random"}),
}
every = pytest.mark.parametrize("case", CASES)
quick = pytest.mark.parametrize("case", [case for case in CASES if case != "nni-gp"])
LEAST = {"autokd": 8, "nni-evolution": 8}
"""Different ones of 32 proposals, where a search repeats itself: a leaf of UCT, a choice drawn anew as it was."""


def make(case: str, seed: int = 5) -> BaseSampler:
    name, options = CASES[case]
    if name == "nni":
        pytest.importorskip("nni")
    return searchers.create(name, seed=seed, **options)


def run(found: optuna.Study, trials: int) -> None:
    """With failed and pruned trials among them."""
    for _ in range(trials):
        trial = found.ask()
        value = mixed(trial)
        if trial.number % 7 == 3:
            found.tell(trial, state=TrialState.FAIL)
        elif trial.number % 7 == 5:
            found.tell(trial, state=TrialState.PRUNED)
        elif trial.number % 7 == 6:
            trial.report(value, step=1)
            found.tell(trial, state=TrialState.PRUNED)
        else:
            found.tell(trial, value)


@every
def test_a_resumed_study_goes_on_as_it_would_have(case: str) -> None:
    whole = study(make(case))
    run(whole, 18)
    resumed = study(make(case))
    resumed.add_trials(whole.trials)
    pickled = study(pickle.loads(pickle.dumps(whole.sampler)))
    pickled.add_trials(whole.trials)
    expected, others = whole.ask(), (resumed.ask(), pickled.ask())
    mixed(expected)
    for trial in others:
        mixed(trial)
        assert trial.params == expected.params
    another = study(make(case, seed=6))
    another.add_trials(whole.trials)
    trial = another.ask()
    mixed(trial)
    assert trial.params != expected.params


@quick
def test_sixteen_workers_at_once(case: str) -> None:
    found = study(make(case))
    run(found, 12)
    for _ in range(2):
        asked = [found.ask() for _ in range(16)]
        values = [mixed(trial) for trial in asked]
        for trial, value in reversed(list(zip(asked, values, strict=True))):
            found.tell(trial, value)
    taken = {tuple(sorted(params.items())) for params in proposals(found)[12:]}
    assert len(taken) > LEAST.get(case, 16)
    for done in found.trials:
        for key, value in done.params.items():
            distribution = done.distributions[key]
            assert distribution._contains(distribution.to_internal_repr(value)), (key, value)


@quick
def test_minimises_as_it_maximises(case: str) -> None:
    up, down = study(make(case)), study(make(case), direction="minimize")
    for _ in range(16):
        first, second = up.ask(), down.ask()
        up.tell(first, mixed(first))
        down.tell(second, -mixed(second))
    assert proposals(up) == proposals(down)


def suite_sampler(name: str) -> BaseSampler:
    return searchers.create(name, seed=0, **({"population": 3} if name != "autokd" else {}))


suite = pytest.importorskip("optuna.testing.pytest_samplers")


@pytest.mark.parametrize("name", ["evolution", "kdzero", "autokd"])
class TestOptunasSuite(suite.BasicSamplerTestCase):  # type: ignore[name-defined]
    @pytest.fixture
    def sampler(self, name: str) -> Any:
        return lambda: suite_sampler(name)


@pytest.mark.parametrize("name", ["evolution", "kdzero", "autokd"])
class TestOptunasSuiteOfObjectives(suite.MultiObjectiveSamplerTestCase):  # type: ignore[name-defined]
    @pytest.fixture
    def sampler(self, name: str) -> Any:
        return lambda: suite_sampler(name)
