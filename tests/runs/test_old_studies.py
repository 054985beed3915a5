"""What a warm start makes of studies written by hand: what searchers, pruners and hints see of old trials."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

from kdsearch.errors import UserError
from kdsearch.runs import warm_start
from kdsearch.runs.hints import FAVOUR, PIECES, combined, hints
from kdsearch.runs.jobs import RungResult
from kdsearch.runs.ledger import KNOWN, RECREATED, SHIFTED, judged
from kdsearch.runs.past import WORLD, open_past
from kdsearch.runs.run import Run
from kdsearch.search_space.recipe import Recipe

from .studies import climb, duplicate, empty, fail, final, inherited, source
from .tiny import TINY

PARTS = {"sparse": {"epochs": 0.5, "data": 0.3}, "full": {}}
PLACE = {"data": "d", "teacher": "t", "training": {"epochs": 2}, "seed": 0, "rungs": PARTS}


def kd(weight: float, temperature: float = 4.0) -> Recipe:
    recipe = {"student": {"family": "cnn", "channels": 3, "stages": 3}, "ce": {"weight": 0.5}}
    recipe |= {"optimizer": {"method": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 5.0e-4}}
    return Recipe.from_dict({**recipe, "logits": {"method": "kd", "weight": weight, "temperature": temperature}})


def written(folder: Path, scores: Sequence[dict[str, float]], **changes: Any) -> Run:
    run = empty(folder, **changes)
    for k, score in enumerate(scores):
        climb(run, score, recipe=kd(0.5 + 0.1 * k))
    run.study.set_user_attr(WORLD, PLACE)
    return run


@pytest.fixture(scope="module")
def ranked(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Six complete trials of {none, kd}, better and better; a stopped one; the finals prefer the first two."""
    space = {**TINY["space"], "logits": ["none", "kd"], "features": ["none"]}
    scores = [{"sparse": 0.5 + 0.01 * k, "full": 0.7 + 0.01 * k} for k in range(6)]
    run = written(tmp_path_factory.mktemp("ranked") / "a", [*scores, {"sparse": 0.3}], space=space)
    final(run, kd(0.5), "finalist", [0.85, 0.86])
    final(run, kd(0.6), "finalist", [0.80, 0.81])
    return run


def take(old: Run, new: Run, **world: Any) -> str:
    past = open_past(new.config.warm_start, new.path)
    line = warm_start.begin(new.config, new.search_ledger, new.space, past, {**PLACE, **world}, lambda recipe: None)
    new._inform(new.search_ledger)
    return line


def new(old: Run, folder: Path, start: dict[str, Any] | None = None, **changes: Any) -> Run:
    return empty(folder, warm_start={"run": str(old.path), **(start or {})}, **changes)


@pytest.mark.parametrize("name", ["mcts", "tpe", "gp", "nsga2", "evolution"])
def test_every_searcher_goes_on_from_old_trials(name: str, ranked: Run, tmp_path: Path) -> None:
    """Old: {none, kd}. New: dkd as well, and a slot for features. No list of choices may change within a study."""
    options = {"population_size": 4} if name == "nsga2" else {}
    options |= {"n_startup_trials": 5} if name in ("tpe", "gp") else {}
    run = new(ranked, tmp_path / "b", searcher={"name": name, "options": options})
    take(ranked, run)
    assert len(inherited(run)) == 7
    for score in (0.3, 0.5):
        trial = climb(run, {"sparse": score, "full": score})
        assert trial.params["logits"] in ("none", "kd", "dkd")
    if name == "nsga2":
        key = "NSGAIISampler:generation"
        assert {t.system_attrs.get(key) for t in inherited(run) if t.state == TrialState.COMPLETE} == {0}
        assert [t.system_attrs[key] for t in run.search_ledger.trials()] == [1, 1]


@pytest.mark.parametrize(("seed", "stops"), [(0, True), (3, False)])
@pytest.mark.parametrize("pruner", [{"name": "asha"}, {"name": "median", "startup": 3}])
def test_pruners_compare_with_old_trials_of_the_same_seed_alone(
    pruner: dict[str, Any], seed: int, stops: bool, ranked: Run, tmp_path: Path
) -> None:
    run = new(ranked, tmp_path / "b", {"use": "history"}, pruner=pruner)
    line = take(ranked, run, seed=seed)
    assert ("as history (other seed)" in line) is bool(seed)
    ledger = run.search_ledger
    trial = ledger.study.ask()
    run.space.suggest(trial)
    result = RungResult("sparse", 0.4, 1.0, metrics={"accuracy": 0.4})
    ledger.record(trial, result)
    assert ledger.prunes(trial, result) is stops
    assert {t.user_attrs[RECREATED] for t in inherited(run)} == {SHIFTED if seed else KNOWN}


def test_another_seed_is_history_on_request_only(ranked: Run, tmp_path: Path) -> None:
    """By default it gives priors, and the recipes that the old finals preferred go first."""
    run = new(ranked, tmp_path / "b", {"trials": 3})
    assert "as priors (other seed)" in take(ranked, run, seed=1)
    assert not inherited(run)
    assert [recipe for recipe, _ in warm_start.first(run.search_ledger)] == [kd(0.5), kd(0.6), kd(1.0)]


def test_what_cannot_be_used_is_left_out_and_counted(tmp_path: Path) -> None:
    before = empty(tmp_path / "a")
    good = climb(before, {"sparse": 0.5, "full": 0.8}, recipe=kd(0.5))
    climb(before, {"sparse": 0.4, "full": 0.7}, recipe=kd(0.5, temperature=19.0))  # outside
    climb(before, {"sparse": 0.2}, recipe=kd(0.6))  # stopped at a rung that the new ladder does not have
    fail(before, "invalid", "no")
    failed = fail(before, "non-finite", "loss")
    duplicate(before, good)
    before.study.set_user_attr(WORLD, PLACE)
    space = {**TINY["space"], "logits": {"none": {}, "kd": {"temperature": [1, 10]}, "dkd": {}}}
    run = new(before, tmp_path / "b", space=space, fidelity={"epochs": 2, "rungs": [{"name": "full"}]})
    line = take(before, run, rungs={"full": {}})
    made = {source(t): t for t in inherited(run)}
    assert good.number in made
    assert made[good.number].intermediate_values == {1: 0.8}
    note = run.study.user_attrs["warm_start"]
    expected = {"outside the space": 1, "stopped before any rung of this run": 1, "invalid": 1}
    if failed.number in made:  # drawn at random: it may lie outside the new space
        assert made[failed.number].state == TrialState.PRUNED
        assert made[failed.number].user_attrs["failure"]["reason"] == "non-finite"
    else:
        expected["outside the space"] += 1
    assert note["left_out"] == expected
    assert "left out: " in line


def test_scores_follow_the_new_runs_metric(tmp_path: Path) -> None:
    """A likelihood of a run that maximises would stand beside losses; what the old study holds of both is the loss."""
    sparse, full = {**PARTS["sparse"], "judge": "likelihood"}, PARTS["full"]
    fidelity = {"epochs": 2, "rungs": [{"name": "sparse", **sparse}, {"name": "full", **full}]}
    before = empty(tmp_path / "a", fidelity=fidelity)
    climb(before, {"sparse": 0.5, "full": 0.8}, recipe=kd(0.5), beside={"nll": 0.9})
    climb(before, {"sparse": 0.2}, recipe=kd(0.6), beside={"nll": 1.6})
    climb(before, {"sparse": 0.1}, recipe=kd(0.7), beside={"nll": math.inf})  # the study keeps no such number
    parts = {"sparse": sparse, "full": full}
    before.study.set_user_attr(WORLD, {**PLACE, "rungs": parts})
    run = new(before, tmp_path / "b", metric="nll", fidelity=fidelity)
    assert "left out: 1 stopped before any rung" in take(before, run, rungs=parts)
    done, stopped = inherited(run)
    steps = run.search_ledger.steps
    assert done.intermediate_values == {steps["sparse"]: 0.9, steps["full"]: 0.9}
    assert (judged(done, "sparse"), judged(done, "full")) == (0.9, 0.9)
    assert stopped.intermediate_values == {steps["sparse"]: 1.6}


def test_a_study_in_a_storage_and_both_uses_at_once(ranked: Run, tmp_path: Path) -> None:
    start = {"storage": f"sqlite:///{ranked.path / 'study.db'}", "study": "search", "use": "both"}
    run = empty(tmp_path / "b", warm_start=start, searcher={"name": "mcts"})
    assert "as history and priors" in take(ranked, run)
    stopped = inherited(run)[-1]
    assert (stopped.state, stopped.value, stopped.user_attrs["pruned_at"]) == (TrialState.PRUNED, 0.3, "sparse")
    assert stopped.intermediate_values == {run.search_ledger.steps["sparse"]: 0.3}
    assert run.study.sampler._defaults["logits.kd.weight"] == pytest.approx(1.0)  # type: ignore[attr-defined]


def test_hints_follow_ranks_and_not_scales(tmp_path: Path) -> None:
    before = written(tmp_path / "a", [{"full": 0.7}, {"full": 0.9}])
    climb(before, {"full": 0.2}, recipe=kd(0.8).without_distillation())
    trials = before.search_ledger.trials()
    directions = before.study.directions
    defaults, priors = hints(trials, directions)
    weights = priors["logits"]
    assert isinstance(weights, dict)
    assert defaults["logits"] == "kd"
    assert defaults["logits.kd.weight"] == pytest.approx(0.6)
    # Ranks 1/3, 2/3 and 1 about their mean 2/3: kd stands 1/6 above it on average, over 2 + 2 trials.
    assert weights["kd"] == pytest.approx(FAVOUR ** (2 * (1 / 3) / 4), abs=1e-6)
    assert weights["none"] == pytest.approx(FAVOUR ** (2 * (-1 / 3) / 3), abs=1e-6)
    assert weights["dkd"] == 1
    # Of the weights .5 and .6, in [.1, 10] on a log scale, both lie in the second piece: rank 5/6, about itself.
    assert priors["logits.kd.weight"] == [1.0] * PIECES
    both = combined({"logits": {"none": 8.0}}, priors)["logits"]
    assert isinstance(both, dict)
    assert both["none"] == pytest.approx(8 * weights["none"])


def test_nothing_usable_is_said_with_its_reasons(ranked: Run, tmp_path: Path) -> None:
    run = new(ranked, tmp_path / "b", space={**TINY["space"], "logits": ["none", "dkd"]})
    with pytest.raises(UserError, match=r"no trial of a is of use here: 7 outside the space"):
        take(ranked, run)
