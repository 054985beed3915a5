"""The whole search tree of one small study, compared with a stored one: any change of the search shows here.

For every option the proposals of a shorter study are stored as well, each with a value that is not the default.

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
from kdsearch.searchers.mcts import MCTS

from .spaces import mixed, study

FOLDER = Path(__file__).parent.parent / "goldens" / "search"
GOLDEN, VARIANTS = FOLDER / "mcts.json", FOLDER / "mcts_options.json"
OPTIONS: dict[str, Any] = {
    "seed": 11,
    "defaults": {"kd.weight": 0.9, "dkd.alpha": 0.5, "depth": 20},
    "priors": {"loss": {"kd": 4.0, "none": 0.5}},
}


COUNTING: dict[str, Any] = {"estimate": "prior", "local": 0.0}
OTHER: dict[str, dict[str, Any]] = {
    "estimate": {"estimate": "rave"},
    "reward": {"reward": "zscore"},
    "emphasis": {"emphasis": 3.0},
    "local": {"local": 0.8},
    "startup": {"startup": 9},
    "counted": {"counted": 0.6},
    "doubt": {"doubt": 2.0},
    "optimism": {"optimism": 0.5},
    "ahead": {"ahead": 0},
    "length": {"length": 0.15},
    "interactions": {"interactions": 0.0},
    "noise": {"noise": 1.0},
    "candidates": {"candidates": 4},
    "prior_bias": {"prior_bias": 3.0},
    "formula": {"formula": "puct"},
    "exploration": {"exploration": 0.2},
    "backup": {"backup": "softmax"},
    "sharpness": {"backup": "top", "sharpness": 2.0},
    "shrinkage": {"shrinkage": 3.0},
    "widening": {"widening": 0.5},
    "growth": {"growth": 0.4},
    "prior_share": {"prior_share": 0.9},
    "spread": {"spread": 0.02},
    "sharing": {"sharing": 8.0},
    "rave_bias": {"estimate": "rave", "rave_bias": 3.0},
    "nearby": {"nearby": 2},
    "listed": {"listed": 300},
    "virtual_loss": {"virtual_loss": 0.0},
}
"""By option; those that the model does not read are set beside `COUNTING`."""


def proposed(option: str) -> list[dict[str, Any]]:
    """The proposals under one option, or, with an empty name, none."""
    declared = MCTS.parameters.get(option)
    counts = declared is not None and declared.doc.split(":")[0] in ("counts", "prior", "rave")
    return search({**(COUNTING if counts or option == "estimate" else {}), **OTHER.get(option, {})})


def search(options: dict[str, Any]) -> list[dict[str, Any]]:
    """20 trials, two under way at a time."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    searched = study(MCTSSampler(**{**OPTIONS, **options}))
    for _ in range(10):
        for trial, value in [(trial, mixed(trial)) for trial in (searched.ask() for _ in range(2))]:
            searched.tell(trial, value)
    return json.loads(json.dumps([trial.params for trial in searched.trials]))


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


def test_every_option_has_a_golden() -> None:
    assert set(OTHER) == set(MCTS.parameters)


@pytest.mark.parametrize("option", ["", *OTHER])
def test_proposals_under_an_option_are_the_stored_ones(option: str) -> None:
    assert_same(proposed(option), json.loads(VARIANTS.read_text())[option], option)


def test_every_option_changes_the_proposals() -> None:
    stored = {option: json.dumps(trials) for option, trials in json.loads(VARIANTS.read_text()).items()}
    plain = {stored[""], json.dumps(search(COUNTING))}
    assert not [option for option in OTHER if stored[option] in plain]


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    GOLDEN.write_text(json.dumps(grow(), indent=1) + "\n")
    stored = {option: proposed(option) for option in ["", *OTHER]}
    VARIANTS.write_text("{\n" + ",\n".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in stored.items()) + "\n}\n")
