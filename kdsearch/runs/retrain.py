"""Train one recipe in full: what `kdsearch train` and `kdsearch.distill` do."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from kdsearch.errors import TrialFailure, UserError
from kdsearch.runs import assemble, config_file, deploy, models, teacher
from kdsearch.runs.config import RunConfig
from kdsearch.runs.data import Data
from kdsearch.runs.distil import distil
from kdsearch.runs.export.files import read_recipe, write_card
from kdsearch.runs.metrics import evaluate
from kdsearch.runs.settings import Seeds, pick_device, threads
from kdsearch.runs.world import World
from kdsearch.search_space.recipe import Recipe

Progress = Callable[[int, int, float], None]


@dataclass
class Student:
    """A distilled student: the module, its metrics on validation and test, and how it was trained."""

    module: nn.Module
    recipe: Recipe
    validation: dict[str, float]
    test: dict[str, float]
    seconds: float
    notes: list[str]
    metadata: dict[str, str] = field(default_factory=dict)

    def save(self, path: str | Path) -> None:
        """The student's weights alone, as safetensors; `kdsearch.load_student` reads them back."""
        models.save(self.module, Path(path), {"recipe": self.recipe.hash, **self.metadata})


def distill(
    recipe: Recipe | dict[str, Any] | str | Path,
    teacher_module: nn.Module | None = None,
    data: Data | None = None,
    *,
    config: RunConfig | None = None,
    seed: int = 0,
    cache: str | Path | None = None,
    checkpoint: Path | None = None,
    progress: Progress | None = None,
) -> Student:
    """Distil one student by a recipe, at the config's full budget.

    Args:
        recipe: a recipe, its plain data, or a recipe file.
        teacher_module, data: your own objects; without them, what the config names.
        seed: finalist seed k: the numbers of a run's finals come back under the same k.

    Raises:
        UserError: the recipe or the config is wrong, or the training fails.
    """
    config = config or RunConfig()
    if isinstance(recipe, str | Path):
        recipe, _ = read_recipe(recipe)
    elif isinstance(recipe, dict):
        try:
            recipe = Recipe.from_dict(recipe)
        except ValueError as error:
            raise UserError(str(error)) from None
    device = pick_device(config.engine.device)
    loaded = data if data is not None else assemble.data(config, device)
    how = assemble.settings(config)
    folder = Path(cache) if cache is not None else Path(".kdsearch")
    if teacher_module is None:
        model = teacher.prepare(config, loaded, how, folder, progress)
    else:
        model = teacher.adopt(teacher_module.to(loaded.device), type(teacher_module).__name__, config, loaded, how)
    others = teacher.further(config, loaded, how, folder, progress)
    world = World(loaded, model, how, folder, config.metric, config.seed, others=others)
    try:
        with threads(loaded.device, loaded.input_shape[-1]):
            done = distil(recipe, world, Seeds.finalist(config.seed, seed), checkpoint=checkpoint, progress=progress)
    except TrialFailure as error:
        raise UserError(f"the recipe fails ({error.reason}): {error}") from None
    trained = done.trained
    test = evaluate(trained.network, loaded.test, None, world.reference("test"))
    return Student(trained.module, recipe, trained.metrics, test, done.seconds, done.notes, trained.metadata)


def config_of(provenance: dict[str, Any], overrides: Sequence[str] = ()) -> RunConfig:
    """The config a recipe file was found under, so that it is trained as it was; the default where it says nothing."""
    trained = provenance.get("trained")
    if trained is None:
        return config_file.read(None, overrides)
    return config_file.check(config_file.override(dict(trained), overrides), "provenance.trained")


def write_student(student: Student, config: RunConfig, folder: Path) -> None:
    """`student.safetensors` and its card `student.json`: what `load_student` reads."""
    data = assemble.data(config, pick_device("cpu"))
    student.save(folder / "student.safetensors")
    write_card(student.recipe, data, folder)


def load_student(folder: str | Path) -> nn.Module:
    """The student a run has left, in evaluation mode: `student.safetensors` and `student.json` of its folder.

    Its inputs are images in [0, 1], normalised with `student.json`'s mean and std.

    Raises:
        UserError: the files are not there or do not fit together.
    """
    place = Path(folder)
    try:
        card = json.loads((place / "student.json").read_text())
    except (OSError, ValueError):
        raise UserError(f"there is no exported student in {str(place)!r} (student.json)") from None
    return student_from(card, place / "student.safetensors")


def student_from(card: dict[str, Any], weights: Path) -> nn.Module:
    """A student of its card (recipe, input shape, classes) and its weights."""
    recipe = Recipe.from_dict(card["recipe"])
    shape, classes = tuple(card["input_shape"]), int(card["classes"])
    module = models.build(recipe.student, recipe.transform, shape, classes, models.branches(recipe))
    module = deploy.deployed(recipe, module, shape, classes, deploy.joined(weights))
    models.load(module, weights)
    return module.eval()
