"""A search that begins with an earlier one: grown spaces, other worlds, interruptions, and mistakes in one line."""

from __future__ import annotations

import json
import shutil
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
from kdsearch.runs import assemble, config_file, datasets
from kdsearch.runs.config import WarmStartConfig
from kdsearch.runs.data import Data
from kdsearch.runs.driver import Driver
from kdsearch.runs.fidelity import Fidelity
from kdsearch.runs.hints import PIECES
from kdsearch.runs.identity import differences, identity, matching, same_seed
from kdsearch.runs.ledger import KNOWN, RECREATED, open_storage
from kdsearch.runs.past import open_past
from kdsearch.runs.report.ladder import rungs
from kdsearch.runs.report.page import counts
from kdsearch.runs.run import Run, resume
from kdsearch.runs.settings import Settings
from kdsearch.runs.teacher import untrained
from kdsearch.runs.world import World
from kdsearch.search_space.recipe import Recipe

from .studies import empty, inherited, source
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
    run = Run(folder, config_file.check({**given, **changes}, "new")).claim(new=True)
    try:
        return run.execute(stop=lambda: True)
    finally:
        run.place.release()


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
        config_file.check({**TINY, "warm_start": {"run": "a", "storage": "b"}}, "config")
    with pytest.raises(UserError, match=r"unknown key 'warm_start.ruin'; did you mean 'run'"):
        config_file.check({**TINY, "warm_start": {"ruin": "a"}}, "config")


def test_the_old_study_is_opened_to_be_read(old: Run) -> None:
    past = open_past(WarmStartConfig(run=str(old.path)), Path("/"))
    study = optuna.load_study(
        study_name="search", storage=open_storage(f"sqlite:///{old.path / 'study.db'}", read_only=True)
    )
    with pytest.raises(optuna.exceptions.StorageInternalError):
        study.set_user_attr("x", 1)
    assert len(past.trials) == len(old.study.trials)
