"""NNI's tuners: their proposals are NNI's own, and the space they are told is the one the trials show."""

from __future__ import annotations

import logging
import math
import random
import subprocess
import sys
from datetime import datetime, timedelta
from random import Random
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import Trial, TrialState, create_trial

from kdsearch import searchers
from kdsearch.searchers import MissingPackage
from kdsearch.searchers.nni_tuners.history import events, result
from kdsearch.searchers.nni_tuners.sampler import NNISampler
from kdsearch.searchers.nni_tuners.space import Place, declaration, inward, learn, outward

from .spaces import LOSSES, mixed, study

pytest.importorskip("nni")
optuna.logging.set_verbosity(optuna.logging.ERROR)

SPACE: dict[str, Any] = {
    "loss": {
        "_type": "choice",
        "_value": [
            {"_name": "none"},
            {"_name": "kd", "kd.weight": {"_type": "loguniform", "_value": [0.01, 100]}},
            {
                "_name": "dkd",
                "dkd.alpha": {"_type": "uniform", "_value": [0, 1]},
                "dkd.mode": {"_type": "choice", "_value": ["soft", "hard"]},
            },
        ],
    },
    "lr": {"_type": "uniform", "_value": [0, 2]},
    "depth": {"_type": "quniform", "_value": [0, 40, 2]},
    "cut": {"_type": "choice", "_value": [1, 2, 4]},
}
"""As a user of NNI would write the space of `nested`."""
WARM_UP, TRIALS = 12, 36


def nested(trial: Trial) -> float:
    loss = trial.suggest_categorical("loss", ("none", "kd", "dkd"))
    value = {"none": 0.0, "kd": 0.4, "dkd": 0.5}[loss]
    if loss == "kd":
        value -= 0.1 * abs(math.log10(trial.suggest_float("kd.weight", 0.01, 100, log=True)))
    elif loss == "dkd":
        value -= abs(trial.suggest_float("dkd.alpha", 0, 1) - 0.3)
        value += 0.1 * (trial.suggest_categorical("dkd.mode", ("soft", "hard")) == "hard")
    value -= (trial.suggest_float("lr", 0, 2) - 0.5) ** 2
    value -= 0.01 * abs(trial.suggest_int("depth", 0, 40, step=2) - 12)
    return value + 0.05 * trial.suggest_categorical("cut", (1, 2, 4))


def flattened(proposal: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in proposal.items():
        if isinstance(value, dict):
            flat[name] = value["_name"]
            flat |= flattened({key: v for key, v in value.items() if key != "_name"})
        else:
            flat[name] = value
    return flat


def side_by_side(sampler: NNISampler, live: Any, seeding: Any, at_once: int) -> None:
    """An experiment of NNI's own beside a study; from WARM_UP trials on, the study's proposals have to be NNI's.

    The warm-up is NNI's as well, so that the live tuner is driven by its public calls alone; its generator is seeded
    before each proposal as the sampler does it.
    """
    found = study(sampler)
    for first in range(0, TRIALS, at_once):
        batch = []
        for number in range(first, first + at_once):
            seeding(number)
            proposal = live.generate_parameters(number)
            expected = flattened(proposal)
            if number < WARM_UP:
                found.enqueue_trial(expected)
            trial = found.ask()
            value = nested(trial)
            assert trial.params.keys() == expected.keys()
            for name, taken in trial.params.items():
                # A study keeps a weight, NNI its logarithm: exact to the last digits.
                assert taken == (pytest.approx(expected[name], rel=1e-9) if name == "kd.weight" else expected[name])
            batch.append((trial, proposal, value))
        for trial, proposal, value in reversed(batch):
            if trial.number % 9 == 4:
                found.tell(trial, state=TrialState.FAIL)
                live.trial_end(trial.number, False)
            elif trial.number % 9 == 7:
                trial.report(value - 0.1, step=2)
                found.tell(trial, state=TrialState.PRUNED)
                live.receive_trial_result(trial.number, proposal, value - 0.1)
            else:
                found.tell(trial, value)
                live.receive_trial_result(trial.number, proposal, value)


@pytest.fixture
def gridless(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The space without its grid, which is then no decision of `nested` either.

    NNI's TPE keeps a number of a grid unrounded, which no study does; its annealing fails on its own grids under
    today's NumPy.
    """
    monkeypatch.setattr(Trial, "suggest_int", lambda self, *args, **options: 12)
    return {name: spec for name, spec in SPACE.items() if name != "depth"}


@pytest.mark.parametrize(("at_once", "liar"), [(1, "best"), (3, "best"), (3, "worst"), (3, "mean"), (3, "none")])
def test_tpe_proposes_what_nni_proposes(at_once: int, liar: str, gridless: dict[str, Any]) -> None:
    from nni.algorithms.hpo.tpe_tuner import TpeTuner

    sampler = searchers.create("nni", seed=3, tuner="tpe", startup=6, liar=liar)
    assert isinstance(sampler, NNISampler)
    arguments = {"n_startup_jobs": 6, "constant_liar_type": None if liar == "none" else liar}
    live = TpeTuner("maximize", seed=0, tpe_args=arguments)
    live.update_search_space(gridless)

    def seeding(number: int) -> None:
        live.rng = np.random.default_rng(sampler.entropy(number))

    side_by_side(sampler, live, seeding, at_once)


@pytest.mark.parametrize("at_once", [1, 3])
def test_evolution_proposes_what_nni_proposes(at_once: int) -> None:
    from nni.algorithms.hpo.evolution_tuner import EvolutionTuner

    sampler = searchers.create("nni", seed=3, tuner="evolution", population=8)
    assert isinstance(sampler, NNISampler)
    live = EvolutionTuner("maximize", population_size=8)
    live.update_search_space(SPACE)
    live.random_state.seed(sampler.entropy(-1, "population") % 2**32)
    live.population.clear()
    for _ in range(8):
        live._random_generate_individual()

    def seeding(number: int) -> None:
        random.seed(sampler.entropy(number))
        live.random_state.seed(sampler.entropy(number) % 2**32)

    state = random.getstate()
    try:
        side_by_side(sampler, live, seeding, at_once)
    finally:
        random.setstate(state)


def test_annealing_proposes_what_nni_proposes(gridless: dict[str, Any]) -> None:
    try:
        sampler = searchers.create("nni", seed=3, tuner="anneal")
    except MissingPackage as error:
        pytest.skip(str(error))
    from nni.algorithms.hpo.hyperopt_tuner import HyperoptTuner

    assert isinstance(sampler, NNISampler)
    live = HyperoptTuner("anneal", optimize_mode="maximize")
    live.update_search_space(gridless)
    side_by_side(sampler, live, lambda n: live.rval.rstate.seed(sampler.entropy(n) % 2**32), 1)


def finished_study(sampler: Any, trials: int) -> Any:
    found = study(sampler)
    warm = study(optuna.samplers.RandomSampler(seed=1))
    warm.optimize(nested, n_trials=trials)
    found.add_trials(warm.trials)
    return found


def test_random_proposes_what_nni_proposes() -> None:
    from nni.algorithms.hpo.random_tuner import RandomTuner

    found = finished_study(searchers.create("nni", seed=3, tuner="random"), 12)
    for number in range(12, 16):
        live = RandomTuner(seed=found.sampler.entropy(number))
        live.update_search_space(SPACE)
        trial = found.ask()
        nested(trial)
        assert trial.params == flattened(live.generate_parameters(number))


def test_gp_proposes_what_nni_proposes() -> None:
    from nni.algorithms.hpo.gp_tuner.gp_tuner import GPTuner

    found = finished_study(searchers.create("nni", seed=3, tuner="gp", cold_start=8, warm_up=60), 10)
    live = GPTuner("maximize", cold_start_num=8, selection_num_warm_up=60, selection_num_starting_points=0)
    live._random_state.seed(found.sampler.entropy(10) % 2**32)
    live.update_search_space({name: SPACE[name] for name in ("lr", "depth")})
    for trial in found.trials:
        live.receive_trial_result(
            trial.number, {name: float(trial.params[name]) for name in ("lr", "depth")}, trial.value
        )
    trial = found.ask()
    nested(trial)
    assert {name: trial.params[name] for name in ("lr", "depth")} == live.generate_parameters(10)


def test_what_was_proposed_before_is_replaced_as_nni_does() -> None:
    from nni.algorithms.hpo.tpe_tuner import TpeTuner

    space = {name: {"_type": "choice", "_value": ["a", "b", "c"]} for name in ("x", "y")}
    sampler = searchers.create("nni", seed=3, tuner="tpe", startup=3)
    found = study(sampler)
    live = TpeTuner("maximize", tpe_args={"n_startup_jobs": 3})
    live.update_search_space(space)
    for number in range(9):
        live.rng = np.random.default_rng(sampler.entropy(number))  # type: ignore[attr-defined]
        proposal = live.generate_parameters(number)
        if number < 4:
            found.enqueue_trial(proposal)
        trial = found.ask()
        value = sum(trial.suggest_categorical(name, ("a", "b", "c")) == "b" for name in ("x", "y"))
        assert trial.params == proposal
        found.tell(trial, value)
        live.receive_trial_result(number, proposal, value)
    assert len({tuple(trial.params.values()) for trial in found.trials}) == 9
    trial = found.ask()  # nothing is left: NNI would stop, a study draws at random
    assert trial.suggest_categorical("x", ("a", "b", "c")) in "abc"


def test_the_space_is_learnt_from_trials() -> None:
    warm = study(optuna.samplers.RandomSampler(seed=0))
    warm.optimize(mixed, n_trials=40)
    space = learn(warm.trials)
    assert space.places == {
        **{f"{loss}.weight": Place("loss", LOSSES.index(loss)) for loss in LOSSES[1:]},
        "dkd.alpha": Place("loss", LOSSES.index("dkd")),
        "depth": Place("deep", 1),
    }
    told = space.to_nni()
    assert list(told) == ["loss", "deep", "width"]
    weight = {"_type": "loguniform", "_value": [0.01, 100]}
    assert told["loss"]["_value"][0] == {"_name": "0"}
    assert told["loss"]["_value"][1] == {"_name": "1", "kd.weight": weight}
    assert told["deep"]["_value"][1]["depth"] == {"_type": "quniform", "_value": [0, 38, 2]}
    assert told["width"] == {"_type": "qloguniform", "_value": [4, 256, 1]}


def test_choices_within_choices_hang_at_the_root() -> None:
    def deep(trial: Trial) -> float:
        if trial.suggest_categorical("a", (False, True)) and trial.suggest_categorical("a.b", (False, True)):
            return trial.suggest_float("a.b.c", 0, 1)
        return 0.0

    for tuner in ("tpe", "evolution", "random"):
        found = study(searchers.create("nni", seed=0, tuner=tuner, startup=3, population=5))
        found.optimize(deep, n_trials=14)
        assert set(learn(found.trials).places.values()) == {Place("a", 1)}


def test_a_decision_that_several_choices_ask_for_is_at_the_root() -> None:
    warm = study(optuna.samplers.RandomSampler(seed=0))

    def shared(trial: Trial) -> float:
        if trial.suggest_categorical("kind", ("a", "b", "c")) != "a":
            trial.suggest_float("kind.x", 0, 1)
        return 0.0

    warm.optimize(shared, n_trials=12)
    assert learn(warm.trials).places == {}
    assert list(learn(warm.trials).to_nni()) == ["kind", "kind.x"]


@pytest.mark.parametrize(
    "distribution",
    [
        CategoricalDistribution(("a", None, 3, True)),
        IntDistribution(3, 21, step=3),
        IntDistribution(1, 1000, log=True),
        FloatDistribution(-1.1, 1.3, step=0.1),
        FloatDistribution(1e-4, 1, log=True),
        FloatDistribution(-2, 5),
    ],
    ids=str,
)
def test_values_go_in_and_come_out(distribution: BaseDistribution) -> None:
    rng, spec = Random(0), declaration(distribution)
    for _ in range(60):
        if spec["_type"] == "choice":
            told: float = rng.choice(spec["_value"])
        else:
            told = rng.uniform(*spec["_value"][:2])
        value = outward(distribution, told)
        assert distribution._contains(distribution.to_internal_repr(value))
        again = outward(distribution, inward(distribution, value))
        assert again == value
        assert type(again) is type(value)


def test_nni_is_told_the_last_report_of_a_stopped_trial() -> None:
    pruned: dict[str, Any] = {"state": TrialState.PRUNED, "params": {}, "distributions": {}}
    assert result(create_trial(value=2.0)) == 2.0
    assert result(create_trial(value=math.inf)) is None
    assert result(create_trial(intermediate_values={3: 0.5, 1: 0.9}, **pruned)) == 0.5
    assert result(create_trial(intermediate_values={3: math.nan}, **pruned)) is None
    assert result(create_trial(**pruned)) is None
    assert result(create_trial(state=TrialState.FAIL)) is None


def test_events_go_by_the_clock() -> None:
    trials = []
    for number, (start, end) in enumerate([(0, 4), (1, 2), (2, 3), (5, 5)]):
        trial = create_trial(value=0.0)
        trial.number = number
        trial.datetime_start, trial.datetime_complete = (
            datetime(2024, 1, 1) + timedelta(hours=h) for h in (start, end)
        )
        trials.append(trial)
    order = [(trial.number, told) for trial, told in events(trials)]
    assert order == [
        *((0, False), (1, False), (1, True), (2, False), (2, True)),
        *((0, True), (3, False), (3, True)),
    ]


def test_threads_give_the_standard_output_back() -> None:
    before = sys.stdout, logging.getLogger("nni").level
    found = optuna.create_study(sampler=searchers.create("nni", seed=0, tuner="tpe"))
    found.optimize(lambda trial: sum(trial.suggest_float(f"x{k}", 0, 1) for k in range(4)), n_trials=40, n_jobs=8)
    assert (sys.stdout, logging.getLogger("nni").level) == before


def test_nni_stays_out_until_it_is_asked_for() -> None:
    code = "import sys; from kdsearch import searchers; searchers.names(); print('nni' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "hyperopt", None)
    with pytest.raises(MissingPackage, match="'anneal' needs hyperopt"):
        searchers.create("nni", seed=0, tuner="anneal")
    monkeypatch.setitem(sys.modules, "nni", None)
    with pytest.raises(MissingPackage, match=r"pip install kdsearch\[nni\]"):
        searchers.create("nni", seed=0)


@pytest.mark.parametrize("tuner", ["tpe", "evolution", "gp"])
def test_nothing_is_printed(tuner: str, capfd: pytest.CaptureFixture[str]) -> None:
    found = study(searchers.create("nni", seed=0, tuner=tuner, cold_start=3, warm_up=5))
    for _ in range(6):
        trial = found.ask()
        found.tell(trial, trial.suggest_int("k", 0, 1))
    assert capfd.readouterr() == ("", "")
