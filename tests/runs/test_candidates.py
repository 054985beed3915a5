"""Candidates for the finals: all of them under the first seeds, the best of these under the rest."""

from __future__ import annotations

from pathlib import Path

from kdsearch.runs.engines import Desk
from kdsearch.runs.jobs import RungResult
from kdsearch.search_space.recipe import Recipe

from .studies import climb, empty


class Written:
    """An engine whose trainings find what is written down for their recipe, seed by seed."""

    def __init__(self, scores: dict[Recipe, list[float]]) -> None:
        self.scores, self.trained = scores, set[tuple[Recipe, int]]()

    def serve(self, desk: Desk) -> None:
        while (job := desk.propose()) is not None:
            recipe = Recipe.from_dict(job.recipe)
            score = self.scores.get(recipe, [0.5] * 4)[job.seed]
            self.trained.add((recipe, job.seed))
            desk.record(job, RungResult("final", score, 1.0, metrics={"accuracy": score}, weights="none"))

    def close(self) -> None:
        pass


def test_finals_that_are_done_stay_as_they_are(tmp_path: Path) -> None:
    """The chosen one fell behind under later seeds; candidates are still compared under the first ones alone."""
    run = empty(tmp_path / "run", finals={"recipes": 1, "seeds": 4, "first": 2, "candidates": 2})
    chosen, other = (run.space.default(logits=name) for name in ("kd", "dkd"))
    chosen = Recipe.from_dict({**chosen.to_dict(), "features": "at"})
    for recipe in (chosen, other):
        climb(run, {"sparse": 0.5, "full": 0.9}, recipe=recipe)
    engine = Written({chosen: [0.96, 0.96, 0.90, 0.90], other: [0.95, 0.95, 0.93, 0.93]})
    run.finals.run(engine)
    assert {seed for recipe, seed in engine.trained if recipe == chosen} == {0, 1, 2, 3}
    assert {seed for recipe, seed in engine.trained if recipe == other} == {0, 1}
    engine.trained.clear()
    run.finals.run(engine)
    assert not engine.trained
    winner = run.finals.winner()
    assert winner is not None
    assert winner.recipe == chosen
