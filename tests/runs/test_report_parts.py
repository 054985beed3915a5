"""The report's parts on studies written by hand: sentences, agreement, costs and figures."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest
from scipy import stats

from kdsearch.runs.jobs import Failure, RungResult
from kdsearch.runs.report import agreement, figures, ladder, outcomes
from kdsearch.runs.report.decisions import Decision, Table, table
from kdsearch.runs.report.headline import headline
from kdsearch.runs.report.intervals import estimate, paired
from kdsearch.runs.report.page import page
from kdsearch.runs.report.tables import finals_rows, finals_table
from kdsearch.runs.run import Run

from .pages import Page, xs, ys
from .studies import ask, climb, duplicate, empty, fail, final

RUNGS = ["sparse", "full"]


# intervals


def test_intervals_are_students() -> None:
    values = [0.91, 0.935, 0.92, 0.94, 0.9]
    found = estimate(values)
    low, high = stats.t.interval(0.95, 4, loc=np.mean(values), scale=stats.sem(values))
    assert found.mean == pytest.approx(np.mean(values))
    assert found.half_width == pytest.approx((high - low) / 2)
    assert found.spread == pytest.approx(np.std(values, ddof=1))


def test_differences_are_paired_by_seed() -> None:
    ours, theirs = {0: 0.9, 1: 0.95, 2: 0.99, 7: 0.1}, {2: 0.97, 0: 0.89, 1: 0.92, 5: 0.8}
    found = paired(ours, theirs)
    expected = stats.ttest_rel([0.9, 0.95, 0.99], [0.89, 0.92, 0.97]).confidence_interval(0.95)
    assert found is not None
    assert found.n == 3
    assert found.mean - (found.half_width or 0) == pytest.approx(expected.low)
    assert found.mean + (found.half_width or 0) == pytest.approx(expected.high)
    assert found.resolved == (expected.low > 0)
    assert paired({0: 1.0}, {1: 1.0}) is None
    single = paired({0: 1.0}, {0: 0.5})
    assert single is not None
    assert single.half_width is None
    assert not single.resolved


def test_equal_differences_say_nothing_of_the_noise() -> None:
    found = paired({0: 0.86, 1: 0.85, 2: 0.87}, {0: 0.8, 1: 0.79, 2: 0.81})
    assert found is not None
    assert found.mean == pytest.approx(0.06)
    assert not found.resolved


# what the headline claims


def finals(
    folder: Path, none: list[float], kd: list[float], found: list[float], *, tested: bool = False, **changes: Any
) -> Run:
    run = empty(folder, **{"finals": {"recipes": 1, "seeds": len(found)}, **changes})
    base, dkd = run.space.default(logits="none"), run.space.default(logits="dkd")
    for recipe, role, scores in (
        (base.without_distillation(), "baseline:none", none),
        (base.plain_kd(), "baseline:kd", kd),
        (dkd, "finalist", found),
    ):
        final(run, recipe, role, scores, [score - 0.01 for score in scores] if tested else [])
    return run


def test_a_gain_is_called_one(tmp_path: Path) -> None:
    run = finals(tmp_path / "run", [0.8, 0.81, 0.82], [0.84, 0.86, 0.85], [0.9, 0.91, 0.93], tested=True)
    found = headline(run, finals_rows(run))
    assert found.verdict == "gain"
    assert found.sentence.startswith("On test the best recipe found reaches accuracy 0.9033 ± 0.0379 over 3 seeds")
    assert "+0.1033 ± 0.0143 over no distillation (a gain)" in found.sentence
    assert "+0.0633 ± 0.0379 over plain KD (a gain)" in found.sentence
    assert "best found *" in finals_table(run)
    assert "over plain KD, test: +0.0633 ± 0.0379 (a gain)" in finals_table(run)


def test_a_gain_within_noise_is_called_that(tmp_path: Path) -> None:
    run = finals(tmp_path / "run", [0.8, 0.81, 0.82], [0.84, 0.86, 0.85], [0.83, 0.92, 0.82])
    found = headline(run, finals_rows(run))
    assert found.verdict == "noise"
    assert "over plain KD (within the noise of the seeds)" in found.sentence
    assert any("chosen by validation" in remark for remark in found.remarks)


def test_a_gain_without_any_spread_is_not_called_one(tmp_path: Path) -> None:
    run = finals(tmp_path / "run", [0.8, 0.81, 0.82], [0.84, 0.85, 0.86], [0.9, 0.91, 0.92])
    found = headline(run, finals_rows(run))
    assert found.verdict == "noise"
    assert "over plain KD (the same under every seed: noise unknown)" in found.sentence


def test_one_seed_proves_nothing(tmp_path: Path) -> None:
    run = finals(tmp_path / "run", [0.1], [0.2], [0.9])
    found = headline(run, finals_rows(run))
    assert found.verdict == "noise"
    assert "cannot tell a gain from noise" in found.sentence
    assert "±" not in found.sentence


def test_plain_kd_may_win(tmp_path: Path) -> None:
    run = finals(tmp_path / "run", [0.8, 0.81], [0.95, 0.96], [0.85, 0.86], tested=True)
    rows = finals_rows(run)
    assert [row["label"] for row in rows if row["best"]] == ["plain KD"]
    assert [row["label"] for row in rows] == ["no distillation", "plain KD", "finalist 1"]
    found = headline(run, rows)
    assert found.sentence.startswith("No recipe found beats plain KD.")
    assert found.verdict == "noise"
    assert "plain KD *" in finals_table(run)


def test_less_is_more_for_a_loss(tmp_path: Path) -> None:
    run = finals(tmp_path / "run", [0.8, 0.81, 0.82], [0.7, 0.72, 0.71], [0.5, 0.51, 0.53], metric="nll")
    found = headline(run, finals_rows(run))
    assert found.verdict == "gain"
    assert "-0.2967 ± 0.0143 over no distillation (a gain)" in found.sentence
    assert "Lower nll is better." in found.remarks
    climb(run, {"sparse": 0.9, "full": 0.6})
    climb(run, {"sparse": 0.9, "full": 0.7})
    trials = outcomes.outcomes(run.search_ledger, RUNGS)
    panel = figures.history(trials, "nll", maximise=False, lines={}, teacher=None)
    assert ys(panel.figure, "best so far 0.6000") == [0.6, 0.6, 0.6]


def test_baselines_on_the_winners_own_student(tmp_path: Path) -> None:
    run = empty(tmp_path / "run")
    base, best = run.space.default(), run.space.default(logits="dkd", student__cnn__channels=4)
    assert base.student != best.student
    final(run, base.without_distillation(), "baseline:none", [0.5, 0.6])
    final(run, best, "finalist", [0.9, 0.92])
    assert finals_rows(run)[-1]["validation"]["over_none"] is None
    final(run, best.without_distillation(), "paired:none", [0.8, 0.81])
    final(run, best.plain_kd(), "paired:kd", [0.85, 0.8])
    rows = {row["label"]: row for row in finals_rows(run)}
    assert list(rows) == [
        "no distillation", "no distillation (best student)", "plain KD (best student)", "best found"
    ]  # fmt: skip
    assert rows["best found"]["validation"]["over_none"]["mean"] == pytest.approx(0.105)
    assert rows["best found"]["validation"]["over_kd"]["mean"] == pytest.approx(0.085)
    assert rows["no distillation"]["validation"]["over_kd"] is None


def test_what_was_given_up_after_its_first_seeds_is_a_candidate(tmp_path: Path) -> None:
    run = empty(tmp_path / "run", finals={"recipes": 1, "seeds": 3})
    final(run, run.space.default(logits="kd", features="at"), "finalist", [0.99])
    final(run, run.space.default(logits="dkd"), "finalist", [0.9, 0.92, 0.91])
    final(run, run.space.default(logits="dkd", features="at"), "finalist", [0.88, 0.92, 0.89])
    rows = finals_rows(run)
    assert [row["label"] for row in rows] == ["best found", "finalist 2", "candidate 3"]
    assert [row["candidate"] for row in rows] == [False, False, True]
    assert "Candidates were given up" in Page(page(run)).text


def test_the_student_of_an_earlier_winner_is_called_that(tmp_path: Path) -> None:
    run = empty(tmp_path / "run")
    old, new = run.space.default(logits="kd"), run.space.default(logits="dkd", student__cnn__channels=4)
    final(run, old.without_distillation(), "paired:none", [0.5, 0.6])
    final(run, new.without_distillation(), "paired:none", [0.6, 0.7])
    final(run, new, "finalist", [0.9, 0.9])
    assert [row["label"] for row in finals_rows(run)] == [
        "no distillation (earlier student)", "no distillation (best student)", "best found"
    ]  # fmt: skip


# agreement and cost


def test_tau_is_scipys_on_known_rows(tmp_path: Path) -> None:
    run = empty(tmp_path / "run", proxies={"prune_by": "diswot"})
    sparse, full = [0.1, 0.4, 0.2, 0.5, 0.5, 0.3, 0.9], [0.2, 0.5, 0.1, 0.7, 0.6, 0.3, 0.8]
    proxy = [5.0, 1.0, 4.0, 2.0, 2.5, 3.0, 0.5]
    for a, b, c in zip(sparse, full, proxy, strict=True):
        climb(run, {"sparse": a, "full": b}, proxies={"diswot": c, "params": 1.0})
    climb(run, {"sparse": 0.05}, proxies={"diswot": 9.0, "params": 1.0})
    found = {(pair.lower, pair.upper): pair for pair in agreement.agreements(run)}
    assert found["sparse", "full"].tau == pytest.approx(stats.kendalltau(sparse, full).statistic)
    assert found["sparse", "full"].n == 7
    expected = stats.kendalltau([*proxy, 9.0], [*sparse, 0.05]).statistic
    assert found["diswot", "sparse"].tau == pytest.approx(expected)
    assert found["diswot", "sparse"].poor
    assert found["params", "sparse"].tau is None
    assert "same score" in found["params", "sparse"].verdict
    assert found["full", "finals"].n == 0
    text = Page(page(run)).text
    assert f"diswot hardly ranks trials as sparse does (Kendall's tau {expected:.2f} over 8 trials)" in text


def test_duplicates_count_once(tmp_path: Path) -> None:
    run = empty(tmp_path / "run")
    first = climb(run, {"sparse": 0.5, "full": 0.6}, seconds=3.0)
    climb(run, {"sparse": 0.6, "full": 0.5}, seconds=3.0)
    for _ in range(5):
        duplicate(run, first)
    found = next(pair for pair in agreement.agreements(run) if pair.lower == "sparse")
    assert [point[0] for point in found.points] == [0, 1]
    assert found.tau == -1
    assert "too few" in found.verdict
    assert not found.poor
    assert next(rung for rung in ladder.rungs(run) if rung.name == "full").seconds == 6.0
    assert "2 complete, 5 duplicates" in Page(page(run)).text


def test_proxies_agree_with_a_loss_that_falls(tmp_path: Path) -> None:
    run = empty(tmp_path / "run", metric="nll")
    for k in range(6):
        climb(run, {"sparse": 2.0 - 0.1 * k}, proxies={"diswot": float(k)})
    found = agreement.agreements(run)[0]
    assert found.tau == pytest.approx(1)
    assert found.verdict.startswith("good")


def test_finals_are_matched_by_recipe(tmp_path: Path) -> None:
    run = empty(tmp_path / "run")
    a, b = run.space.default(logits="dkd"), run.space.default(logits="kd")
    climb(run, {"sparse": 0.5, "full": 0.8}, recipe=a)
    climb(run, {"sparse": 0.5, "full": 0.7}, recipe=b)
    final(run, a, "finalist", [0.9, 0.7])
    final(run, b, "finalist", [0.6, 0.5])
    found = agreement.agreements(run)[-1]
    assert [(n, below, pytest.approx(above)) for n, below, above in found.points] == [(0, 0.8, 0.8), (1, 0.7, 0.55)]


def test_ladder_counts_who_entered_and_who_stayed(tmp_path: Path) -> None:
    run = empty(tmp_path / "run")
    proxies = {"diswot": 1.0}
    climb(run, {"sparse": 0.5, "full": 0.6}, proxies=proxies, seconds=2.0)
    climb(run, {"sparse": 0.4}, proxies=proxies, seconds=2.0)
    climb(run, {}, proxies=proxies)
    fail(run, "invalid", "no")
    fail(run, "rejected", "no")
    trial = ask(run)
    run.search_ledger.record(trial, RungResult("proxies", 0.1, 0.25, trained=False, metrics={"diswot": 0.1}))
    run.search_ledger.fail(trial, Failure("out-of-memory", "at batch one", deterministic=True))
    found = {rung.name: (rung.entered, rung.stopped, rung.failed) for rung in ladder.rungs(run)}
    assert found == {
        "validity": (6, 1, 0),
        "loss rejection": (5, 1, 0),
        "proxies": (4, 1, 0),
        "sparse": (3, 1, 1),
        "full": (1, 0, 0),
        "finals": (0, 0, 0),
    }
    rungs = {rung.name: rung for rung in ladder.rungs(run)}
    assert rungs["sparse"].seconds == 4.0
    assert rungs["full"].share == pytest.approx(2.0 / (2.0 + 4.0 + 0.5 * 3 + 0.25))
    assert rungs["sparse"].saved == pytest.approx(2.0)
    assert rungs["proxies"].saved == pytest.approx(4.0)


# figures


def test_several_objectives_show_their_front(tmp_path: Path) -> None:
    run = empty(tmp_path / "run", minimise=["parameters", "macs"])
    climb(run, {"full": 0.9}, values=[1000.0, 5e5])
    climb(run, {"full": 0.8}, values=[900.0, 6e5])
    climb(run, {"full": 0.7}, values=[2000.0, 7e5])
    climb(run, {"full": 0.6}, values=[500.0, 5e5], origin="baseline:none", recipe=run.space.default(logits="none"))
    found = Page(page(run))
    drawn = go.Figure(found.data["data-pareto"])
    assert xs(drawn, "on the front") == [1000.0, 900.0, 5e5, 6e5]
    assert ys(drawn, "dominated") == [0.7, 0.7]
    assert xs(drawn, "no distillation") == [500.0, 5e5]
    assert "3 of 4 complete trials are on the front" in found.text


def test_history_keeps_baselines_in_sight_and_gathers_outliers(tmp_path: Path) -> None:
    run = empty(tmp_path / "run")
    climb(run, {"full": 0.9}, origin="baseline:none", recipe=run.space.default(logits="none"))
    scores = [0.95 + 0.001 * k for k in range(22)]
    for score in scores:
        climb(run, {"full": score})
    climb(run, {"sparse": 0.02})
    fail(run, "rejected", "no")
    trials = outcomes.outcomes(run.search_ledger, RUNGS)
    panel = figures.history(trials, "accuracy", maximise=True, lines={"no distillation": 0.9}, teacher=0.97)
    assert panel.figure is not None
    low, high = panel.figure.layout.yaxis.range
    assert low < 0.9
    assert high > 0.97
    assert ys(panel.figure, "complete") == scores
    assert xs(panel.figure, "stopped early") == [23]
    assert low < ys(panel.figure, "stopped early")[0] < 0.9
    assert "Triangles on the lower edge" in panel.caption
    stopped = next(trace for trace in panel.figure.data if trace.name == "stopped early")
    assert "0.0200 at sparse" in stopped.text[0]


def test_importance_finds_the_decision_that_matters() -> None:
    rng = np.random.default_rng(0)
    numbers = range(40)
    logits = {n: str(rng.choice(["kd", "dkd", "none"])) for n in numbers}
    other = {n: str(rng.choice(["always", "eskd"])) for n in numbers}
    asked_by_some = {n: float(n + 1) for n in numbers if n % 2}
    scores = {n: {"kd": 0.8, "dkd": 0.9, "none": 0.6}[logits[n]] + 0.001 * rng.random() for n in numbers}
    decisions = (Decision("logits", logits), Decision("schedule", other), Decision("x.weight", asked_by_some, log=True))
    weights = figures.importances(Table("full", scores, decisions))
    assert list(weights) == ["logits", "schedule"]
    assert weights["logits"] > 0.9
    panel = figures.parallel(Table("full", scores, decisions), weights, "accuracy", maximise=True)
    assert panel.figure is not None
    assert "not asked" in panel.caption
    lines = [trace for trace in panel.figure.data if trace.mode == "lines"]
    assert sum(trace.y.count(None) for trace in lines) == 40
    drawn = [value for trace in lines for value in trace.y if value is not None]
    assert len(drawn) == 40 * 4
    assert all(math.isfinite(value) and -0.2 < value < 1.1 for value in drawn)


def test_importance_says_when_it_cannot_tell(tmp_path: Path) -> None:
    run = empty(tmp_path / "run")
    climb(run, {"sparse": 0.5, "full": 0.6})
    assert table(outcomes.outcomes(run.search_ledger, RUNGS), RUNGS) is None
    panel = figures.importance(None, {}, "accuracy")
    assert panel.figure is None
    assert "Too few trials" in panel.caption


def test_the_table_of_decisions_takes_the_highest_rung_with_enough_trials(tmp_path: Path) -> None:
    run = empty(tmp_path / "run")
    for k in range(30):
        climb(run, {"sparse": 0.5 + 0.01 * k, **({"full": 0.9} if k % 3 == 0 else {})})
    found = table(outcomes.outcomes(run.search_ledger, RUNGS), RUNGS)
    assert found is not None
    assert found.rung == "sparse"
    assert len(found.scores) == 30
    logits = next(decision for decision in found.decisions if decision.name == "logits")
    assert logits.values.keys() == found.scores.keys()
    for trial in run.study.trials:
        assert logits.values[trial.number] == trial.params["logits"]
    weight = next(decision for decision in found.decisions if decision.name == "logits.dkd.weight")
    assert set(weight.values) == {t.number for t in run.study.trials if t.params["logits"] == "dkd"}
    assert weight.log


def test_a_student_that_can_leave_networks_out_shows_what_that_costs() -> None:
    """A line for each recipe of the finals that has such a curve; no figure where none has."""
    from types import SimpleNamespace

    from kdsearch.runs.report import figures

    curve = [[0.0, 0.95, 300.0], [0.5, 0.94, 200.0], [3.0, 0.9, 100.0]]
    trials = [
        SimpleNamespace(user_attrs={"hash": "a", "rung:final": {"tables": {"adaptive": curve}}}),
        SimpleNamespace(user_attrs={"hash": "a", "rung:final": {"tables": {"adaptive": curve[:1]}}}),
        SimpleNamespace(user_attrs={"hash": "b", "rung:final": {"tables": {}}}),
    ]
    rows = [{"hash": "a", "label": "best found"}, {"hash": "b", "label": "plain KD"}]
    run = SimpleNamespace(finals_ledger=SimpleNamespace(trials=lambda: trials))
    panel = figures.adaptive(run, rows)  # type: ignore[arg-type]
    assert panel is not None
    assert panel.figure is not None
    (line,) = panel.figure.data
    assert line.name == "best found"
    assert list(line.x) == [300.0, 200.0, 100.0]
    run = SimpleNamespace(finals_ledger=SimpleNamespace(trials=lambda: trials[2:]))
    assert figures.adaptive(run, rows) is None  # type: ignore[arg-type]
