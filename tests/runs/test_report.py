"""The report's page: its numbers are the studies', wherever a run stands, and it needs no network."""

from __future__ import annotations

import json
import re
from pathlib import Path
from statistics import fmean, stdev
from xml.etree import ElementTree

import optuna
import plotly.graph_objects as go
import pytest
from optuna.trial import TrialState
from scipy import stats

import kdsearch
from kdsearch import searchers
from kdsearch.runs.report import figures, ladder, write
from kdsearch.runs.report.failures import failures
from kdsearch.runs.report.page import embedded, page
from kdsearch.runs.report.tables import finals_rows, finals_table
from kdsearch.runs.run import Run

from .pages import Page, xs, ys
from .studies import ask, climb, empty, fail
from .tiny import TINY, invoke

RUNGS = ["sparse", "full"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A real run of six trials, opened again as a reader would."""
    folder = tmp_path_factory.mktemp("report") / "run"
    kdsearch.search({**TINY, "budget": {"trials": 6}}, run_dir=folder)
    return Run(folder)


@pytest.fixture(scope="module")
def shown(run: Run) -> Page:
    return Page(run.place.report.read_text())


# a real run


def test_rows_are_the_finals_study(run: Run) -> None:
    rows = finals_rows(run)
    assert json.loads(json.dumps(rows)) == rows
    study = optuna.load_study(study_name="search.finals", storage=f"sqlite:///{run.path / 'study.db'}")
    tested = study.user_attrs["test"]
    assert [row["label"] for row in rows[:2]] == ["no distillation", "plain KD"]
    assert sum(row["best"] for row in rows) == 1
    for row in rows:
        trials = [t for t in study.trials if t.user_attrs["hash"] == row["hash"]]
        scores = [t.values[0] for t in trials]
        assert row["seeds"] == [0, 1]
        assert row["validation"]["scores"] == scores
        assert row["validation"]["mean"] == pytest.approx(fmean(scores))
        assert row["validation"]["spread"] == pytest.approx(stdev(scores))
        assert row["parameters"] == trials[0].user_attrs["rung:final"]["size"]["parameters"] > 0
        assert row["seconds"] == pytest.approx(fmean(t.user_attrs["rung:final"]["seconds"] for t in trials))
        if row["test"] is not None:
            assert row["test"]["scores"] == [tested[str(t.number)]["accuracy"] for t in trials]
        else:
            assert row["role"] == "finalist"
            assert not row["best"]
    none, kd = rows[0]["validation"], rows[1]["validation"]
    expected = stats.ttest_rel(kd["scores"], none["scores"]).confidence_interval(0.95)
    assert kd["over_none"]["mean"] == pytest.approx(fmean(kd["scores"]) - fmean(none["scores"]))
    assert kd["over_none"]["half_width"] == pytest.approx((expected.high - expected.low) / 2)
    assert none["over_none"] is None


def test_terminal_table_has_every_recipe_and_its_numbers(run: Run) -> None:
    text = finals_table(run)
    for row in finals_rows(run):
        line = next(line for line in text.splitlines() if line.startswith(row["label"]))
        assert f"{row['validation']['mean']:.4f}" in line
        assert ("–" in line) == (row["test"] is None)
        assert line.endswith(" 2")
    assert max(map(len, text.splitlines())) <= 100


def test_page_says_what_the_studies_hold(run: Run, shown: Page) -> None:
    assert run.best is not None
    assert f"L = {run.best.equation()}" in shown.text
    for row in finals_rows(run):
        assert f"{row['validation']['mean']:.4f} ± {row['validation']['half_width']:.4f}" in shown.text
        assert row["equation"] in shown.text
    counts = [t.state for t in run.study.trials if "duplicate_of" not in t.user_attrs]
    drawn = go.Figure(shown.data["data-history"])
    for name, value in (("no distillation", "none"), ("plain KD", "kd")):
        trial = next(t for t in run.study.trials if t.user_attrs.get("origin") == f"baseline:{value}")
        assert f"{name} {trial.value:.4f}" in [trace.name for trace in drawn.data]
        assert trial.value in ys(drawn, "baseline")
    assert len(xs(drawn, "complete")) == counts.count(TrialState.COMPLETE) - 2
    assert f"teacher {run.study.user_attrs['teacher_accuracy']:.4f}" in [trace.name for trace in drawn.data]
    assert "once, after the choice" in shown.text
    for command in ("kdsearch train run/best.yaml --seed 0", "kdsearch export run", "kdsearch run run/config.yaml"):
        assert command in shown.text
    versions = json.loads((run.path / "environment.json").read_text())["packages"]
    assert f"torch {versions['torch']}" in shown.text
    assert "logits cached" in shown.text


def test_sections_come_in_the_order_of_a_reader(run: Run) -> None:
    html = run.place.report.read_text()
    order = "headline finals likeness history ladder signals tree importance parallel failures warnings"
    found = re.findall(r'<section[^>]* id="(\w+)"|<section id="(\w+)"', html)
    assert [a or b for a, b in found] == [*order.split(), "environment", "reproduce"]


def test_page_needs_no_network(run: Run, shown: Page) -> None:
    assert shown.references
    assert all(reference.startswith("#") for reference in shown.references)
    assert not {"link", "iframe", "img", "object", "embed", "base"} & set(shown.tags)
    html = run.place.report.read_text()
    assert "default-src 'none'" in html
    assert html.count("* plotly.js v") == 1
    assert "@import" not in html.split("</style>")[0]


def test_every_figure_has_its_data(shown: Page, run: Run) -> None:
    places = re.findall(r'id="plot-(\w+)"', run.place.report.read_text())
    assert {"history", "finalists", "agreement", "costs", "tree"} <= set(places)
    assert {f"data-{place}" for place in places} == set(shown.data)
    for data in shown.data.values():
        assert data["data"]


def test_ladder_adds_up_to_what_was_recorded(run: Run) -> None:
    found = {rung.name: rung for rung in ladder.rungs(run)}
    charged = [t for t in run.study.trials if "duplicate_of" not in t.user_attrs]
    for name in ("proxies", *RUNGS):
        records = [t.user_attrs[f"rung:{name}"] for t in charged if f"rung:{name}" in t.user_attrs]
        assert found[name].seconds == pytest.approx(sum(r["seconds"] + r["charged"] for r in records))
        assert found[name].entered == len(records) + found[name].failed
    assert sum(rung.share or 0 for rung in found.values()) == pytest.approx(1)
    assert found["finals"].entered == len(run.finals_ledger.trials())


def test_tree_picture_is_the_searchers_tree(run: Run) -> None:
    root = searchers.tree(run.study)
    panel = figures.tree(root)
    assert panel.figure is not None
    drawn = panel.figure.data[0]
    visits = dict(zip(drawn.ids, drawn["values"], strict=True))
    assert visits["root"] == root.visits
    for key in drawn.ids:
        children = [k for k, parent in zip(drawn.ids, drawn.parents, strict=True) if parent == key]
        assert sum(visits[k] for k in children) <= visits[key]


def test_the_tree_is_written_as_json_and_as_a_picture(run: Run, tmp_path: Path) -> None:
    root, before = searchers.tree(run.study), run.place.report.read_bytes()
    for name in ("tree.json", "tree.svg"):
        result = invoke("report", run.path, "--tree", tmp_path / name)
        assert result.exit_code == 0, result.output
        assert result.output == f"{tmp_path / name}\n"
    tree = json.loads((tmp_path / "tree.json").read_text())
    assert tree == root.to_dict()
    assert sum(child["visits"] for child in tree["children"]) == tree["visits"] == len(run.study.trials)
    assert json.loads(invoke("report", run.path, "--tree", "-").stdout) == tree
    picture = ElementTree.parse(tmp_path / "tree.svg").getroot()
    assert picture.tag.endswith("svg")
    titles = {text for text in picture.itertext() if "mean reward" in text}
    for node in (root, *root.children):
        what = "all trials" if node.name is None else f"{node.name} = {node.value}"
        assert f"{what}: {node.visits} visits, mean reward {node.reward:.3f}" in titles
    assert run.place.report.read_bytes() == before


def test_writing_elsewhere_leaves_nothing_half_done(run: Run, tmp_path: Path) -> None:
    target = tmp_path / "deep" / "report.html"
    assert write(run, target) == target
    assert [path.name for path in target.parent.iterdir()] == ["report.html"]
    (tmp_path / "taken").mkdir()
    with pytest.raises(OSError, match="taken"):
        write(run, tmp_path / "taken")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deep", "taken"]


# runs that stand elsewhere


def test_run_without_a_trial(tmp_path: Path) -> None:
    run = empty(tmp_path / "run")
    text = Page(page(run)).text
    assert "The search has not started" in text
    assert "kdsearch train" not in text
    assert finals_rows(run) == []
    assert "no finals yet" in finals_table(run)


def test_run_in_progress(tmp_path: Path) -> None:
    run = empty(tmp_path / "run", searcher={"name": "mcts"})
    climb(run, {"sparse": 0.6, "full": 0.7}, origin="baseline:none", recipe=run.space.default(logits="none"))
    best = climb(run, {"sparse": 0.65, "full": 0.8125}, recipe=run.space.default(logits="dkd"))
    ask(run)
    text = Page(page(run)).text
    assert f"L = {best.user_attrs['equation']}" in text
    assert "Best so far: trial 1, validation accuracy 0.8125 (no distillation 0.7000)" in text
    assert "One seed" in text
    assert "The finals have not begun" in text
    assert "1 running" in text


def test_first_trial_under_way(tmp_path: Path) -> None:
    run = empty(tmp_path / "run")
    ask(run)
    assert "none has finished yet" in Page(page(run)).text


def test_run_with_failures_alone(tmp_path: Path) -> None:
    run = empty(tmp_path / "run")
    for epoch in range(3):
        fail(run, "non-finite", f"kd is not finite in epoch {epoch} of 9", trace="Traceback: deep down")
    fail(run, "rejected", "at: the gradient does not reach the student")
    text = Page(page(run)).text
    assert "of 4, 4 failed" in text
    assert "There is no best recipe yet" in text
    assert "kd is not finite in epoch 0 of 9" in text
    assert "and 2 like it" in text
    assert "Traceback: deep down" in text
    assert [(reason.name, reason.count) for reason in failures(run)] == [("non-finite", 3), ("rejected", 1)]


def test_what_was_recorded_is_escaped(tmp_path: Path) -> None:
    run = empty(tmp_path / "<b>run</b>")
    fail(run, "raised", "</script><script>alert(1)</script> & <b>bold</b>", trace="<img src=x onerror=alert(2)>")
    run.study.set_user_attr("warning", "<i>look</i>")
    html = page(run)
    found = Page(html)
    assert found.tags.count("script") == len(found.data) + 2
    assert not {"img", "i"} & set(found.tags)
    assert "<script>alert(1)" not in html
    assert "</script><script>alert(1)</script> & <b>bold</b>" in found.text
    assert "<i>look</i>" in found.text


def test_figures_cannot_end_their_script() -> None:
    figure = go.Figure(layout={"title": {"text": "</script><!-- & -->"}})
    text = embedded(figures.Panel("key", "caption", figure))
    assert not set("<>") & set(text)
    assert json.loads(text)["layout"]["title"]["text"] == "</script><!-- & -->"


def test_no_password_is_shown(tmp_path: Path) -> None:
    url = "postgresql://me:sekret@host/db"
    run = empty(tmp_path / "run")
    fail(run, "raised", f"OperationalError: {url} is gone", trace=f"connect('{url}')")
    opened = Run(run.path, run.config)
    opened.__dict__["search_ledger"] = run.search_ledger
    opened.__dict__["finals_ledger"] = run.finals_ledger
    opened.config = run.config.model_copy(update={"study": run.config.study.model_copy(update={"storage": url})})
    html = page(opened)
    assert "sekret" not in html
    assert html.count("postgresql://me:***@host/db") >= 3
