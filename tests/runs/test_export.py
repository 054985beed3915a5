"""Recipe files: which trials there are to export, which score is of which seed, and files that are no recipes."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from kdsearch.errors import UserError
from kdsearch.runs.export.files import of_trial, read_recipe, write_recipe
from kdsearch.runs.run import Run
from kdsearch.search_space.recipe import Recipe

from .studies import climb, empty
from .tiny import invoke


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run with a stopped trial, whose likelihood Optuna takes for its value, and a complete one."""
    made = empty(tmp_path / "run")
    climb(made, {"sparse": 0.3})
    climb(made, {"sparse": 0.4, "full": 0.8})
    return made


def test_a_stopped_trial_is_not_exported(run: Run) -> None:
    stopped, complete = run.study.trials
    assert stopped.values
    with pytest.raises(UserError, match=f"--trial {stopped.number}: no complete trial.*there are {complete.number}$"):
        of_trial(run, stopped.number)


def test_the_score_of_the_search_is_of_no_finalist_seed(run: Run, tmp_path: Path) -> None:
    write_recipe(run, of_trial(run, 1), tmp_path / "r.yaml")
    provenance = yaml.safe_load((tmp_path / "r.yaml").read_text())["provenance"]
    assert provenance["search"] == 0.8
    assert provenance["validation"] is None


def test_a_seed_that_failed_does_not_shift_the_others(run: Run, tmp_path: Path) -> None:
    recipe = Recipe.from_dict(run.study.trials[1].user_attrs["recipe"])
    ledger = run.finals_ledger
    for seed, score in ((0, 0.7), (2, 0.9)):
        trial = ledger.study.ask()
        ledger.note(trial, recipe=recipe.to_dict(), hash=recipe.hash, role="finalist", seed=seed)
        ledger.complete(trial, [score])
    ledger.study.set_user_attr("test", {str(trial.number): {"accuracy": 0.6}})
    write_recipe(run, of_trial(run, 1), tmp_path / "r.yaml")
    provenance = yaml.safe_load((tmp_path / "r.yaml").read_text())["provenance"]
    assert provenance["validation"]["seeds"] == {0: 0.7, 2: 0.9}
    assert provenance["test"]["seeds"] == {2: 0.6}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("recipe: null", "recipe must be a mapping, not None"),
        ("recipe: {student: cnn}\nprovenance: hello", "provenance must be a mapping, not 'hello'"),
        ("recipe: {student: cnn}\nprovenance: {trained: [1]}", r"provenance.trained must be a mapping, not \[1\]"),
    ],
)
def test_what_is_no_recipe_file(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(content)
    with pytest.raises(UserError, match=f"r.yaml: {message}"):
        read_recipe(path)


@pytest.mark.parametrize("command", ["run", "train"])
def test_what_is_no_text(tmp_path: Path, command: str) -> None:
    path = tmp_path / "student.safetensors"
    path.write_bytes(b"\xff\xfe\x80")
    result = invoke(command, path)
    assert (result.exit_code, result.stderr) == (2, f"kdsearch: {path}: not readable as YAML: it is no text\n")
