"""Going on with a run: to another budget, in the same world alone; and folders that are free again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest

from kdsearch.errors import UserError
from kdsearch.runs import config_file, datasets
from kdsearch.runs.data import Data
from kdsearch.runs.identity import departures, identity
from kdsearch.runs.past import WORLD
from kdsearch.runs.progress import Progress
from kdsearch.runs.run import Run, resume
from kdsearch.runs.settings import Settings
from kdsearch.runs.world import TeacherModel, World

from .studies import climb, empty
from .tiny import TINY


class Lines(Progress):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def line(self, text: str) -> None:
        self.said.append(text)


# Budgets -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "more", "expected"),
    [
        ({"trials": None, "seconds": 5}, {"trials": 80}, (80, None)),
        ({"trials": 4}, {"seconds": 3600.0}, (None, 3600.0)),
        ({"trials": 4}, {"trials": 6, "seconds": 60.0}, (6, 60.0)),
        ({"trials": 4, "seconds": 5}, {}, (4, 5)),
    ],
)
def test_a_new_budget_lifts_the_old_one_and_is_kept(
    tmp_path: Path, first: dict[str, Any], more: dict[str, Any], expected: tuple[int | None, float | None]
) -> None:
    empty(tmp_path / "run", budget=first)
    made = (tmp_path / "run" / "environment.json").read_text()
    for given in (more, {}):  # killed, and resumed once more
        run = resume(tmp_path / "run", **given)
        run.place.release()
        assert (run.config.budget.trials, run.config.budget.seconds) == expected
    assert Run(tmp_path / "run").state()["budget"] == expected[0]
    assert (tmp_path / "run" / "environment.json").read_text() == made


# The same world ------------------------------------------------------------------------------------------------------


def test_what_a_resumed_run_may_find_changed(digits: Data, teacher: TeacherModel, tmp_path: Path) -> None:
    trained = replace(teacher, seconds=3.0)

    def told(of: TeacherModel = trained, data: Data = digits, **settings: Any) -> dict[str, Any]:
        return identity(World(data, of, Settings(**settings), tmp_path), [])

    before = told()
    assert departures(before, told(precision="bf16", evaluations=1)) == []  # another device
    assert departures(before, told(replace(trained, hash="again"))) == []  # trained anew: the cache is gone
    assert departures(before, told(epochs=16)) == ["training"]
    assert departures(before, told(teacher, datasets.load("digits", image_size=12))) == ["data", "teacher"]
    assert departures(told(teacher), told(teacher)) == []
    assert departures(told(teacher), before) == ["teacher"]
    earlier = {key: value for key, value in before.items() if key != "given"}
    assert departures(earlier, told(teacher)) == []


def test_a_run_goes_on_in_its_own_world_alone(digits: Data, teacher: TeacherModel, tmp_path: Path) -> None:
    """Its trials were scored with a user's own teacher; an earlier version kept nothing of that."""
    run = empty(tmp_path / "run", teacher={"model": {"family": "cnn", "channels": 8}, "epochs": 4})
    climb(run, {"sparse": 0.5, "full": 0.9})

    def go_on(**given: Any) -> None:
        again = resume(run.path)
        try:
            again.execute(stop=lambda: True, **given)
        finally:
            again.place.release()

    own = {"teacher_module": teacher.network.module}
    go_on(**own)
    assert run.study.user_attrs[WORLD]["teacher"]
    go_on(**own)
    with pytest.raises(UserError, match=r"^study: its trials were scored with other teacher; go on with what"):
        go_on()
    with pytest.raises(UserError, match="with other data; "):
        go_on(**own, data=datasets.load("digits", shift=2))
    assert len(run.study.trials) == 1


# A folder that is free again -----------------------------------------------------------------------------------------


def attempt(folder: Path, **changes: Any) -> tuple[str, list[str]]:
    """A new run that ends with a mistake, a checkpoint that is missing at the latest: the error, and what was said."""
    student = {"cnn": {"channels": {"values": [3, 4, 8, 16]}, "stages": 3}}
    given = {**TINY, "space": {**TINY["space"], "student": student}, **changes}
    given["teacher"] = {"model": "cnn", "checkpoint": "missing.pt"}
    run, lines = Run(folder, config_file.check(given, "config")).claim(new=True), Lines()
    with pytest.raises(UserError) as caught:
        run.execute(lines)
    run.place.release()
    assert not run.place.config.exists()
    return str(caught.value), lines.said


def test_a_mistake_leaves_no_study_to_the_corrected_config(tmp_path: Path) -> None:
    _, first = attempt(tmp_path / "run", limits={"parameters": 1200})
    error, second = attempt(tmp_path / "run", limits={"parameters": 100_000}, metric="nll")
    assert "missing.pt" in error
    assert first != second
    assert second[0].startswith("4 of 4 students")


def test_a_study_of_another_run_is_left_alone(tmp_path: Path) -> None:
    other = empty(tmp_path / "run")
    climb(other, {"sparse": 0.5, "full": 0.9})
    other.place.config.unlink()
    error, _ = attempt(tmp_path / "run", metric="nll")
    assert "exists with other objectives" in error
    url = f"sqlite:///{tmp_path / 'run' / 'study.db'}"
    assert len(optuna.load_study(study_name="search", storage=url).trials) == 1
    shared = {"storage": f"sqlite:///{tmp_path / 'shared.db'}"}
    attempt(tmp_path / "run2", study=shared)
    assert optuna.get_all_study_names(shared["storage"]) == ["search"]
