"""A search that begins with an earlier one: grown spaces, other worlds, what pruners and reports see of old trials."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
import yaml
from optuna.distributions import CategoricalDistribution
from optuna.trial import FrozenTrial, TrialState

import kdsearch
from kdsearch import searchers
from kdsearch.errors import UserError
from kdsearch.runs import assemble, datasets, warm_start
from kdsearch.runs import config as configs
from kdsearch.runs.config import WarmStartConfig
from kdsearch.runs.data import Data
from kdsearch.runs.driver import Driver
from kdsearch.runs.fidelity import Fidelity
from kdsearch.runs.hints import FAVOUR, PIECES, combined, hints
from kdsearch.runs.identity import differences, identity, matching, same_seed
from kdsearch.runs.jobs import RungResult
from kdsearch.runs.ledger import KNOWN, RECREATED, SHIFTED, open_storage
from kdsearch.runs.past import WORLD, open_past
from kdsearch.runs.report.ladder import rungs
from kdsearch.runs.report.page import counts
from kdsearch.runs.run import Run, resume
from kdsearch.runs.settings import Settings
from kdsearch.runs.teacher import untrained
from kdsearch.runs.world import World
from kdsearch.search_space.recipe import Recipe

from .studies import climb, duplicate, empty, fail, final
from .tiny import TINY, invoke

SMALL = {**TINY["space"], "student": {"cnn": {"channels": 3, "stages": 2}}, "logits": ["none", "kd"]}
SMALL |= {"features": ["none"]}
GROWN = {**SMALL, "logits": ["none", "kd", "dkd"], "features": ["none", "at"]}
QUICK: dict[str, Any] = {
    **TINY,
    "teacher": {"model": {"family": "cnn", "channels": 8}, "epochs": 4},
    "fidelity": {"epochs": 1, "evaluations": 1, "rungs": [{"name": "part", "data": 0.3}, {"name": "full"}]},
    "proxies": {"names": []},
    "finals": {"recipes": 1, "seeds": 1},
    "budget": {"trials": 5},
}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("warm")


@pytest.fixture(scope="module")
def old(shared: Path) -> Run:
    """A finished search of a small space: five trials, none of them stopped."""
    config = {**QUICK, "space": SMALL, "cache": str(shared / "cache"), "pruner": {"name": "none"}}
    return kdsearch.search(config, run_dir=shared / "old")


def begun(old: Run, folder: Path, start: dict[str, Any] | None = None, **changes: Any) -> Run:
    """A run that has taken over the old one and proposed nothing yet."""
    given = {**QUICK, "space": GROWN, "cache": old.config.cache, "warm_start": {"run": str(old.path), **(start or {})}}
    run = Run(folder, configs.check({**given, **changes}, "new")).claim(new=True)
    try:
        return run.execute(stop=lambda: True)
    finally:
        run.place.release()


def inherited(run: Run) -> list[FrozenTrial]:
    return run.search_ledger.inherited()


def source(trial: FrozenTrial) -> int:
    return int(trial.user_attrs["source"]["trial"])


# A grown space -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def grown(old: Run, shared: Path) -> Run:
    """The grown space on the command line, to its end."""
    path = shared / "grown.yaml"
    path.write_text(yaml.safe_dump({**QUICK, "space": GROWN, "cache": old.config.cache, "budget": {"trials": 4}}))
    result = invoke("run", path, "--from", old.path, "--run-dir", shared / "grown", "--quiet")
    assert result.exit_code == 0, result.output
    return Run(shared / "grown")


def test_a_grown_space_holds_the_old_trials_under_the_new_distributions(old: Run, grown: Run) -> None:
    made = {source(t): t for t in inherited(grown)}
    theirs = [t for t in old.study.trials if "duplicate_of" not in t.user_attrs]
    assert set(made) == {t.number for t in theirs}
    for trial in theirs:
        again = made[trial.number]
        assert again.values == trial.values
        assert again.user_attrs["hash"] == trial.user_attrs["hash"]
        assert again.params == {**trial.params, "features": "none"}
        assert again.distributions["logits"] == CategoricalDistribution(("none", "kd", "dkd"))
        assert again.user_attrs[RECREATED] == KNOWN


def test_old_trials_count_nowhere_as_the_runs_own(old: Run, grown: Run) -> None:
    own = grown.search_ledger.trials()
    charged = [t for t in own if not t.user_attrs.get("free")]
    assert len(charged) == 4
    assert not {t.number for t in own} & {t.number for t in inherited(grown)}
    assert sum(counts(grown).values()) == len(own)
    assert json.loads(invoke("status", grown.path, "--json").stdout)["trials"]["free"] == len(own) - 4
    ladder = {rung.name: rung for rung in rungs(grown)}
    assert ladder["part"].entered == len(charged)  # what was known already cost nothing here


def test_results_of_the_same_world_are_taken_and_may_become_finalists(old: Run, grown: Run) -> None:
    """Baselines and the old best are not trained again in the search, and are candidates of this run's finals."""
    taken = [t for t in grown.search_ledger.trials() if "taken_from" in t.user_attrs]
    by_number = {t.number: t for t in old.study.trials}
    assert {"baseline:none", "baseline:kd", "warm_start"} <= {t.user_attrs["origin"] for t in taken}
    for trial in taken:
        before = by_number[trial.user_attrs["taken_from"]["trial"]]
        assert trial.values == before.values
        assert trial.user_attrs["free"]
    many = grown.config.finals.model_copy(update={"candidates": 50})
    asked = Run(grown.path, grown.config.model_copy(update={"finals": many}))
    eligible = {number for _, number in asked.finals.finalists()}
    assert eligible <= {t.number for t in grown.search_ledger.trials()}
    best = {t.number for t in taken if t.user_attrs["origin"] == "warm_start" and t.state == TrialState.COMPLETE}
    assert best
    assert best <= eligible


def test_the_tree_and_the_samplers_see_old_trials(old: Run, grown: Run) -> None:
    tree = searchers.tree(grown.study)
    assert tree.visits == len([t for t in grown.study.trials if t.state.is_finished()])
    assert tree.visits > len(grown.search_ledger.trials())


def test_resume_takes_nothing_over_twice_and_needs_no_old_run(grown: Run, old: Run, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(grown.path, tmp_path / "run"))
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["warm_start"]["run"] = str(tmp_path / "gone")
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    before = len(inherited(grown))
    again = resume(folder, trials=5)
    again.execute()
    again.place.release()
    assert len(inherited(again)) == before
    assert len([t for t in again.search_ledger.trials() if not t.user_attrs.get("free")]) == 5


def test_a_process_that_dies_while_it_takes_over_is_made_good(
    old: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add, calls = optuna.Study.add_trial, []

    def dying(self: optuna.Study, trial: FrozenTrial) -> None:
        calls.append(trial)
        if len(calls) == 3:
            raise KeyboardInterrupt
        add(self, trial)

    monkeypatch.setattr(optuna.Study, "add_trial", dying)
    with pytest.raises(KeyboardInterrupt):
        begun(old, tmp_path / "run")
    monkeypatch.undo()
    assert len(inherited(Run(tmp_path / "run"))) == 2
    enqueue, waiting = optuna.Study.enqueue_trial, []

    def dying_later(self: optuna.Study, params: dict[str, Any], **how: Any) -> None:
        waiting.append(params)
        if len(waiting) == 4:
            raise KeyboardInterrupt
        enqueue(self, params, **how)

    monkeypatch.setattr(optuna.Study, "enqueue_trial", dying_later)
    run = resume(tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        run.execute(stop=lambda: True)
    run.place.release()
    monkeypatch.undo()
    whole = begun(old, tmp_path / "whole")
    run = resume(tmp_path / "run")
    run.execute(stop=lambda: True)
    run.place.release()
    for one, other in ((inherited(run), inherited(whole)), (run.search_ledger.trials(), whole.search_ledger.trials())):
        assert [t.system_attrs for t in one] == [t.system_attrs for t in other]
        assert [(t.params, t.values) for t in one] == [(t.params, t.values) for t in other]
    origins = [t.user_attrs["origin"] for t in run.search_ledger.trials()]
    assert origins[:3] == ["baseline:none", "baseline:kd", "warm_start"]


def test_a_warm_start_from_a_warm_start_hands_on_what_it_had(old: Run, grown: Run, tmp_path: Path) -> None:
    run = begun(grown, tmp_path / "run")
    hashes = [t.user_attrs["hash"] for t in inherited(run)]
    assert {t.user_attrs["hash"] for t in inherited(grown)} <= set(hashes)
    assert len(hashes) == len(set(hashes))


def test_other_objectives_are_read_off_what_was_recorded(old: Run, tmp_path: Path) -> None:
    run = begun(old, tmp_path / "run", metric="nll", minimise=["parameters"], searcher={"name": "nsga2"})
    made = {source(t): t for t in inherited(run)}
    for trial in old.study.trials:
        full = trial.user_attrs.get("rung:full")
        if full is not None and trial.number in made:
            assert made[trial.number].values == [full["metrics"]["nll"], full["size"]["parameters"]]
    assert made


# Another world -------------------------------------------------------------------------------------------------------


def test_another_teacher_gives_priors_and_the_best_recipes_first(old: Run, tmp_path: Path) -> None:
    other = {"model": {"family": "cnn", "channels": 9}, "epochs": 4}
    run = begun(old, tmp_path / "run", {"trials": 2}, teacher=other)
    assert not inherited(run)
    note = run.study.user_attrs["warm_start"]
    assert "as priors (other teacher)" in note["line"]
    assert invoke("status", run.path).output.count("as priors (other teacher)") == 1
    waiting = run.search_ledger.trials()
    assert [t.user_attrs["origin"] for t in waiting[:4]] == ["baseline:none", "baseline:kd", *["warm_start"] * 2]
    searched = [t for t in old.search_ledger.trials(TrialState.COMPLETE) if t.user_attrs["origin"] == "search"]
    known = {t.user_attrs["hash"] for t in searched}
    assert all(Recipe.from_dict(t.user_attrs["recipe"]).hash in known for t in waiting[2:4])
    winner = next(s for s in old.standings if s.role == "finalist")
    assert Recipe.from_dict(waiting[2].user_attrs["recipe"]) == winner.recipe  # what the finals confirmed goes first
    sampler = Run(run.path).study.sampler  # opened again: informed by what the study holds
    assert sampler._defaults["logits"] == note["defaults"]["logits"]
    weights = dict(sampler._priors["logits"]._weights)
    assert weights["dkd"] == pytest.approx(1.0)  # the old run knew nothing of it
    assert len(sampler._priors["logits.kd.weight"]._weights) == PIECES
    with pytest.raises(UserError, match=r"warm_start.use = 'history': old was scored with other teacher"):
        begun(old, tmp_path / "no", {"use": "history"}, teacher=other)
    assert not (tmp_path / "no" / "config.yaml").exists()  # nothing was measured: the folder is free again

    data, settings = assemble.data(run.config, torch.device("cpu")), assemble.settings(run.config)
    spec = untrained(run.config, data, settings).spec
    driver = Driver(run.config, run.space, run.search_ledger, spec, data.classes)
    jobs = [driver.propose() for _ in range(3)]
    assert [job.protected for job in jobs if job is not None] == [True, True, False]  # the old best may be stopped


def test_what_differs_is_told_by_content(digits: Data, tmp_path: Path) -> None:
    ladder = [Fidelity("part", data=0.3), Fidelity("full")]
    made = identity(World(digits, None, Settings(), tmp_path), ladder)
    assert differences(made, json.loads(json.dumps(made))) == []
    slower = World(digits, None, Settings(evaluations=1, cache_limit=1), tmp_path / "elsewhere")
    assert differences(made, identity(slower, ladder)) == []
    longer = World(digits, None, Settings(epochs=16), tmp_path)
    assert differences(made, identity(longer, ladder)) == ["training"]
    moved = World(datasets.load("digits", shift=2), None, Settings(), tmp_path)
    assert differences(made, identity(moved, ladder)) == ["data"]
    assert not same_seed(made, identity(World(digits, None, Settings(), tmp_path, seed=1), ladder))
    renamed = identity(World(digits, None, Settings(), tmp_path), [Fidelity("third", data=0.3), Fidelity("full")])
    assert matching(made, renamed) == {"part": "third", "full": "full"}
    assert matching(made, identity(moved, [Fidelity("part", data=0.4), Fidelity("full")])) == {"full": "full"}


# Studies written by hand ---------------------------------------------------------------------------------------------

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


# Mistakes ------------------------------------------------------------------------------------------------------------


def test_mistakes_are_one_clear_line(old: Run, tmp_path: Path) -> None:
    def line(run_dir: Path, **start: Any) -> str:
        with pytest.raises(UserError) as caught:
            open_past(WarmStartConfig(**start), run_dir)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    missing = str(old.path.parent / "nothing")
    assert "there is no run in" in line(tmp_path, run=missing)
    assert "runs beside it" in line(tmp_path, run=missing)
    assert "is this run's own folder" in line(old.path, run=str(old.path))
    damaged = Path(shutil.copytree(old.path, tmp_path / "damaged"))
    (damaged / "study.db").write_bytes(b"no database at all")
    assert "damaged" in line(tmp_path, run=str(damaged))
    for log in damaged.glob("study.db-*"):
        log.unlink()
    (damaged / "study.db").write_bytes((old.path / "study.db").read_bytes()[:5000])
    assert "warm_start.run" in line(tmp_path, run=str(damaged))
    (damaged / "study.db").unlink()
    assert "there is no file" in line(tmp_path, run=str(damaged))
    assert not (damaged / "study.db").exists()
    storage = f"sqlite:///{old.path / 'study.db'}"
    assert "there is no study 'other'" in line(tmp_path, storage=storage, study="other")
    nameless = empty(tmp_path / "nameless")
    nameless.study.set_user_attr("anything", 1)
    assert f"`kdsearch resume {nameless.path}` adds it" in line(tmp_path, run=str(nameless.path))
    with pytest.raises(UserError, match="leave one of them out"):
        configs.check({**TINY, "warm_start": {"run": "a", "storage": "b"}}, "config")
    with pytest.raises(UserError, match=r"unknown key 'warm_start.ruin'; did you mean 'run'"):
        configs.check({**TINY, "warm_start": {"ruin": "a"}}, "config")


def test_nothing_usable_is_said_with_its_reasons(ranked: Run, tmp_path: Path) -> None:
    run = new(ranked, tmp_path / "b", space={**TINY["space"], "logits": ["none", "dkd"]})
    with pytest.raises(UserError, match=r"no trial of a is of use here: 7 outside the space"):
        take(ranked, run)


def test_the_old_study_is_opened_to_be_read(old: Run) -> None:
    past = open_past(WarmStartConfig(run=str(old.path)), Path("/"))
    study = optuna.load_study(
        study_name="search", storage=open_storage(f"sqlite:///{old.path / 'study.db'}", read_only=True)
    )
    with pytest.raises(optuna.exceptions.StorageInternalError):
        study.set_user_attr("x", 1)
    assert len(past.trials) == len(old.study.trials)
