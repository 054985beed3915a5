"""What stops trials: halving with a margin of the measured noise, and only where rungs have shown their worth."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState

from kdsearch.errors import UserError
from kdsearch.runs import config_file
from kdsearch.runs.calibration import calibrate, verdict
from kdsearch.runs.ledger import judged
from kdsearch.runs.pruning import CALIBRATION, Calibrated, NoisyHalving, pruner, residual, steps
from kdsearch.runs.report.agreement import agreements
from kdsearch.runs.run import Run

from .studies import climb, empty
from .tiny import TINY

REDUCTION = 3


@pytest.fixture(autouse=True)
def _quiet() -> Any:
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    yield
    optuna.logging.set_verbosity(before)


def asha() -> optuna.pruners.BasePruner:
    return optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=REDUCTION)


def search(
    chosen: optuna.pruners.BasePruner,
    columns: np.ndarray,
    direction: Literal["maximize", "minimize"] = "maximize",
    *,
    protected: int = 0,
) -> tuple[optuna.Study, list[int]]:
    """Trials whose scores, rung by rung, are the rows of `columns`. Gives the study and each trial's last rung.

    The first so many are `protected`, as a run's baselines and published defaults are.
    """
    sampler = optuna.samplers.RandomSampler(seed=0)
    study = optuna.create_study(direction=direction, pruner=chosen, sampler=sampler)
    reached = []
    for scores in columns:
        trial = study.ask()
        for k, score in enumerate(scores):
            trial.report(float(score), REDUCTION**k)
            if k + 1 < len(scores) and trial.number >= protected and trial.should_prune():
                study.tell(trial, state=TrialState.PRUNED)
                break
        else:
            study.tell(trial, float(scores[-1]))
        reached.append(k)
    return study, reached


def recipes(seed: int, count: int = 200, noise: float = 0.05) -> tuple[np.ndarray, np.ndarray]:
    """True values, a few of them very bad, and scores: two noisy rungs and the value itself."""
    rng = np.random.default_rng(seed)
    value = 0.9 + 0.03 * rng.standard_normal(count)
    value[rng.random(count) < 0.1] = 0.2
    first = 0.6 * value + noise * rng.standard_normal(count)
    second = 0.8 * value + 0.5 * noise * rng.standard_normal(count)
    return value, np.stack([first, second, value], 1)


# the noise


def test_noise_of_a_line_with_known_scatter() -> None:
    rng = np.random.default_rng(0)
    x = rng.uniform(0, 1, 400)
    y = 3 * x + 0.12 * rng.standard_normal(400)
    assert residual(x, y) == pytest.approx(math.sqrt(2) * 0.12 / 3, rel=0.15)
    assert residual(x, 2 * x) == pytest.approx(0, abs=1e-12)
    y[:40] = -5.0  # failing recipes
    assert residual(x, y) == pytest.approx(math.sqrt(2) * 0.12 / 3, rel=0.35)
    above = x > 0.6  # only good scores were let through
    assert residual(x[above], (3 * x)[above] + 0.12 * rng.standard_normal(above.sum())) == pytest.approx(
        math.sqrt(2) * 0.12 / 3, rel=0.4
    )


def test_scores_that_say_nothing_have_no_end_of_noise() -> None:
    assert residual(np.ones(5), np.arange(5.0)) == math.inf
    assert residual(np.arange(5.0), -np.arange(5.0)) == math.inf


# halving


def test_the_best_survive_where_plain_halving_loses_them() -> None:
    lost: dict[str, int] = {"asha": 0, "noisy": 0}
    trained: dict[str, float] = {"asha": 0.0, "noisy": 0.0}
    for seed in range(4):
        value, columns = recipes(seed, 100)
        best = np.argsort(-value)[:1]  # 1 %
        for name, chosen in (("asha", asha()), ("noisy", NoisyHalving(REDUCTION))):
            _, reached = search(chosen, columns, protected=8)
            lost[name] += sum(reached[k] < 2 for k in best)
            trained[name] += np.mean(np.array(reached) == 2) / 4
    assert lost["asha"] >= 1
    assert lost["noisy"] == 0
    assert trained["asha"] < trained["noisy"] < 0.9


def test_a_rung_without_noise_is_plain_halving() -> None:
    value, columns = recipes(0, 60, noise=0.0)
    assert search(NoisyHalving(REDUCTION), columns)[1] == search(asha(), columns)[1]
    assert (value[np.array(search(asha(), columns)[1]) < 2] < value.max()).all()


def test_nothing_is_known_before_enough_trials_are_complete() -> None:
    _, columns = recipes(1, 60)
    assert search(NoisyHalving(REDUCTION, startup=1000), columns)[1] == search(asha(), columns)[1]
    assert search(NoisyHalving(REDUCTION, margin=0), columns)[1] == search(asha(), columns)[1]


def test_what_halving_keeps_is_always_kept() -> None:
    _, columns = recipes(2, 80)
    _, noisy = search(NoisyHalving(REDUCTION), columns)
    first = np.array(search(asha(), columns)[1])
    assert (np.array(noisy) >= np.minimum(first, 1)).all()


def test_smaller_is_better_where_the_metric_says_so() -> None:
    _, columns = recipes(3, 80)
    up, down = search(NoisyHalving(REDUCTION), columns)[1], search(NoisyHalving(REDUCTION), -columns, "minimize")[1]
    assert up == down


def test_what_is_no_number_is_stopped() -> None:
    _, columns = recipes(4, 40)
    columns[20:, 0] = np.nan
    assert set(search(NoisyHalving(REDUCTION), columns)[1][20:]) == {0}


def test_borrowed_results_are_no_evidence() -> None:
    _, columns = recipes(0, 30)
    study, _ = search(optuna.pruners.NopPruner(), columns)
    chosen = NoisyHalving(REDUCTION)
    noise = chosen.noise(study, 1)
    trial = study.ask()
    trial.report(0.0, 1)
    trial.set_user_attr("duplicate_of", 0)
    study.tell(trial, 100.0)
    assert noise is not None
    assert chosen.noise(study, 1) == noise


# calibration


def calibrated(folder: Path, **changes: Any) -> Run:
    fidelity = {**TINY["fidelity"], "calibrate": 6}
    return empty(folder, fidelity=fidelity, pruner={"name": "asha", "reduction": 2}, **changes)


def fill(run: Run, pairs: list[tuple[float, float]]) -> str | None:
    said = None
    for sparse, full in pairs:
        climb(run, {"sparse": sparse, "full": full})
        said = calibrate(run.search_ledger.study, run.config) or said
    return said


def stops(run: Run, score: float) -> bool:
    """Whether the run's ledger stops a trial with this score at the first rung."""
    from kdsearch.runs.jobs import RungResult

    from .studies import ask

    trial = ask(run)
    result = RungResult("sparse", score, 1.0)
    run.search_ledger.record(trial, result)
    found = run.search_ledger.prunes(trial, result)
    run.search_ledger.prune(trial, "sparse")
    return found


GOOD = [(0.1 * k, 0.5 + 0.05 * k) for k in range(1, 7)]
BAD = [(0.1 * k, 0.5 + 0.05 * (k * 5 % 7)) for k in range(1, 7)]


def test_nobody_is_stopped_before_the_calibration_is_over(tmp_path: Path) -> None:
    run = calibrated(tmp_path / "run")
    assert fill(run, GOOD[:5]) is None
    assert not stops(run, 0.9)
    assert not stops(run, 0.0)
    assert CALIBRATION not in run.study.user_attrs
    said = fill(run, GOOD[5:])
    assert said is not None
    assert said.startswith("calibrated on 6 trials: sparse may stop trials (Kendall's tau 1.00, at least ")
    assert stops(run, -1.0)
    assert fill(run, BAD) is None  # it is settled once


def test_a_rung_that_ranks_badly_loses_its_say(tmp_path: Path) -> None:
    run = calibrated(tmp_path / "run")
    said = fill(run, BAD)
    assert said is not None
    assert "sparse stops nothing" in said
    assert not stops(run, -1.0)
    assert [pair.stops for pair in agreements(run) if pair.lower == "sparse"] == [False]


def test_a_resumed_run_knows_what_was_settled(tmp_path: Path) -> None:
    run = calibrated(tmp_path / "run")
    fill(run, GOOD)
    again = Run(tmp_path / "run")
    assert calibrate(again.search_ledger.study, again.config) is None
    assert not stops(again, 0.9)
    assert stops(again, -1.0)
    half = calibrated(tmp_path / "half")
    fill(half, GOOD[:3])
    assert fill(Run(tmp_path / "half"), GOOD[3:]) is not None


@pytest.mark.parametrize(("pairs", "stopped"), [(GOOD, True), (BAD, False)], ids=["good", "bad"])
def test_several_objectives(tmp_path: Path, pairs: list[tuple[float, float]], stopped: bool) -> None:
    run = calibrated(tmp_path / "run", minimise=["macs"])
    for sparse, full in pairs:
        climb(run, {"sparse": sparse, "full": full}, values=[10.0])
        assert calibrate(run.search_ledger.study, run.config) is None or sparse == pairs[-1][0]
    for _ in range(3):  # one that is never stopped is nobody's rival
        found = stops(run, -1.0)
    assert found == stopped or not stopped


# what a rung is judged by


@pytest.mark.parametrize(("metric", "value"), [("accuracy", math.exp(-0.5)), ("nll", 0.5)])
@pytest.mark.parametrize("minimise", [[], ["macs"]], ids=["one", "two"])
def test_a_rung_judged_by_its_likelihood(tmp_path: Path, metric: str, value: float, minimise: list[str]) -> None:
    sparse = {"name": "sparse", "data": 0.3, "judge": "likelihood"}
    fidelity = {"epochs": 2, "rungs": [sparse, {"name": "full"}]}
    run = empty(tmp_path / "run", metric=metric, fidelity=fidelity, minimise=minimise)
    trial = climb(run, {"sparse": 0.1}, beside={"nll": 0.5})
    (known,) = run.search_ledger.trials()
    assert known.number == trial.number
    assert known.user_attrs["rung:sparse"]["score"] == 0.1
    assert judged(known, "sparse") == pytest.approx(value)
    if not minimise:
        assert known.intermediate_values == {1: pytest.approx(value)}


def test_the_full_training_is_judged_by_the_metric() -> None:
    rungs = [{"name": "full", "judge": "likelihood"}]
    with pytest.raises(UserError, match="the last one is judged by the run's metric"):
        config_file.check({**TINY, "fidelity": {"epochs": 2, "rungs": rungs}}, "config")


def test_confidence() -> None:
    scores = [float(k) for k in range(12)]
    assert verdict("r", scores, scores, 0.5).stops
    assert not verdict("r", scores, scores[::-1], 0.0).stops
    assert verdict("r", [1.0] * 12, scores, -1.0).tau is None
    weak = [scores[k] for k in (3, 0, 5, 1, 8, 2, 4, 10, 6, 11, 7, 9)]
    all_of_them = verdict("r", scores, weak, 0.0)
    assert all_of_them.tau is not None
    assert all_of_them.lower < all_of_them.tau
    wider = verdict("r", scores[:6], weak[:6], 0.0)
    assert wider.tau is not None
    assert wider.tau - wider.lower > all_of_them.tau - all_of_them.lower


def test_pruners_by_name() -> None:
    def named(**pruning: Any) -> optuna.pruners.BasePruner:
        return pruner(config_file.check({**TINY, "pruner": pruning}, "config"))

    found = named(name="noisy", reduction=4, margin=0.5, startup=7)
    assert isinstance(found, NoisyHalving)
    assert (found.reduction, found.margin, found.startup) == (4, 0.5, 7)
    config = config_file.check({**TINY, "fidelity": {**TINY["fidelity"], "calibrate": 8}}, "config")
    assert isinstance(pruner(config), Calibrated)
    assert steps(config) == {"sparse": 1, "full": 3}
    with pytest.raises(UserError, match="noisy"):
        named(name="noizy")
    with pytest.raises(UserError, match="at least 6"):
        config_file.check({**TINY, "fidelity": {**TINY["fidelity"], "calibrate": 3}}, "config")
