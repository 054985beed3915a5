"""What a table's rungs say of its recipes."""

from __future__ import annotations

import json

import numpy as np
import pytest

from kdsearch.runs.bench.rungs import agreement
from kdsearch.runs.bench.table import Table

from . import bench_table
from .test_bench import STORED
from .tiny import invoke


def test_a_rung_that_ranks_as_the_full_training_does_agrees_wholly() -> None:
    short, full = agreement(bench_table.table())
    assert (short["rung"], full["rung"]) == ("short", "full")
    assert short["tau"] == pytest.approx(1.0)
    assert short["interval"] == pytest.approx([1.0, 1.0])
    assert short["cost"] == pytest.approx(0.25)
    assert full["cost"] == 1.0


def test_a_rung_of_noise_agrees_with_nothing() -> None:
    table = bench_table.table()
    frame = table.frame.copy()
    frame["short_score"] = np.random.default_rng(0).random(len(frame))
    short, full = agreement(Table(frame, table.header))
    low, high = short["interval"]
    assert low < 0 < high
    assert full["tau"] == pytest.approx(1.0)


def test_what_a_recipe_is_worth_is_read_under_other_seeds_than_the_rung() -> None:
    """The second seed turns the order around: no rung can agree with it then, not even the full training."""
    table = bench_table.table()
    frame = table.frame.copy()
    second = frame["seed"] == 1
    frame.loc[second, "test_accuracy"] = 1 - frame.loc[second, "test_accuracy"]
    rows = agreement(Table(frame, table.header))
    assert rows[-1]["tau"] < 0.2


def test_recipes_that_fail_are_left_out() -> None:
    whole = bench_table.table()
    failing = next(iter(whole.truth))
    assert agreement(bench_table.table(failing=failing))[0]["recipes"] == len(whole.truth) - 1


def test_the_command_prints_what_the_stored_table_shows() -> None:
    found = json.loads(invoke("bench", "rungs", "--table", str(STORED), "--json").output)
    assert found[-1]["cost"] == 1.0
    assert all(0 < row["cost"] < 1 for row in found[:-1])
    assert all(row["interval"][0] <= row["tau"] <= row["interval"][1] for row in found)
