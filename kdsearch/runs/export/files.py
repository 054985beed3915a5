"""The best recipe as a file, with where it comes from, and the student's weights beside it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optuna.trial import TrialState

from kdsearch import yaml_text
from kdsearch.errors import UserError
from kdsearch.registry import load_plugins
from kdsearch.runs import models
from kdsearch.runs.address import without_password
from kdsearch.runs.finals import Standing
from kdsearch.runs.ledger import RUNG
from kdsearch.search_space.recipe import Recipe

if TYPE_CHECKING:
    from kdsearch.runs.data import Data
    from kdsearch.runs.finals import Finals
    from kdsearch.runs.run import Run
    from kdsearch.runs.world import World

HEADER = "# A distillation recipe found by kdsearch. `kdsearch train {name}` trains it again.\n"


def write_best(run: Run, winner: Standing, finals: Finals, world: World) -> None:
    """Write `best.yaml` and `student.safetensors` (the winner's student under the first finalist seed)."""
    write_recipe(run, winner, run.place.best)
    for trial in finals.ledger.trials():
        if trial.user_attrs.get("hash") == winner.recipe.hash and trial.user_attrs.get("seed") == 0 and trial.values:
            weights = run.path / trial.user_attrs[RUNG + "final"]["weights"]
            partial = run.place.student.with_suffix(".partial")
            shutil.copyfile(weights, partial)
            partial.replace(run.place.student)
            write_card(winner.recipe, world.data, run.path)


def write_card(recipe: Recipe, data: Data, folder: Path) -> None:
    """What it takes to build a student again, and the normalisation of its inputs."""
    card = {"recipe": recipe.to_dict(), "input_shape": list(models.input_shape(recipe, data)), "classes": data.classes}
    card |= {"mean": data.mean.tolist(), "std": data.std.tolist(), "class_names": data.class_names}
    (folder / "student.json").write_text(json.dumps(card, indent=1))


def write_recipe(run: Run, winner: Standing, path: Path) -> None:
    """A recipe file: the recipe, what it was found on, and what it scored."""
    config = run.config.model_dump(mode="json")
    keep = ("data", "teacher", "teachers", "fidelity", "metric", "seed", "plugins")
    environment = json.loads((run.path / "environment.json").read_text())
    validation, test = _by_seed(run, winner.recipe)
    searched: dict[int | None, float] = {t.number: t.values[0] for t in run.search_ledger.trials(TrialState.COMPLETE)}
    data: dict[str, Any] = {
        "recipe": winner.recipe.to_dict(),
        "provenance": {
            "run": run.path.name,
            "study": without_password(run.config.study.storage or "study.db"),
            "trial": winner.source,
            "search": searched.get(winner.source),
            "equation": winner.recipe.equation(),
            "hash": winner.recipe.hash,
            "validation": _scores(validation),
            "test": _scores(test),
            "teacher": run.study.user_attrs.get(f"teacher_{run.config.metric}"),
            "packages": environment["packages"],
            "trained": {key: config[key] for key in keep},
        },
    }
    partial = path.with_name(path.name + ".partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial.write_text(HEADER.format(name=path.name) + yaml_text.dump(data))
    partial.replace(path)


def of_trial(run: Run, number: int) -> Standing:
    """The recipe of a trial of the search, with its scores over the seeds where the finals have it.

    Raises:
        UserError: no such trial, or one that was stopped or failed.
    """
    trials = run.search_ledger.trials(TrialState.COMPLETE)
    found = next((t for t in trials if t.number == number), None)
    if found is None:
        known = ", ".join(str(t.number) for t in trials[:20]) + (", ..." if len(trials) > 20 else "")
        raise UserError(
            f"--trial {number}: no complete trial of the search has this number; there are {known or 'none'}"
        )
    recipe = Recipe.from_dict(found.user_attrs["recipe"])
    confirmed = next((s for s in run.standings if s.recipe == recipe), None)
    if confirmed is not None:
        return replace(confirmed, source=number)
    return Standing(recipe, str(found.user_attrs.get("origin")), [], [], number)


def _by_seed(run: Run, recipe: Recipe) -> tuple[dict[int, float], dict[int, float]]:
    """Its scores in the finals on validation and test, by finalist seed."""
    ledger = run.finals_ledger
    tested = ledger.study.user_attrs.get("test", {})
    own = [t for t in ledger.trials(TrialState.COMPLETE) if t.user_attrs["hash"] == recipe.hash]
    trials = {t.user_attrs["seed"]: t for t in sorted(own, key=lambda t: t.user_attrs["seed"])}
    test = {seed: tested[str(t.number)][run.config.metric] for seed, t in trials.items() if str(t.number) in tested}
    return {seed: t.values[0] for seed, t in trials.items()}, test


def _scores(scores: Mapping[int, float]) -> dict[str, Any] | None:
    if not scores:
        return None
    from statistics import fmean, stdev

    spread = stdev(scores.values()) if len(scores) > 1 else 0.0
    return {"mean": fmean(scores.values()), "spread": spread, "seeds": dict(scores)}


def read_recipe(path: str | Path) -> tuple[Recipe, dict[str, Any]]:
    """A recipe file and its provenance (empty where it has none).

    Raises:
        UserError: unreadable, or not a recipe.
    """
    data = yaml_text.read(path, "recipe")
    if not isinstance(data, dict):
        raise UserError(f"{path}: must be a mapping with `recipe`, not {type(data).__name__}")
    recipe = _mapping(data.get("recipe", data), "recipe", path)
    provenance = _mapping((data.get("provenance") if "recipe" in data else None) or {}, "provenance", path)
    trained = _mapping(provenance.get("trained") or {}, "provenance.trained", path)
    try:
        load_plugins(trained.get("plugins") or [])
        return Recipe.from_dict(recipe), provenance
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None


def _mapping(value: Any, name: str, path: str | Path) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"{path}: {name} must be a mapping, not {value!r}")
    return value
