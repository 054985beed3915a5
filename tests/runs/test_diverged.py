"""Trainings that blow up: a failure of the recipe, whichever step it was, and no obstacle to what comes after."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from kdsearch.errors import TrialFailure
from kdsearch.runs.data import Data
from kdsearch.runs.fidelity import Fidelity
from kdsearch.runs.jobs import Job, Ladder, RungResult
from kdsearch.runs.settings import Settings
from kdsearch.runs.trial import Runner
from kdsearch.runs.world import World
from kdsearch.search_space.recipe import Recipe

from .studies import ask, empty


def test_a_blow_up_in_the_last_step_is_a_failure(digits: Data, tmp_path: Path) -> None:
    """The losses were finite in all three steps; the student is not any more."""
    optimizer = {"method": "sgd", "lr": 1e12}
    recipe = Recipe.from_dict({"student": {"family": "cnn", "channels": 4}, "optimizer": optimizer})
    world = World(digits, None, Settings(epochs=1, evaluations=1), tmp_path / "cache")
    runner = Runner(world, Ladder((Fidelity("brief", data=0.1),)), tmp_path)
    job = Job("search", 0, recipe.without_distillation().to_dict(), 0, protected=True)
    with pytest.raises(TrialFailure, match="nll = nan after the last step") as caught:
        list(runner.run(job))
    assert caught.value.reason == "non-finite"


@pytest.mark.parametrize("pruner", ["asha", "noisy"])
def test_a_score_that_was_no_number_stops_no_search(pruner: str, tmp_path: Path) -> None:
    """With several objectives pruners are shown what the study has kept, and it keeps no NaN."""
    rungs = [{"name": "cheap", "epochs": 0.5, "judge": "likelihood"}, {"name": "full"}]
    changes = {"fidelity": {"epochs": 2, "rungs": rungs}, "pruner": {"name": pruner, "startup": 1}}
    run = empty(tmp_path / "run", minimise=["macs"], **changes)
    ledger = run.search_ledger
    stopped = []
    for nll in (0.5, math.nan, 0.4, 0.6):
        trial = ask(run)
        result = RungResult("cheap", 0.1, 1.0, metrics={"accuracy": 0.1, "nll": nll}, size={"macs": 10.0})
        ledger.record(trial, result)
        stopped.append(ledger.prunes(trial, result))
        ledger.prune(trial, "cheap") if stopped[-1] else ledger.complete(trial, [0.1, 10.0])
    assert stopped == [False, True, False, True]
