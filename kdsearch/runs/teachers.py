"""Teachers beside one another: what each knows, and what a student learns from it by plain KD.

Whether a teacher is good is decided by its students: one that was smoothed, made tolerant or made nasty may predict as
well as an ordinary one and teach better or worse.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

from kdsearch.errors import TrialFailure, UserError
from kdsearch.kd_methods import METHODS
from kdsearch.kd_methods.targets._compatibility import stability
from kdsearch.runs import assemble, teacher
from kdsearch.runs.config import RunConfig, TeacherConfig
from kdsearch.runs.data import Data
from kdsearch.runs.named import parse_named
from kdsearch.runs.report.intervals import estimate, paired
from kdsearch.runs.report.tables import student_text
from kdsearch.runs.settings import Seeds, Settings, pick_device
from kdsearch.runs.taught import Taught, diffusion, scores, taught
from kdsearch.runs.world import TeacherModel, World
from kdsearch.search_space.recipe import Recipe
from kdsearch.search_space.space import SearchSpace

ORDINARY, NONE = "ordinary", "no teacher"
COLD_TEMPERATURE = 1.0
WARM, COLD = "", f" at T = {COLD_TEMPERATURE:g}"
"""How the students were distilled: by plain KD at its published temperature, or at the low one of the studies."""

Say = Callable[[str], None]
Job = tuple[str, str]  # a teacher's label, and how its students are distilled
Students = dict[Job, list[Taught]]


def parse_method(text: str) -> dict[str, Any]:
    """`nasty_teacher:weight=0.01` as the slot that it fills in a teacher's recipe.

    Raises:
        UserError: not of that form, or no such method; the message gives the nearest.
    """
    name, options = parse_named(text, "--with", "METHOD")
    entry: dict[str, Any] = {"method": name, **options}
    try:
        return {METHODS[name].slot: entry}
    except ValueError as error:
        raise UserError(f"--with {text!r}: {error}") from None


def configs_of(config: RunConfig, methods: Sequence[str]) -> dict[str, RunConfig]:
    """The run config of every teacher by its label: the ordinary one's first, then one for each method.

    They share architecture, epochs, seed and the optimiser that `teacher.recipe` names; what else it holds is left out.

    Raises:
        UserError: a method that no teacher can be trained by, or a teacher that is not trained here at all.
    """
    if config.teacher.checkpoint is not None:
        raise UserError("teacher.checkpoint: teachers that are compared are trained here; leave it out")
    shared = {slot: entry for slot, entry in (config.teacher.recipe or {}).items() if slot == "optimizer"}
    recipes = {ORDINARY: shared}
    for text in methods:
        recipes[text] = {**shared, **parse_method(text)}
    found: dict[str, RunConfig] = {}
    for label, recipe in recipes.items():
        try:
            changed = TeacherConfig.model_validate({**config.teacher.model_dump(), "recipe": recipe or None})
        except ValueError as error:
            raise UserError(f"--with {label!r}: {_reason(error)}") from None
        found[label] = config.model_copy(update={"teacher": changed})
    return found


def _reason(error: ValueError) -> str:
    """A config section's first problem, without pydantic's frame around it."""
    problems: list[dict[str, Any]] = getattr(error, "errors", list)()
    return str(problems[0]["msg"]).removeprefix("Value error, ") if problems else str(error)


def compare(
    config: RunConfig, methods: Sequence[str], *, seeds: int | None = None, folder: Path = Path(), say: Say = print
) -> dict[str, Any]:
    """Train every teacher, and students from each, and from none, under the same finalist seeds.

    Everything is trained once and found again by content in the config's cache, or in `folder/cache`. Scores are read
    on the validation split; test stays unseen.

    Args:
        methods: one further teacher for each, as `METHOD[:KEY=VALUE,...]`.
        seeds: of the students; as many as the config's finals without it.

    Returns:
        Plain data. `teachers` are `label`, `equation`, `accuracy`, `nll`, `ece`, `seconds`, `students` (of plain KD:
        mean, spread, half_width of the 95 % interval, scores, `over_ordinary` and `over_none` paired by seed, mean
        `agreement` with the teacher), `cold_students` (the same at temperature `cold`) and `compatibility`: the
        teacher's `stability`, and the `diffusion` of classes from the cold students to the others. `none` has the
        students without a teacher; their agreement is with the ordinary one.

    Raises:
        UserError: a method or a config that cannot be carried out.
    """
    wanted = configs_of(config, methods)
    count, metric = seeds or config.finals.seeds, config.metric
    data, settings = assemble.data(config, pick_device(config.engine.device)), assemble.settings(config)
    cache = assemble.cache(config, folder)
    worlds: dict[str, World] = {}
    for label, own in wanted.items():
        model = _teacher(label, own, data, settings, cache, say)
        worlds[label] = World(data, model, settings, cache, metric, config.seed)
    base = SearchSpace.from_dict(config.space).default()
    kd = base.plain_kd()
    jobs: dict[Job, tuple[Recipe, World]] = {(NONE, WARM): (base.without_distillation(), worlds[ORDINARY])}
    for label, world in worlds.items():
        jobs[label, WARM], jobs[label, COLD] = (kd, world), (_at(kd, COLD_TEMPERATURE), world)
    students: Students = {job: [] for job in jobs}
    for k in range(count):
        for job, (recipe, world) in jobs.items():
            label, heat = job
            try:
                students[job].append(taught(recipe, world, Seeds.finalist(config.seed, k)))
            except TrialFailure as error:
                raise UserError(f"a student of {label!r} fails ({error.reason}): {error}") from None
            score = students[job][-1].metrics[metric]
            say(f"seed {k + 1} of {count}, {label}{heat}: validation {metric} {score:.4f}")
    return {
        "metric": metric,
        "student": student_text(base),
        "seeds": count,
        "cold": COLD_TEMPERATURE,
        "none": {"label": NONE, "students": _scores((NONE, WARM), students, metric)},
        "teachers": [_row(label, wanted[label], worlds[label], students) for label in wanted],
    }


def _at(kd: Recipe, temperature: float) -> Recipe:
    plain = kd.to_dict()
    return Recipe.from_dict({**plain, "logits": {**plain["logits"], "temperature": temperature}})


def _teacher(label: str, config: RunConfig, data: Data, settings: Settings, cache: Path, say: Say) -> TeacherModel:
    def progress(done: int, total: int, score: float) -> None:
        say(f"teacher {label}: epoch {done}/{total}, validation {config.metric} {score:.4f}")

    try:
        return teacher.prepare(config, data, settings, cache, progress)
    except UserError as error:
        raise error if label == ORDINARY else UserError(f"--with {label!r}: {error}") from None


def _row(label: str, config: RunConfig, world: World, students: Students) -> dict[str, Any]:
    """A teacher's entry in what `compare` gives."""
    model, labels = world.teacher, world.data.validation.labels
    assert model is not None
    predictions = model.validation(world.data)
    assert predictions is not None  # a teacher that was trained here knows the data's classes
    pairs = zip(students[label, COLD], students[label, WARM], strict=True)
    drawn = [found for cold, warm in pairs if (found := diffusion(cold, warm, labels)) is not None]
    return {
        "label": label,
        "equation": teacher.training_recipe(config.teacher).equation(),
        **{name: model.metrics[name] for name in ("accuracy", "nll", "ece")},
        "seconds": model.seconds,
        "students": _scores((label, WARM), students, config.metric),
        "cold_students": _scores((label, COLD), students, config.metric),
        "compatibility": {
            "stability": stability(predictions, labels).item(),
            "diffusion": asdict(estimate(drawn)) if drawn else None,
        },
    }


def _scores(job: Job, students: Students, metric: str) -> dict[str, Any]:
    """The students' mean score and its interval, and what they gain over the ordinary teacher's and over none's."""
    own = scores(students[job], metric)
    found: dict[str, Any] = {**asdict(estimate(list(own.values()))), "scores": list(own.values())}
    for name, rival in (("over_ordinary", (ORDINARY, job[1])), ("over_none", (NONE, WARM))):
        gain = paired(own, scores(students[rival], metric)) if rival != job else None
        found[name] = asdict(gain) | {"resolved": gain.resolved} if gain is not None else None
    agreements = [s.metrics["agreement"] for s in students[job] if "agreement" in s.metrics]
    found["agreement"] = fmean(agreements) if agreements else None
    return found


def write(found: dict[str, Any], folder: Path) -> Path:
    """`teachers.json` in a folder, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "teachers.json"
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(found, indent=1))
    partial.replace(path)
    return path
