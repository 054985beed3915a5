"""The whole search tree of one small study, compared with a stored one: any change of the search shows here.

A change that is meant is stored by running this file: `python -m tests.searchers.test_golden_tree`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from kdsearch.searchers import MCTSSampler, tree

from .spaces import mixed, study

GOLDEN = Path(__file__).parent.parent / "goldens" / "search" / "mcts.json"
OPTIONS: dict[str, Any] = {
    "seed": 11,
    "defaults": {"kd.weight": 0.9, "dkd.alpha": 0.5, "depth": 20},
    "priors": {"loss": {"kd": 4.0, "none": 0.5}},
}


def grow() -> dict[str, Any]:
    """36 trials, three under way at a time: complete, pruned with and without a value, failed, two left running."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    searched = study(MCTSSampler(**OPTIONS))
    for _ in range(12):
        asked = [(trial, mixed(trial)) for trial in (searched.ask() for _ in range(3))]
        for trial, value in asked:
            if trial.number in (33, 34):
                continue
            if trial.number % 7 == 3:
                searched.tell(trial, state=TrialState.FAIL)
            elif trial.params["loss"] == "rkd":
                searched.tell(trial, state=TrialState.PRUNED)
            elif value < 0.3:
                trial.report(value, 1)
                searched.tell(trial, state=TrialState.PRUNED)
            else:
                searched.tell(trial, value)
    # JSON has no tuples and no numbers as keys: what is compared is what a reader of the file gets.
    return json.loads(json.dumps({"options": OPTIONS, "tree": tree(searched).to_dict()}))


def assert_same(got: Any, expected: Any, where: str = "tree") -> None:
    if isinstance(expected, dict):
        assert got.keys() == expected.keys(), where
        for key in expected:
            assert_same(got[key], expected[key], f"{where}.{key}")
    elif isinstance(expected, list):
        assert len(got) == len(expected), where
        for k, pair in enumerate(zip(got, expected, strict=True)):
            assert_same(*pair, f"{where}[{k}]")
    else:
        assert got == (pytest.approx(expected, rel=1e-9) if isinstance(expected, float) else expected), where


def test_the_tree_is_the_stored_one() -> None:
    assert_same(grow(), json.loads(GOLDEN.read_text()))


if __name__ == "__main__":
    GOLDEN.parent.mkdir(exist_ok=True)
    GOLDEN.write_text(json.dumps(grow(), indent=1) + "\n")
