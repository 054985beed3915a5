"""Several objectives from search to export: the front, what is pruned, what the finals take, what is shown."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import pytest
import yaml
from optuna.trial import TrialState

import kdsearch
from kdsearch.runs.front import front
from kdsearch.runs.jobs import RungResult
from kdsearch.runs.report.front import front_rows, front_table
from kdsearch.runs.report.page import page
from kdsearch.runs.report.tables import finals_rows
from kdsearch.runs.run import Run

from .pages import Page, xs, ys
from .studies import ask, climb, duplicate, empty, final
from .tiny import TINY, invoke


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny run with two objectives that was resumed once."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    kdsearch.search({**TINY, "minimise": ["macs"], "searcher": {"name": "nsga2"}}, run_dir=folder)
    again = kdsearch.resume(folder, trials=8)
    try:
        again.execute()
    finally:
        again.place.release()
    return folder


def written(folder: Path, **changes: Any) -> Run:
    """A search by hand: three trials on the front, one dominated, one proposed twice, one stopped."""
    run = empty(folder, minimise=["macs"], **changes)
    climb(run, {"full": 0.8}, values=[900.0], origin="baseline:none", recipe=run.space.default(logits="none"))
    climb(run, {"full": 0.7}, values=[900.0])
    best = climb(run, {"full": 0.9}, values=[1000.0])
    climb(run, {"full": 0.6}, values=[500.0])
    duplicate(run, best)
    climb(run, {"sparse": 0.5})
    return run


def test_the_front_is_what_nothing_dominates(tmp_path: Path) -> None:
    run = written(tmp_path / "run")
    assert [t.number for t in front(run.search_ledger)] == [2, 0, 3]
    assert {t.number for t in run.study.best_trials} == {0, 2, 3, 4}  # as Optuna has it, but for the duplicate
    assert run.front[0].values == [0.9, 1000.0]
    single = empty(tmp_path / "single")
    climb(single, {"full": 0.9})
    assert front(single.search_ledger) == []


def test_less_of_a_loss_is_better(tmp_path: Path) -> None:
    run = empty(tmp_path / "run", minimise=["macs"], metric="nll")
    for score, cost in ((0.5, 10.0), (0.4, 20.0), (0.6, 20.0)):
        climb(run, {"full": score}, values=[cost])
    assert [t.number for t in run.front] == [1, 0]


def test_a_small_student_is_not_stopped_for_larger_ones(tmp_path: Path) -> None:
    """Trials are compared on the first objective with those that cost no more."""
    run = empty(tmp_path / "run", minimise=["macs"], pruner={"name": "asha", "reduction": 2})
    ledger = run.search_ledger

    def stopped(score: float, macs: float) -> bool:
        trial = ask(run)
        result = RungResult("sparse", score, 1.0, size={"macs": macs})
        ledger.record(trial, result)
        found = ledger.prunes(trial, result)
        ledger.prune(trial, "sparse") if found else ledger.complete(trial, [score, macs])
        return found

    assert [stopped(score, 1000.0) for score in (0.8, 0.9, 0.7)] == [False, False, True]
    assert not stopped(0.5, 100.0)  # worse than all of them, and the first of its size
    assert stopped(0.4, 100.0)
    assert not stopped(0.6, 100.0)
    assert stopped(0.55, 1000.0)  # what costs as much or less is better


def test_finalists_come_from_the_front(tmp_path: Path) -> None:
    run = empty(tmp_path / "run", minimise=["macs"], finals={"recipes": 2, "candidates": 2})
    for score, cost, name in ((0.9, 1000.0, "dkd"), (0.89, 1100.0, "kd")):
        large = run.space.default(logits=name, student__cnn__channels=4)
        climb(run, {"full": score}, values=[cost], recipe=large)
    climb(run, {"full": 0.6}, values=[500.0], recipe=run.space.default(logits="dkd", student__cnn__channels=3))
    assert [number for _, number in run.finals.finalists()] == [0, 2]


def test_rows_and_table_of_the_front(tmp_path: Path) -> None:
    run = written(tmp_path / "run")
    confirmed = run.space.default(logits="none")
    final(run, confirmed, "baseline:none", [0.81, 0.83])
    rows = front_rows(run, finals_rows(run))
    assert [(row["trial"], row["accuracy"], row["macs"]) for row in rows] == [
        (2, 0.9, 1000),
        (0, 0.8, 900),
        (3, 0.6, 500),
    ]
    assert rows[1]["label"] == "no distillation"
    assert rows[1]["confirmed"]["mean"] == pytest.approx(0.82)
    assert json.loads(json.dumps(rows)) == rows
    lines = front_table(rows, "accuracy", ["macs"]).splitlines()
    assert len(lines) == 4
    assert lines[2].split()[:4] == ["trial", "0", "0.8000", "900"]
    assert lines[2].endswith(", no distillation")
    assert front_table([], "accuracy", ["macs"]) == ""


def test_the_picture_of_the_front(tmp_path: Path) -> None:
    run = written(tmp_path / "run")
    trial = ask(run)
    result = RungResult("sparse", 0.55, 1.0, size={"macs": 700.0})
    run.search_ledger.record(trial, result)
    run.search_ledger.prune(trial, "sparse")
    found = Page(page(run))
    drawn = go.Figure(found.data["data-pareto"])
    assert sorted(zip(xs(drawn, "on the front"), ys(drawn, "on the front"), strict=True)) == [(500, 0.6), (1000, 0.9)]
    assert xs(drawn, "the front") == [500, 900, 1000]
    assert ys(drawn, "the front") == [0.6, 0.8, 0.9]
    assert xs(drawn, "no distillation") == [900]
    assert xs(drawn, "dominated") == [900]
    assert (xs(drawn, "stopped early"), ys(drawn, "stopped early")) == ([700], [0.55])
    hover = next(trace.text[0] for trace in drawn.data if trace.name == "stopped early")
    assert "trial 6" in hover
    assert "·CE" in hover
    assert "cnn(channels=" in hover
    assert "3 of 4 complete trials are on the front" in found.text
    assert "kdsearch export run --trial 2 -o recipe.yaml" in found.text


def test_a_run_and_its_front(finished: Path) -> None:
    run = Run(finished)
    charged = [t for t in run.study.trials if not t.user_attrs.get("free")]
    assert len(charged) == 8
    complete = [t for t in charged if t.state == TrialState.COMPLETE]
    for trial in complete:
        assert trial.values == [trial.user_attrs["rung:full"]["score"], trial.user_attrs["rung:full"]["size"]["macs"]]
    best = {tuple(t.values) for t in run.study.best_trials}
    assert {tuple(t.values) for t in run.front} == best
    drawn = go.Figure(Page((finished / "report.html").read_text()).data["data-pareto"])
    assert len(xs(drawn, "the front")) == len(run.front)


def test_commands_tell_of_the_front(finished: Path, tmp_path: Path) -> None:
    run = Run(finished)
    status = json.loads(invoke("status", finished, "--json").stdout)
    assert [entry["trial"] for entry in status["front"]] == [t.number for t in run.front]
    assert f"front     trial {run.front[0].number}" in invoke("status", finished).stdout
    copy = shutil.copytree(finished, tmp_path / "run")
    result = invoke("resume", copy, "--quiet")
    assert result.exit_code == 0, result.stderr
    assert "Pareto front" in result.stdout
    assert f"trial {run.front[-1].number} " in result.stdout


def test_any_trial_is_exported(finished: Path, tmp_path: Path) -> None:
    run = Run(finished)
    chosen = run.front[-1]
    result = invoke("export", finished, "--trial", str(chosen.number), "-o", tmp_path / "recipe.yaml")
    assert result.exit_code == 0, result.stderr
    assert kdsearch.load_recipe(tmp_path / "recipe.yaml").hash == chosen.user_attrs["hash"]
    provenance = yaml.safe_load((tmp_path / "recipe.yaml").read_text())["provenance"]
    assert provenance["search"] == chosen.values[0]
    for arguments, says in (
        (["--trial", "999"], "--trial 999: no complete trial"),
        (["--trial", str(chosen.number), "--format", "onnx"], "--trial: a trial of the search leaves a recipe"),
    ):
        result = invoke("export", finished, *arguments, "-o", tmp_path / "other")
        assert result.exit_code == 2
        assert says in result.stderr
        assert not (tmp_path / "other").exists()
