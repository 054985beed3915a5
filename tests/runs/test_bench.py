"""The tabulated benchmark: its grid, its making, searches in virtual time, and their comparison."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import optuna
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from click.testing import CliRunner
from optuna.trial import TrialState

from kdsearch import searchers
from kdsearch.errors import UserError
from kdsearch.runs import assemble
from kdsearch.runs.bench import compare, load
from kdsearch.runs.bench.grid import Grid
from kdsearch.runs.bench.replay import Trace, replay
from kdsearch.runs.bench.table import HEADER, Table, read_config
from kdsearch.search_space.space import SearchSpace

from . import bench_table
from .tiny import invoke

ROOT = Path(__file__).parents[2]
STORED = ROOT / "benchmarks" / "kdbench" / "digits.parquet"


def test_the_grid_holds_every_combination_once() -> None:
    recipes = list(bench_table.grid().recipes())
    assert len(recipes) == len({recipe.hash for recipe in recipes}) == (1 + 3 * 2 + 2) * (1 + 2)


def test_whatever_is_proposed_is_answered_by_the_recipe_of_its_cell() -> None:
    grid = bench_table.grid()
    tabulated = {recipe.hash for recipe in grid.recipes()}
    for seed in range(60):
        proposed = grid.space.sample(seed)
        snapped = grid.snapped(proposed)
        assert snapped.hash in tabulated
        assert grid.snapped(snapped) == snapped
        for slot, node in proposed.terms.items():
            assert snapped.terms[slot].name == node.name


def test_a_number_goes_to_the_nearest_centre_on_its_own_scale() -> None:
    grid = bench_table.grid()
    parameter = grid.space.options["logits"]["kd"]["temperature"]
    centres = grid.options("logits.kd.temperature", parameter)
    assert centres == (1.587, 4.0, 10.08)
    for value, centre in ((1.0, 1.587), (2.5, 1.587), (2.55, 4.0), (6.3, 4.0), (6.4, 10.08), (16.0, 10.08)):
        assert grid.snap("logits.kd.temperature", parameter, value) == centre


def test_a_continuous_number_without_cells_is_refused_by_name() -> None:
    cells = {key: n for key, n in bench_table.CELLS.items() if key != "relations.sp.weight"}
    with pytest.raises(ValueError, match=r"relations\.sp\.weight.*no cells"):
        list(Grid(SearchSpace.from_dict(bench_table.SPACE), cells).recipes())


class Listed(optuna.samplers.RandomSampler):
    """Proposes given answers, one trial after the other."""

    def __init__(self, *answers: dict[str, object]) -> None:
        super().__init__(seed=0)
        self.answers = answers

    def sample_independent(self, study, trial, param_name, param_distribution):  # type: ignore[no-untyped-def]
        given = self.answers[trial.number]
        return given.get(param_name, "none" if param_name in ("logits", "relations") else 0.5)


def _search(table: Table, sampler: optuna.samplers.BaseSampler, **options: Any) -> Trace:
    """What the sampler itself proposes, from the first trial on."""
    return replay(table, sampler, baselines=False, **options)


KD = {"logits": "kd", "logits.kd.temperature": 4.2, "logits.kd.weight": 3.0}
WITH_SP = {**KD, "relations": "sp", "relations.sp.weight": 20.0}


def test_regret_is_of_the_incumbent_and_of_the_truth() -> None:
    table = bench_table.table()
    assert table.best == pytest.approx(0.905)
    found = _search(table, Listed({}, WITH_SP, {}, KD), trials=4)
    assert found.regret == pytest.approx([0.4, 0.1, 0.1, 0.0])
    assert found.seconds == pytest.approx([4, 8, 12, 16])
    assert found.incumbents[-1] == found.recipes[-1] == bench_table.grid().snapped(_recipe(KD)).hash


def _recipe(answers: dict[str, object]):  # type: ignore[no-untyped-def]
    return bench_table.grid().space.walk(lambda name, p: answers.get(name, p.default))  # type: ignore[arg-type,return-value]


def test_finalists_are_compared_over_all_seeds() -> None:
    """Seed 0 shows the second best recipe as the best; the mean of both seeds tells them apart."""
    table = bench_table.table()
    names = {key: bench_table.grid().snapped(_recipe(value)).hash for key, value in (("kd", KD), ("sp", WITH_SP))}
    flattered = table.frame["recipe"].eq(names["sp"]) & table.frame["seed"].eq(0)
    frame = table.frame.assign(full_score=table.frame["full_score"].where(~flattered, 0.905))
    table = type(table)(frame, table.header)
    assert _search(table, Listed(KD, WITH_SP), trials=2, finalists=1).incumbents[-1] == names["sp"]
    assert _search(table, Listed(KD, WITH_SP), trials=2, finalists=2).incumbents[-1] == names["kd"]
    assert table.floor(0, 1) == pytest.approx(0.1)
    assert table.floor(0, 2) == pytest.approx(0.0)


def test_workers_share_the_clock_and_not_the_cost() -> None:
    found = _search(bench_table.table(), Listed({}, {}, KD, {}), trials=4, workers=2)
    assert found.clock == pytest.approx([4, 4, 8, 8])
    assert found.seconds == pytest.approx([8, 8, 16, 16])  # what the other worker has under way is spent, too


def test_the_seed_decides_what_is_shown() -> None:
    shown: list[float] = []
    for seed in (0, 1):
        sampler = Listed(KD)
        sampler.after_trial = lambda study, trial, state, values: shown.append(values[0])  # type: ignore[assignment,method-assign,misc]
        assert _search(bench_table.table(), sampler, trials=1, seed=seed).regret == pytest.approx([0.0])
    assert shown == pytest.approx([0.9, 0.91])


def test_a_pruner_stops_trials_after_their_cheap_rung() -> None:
    pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=3)
    worse: list[dict[str, object]] = [{}] * 3
    found = _search(bench_table.table(), Listed(KD, *worse), trials=4, pruner=pruner)
    assert found.states == [TrialState.COMPLETE, *[TrialState.PRUNED] * 3]
    assert found.seconds == pytest.approx([5, 6, 7, 8])
    assert found.regret == pytest.approx([0.0] * 4)


def test_what_fails_or_is_not_there_is_pruned_and_costs_nothing() -> None:
    table = bench_table.table(failing=bench_table.grid().snapped(_recipe(KD)).hash)
    found = _search(table, Listed(KD, {}), trials=2)
    assert found.states == [TrialState.PRUNED, TrialState.COMPLETE]
    assert found.seconds == pytest.approx([0, 4])
    assert found.regret[0] == pytest.approx(table.best - table.worst)


def test_baselines_are_the_first_trials() -> None:
    found = replay(bench_table.table(), searchers.create("random", seed=0), trials=3)
    first = [{}, {"logits": "kd"}]
    assert found.recipes[:2] == [bench_table.grid().snapped(_recipe(answers)).hash for answers in first]


def test_baselines_are_trained_in_full_as_in_a_run() -> None:
    class Never(optuna.pruners.BasePruner):
        def prune(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> bool:
            return True

    found = replay(bench_table.table(), searchers.create("random", seed=0), trials=3, pruner=Never())
    assert found.states == [TrialState.COMPLETE, TrialState.COMPLETE, TrialState.PRUNED]


def test_nll_is_another_metric_of_the_same_table() -> None:
    table = bench_table.table()
    header = {**table.header, "metric": "accuracy"}
    by_nll = type(table)(table.frame.assign(test_nll=1 - table.frame["test_accuracy"]), header, "nll")
    assert not by_nll.maximise
    assert by_nll.best == pytest.approx(1 - table.best)
    assert {n: by_nll.regret(n) for n in by_nll.truth} == pytest.approx({n: table.regret(n) for n in table.truth})
    assert _search(by_nll, Listed({}, KD), trials=2).regret == pytest.approx([0.4, 0.0])
    for metric in ("top5", ""):
        with pytest.raises(UserError, match=f"'{metric}'"):
            type(table)(table.frame, header, metric)


def test_a_search_is_a_function_of_its_seed() -> None:
    table = bench_table.table()
    a, b, c = (_search(table, searchers.create("tpe", seed=s), trials=15, workers=3) for s in (1, 1, 2))
    assert a == b
    assert a.recipes != c.recipes


def test_regret_at_a_cost_is_that_of_what_had_ended() -> None:
    trace = Trace(regret=[0.4, 0.2, 0.1], seconds=[4, 8, 12])
    assert trace.at_cost([1, 4, 7.9, 8, 100]).tolist() == [0.4, 0.4, 0.4, 0.2, 0.1]


def test_contenders_are_ranked_and_tested_in_pairs() -> None:
    def traces(level: float) -> list[Trace]:
        return [Trace(regret=[level + 0.01 * k, level], seconds=[1, 2]) for k in range(12)]

    found = compare.rows({"slow": traces(0.3), "quick": traces(0.1), "same": traces(0.1)}, marks=(1, 2, 50))
    assert [row["searcher"] for row in found] == ["quick", "same", "slow"]
    assert found[0]["p"] is None
    assert found[1]["p"] == 1.0
    assert found[2]["p"] == pytest.approx(2 * 2 / 2**12)  # the smallest p of twelve pairs, twice for two tests
    assert found[0]["regret@2"] == pytest.approx(0.1)
    assert "regret@50" not in found[0]


def test_holm_corrects_step_by_step_and_never_falls() -> None:
    assert compare._holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])


def test_the_band_holds_the_mean() -> None:
    values = np.random.default_rng(1).normal(size=(40, 3))
    low, high = compare.band(values)
    assert np.all(low < values.mean(0))
    assert np.all(values.mean(0) < high)
    assert np.all(high - low < 4 / np.sqrt(40) * values.std(0) * 1.1)


def test_how_soon_a_goal_is_reached() -> None:
    assert compare.reaches(np.array([[0.3, 0.2, 0.1], [0.3, 0.2, 0.1]]), 0.2) == 2
    assert compare.reaches(np.array([[0.3, 0.2]]), 0.1) is None


def _maker() -> ModuleType:
    path = ROOT / "benchmarks" / "kdbench" / "make.py"
    spec = importlib.util.spec_from_file_location("kdbench_make", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _make(*args: object) -> str:
    result = CliRunner().invoke(_maker().main, [str(arg) for arg in args], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_a_table_is_made_packed_and_searched(tmp_path: Path) -> None:
    """Three real recipes of one epoch, from the command that makes the benchmark to the one that reads it."""
    kd = {"temperature": [1, 16], "weight": 0.9}
    config = {
        "data": {"name": "digits"},
        "teacher": {"model": {"family": "cnn", "channels": 12}, "epochs": 4},
        "space": {**bench_table.SPACE, "logits": {"none": {}, "kd": kd}, "relations": ["none"]},
        "cells": {"logits.kd.temperature": 2},
        "fidelity": {"epochs": 1, "batch_size": 128, "rungs": [{"name": "part", "data": 0.3}, {"name": "full"}]},
    }
    source, rows, table = tmp_path / "small.yaml", tmp_path / "rows.jsonl", tmp_path / "table.parquet"
    source.write_text(yaml.safe_dump(config))
    given = ("--config", source, "--out", rows, "--cache", tmp_path / "cache")
    assert "0 trainings are there already" in _make(*given)
    lines = rows.read_text().splitlines()
    assert len(lines) == 3 * 2
    rows.write_text("\n".join(lines[:5]) + "\n" + lines[5][:40])  # killed in the middle of a line
    assert "5 trainings are there already" in _make(*given)
    assert [_untimed(line) for line in rows.read_text().splitlines()] == [_untimed(line) for line in lines]
    assert "3 recipes, 6 rows" in _make("--config", source, "--pack", table, rows)
    stored = load(table)
    row = json.loads(lines[0])
    entry = stored.entries[row["recipe"], row["seed"]]
    assert entry.scores == pytest.approx({name: found["score"] for name, found in row["rungs"].items()})
    assert entry.curves["full"] == pytest.approx(row["rungs"]["full"]["curve"])
    tested = [json.loads(line)["test"]["accuracy"] for line in lines if json.loads(line)["recipe"] == row["recipe"]]
    assert stored.truth[row["recipe"]] == pytest.approx(np.mean(tested))
    page = tmp_path / "a folder to come" / "page.html"
    few = ("--searcher", "random", "--trials", "6", "--seeds", "2", "--json", "--plot", str(page))
    shown = invoke("bench", "searchers", "--table", str(table), *few)
    assert shown.exit_code == 0, shown.output
    assert json.loads(shown.stdout)[0]["searcher"] == "random"
    assert "simple regret" in page.read_text()
    rows.write_text("\n".join(lines[:4]))
    assert "3 recipes, 4 rows" in _make("--config", source, "--pack", table, rows)
    refused = invoke("bench", "searchers", "--table", table, *few)
    assert refused.exit_code == 2
    assert "2 of 3 recipes of this space were not trained" in refused.stderr  # under both seeds, that is


def test_a_table_is_whole_where_all_that_can_work_was_trained_under_all_seeds() -> None:
    table = bench_table.table()
    table.check_whole()
    lacking = Table(table.frame.iloc[:-1], table.header)
    with pytest.raises(UserError, match=f"1 of {len(table.truth)} recipes of this space were not trained"):
        lacking.check_whole()
    Table(table.frame.iloc[:-1], {**table.header, "invalid": [table.frame["recipe"].iloc[-1]]}).check_whole()


@pytest.mark.parametrize(("name", "count"), [("digits", 2), ("heldout", 0), ("students", 0)])
def test_a_stored_table_knows_which_recipes_cannot_work(name: str, count: int) -> None:
    path = STORED.with_name(f"{name}.parquet")
    table = load(path)
    invalid = _maker().invalid(*read_config(path.with_suffix(".yaml")))
    assert sorted(invalid) == table.header["invalid"]
    assert len(invalid) == count
    table.check_whole()


def _untimed(line: str) -> dict[str, object]:
    row = json.loads(line)
    for found in row["rungs"].values():
        del found["seconds"]
    return dict(row)


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (["--table", "nowhere.parquet"], "cannot read 'nowhere.parquet': No such file or directory"),
        (["--table", ROOT], "Is a directory"),
        (["--table", STORED.with_suffix(".yaml")], "this is not a parquet file"),
        (["--table", STORED, "--metric", ""], "--metric: ''"),
        (["--table", STORED, "--searcher", "random:seed=3"], "every search has its own seed"),
        (["--table", STORED, "--searcher", "mtcs"], "did you mean 'mcts'"),
        (["--table", STORED, "--searcher", "mcts:explore=1"], "no option 'explore'"),
        (["--table", STORED, "--searcher", "mcts:local={"], "write NAME:KEY=VALUE"),
        (["--table", STORED, "--pruner", "ashe"], "did you mean 'asha'"),
    ],
)
def test_mistakes_are_one_line(args: list[object], line: str) -> None:
    found = invoke("bench", "searchers", *map(str, args))
    assert found.exit_code == 2
    assert line in found.stderr
    assert len(found.stderr.splitlines()) == 1


def test_tables_of_another_kind_are_one_line(tmp_path: Path) -> None:
    table = bench_table.table()
    alien = {**table.header, "space": {**bench_table.SPACE, "student": ["cnm"]}}
    for header, metric, line in (
        (table.header, "nll", "it has no column 'test_nll'"),
        (alien, "accuracy", "did you mean 'cnn'"),
    ):
        path = tmp_path / "table.parquet"
        stored = pa.Table.from_pandas(table.frame)
        pq.write_table(stored.replace_schema_metadata({HEADER: json.dumps(header).encode()}), path)
        found = invoke("bench", "rungs", "--table", path, "--metric", metric)
        assert found.exit_code == 2
        assert line in found.stderr
        assert len(found.stderr.splitlines()) == 1


def test_the_stored_table_is_whole() -> None:
    table = load(STORED)
    assert len(table.seeds) >= 2
    valid = {recipe.hash for recipe in table.grid.recipes()}
    assert {name for name, _ in table.entries} <= valid
    assert len(table.truth) > 0.99 * len(valid)
    assert len(table.entries) == len(table.seeds) * len({name for name, _ in table.entries})


def test_informed_searchers_know_what_a_run_tells_those_that_ask() -> None:
    """The same recipes as the same search by a sampler that was told by hand."""
    table = bench_table.table()
    race = compare.Race(trials=12, seeds=2, informed=True)
    told = searchers.create(
        "mcts", seed=1, defaults=assemble.defaults(table.grid.space), priors=assemble.priors(table.grid.space)
    )
    by_hand = replay(table, told, trials=12, seed=table.seeds[1])
    assert race.run(table, compare.Contender.parse("mcts"), 1).recipes == by_hand.recipes
    uninformed = compare.Race(trials=12, seeds=2)
    assert uninformed.run(table, compare.Contender.parse("mcts"), 1).recipes != by_hand.recipes
    for name in ("random", "tpe"):  # they ask for nothing
        contender = compare.Contender.parse(name)
        assert race.run(table, contender, 1).recipes == uninformed.run(table, contender, 1).recipes
