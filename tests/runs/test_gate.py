"""Which students proxies stop in a search, and that the combiner stops none before it has earned it."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kdsearch.errors import UserError
from kdsearch.runs import assemble, config_file
from kdsearch.runs.config import ProxyConfig
from kdsearch.runs.driver import Driver
from kdsearch.runs.gate import Gate, one_student
from kdsearch.runs.jobs import Job, RungResult
from kdsearch.runs.report.agreement import agreements, combiner
from kdsearch.runs.run import Run
from kdsearch.runs.scoring import scores
from kdsearch.runs.trial import Runner
from kdsearch.runs.world import World
from kdsearch.search_space.recipe import Recipe
from kdsearch.search_space.space import SearchSpace

from .studies import empty
from .tiny import TINY, invoke, write_config

WIDE = {**TINY["space"], "student": {"cnn": {"channels": [2, 60], "stages": [2, 3]}}, "features": ["none"]}
SETTINGS = {"prune_by": "combined", "quantile": 0.2}


def driven(folder: Path, trials: int, *, telling: bool, **changes: Any) -> tuple[Run, Driver]:
    """A search whose rungs are formulas of the student: driver, study and space are real, no training is."""
    run = empty(folder, space=WIDE, budget={"trials": trials}, proxies=SETTINGS, **changes)
    driver = Driver(run.config, run.space, run.search_ledger, None, 10)
    while (job := driver.propose()) is not None:
        climb(driver, job, telling)
    return run, driver


def climb(driver: Driver, job: Job, telling: bool) -> None:
    hyper = Recipe.from_dict(job.recipe).student.hyper
    channels, stages = float(hyper["channels"]), float(hyper["stages"])  # type: ignore[arg-type]
    luck = math.sin(12.9898 * channels + 78.233 * stages + 37.719 * job.number) % 1.0
    accuracy = 1 - 1 / (1 + channels / 10) - 0.3 * (stages == 2) + 0.02 * luck if telling else luck
    scores = {"params": channels**2 * 4**stages, "synflow": channels if telling else math.sin(99 * channels) + stages,
              "macs": stages if telling else math.cos(7 * channels)}  # fmt: skip
    rungs = [RungResult("proxies", math.nan, 0.1, trained=False, metrics=scores)]
    sign = -1 if driver.ledger.primary == "minimize" else 1
    rungs += [RungResult(name, sign * accuracy, 1.0, size={"macs": channels}) for name in ("sparse", "full")]
    for rung in rungs:
        if not driver.record(job, rung):
            return


def said(run: Run) -> list[dict[str, Any]]:
    return [t.user_attrs["combined"] for t in run.search_ledger.trials() if "combined" in t.user_attrs]


def stopped(run: Run) -> list[Any]:
    found = [t for t in run.search_ledger.trials() if "duplicate_of" not in t.user_attrs]
    return [t for t in found if t.user_attrs.get("pruned_at") == "proxies"]


@pytest.mark.parametrize("metric", ["accuracy", "nll"])
def test_an_earned_combiner_stops_the_worst_students_and_only_these(tmp_path: Path, metric: str) -> None:
    run, driver = driven(tmp_path / "run", 40, telling=True, metric=metric)
    shown = run.study.user_attrs["combined"]
    assert shown["earned"]
    assert shown["tau"] > shown["bar"]
    assert driver.gate.standing is not None
    assert driver.gate.standing.to_dict() == {**shown, "of": tuple(shown["of"])}
    trials = stopped(run)
    assert trials
    for trial in trials:
        about = trial.user_attrs["combined"]
        assert about["earned"]
        assert about["stops"]
        assert about["below"] < 0.2
        assert about["lower"] >= 0.3
        assert about["n"] >= 10
        assert trial.user_attrs["origin"] == "search"
        assert trial.params["student.cnn.channels"] < 30
    first = min(trial.number for trial in trials)
    assert not any(
        t.user_attrs["combined"]["stops"] for t in run.search_ledger.trials()
        if "combined" in t.user_attrs and t.number < first
    )  # fmt: skip
    text = combiner(run)
    assert text is not None
    assert text.startswith(f"Proxies combined: cross-validated Kendall's τ {shown['tau']:.2f}")
    assert "earned" in text
    pair = next(pair for pair in agreements(run) if pair.lower == "combined")
    assert pair.stops
    assert pair.n == len(said(run)) - len(trials)


def test_scores_that_say_nothing_stop_nobody(tmp_path: Path) -> None:
    run, _ = driven(tmp_path / "run", 24, telling=False)
    assert not stopped(run)
    assert len(said(run)) > 10
    assert not any(one["earned"] or one["stops"] for one in said(run))
    assert "prunes nothing" in str(combiner(run))


def test_a_resumed_search_knows_what_the_first_process_knew(tmp_path: Path) -> None:
    run, driver = driven(tmp_path / "run", 20, telling=True)
    again = Run(run.path)
    fresh = Driver(again.config, again.space, again.search_ledger, None, 10)
    assert fresh.gate.standing == driver.gate.standing
    rows = [{"params": 9.0, "synflow": c, "macs": 2.0} for c in (2.0, 9.0, 40.0)]
    assert [fresh.gate.judge(row, math.nan) for row in rows] == [driver.gate.judge(row, math.nan) for row in rows]


def test_a_search_with_further_objectives_keeps_its_small_students(tmp_path: Path) -> None:
    run, driver = driven(tmp_path / "run", 30, telling=True, minimise=["macs"], searcher={"name": "nsga2"})
    assert driver.gate.standing is not None
    assert driver.gate.standing.earned
    assert not stopped(run)


def test_one_proxy_prunes_as_it_did(tmp_path: Path) -> None:
    run = empty(tmp_path / "run", space=WIDE, proxies={"prune_by": "synflow", "quantile": 0.3, "minimum": 5})
    driver = Driver(run.config, run.space, run.search_ledger, None, 10)
    for score in (5.0, 4.0, 3.0, 2.0):
        assert driver.gate.judge({}, score) == (False, None)
        driver.gate.see({}, {}, score)
    driver.gate.see({}, {}, 1.0)
    assert [driver.gate.judge({}, score)[0] for score in (0.5, 1.5, 2.5, -math.inf)] == [True, True, False, True]


def test_a_space_of_one_student() -> None:
    one = {"student": {"cnn": {"channels": 4, "stages": 3}}, "transform": ["none"]}
    assert one_student(SearchSpace.from_dict(one))
    assert not one_student(SearchSpace.from_dict({**one, "student": {"cnn": {"channels": [4, 8], "stages": 3}}}))
    assert not one_student(SearchSpace.from_dict({**one, "student": {**one["student"], "vit": {}}}))  # type: ignore[dict-item]
    assert not one_student(SearchSpace.from_dict({**one, "transform": ["none", "moonshine"]}))


def test_proxies_of_one_student_cost_nothing(tmp_path: Path, world: World) -> None:
    """The driver says whether there is anything to tell apart, and whoever runs the trial scores it or does not."""
    for channels, scored in (({"values": [3, 4]}, True), (3, False)):
        space = {**TINY["space"], "student": {"cnn": {"channels": channels, "stages": 3}}, "transform": ["none"]}
        run = empty(tmp_path / str(scored), space=space, proxies={"names": ["synflow"]})
        job = Driver(run.config, run.space, run.search_ledger, None, 10).propose()
        assert job is not None
        assert job.scored == scored
        rungs = Runner(world, replace(assemble.ladder(run.config), rungs=()), tmp_path).run(job)
        found = [result.metrics for result in rungs if result.name == "proxies"]
        assert [set(metrics) for metrics in found] == [{"synflow", "params"}] * scored


def test_a_real_search_that_has_not_earned_stops_nobody(tmp_path: Path) -> None:
    proxies = {"names": ["synflow"], "prune_by": "combined", "minimum": 2, "quantile": 0.9}
    path = write_config(tmp_path, proxies=proxies, budget={"trials": 4}, finals={"recipes": 1, "seeds": 1})
    result = invoke("run", path, "--run-dir", tmp_path / "run", "--quiet")
    assert result.exit_code == 0, result.output
    run = Run(tmp_path / "run")
    trials = [t for t in run.search_ledger.trials() if "duplicate_of" not in t.user_attrs]
    assert all(set(t.user_attrs["rung:proxies"]["metrics"]) == {"synflow", "params"} for t in trials if t.values)
    assert not stopped(run)
    assert not any(one["earned"] or one["stops"] for one in said(run))


def test_the_config_names_what_prunes() -> None:
    config = config_file.check({"proxies": {"names": ["synflow"], "prune_by": "combined"}}, "x")
    assert config.proxies.scored == ("synflow", "params")
    config = config_file.check({"proxies": {"names": ["synflow"], "prune_by": "synflow"}}, "x")
    assert config.proxies.scored == ("synflow",)
    assert config_file.check({"proxies": {"names": [], "prune_by": "combined"}}, "x").proxies.scored == ()
    with pytest.raises(UserError, match="prune_by: 'combind' is not among the scored proxies; did you mean 'combined'"):
        config_file.check({"proxies": {"prune_by": "combind"}}, "x")


def test_a_proxy_that_is_not_defined_for_a_student_is_worst_and_fails_nothing() -> None:
    config = config_file.check({**TINY, "proxies": {"names": ["naswot", "params"], "prune_by": None}}, "test")
    (row,) = scores(config, ["rnn:hidden=8"])
    assert row["naswot"] == -math.inf
    assert row["params"] > 0


def test_a_recipe_that_blows_up_says_nothing_of_its_student() -> None:
    gate = Gate(ProxyConfig(prune_by="combined", quantile=0.5, minimum=10), "short", "minimize")
    students = [Recipe.from_dict({"student": {"family": "cnn", "channels": 4 + k}}).to_dict() for k in range(14)]
    for k, student in enumerate(students):
        gate.see(student, {"synflow": float(k), "params": float(k % 3)}, None)
        for nll in (1.0 - k / 20, 1.01 - k / 20, 1e3 * k):  # the larger the student, the worse one of its recipes
            gate.learn(student, nll)
    assert gate.standing is not None
    assert gate.standing.earned
    assert gate.judge({"synflow": 0.0, "params": 1.0}, math.nan)[0]
    assert not gate.judge({"synflow": 13.0, "params": 1.0}, math.nan)[0]
